import { describe, expect, test } from 'vitest'
import { embedding, packWeights, stackWeights, Tensor } from '../../lib/index.ts'
import { forEachIsa, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import {
  packOptions,
  randomStored,
  randomWeights,
  type WeightForm,
  weightForms,
  weightValues,
} from '../support/formats.ts'
import { round } from '../support/numbers.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'

interface Case {
  readonly name: string
  readonly form: WeightForm
  readonly packed: boolean
  readonly vocabulary: number
  readonly hiddenSize: number
  readonly tokens: number
  readonly scale: number
  readonly outputDtype: 'f32' | 'bf16'
}

/** √hiddenSize as Gemma's bf16 checkpoints round it. */
const gemmaScale = (hiddenSize: number) => round('bf16', Math.sqrt(hiddenSize))

const cases: Case[] = weightForms.flatMap((form, i) => {
  const hiddenSize = form.granule > 128 ? 768 : 640
  const base = { form, vocabulary: 104, hiddenSize, scale: gemmaScale(hiddenSize) }
  const packed: Case = {
    ...base,
    name: `${form.name}, packed`,
    packed: true,
    tokens: 19,
    outputDtype: i % 2 ? 'f32' : 'bf16',
  }
  if (form.format !== 'stored' || form.scale) return [packed]
  return [
    packed,
    { ...base, name: `${form.name}, stored`, packed: false, tokens: 19, outputDtype: i % 2 ? 'bf16' : 'f32' },
    { ...base, name: `${form.name}, one token`, packed: false, tokens: 1, scale: 1, outputDtype: 'f32' },
  ]
})
const f16 = weightForms.find(({ name }) => name === 'f16')!
const bf16 = weightForms.find(({ name }) => name === 'bf16')!
const odd = { packed: false, tokens: 7, scale: 1.7, outputDtype: 'bf16' } as const
cases.push(
  { ...odd, name: 'no tokens', form: f16, vocabulary: 3, hiddenSize: 64, tokens: 0 },
  { ...odd, name: 'one row', form: f16, vocabulary: 1, hiddenSize: 1 },
  { ...odd, name: 'prime hiddenSize', form: bf16, vocabulary: 11, hiddenSize: 1009 },
  { ...odd, name: 'prime hiddenSize, packed', form: bf16, vocabulary: 11, hiddenSize: 1009, packed: true },
)

opSuite('embedding', {
  emulated: { cases: 100, elements: 100_000 },
  ops: ['embedding'],
  cases,
  inputs: (c, random) => {
    const { weight, scales, zeros } = randomWeights(random, c.form, c.vocabulary, c.hiddenSize)
    return { ids: random.i32([c.tokens], 0, c.vocabulary), weight, scales, zeros }
  },
  run: (c, t) => {
    const { scale, outputDtype } = c
    if (!c.packed) return embedding(t.ids, t.weight, { scale, outputDtype })
    using table = packWeights(t.weight, packOptions(c.form, t))
    return embedding(t.ids, table, { scale, outputDtype })
  },
  // The weight in f32, times the scale in f32, each rounded once: exact to the bit.
  reference: (c, h) => {
    const table = weightValues(c.form, h)
    const scale = Math.fround(c.scale)
    const out = new Float64Array(c.tokens * c.hiddenSize)
    for (const [t, id] of h.ids.values.entries()) {
      for (let k = 0; k < c.hiddenSize; k++) {
        const value = Math.fround(Math.fround(table[id * c.hiddenSize + k]!) * scale)
        out[t * c.hiddenSize + k] = round(c.outputDtype, value)
      }
    }
    return [{ exact: out }]
  },
})

describe('embedding', () => {
  test('an id outside the table is reported', () =>
    forEachIsa(async (device) => {
      const table = Tensor.zeros(device, [5, 8])
      for (const bad of [5, -2, 2 ** 31 - 1, -(2 ** 31)]) {
        const ids = Tensor.from(device, Int32Array.of(1, bad, 2))
        await rejectsCode(embedding(ids, table).read(), 'ERR_INDEX_OUT_OF_RANGE', /ids/)
        await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
      }
    }))

  test('-1 gives zeros, and is no error', () =>
    forEachIsa(async (device) => {
      const host = Random.named('no token').normal('f32', [3, 20])
      const table = upload(device, host)
      for (const rows of [table, packWeights(table)]) {
        const values = await valuesOf(embedding(Tensor.from(device, Int32Array.of(-1, 2, -1)), rows))
        const zeros = Array.from({ length: 20 }, () => 0)
        expect([...values]).toEqual([...zeros, ...host.values.subarray(40), ...zeros])
        expect([...values].some((value) => Object.is(value, -0))).toBe(false)
      }
      await device.stream.synchronize()
    }))

  test('a slice of a table', () =>
    forEachIsa(async (device) => {
      const host = Random.named('slice').normal('f32', [10, 40])
      const table = upload(device, host).slice(4, 9).slice(8, 24, 1)
      const values = await valuesOf(embedding(Tensor.from(device, Int32Array.of(4, 0)), table))
      expect(values).toEqual(Float64Array.from([...host.values.subarray(328, 344), ...host.values.subarray(168, 184)]))
    }))

  test('a table stacked of two has the rows of both', () =>
    forEachIsa(async (device) => {
      const random = Random.named('stacked')
      const [a, b] = [randomStored(random, 'q8_0', [32, 64]), randomStored(random, 'q8_0', [9, 64])]
      const table = stackWeights([packWeights(upload(device, a)), packWeights(upload(device, b))])
      const values = await valuesOf(embedding(Tensor.from(device, Int32Array.of(40, 31)), table))
      expect(values).toEqual(Float64Array.from([...b.values.subarray(8 * 64), ...a.values.subarray(31 * 64)]))
    }))

  test('arguments that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const ids = Tensor.from(device, Int32Array.of(0))
      const table = Tensor.zeros(device, [4, 8])
      throwsCode(() => embedding(table, table), 'ERR_SHAPE_MISMATCH', /ids/)
      throwsCode(() => embedding(Tensor.zeros(device, [1]), table), 'ERR_DTYPE_UNSUPPORTED', /ids/)
      throwsCode(() => embedding(ids, Tensor.zeros(device, [4])), 'ERR_SHAPE_MISMATCH', /table/)
      throwsCode(() => embedding(ids, Tensor.zeros(device, [4, 8], 'i8')), 'ERR_DTYPE_UNSUPPORTED', /table/)
      throwsCode(() => embedding(ids, table, { scale: Infinity }), 'ERR_INVALID_ARGUMENT', /scale/)
    }))
})
