import { describe, expect, test } from 'vitest'
import { packWeights, refineLogits, Tensor } from '../../lib/index.ts'
import { forEachIsa } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'
import { packOptions, randomWeights, type WeightForm, weightForms, weightValues } from '../support/formats.ts'
import { hostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'

interface Case {
  readonly name: string
  readonly form: WeightForm
  readonly packed: boolean
  readonly rows: number
  readonly vocabulary: number
  readonly hiddenSize: number
  readonly hiddenDtype: 'f32' | 'bf16'
  readonly top: number
  readonly logits?: 'ties' | 'special'
}

const form = (name: string): WeightForm => weightForms.find((candidate) => candidate.name === name)!
const base = { packed: false, rows: 3, vocabulary: 1300, hiddenSize: 256, hiddenDtype: 'f32', top: 5 } as const

const cases: Case[] = [
  { ...base, name: 'f32', form: form('f32') },
  { ...base, name: 'bf16, bf16 hidden', form: form('bf16'), hiddenDtype: 'bf16' },
  { ...base, name: 'f16, prime sizes', form: form('f16'), vocabulary: 1009, hiddenSize: 331, rows: 5 },
  { ...base, name: 'q8_0', form: form('q8_0'), hiddenSize: 96 },
  { ...base, name: 'q8_0, packed', form: form('q8_0'), hiddenSize: 96, packed: true },
  { ...base, name: 'q6_k', form: form('q6_k') },
  { ...base, name: 'q5_1', form: form('q5_1'), hiddenSize: 160 },
  { ...base, name: 'iq4_nl, packed', form: form('iq4_nl'), hiddenSize: 96, packed: true },
  { ...base, name: 'q3_k, packed', form: form('q3_k'), packed: true },
  { ...base, name: 'q4_0, one row', form: form('q4_0'), rows: 1, top: 6 },
  { ...base, name: 'top beyond the number of blocks', form: form('bf16'), top: 40 },
  { ...base, name: 'all logits', form: form('bf16'), vocabulary: 300, top: 1000 },
  { ...base, name: 'top 1', form: form('bf16'), top: 1 },
  { ...base, name: 'a vocabulary of one', form: form('bf16'), vocabulary: 1, top: 3 },
  { ...base, name: 'no rows', form: form('bf16'), rows: 0 },
  { ...base, name: 'equal logits: lower ids', form: form('bf16'), logits: 'ties', top: 9 },
  { ...base, name: 'NaN and infinities', form: form('bf16'), logits: 'special', top: 4 },
]

/** The ids of the largest elements: NaN never, of equals the lower ids. */
function topIds(logits: ArrayLike<number>, top: number): number[] {
  const ids = Array.from(logits, (_, id) => id).filter((id) => !Number.isNaN(logits[id]!))
  return ids.sort((a, b) => (logits[a] === logits[b] ? a - b : logits[a]! > logits[b]! ? -1 : 1)).slice(0, top)
}

opSuite('refine_logits', {
  ops: ['refine_logits'],
  cases,
  inputs: (c, random) => {
    const { weight, scales, zeros } = randomWeights(random, c.form, c.vocabulary, c.hiddenSize)
    const { shape, values } = random.normal('f32', [c.rows, c.vocabulary])
    if (c.logits === 'ties') for (const [i, value] of values.entries()) values[i] = Math.round(value * 2)
    if (c.logits === 'special') {
      values.fill(Number.NaN, 0, 40)
      values[50] = Number.POSITIVE_INFINITY
      values.fill(Number.NEGATIVE_INFINITY, c.vocabulary, 2 * c.vocabulary)
      values.fill(Number.NaN, 2 * c.vocabulary, 3 * c.vocabulary)
    }
    return {
      logits: hostTensor('f32', shape, values),
      hidden: random.normal(c.hiddenDtype, [c.rows, c.hiddenSize]),
      weight,
      scales,
      zeros,
    }
  },
  run: (c, t) => {
    if (!c.packed) {
      refineLogits(t.logits, t.hidden, t.weight, { top: c.top })
      return t.logits
    }
    using table = packWeights(t.weight, packOptions(c.form, t))
    refineLogits(t.logits, t.hidden, table, { top: c.top })
    return t.logits
  },
  // A fused sum of K products in any order: at most K roundings of partial sums below Σ|h·w|.
  reference: (c, h) => {
    const table = weightValues(c.form, h)
    const value = Float64Array.from(h.logits.values)
    const bound = new Float64Array(value.length)
    for (let row = 0; row < c.rows; row++) {
      const own = h.logits.values.subarray(row * c.vocabulary, (row + 1) * c.vocabulary)
      for (const id of topIds(own, c.top)) {
        let sum = 0
        let size = 0
        for (let k = 0; k < c.hiddenSize; k++) {
          const product = h.hidden.values[row * c.hiddenSize + k]! * Math.fround(table[id * c.hiddenSize + k]!)
          sum += product
          size += Math.abs(product)
        }
        value[row * c.vocabulary + id] = sum
        bound[row * c.vocabulary + id] = (c.hiddenSize + 1) * 2 ** -24 * size
      }
    }
    return [{ value, bound }]
  },
  control: { case: 'all logits', insensitive: ['logits'] },
  emulated: { elements: 500_000 },
})

describe('refineLogits', () => {
  test('only the largest logits change', () =>
    forEachIsa(async (device) => {
      const logits = Tensor.from(device, Float32Array.of(3, 1, 2, -1), [1, 4])
      const table = Tensor.from(device, Float32Array.of(10, 0, 20, 0, 30, 0, 40, 0), [4, 2])
      refineLogits(logits, Tensor.from(device, Float32Array.of(1, 1), [1, 2]), table, { top: 2 })
      expect(await logits.read()).toEqual(Float32Array.of(10, 1, 30, -1))
    }))

  test('arguments that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const [logits, hidden, table] = [
        [1, 4],
        [1, 8],
        [4, 8],
      ].map((shape) => Tensor.zeros(device, shape)) as [Tensor, Tensor, Tensor]
      throwsCode(() => refineLogits(hidden, hidden, table), 'ERR_SHAPE_MISMATCH', /table/)
      throwsCode(() => refineLogits(logits, table, table), 'ERR_SHAPE_MISMATCH', /hidden/)
      throwsCode(() => refineLogits(logits, Tensor.zeros(device, [1, 7]), table), 'ERR_SHAPE_MISMATCH', /hidden/)
      throwsCode(
        () => refineLogits(logits, hidden, Tensor.zeros(device, [4, 8], 'i8')),
        'ERR_DTYPE_UNSUPPORTED',
        /table/,
      )
      throwsCode(
        () => refineLogits(Tensor.zeros(device, [1, 4], 'bf16'), hidden, table),
        'ERR_DTYPE_UNSUPPORTED',
        /logits/,
      )
      for (const top of [0, -1, 1.5, Number.NaN]) {
        throwsCode(() => refineLogits(logits, hidden, table, { top }), 'ERR_INVALID_ARGUMENT', /top/)
      }
      // A packed matrix is no plain one.
      throwsCode(
        () => refineLogits(logits, hidden, packWeights(Tensor.zeros(device, [5, 8]))),
        'ERR_SHAPE_MISMATCH',
        /table/,
      )
    }))
})
