// What matmul promises on a GPU beside its values (native/kernels/cuda/matmul): rows that do not depend on each other, whatever the
// number of warps and blocks that share K. On the emulated device every call runs on another schedule.

import { describe, expect, test } from 'vitest'
import { type Device, matmul, packWeights, stackWeights, Tensor } from '../../lib/index.ts'
import { bitDifference, mismatch } from '../support/compare.ts'
import { cudaFor, download, openDevice, upload, valuesOf } from '../support/devices.ts'
import { randomWeights, type WeightForm, weightForms } from '../support/formats.ts'
import { Random } from '../support/random.ts'
import { cases, makeInputs, near, pack, run, strays } from './matmul.cases.ts'
import { expectedOn, type Path, pathOn, rowsOf } from './matmul.reference.ts'

const family = cudaFor(['matmul', 'pack_weights', 'stack_weights'])

describe.skipIf(!family)('matmul on CUDA', () => {
  const onCuda = async (body: (device: Device) => Promise<void>) => {
    const device = await openDevice(family!)
    await body(device)
    await device.stream.synchronize()
  }
  const packed = (device: Device, form: WeightForm, random: Random, outputs: number, columns: number): Tensor => {
    const { weight, scales, zeros } = randomWeights(random, form, outputs, columns)
    return pack(form, {
      weight: upload(device, weight),
      scales: scales && upload(device, scales),
      zeros: zeros && upload(device, zeros),
    })
  }
  /** Up to 64 rows K may be split among blocks, above it is not. */
  const pathOf = (form: WeightForm, rows: number) => `${pathOn(family!, form, rows)} ${rows > 64}`

  // 2592 columns: eight warps share a pair of panels; 10 240: several blocks do too.
  for (const [name, columns] of [
    ['q4_0', 10_240],
    ['q6_k', 2560],
    ['gptq 128', 2560],
    ['gptq row', 2592],
    ['bf16', 4304],
    ['f32', 1152],
  ] as const) {
    test(`${name}, ${columns} columns: batches of every size give the bits of the whole`, () =>
      onCuda(async (device) => {
        const form = weightForms.find((candidate) => candidate.name === name)!
        const random = Random.named(`batches on CUDA ${name}`)
        const weight = packed(device, form, random, 40, columns)
        const x = upload(device, random.normal('f32', [70, columns]))
        const whole = new Map<string, Uint8Array>()
        for (const count of [70, 65, 64, 33, 17, 16, 9, 8, 5, 4, 3, 2, 1]) {
          const { bytes } = await download(matmul(x.slice(0, count), weight))
          const expected = whole.get(pathOf(form, count))
          if (!expected) whole.set(pathOf(form, count), bytes)
          else expect(bitDifference(bytes, expected.subarray(0, bytes.length)), `${count} rows`).toBeUndefined()
        }
      }))
  }

  test('f32 with more rows than one launch takes', () =>
    onCuda(async (device) => {
      const random = Random.named('many rows on CUDA')
      const form = weightForms.find(({ name }) => name === 'f32')!
      const weight = packed(device, form, random, 5, 2048) // two blocks share K
      const x = upload(device, random.normal('f32', [517, 2048]))
      const { bytes } = await download(matmul(x, weight))
      for (const [first, count] of [
        [0, 3],
        [509, 8],
      ] as const) {
        const part = await download(matmul(x.slice(first, first + count), weight))
        expect(bitDifference(part.bytes, bytes.subarray(20 * first, 20 * (first + count)))).toBeUndefined()
      }
    }))

  for (const form of weightForms) {
    test(`${form.name}: NaN and infinity stay in their rows`, () =>
      onCuda(async (device) => {
        const random = Random.named(`nan on CUDA ${form.name}`)
        const [outputs, columns] = [24, near(160, form.granule)]
        const weight = packed(device, form, random, outputs, columns)
        for (const rows of [5, 12]) {
          const { values } = random.normal('f32', [rows, columns])
          expect(await strays(device, weight, values, rows), `${rows} rows`).toEqual([])
        }
      }))

    test(`${form.name}: x of zeros gives zeros, or the bias; stacked weights the bits of separate ones`, () =>
      onCuda(async (device) => {
        const random = Random.named(`stacked on CUDA ${form.name}`)
        const columns = near(224, form.granule)
        const parts = [32, 8].map((outputs) => packed(device, form, random, outputs, columns)) as [Tensor, Tensor]
        const stacked = stackWeights(parts)
        const bias = random.normal('f32', [40])
        for (const rows of [1, 12]) {
          const zeros = Tensor.zeros(device, [rows, columns])
          expect((await valuesOf(matmul(zeros, stacked))).every((y) => y === 0)).toBe(true)
          const biased = await valuesOf(matmul(zeros, stacked, { bias: upload(device, bias) }))
          expect(biased.every((y, i) => y === bias.values[i % 40])).toBe(true)
          const x = upload(device, random.normal('f32', [rows, columns]))
          const whole = await valuesOf(matmul(x, stacked))
          const [a, b] = [await valuesOf(matmul(x, parts[0])), await valuesOf(matmul(x, parts[1]))]
          const joined = Array.from({ length: rows }, (_, r) => [
            ...a.subarray(32 * r, 32 * r + 32),
            ...b.subarray(8 * r, 8 * r + 8),
          ])
          expect([...whole]).toEqual(joined.flat())
        }
      }))
  }

  test('gate and up stacked for geglu also multiply without it', () =>
    onCuda(async (device) => {
      const random = Random.named('gate_up on CUDA')
      const form = weightForms.find(({ name }) => name === 'q4_0')!
      const parts = [packed(device, form, random, 48, 64), packed(device, form, random, 48, 64)] as const
      for (const rows of [3, 11]) {
        const x = upload(device, random.normal('f32', [rows, 64]))
        const y = await valuesOf(matmul(x, stackWeights(parts, { interleave: 'gate_up' })))
        const [g, u] = [await valuesOf(matmul(x, parts[0])), await valuesOf(matmul(x, parts[1]))]
        const joined = Array.from({ length: rows }, (_, r) => [
          ...g.subarray(48 * r, 48 * r + 48),
          ...u.subarray(48 * r, 48 * r + 48),
        ])
        expect([...y]).toEqual(joined.flat())
      }
    }))

  // The negative control of the paths: each rounding that they differ by is larger than the bound of the sum.
  for (const [name, rows, wrong] of [
    ['q4_0', 3, ['exact', 'mma']],
    ['q4_0', 33, ['exact', 'int8', 'mma_bf16']],
    ['q6_k', 33, ['exact', 'int8', 'mma']],
    ['bf16', 33, ['exact']],
    ['f16', 33, ['exact', 'mma']],
  ] as const) {
    test(`${name}, ${rows} rows: the bounds tell the paths apart`, () =>
      onCuda(async (device) => {
        const like = cases.find((c) => c.form.name === name && rowsOf(c) === rows && !c.geglu && !c.rowMajor)!
        const c = { ...like, outputDtype: 'f32' as const, xDtype: 'f32' as const }
        const inputs = makeInputs(c, Random.named(`paths ${name}`))
        const on = (host: typeof inputs.scales) => host && upload(device, host)
        const { x, weight, scales, zeros, bias } = inputs
        const tensors = {
          x: upload(device, x),
          weight: upload(device, weight),
          scales: on(scales),
          zeros: on(zeros),
          bias: on(bias),
          residual: undefined,
        }
        const got = await valuesOf(run(c, { ...tensors, up: undefined, upScales: undefined, upZeros: undefined }))
        expect(mismatch(got, expectedOn(pathOn(family!, c.form, rows), c, inputs))).toBeUndefined()
        for (const path of wrong as readonly Path[])
          expect(mismatch(got, expectedOn(path, c, inputs)), path).toBeDefined()
      }))
  }

  test('empty products', () =>
    onCuda(async (device) => {
      const weight = packWeights(Tensor.zeros(device, [16, 64]))
      expect((await valuesOf(matmul(Tensor.zeros(device, [0, 64]), weight))).length).toBe(0)
      const bias = Tensor.from(device, Float32Array.of(1, 2, 3))
      const sums = matmul(Tensor.zeros(device, [2, 0]), Tensor.zeros(device, [3, 0]), { bias })
      expect([...(await valuesOf(sums))]).toEqual([1, 2, 3, 1, 2, 3])
      expect((await valuesOf(matmul(Tensor.zeros(device, [3, 8]), Tensor.zeros(device, [0, 8])))).length).toBe(0)
    }))
})
