/** What a case of the GPU benchmarks is, and the data that we and the peers both make for it. */
import type { Goal } from '../goals.ts'

/**
 * What is computed, in numbers: what a peer in another process needs to build the same. Heads, tokens, rows and columns as in the ops'
 * contracts. Inputs are bf16 but for weights, which say what they are.
 */
export type Work =
  | {
      readonly kind: 'prefill'
      readonly tokens: number
      readonly queryHeads: number
      readonly kvHeads: number
      readonly headDim: number
      /** 0: all keys up to the query's own. */
      readonly window: number
      /** 0: none. */
      readonly softcap: number
    }
  | {
      /** One query for each sequence, over pages of 64 keys. */
      readonly kind: 'decode'
      readonly sequences: number
      readonly keys: number
      readonly queryHeads: number
      readonly kvHeads: number
      readonly headDim: number
    }
  /** x [rows, columns] times W [outputs, columns], W in int4: groups of 32, (code − 8) · scale. */
  | { readonly kind: 'int4'; readonly rows: number; readonly columns: number; readonly outputs: number }
  /** sum = x + residual, normed = RMSNorm(sum) · weight; weight is f32. */
  | { readonly kind: 'rms_norm'; readonly rows: number; readonly columns: number }
  /** gelu_tanh of the first `columns` columns times the last. */
  | { readonly kind: 'geglu'; readonly rows: number; readonly columns: number }
  /** rows × columns elements of f32 to another place. */
  | { readonly kind: 'copy'; readonly rows: number; readonly columns: number }
  /** Two square matrices of bf16. */
  | { readonly kind: 'matmul'; readonly size: number }

export interface GpuCase {
  readonly name: string
  readonly work: Work
  /** Of one unit: additions and multiplications counted each, and bytes that must come from or go to memory. */
  readonly operations: number
  readonly bytes: number
  /** What bounds it on a GPU. */
  readonly limit: 'copy' | 'matmul'
  /** By their names in peers/. */
  readonly peers: readonly string[]
  /** The root mean square of the difference to a peer's result may be this much of that of the result: roundings of bf16. */
  readonly agreement: number
  readonly goals: readonly Goal[]
}

/** Bytes that the inputs of all units of a run take at least: far beyond any L2, so that no unit finds its inputs there. */
export const footprint: number = 2 ** 31

/** Sets of inputs, each used by one unit of a run. */
export function setsFor(bytesOfOne: number, least: number = footprint): number {
  return Math.max(2, Math.ceil(least / bytesOfOne))
}

const golden = 0x9e3779b1

/** 32 bits that depend on all bits of the index: the finalizer of MurmurHash3 (Appleby 2011, public domain). */
export function mix(index: number, seed: number): number {
  let x = (index + Math.imul(seed, golden)) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

/** Element `index` of the input `seed`, in [−1, 1), before it is rounded to bf16: peers/protocol.py has the same. */
export function uniformAt(index: number, seed: number): number {
  return (mix(index, seed) >>> 8) / 2 ** 23 - 1
}

/** Bits of bf16, rounded to nearest even, of the input `seed` times a power of two. */
export function uniformBf16(count: number, seed: number, amplitude = 1): Uint16Array {
  const float = new Float32Array(1)
  const bits = new Uint32Array(float.buffer)
  const out = new Uint16Array(count)
  for (let i = 0; i < count; i++) {
    float[0] = amplitude * uniformAt(i, seed)
    const word = bits[0] as number
    out[i] = (word + 0x7fff + ((word >>> 16) & 1)) >>> 16
  }
  return out
}

/**
 * W [outputs, columns] as Q4_0 stores it. Code `index` is mix(index, 5) >> 28; the scale of a group is 2⁻⁶ or 2⁻⁷, so that every weight is
 * exact in bf16 too, and a peer that multiplies bf16 has the same matrix.
 */
export function int4Blocks(outputs: number, columns: number): Uint8Array {
  const groups = (outputs * columns) / 32
  const out = new Uint8Array(groups * 18)
  for (let group = 0; group < groups; group++) {
    // f16 of 2⁻⁶ is 0x2400, of 2⁻⁷ 0x2000; little-endian.
    out[group * 18 + 1] = mix(group, 6) >>> 31 ? 0x20 : 0x24
    for (let i = 0; i < 16; i++) {
      const low = mix(group * 32 + i, 5) >>> 28
      const high = mix(group * 32 + i + 16, 5) >>> 28
      out[group * 18 + 2 + i] = low | (high << 4)
    }
  }
  return out
}

/** Rows of an output that are compared with a peer's, of both ends and between. */
export function sampledRows(rows: number): number[] {
  const count = Math.min(rows, 16)
  return Array.from({ length: count }, (_, i) => (count === 1 ? 0 : Math.round((i * (rows - 1)) / (count - 1))))
}
