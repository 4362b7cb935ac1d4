/** What a step is told: sizes, spans, and the numbers themselves. */

import { expect, test } from 'vitest'
import { KvPages } from '../../lib/engine/kv-pages.ts'
import { countSpans, padded, StepPlan } from '../../lib/engine/step-plan.ts'

test('steps are padded by at most an eighth, to few sizes', () => {
  const sizes = new Set<number>()
  for (let count = 0; count <= 4096; count++) {
    const size = padded(count)
    expect(size).toBeGreaterThanOrEqual(count)
    expect(size).toBeLessThanOrEqual(count * 1.125)
    expect(padded(size)).toBe(size)
    sizes.add(size)
  }
  expect(sizes.size).toBeLessThan(90)
})

const options = { pageTokens: 4, window: 5, contextLength: 40, chunk: 16, globalPages: 30, localPages: 30 }

test('spans end with pages, with the prompt, and with every generated token', () => {
  const pages = new KvPages({ ...options, prefixCache: false }).open()
  const spans = (start: number, count: number, promptLength: number): number =>
    countSpans([{ pages, start, count, promptLength }])
  expect(spans(0, 4, 100)).toBe(1)
  expect(spans(0, 5, 100)).toBe(2)
  expect(spans(4, 12, 100)).toBe(3)
  expect(spans(8, 1, 100)).toBe(1)
  // Positions 8 and 9 are the prompt's last, 10 to 12 were generated.
  expect(spans(8, 5, 10)).toBe(4)
  expect(spans(20, 3, 10)).toBe(3)
})

test('a plan of two sequences, number by number', () => {
  const book = new KvPages({ ...options, prefixCache: false })
  const [first, second] = [book.open(), book.open()]
  first.reserve(0, 7)
  second.reserve(0, 2)
  second.reserve(2, 1)
  const { global: globalWidth, local: localWidth } = book.widths
  const shape = { tokens: 9, sequences: 5, rows: 2, allRows: false, globalWidth, localWidth, maskWords: 3 }
  const plan = new StepPlan(shape)
  plan.integers.fill(777)
  plan.fill(
    [
      { pages: first, start: 0, count: 7, promptLength: 7 },
      { pages: second, start: 2, count: 1, promptLength: 2 },
    ],
    (part, index) => 100 * (part + 1) + index,
  )
  // Sections begin at multiples of 16.
  const section = (number: number, length: number): number[] => [
    ...plan.integers.subarray(number * 16, number * 16 + length),
  ]
  expect(section(0, 9)).toEqual([100, 101, 102, 103, 104, 105, 106, 202, 0])
  expect(section(1, 9)).toEqual([0, 1, 2, 3, 4, 5, 6, 2, 0])
  // The first sequence has pages 0 and 1, the second page 2.
  expect(section(2, 9)).toEqual([0, 1, 2, 3, 4, 5, 6, 10, -1])
  expect(section(3, 9)).toEqual([0, 1, 2, 3, 4, 5, 6, 10, -1])
  // Two spans of the first, one of the second, two that are empty.
  expect(section(4, 6)).toEqual([0, 4, 7, 8, 8, 8])
  expect(section(5, 5)).toEqual([4, 7, 3, 0, 0])
  const tables = section(6, 3 * globalWidth)
  expect([tables[0], tables[1], tables[globalWidth], tables[2 * globalWidth]]).toEqual([0, 1, 0, 2])
})
