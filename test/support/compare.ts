/**
 * The comparator of all op tests.
 *
 * An element passes when |got − expected| ≤ bound, and fails when *not* so: a NaN, which compares false with everything, fails. Where
 * the reference is NaN the result must be NaN, and an infinity must be the same infinity.
 */

export type Expected =
  /** A reference and, per element, how far the result may be from it. Computed by the reference, never typed in. */
  | { readonly value: ArrayLike<number>; readonly bound: ArrayLike<number> }
  /** Equal values (NaN equals NaN): integers, copies, decoded formats. */
  | { readonly exact: ArrayLike<number> }
  /** Equal bytes, whatever they mean. */
  | { readonly bytes: Uint8Array }
  /** Any other property, for distributions: returns what is wrong, or undefined. */
  | { readonly check: (got: Float64Array) => string | undefined }

export interface Worst {
  readonly index: number
  readonly got: number
  readonly expected: number
  readonly bound: number
}

export interface Comparison {
  readonly count: number
  readonly failures: number
  /** The element that exceeds its bound by the largest factor; of passing ones, the one nearest to its bound. */
  readonly worst: Worst | undefined
  /** error / bound of the worst element: above 1 it fails, far below 1 the bound is loose. */
  readonly ratio: number
}

/** Compares elementwise. A bound that is negative, NaN or infinite is an error in the reference, and throws. */
export function compare(got: ArrayLike<number>, expected: ArrayLike<number>, bound: ArrayLike<number>): Comparison {
  if (expected.length !== bound.length)
    throw new Error(`reference has ${expected.length} values and ${bound.length} bounds`)
  if (got.length !== expected.length) throw new Error(`expected ${expected.length} elements, got ${got.length}`)
  let failures = 0
  let ratio = 0
  let worst: Worst | undefined
  for (let i = 0; i < got.length; i++) {
    const limit = bound[i]!
    if (!(limit >= 0 && limit < Number.POSITIVE_INFINITY)) throw new Error(`reference bound [${i}] is ${limit}`)
    const here = elementRatio(got[i]!, expected[i]!, limit)
    if (!(here <= 1)) failures++
    if (worst === undefined || here > ratio) {
      ratio = here
      worst = { index: i, got: got[i]!, expected: expected[i]!, bound: limit }
    }
  }
  return { count: got.length, failures, worst, ratio }
}

function elementRatio(got: number, expected: number, bound: number): number {
  if (Number.isNaN(expected)) return Number.isNaN(got) ? 0 : Number.POSITIVE_INFINITY
  if (!Number.isFinite(expected)) return got === expected ? 0 : Number.POSITIVE_INFINITY
  const error = Math.abs(got - expected)
  if (!(error <= bound)) return Number.isNaN(error) || bound === 0 ? Number.POSITIVE_INFINITY : error / bound
  return bound === 0 ? 0 : error / bound
}

/** Says what is wrong with a result, or undefined. `bytes` are the result's own, needed for { bytes } only. */
export function mismatch(got: Float64Array, expected: Expected, bytes?: Uint8Array): string | undefined {
  if ('check' in expected) return expected.check(got)
  if ('bytes' in expected) return exactMismatch(bytes ?? Uint8Array.from(got), expected.bytes, 'byte')
  if ('exact' in expected) return exactMismatch(got, expected.exact, 'element')
  if (got.length !== expected.value.length) return `expected ${expected.value.length} elements, got ${got.length}`
  const result = compare(got, expected.value, expected.bound)
  if (result.failures === 0) return undefined
  const worst = result.worst!
  return (
    `${result.failures} of ${result.count} elements exceed their bound; worst: [${worst.index}] got ${worst.got}, ` +
    `expected ${worst.expected} ± ${worst.bound} (error/bound ${result.ratio.toPrecision(3)})`
  )
}

function exactMismatch(got: ArrayLike<number>, expected: ArrayLike<number>, noun: string): string | undefined {
  if (got.length !== expected.length) return `expected ${expected.length} ${noun}s, got ${got.length}`
  let failures = 0
  let first = -1
  for (let i = 0; i < got.length; i++) {
    const same = got[i]! === expected[i]! || (Number.isNaN(got[i]!) && Number.isNaN(expected[i]!))
    if (same) continue
    if (failures++ === 0) first = i
  }
  if (failures === 0) return undefined
  return `${failures} of ${got.length} ${noun}s differ; first: [${first}] got ${got[first]}, expected ${expected[first]}`
}

/** Where two results differ in their bits, or undefined. */
export function bitDifference(a: Uint8Array, b: Uint8Array): string | undefined {
  return exactMismatch(a, b, 'byte')
}
