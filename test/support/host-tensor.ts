/** A tensor on the test's side: the bytes that go to the device, and the exact numbers that they mean. */

import { fromBits, isFloat, isPlain, type PlainDType, represent, round, toBits } from './numbers.ts'

export type HostData = Float32Array | Int32Array | Int8Array | Uint8Array | Uint16Array

/** GGUF's block formats: a run of elements shares its scales. */
export type BlockDType =
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

/** Every dtype that a test can upload: plain ones, and block formats as raw bytes. */
export type HostDType = PlainDType | BlockDType | 'sfp8'

export interface HostTensor {
  readonly dtype: HostDType
  readonly shape: readonly number[]
  /** As the device stores it: f16 and bf16 as 16-bit patterns, block formats as bytes. */
  readonly data: HostData
  /** The value of every element, after rounding to the dtype: what references compute with. */
  readonly values: Float64Array
}

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1)
}

/** Rounds `values` to `dtype`. */
export function hostTensor(dtype: PlainDType, shape: readonly number[], values: ArrayLike<number>): HostTensor {
  const count = elementCount(shape)
  if (values.length !== count) throw new Error(`${values.length} values for shape [${shape}]`)
  const exact = new Float64Array(count)
  if (isFloat(dtype)) for (let i = 0; i < count; i++) exact[i] = round(dtype, values[i]!)
  else for (let i = 0; i < count; i++) exact[i] = represent(dtype, values[i]!)
  return { dtype, shape: [...shape], data: encode(dtype, exact), values: exact }
}

/** A tensor of a format whose bytes and values the test has made itself. */
export function rawTensor(
  dtype: HostDType,
  shape: readonly number[],
  data: HostData,
  values: Float64Array,
): HostTensor {
  return { dtype, shape: [...shape], data, values }
}

/** A copy with one element replaced by the representable number nearest to `value`. */
export function withElement(tensor: HostTensor, index: number, value: number): HostTensor {
  if (!isPlain(tensor.dtype)) throw new Error(`withElement: ${tensor.dtype} elements share their scales`)
  const values = tensor.values.slice()
  values[index] = value
  return hostTensor(tensor.dtype, tensor.shape, values)
}

/** Typed arrays are copied by their constructors and filled by loops here: from() is ten times slower, and tests move millions of elements. */
export function encode(dtype: PlainDType, values: ArrayLike<number>): HostData {
  switch (dtype) {
    case 'f32':
      return new Float32Array(values)
    case 'i32':
      return new Int32Array(values)
    case 'i8':
      return new Int8Array(values)
    case 'u8':
      return new Uint8Array(values)
    default: {
      const bits = new Uint16Array(values.length)
      for (let i = 0; i < bits.length; i++) bits[i] = toBits(dtype, values[i]!)
      return bits
    }
  }
}

/** The numbers that device data of a plain dtype mean; other formats give their bytes. */
export function decode(dtype: string, data: ArrayLike<number>): Float64Array {
  const values = new Float64Array(data)
  if (dtype !== 'f16' && dtype !== 'bf16') return values
  for (let i = 0; i < values.length; i++) values[i] = fromBits(dtype, values[i]!)
  return values
}
