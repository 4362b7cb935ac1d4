/** What a step is told: sizes, spans, and the numbers themselves. */

import { expect, test } from 'vitest'
import { lastPause, nextPause, runAt } from '../../lib/engine/image-runs.ts'
import { KvPages } from '../../lib/engine/kv-pages.ts'
import { countSpans, hasImages, padded, StepPlan } from '../../lib/engine/step-plan.ts'

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
  const shape = {
    tokens: 9,
    sequences: 5,
    rows: 2,
    allRows: false,
    globalWidth,
    localWidth,
    maskWords: 3,
    softColumns: 0,
  }
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

const runOf = (start: number, end: number) => ({
  start,
  end,
  soft: Float32Array.from({ length: (end - start) * 2 }, (_, i) => 1000 * start + i),
})

test('computing pauses at the ends of pages and at both ends of images, never inside one', () => {
  const runs = [runOf(3, 9), runOf(10, 14), runOf(14, 15), runOf(23, 24)]
  const allowed = (position: number) =>
    !runs.some(({ start, end }) => start < position && position < end) &&
    (position % 4 === 0 || runs.some(({ start, end }) => start === position || end === position))
  for (let start = 0; start < 30; start++) {
    const places = Array.from({ length: 60 }, (_, i) => start + 1 + i).filter(allowed)
    expect(nextPause(runs, start, 4)).toBe(places[0])
    for (let limit = start - 1; limit < 34; limit++) {
      expect(lastPause(runs, start, limit, 4)).toBe(places.filter((place) => place <= limit).at(-1) ?? start)
    }
    expect(runAt(runs, start)).toBe(runs.find((run) => run.start <= start && start < run.end))
  }
})

test('a plan with an image: one span in each page of it, which sees all of it; its soft tokens', () => {
  const book = new KvPages({ ...options, prefixCache: false })
  const pages = book.open()
  pages.reserve(0, 13)
  const { global: globalWidth, local: localWidth } = book.widths
  const part = { pages, start: 2, count: 11, promptLength: 13, images: [runOf(5, 10)] }
  expect(hasImages(part)).toBe(true)
  expect(hasImages({ ...part, start: 10, count: 3 })).toBe(false)
  expect(hasImages({ ...part, start: 2, count: 3 })).toBe(false)
  // 2-3, 4, 5-7, 8-9, 10-11, 12
  expect(countSpans([part])).toBe(6)
  const plan = new StepPlan({
    tokens: 12,
    sequences: 6,
    rows: 1,
    allRows: false,
    globalWidth,
    localWidth,
    maskWords: 0,
    softColumns: 2,
  })
  plan.integers.fill(777)
  plan.soft.fill(777)
  plan.fill([part], (_, index) => (index >= 5 && index < 10 ? -9 : index), 5)
  const numbers = [...plan.integers]
  const section = (at: number, length: number) => numbers.slice(at * 16, at * 16 + length)
  expect(section(0, 12)).toEqual([2, 3, 4, -1, -1, -1, -1, -1, 10, 11, 12, 0])
  expect(section(4, 7)).toEqual([0, 2, 3, 6, 8, 10, 11])
  expect(section(5, 6)).toEqual([4, 5, 10, 10, 12, 13])
  const last = numbers.length / 16
  // Low and high of global layers, low and high of local ones with a window of 5; the row that is no token sees nothing.
  expect(section(last - 4, 12)).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
  expect(section(last - 3, 12)).toEqual([3, 4, 5, 10, 10, 10, 10, 10, 11, 12, 13, 0])
  expect(section(last - 2, 12)).toEqual([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0])
  expect(section(last - 1, 12)).toEqual([3, 4, 5, 10, 10, 10, 10, 10, 11, 12, 13, 0])
  const soft = [...plan.soft]
  expect(soft.slice(0, 6)).toEqual([0, 0, 0, 0, 0, 0])
  expect(soft.slice(6, 16)).toEqual(Array.from({ length: 10 }, (_, i) => 5000 + i))
  expect(soft.slice(16)).toEqual([0, 0, 0, 0, 0, 0, 0, 0])
})
