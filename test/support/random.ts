/** Seeded random tensors: the same seed gives the same numbers on every machine. */

import { elementCount, type HostTensor, hostTensor } from './host-tensor.ts'
import type { PlainDType } from './numbers.ts'

/** Shifts every suite's seed, to look for failures elsewhere: LAPIDARY_SEED=7 npm test. */
export const globalSeed = Number(process.env.LAPIDARY_SEED ?? 0)

export class Random {
  readonly seed: number
  /** State of sfc32 (C. Doty-Humphrey, PractRand), a small generator of good quality: 128 bits, period at least 2^32. */
  #a: number
  #b: number
  #c: number
  #counter = 1

  constructor(seed: number) {
    this.seed = seed >>> 0
    this.#a = this.seed
    this.#b = 0x9e3779b9 ^ this.seed
    this.#c = 0x243f6a88
    for (let i = 0; i < 12; i++) this.bits()
  }

  /** A generator whose seed follows from a name (FNV-1a) and LAPIDARY_SEED. */
  static named(name: string): Random {
    let hash = 0x811c9dc5
    for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193)
    return new Random(hash + globalSeed)
  }

  /** 32 random bits. */
  bits(): number {
    const sum = (this.#a + this.#b + this.#counter++) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0
    return sum >>> 0
  }

  /** A number in [0, 1) with 53 random bits. */
  fraction(): number {
    return ((this.bits() >>> 5) * 2 ** 26 + (this.bits() >>> 6)) / 2 ** 53
  }

  /** An integer in [low, high): high itself does not occur. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.fraction() * Math.max(1, high - low))
  }

  pick<T>(choices: readonly T[]): T {
    if (choices.length === 0) throw new Error('pick: nothing to choose from')
    return choices[this.integer(0, choices.length)]!
  }

  /** A permutation of 0 … count−1 (Fisher and Yates). */
  permutation(count: number): number[] {
    const order = Array.from({ length: count }, (_, i) => i)
    for (let i = count - 1; i > 0; i--) {
      const j = this.integer(0, i + 1)
      const held = order[i]!
      order[i] = order[j]!
      order[j] = held
    }
    return order
  }

  /** Standard normal (Box and Muller 1958). */
  gaussian(): number {
    return Math.sqrt(-2 * Math.log(1 - this.fraction())) * Math.cos(2 * Math.PI * this.fraction())
  }

  /** Normally distributed elements of standard deviation `scale`, rounded to `dtype`. */
  normal(dtype: PlainDType, shape: readonly number[], scale = 1): HostTensor {
    return this.tensor(dtype, shape, () => scale * this.gaussian())
  }

  /** Elements uniform in [low, high), rounded to `dtype`. */
  uniform(dtype: PlainDType, shape: readonly number[], low: number, high: number): HostTensor {
    return this.tensor(dtype, shape, () => low + this.fraction() * (high - low))
  }

  /** Integers in [low, high). */
  i32(shape: readonly number[], low: number, high: number): HostTensor {
    return this.tensor('i32', shape, () => this.integer(low, high))
  }

  /** Elements from a function of the index, rounded to `dtype`. */
  tensor(dtype: PlainDType, shape: readonly number[], element: (index: number) => number): HostTensor {
    const values = new Float64Array(elementCount(shape))
    for (let i = 0; i < values.length; i++) values[i] = element(i)
    return hostTensor(dtype, shape, values)
  }

  bytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => this.bits() >>> 24)
  }
}
