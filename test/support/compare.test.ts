import { describe, expect, test } from 'vitest'
import { bitDifference, compare, mismatch } from './compare.ts'

const one = (got: number, expected: number, bound: number) => compare([got], [expected], [bound]).failures

describe('compare', () => {
  test('within and at the bound passes, above it fails', () => {
    expect(one(1.5, 1, 0.5)).toBe(0)
    expect(one(0.5, 1, 0.5)).toBe(0)
    expect(one(1.5000001, 1, 0.5)).toBe(1)
    expect(one(1, 1, 0)).toBe(0)
    expect(one(1 + 2 ** -52, 1, 0)).toBe(1)
  })

  test('NaN fails, unless the reference is NaN', () => {
    expect(one(Number.NaN, 1, 1e300)).toBe(1)
    expect(one(1, Number.NaN, 1e300)).toBe(1)
    expect(one(Number.NaN, Number.NaN, 0)).toBe(0)
  })

  test('infinities must be the same', () => {
    expect(one(Infinity, Infinity, 0)).toBe(0)
    expect(one(-Infinity, Infinity, 1e300)).toBe(1)
    expect(one(Infinity, 1, 1e300)).toBe(1)
    expect(one(1, Infinity, 1e300)).toBe(1)
    expect(one(Number.NaN, Infinity, 1e300)).toBe(1)
  })

  test('signs do not cancel: both negative, and opposite', () => {
    expect(one(-3, -10, 1)).toBe(1)
    expect(one(-10, -3, 1)).toBe(1)
    expect(one(-1, 1, 1)).toBe(1)
  })

  test('reports the element that is worst relative to its bound', () => {
    const result = compare([1, 5, 10, 3], [0, 0, 0, 3], [10, 1, 5, 1])
    expect(result).toMatchObject({
      count: 4,
      failures: 2,
      worst: { index: 1, got: 5, expected: 0, bound: 1 },
      ratio: 5,
    })
    expect(compare([Number.NaN, 100], [0, 0], [1, 1]).worst?.index).toBe(0)
    expect(compare([100, Number.NaN], [0, 0], [1, 1]).worst?.index).toBe(1)
  })

  test('broken references throw', () => {
    expect(() => one(1, 1, Number.NaN)).toThrow()
    expect(() => one(1, 1, -1)).toThrow()
    expect(() => one(1, 1, Infinity)).toThrow()
    expect(() => compare([1], [1, 2], [0, 0])).toThrow()
    expect(() => compare([1, 2], [1, 2], [0])).toThrow()
  })

  test('nothing compared with nothing passes', () => {
    expect(compare([], [], []).failures).toBe(0)
  })
})

describe('mismatch', () => {
  const got = Float64Array.from([1, 2, 3])
  test('names the worst element and the count', () => {
    expect(mismatch(got, { value: [1, 2, 3], bound: [0, 0, 0] })).toBeUndefined()
    expect(mismatch(got, { value: [1, 2, 4], bound: [0, 0, 0.5] })).toMatch(/1 of 3 .*\[2\] got 3, expected 4 ± 0.5/)
    expect(mismatch(got, { value: [1, 2], bound: [0, 0] })).toMatch(/expected 2 elements, got 3/)
  })
  test('exact, bytes and check', () => {
    expect(mismatch(got, { exact: [1, 2, 3] })).toBeUndefined()
    expect(mismatch(got, { exact: Int32Array.from([1, 0, 3]) })).toMatch(
      /1 of 3 elements differ; first: \[1\] got 2, expected 0/,
    )
    expect(mismatch(Float64Array.from([Number.NaN]), { exact: [Number.NaN] })).toBeUndefined()
    expect(mismatch(Float64Array.from([Number.NaN]), { exact: [0] })).toMatch(/differ/)
    expect(mismatch(got, { bytes: Uint8Array.from([9]) }, Uint8Array.from([9]))).toBeUndefined()
    expect(mismatch(got, { bytes: Uint8Array.from([9]) }, Uint8Array.from([8]))).toMatch(/differ/)
    expect(mismatch(got, { check: (values) => (values[0] === 1 ? undefined : 'no') })).toBeUndefined()
    expect(mismatch(got, { check: () => 'unlikely' })).toBe('unlikely')
  })
})

test('bitDifference sees the sign of zero and the payload of NaN', () => {
  const bytes = (value: number) => new Uint8Array(Float32Array.from([value]).buffer)
  expect(bitDifference(bytes(0), bytes(0))).toBeUndefined()
  expect(bitDifference(bytes(0), bytes(-0))).toMatch(/differ/)
  expect(bitDifference(Uint8Array.from([1, 0, 0xc0, 0x7f]), Uint8Array.from([0, 0, 0xc0, 0x7f]))).toMatch(/differ/)
})
