import { describe, expect, test } from 'vitest'
import { gatherColumns, Tensor } from '../../lib/index.ts'
import { type Cut, cutTensor, cutValues } from '../support/cuts.ts'
import { anyDevice, forEachIsa, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { hostTensor } from '../support/host-tensor.ts'
import type { FloatDType } from '../support/numbers.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'

interface Case {
  readonly name: string
  readonly shape: readonly number[]
  readonly order: readonly number[]
  readonly dtype?: FloatDType
  readonly cuts?: readonly Cut[]
}

const permutation = (count: number) => Random.named(`columns ${count}`).permutation(count)
const cases: Case[] = [
  ...[1, 3, 17, 64, 1025, 4099].map((columns, i) => ({
    name: `${columns} columns`,
    shape: [5, columns],
    order: permutation(columns),
    dtype: (['f32', 'bf16', 'f16'] as const)[i % 3]!,
  })),
  { name: 'some columns, some twice', shape: [3, 2, 40], order: [7, 7, 0, 39, 12], dtype: 'bf16' },
  { name: 'more columns than there are', shape: [4, 3], order: [0, 1, 2, 2, 1, 0, 0, 1, 2] },
  { name: 'one row', shape: [33], order: permutation(33) },
  { name: 'no columns wanted', shape: [4, 8], order: [] },
  { name: 'no rows', shape: [0, 8], order: permutation(8) },
  { name: 'columns of a wider tensor', shape: [20, 90], order: permutation(75), dtype: 'f16', cuts: [[1, 5, 80]] },
  { name: 'Gemma 3 4B', shape: [64, 2560], order: permutation(2560), dtype: 'bf16' },
]

opSuite('gatherColumns', {
  ops: ['gather_columns'],
  cases,
  inputs: (c, random) => ({
    x: random.normal(c.dtype ?? 'f32', c.shape),
    order: hostTensor('i32', [c.order.length], c.order),
  }),
  run: (c, t) => gatherColumns(cutTensor(t.x, c.cuts), t.order),
  reference: (c, h) => {
    const { values, shape } = cutValues(h.x, c.cuts)
    const columns = shape.at(-1)!
    const rows = values.length / columns
    const value = Float64Array.from(
      { length: rows * c.order.length },
      (_, i) => values[Math.floor(i / c.order.length) * columns + c.order[i % c.order.length]!]!,
    )
    return [{ value, bound: new Float64Array(value.length) }]
  },
})

describe('gatherColumns', () => {
  test('NaN is moved like any other value', () =>
    forEachIsa(async (device) => {
      const x = upload(device, hostTensor('f32', [1, 3], [1, Number.NaN, 3]))
      expect([...(await valuesOf(gatherColumns(x, Tensor.from(device, Int32Array.of(2, 1, 0)))))]).toEqual([
        3,
        Number.NaN,
        1,
      ])
    }))

  test('a column that is not there is reported, and zeros', () =>
    forEachIsa(async (device) => {
      const x = upload(device, hostTensor('f32', [2, 3], [1, 2, 3, 4, 5, 6]))
      for (const bad of [-1, 3]) {
        const out = gatherColumns(x, Tensor.from(device, Int32Array.of(2, bad)))
        await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /gather_columns: order/)
        expect([...(await valuesOf(out))]).toEqual([3, 0, 6, 0])
      }
    }))

  test('wrong shapes and dtypes are errors of the call', async () => {
    const device = await anyDevice()
    const zeros = (shape: readonly number[], dtype: 'f32' | 'i32' = 'f32') => Tensor.zeros(device, shape, dtype)
    throwsCode(() => gatherColumns(zeros([4, 8], 'i32'), zeros([2], 'i32')), 'ERR_DTYPE_UNSUPPORTED', /x/)
    throwsCode(() => gatherColumns(zeros([4, 8]), zeros([2])), 'ERR_DTYPE_UNSUPPORTED', /order/)
    throwsCode(() => gatherColumns(zeros([4, 8]), zeros([2, 2], 'i32')), 'ERR_SHAPE_MISMATCH', /order/)
  })
})
