import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts'
import { rejectsCode } from '../support/errors.ts'
import { fixtures, tokenizerConfig, tokenizerJson, vectors } from './support/gemma.ts'
import { sentencePieceOf, type TokenizerJson } from './support/sentencepiece-writer.ts'

const file = (name: string): string => fileURLToPath(new URL(name, fixtures))
const hf = file('tiny-model/hf')
const cases = JSON.parse(readFileSync(file('tiny-model/tokens.json'), 'utf8')) as { text: string; ids: number[] }[]
const prose = readFileSync(file('tiny-model/eval.txt'), 'utf8')
const gguf = await openCheckpoint(fileURLToPath(new URL('../../models/tiny-q4_0.gguf', fixtures)))
const folder = await openCheckpoint(hf)
const tinyJson = readFileSync(`${hf}/tokenizer.json`)

const tiny: [string, Tokenizer][] = [
  ['tokenizer.model', Tokenizer.fromSentencePiece(readFileSync(`${hf}/tokenizer.model`))],
  ['tokenizer.json', Tokenizer.fromJson(tinyJson)],
  ['parsed tokenizer.json', Tokenizer.fromJson(JSON.parse(tinyJson.toString('utf8')))],
  ['GGUF metadata', Tokenizer.fromGguf(gguf.config)],
  ['loaded folder', await Tokenizer.load(folder)],
  ['loaded GGUF', await Tokenizer.load(gguf)],
]

const scratch = mkdtempSync(path.join(tmpdir(), 'lapidary-tokenizer-'))
afterAll(() => rmSync(scratch, { recursive: true }))

describe.each(tiny)('the small model: %s', (_, tokenizer) => {
  test('ids of SentencePiece', () => {
    expect(cases.length).toBe(8)
    for (const { text, ids } of cases) {
      expect({ text, ids: [...tokenizer.encode(text)] }).toEqual({ text, ids })
      expect(tokenizer.decode(ids, { special: true })).toBe(text)
    }
  })

  test('prose comes back from its ids, and has the same ids from every kind of file', () => {
    const ids = tokenizer.encode(prose)
    expect(tokenizer.decode(ids)).toBe(prose)
    expect(Buffer.from(ids.buffer).equals(Buffer.from(tiny[0]![1].encode(prose).buffer))).toBe(true)
  })

  test('what it says of itself', () => {
    const { vocabularySize, bos, eos, pad, endOfTurn } = tokenizer
    expect({ vocabularySize, bos, eos, pad, endOfTurn }).toEqual({
      vocabularySize: 4096,
      bos: 2,
      eos: 1,
      pad: 0,
      endOfTurn: 6,
    })
    expect(tokenizer.pieceOf(5)).toBe('<start_of_turn>')
    expect(tokenizer.idOf('<start_of_turn>')).toBe(5)
    expect(tokenizer.idOf('no such piece')).toBeUndefined()
    for (let id = 0; id < vocabularySize; id++) expect(tokenizer.idOf(tokenizer.pieceOf(id))).toBe(id)
  })

  test('control pieces and markers are left out of decoded text', () => {
    const ids = [2, 5, ...tokenizer.encode('user\nHi'), 6, 1, 0]
    expect(tokenizer.decode(ids)).toBe('user\nHi')
    expect(tokenizer.decode(ids, { special: true })).toBe('<bos><start_of_turn>user\nHi<end_of_turn><eos><pad>')
  })
})

describe('Mistral 7B v0.1, which has a dummy prefix', () => {
  const tokenizer = Tokenizer.fromSentencePiece(readFileSync(file('tokenizer/mistral-v1.model')))

  test('published ids', () => {
    // The instruction format of Mistral's documentation: [INST] and [/INST] are ordinary text in this version.
    expect([...tokenizer.encode('[INST]')]).toEqual([733, 16289, 28793])
    expect([...tokenizer.encode('[/INST]')]).toEqual([733, 28748, 16289, 28793])
    expect([...tokenizer.encode('Hello world', { bos: true })]).toEqual([1, 22557, 1526])
    const { bos, eos, pad, vocabularySize } = tokenizer
    expect({ bos, eos, pad, vocabularySize }).toEqual({ bos: 1, eos: 2, pad: -1, vocabularySize: 32000 })
  })

  test('the prefix is put in front once and taken away once', () => {
    expect([...tokenizer.encode('')]).toEqual([])
    for (const text of ['a', ' a', '  a', ' ', '   ', '\n', '🙂', 'é x', prose.slice(0, 3000)]) {
      const ids = tokenizer.encode(text, { bos: true })
      expect(tokenizer.decode(ids)).toBe(text)
      expect(tokenizer.pieceOf(ids[1]!).startsWith('\u2581')).toBe(true)
    }
  })
})

describe('a Hugging Face folder', () => {
  const config = tokenizerConfig('gemma3')
  const json = tokenizerJson('gemma3')
  const model = path.join(scratch, 'tokenizer.model')
  const configFile = path.join(scratch, 'tokenizer_config.json')
  writeFileSync(model, sentencePieceOf(JSON.parse(json.toString('utf8')) as TokenizerJson))
  writeFileSync(configFile, JSON.stringify(config))
  const base = { format: 'safetensors', path: scratch, config: {} } as const

  test('the added tokens of tokenizer_config.json go on where tokenizer.model ends', async () => {
    const tokenizer = await Tokenizer.load({ ...base, tokenizerFiles: { model, config: configFile } })
    expect(tokenizer.vocabularySize).toBe(262145)
    expect([...tokenizer.encode('a<image_soft_token>')]).toEqual([236746, 262144])
    for (const { text, ids } of vectors('gemma3').cases.slice(0, 100)) {
      expect({ text, ids: [...tokenizer.encode(text, { control: true })] }).toEqual({ text, ids })
    }
  })

  test('a reserved piece that they rename', async () => {
    const decoder = { ...(config.added_tokens_decoder as object), 6: { content: '<start_function>', special: true } }
    const renamed = path.join(scratch, 'renamed.json')
    writeFileSync(renamed, JSON.stringify({ ...config, added_tokens_decoder: decoder }))
    const tokenizer = await Tokenizer.load({ ...base, tokenizerFiles: { model, config: renamed } })
    expect([...tokenizer.encode('<start_function>')]).toEqual([6])
    expect(tokenizer.encode('<start_function>', { markers: false }).length).toBeGreaterThan(2)
    expect(tokenizer.encode('<unused0>').length).toBeGreaterThan(2)
  })

  test('files that are missing, absent or no JSON', async () => {
    await rejectsCode(Tokenizer.load({ ...base, tokenizerFiles: {} }), 'ERR_CHECKPOINT_UNSUPPORTED', /no tokenizer/)
    const absent = path.join(scratch, 'absent.json')
    await rejectsCode(Tokenizer.load({ ...base, tokenizerFiles: { json: absent } }), 'ERR_FILE', /absent\.json/)
    await rejectsCode(
      Tokenizer.load({ ...base, tokenizerFiles: { model, config: model } }),
      'ERR_CHECKPOINT_CORRUPT',
      /tokenizer\.model: not JSON/,
    )
    const hole = path.join(scratch, 'hole.json')
    writeFileSync(hole, JSON.stringify({ added_tokens_decoder: { 300000: { content: '<far>', special: true } } }))
    await rejectsCode(
      Tokenizer.load({ ...base, tokenizerFiles: { model, config: hole } }),
      'ERR_CHECKPOINT_CORRUPT',
      /no piece has id 262144/,
    )
  })
})
