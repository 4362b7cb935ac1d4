import { describe, expect, test } from 'vitest'
import { decode, encode, hostTensor, withElement } from './host-tensor.ts'
import {
  fromBits,
  gamma,
  outputBound,
  represent,
  round,
  smallestNormal,
  toBits,
  underflowError,
  unitRoundoff,
} from './numbers.ts'
import { Random } from './random.ts'

describe('16-bit floats', () => {
  test.each(['f16', 'bf16'] as const)('%s: all 65536 patterns go to a value and back', (dtype) => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = fromBits(dtype, bits)
      if (Number.isNaN(value)) expect(fromBits(dtype, toBits(dtype, value))).toBeNaN()
      else expect(toBits(dtype, value)).toBe(bits)
    }
  })

  test.each(['f16', 'bf16'] as const)(
    '%s: rounds to the nearest of the two neighbours, ties to the even pattern',
    (dtype) => {
      const infinity = toBits(dtype, Number.POSITIVE_INFINITY)
      for (let bits = 0; bits + 1 < infinity; bits++) {
        const low = fromBits(dtype, bits)
        const high = fromBits(dtype, bits + 1)
        const middle = (low + high) / 2
        expect(round(dtype, middle)).toBe(bits % 2 === 0 ? low : high)
        expect(round(dtype, -middle)).toBe(bits % 2 === 0 ? -low : -high)
        expect(round(dtype, low + (high - low) * 0.499)).toBe(low)
        expect(round(dtype, low + (high - low) * 0.501)).toBe(high)
      }
    },
  )

  test('known patterns', () => {
    expect(toBits('bf16', 1)).toBe(0x3f80)
    expect(toBits('bf16', -2.5)).toBe(0xc020)
    expect(toBits('f16', 1)).toBe(0x3c00)
    expect(toBits('f16', 65504)).toBe(0x7bff)
    expect(toBits('f16', 2 ** -24)).toBe(1)
    expect(toBits('f16', -0)).toBe(0x8000)
  })

  test('overflow: half a unit above the largest number and more is infinity', () => {
    expect(round('f16', 65519.99)).toBe(65504)
    expect(round('f16', 65520)).toBe(Number.POSITIVE_INFINITY)
    expect(round('f16', -1e6)).toBe(Number.NEGATIVE_INFINITY)
    expect(round('bf16', (2 - 2 ** -8) * 2 ** 127)).toBe(Number.POSITIVE_INFINITY)
  })
})

test('f32 rounds as the language does', () => {
  const random = new Random(1)
  for (let i = 0; i < 1000; i++) {
    const value = random.gaussian() * 2 ** random.integer(-150, 120)
    expect(round('f32', value)).toBe(new Float32Array([value])[0])
  }
})

test('the unit roundoff bounds every rounding, and is reached', () => {
  for (const dtype of ['f32', 'f16', 'bf16'] as const) {
    const u = unitRoundoff(dtype)
    const random = new Random(2)
    let largest = 0
    for (let i = 0; i < 20_000; i++) {
      const value = 1 + random.fraction()
      largest = Math.max(largest, Math.abs(round(dtype, value) - value) / value)
    }
    expect(largest).toBeLessThanOrEqual(u)
    expect(largest).toBeGreaterThan(0.9 * u)
    expect(round(dtype, 2 * underflowError(dtype))).toBe(2 * underflowError(dtype))
    expect(round(dtype, 0.99 * underflowError(dtype))).toBe(0)
    expect(smallestNormal(dtype) * u).toBe(underflowError(dtype))
  }
})

test('gamma', () => {
  expect(gamma(0)).toBe(0)
  expect(gamma(1, 2 ** -10)).toBeCloseTo(2 ** -10 / (1 - 2 ** -10), 15)
  expect(() => gamma(2 ** 24)).toThrow()
})

test('gamma bounds a float32 sum in any order', () => {
  const random = new Random(3)
  for (let n = 2; n < 300; n += 7) {
    const terms = random.normal('f32', [n]).values
    let exact = 0
    let absolute = 0
    let single = 0
    for (const term of terms) {
      exact += term
      absolute += Math.abs(term)
      single = Math.fround(single + term)
    }
    expect(Math.abs(single - exact)).toBeLessThanOrEqual(gamma(n) * absolute)
  }
})

test('outputBound grows with the value and the error before rounding', () => {
  const [zero, one, two] = outputBound('bf16', [0, 1, -2], [0, 0, 0.5])
  expect(zero).toBe(underflowError('bf16'))
  expect(one).toBeCloseTo(2 ** -8, 8)
  expect(two).toBeCloseTo(0.5 + 2.5 * 2 ** -8, 8)
})

test('host tensors hold what the dtype can hold', () => {
  const tensor = hostTensor('bf16', [2, 2], [1, 1.001, -Math.PI, 0])
  expect([...tensor.values]).toEqual([1, 1, -3.140625, 0])
  expect([...decode('bf16', tensor.data)]).toEqual([...tensor.values])
  expect([...withElement(tensor, 3, 7).values]).toEqual([1, 1, -3.140625, 7])
  expect([...encode('i8', [-128, 127])]).toEqual([-128, 127])
  expect(() => represent('i8', 128)).toThrow()
  expect(() => represent('u8', 0.5)).toThrow()
  expect(() => hostTensor('f32', [3], [1, 2])).toThrow()
})
