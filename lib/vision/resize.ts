/**
 * Resizing as Pillow's BILINEAR does it, which the reference's preprocessing uses: a triangle filter that grows with the reduction, so that
 * every pixel counts (sharp's kernels are others).
 *
 * Pillow's arithmetic for 8 bits per channel, to the bit: columns first, then rows, each with weights of 22 fractional bits and results
 * rounded to 8 bits. `test/vision/resize.test.ts` compares with what Pillow gave and with the filter in double precision.
 * @module
 */
import { setImmediate } from 'node:timers/promises'
import type { Pixels } from './decode.ts'

const fractionBits = 22

/** Work is done in slices of about so many milliseconds, between which others have the thread. */
const slice = 8

/** The weights of one axis: output i is Σ weights[i · most + j] · input[first[i] + j] over j < count[i]. */
interface Axis {
  readonly first: Int32Array
  readonly count: Int32Array
  readonly weights: Int32Array
  readonly most: number
}

function axisOf(input: number, output: number): Axis {
  const scale = input / output
  // Enlarging interpolates between neighbours; reducing widens the triangle to all that a pixel covers.
  const support = Math.max(scale, 1)
  const most = Math.ceil(support) * 2 + 1
  const axis = {
    first: new Int32Array(output),
    count: new Int32Array(output),
    weights: new Int32Array(output * most),
    most,
  }
  const triangle = new Float64Array(most)
  for (let i = 0; i < output; i++) {
    const center = (i + 0.5) * scale
    const first = Math.max(0, Math.trunc(center - support + 0.5))
    const count = Math.min(input, Math.trunc(center + support + 0.5)) - first
    let sum = 0
    for (let j = 0; j < count; j++) {
      triangle[j] = Math.max(0, 1 - Math.abs((j + first - center + 0.5) / support))
      sum += triangle[j] as number
    }
    for (let j = 0; j < count; j++) {
      axis.weights[i * most + j] = Math.floor(0.5 + ((triangle[j] as number) / sum) * 2 ** fractionBits)
    }
    axis.first[i] = first
    axis.count[i] = count
  }
  return axis
}

/**
 * Resizes an image; the aspect ratio need not stay. Does not hold the event loop for more than a few milliseconds at a time.
 *
 * @returns RGB, width · height · 3 bytes; the image's own bytes where it has that size already.
 */
export async function resizeBilinear(image: Pixels, width: number, height: number): Promise<Uint8Array> {
  let { data } = image
  let until = performance.now() + slice
  const pause = async (): Promise<void> => {
    if (performance.now() < until) return
    await setImmediate()
    until = performance.now() + slice
  }
  if (image.width !== width) {
    const axis = axisOf(image.width, width)
    const out = new Uint8Array(width * image.height * 3)
    for (let row = 0; row < image.height; row++) {
      resizeRow(data, row * image.width * 3, out, row * width * 3, axis)
      await pause()
    }
    data = out
  }
  if (image.height !== height) {
    const axis = axisOf(image.height, height)
    const out = new Uint8Array(width * height * 3)
    const sums = new Int32Array(width * 3)
    for (let row = 0; row < height; row++) {
      mixRows(data, width * 3, out, row, axis, sums)
      await pause()
    }
    data = out
  }
  return data
}

const half = 2 ** (fractionBits - 1)

function resizeRow(input: Uint8Array, from: number, out: Uint8Array, to: number, axis: Axis): void {
  const { first, count, weights, most } = axis
  for (let x = 0; x < first.length; x++) {
    let red = half
    let green = half
    let blue = half
    let at = from + (first[x] as number) * 3
    const end = x * most + (count[x] as number)
    for (let j = x * most; j < end; j++, at += 3) {
      const weight = weights[j] as number
      red += (input[at] as number) * weight
      green += (input[at + 1] as number) * weight
      blue += (input[at + 2] as number) * weight
    }
    // Weights of 22 bits may add up to a little more than 1.
    out[to + x * 3] = Math.min(255, red >> fractionBits)
    out[to + x * 3 + 1] = Math.min(255, green >> fractionBits)
    out[to + x * 3 + 2] = Math.min(255, blue >> fractionBits)
  }
}

function mixRows(
  input: Uint8Array,
  rowBytes: number,
  out: Uint8Array,
  row: number,
  axis: Axis,
  sums: Int32Array,
): void {
  const { first, count, weights, most } = axis
  sums.fill(half)
  for (let j = 0; j < (count[row] as number); j++) {
    const weight = weights[row * most + j] as number
    const from = ((first[row] as number) + j) * rowBytes
    for (let at = 0; at < rowBytes; at++) sums[at] = (sums[at] as number) + (input[from + at] as number) * weight
  }
  for (let at = 0; at < rowBytes; at++) {
    out[row * rowBytes + at] = Math.min(255, (sums[at] as number) >> fractionBits)
  }
}
