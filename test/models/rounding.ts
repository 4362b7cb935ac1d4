/**
 * How far rounding may move a model's result: derived by disturbing the reference.
 *
 * First-order error analysis says that the deviation of a result is a linear function of the roundings made on the way, and each op's
 * contract says how large its roundings are. The sum over a whole network is not written down but measured: the reference runs again with a
 * random change of that size, uniform between its limits, at every place where the library rounds. Several seeds give samples of the
 * deviation; real roundings, which are spread over the same limits, are one more such sample, with at most 1 / √3 of the limit as its
 * root mean square where the injected have 1 / √3.
 *
 * A sample's root mean square over thousands of results hardly varies, its maximum by a factor below 2: the bounds are 2 times
 * the largest of the first kind and 4 times the largest of the second.
 */

import { unitRoundoff } from '../support/numbers.ts'
import { Random } from '../support/random.ts'
import type { Disturb, Place } from './reference.ts'

const rmsFactor = 2
const maxFactor = 4

export interface Rounding {
  /** What passes between ops. */
  readonly activations: 'f32' | 'bf16'
  /** What keys and values are kept as. */
  readonly kv: 'f32' | 'bf16' | 'i8'
  /**
   * What activations become inside a product: f32; bf16, and the weights too (tile kernels); or int8 in groups of 32, at worst with the
   * bf16 of tile kernels on top.
   */
  readonly products: 'f32' | 'bf16' | 'int8'
}

const f32 = unitRoundoff('f32')
const bf16 = unitRoundoff('bf16')

export function disturbance({ activations, kv, products }: Rounding, seed: number): Disturb {
  const random = new Random(seed)
  const noise = () => 2 * random.fraction() - 1
  const between = activations === 'bf16' ? bf16 : f32
  const relative = (values: Float64Array, u: number) => {
    for (let i = 0; i < values.length; i++) values[i]! *= 1 + u * noise()
  }
  /** By up to so much of the largest magnitude in each run of `size` elements. */
  const absolute = (values: Float64Array, size: number, u: number) => {
    for (let start = 0; start < values.length; start += size) {
      const end = Math.min(start + size, values.length)
      let largest = 0
      for (let i = start; i < end; i++) largest = Math.max(largest, Math.abs(values[i]!))
      for (let i = start; i < end; i++) values[i]! += u * largest * noise()
    }
  }
  /** Half a step of 127 on either side of zero. */
  const int8 = 1 / 254
  const places: Record<Place, (values: Float64Array, row: number, terms: number) => void> = {
    residual: (values) => relative(values, f32),
    normed: (values) => relative(values, between),
    input(values, row) {
      if (products !== 'f32') relative(values, bf16)
      if (products === 'int8')
        for (let r = 0; r < values.length; r += row) absolute(values.subarray(r, r + row), 32, int8)
    },
    product(values, row, terms) {
      sum(values, row, terms, noise, products === 'f32' ? 0 : bf16)
      relative(values, between)
    },
    query: (values) => relative(values, kv === 'f32' ? between : bf16),
    key: (values, row) => (kv === 'i8' ? absolute(values, row, int8) : relative(values, kv === 'f32' ? f32 : bf16)),
    value: (values, row) => (kv === 'i8' ? absolute(values, row, int8) : relative(values, kv === 'f32' ? f32 : bf16)),
    // Scores of f32 kernels err by some units in the last place of the largest, which the exponential passes on.
    weights: (values) => relative(values, kv === 'f32' ? 64 * f32 : bf16 + 2 ** -13),
    context: (values) => relative(values, between),
    gated: (values) => relative(values, between),
    logits: (values, row, terms) => sum(values, row, terms, noise, products === 'f32' ? 0 : bf16),
  }
  return (place, values, row, terms) => places[place](values, row, terms)
}

/**
 * A sum of K products in f32 errs by about √K · u times the root mean square of the row's sums, as its K roundings are independent (Higham
 * 2002, §2.8). Rounded weights add their unit roundoff of the same.
 */
function sum(values: Float64Array, row: number, terms: number, noise: () => number, weights: number): void {
  for (let start = 0; start < values.length; start += row) {
    let squares = 0
    for (let i = start; i < start + row; i++) squares += values[i]! ** 2
    const size = (Math.sqrt(terms) * f32 + weights) * Math.sqrt(squares / row)
    for (let i = start; i < start + row; i++) values[i]! += size * noise()
  }
}

export interface Deviation {
  readonly rms: number
  readonly max: number
}

/** How far one result is from another. NaN anywhere gives NaN. */
export function deviation(got: ArrayLike<number>, expected: ArrayLike<number>): Deviation {
  if (got.length !== expected.length) throw new Error(`expected ${expected.length} values, got ${got.length}`)
  let squares = 0
  let max = 0
  for (let i = 0; i < got.length; i++) {
    const error = Math.abs(got[i]! - expected[i]!)
    squares += error * error
    max = Math.max(max, error)
  }
  return { rms: Math.sqrt(squares / got.length), max }
}

/** The bound from samples of the deviation. */
export function boundFrom(samples: readonly Deviation[]): Deviation {
  return {
    rms: rmsFactor * Math.max(...samples.map(({ rms }) => rms)),
    max: maxFactor * Math.max(...samples.map(({ max }) => max)),
  }
}

/** What is wrong with a result, or undefined. */
export function exceeds(got: ArrayLike<number>, expected: ArrayLike<number>, bound: Deviation): string | undefined {
  const found = deviation(got, expected)
  if (found.rms <= bound.rms && found.max <= bound.max) return undefined
  return `deviates by ${found.rms} (root mean square) and ${found.max} (largest), expected at most ${bound.rms} and ${bound.max}`
}
