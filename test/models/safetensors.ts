/** A small reader of safetensors files for tests, sharing nothing with lib/checkpoint. */

import { readFileSync } from 'node:fs'
import { fromBits } from '../support/numbers.ts'

export interface Stored {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly values: Float64Array
}

export function readSafetensors(path: URL | string): Map<string, Stored> {
  const file = readFileSync(path)
  const headerBytes = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >
  const tensors = new Map<string, Stored>()
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const [start, end] = entry.data_offsets
    const bytes = file.subarray(8 + headerBytes + start, 8 + headerBytes + end)
    tensors.set(name, { dtype: entry.dtype, shape: entry.shape, values: decode(entry.dtype, bytes) })
  }
  return tensors
}

function decode(dtype: string, bytes: Buffer): Float64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const read: Record<string, readonly [number, (at: number) => number]> = {
    F32: [4, (at) => view.getFloat32(at, true)],
    BF16: [2, (at) => fromBits('bf16', view.getUint16(at, true))],
    F16: [2, (at) => fromBits('f16', view.getUint16(at, true))],
    I64: [8, (at) => Number(view.getBigInt64(at, true))],
  }
  const [size, element] = read[dtype] ?? [0, () => Number.NaN]
  if (size === 0) throw new Error(`safetensors: dtype ${dtype}`)
  return Float64Array.from({ length: bytes.length / size }, (_, i) => element(i * size))
}
