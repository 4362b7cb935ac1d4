import { createHash } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts'
import { type Family, tokenizerJson, type Vector, vectors } from './support/gemma.ts'
import { sentencePieceOf, type TokenizerJson } from './support/sentencepiece-writer.ts'

const families: Family[] = ['gemma2', 'gemma3']
const files = new Map(families.map((family) => [family, tokenizerJson(family)]))
const fromJson = new Map(families.map((family) => [family, Tokenizer.fromJson(files.get(family))]))
const fromModel = new Map(
  families.map((family) => {
    const json = JSON.parse(files.get(family)!.toString('utf8')) as TokenizerJson
    return [family, Tokenizer.fromSentencePiece(sentencePieceOf(json))]
  }),
)

/** The texts of control pieces, which Hugging Face's tokenizers recognise and SentencePiece does not. */
const controlText = /<(bos|eos|pad|unk)>/
/** U+2581 itself, several and a space: Hugging Face's tokenizers match runs before spaces have become U+2581, SentencePiece after. */
const mixedRun = /\u2581{2,}[\u2581 ]* | {2,}\u2581{2,}| \u2581{2,}/

describe.each(families)('%s', (family) => {
  const { sha256, cases } = vectors(family)
  const json = fromJson.get(family)!
  const model = fromModel.get(family)!

  test('the vectors were made with this vocabulary', () => {
    expect(createHash('sha256').update(files.get(family)!).digest('hex')).toBe(sha256)
    expect(cases.length).toBe(265)
  })

  test('tokenizer.json gives the ids of Hugging Face on every case', () => {
    for (const { text, ids } of cases) {
      expect({ text, ids: [...json.encode(text, { control: true })] }).toEqual({ text, ids })
    }
  })

  test('control pieces are text unless asked for', () => {
    const withControl = cases.filter(({ text }) => controlText.test(text))
    expect(withControl.length).toBeGreaterThan(5)
    for (const { text, ids } of cases) {
      const got = [...json.encode(text)]
      if (controlText.test(text)) expect(got.filter((id) => id < 4)).toEqual([])
      else expect({ text, ids: got }).toEqual({ text, ids })
    }
  })

  test('a SentencePiece model of the same pieces gives the same ids', () => {
    const differ: Vector[] = []
    for (const vector of cases) {
      const got = [...model.encode(vector.text, { control: true })]
      if (mixedRun.test(vector.text) && got.join() !== vector.ids.join()) differ.push(vector)
      else expect({ text: vector.text, ids: got }).toEqual({ text: vector.text, ids: vector.ids })
    }
    // SentencePiece takes three U+2581 and the space behind them for one run of four.
    expect(differ.length).toBe(1)
    const run = model.encode('\u2581\u2581\u2581 ')
    expect([...run]).toEqual([...model.encode('    ')])
    expect([...json.encode('\u2581\u2581\u2581 ')]).not.toEqual([...run])
  })

  test('decodes every case', () => {
    for (const { ids, decoded } of cases) {
      expect(json.decode(ids, { special: true })).toBe(decoded)
      expect(model.decode(ids, { special: true })).toBe(decoded)
    }
  })

  test('a text has the same ids with a warm cache, and whatever came before it', () => {
    for (const { text } of cases) {
      const first = json.encode(text)
      expect([...json.encode(text)]).toEqual([...first])
    }
  })

  test('ids of the sequence pieces', () => {
    for (const tokenizer of [json, model]) {
      const { bos, eos, pad, endOfTurn } = tokenizer
      expect({ bos, eos, pad, endOfTurn }).toEqual({
        bos: 2,
        eos: 1,
        pad: 0,
        endOfTurn: family === 'gemma2' ? 107 : 106,
      })
      expect([...tokenizer.encode('', { bos: true })]).toEqual([2])
    }
  })
})

test('ids published for Gemma 1 and 2', () => {
  // eliben/go-sentencepiece, processor_test.go; Hugging Face, test_tokenization_gemma.py (specification, section 13.2).
  const published: [string, number[]][] = [
    ['hello world', [17534, 2134]],
    ['12345', [235274, 235284, 235304, 235310, 235308]],
    ['  ', [139]],
    ['   ', [140]],
    ['        ', [145]],
    [' <mask>  <pad>', [235248, 4, 139, 235322, 8939, 235313]],
    ['<table><th></th></table>', [169, 175, 183, 177]],
    ['one line\nand another line', [785, 2017, 108, 639, 2550, 2017]],
    ['Bienvenido a este proyecto', [176831, 476, 4004, 25431]],
    ['ҔӌԐڎ', [427, 365, 428, 357, 429, 361, 435, 359]],
    [
      'if allow == true { return x;} else {return x+y;}',
      [648, 2765, 1159, 1382, 612, 2203, 1141, 22505, 1354, 612, 773, 1141, 235340, 235267, 22505],
    ],
    ['This is a test', [1596, 603, 476, 2121]],
    ['A sample test', [235280, 6453, 2121]],
    ['生活的真谛是', [122182, 235710, 245467, 235427]],
    ['Hi  Hello', [2151, 139, 4521]],
    ['Hi   Hello', [2151, 140, 4521]],
    [' ', [235248]],
    [' Hello', [25957]],
    ['', []],
  ]
  for (const [text, ids] of published) {
    expect({ text, ids: [...fromModel.get('gemma2')!.encode(text)] }).toEqual({ text, ids })
    expect({ text, ids: [...fromJson.get('gemma2')!.encode(text)] }).toEqual({ text, ids })
  }
})

test('facts published about the vocabulary of Gemma 3', () => {
  const tokenizer = fromJson.get('gemma3')!
  expect(tokenizer.vocabularySize).toBe(262145)
  expect(tokenizer.idOf('<start_of_image>')).toBe(255999)
  expect(tokenizer.idOf('<image_soft_token>')).toBe(262144)
  const bytes = [0xf0, 0x9f, 0xab, 0xa9].map((byte) => tokenizer.idOf(`<0x${byte.toString(16).toUpperCase()}>`))
  expect([...tokenizer.encode('\u{1fae9}')]).toEqual(bytes)
  expect(tokenizer.decode(tokenizer.encode('a\u{1fae9}b'))).toBe('a\u{1fae9}b')
})
