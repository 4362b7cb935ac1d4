import { describe, expect, test } from 'vitest'
import { type Device, type GpuFamily, type Isa, matmul, packWeights, stackWeights, Tensor } from '../../lib/index.ts'
import { bitDifference } from '../support/compare.ts'
import { anyDevice, bestIsa, download, fast, forEachIsa, openDevice, upload, valuesOf } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'
import { randomWeights, type StoredWeights, type WeightForm, weightForms } from '../support/formats.ts'
import { hostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'
import { type Case, cases, controlCase, type Inputs, makeInputs, near, pack, run, strays } from './matmul.cases.ts'
import { pathOn, ran, reference } from './matmul.reference.ts'

opSuite<Case, Inputs>('matmul', {
  ops: ['matmul'],
  cases,
  inputs: makeInputs,
  run: (c, t, device) => {
    ran.isa = device.info().isa as Isa | GpuFamily
    return run(c, t)
  },
  reference,
  control: { case: controlCase.name },
  // All of them: a format has its own code on either path.
  emulated: { cases: 1000, elements: 600_000 },
})

function uploadPacked(device: Device, form: WeightForm, { weight, scales, zeros }: StoredWeights): Tensor {
  return pack(form, {
    weight: upload(device, weight),
    scales: scales && upload(device, scales),
    zeros: zeros && upload(device, zeros),
  })
}

const named = (name: string) => weightForms.find((form) => form.name === name)!
const rowBytes = (bytes: Uint8Array, first: number, rows: number, columns: number) =>
  bytes.subarray(4 * first * columns, 4 * (first + rows) * columns)

/** Formats whose properties are tested: in fast runs every third; the suite above has a case of each. */
const propertyForms = fast ? weightForms.filter((_, i) => i % 3 === 0) : weightForms

describe('matmul: a row does not depend on the others', () => {
  if (fast) {
    const left = weightForms.length - propertyForms.length
    test.skip(`LAPIDARY_TEST_FAST leaves out ${left} of ${weightForms.length} formats in three properties`)
  }

  for (const form of propertyForms) {
    // Where x and the weights are bf16, some instruction sets multiply pairs.
    const dtypes = form.name === 'bf16' ? (['f32', 'bf16'] as const) : (['f32'] as const)
    test.each(dtypes)(`${form.name}: batches of every size give the bits of the whole, x %s`, (dtype) =>
      forEachIsa(async (device, isa) => {
        const random = Random.named(`batches ${form.name}`)
        const [rows, outputs, columns] = [100, 40, near(416, form.granule)]
        const weight = uploadPacked(device, form, randomWeights(random, form, outputs, columns))
        const x = upload(device, random.normal(dtype, [rows, columns]))
        // AMX rounds x differently where rows are many: sizes are compared within a path.
        const whole = new Map<string, Uint8Array>()
        for (const count of [100, 65, 64, 49, 48, 33, 17, 16, 9, 8, 7, 6, 5, 4, 3, 2, 1]) {
          const path = pathOn(isa, form, count)
          for (const first of whole.has(path) ? [0, Math.min(rows - count, 3)] : [0]) {
            const { bytes } = await download(matmul(x.slice(first, first + count), weight))
            const expected = whole.get(path)
            if (!expected) {
              whole.set(path, bytes)
              continue
            }
            const present = Math.min(count, expected.length / (4 * outputs) - first)
            const difference = bitDifference(
              rowBytes(bytes, 0, present, outputs),
              rowBytes(expected, first, present, outputs),
            )
            expect(difference, `${count} rows from ${first}`).toBeUndefined()
          }
        }
      }),
    )
  }

  // Only a tall matrix is claimed in pieces as well as shared out (native/kernels/cpu/matmul/work_shares.h).
  test('nor do the columns of a matrix of many panels', () =>
    forEachIsa(async (device) => {
      const random = Random.named('tall')
      const [outputs, period, columns] = [130_001, 1009, 64]
      const base = randomWeights(random, named('q4_0'), period, columns).weight
      const stored = base.data as Uint8Array
      const tall = new Uint8Array(outputs * 36)
      for (let at = 0; at < tall.length; at += stored.length) tall.set(stored.subarray(0, tall.length - at), at)
      const weight = packWeights(Tensor.from(device, tall, [outputs, columns], 'q4_0'))
      for (const rows of [1, 9]) {
        const x = upload(device, random.normal('f32', [rows, columns]))
        const y = await valuesOf(matmul(x, weight))
        const expected = await valuesOf(matmul(x, packWeights(upload(device, base))))
        const wrong = y.findIndex(
          (value, i) => value !== expected[Math.floor(i / outputs) * period + ((i % outputs) % period)],
        )
        expect(wrong, `${rows} rows`).toBe(-1)
      }
    }))

  test('row-major weights too', () =>
    forEachIsa(async (device) => {
      for (const dtype of ['f32', 'f16', 'bf16'] as const) {
        const random = Random.named(dtype)
        const x = upload(device, random.normal('f32', [20, 333]))
        const weight = upload(device, random.normal(dtype, [19, 333]))
        const { bytes } = await download(matmul(x, weight))
        for (const count of [1, 2, 3, 4, 5, 11]) {
          const part = await download(matmul(x.slice(2, 2 + count), weight))
          expect(bitDifference(part.bytes, rowBytes(bytes, 2, count, 19)), `${dtype}, ${count} rows`).toBeUndefined()
        }
      }
    }))

  for (const form of propertyForms) {
    test(`${form.name}: NaN and infinity stay in their rows`, () =>
      forEachIsa(async (device) => {
        const random = Random.named(`nan ${form.name}`)
        const [outputs, columns] = [24, near(160, form.granule)]
        const weight = uploadPacked(device, form, randomWeights(random, form, outputs, columns))
        const clean = random.normal('f32', [70, columns])
        for (const rows of [5, 20, 70]) {
          const values = clean.values.slice(0, rows * columns)
          expect(await strays(device, weight, values, rows), `${rows} rows`).toEqual([])
        }
        if (form.name !== 'bf16') return
        const values = random.normal('bf16', [20, columns]).values
        expect(await strays(device, weight, values, 20, 'bf16'), 'x bf16').toEqual([])
      }))
  }
})

describe('matmul: what is exact', () => {
  for (const form of weightForms) {
    test(`${form.name}: x of zeros gives zeros, or the bias`, () =>
      forEachIsa(async (device) => {
        const random = Random.named(`zeros ${form.name}`)
        const [outputs, columns] = [24, near(96, form.granule)]
        const weight = uploadPacked(device, form, randomWeights(random, form, outputs, columns))
        const bias = random.normal('f32', [outputs])
        for (const rows of [1, 9, 70]) {
          const x = Tensor.zeros(device, [rows, columns])
          expect((await valuesOf(matmul(x, weight))).every((y) => y === 0)).toBe(true)
          const biased = await valuesOf(matmul(x, weight, { bias: upload(device, bias) }))
          expect(biased.every((y, i) => y === bias.values[i % outputs])).toBe(true)
        }
      }))
  }

  test('a unit vector picks a column of float weights, bit for bit', () =>
    forEachIsa(async (device) => {
      for (const name of ['f32', 'f16', 'bf16', 'sfp8']) {
        const form = named(name)
        const [outputs, columns] = [21, 75]
        const stored = randomWeights(Random.named(name), form, outputs, columns)
        const unit = hostTensor(
          'f32',
          [2, columns],
          Array.from({ length: 2 * columns }, (_, i) => +(i % columns === 74)),
        )
        const y = await valuesOf(matmul(upload(device, unit), uploadPacked(device, form, stored)))
        for (let i = 0; i < y.length; i++) expect(y[i]).toBe(stored.values[(i % outputs) * columns + 74])
      }
    }))

  test('a power of two times x gives that power of two times y', () =>
    forEachIsa(async (device) => {
      for (const form of weightForms) {
        const random = Random.named(`scaled ${form.name}`)
        const columns = near(128, form.granule)
        const weight = uploadPacked(device, form, randomWeights(random, form, 16, columns))
        const x = random.normal('f32', [2, columns])
        const y = await valuesOf(matmul(upload(device, x), weight))
        const scaled = hostTensor(
          'f32',
          x.shape,
          x.values.map((value) => value * 2 ** 20),
        )
        const got = await valuesOf(matmul(upload(device, scaled), weight))
        expect(got, form.name).toEqual(y.map((value) => value * 2 ** 20))
      }
    }))
})

describe('matmul: stacked weights', () => {
  // Slices of packed zero points would cut words, so forms are stacked from matrices of their own.
  for (const form of propertyForms) {
    test(`${form.name}: the same bits as separate ones`, () =>
      forEachIsa(async (device) => {
        const random = Random.named(`stacked ${form.name}`)
        const columns = near(224, form.granule)
        const parts = [32, 48, 8].map((outputs) =>
          uploadPacked(device, form, randomWeights(random, form, outputs, columns)),
        ) as [Tensor, Tensor, Tensor]
        const stacked = stackWeights(parts)
        for (const rows of [1, 12, 70]) {
          const x = upload(device, random.normal('f32', [rows, columns]))
          const whole = await valuesOf(matmul(x, stacked))
          let first = 0
          for (const part of parts) {
            const outputs = part.shape[0]!
            const y = await valuesOf(matmul(x, part))
            for (let i = 0; i < y.length; i++) {
              const at = Math.floor(i / outputs) * 88 + first + (i % outputs)
              expect(y[i], `${rows} rows, [${i}]`).toBe(whole[at])
            }
            first += outputs
          }
        }
      }))
  }
})

describe('matmul: empty and wrong', () => {
  test('no rows', () =>
    forEachIsa(async (device) => {
      for (const form of weightForms) {
        const weight = uploadPacked(device, form, randomWeights(new Random(1), form, 16, near(64, form.granule)))
        const y = matmul(Tensor.zeros(device, [0, weight.shape[1]!]), weight)
        expect(y.shape).toEqual([0, 16])
        expect((await valuesOf(y)).length).toBe(0)
      }
      const plain = matmul(Tensor.zeros(device, [0, 3, 8]), Tensor.zeros(device, [5, 8]), { outputDtype: 'bf16' })
      expect(plain.shape).toEqual([0, 3, 5])
      expect((await valuesOf(plain)).length).toBe(0)
    }))

  test('a row-major matrix without rows or columns', () =>
    forEachIsa(async (device) => {
      const nothing = matmul(Tensor.zeros(device, [3, 8]), Tensor.zeros(device, [0, 8]))
      expect(nothing.shape).toEqual([3, 0])
      expect((await valuesOf(nothing)).length).toBe(0)
      const bias = Tensor.from(device, Float32Array.of(1, 2, 3))
      const sums = matmul(Tensor.zeros(device, [2, 0]), Tensor.zeros(device, [3, 0]), { bias })
      expect([...(await valuesOf(sums))]).toEqual([1, 2, 3, 1, 2, 3])
    }))

  test('arguments that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const weight = packWeights(Tensor.zeros(device, [32, 64]))
      const x = Tensor.zeros(device, [2, 64])
      throwsCode(() => matmul(Tensor.zeros(device, [2, 63]), weight), 'ERR_SHAPE_MISMATCH', /x/)
      throwsCode(() => matmul(Tensor.zeros(device, [2, 63]), Tensor.zeros(device, [3, 64])), 'ERR_SHAPE_MISMATCH', /x/)
      throwsCode(() => matmul(x, Tensor.zeros(device, [64])), 'ERR_SHAPE_MISMATCH', /weight/)
      throwsCode(() => matmul(Tensor.zeros(device, [2, 64], 'f16'), weight), 'ERR_DTYPE_UNSUPPORTED', /x/)
      throwsCode(() => matmul(Tensor.zeros(device, [2, 64], 'i32'), weight), 'ERR_DTYPE_UNSUPPORTED', /x/)
      throwsCode(() => matmul(x, Tensor.zeros(device, [3, 64], 'i8')), 'ERR_DTYPE_UNSUPPORTED', /weight/)
      throwsCode(() => matmul(x, Tensor.zeros(device, [3, 64], 'q4_0')), 'ERR_DTYPE_UNSUPPORTED', /weight/)
      throwsCode(() => matmul(weight, weight), ['ERR_LAYOUT_UNSUPPORTED', 'ERR_DTYPE_UNSUPPORTED'], /x/)
      throwsCode(() => matmul(Tensor.zeros(device, [2, 3, 70]).slice(0, 64, 2), weight), 'ERR_LAYOUT_UNSUPPORTED', /x/)

      const bias = (shape: readonly number[], dtype: 'f32' | 'bf16' = 'f32') => ({
        bias: Tensor.zeros(device, shape, dtype),
      })
      throwsCode(() => matmul(x, weight, bias([31])), 'ERR_SHAPE_MISMATCH', /bias/)
      throwsCode(() => matmul(x, weight, bias([1, 32])), 'ERR_SHAPE_MISMATCH', /bias/)
      throwsCode(() => matmul(x, weight, bias([32], 'bf16')), 'ERR_DTYPE_UNSUPPORTED', /bias/)

      throwsCode(() => matmul(x, weight, { epilogue: 'geglu' }), 'ERR_LAYOUT_UNSUPPORTED', /weight.*stackWeights/)
      throwsCode(
        () => matmul(x, Tensor.zeros(device, [32, 64]), { epilogue: 'geglu' }),
        'ERR_LAYOUT_UNSUPPORTED',
        /weight.*stackWeights/,
      )
      const both = stackWeights([weight, weight], { interleave: 'gate_up' })
      throwsCode(() => matmul(x, both, { epilogue: 'geglu', ...bias([32]) }), 'ERR_SHAPE_MISMATCH', /bias/)
      const residual = (shape: readonly number[], dtype: 'f32' | 'bf16' = 'f32') => ({
        residual: Tensor.zeros(device, shape, dtype),
      })
      throwsCode(() => matmul(x, weight, residual([2, 31])), 'ERR_SHAPE_MISMATCH', /residual.*the result/)
      throwsCode(() => matmul(x, weight, residual([3, 32])), 'ERR_SHAPE_MISMATCH', /residual/)
      throwsCode(() => matmul(x, weight, residual([64])), 'ERR_SHAPE_MISMATCH', /residual/)
      throwsCode(() => matmul(x, weight, residual([2, 32], 'bf16')), 'ERR_DTYPE_UNSUPPORTED', /residual/)
      const strided = { residual: Tensor.zeros(device, [2, 40]).slice(0, 32, 1) }
      throwsCode(() => matmul(x, weight, strided), 'ERR_LAYOUT_UNSUPPORTED', /residual/)
      const stacked = stackWeights([weight, weight], { interleave: 'gate_up' })
      const whole = { epilogue: 'geglu' as const, ...residual([2, 64]) }
      throwsCode(() => matmul(x, stacked, whole), 'ERR_SHAPE_MISMATCH', /residual/)

      throwsCode(() => matmul(x, weight, { epilogue: 'relu' as 'geglu' }), 'ERR_INVALID_ARGUMENT', /epilogue/)
      throwsCode(() => matmul(x, weight, { outputDtype: 'f16' as 'f32' }), 'ERR_INVALID_ARGUMENT', /outputDtype/)
    }))

  test('gate and up stacked for geglu also multiply without it', () =>
    forEachIsa(async (device) => {
      const random = Random.named('gate_up')
      const [gate, up] = [random.normal('f32', [48, 40]), random.normal('f32', [48, 40])]
      const x = upload(device, random.normal('f32', [7, 40]))
      const parts = [packWeights(upload(device, gate)), packWeights(upload(device, up))] as const
      const y = await valuesOf(matmul(x, stackWeights(parts, { interleave: 'gate_up' })))
      const [g, u] = [await valuesOf(matmul(x, parts[0])), await valuesOf(matmul(x, parts[1]))]
      const rows = Array.from({ length: 7 }, (_, r) => [
        ...g.subarray(48 * r, 48 * r + 48),
        ...u.subarray(48 * r, 48 * r + 48),
      ])
      expect([...y]).toEqual(rows.flat())
    }))

  test('tensors of another device, and disposed ones', async () => {
    const device = await anyDevice()
    const other = await openDevice(bestIsa, 1)
    const weight = packWeights(Tensor.zeros(device, [32, 64]))
    throwsCode(() => matmul(Tensor.zeros(other, [2, 64]), weight), 'ERR_DEVICE_MISMATCH')
    const x = Tensor.zeros(device, [2, 64])
    const y = matmul(x, weight)
    weight.dispose()
    throwsCode(() => matmul(x, weight), 'ERR_DISPOSED')
    // A call that was under way keeps what it needs.
    expect((await valuesOf(y)).every((value) => value === 0)).toBe(true)
  })
})
