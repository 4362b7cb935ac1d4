/**
 * How much memory a weight matrix takes once packed, computed from its description alone: `inspect` reads no weights.
 * @module
 */
import type { LinearWeight } from '../checkpoint/linear.ts'
import type { DType } from '../dtype.ts'

/** Rows of a panel on AVX-512 and AMX; elsewhere panels are lower, and the last one wastes less. */
const panelRows = 16

/** Bytes per row and columns that share them, after native/ops/weight_panels.h: 64 columns are a record, K-quants have four to a block. */
const blocks: Partial<Record<DType, readonly [bytes: number, columns: number]>> = {
  f32: [4 * 32, 32],
  f16: [2 * 32, 32],
  bf16: [2 * 32, 32],
  q4_0: [4 + 32, 64],
  q4_1: [8 + 32, 64],
  q5_0: [4 + 40, 64],
  q5_1: [8 + 40, 64],
  q8_0: [4 + 64, 64],
  q3_k: [4 + 4 * (4 + 32), 256],
  q4_k: [4 + 4 * (4 + 32), 256],
  q5_k: [4 + 4 * (4 + 40), 256],
  q6_k: [4 + 4 * (4 + 48), 256],
  iq4_nl: [4 + 32, 64],
  iq4_xs: [4 + 4 * (4 + 32), 256],
}

/**
 * Bytes of `packWeights` of a matrix on a device with panels of 16 rows.
 * @returns undefined for a stored dtype that cannot be packed.
 */
export function packedBytes({ shape: [n, k], format, weight, zeros, groupSize }: LinearWeight): number | undefined {
  const rows = Math.ceil(n / panelRows) * panelRows
  const records = Math.ceil(k / 64)
  if (format === 'stored') {
    const block = weight.dtype && blocks[weight.dtype]
    return block && rows * block[0] * Math.ceil(k / block[1])
  }
  if (format === 'i8_channel') return rows * (8 + records * 64)
  if (format === 'i4_channel' || groupSize === 0) return rows * (8 + records * 32)
  const group = groupSize ?? 32
  if (group === 32) return rows * records * ((zeros === undefined ? 4 : 8) + 32)
  const perGroup = group / 64
  const groups = Math.ceil(records / perGroup)
  return rows * groups * (4 + perGroup * 32)
}

/** Bytes of the packed form of a matrix [n, k] in a format that our own quantisation gives the head. */
export function packedHeadBytes(n: number, k: number, dtype: 'q8_0' | 'q4_0'): number {
  const [bytes, columns] = blocks[dtype] as readonly [number, number]
  return Math.ceil(n / panelRows) * panelRows * bytes * Math.ceil(k / columns)
}
