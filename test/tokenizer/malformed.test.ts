import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { LapidaryError } from '../../lib/errors.ts'
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts'
import { PieceType } from '../../lib/tokenizer/vocabulary.ts'
import { throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { fixtures } from './support/gemma.ts'
import {
  gemmaNormalizer,
  gemmaSpecials,
  gemmaTrainer,
  type WrittenPiece,
  writeSentencePiece,
} from './support/sentencepiece-writer.ts'

const letters: WrittenPiece[] = ['a', 'b', 'ab', '\u2581', '\u2581a'].map((piece, rank) => ({ piece, score: -rank }))
const pieces = [...gemmaSpecials(), ...letters]
const model = writeSentencePiece({ pieces })

const special = (content: string, id: number, more: object = {}): object => ({ id, content, special: true, ...more })

function json(
  changes: { root?: object; model?: object; vocab?: Record<string, unknown> } = {},
): Record<string, unknown> {
  return {
    added_tokens: ['<pad>', '<eos>', '<bos>', '<unk>'].map((content, id) => special(content, id)),
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
    pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
    model: {
      type: 'BPE',
      byte_fallback: true,
      vocab: { ...Object.fromEntries(pieces.map(({ piece }, id) => [piece, id])), ...changes.vocab },
      merges: [
        ['a', 'b'],
        ['\u2581', 'a'],
      ],
      ...changes.model,
    },
    ...changes.root,
  }
}

function gguf(changes: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    'general.architecture': 'gemma3',
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': pieces.map(({ piece }) => piece),
    'tokenizer.ggml.scores': Float32Array.from(pieces, ({ score = 0 }) => score),
    'tokenizer.ggml.token_type': Int32Array.from(pieces, ({ type = 1 }) => type),
    'tokenizer.ggml.bos_token_id': 2,
    'tokenizer.ggml.eos_token_id': 1,
    'tokenizer.ggml.padding_token_id': 0,
    ...changes,
  }
}

const fileErrors = ['ERR_CHECKPOINT_CORRUPT', 'ERR_CHECKPOINT_UNSUPPORTED']

/** The bytes give a tokenizer that works, or one clear error. Returns which. */
function loadsOrFails(load: () => Tokenizer, what: string): boolean {
  let tokenizer: Tokenizer
  try {
    tokenizer = load()
  } catch (error) {
    expect(error, what).toBeInstanceOf(LapidaryError)
    expect(fileErrors, what).toContain((error as LapidaryError).code)
    expect((error as LapidaryError).message, what).toMatch(/^(tokenizer\.(model|json)|GGUF metadata): /)
    return false
  }
  const ids = tokenizer.encode('ab a  é🙂<end_of_turn>', { bos: true })
  for (const id of ids) expect(id >= 0 && id < tokenizer.vocabularySize, what).toBe(true)
  tokenizer.decode(ids)
  return true
}

test('what the other tests break is whole', () => {
  const whole = [Tokenizer.fromSentencePiece(model), Tokenizer.fromJson(json()), Tokenizer.fromGguf(gguf())]
  for (const tokenizer of whole) expect([...tokenizer.encode('ab a')]).toEqual([262, 264])
})

describe('tokenizer.model', () => {
  test('cut off at every byte', () => {
    for (let length = 0; length < model.length; length++) {
      expect(loadsOrFails(() => Tokenizer.fromSentencePiece(model.subarray(0, length)), `cut at ${length}`)).toBe(false)
    }
  })

  test('bytes changed at random', () => {
    const random = Random.named('tokenizer.model, mutations')
    let loaded = 0
    const count = 4000
    for (let i = 0; i < count; i++) {
      const bytes = Buffer.from(model)
      for (let k = random.integer(1, 4); k > 0; k--) bytes[random.integer(0, bytes.length)] = random.integer(0, 256)
      if (loadsOrFails(() => Tokenizer.fromSentencePiece(bytes), `mutation ${i}`)) loaded += 1
    }
    expect(loaded).toBeGreaterThan(0)
    expect(loaded).toBeLessThan(count)
  })

  test('noise', () => {
    const random = Random.named('tokenizer.model, noise')
    for (let i = 0; i < 1000; i++) {
      const bytes = random.bytes(random.integer(0, 200))
      expect(loadsOrFails(() => Tokenizer.fromSentencePiece(bytes), `noise ${i}`)).toBe(false)
    }
  })

  test('messages name the byte', () => {
    const cases: [Uint8Array, RegExp][] = [
      [Buffer.from([0x0a, 0x05, 0x01]), /byte 0: field 1 is 5 bytes long, but its message has 1 more/],
      [Buffer.from([0x0a, 0x81, 0x80, 0x80, 0x80, 0x10, 0x01]), /byte 0: field 1 is 9007199254740991 bytes long/],
      [Buffer.from([0x0a]), /byte 1: a number goes on beyond the end/],
      [Buffer.from([0x03]), /byte 0: a field has number 0/],
      [Buffer.from([0x0b]), /byte 0: field 1 has wire type 3/],
      [Buffer.alloc(12, 0xff), /byte 0: a number has more than 10 bytes/],
      [Buffer.from([0x08, 0x01]), /byte 2: a piece ends here and has wire type 0; expected 2/],
      [Buffer.alloc(0), /byte 0: the model has no pieces/],
    ]
    for (const [bytes, message] of cases)
      throwsCode(() => Tokenizer.fromSentencePiece(bytes), 'ERR_CHECKPOINT_CORRUPT', message)
  })

  test('models of other kinds', () => {
    const trainer = (changes: Record<number, number | string>) =>
      writeSentencePiece({ pieces, trainer: { ...gemmaTrainer, ...changes } })
    const normalizer = (changes: Record<number, number | string>) =>
      writeSentencePiece({ pieces, normalizer: { ...gemmaNormalizer, ...changes } })
    const cases: [Uint8Array, RegExp][] = [
      [readFileSync(new URL('tokenizer/gemma_export_vocab.spm', fixtures)), /type unigram; only BPE/],
      [readFileSync(new URL('tokenizer/gemma4_test_vocab.spm', fixtures)), /type unigram; only BPE/],
      [trainer({ 3: 3 }), /type word/],
      [trainer({ 3: 1 }), /type unigram/],
      [trainer({ 3: 77 }), /type 77/],
      [trainer({ 35: 0 }), /byte_fallback is off/],
      [trainer({ 24: 1 }), /treat_whitespace_as_suffix/],
      [normalizer({ 4: 1 }), /remove_extra_whitespaces/],
      [normalizer({ 5: 0 }), /escape_whitespaces is off/],
      [normalizer({ 2: 'rules' }), /normalises characters/],
      [
        writeSentencePiece({ pieces: [...pieces, { piece: 'c', type: PieceType.unused }] }),
        /piece 265 is of type "unused"/,
      ],
    ]
    for (const [bytes, message] of cases)
      throwsCode(() => Tokenizer.fromSentencePiece(bytes), 'ERR_CHECKPOINT_UNSUPPORTED', message)
  })

  test('vocabularies that contradict themselves', () => {
    const cases: [readonly WrittenPiece[], RegExp][] = [
      [[...pieces, { piece: 'ab' }], /piece 265 \("ab"\) has the text of piece 262/],
      [[...pieces, { piece: '' }], /piece 265 is empty/],
      [[...pieces, { piece: 'c', score: Number.NaN }], /score of piece 265 is not a number/],
      [[...pieces, { piece: 'c', type: 9 }], /piece 265 has type 9; expected 1 to 6/],
      [[...pieces, { piece: '<0xZZ>', type: PieceType.byte }], /piece 265 \("<0xZZ>"\) is a byte piece/],
      [pieces.filter(({ piece }) => piece !== '<0x80>'), /no byte piece <0x80>/],
      [pieces.filter(({ piece }) => piece !== '<bos>'), /no control piece "<bos>"/],
      [pieces.filter(({ piece }) => piece !== '<eos>'), /no control piece "<eos>"/],
    ]
    for (const [written, message] of cases) {
      throwsCode(
        () => Tokenizer.fromSentencePiece(writeSentencePiece({ pieces: written })),
        'ERR_CHECKPOINT_CORRUPT',
        message,
      )
    }
    const badUtf8 = Buffer.from(model)
    badUtf8[badUtf8.indexOf('\u2581a') + 1] = 0x41
    throwsCode(() => Tokenizer.fromSentencePiece(badUtf8), 'ERR_CHECKPOINT_CORRUPT', /piece 264 is not UTF-8/)
  })
})

describe('tokenizer.json', () => {
  const text = Buffer.from(JSON.stringify(json(), null, 1))

  test('cut off at every byte', () => {
    for (let length = 0; length < text.length; length++) {
      expect(loadsOrFails(() => Tokenizer.fromJson(text.subarray(0, length)), `cut at ${length}`)).toBe(false)
    }
  })

  test('bytes changed at random', () => {
    const random = Random.named('tokenizer.json, mutations')
    const characters = Buffer.from('{}[]",:\\ 0123456789.eE+-tfn\u2581\n\0', 'utf8')
    let loaded = 0
    const count = 4000
    for (let i = 0; i < count; i++) {
      const bytes = Buffer.from(text)
      for (let k = random.integer(1, 4); k > 0; k--)
        bytes[random.integer(0, bytes.length)] = random.pick([...characters])
      if (loadsOrFails(() => Tokenizer.fromJson(bytes), `mutation ${i}`)) loaded += 1
    }
    expect(loaded).toBeGreaterThan(0)
    expect(loaded).toBeLessThan(count)
  })

  test('what the scanner takes is JSON', () => {
    const random = Random.named('tokenizer.json, JSON')
    const characters = [...'{}[]",:\\ 01.e-t\n']
    for (let i = 0; i < 3000; i++) {
      const at = random.integer(0, text.length)
      const bytes = Buffer.concat([
        text.subarray(0, at),
        Buffer.from(random.pick(characters)),
        text.subarray(at + random.integer(0, 2)),
      ])
      let parsed = true
      try {
        JSON.parse(bytes.toString('utf8'))
      } catch {
        parsed = false
      }
      if (loadsOrFails(() => Tokenizer.fromJson(bytes), `edit ${i}`)) expect(parsed, `edit ${i} at ${at}`).toBe(true)
    }
  })

  test('escapes mean what they mean in JSON', () => {
    const escaped = text.toString('utf8').replaceAll('\u2581', '\\u2581').replaceAll('"ab"', '"\\u0061b"')
    const tokenizer = Tokenizer.fromJson(Buffer.from(escaped))
    expect([...tokenizer.encode('ab a')]).toEqual([262, 264])
    const joined = JSON.stringify(json({ model: { merges: ['a b', '\u2581 a'] } })).replaceAll(
      '\u2581 a',
      '\\u2581\\u0020a',
    )
    expect([...Tokenizer.fromJson(Buffer.from(joined)).encode('ab a')]).toEqual([262, 264])
  })

  test('vocabularies and merges that contradict themselves', () => {
    const merges = (...list: unknown[]): Record<string, unknown> => json({ model: { merges: list } })
    const cases: [unknown, RegExp][] = [
      [json({ vocab: { c: 262 } }), /"(c|ab)" has id 262: another piece has it/],
      [json({ vocab: { c: 999 } }), /"c" has id 999: expected 0 to 265, without holes/],
      [json({ vocab: { c: -1 } }), /expected a whole number/],
      [json({ vocab: { c: 1.5 } }), /expected a whole number/],
      [json({ vocab: { c: '265' } }), /expected a whole number/],
      [json({ vocab: { '': 265 } }), /piece 265 is empty/],
      [json({ root: { added_tokens: [special('<far>', 400)] } }), /no piece has id 265/],
      [
        json({ root: { added_tokens: [special('<other>', 262)] } }),
        /"<other>" has id 262, which model\.vocab gives to "ab"/,
      ],
      [json({ root: { added_tokens: [special('', 262)] } }), /added_tokens\[0\]: expected an id and a content/],
      [json({ root: { added_tokens: [{ content: 'x' }] } }), /added_tokens\[0\]: expected an id and a content/],
      [json({ root: { added_tokens: [null] } }), /added_tokens\[0\]/],
      [json({ root: { added_tokens: {} } }), /added_tokens: expected an array/],
      [json({ root: { added_tokens: [] } }), /the bos id is -1/],
      [merges(['a', 'zz']), /"zz" is not a piece/],
      [merges('a zz'), /"zz" is not a piece/],
      [merges(['b', 'a']), /\["b","a"\] together are not a piece/],
      [merges(['a']), /expected two pieces, got 1/],
      [merges(['a', 'b', 'a']), /expected two pieces, got 3/],
      [merges('ab'), /expected two pieces with a space between/],
      [merges('a '), /"" is not a piece/],
      [merges(5), /model\.merges: expected a string/],
      [json({ model: { merges: {} } }), /model\.merges: expected an array/],
      [json({ model: { merges: undefined } }), /no model\.merges/],
      [json({ model: { vocab: undefined } }), /no model\.vocab/],
      [json({ model: { vocab: [] } }), /no model\.vocab/],
      [Buffer.from('{"model":{"vocab":{},"vocab":{}}}'), /byte 29: there is a second model\.vocab/],
      [Buffer.from(`${JSON.stringify(json())} x`), /the file goes on behind its object/],
      [Buffer.from([0x7b, 0xff, 0x7d]), /not UTF-8/],
      ['[]', /expected an object/],
      [undefined, /expected an object/],
    ]
    for (const [value, message] of cases) throwsCode(() => Tokenizer.fromJson(value), 'ERR_CHECKPOINT_CORRUPT', message)
    const missing = Object.fromEntries(
      [...pieces.slice(0, 100), ...pieces.slice(101)].map(({ piece }, id) => [piece, id]),
    )
    throwsCode(
      () => Tokenizer.fromJson(json({ model: { vocab: missing } })),
      'ERR_CHECKPOINT_CORRUPT',
      /no byte piece <0x60>/,
    )
    const cyclic: Record<string, unknown> = {}
    cyclic.self = cyclic
    throwsCode(() => Tokenizer.fromJson(cyclic), 'ERR_INVALID_ARGUMENT', /not JSON/)
  })

  test('tokenizers that do something else', () => {
    const cases: [unknown, RegExp][] = [
      [json({ model: { type: 'Unigram', vocab: [['a', 0]] } }), /model\.type is "Unigram"/],
      [json({ model: { type: 'WordPiece' } }), /model\.type is "WordPiece"/],
      [json({ model: { byte_fallback: false } }), /byte_fallback is off/],
      [json({ model: { dropout: 0.1 } }), /dropout/],
      [json({ model: { end_of_word_suffix: '</w>' } }), /end_of_word_suffix/],
      [json({ model: { ignore_merges: true } }), /ignore_merges/],
      [json({ root: { normalizer: { type: 'NFKC' } } }), /normalizer \{"type":"NFKC"\}/],
      [json({ root: { normalizer: null, pre_tokenizer: null } }), /does not replace spaces/],
      [json({ root: { pre_tokenizer: { type: 'ByteLevel' } } }), /pre_tokenizer \{"type":"ByteLevel"\}/],
      [json({ root: { added_tokens: [special('<x>', 265, { lstrip: true })] } }), /"<x>" sets lstrip/],
    ]
    for (const [value, message] of cases)
      throwsCode(() => Tokenizer.fromJson(value), 'ERR_CHECKPOINT_UNSUPPORTED', message)
  })

  test('a prefix, where the file asks for one', () => {
    const prepend = { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '\u2581' }, json().normalizer] }
    const metaspace = { type: 'Metaspace', replacement: '\u2581', prepend_scheme: 'first', split: false }
    for (const root of [{ normalizer: prepend }, { normalizer: null, pre_tokenizer: metaspace }]) {
      const tokenizer = Tokenizer.fromJson(json({ root }))
      expect([...tokenizer.encode('ab')]).toEqual([263, 262])
      expect(tokenizer.decode([264, 261])).toBe('ab')
    }
  })
})

describe('GGUF metadata', () => {
  test('values that contradict each other', () => {
    const key = (name: string, value: unknown): Record<string, unknown> => gguf({ [`tokenizer.ggml.${name}`]: value })
    const cases: [Record<string, unknown>, RegExp][] = [
      [key('tokens', undefined), /tokens: expected an array of strings/],
      [key('tokens', []), /tokens: expected an array of strings/],
      [key('tokens', [1, 2]), /tokens: expected an array of strings/],
      [
        key(
          'tokens',
          pieces.map(() => 'a'),
        ),
        /has the text of piece 0/,
      ],
      [key('scores', undefined), /scores: expected 265 numbers/],
      [key('scores', new Float32Array(3)), /scores: expected 265 numbers, one for each token, got 3/],
      [key('scores', new Float32Array(265).fill(Number.NaN)), /scores\[0\] is not a number/],
      [key('token_type', 'x'), /token_type: expected 265 numbers/],
      [key('token_type', new Int32Array(265).fill(7)), /token_type\[0\] is 7; expected 1 to 6/],
      [key('token_type', new Int32Array(265).fill(257)), /token_type\[0\] is 257; expected 1 to 6/],
      [key('token_type', new Int32Array(265).fill(1)), /no byte piece <0x00>/],
      [key('bos_token_id', 265), /bos_token_id is 265; expected one of the 265 tokens/],
      [key('bos_token_id', -1), /bos_token_id/],
      [key('eos_token_id', 'x'), /eos_token_id/],
      [key('bos_token_id', undefined), /the bos id is -1/],
      [{ ...key('model', 'gemma4'), 'tokenizer.ggml.merges': undefined }, /merges: expected an array of strings/],
      [{ ...key('model', 'gemma4'), 'tokenizer.ggml.merges': ['a b', 'a zz'] }, /merges: \[1\]: .*got "a zz"/],
      [{ ...key('model', 'gemma4'), 'tokenizer.ggml.merges': ['a b a'] }, /merges: \[0\]/],
      [{ ...key('model', 'gemma4'), 'tokenizer.ggml.merges': [5] }, /merges: \[0\]/],
    ]
    for (const [metadata, message] of cases)
      throwsCode(() => Tokenizer.fromGguf(metadata), 'ERR_CHECKPOINT_CORRUPT', message)
    throwsCode(() => Tokenizer.fromGguf(key('model', 'gpt2')), 'ERR_CHECKPOINT_UNSUPPORTED', /model is "gpt2"/)
    throwsCode(() => Tokenizer.fromGguf({}), 'ERR_CHECKPOINT_UNSUPPORTED', /model is missing/)
  })

  test("as llama.cpp's converter writes Gemma: turns as control tokens, spaces in user-defined tokens, filled holes", () => {
    const more: WrittenPiece[] = [
      { piece: '<start_of_turn>', type: PieceType.control },
      { piece: '<end_of_turn>', type: PieceType.control },
      { piece: '  ', type: PieceType.userDefined },
      { piece: '[PAD268]', type: PieceType.unused },
    ]
    const all = [...pieces, ...more]
    const tokenizer = Tokenizer.fromGguf(
      gguf({
        'tokenizer.ggml.tokens': all.map(({ piece }) => piece),
        'tokenizer.ggml.scores': Float32Array.from(all, ({ score = 0 }) => score),
        'tokenizer.ggml.token_type': Int32Array.from(all, ({ type = 1 }) => type),
        'tokenizer.ggml.eos_token_id': 266,
      }),
    )
    expect([...tokenizer.encode('<start_of_turn>a  b<end_of_turn>')]).toEqual([265, 260, 267, 261, 266])
    expect([...tokenizer.encode('<start_of_turn>', { markers: false })]).not.toContain(265)
    expect([...tokenizer.encode('[PAD268]')]).not.toContain(268)
    expect(tokenizer.decode([265, 260, 267, 261, 266, 268])).toBe('a  b')
    // Instruction-tuned files name the end of a turn as eos.
    expect([tokenizer.eos, tokenizer.endOfTurn]).toEqual([1, 266])
    expect([...tokenizer.encode('<eos>')]).not.toContain(1)
  })

  test('turns listed as ordinary pieces, as in the GGUF files of Gemma 1, are markers all the same', () => {
    const all: WrittenPiece[] = [...pieces, { piece: '<start_of_turn>' }, { piece: '<end_of_turn>' }]
    const tokenizer = Tokenizer.fromGguf(
      gguf({
        'tokenizer.ggml.tokens': all.map(({ piece }) => piece),
        'tokenizer.ggml.scores': Float32Array.from(all, ({ score = 0 }) => score),
        // llama.cpp's converter lists <unk> as control.
        'tokenizer.ggml.token_type': Int32Array.from(all, ({ piece, type = 1 }) => (piece === '<unk>' ? 3 : type)),
      }),
    )
    expect([...tokenizer.encode('<start_of_turn>a<end_of_turn>')]).toEqual([265, 260, 266])
    expect([...tokenizer.encode('<start_of_turn>', { markers: false })]).not.toContain(265)
    expect(tokenizer.decode([265, 260, 266])).toBe('a')
    expect(tokenizer.endOfTurn).toBe(266)
    const unknown = tokenizer.idOf('<unk>')!
    expect([...tokenizer.encode('<unk>')]).not.toContain(unknown)
    expect(tokenizer.decode([260, unknown])).toBe(Tokenizer.fromGguf(gguf()).decode([260, unknown]))
  })

  test('a space is put in front for other models than Gemma, unless the file says no', () => {
    const llama = gguf({ 'general.architecture': 'llama' })
    expect([...Tokenizer.fromGguf(llama).encode('ab')]).toEqual([263, 262])
    expect([...Tokenizer.fromGguf({ ...llama, 'tokenizer.ggml.add_space_prefix': false }).encode('ab')]).toEqual([262])
  })
})

test('pieces made to collide end in an error, not in a long wait', () => {
  // FNV-1a over 32 bits: pieces of two halves whose hashes cancel are found by brute force, many of equal hash by joining them.
  const random = Random.named('tokenizer, collisions')
  const seen = new Map<number, string>()
  const hash = (text: string, from = 0x811c9dc5 | 0): number => {
    let state = from
    for (let i = 0; i < text.length; i++) state = Math.imul(state ^ text.charCodeAt(i), 0x01000193)
    return state
  }
  let blocks: [string, string][] = []
  let start: number | undefined
  while (blocks.length < 11) {
    seen.clear()
    for (;;) {
      const block = random.bits().toString(36).padStart(7, '0')
      const state = hash(block, start)
      const other = seen.get(state)
      if (other !== undefined && other !== block) {
        blocks = [...blocks, [other, block]]
        start = state
        break
      }
      seen.set(state, block)
    }
  }
  let colliding = ['']
  for (const [first, second] of blocks) colliding = colliding.flatMap((text) => [text + first, text + second])
  expect(new Set(colliding.map((text) => hash(text))).size).toBe(1)
  const crafted = writeSentencePiece({ pieces: [...pieces, ...colliding.map((piece) => ({ piece }))] })
  throwsCode(
    () => Tokenizer.fromSentencePiece(crafted),
    'ERR_CHECKPOINT_CORRUPT',
    /more than 1024 pieces have hashes like/,
  )
})
