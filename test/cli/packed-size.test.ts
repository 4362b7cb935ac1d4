/** The size that `inspect` computes is the size that packWeights makes. */
import { describe, expect, test } from 'vitest'
import type { StoredTensor } from '../../lib/checkpoint/checkpoint.ts'
import { packedBytes, packedHeadBytes } from '../../lib/cli/packed-size.ts'
import { Device, type DType, packWeights, Tensor, type WeightFormat } from '../../lib/index.ts'

const stored = (dtype: DType, shape: readonly number[]): StoredTensor => ({
  name: 'w',
  storedType: dtype,
  dtype,
  shape,
  file: 'none',
  offset: 0,
  bytes: 0,
})

/** Panels of 16 rows are AVX-512's; a multiple of 16 rows takes the same everywhere. */
const rows = 48

async function packedLength(packed: Tensor): Promise<number> {
  using owned = packed
  return (await owned.read()).byteLength
}

describe('packedBytes', () => {
  test.each<[DType, number]>([
    ['f32', 33],
    ['f16', 32],
    ['bf16', 100],
    ['q4_0', 96],
    ['q4_0', 128],
    ['q4_1', 32],
    ['q5_0', 160],
    ['q5_1', 96],
    ['q8_0', 96],
    ['q3_k', 256],
    ['q4_k', 512],
    ['q5_k', 256],
    ['q6_k', 768],
    ['iq4_nl', 160],
    ['iq4_xs', 512],
  ])('of %s with %s columns', async (dtype, columns) => {
    using device = await Device.open()
    using weight = Tensor.zeros(device, [rows, columns], dtype)
    const expected = await packedLength(packWeights(weight))
    const shape = [rows, columns] as const
    expect(packedBytes({ name: 'w', shape, format: 'stored', weight: stored(dtype, shape) })).toBe(expected)
    if (dtype === 'q4_0' || dtype === 'q8_0') expect(packedHeadBytes(...shape, dtype)).toBe(expected)
  })

  test.each<[WeightFormat, 0 | 32 | 64 | 128, boolean]>([
    ['compressed_tensors', 32, false],
    ['compressed_tensors', 32, true],
    ['compressed_tensors', 64, true],
    ['compressed_tensors', 128, false],
    ['compressed_tensors', 0, false],
  ])('of %s in groups of %s, zero points: %s', async (format, groupSize, hasZeros) => {
    using device = await Device.open()
    const columns = 256
    const groups = groupSize === 0 ? 1 : columns / groupSize
    using weight = Tensor.zeros(device, [rows, columns / 8], 'i32')
    using scales = Tensor.zeros(device, [rows, groups], 'f16')
    using zeros = Tensor.zeros(device, [rows / 8, groups], 'i32')
    const packed = packWeights(weight, { format, scales, groupSize, ...(hasZeros && { zeros }) })
    const described = {
      name: 'w',
      shape: [rows, columns] as const,
      format,
      weight: stored('i32', weight.shape),
      scales: stored('f16', scales.shape),
      groupSize,
      ...(hasZeros && { zeros: stored('i32', zeros.shape) }),
    }
    expect(packedBytes(described)).toBe(await packedLength(packed))
  })

  test('of int8 with a scale per row', async () => {
    using device = await Device.open()
    using weight = Tensor.zeros(device, [rows, 100], 'i8')
    using scales = Tensor.zeros(device, [rows], 'f32')
    const described = {
      name: 'w',
      shape: [rows, 100] as const,
      format: 'i8_channel' as const,
      weight: stored('i8', weight.shape),
      scales: stored('f32', scales.shape),
      groupSize: 0 as const,
    }
    expect(packedBytes(described)).toBe(await packedLength(packWeights(weight, { format: 'i8_channel', scales })))
  })

  test('rounds rows up to a panel, and knows what it does not know', () => {
    const of = (n: number, dtype: DType) =>
      packedBytes({ name: 'w', shape: [n, 64], format: 'stored', weight: stored(dtype, [n, 64]) })
    expect(of(17, 'q4_0')).toBe(of(32, 'q4_0'))
    expect(of(16, 'q4_0')).toBe(16 * 36)
    expect(of(16, 'u8')).toBeUndefined()
  })
})
