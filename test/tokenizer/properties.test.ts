import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts'
import { PieceType } from '../../lib/tokenizer/vocabulary.ts'
import { Random } from '../support/random.ts'
import { fixtures } from './support/gemma.ts'
import { type ReferencePiece, referenceEncode, referenceMerge, referenceVocabulary } from './support/reference.ts'
import { gemmaSpecials, type WrittenPiece, writeSentencePiece } from './support/sentencepiece-writer.ts'

/** The pieces of a model that the library has read, for the reference. */
function piecesOf(written: readonly WrittenPiece[]): ReferencePiece[] {
  return written.map(({ piece, score = 0, type = PieceType.normal }) => ({
    piece,
    score: Math.fround(score),
    kind: type === PieceType.normal ? 'normal' : type === PieceType.userDefined ? 'frozen' : 'other',
  }))
}

/** A vocabulary over a few letters: short words, so that everything overlaps; some scores tie, some characters are no pieces. */
function randomPieces(random: Random): WrittenPiece[] {
  const alphabet = ['a', 'b', 'c', '\u2581', '.', 'é', '漢', '😀', '𝒜'].slice(0, random.integer(2, 10))
  const pieces = gemmaSpecials()
  const known = new Set<string>()
  const add = (piece: string, type: number, score: number): void => {
    if (known.has(piece)) return
    known.add(piece)
    pieces.push({ piece, type, score })
  }
  for (const piece of ['<start_of_turn>', '<b>', '\n\n', '\u2581\u2581\u2581']) add(piece, PieceType.userDefined, 0)
  for (const character of alphabet) if (random.fraction() < 0.85) add(character, PieceType.normal, -1000)
  for (let i = random.integer(1, 80); i > 0; i--) {
    const piece = Array.from({ length: random.integer(2, 6) }, () => random.pick(alphabet)).join('')
    add(piece, PieceType.normal, -random.integer(0, 30))
  }
  return pieces
}

const fragments = [
  'a',
  'b',
  'c',
  ' ',
  '.',
  'é',
  '漢',
  '😀',
  '𝒜',
  'q',
  '\n',
  '\u2581',
  '<b>',
  '<start_of_turn>',
  '\ud800',
  '\udc00',
  '字',
]

function randomText(random: Random, length: number): string {
  return Array.from({ length }, () => random.pick(fragments)).join('')
}

describe('ids equal those of the reference, which looks at every pair in every round', () => {
  test('random vocabularies and texts', () => {
    let merged = 0
    for (let seed = 0; seed < 150; seed++) {
      const random = Random.named(`tokenizer ${seed}`)
      const written = randomPieces(random)
      const tokenizer = Tokenizer.fromSentencePiece(writeSentencePiece({ pieces: written }))
      const reference = referenceVocabulary(piecesOf(written))
      for (let i = 0; i < 20; i++) {
        // Beyond 24 symbols of one stretch the heap takes over.
        const text = randomText(random, random.integer(0, i < 15 ? 40 : 200))
        const ids = [...tokenizer.encode(text)]
        expect({ seed, text, ids }).toEqual({ seed, text, ids: referenceEncode(reference, text) })
        merged += text.length - ids.length
      }
    }
    expect(merged).toBeGreaterThan(1000)
  })

  test('long stretches with many ties', () => {
    for (let seed = 0; seed < 60; seed++) {
      const random = Random.named(`tokenizer, ties ${seed}`)
      const known = new Set(['a', 'b', 'aa', 'ab', 'ba', 'bb'])
      for (let i = 0; i < 20; i++) {
        known.add(Array.from({ length: random.integer(3, 7) }, () => random.pick(['a', 'b'])).join(''))
      }
      const written = [...gemmaSpecials(), ...[...known].map((piece) => ({ piece, score: -random.integer(0, 3) }))]
      const tokenizer = Tokenizer.fromSentencePiece(writeSentencePiece({ pieces: written }))
      const text = Array.from({ length: random.integer(25, 300) }, () => random.pick(['a', 'b'])).join('')
      const ids = [...tokenizer.encode(text)]
      expect({ seed, text, ids }).toEqual({
        seed,
        text,
        ids: referenceEncode(referenceVocabulary(piecesOf(written)), text),
      })
    }
  })

  test('a real vocabulary', () => {
    const json = JSON.parse(readFileSync(new URL('tiny-model/hf/tokenizer.json', fixtures), 'utf8')) as {
      added_tokens: { content: string }[]
    }
    const tokenizer = Tokenizer.fromSentencePiece(
      readFileSync(fileURLToPath(new URL('tiny-model/hf/tokenizer.model', fixtures))),
    )
    const added = new Set(json.added_tokens.map(({ content }) => content))
    const pieces: ReferencePiece[] = []
    for (let id = 0; id < tokenizer.vocabularySize; id++) {
      const piece = tokenizer.pieceOf(id)
      const control = ['<pad>', '<eos>', '<bos>', '<unk>'].includes(piece) || /^<0x..>$/.test(piece)
      // The model's training gave later pieces lower scores.
      const frozen = added.has(piece) || /^\u2581{2,}$/.test(piece)
      pieces.push({ piece, score: -id, kind: control ? 'other' : frozen ? 'frozen' : 'normal' })
    }
    const reference = referenceVocabulary(pieces)
    const random = Random.named('tokenizer, real vocabulary')
    const prose = readFileSync(new URL('tiny-model/eval.txt', fixtures), 'utf8')
    for (let i = 0; i < 60; i++) {
      const at = random.integer(0, prose.length - 200)
      const text = prose.slice(at, at + random.integer(1, 200)) + randomText(random, 10)
      expect([...tokenizer.encode(text)]).toEqual(referenceEncode(reference, text))
    }
  })
})

test('lists of merges: ids equal those of a reference, from tokenizer.json and GGUF', () => {
  let merged = 0
  for (let seed = 0; seed < 80; seed++) {
    const random = Random.named(`tokenizer, merges ${seed}`)
    const letters = ['\u2581', 'a', 'b', 'c', 'é']
    const pieces: WrittenPiece[] = [...gemmaSpecials(), ...letters.map((piece) => ({ piece }))]
    const ids = new Map(pieces.map(({ piece }, id) => [piece, id]))
    const merges: [string, string][] = []
    for (let i = random.integer(0, 60); i > 0; i--) {
      const pair: [string, string] = [random.pick(pieces.slice(260)).piece, random.pick(pieces.slice(260)).piece]
      const product = pair.join('')
      if (merges.some((other) => other[0] === pair[0] && other[1] === pair[1]) || product.length > 8) continue
      if (!ids.has(product)) ids.set(product, pieces.push({ piece: product }) - 1)
      merges.push(pair)
    }
    const model = { type: 'BPE', byte_fallback: true, vocab: Object.fromEntries(ids) }
    const json = {
      added_tokens: ['<pad>', '<eos>', '<bos>', '<unk>'].map((content, id) => ({ id, content, special: true })),
      normalizer: { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' },
    }
    const tokenizers = [
      Tokenizer.fromJson({ ...json, model: { ...model, merges } }),
      Tokenizer.fromJson({ model: { merges: merges.map((pair) => pair.join(' ')), ...model }, ...json }),
      Tokenizer.fromGguf({
        'tokenizer.ggml.model': 'gemma4',
        'tokenizer.ggml.tokens': pieces.map(({ piece }) => piece),
        'tokenizer.ggml.token_type': pieces.map(({ type = 1 }) => type),
        'tokenizer.ggml.merges': merges.map((pair) => pair.join(' ')),
        'tokenizer.ggml.bos_token_id': 2,
        'tokenizer.ggml.eos_token_id': 1,
      }),
    ]
    for (let i = 0; i < 20; i++) {
      const length = random.integer(0, i < 15 ? 24 : 150)
      const text = Array.from({ length }, () => random.pick(['a', 'b', 'c', 'é', ' '])).join('')
      const expected = referenceMerge(merges, text.replaceAll(' ', '\u2581')).map((piece) => ids.get(piece)!)
      for (const tokenizer of tokenizers) {
        expect({ seed, text, ids: [...tokenizer.encode(text)] }).toEqual({ seed, text, ids: expected })
      }
      merged += length - expected.length
    }
  }
  expect(merged).toBeGreaterThan(1000)
})

describe('decoding', () => {
  const tokenizer = Tokenizer.fromSentencePiece(readFileSync(new URL('tiny-model/hf/tokenizer.model', fixtures)))
  const byteId = (byte: number): number => tokenizer.idOf(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`)!

  test('every text comes back, but for unpaired surrogates', () => {
    const random = Random.named('tokenizer, decoding')
    for (let i = 0; i < 300; i++) {
      const text = randomText(random, random.integer(0, 60)).replaceAll('\u2581', ' ')
      expect(tokenizer.decode(tokenizer.encode(text), { special: true })).toBe(
        text.replace(/\p{Surrogate}/gu, '\ufffd'),
      )
    }
  })

  test('every code point comes back', () => {
    for (let codePoint = 0; codePoint < 0x110000; codePoint += codePoint < 0x3000 ? 1 : 97) {
      if ((codePoint >= 0xd800 && codePoint < 0xe000) || codePoint === 0x2581) continue
      const text = String.fromCodePoint(codePoint)
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text)
    }
  })

  test('bytes that make no character are U+FFFD each, as in SentencePiece', () => {
    const cases: [number[], string][] = [
      [[0xe2, 0x82, 0xac], '€'],
      [[0xe2, 0x82], '\ufffd\ufffd'],
      [[0x80, 0xe2, 0x82, 0xac], '\ufffd€'],
      [[0xe2, 0xe2, 0x82, 0xac], '\ufffd€'],
      [[0xf0, 0x9f, 0x99], '\ufffd\ufffd\ufffd'],
      [[0xf0, 0x9f, 0x99, 0x41], '\ufffd\ufffd\ufffdA'],
      [[0xed, 0xa0, 0x80], '\ufffd\ufffd\ufffd'],
      [[0xc0, 0xaf], '\ufffd\ufffd'],
      [[0xf4, 0x90, 0x80, 0x80], '\ufffd\ufffd\ufffd\ufffd'],
      [[0xe0, 0x80, 0x80], '\ufffd\ufffd\ufffd'],
      [[0xff, 0x41, 0xfe], '\ufffdA\ufffd'],
      [[0xf0, 0x9f, 0x99, 0x82, 0xf0], '🙂\ufffd'],
    ]
    for (const [bytes, text] of cases)
      expect({ bytes, text: tokenizer.decode(bytes.map(byteId)) }).toEqual({ bytes, text })
  })

  test('a stream gives what decode gives, and no U+FFFD for a character that completes', () => {
    const random = Random.named('tokenizer, streaming')
    for (let i = 0; i < 400; i++) {
      const bytes = random.pick([
        () => [...random.bytes(random.integer(0, 12))],
        () => [...Buffer.from(randomText(random, 6), 'utf8')],
        () => [...Buffer.from('é€🙂𝒜', 'utf8')].slice(random.integer(0, 4)),
      ])()
      const ids = bytes.map(byteId)
      if (random.fraction() < 0.5)
        ids.splice(random.integer(0, ids.length + 1), 0, random.integer(0, tokenizer.vocabularySize))
      const decoder = tokenizer.decoder({ special: true })
      const pieces = ids.map((id) => decoder.push(id))
      expect([...pieces, decoder.end()].join('')).toBe(tokenizer.decode(ids, { special: true }))
    }
    const decoder = tokenizer.decoder()
    const pushed = [...tokenizer.encode('a🫩b')].map((id) => decoder.push(id))
    expect(pushed).toEqual(['a', '', '', '', '🫩', 'b'])
    expect(decoder.end()).toBe('')
  })

  test('a decoder that has ended begins anew, and ids outside the vocabulary have no text', () => {
    const decoder = tokenizer.decoder()
    expect(decoder.push(byteId(0xe2))).toBe('')
    expect(decoder.end()).toBe('\ufffd')
    expect(decoder.end()).toBe('')
    for (const id of [-1, 4096, 2 ** 31, Number.NaN, 1.5]) expect(decoder.push(id)).toBe('')
    expect(tokenizer.decode([4028, 99999, 4028])).toBe('aa')
  })
})

test('long stretches without a place to cut cost n log n', () => {
  const tokenizer = Tokenizer.fromSentencePiece(readFileSync(new URL('tiny-model/hf/tokenizer.model', fixtures)))
  const random = Random.named('tokenizer, long stretches')
  const prose = readFileSync(new URL('tiny-model/eval.txt', fixtures), 'utf8')
  const texts = {
    prose: prose
      .toLowerCase()
      .replaceAll(/[^a-z]/g, '')
      .repeat(5),
    letter: 'a'.repeat(200_000),
    word: 'abcdefghij'.repeat(20_000),
    spaces: ' '.repeat(200_000),
    emoji: '🙂🫩'.repeat(50_000),
    random: Array.from({ length: 200_000 }, () => String.fromCharCode(97 + random.integer(0, 26))).join(''),
    bytes: Buffer.from(random.bytes(200_000)).toString('latin1'),
  }
  for (const [name, text] of Object.entries(texts)) {
    const before = tokenizer.heapPops
    const ids = tokenizer.encode(text)
    const pops = tokenizer.heapPops - before
    expect(tokenizer.decode(ids), name).toBe(text)
    // Every merge takes one entry and adds at most two to those that the text began with.
    expect(pops, name).toBeLessThanOrEqual(3 * text.length)
    if (name === 'prose') expect(pops).toBeGreaterThan(1000)
  }
})

test('a text that is no string is refused', () => {
  const tokenizer = Tokenizer.fromSentencePiece(readFileSync(new URL('tiny-model/hf/tokenizer.model', fixtures)))
  for (const text of [undefined, null, 5, {}, ['a']]) {
    expect(() => tokenizer.encode(text as unknown as string)).toThrow(/expected a string/)
  }
  for (const id of [-1, 4096, 1.5, Number.NaN, 'a']) {
    expect(() => tokenizer.pieceOf(id as number)).toThrow(/expected 0 to 4095/)
  }
})
