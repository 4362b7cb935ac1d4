import { expect, test } from 'vitest'
import { Random } from './random.ts'

test('the same seed gives the same numbers, another seed others', () => {
  const draw = (seed: number) => [...new Random(seed).normal('f32', [16]).values]
  expect(draw(5)).toEqual(draw(5))
  expect(draw(5)).not.toEqual(draw(6))
  expect([...Random.named('a').bytes(8)]).not.toEqual([...Random.named('b').bytes(8)])
})

test('integers reach both ends of [low, high) and nothing else', () => {
  const random = new Random(1)
  const seen = new Set(Array.from({ length: 500 }, () => random.integer(-2, 3)))
  expect([...seen].sort((a, b) => a - b)).toEqual([-2, -1, 0, 1, 2])
  expect(random.integer(4, 4)).toBe(4)
})

test('moments', () => {
  const random = new Random(2)
  const mean = (values: Float64Array) => values.reduce((sum, value) => sum + value, 0) / values.length
  const normal = random.normal('f32', [40_000], 3).values
  expect(Math.abs(mean(normal))).toBeLessThan(0.06)
  expect(Math.sqrt(mean(normal.map((value) => value * value)))).toBeCloseTo(3, 1)
  const uniform = random.uniform('f32', [40_000], -1, 3).values
  expect(mean(uniform)).toBeCloseTo(1, 1)
  expect(uniform.every((value) => value >= -1 && value <= 3)).toBe(true)
})

test('a permutation holds every index once', () => {
  const order = new Random(3).permutation(100)
  expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, i) => i))
  expect(order).not.toEqual([...order].sort((a, b) => a - b))
})
