import { describe, expect, test } from 'vitest'
import { meanRows, Tensor } from '../../lib/index.ts'
import { type Cut, cutTensor, cutValues } from '../support/cuts.ts'
import { anyDevice, forEachIsa, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { hostTensor } from '../support/host-tensor.ts'
import { type FloatDType, gamma, outputBound } from '../support/numbers.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'

interface Case {
  readonly name: string
  readonly shape: readonly [number, number]
  readonly starts: readonly number[]
  readonly dtype?: FloatDType
  readonly cuts?: readonly Cut[]
}

const cases: Case[] = [
  { name: 'two sequences', shape: [30, 40], starts: [0, 12, 30] },
  ...[1, 3, 4, 5, 15, 17, 33, 1023, 1024, 1025, 2051].map((columns, i) => ({
    name: `${columns} columns`,
    shape: [9, columns] as const,
    starts: [0, 1, 4, 9],
    dtype: (['f32', 'bf16', 'f16'] as const)[i % 3]!,
  })),
  ...[1, 31, 32, 33, 64, 65, 500].map((rows) => ({
    name: `${rows} rows`,
    shape: [rows, 24] as const,
    starts: [0, rows],
  })),
  { name: 'empty sequences', shape: [7, 33], starts: [0, 0, 3, 3, 7, 7] },
  { name: 'rows of no sequence', shape: [20, 33], starts: [3, 5, 17] },
  { name: 'no sequences', shape: [5, 8], starts: [0] },
  { name: 'no rows', shape: [0, 8], starts: [0, 0] },
  { name: 'no columns', shape: [4, 0], starts: [0, 4] },
  { name: 'columns of a wider tensor', shape: [20, 90], starts: [0, 7, 20], dtype: 'bf16', cuts: [[1, 5, 80]] },
  { name: 'EmbeddingGemma', shape: [300, 768], starts: [0, 100, 128, 300] },
]

opSuite('meanRows', {
  ops: ['mean_rows'],
  cases,
  inputs: (c, random) => ({
    x: random.normal(c.dtype ?? 'f32', c.shape),
    starts: hostTensor('i32', [c.starts.length], c.starts),
  }),
  run: (c, t) => meanRows(cutTensor(t.x, c.cuts), t.starts),
  reference: (c, h) => {
    const { values, shape } = cutValues(h.x, c.cuts)
    const columns = shape[1]!
    const sequences = c.starts.length - 1
    const mean = new Float64Array(sequences * columns)
    const error = new Float64Array(sequences * columns)
    for (let s = 0; s < sequences; s++) {
      const [begin, end] = [c.starts[s]!, c.starts[s + 1]!]
      for (let k = 0; k < columns && end > begin; k++) {
        let [sum, magnitude] = [0, 0]
        for (let row = begin; row < end; row++) {
          sum += values[row * columns + k]!
          magnitude += Math.abs(values[row * columns + k]!)
        }
        mean[s * columns + k] = sum / (end - begin)
        error[s * columns + k] = (gamma(32 + (end - begin) / 32 + 1) * magnitude) / (end - begin)
      }
    }
    return [{ value: mean, bound: outputBound('f32', mean, error) }]
  },
})

describe('meanRows', () => {
  test('a sequence does not depend on the ones beside it', () =>
    forEachIsa(async (device) => {
      const x = upload(device, Random.named('alone').normal('f32', [50, 70]))
      const means = async (view: Tensor, ...starts: number[]) =>
        valuesOf(meanRows(view, Tensor.from(device, Int32Array.from(starts))))
      const together = await means(x, 0, 11, 37, 50)
      expect(await means(x.slice(11, 37), 0, 26)).toEqual(together.subarray(70, 140))
    }))

  test.each([
    ['decreasing', [0, 4, 2, 6], [1.5, 0, 3.5]],
    ['beyond the rows', [0, 4, 7], [1.5, 0]],
    ['negative', [-1, 4, 6], [0, 4.5]],
  ])('bad data: starts that are %s: a sticky error, and zeros', (_, starts, expected) =>
    forEachIsa(async (device) => {
      const x = Tensor.from(
        device,
        Float32Array.from({ length: 6 }, (_, i) => i),
        [6, 1],
      )
      const out = meanRows(x, Tensor.from(device, Int32Array.from(starts)))
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /mean_rows: starts/)
      expect([...(await valuesOf(out))]).toEqual(expected)
    }),
  )

  test('arguments that do not fit', async () => {
    const device = await anyDevice()
    const zeros = (shape: number[], dtype: 'f32' | 'i32' = 'f32') => Tensor.zeros(device, shape, dtype)
    throwsCode(() => meanRows(zeros([8]), zeros([2], 'i32')), 'ERR_SHAPE_MISMATCH', /x/)
    throwsCode(() => meanRows(zeros([4, 8], 'i32'), zeros([2], 'i32')), 'ERR_DTYPE_UNSUPPORTED', /x/)
    throwsCode(() => meanRows(zeros([4, 8]), zeros([2])), 'ERR_DTYPE_UNSUPPORTED', /starts/)
    throwsCode(() => meanRows(zeros([4, 8]), zeros([2, 1], 'i32')), 'ERR_SHAPE_MISMATCH', /starts/)
    throwsCode(() => meanRows(zeros([4, 8]), zeros([0], 'i32')), 'ERR_SHAPE_MISMATCH', /starts/)
  })
})
