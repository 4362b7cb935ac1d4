/**
 * GGUF's tables: tensor types and metadata value types.
 * @module
 */
import type { DType } from '../dtype.ts'

/** How ggml stores one tensor type. */
export interface GgmlType {
  readonly id: number
  readonly name: string
  /** Elements of a row that share a block. */
  readonly block: number
  readonly blockBytes: number
  /** Ours, where a kernel reads it. */
  readonly dtype: DType | undefined
}

// Sizes: ggml-common.h. Ids that are absent (4, 5, 31–33, 36–38) were given up by ggml.
const table: readonly [id: number, name: string, block: number, blockBytes: number, dtype?: DType][] = [
  [0, 'F32', 1, 4, 'f32'],
  [1, 'F16', 1, 2, 'f16'],
  [2, 'Q4_0', 32, 18, 'q4_0'],
  [3, 'Q4_1', 32, 20, 'q4_1'],
  [6, 'Q5_0', 32, 22, 'q5_0'],
  [7, 'Q5_1', 32, 24, 'q5_1'],
  [8, 'Q8_0', 32, 34, 'q8_0'],
  [9, 'Q8_1', 32, 36],
  [10, 'Q2_K', 256, 84],
  [11, 'Q3_K', 256, 110, 'q3_k'],
  [12, 'Q4_K', 256, 144, 'q4_k'],
  [13, 'Q5_K', 256, 176, 'q5_k'],
  [14, 'Q6_K', 256, 210, 'q6_k'],
  [15, 'Q8_K', 256, 292],
  [16, 'IQ2_XXS', 256, 66],
  [17, 'IQ2_XS', 256, 74],
  [18, 'IQ3_XXS', 256, 98],
  [19, 'IQ1_S', 256, 50],
  [20, 'IQ4_NL', 32, 18, 'iq4_nl'],
  [21, 'IQ3_S', 256, 110],
  [22, 'IQ2_S', 256, 82],
  [23, 'IQ4_XS', 256, 136, 'iq4_xs'],
  [24, 'I8', 1, 1, 'i8'],
  [25, 'I16', 1, 2],
  [26, 'I32', 1, 4, 'i32'],
  [27, 'I64', 1, 8],
  [28, 'F64', 1, 8],
  [29, 'IQ1_M', 256, 56],
  [30, 'BF16', 1, 2, 'bf16'],
  [34, 'TQ1_0', 256, 54],
  [35, 'TQ2_0', 256, 66],
  [39, 'MXFP4', 32, 17],
  [40, 'NVFP4', 64, 36],
]

const types: readonly GgmlType[] = table.map(([id, name, block, blockBytes, dtype]) => ({
  id,
  name,
  block,
  blockBytes,
  dtype,
}))

/** The tensor type with this id; undefined for one that ggml gave up or that is newer than this table. */
export const ggmlTypeById: ReadonlyMap<number, GgmlType> = new Map(types.map((type) => [type.id, type]))

/** The tensor type that stores a dtype of ours. */
export const ggmlTypeOf: ReadonlyMap<DType, GgmlType> = new Map(
  types.flatMap((type) => (type.dtype === undefined ? [] : [[type.dtype, type] as const])),
)

/** Metadata value types, at their ids. */
export const ggufValueTypes = [
  'u8',
  'i8',
  'u16',
  'i16',
  'u32',
  'i32',
  'f32',
  'bool',
  'string',
  'array',
  'u64',
  'i64',
  'f64',
] as const
export type GgufValueType = (typeof ggufValueTypes)[number]

/** Numbers that have a typed array. */
export type GgufNumericArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array

/** A metadata value. 64-bit integers are bigints where a number cannot hold them; numeric arrays up to 32 bits, and f64, are typed arrays. */
export type GgufValue = number | bigint | boolean | string | GgufNumericArray | readonly GgufValue[]

/** A metadata value with the types that the file gives it. */
export interface GgufEntry {
  readonly type: GgufValueType
  /** Of an array: the type of its items. */
  readonly items?: GgufValueType
  readonly value: GgufValue
}

type NumericArrayConstructor = new (buffer: ArrayBuffer) => GgufNumericArray

/** Of the types whose arrays become typed arrays. */
export const numericArrays: Partial<Record<GgufValueType, NumericArrayConstructor>> = {
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  f32: Float32Array,
  f64: Float64Array,
}

/** Bytes of one value of each type that has a size. */
export const valueBytes: Readonly<Record<Exclude<GgufValueType, 'string' | 'array'>, number>> = {
  u8: 1,
  i8: 1,
  u16: 2,
  i16: 2,
  u32: 4,
  i32: 4,
  f32: 4,
  bool: 1,
  u64: 8,
  i64: 8,
  f64: 8,
}
