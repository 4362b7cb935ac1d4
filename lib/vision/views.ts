/**
 * The views of an image that a model is shown: all of it, and with pan and scan also crops.
 * @module
 */
import { describeValue, LapidaryError } from '../errors.ts'
import type { Pixels } from './decode.ts'
import { resizeBilinear } from './resize.ts'

/** Crops beside the whole image, for images that are far from square or hold small text (Gemma 3 report, arXiv:2503.19786, §2.1). */
export interface PanAndScanOptions {
  /** Pixels: no side of a crop is shorter. Default 256. */
  readonly minCropSize?: number | undefined
  /** Default 4. */
  readonly maxCrops?: number | undefined
  /** The longer side over the shorter one, from which on there are crops. Default 1.2. */
  readonly minRatio?: number | undefined
}

/** Options, all decided. */
export type PanAndScan = { readonly [K in keyof PanAndScanOptions]-?: number }

/** Part of an image, in pixels. */
export interface Box {
  readonly top: number
  readonly left: number
  readonly height: number
  readonly width: number
}

/** @throws ERR_INVALID_ARGUMENT unless it is true, false, or numbers in range. */
export function checkPanAndScan(given: unknown): PanAndScan | undefined {
  if (given === undefined || given === false) return undefined
  if (given !== true && (typeof given !== 'object' || given === null)) {
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `panAndScan: expected true or options, got ${describeValue(given)}`)
  }
  const { minCropSize = 256, maxCrops = 4, minRatio = 1.2 } = given === true ? {} : (given as PanAndScanOptions)
  const check = (name: string, value: unknown, low: number, integer: boolean) => {
    if (typeof value === 'number' && value >= low && Number.isFinite(value) && (!integer || Number.isInteger(value)))
      return
    const expected = `${integer ? 'an integer' : 'a number'} of at least ${low}`
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `panAndScan: ${name}: expected ${expected}, got ${String(value)}`)
  }
  check('minCropSize', minCropSize, 1, true)
  check('maxCrops', maxCrops, 2, true)
  check('minRatio', minRatio, 1, false)
  return { minCropSize, maxCrops, minRatio }
}

/** The crops of an image: one row of them, or one column; none where they would be too small or the image is about square. */
export function panAndScanBoxes(width: number, height: number, options: PanAndScan): Box[] {
  const { minCropSize, maxCrops, minRatio } = options
  const [long, short] = width >= height ? [width, height] : [height, width]
  if (long / short < minRatio) return []
  const wanted = Math.min(Math.floor(long / short + 0.5), Math.floor(long / minCropSize))
  const count = Math.min(maxCrops, Math.max(2, wanted))
  const size = Math.ceil(long / count)
  if (Math.min(size, short) < minCropSize) return []
  return Array.from({ length: count }, (_, index): Box => {
    const from = index * size
    const length = Math.min(size, long - from)
    return width >= height
      ? { top: 0, left: from, height, width: length }
      : { top: from, left: 0, height: length, width }
  })
}

/** Every view as the model takes it: RGB, size · size · 3 bytes. */
export async function imageViews(
  image: Pixels,
  size: number,
  panAndScan: PanAndScan | undefined,
): Promise<Uint8Array[]> {
  const boxes = panAndScan ? panAndScanBoxes(image.width, image.height, panAndScan) : []
  const views = [await resizeBilinear(image, size, size)]
  for (const box of boxes) views.push(await resizeBilinear(crop(image, box), size, size))
  return views
}

function crop({ data, width: stride }: Pixels, { top, left, height, width }: Box): Pixels {
  const cut = new Uint8Array(width * height * 3)
  for (let row = 0; row < height; row++) {
    const from = ((top + row) * stride + left) * 3
    cut.set(data.subarray(from, from + width * 3), row * width * 3)
  }
  return { data: cut, width, height }
}
