/** Resizing, against what Pillow gave and against the filter in double precision; the boxes of pan and scan. */

import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { resizeBilinear } from '../../lib/vision/resize.ts'
import { checkPanAndScan, imageViews, panAndScanBoxes } from '../../lib/vision/views.ts'
import { throwsCode } from '../support/errors.ts'

const fixture = (name: string) =>
  JSON.parse(readFileSync(new URL(`../fixtures/vision/${name}`, import.meta.url), 'utf8'))

/** The bytes that the fixtures were made of. */
function noise(length: number, seed: number): Uint8Array {
  let state = seed
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state >>> 24
  })
}

interface PillowCase {
  readonly width: number
  readonly height: number
  readonly seed: number
  readonly outWidth: number
  readonly outHeight: number
  readonly rgb: string
}
const { cases } = fixture('pillow-bilinear.json') as { cases: PillowCase[] }

/** The triangle filter, both axes at once, in double precision. */
function reference(data: Uint8Array, width: number, height: number, outWidth: number, outHeight: number): Float64Array {
  const weights = (input: number, output: number, at: number) => {
    const scale = input / output
    const support = Math.max(scale, 1)
    const all = Array.from({ length: input }, (_, i) =>
      Math.max(0, 1 - Math.abs(i + 0.5 - (at + 0.5) * scale) / support),
    )
    const sum = all.reduce((a, b) => a + b)
    return all.map((weight) => weight / sum)
  }
  const out = new Float64Array(outWidth * outHeight * 3)
  const columns = Array.from({ length: outWidth }, (_, x) => weights(width, outWidth, x))
  for (let y = 0; y < outHeight; y++) {
    const rows = weights(height, outHeight, y)
    for (let x = 0; x < outWidth; x++)
      for (let c = 0; c < 3; c++) {
        let sum = 0
        for (let j = 0; j < height; j++) {
          if (rows[j] === 0) continue
          for (let i = 0; i < width; i++) sum += rows[j]! * columns[x]![i]! * data[(j * width + i) * 3 + c]!
        }
        out[(y * outWidth + x) * 3 + c] = sum
      }
  }
  return out
}

describe('resizeBilinear', () => {
  test.each(cases)('gives the bytes of Pillow: $width × $height to $outWidth × $outHeight', async (item) => {
    const { width, height, seed, outWidth, outHeight, rgb } = item
    const data = noise(width * height * 3, seed)
    const got = await resizeBilinear({ data, width, height }, outWidth, outHeight)
    expect(Buffer.from(got).toString('base64')).toBe(rgb)
  })

  test('of a photo’s size, to the bit', async () => {
    const [width, height] = [1600, 1200]
    const got = await resizeBilinear({ data: noise(width * height * 3, 77), width, height }, 896, 896)
    const hash = createHash('sha256').update(got).digest('hex')
    expect(hash).toBe('bc3dc7e91585587d75d76bdec208cfcec15bb06f27cab57a50b6d16bdf94cb4c')
  })

  test.each([
    [61, 40, 17, 23],
    [9, 11, 30, 13],
    [50, 50, 50, 12],
  ])('is within 2 levels of the filter in double precision: %i × %i to %i × %i', async (width, height, w, h) => {
    const data = noise(width * height * 3, 5)
    const got = await resizeBilinear({ data, width, height }, w, h)
    const expected = reference(data, width, height, w, h)
    expect(Math.max(...expected.map((value, i) => Math.abs(value - got[i]!)))).toBeLessThanOrEqual(1.01)
    // A filter that does not grow with the reduction would be far off.
    if (width > 2 * w) expect(Math.max(...expected.map((value, i) => Math.abs(value - data[i]!)))).toBeGreaterThan(20)
  })

  test('lets others have the thread', async () => {
    let turns = 0
    const timer = setInterval(() => turns++, 1)
    const [width, height] = [2000, 3000]
    await resizeBilinear({ data: new Uint8Array(width * height * 3), width, height }, 896, 896)
    clearInterval(timer)
    expect(turns).toBeGreaterThan(1)
  })
})

describe('pan and scan', () => {
  const { rows } = fixture('gemma3-pan-and-scan.json') as { rows: [number, number, number[][]][] }
  const options = checkPanAndScan(true)!

  test.each(rows)('height %i, width %i', (height, width, boxes) => {
    const got = panAndScanBoxes(width, height, options)
    expect(got.map(({ top, left, height, width }) => [top, left, height, width])).toEqual(boxes)
  })

  test('crops follow the whole image, each of them resized', async () => {
    const [width, height] = [40, 10]
    const data = noise(width * height * 3, 3)
    const views = await imageViews({ data, width, height }, 8, { minCropSize: 8, maxCrops: 4, minRatio: 1.2 })
    expect(views.length).toBe(5)
    const second = new Uint8Array(10 * 10 * 3)
    for (let y = 0; y < 10; y++) second.set(data.subarray((y * 40 + 10) * 3, (y * 40 + 20) * 3), y * 30)
    expect(views[2]).toEqual(await resizeBilinear({ data: second, width: 10, height: 10 }, 8, 8))
    expect((await imageViews({ data, width, height }, 8, undefined)).length).toBe(1)
  })

  test('options out of range are errors', () => {
    expect(checkPanAndScan(false)).toBe(undefined)
    throwsCode(() => checkPanAndScan(3), 'ERR_INVALID_ARGUMENT', /panAndScan/)
    throwsCode(
      () => checkPanAndScan({ maxCrops: 1 }),
      'ERR_INVALID_ARGUMENT',
      /maxCrops: expected an integer of at least 2/,
    )
    throwsCode(() => checkPanAndScan({ minRatio: Number.NaN }), 'ERR_INVALID_ARGUMENT', /minRatio/)
    throwsCode(() => checkPanAndScan({ minCropSize: 0 }), 'ERR_INVALID_ARGUMENT', /minCropSize/)
  })
})
