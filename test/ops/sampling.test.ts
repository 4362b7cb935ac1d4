import { describe, expect, test } from 'vitest'
import { argmax, sample, type Tensor } from '../../lib/index.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'
import {
  allowedTokens,
  firstOfLargest,
  fractionOf,
  type Kind,
  makeLogits,
  philox,
  type Settings,
} from './sampling.reference.ts'

const vocabularyOfGemma3 = 262_144

interface ArgmaxCase {
  readonly name: string
  readonly rows: number
  readonly vocabulary: number
  readonly dtype?: 'f32' | 'bf16'
  readonly kind?: Kind
  /** Columns before and after the logits in memory. */
  readonly margin?: number
}

const argmaxCases: ArgmaxCase[] = [
  { name: 'one logit', rows: 1, vocabulary: 1 },
  { name: 'no rows', rows: 0, vocabulary: 10 },
  { name: 'two rows of three', rows: 2, vocabulary: 3 },
  { name: 'a vector less one', rows: 3, vocabulary: 15 },
  { name: 'a block less one', rows: 5, vocabulary: 255 },
  { name: 'a block', rows: 5, vocabulary: 256 },
  { name: 'a block and one', rows: 5, vocabulary: 257, dtype: 'bf16' },
  { name: 'a prime, strided', rows: 4, vocabulary: 4099, margin: 5 },
  { name: 'Gemma 1', rows: 1, vocabulary: 256_128, dtype: 'bf16' },
  { name: 'Gemma 3', rows: 3, vocabulary: vocabularyOfGemma3 },
  ...(['levels', 'zeros', 'nan', 'all nan', 'infinite', 'forbidden', 'huge'] as const).flatMap((kind) => [
    { name: `${kind}, 600`, rows: 7, vocabulary: 600, kind },
    { name: `${kind}, 9, bf16`, rows: 7, vocabulary: 9, kind, dtype: 'bf16' as const },
  ]),
]

const inMargins = (logits: Tensor, c: { vocabulary: number; margin?: number }) =>
  c.margin ? logits.slice(c.margin, c.margin + c.vocabulary, 1) : logits

/** Row `row` of logits that lie within margins. */
function rowOf(logits: HostTensor, c: { vocabulary: number; margin?: number }, row: number): Float64Array {
  const start = row * logits.shape[1]! + (c.margin ?? 0)
  return logits.values.subarray(start, start + c.vocabulary)
}

opSuite<ArgmaxCase, { logits: HostTensor }>('argmax', {
  ops: ['argmax'],
  emulated: { cases: 24, elements: 100_000 },
  cases: argmaxCases,
  inputs: (c, random) => ({
    logits: makeLogits(c.dtype ?? 'f32', c.rows, c.vocabulary + 2 * (c.margin ?? 0), c.kind ?? 'normal', random),
  }),
  run: (c, { logits }) => {
    using view = inMargins(logits, c)
    return argmax(view)
  },
  reference: (c, { logits }) => [
    { exact: Array.from({ length: c.rows }, (_, row) => firstOfLargest(rowOf(logits, c, row))) },
  ],
  control: { case: 'a block' },
})

interface SampleCase extends Settings {
  readonly name: string
  readonly rows: number
  readonly vocabulary: number
  readonly dtype?: 'f32' | 'bf16'
  readonly kind?: Kind
  readonly margin?: number
  readonly bias?: 'one row' | 'rows'
  /** Every row has settings of its own. */
  readonly perRow?: boolean
}

const sampleCases: SampleCase[] = [
  { name: 'one logit', rows: 1, vocabulary: 1 },
  { name: 'no rows', rows: 0, vocabulary: 10 },
  { name: 'plain, 3', rows: 9, vocabulary: 3 },
  { name: 'plain, 257', rows: 9, vocabulary: 257, dtype: 'bf16' },
  { name: 'plain, 5000', rows: 9, vocabulary: 5000, temperature: 0.7 },
  { name: 'greedy', rows: 5, vocabulary: 700, temperature: 0, topK: 5 },
  { name: 'topK 1', rows: 5, vocabulary: 700, topK: 1 },
  { name: 'topK 5 of 15', rows: 9, vocabulary: 15, topK: 5 },
  { name: 'topK 64, topP 0.95', rows: 9, vocabulary: 20_011, topK: 64, topP: 0.95, kind: 'peaked' },
  { name: 'topK beyond the blocks', rows: 5, vocabulary: 3000, topK: 200, kind: 'flat' },
  { name: 'topK beyond the vocabulary', rows: 5, vocabulary: 300, topK: 301, topP: 0.5 },
  { name: 'topK of 4,000 among many', rows: 2, vocabulary: 30_000, topK: 4000, topP: 0.7, minP: 0.01 },
  { name: 'topP 0.9 of few', rows: 9, vocabulary: 7, topP: 0.9 },
  { name: 'topP 0.95, flat', rows: 4, vocabulary: 9000, topP: 0.95, kind: 'flat' },
  { name: 'topP 0.95, peaked', rows: 4, vocabulary: 9000, topP: 0.95, kind: 'peaked', dtype: 'bf16' },
  { name: 'topP 0', rows: 4, vocabulary: 900, topP: 0 },
  { name: 'topP just below 1', rows: 4, vocabulary: 900, topP: 1 - 2 ** -24 },
  { name: 'minP 0.05', rows: 9, vocabulary: 3000, minP: 0.05 },
  { name: 'minP 1', rows: 4, vocabulary: 400, minP: 1, kind: 'levels' },
  { name: 'all three', rows: 9, vocabulary: 3000, topK: 100, topP: 0.9, minP: 0.02, temperature: 1.5 },
  { name: 'topP and minP', rows: 9, vocabulary: 3000, topP: 0.9, minP: 0.1, temperature: 2 },
  { name: 'very cold', rows: 3, vocabulary: 500, temperature: 2 ** -100, topP: 0.9 },
  { name: 'very hot', rows: 3, vocabulary: 500, temperature: 1e30, topP: 0.9, topK: 40 },
  { name: 'strided rows', rows: 3, vocabulary: 777, margin: 9, topK: 20 },
  { name: 'bias of one row', rows: 4, vocabulary: 700, bias: 'one row', topK: 30 },
  { name: 'bias of each row', rows: 4, vocabulary: 700, bias: 'rows', topP: 0.8, dtype: 'bf16' },
  { name: 'settings of each row', rows: 33, vocabulary: 1500, perRow: true },
  { name: 'settings of each row, bias', rows: 12, vocabulary: 4097, perRow: true, bias: 'rows', dtype: 'bf16' },
  { name: 'many zeros of either sign, topP', rows: 5, vocabulary: 3000, kind: 'zeros', topP: 0.6 },
  { name: 'many zeros of either sign, topK', rows: 5, vocabulary: 3000, kind: 'zeros', topK: 1500 },
  {
    name: 'Gemma 3 by its recommendation',
    rows: 2,
    vocabulary: vocabularyOfGemma3,
    topK: 64,
    topP: 0.95,
    kind: 'peaked',
  },
  { name: 'Gemma 3, topP alone', rows: 1, vocabulary: vocabularyOfGemma3, topP: 0.95 },
  { name: 'Gemma 3, topP alone, flat', rows: 1, vocabulary: vocabularyOfGemma3, topP: 0.95, kind: 'flat' },
  {
    name: 'Gemma 3, topK of 2,000 and topP',
    rows: 2,
    vocabulary: vocabularyOfGemma3,
    topK: 2000,
    topP: 0.9,
    minP: 0.01,
  },
  { name: 'search, three rows', rows: 3, vocabulary: 4097, topP: 0.9, minP: 0.05, margin: 3 },
  { name: 'search, all equal', rows: 3, vocabulary: 2000, kind: 'zeros', topP: 0.5 },
  { name: 'search, all equal, topK', rows: 3, vocabulary: 2000, kind: 'zeros', topK: 901, topP: 0.5 },
  { name: 'search, few levels', rows: 3, vocabulary: 4000, kind: 'levels', topK: 1800, topP: 0.7 },
  { name: 'search, fewer numbers than topK', rows: 3, vocabulary: 4000, kind: 'nan', topK: 3800 },
  { name: 'search, fewer finite than topK', rows: 3, vocabulary: 4000, kind: 'forbidden', topK: 3000, topP: 0.99 },
  { name: 'search, huge', rows: 3, vocabulary: 4000, kind: 'huge', topK: 1000, topP: 0.5, dtype: 'bf16' },
  { name: 'search, very cold', rows: 2, vocabulary: 4000, temperature: 2 ** -90, topP: 0.9, minP: 0.3 },
  { name: 'search, very hot', rows: 2, vocabulary: 1000, temperature: 1e30, topP: 0.9 },
  { name: 'Gemma 3, plain', rows: 1, vocabulary: vocabularyOfGemma3, dtype: 'bf16' },
  ...(['levels', 'zeros', 'nan', 'all nan', 'infinite', 'forbidden', 'huge'] as const).flatMap((kind) => [
    { name: `${kind}, plain`, rows: 5, vocabulary: 600, kind },
    { name: `${kind}, topK`, rows: 5, vocabulary: 600, kind, topK: 7 },
    { name: `${kind}, topP`, rows: 5, vocabulary: 600, kind, topP: 0.6, dtype: 'bf16' as const },
  ]),
]

interface SampleInputs extends Record<string, HostTensor | undefined> {
  readonly logits: HostTensor
  readonly state: HostTensor
  readonly settings: HostTensor | undefined
  readonly bias: HostTensor | undefined
}

function makeSampleInputs(c: SampleCase, random: Random): SampleInputs {
  const columns = c.vocabulary + 2 * (c.margin ?? 0)
  const perRow = () => [
    random.pick([0, 0.5, 1, 3]),
    random.pick([0, 1, 10, 300]),
    random.pick([1, 0.9, 0.3]),
    random.pick([0, 0.05]),
  ]
  return {
    logits: makeLogits(c.dtype ?? 'f32', c.rows, columns, c.kind ?? 'normal', random),
    // Counters that wrap, and seeds of either sign.
    state: random.tensor('i32', [c.rows, 2], (i) => (i % 2 ? -1 + Math.floor(i / 2) : random.bits() | 0)),
    settings: c.perRow ? hostTensor('f32', [c.rows, 4], Array.from({ length: c.rows }, perRow).flat()) : undefined,
    bias:
      c.bias &&
      random.tensor('f32', [c.bias === 'rows' ? c.rows : 1, c.vocabulary], () =>
        random.fraction() < 0.2 ? Number.NEGATIVE_INFINITY : random.gaussian(),
      ),
  }
}

function settingsOf(c: SampleCase, h: SampleInputs, row: number): Settings {
  if (!h.settings) return c
  const [temperature, topK, topP, minP] = h.settings.values.subarray(4 * row)
  return { temperature: temperature!, topK: topK!, topP: topP!, minP: minP! }
}

function allowedOf(c: SampleCase, h: SampleInputs, row: number): Set<number> {
  const bias = h.bias?.values.subarray(h.bias.shape[0] === 1 ? 0 : row * c.vocabulary)
  const x = rowOf(h.logits, c, row).map((logit, id) => (bias ? Math.fround(logit + bias[id]!) : logit))
  return allowedTokens(x, settingsOf(c, h, row), fractionOf(h.state.values[2 * row]!, h.state.values[2 * row + 1]!))
}

const optionsOf = ({ temperature, topK, topP, minP }: Settings) => ({
  ...(temperature !== undefined && { temperature }),
  ...(topK !== undefined && { topK }),
  ...(topP !== undefined && { topP }),
  ...(minP !== undefined && { minP }),
})

opSuite<SampleCase, SampleInputs>('sample', {
  ops: ['sample'],
  emulated: { cases: 24, elements: 100_000 },
  cases: sampleCases,
  inputs: makeSampleInputs,
  run: (c, { logits, state, settings, bias }) => {
    using view = inMargins(logits, c)
    return [sample(view, state, { ...optionsOf(c), settings, bias }), state]
  },
  reference: (c, h) => {
    const allowed = Array.from({ length: c.rows }, (_, row) => allowedOf(c, h, row))
    const check = (tokens: Float64Array) => {
      if (tokens.length !== c.rows) return `expected ${c.rows} tokens, got ${tokens.length}`
      const row = allowed.findIndex((set, i) => !set.has(tokens[i]!))
      return row < 0
        ? undefined
        : `row ${row}: got token ${tokens[row]}, expected one of ${[...allowed[row]!].slice(0, 8)}`
    }
    const counted = h.state.values.map((value, i) => (i % 2 ? (value + 1) | 0 : value))
    return [{ check }, { exact: counted }]
  },
  control: { case: 'bias of one row' },
})

describe('the reference of sample', () => {
  test('Philox4x32-10 has the published vectors', () => {
    // kat_vectors of Random123 (D. E. Shaw Research).
    const ones = 0xffffffff
    expect(philox([0, 0, 0, 0], [0, 0])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8])
    expect(philox([ones, ones, ones, ones], [ones, ones])).toEqual([0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd])
    expect(philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0])).toEqual([
      0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1,
    ])
  })

  test('allows exactly one token almost everywhere', () => {
    let [rows, decided] = [0, 0]
    for (const c of sampleCases) {
      if (c.vocabulary > 100_000) continue
      const h = makeSampleInputs(c, Random.named(`decided/${c.name}`))
      for (let row = 0; row < c.rows; row++) {
        const { size } = allowedOf(c, h, row)
        expect(size).toBeGreaterThan(0)
        rows++
        if (size === 1) decided++
      }
    }
    expect(decided / rows).toBeGreaterThan(0.95)
  })
})
