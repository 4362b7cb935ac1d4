// What matmul promises on a GPU beside its values (native/kernels/cuda/matmul): rows that do not depend on each other, whatever the
// number of warps and blocks that share K. On the emulated device every call runs on another schedule.

import { describe, expect, test } from 'vitest'
import { type Device, matmul, packWeights, stackWeights, Tensor } from '../../lib/index.ts'
import { bitDifference } from '../support/compare.ts'
import { cudaFor, download, openDevice, upload, valuesOf } from '../support/devices.ts'
import { randomWeights, type WeightForm, weightForms } from '../support/formats.ts'
import { hostTensor } from '../support/host-tensor.ts'
import { Random } from '../support/random.ts'
import { near, pack } from './matmul.cases.ts'
import { pathOn } from './matmul.reference.ts'

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

  for (const form of weightForms) {
    test(`${form.name}: NaN and infinity stay in their rows`, () =>
      onCuda(async (device) => {
        const random = Random.named(`nan on CUDA ${form.name}`)
        const [outputs, columns] = [24, near(160, form.granule)]
        const weight = packed(device, form, random, outputs, columns)
        for (const rows of [5, 12]) {
          const { values } = random.normal('f32', [rows, columns])
          const before = await valuesOf(matmul(upload(device, hostTensor('f32', [rows, columns], values)), weight))
          values[1 * columns + columns - 1] = Number.NaN
          values[3 * columns] = Number.NEGATIVE_INFINITY
          const after = await valuesOf(matmul(upload(device, hostTensor('f32', [rows, columns], values)), weight))
          for (let i = 0; i < after.length; i++) {
            const row = Math.floor(i / outputs)
            const where = `[${row}, ${i % outputs}] of ${rows}`
            if (row === 1) expect(after[i], where).toBeNaN()
            else if (row === 3) expect(Number.isFinite(after[i]!), where).toBe(false)
            else expect(after[i], where).toBe(before[i])
          }
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
