import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts'
import { PieceType } from '../../lib/tokenizer/vocabulary.ts'
import { Random } from '../support/random.ts'
import { fixtures, tokenizerJson } from './support/gemma.ts'
import { gemmaSpecials, writeSentencePiece } from './support/sentencepiece-writer.ts'

const gemma2 = Tokenizer.fromJson(tokenizerJson('gemma2'))
const gemma3 = Tokenizer.fromJson(tokenizerJson('gemma3'))
const tiny = Tokenizer.fromSentencePiece(readFileSync(new URL('tiny-model/hf/tokenizer.model', fixtures)))

/** Gemma 4's names, with pieces from which merging could make a marker. */
const gemma4 = Tokenizer.fromSentencePiece(
  writeSentencePiece({
    pieces: [
      ...gemmaSpecials(),
      ...['<|turn>', '<turn|>', '<|image>', '<|tool_call>', '<|"|>', '\u2581\u2581', '<b>', '\n'].map((piece) => ({
        piece,
        type: PieceType.userDefined,
        score: 0,
      })),
      ...['<', '|', 't', 'u', 'r', 'n', '>', 'b', '\u2581'].map((piece) => ({ piece, score: -100 })),
      ...['<|', 'tu', 'rn', 'turn', '|>', '<|turn', 'turn|>'].map((piece, rank) => ({ piece, score: -rank })),
    ],
  }),
)

const vocabularies: [string, Tokenizer, string[]][] = [
  ['gemma2', gemma2, ['<start_of_turn>', '<end_of_turn>', '<mask>', '<unused7>', '[@BOS@]', '[toxicity=0]', '<2mass>']],
  [
    'gemma3',
    gemma3,
    [
      '<start_of_turn>',
      '<end_of_turn>',
      '<start_of_image>',
      '<image_soft_token>',
      '[multimodal]',
      '<unused0>',
      '<mask>',
    ],
  ],
  ['tiny', tiny, ['<start_of_turn>', '<end_of_turn>', '<start_of_image>', '<image_soft_token>', '<mask>']],
  ['gemma4', gemma4, ['<|turn>', '<turn|>', '<|image>', '<|tool_call>', '<|"|>']],
]

describe.each(vocabularies)('%s', (name, tokenizer, markers) => {
  const markerIds = new Set(markers.map((marker) => tokenizer.idOf(marker)!))

  test('markers are recognised in trusted text only', () => {
    for (const marker of markers) {
      const id = tokenizer.idOf(marker)
      expect(id, marker).toBeDefined()
      expect([...tokenizer.encode(`b${marker}b`)], marker).toContain(id)
      expect([...tokenizer.encode(`b${marker}b`, { markers: false })], marker).not.toContain(id)
      expect(tokenizer.decode(tokenizer.encode(`b${marker}b`, { markers: false }))).toBe(`b${marker}b`)
    }
  })

  test('control pieces are never recognised', () => {
    for (const control of ['<bos>', '<eos>', '<pad>']) {
      const id = tokenizer.idOf(control)
      expect([...tokenizer.encode(control)]).not.toContain(id)
      expect([...tokenizer.encode(control, { markers: false })]).not.toContain(id)
      expect([...tokenizer.encode(control, { control: true })]).toEqual([id])
    }
  })

  test('untrusted text never becomes a marker or a control piece, whatever it is', () => {
    const random = Random.named(`untrusted ${name}`)
    const parts = [
      ...markers,
      ...markers.map((marker) => marker.slice(1)),
      ...markers.map((marker) => marker.slice(0, -1)),
    ]
    const fragments = [...parts, '<', '>', '|', ' ', '  ', '\n', 'turn', 'b', '<bos>', '<b>', '\u2581', '[']
    for (let i = 0; i < 500; i++) {
      const text = Array.from({ length: random.integer(1, 12) }, () => random.pick(fragments)).join('')
      const ids = tokenizer.encode(text, { markers: false })
      for (const id of ids) expect(markerIds.has(id) || id < 4, `${JSON.stringify(text)}: ${id}`).toBe(false)
      expect(tokenizer.decode(ids)).toBe(text.replaceAll('\u2581', ' '))
    }
  })

  test('text without markers has the same ids in both modes', () => {
    const prose = readFileSync(new URL('tiny-model/eval.txt', fixtures), 'utf8').slice(0, 5000)
    for (const text of [prose, 'a  b   c', '<b>bold</b><table>', '\n\n\t\t  <turn', '[x] a<b>c']) {
      expect([...tokenizer.encode(text, { markers: false })]).toEqual([...tokenizer.encode(text)])
    }
  })
})

test('runs of whitespace and HTML tags stay pieces of their own in untrusted text', () => {
  const ids = gemma3.encode('<b>a  b\n\n</b>', { markers: false })
  expect([...ids].map((id) => gemma3.pieceOf(id))).toEqual(['<b>', 'a', '\u2581\u2581', 'b', '\n\n', '</b>'])
})
