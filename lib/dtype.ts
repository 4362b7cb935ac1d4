/**
 * Element types: the typed mirror of native/core/dtype.h, in the same order.
 * @module
 */
import { LapidaryError } from './errors.ts'

/** One dtype: how its elements lie in memory. */
export interface DTypeInfo {
  readonly name: DType
  /** Elements that share one block of storage. */
  readonly block: number
  /** Bytes of one block. */
  readonly blockBytes: number
  /** Of round-to-nearest; 0 for integers and block formats. */
  readonly unitRoundoff: number
}

/** An element type by name: plain types, GGUF block types, gemma.cpp's `sfp8`, and `i4` (grouped 4-bit integers, packed only). */
export type DType =
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'i32'
  | 'i8'
  | 'u8'
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q8_0'
  | 'q3_k'
  | 'q4_k'
  | 'q5_k'
  | 'q6_k'
  | 'iq4_nl'
  | 'iq4_xs'
  | 'sfp8'
  | 'i4'

/** Every dtype, in the order of native/core/dtype.h. */
export const dtypes: readonly DTypeInfo[] = [
  { name: 'f32', block: 1, blockBytes: 4, unitRoundoff: 2 ** -24 },
  { name: 'f16', block: 1, blockBytes: 2, unitRoundoff: 2 ** -11 },
  { name: 'bf16', block: 1, blockBytes: 2, unitRoundoff: 2 ** -8 },
  { name: 'i32', block: 1, blockBytes: 4, unitRoundoff: 0 },
  { name: 'i8', block: 1, blockBytes: 1, unitRoundoff: 0 },
  { name: 'u8', block: 1, blockBytes: 1, unitRoundoff: 0 },
  { name: 'q4_0', block: 32, blockBytes: 18, unitRoundoff: 0 },
  { name: 'q4_1', block: 32, blockBytes: 20, unitRoundoff: 0 },
  { name: 'q5_0', block: 32, blockBytes: 22, unitRoundoff: 0 },
  { name: 'q5_1', block: 32, blockBytes: 24, unitRoundoff: 0 },
  { name: 'q8_0', block: 32, blockBytes: 34, unitRoundoff: 0 },
  { name: 'q3_k', block: 256, blockBytes: 110, unitRoundoff: 0 },
  { name: 'q4_k', block: 256, blockBytes: 144, unitRoundoff: 0 },
  { name: 'q5_k', block: 256, blockBytes: 176, unitRoundoff: 0 },
  { name: 'q6_k', block: 256, blockBytes: 210, unitRoundoff: 0 },
  { name: 'iq4_nl', block: 32, blockBytes: 18, unitRoundoff: 0 },
  { name: 'iq4_xs', block: 256, blockBytes: 136, unitRoundoff: 0 },
  { name: 'sfp8', block: 1, blockBytes: 1, unitRoundoff: 2 ** -3 },
  { name: 'i4', block: 2, blockBytes: 1, unitRoundoff: 0 },
]

/** How a tensor's elements lie in memory: ordinary strides, or the packed form that `packWeights` makes for `matmul`. */
export type Layout = 'strided' | 'panels'
export const layouts: readonly Layout[] = ['strided', 'panels']

const indices = new Map<string, number>(dtypes.map((info, index) => [info.name, index]))

/** The index by which a dtype crosses to native code. */
export function dtypeIndex(name: DType): number {
  const index = indices.get(name)
  if (index === undefined) {
    const names = dtypes.map((info) => info.name).join(', ')
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `dtype: expected one of ${names}, got ${String(name)}`)
  }
  return index
}

/** The typed array that `read()` gives for a dtype. 16-bit floats come as their bits, block types as bytes. */
export type DTypeArray<T extends DType = DType> = T extends 'f32'
  ? Float32Array
  : T extends 'i32'
    ? Int32Array
    : T extends 'i8'
      ? Int8Array
      : T extends 'f16' | 'bf16'
        ? Uint16Array
        : Uint8Array

type ArrayConstructor = new (buffer: ArrayBuffer) => Float32Array | Int32Array | Int8Array | Uint16Array | Uint8Array

const arrayConstructors: Partial<Record<DType, ArrayConstructor>> = {
  f32: Float32Array,
  i32: Int32Array,
  i8: Int8Array,
  f16: Uint16Array,
  bf16: Uint16Array,
}

/** The bytes of a tensor as the typed array of its dtype. */
export function toTypedArray(dtype: DType, bytes: ArrayBuffer): DTypeArray {
  return new (arrayConstructors[dtype] ?? Uint8Array)(bytes)
}
