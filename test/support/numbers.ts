/**
 * Number formats for references: what a dtype can hold, and how far rounding may move a value.
 *
 * Written from IEEE 754 and from the definition of bfloat16, in double precision, sharing nothing with lib/ or native/. The error
 * calculus is that of N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed. 2002, chapters 2 and 3.
 */

/** dtypes whose elements are single floating-point numbers. */
export type FloatDType = 'f32' | 'f16' | 'bf16'
export type IntegerDType = 'i32' | 'i8' | 'u8'
/** dtypes with one number per element; block formats are in formats.ts. */
export type PlainDType = FloatDType | IntegerDType

interface FloatFormat {
  /** Bits of significand, the implicit one included. */
  readonly precision: number
  /** Exponent of the smallest normal number, 2^minExponent. */
  readonly minExponent: number
  readonly maxFinite: number
}

const floatFormats: Record<FloatDType, FloatFormat> = {
  f32: { precision: 24, minExponent: -126, maxFinite: (2 - 2 ** -23) * 2 ** 127 },
  f16: { precision: 11, minExponent: -14, maxFinite: 65504 },
  bf16: { precision: 8, minExponent: -126, maxFinite: (2 - 2 ** -7) * 2 ** 127 },
}

const integerRanges: Record<IntegerDType, readonly [number, number]> = {
  i32: [-(2 ** 31), 2 ** 31 - 1],
  i8: [-128, 127],
  u8: [0, 255],
}

/** 2^e of every exponent of a double. Math.pow is what rounding would otherwise wait for. */
const powers = new Float64Array(2200).map((_, i) => 2 ** (i - 1100))
const powerOfTwo = (e: number): number => powers[e + 1100]!

export function isFloat(dtype: string): dtype is FloatDType {
  return dtype in floatFormats
}

export function isPlain(dtype: string): dtype is PlainDType {
  return dtype in floatFormats || dtype in integerRanges
}

/** u: the largest relative error of one rounding to nearest, for results in the normal range. 2^-24, 2^-11, 2^-8. */
export function unitRoundoff(dtype: FloatDType): number {
  return powerOfTwo(-floatFormats[dtype].precision)
}

/** The largest absolute error of one rounding to nearest in the subnormal range: half the smallest positive number. */
export function underflowError(dtype: FloatDType): number {
  const { precision, minExponent } = floatFormats[dtype]
  return powerOfTwo(minExponent - precision)
}

/** The smallest positive normal number. A kernel that flushes subnormals to zero errs by up to this much. */
export function smallestNormal(dtype: FloatDType): number {
  return powerOfTwo(floatFormats[dtype].minExponent)
}

export function maxFinite(dtype: FloatDType): number {
  return floatFormats[dtype].maxFinite
}

/**
 * γₙ = n·u / (1 − n·u): the relative error of n rounded operations in a row (Higham, lemma 3.1). A sum of n products, in any order and
 * with or without fused multiply-add, errs by at most γₙ · Σ|aᵢbᵢ|.
 */
export function gamma(n: number, u: number = unitRoundoff('f32')): number {
  if (!(n >= 0 && n * u < 1)) throw new Error(`gamma: n·u must be in [0, 1), got ${n}·${u}`)
  return (n * u) / (1 - n * u)
}

/** The error of rounding a value of this size to `dtype` once. */
export function roundingError(dtype: FloatDType, value: number): number {
  return unitRoundoff(dtype) * Math.abs(value) + underflowError(dtype)
}

/**
 * The bound for an output that is computed to within `error` and then rounded to `dtype`: error + u·(|r| + error) + η, per element.
 * `error` is a number for all elements, or one per element. Slack of 1 in 2^40 covers the reference's own rounding in double precision.
 */
export function outputBound(
  dtype: FloatDType,
  value: ArrayLike<number>,
  error: number | ArrayLike<number>,
): Float64Array {
  const bound = new Float64Array(value.length)
  for (let i = 0; i < bound.length; i++) {
    const e = typeof error === 'number' ? error : error[i]!
    const magnitude = Math.abs(value[i]!)
    // An infinite or NaN reference is compared for equality: its bound is not used.
    bound[i] = Number.isFinite(magnitude) ? e + roundingError(dtype, magnitude + e) + 2 ** -40 * magnitude : 0
  }
  return bound
}

/** The number of `dtype` nearest to `value`, ties to even, overflow to infinity. Rounds once, straight from double precision. */
export function round(dtype: FloatDType, value: number): number {
  if (dtype === 'f32') return Math.fround(value)
  if (value === 0 || !Number.isFinite(value)) return value
  const { precision, minExponent, maxFinite } = floatFormats[dtype]
  const quantum = powerOfTwo(Math.max(exponent(value), minExponent) - precision + 1)
  const rounded = roundHalfEven(Math.abs(value) / quantum) * quantum
  return Math.sign(value) * (rounded > maxFinite ? Number.POSITIVE_INFINITY : rounded)
}

/** `round` for floats; for integers, a value outside the range or between integers is an error in the test. */
export function represent(dtype: PlainDType, value: number): number {
  if (isFloat(dtype)) return round(dtype, value)
  const [low, high] = integerRanges[dtype]
  if (!Number.isInteger(value) || value < low || value > high) throw new Error(`${value} is not an ${dtype}`)
  return value
}

const doubles = new Float64Array(1)
const doubleWords = new Uint32Array(doubles.buffer)
const highWord = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1 ? 1 : 0

/** e with 2^e ≤ |value| < 2^(e+1). */
function exponent(value: number): number {
  doubles[0] = value
  const biased = (doubleWords[highWord]! >> 20) & 0x7ff
  // Double-precision subnormals lie far below any dtype's smallest number.
  return biased === 0 ? -1074 : biased - 1023
}

function roundHalfEven(value: number): number {
  const below = Math.floor(value)
  const rest = value - below
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1
  return below % 2 === 0 ? below : below + 1
}

/** The 16 bits of a value that `dtype` represents exactly (other values are rounded first). */
export function toBits(dtype: 'f16' | 'bf16', value: number): number {
  const { precision, minExponent } = floatFormats[dtype]
  const mantissaBits = precision - 1
  const exponentMask = (1 << (15 - mantissaBits)) - 1
  const rounded = round(dtype, value)
  const sign = Object.is(rounded, -0) || rounded < 0 ? 0x8000 : 0
  if (Number.isNaN(rounded)) return (exponentMask << mantissaBits) | (1 << (mantissaBits - 1))
  const magnitude = Math.abs(rounded)
  if (magnitude === Number.POSITIVE_INFINITY) return sign | (exponentMask << mantissaBits)
  const unit = powerOfTwo(minExponent - mantissaBits)
  if (magnitude < powerOfTwo(minExponent)) return sign | (magnitude / unit)
  const e = exponent(magnitude)
  const fraction = magnitude / powerOfTwo(e - mantissaBits) - powerOfTwo(mantissaBits)
  return sign | ((e - minExponent + 1) << mantissaBits) | fraction
}

/** The value of 16 bits of `dtype`. */
export function fromBits(dtype: 'f16' | 'bf16', bits: number): number {
  const { precision, minExponent } = floatFormats[dtype]
  const mantissaBits = precision - 1
  const exponentMask = (1 << (15 - mantissaBits)) - 1
  const sign = bits & 0x8000 ? -1 : 1
  const biased = (bits >> mantissaBits) & exponentMask
  const fraction = bits & ((1 << mantissaBits) - 1)
  if (biased === exponentMask) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY
  if (biased === 0) return sign * fraction * powerOfTwo(minExponent - mantissaBits)
  return sign * (1 + fraction / powerOfTwo(mantissaBits)) * powerOfTwo(biased - 1 + minExponent)
}
