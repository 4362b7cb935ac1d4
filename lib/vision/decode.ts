/**
 * From the bytes of an image to RGB pixels, upright.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import { type CheckedLimits, type CheckedRaw, type ImageBytes, tooLarge } from './image-source.ts'
import { loadSharp } from './sharp.ts'

/** RGB, 8 bits per channel, rows from the top. */
export interface Pixels {
  readonly data: Uint8Array
  readonly width: number
  readonly height: number
}

/** Images that are decoded at a time: each takes as much memory as it has pixels, and sharp uses several threads for one. */
const mostAtOnce = 2

let running = 0
const waiting: (() => void)[] = []

/** By the first bytes of a file: only what is meant to be decoded reaches a decoder. */
export function imageFormat(bytes: Uint8Array): 'jpeg' | 'png' | 'webp' | 'gif' | 'avif' | undefined {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 64)).toString('latin1')
  if (text.startsWith('\xff\xd8\xff')) return 'jpeg'
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return 'png'
  if (/^GIF8[79]a/.test(text)) return 'gif'
  if (/^RIFF[\s\S]{4}WEBP/.test(text)) return 'webp'
  // The brand, or one of those it is compatible with (ISO/IEC 23000-22).
  if (/^[\s\S]{4}ftyp/.test(text) && /avi[fs]/.test(text.slice(8))) return 'avif'
  return undefined
}

/**
 * Decodes an image off the event loop. Turned as its EXIF orientation says; CMYK, grey, palettes, 16 bits and colour profiles become sRGB of
 * 8 bits; what is transparent is laid over white.
 *
 * @throws (rejects) ERR_INVALID_ARGUMENT for what is no JPEG, PNG, WebP, AVIF or GIF, or has more pixels than the limits;
 *   ERR_DATA_CORRUPT for a damaged or truncated one; ERR_NATIVE_MISSING without sharp.
 */
export async function decodeImage(image: ImageBytes, limits: CheckedLimits): Promise<Pixels> {
  if (image.kind === 'raw') return rgbOf(image.raw)
  const { bytes } = image
  const format = imageFormat(bytes)
  if (format === undefined) {
    const start = Buffer.from(bytes.subarray(0, 8)).toString('hex')
    const got = bytes.length === 0 ? 'no bytes' : `${bytes.length} bytes that begin with ${start}`
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `image: expected JPEG, PNG, WebP, AVIF or GIF, got ${got}`)
  }
  const sharp = await loadSharp()
  await turn()
  try {
    return await decodeFile(sharp, bytes, format, limits)
  } finally {
    // The turn goes to whoever waits longest.
    const next = waiting.shift()
    if (next) next()
    else running--
  }
}

async function turn(): Promise<void> {
  if (running < mostAtOnce) running++
  else await new Promise<void>((resolve) => waiting.push(resolve))
}

async function decodeFile(
  sharp: Awaited<ReturnType<typeof loadSharp>>,
  bytes: Uint8Array,
  format: string,
  { maxPixels }: CheckedLimits,
): Promise<Pixels> {
  const corrupt = (problem: string, cause?: unknown) =>
    new LapidaryError('ERR_DATA_CORRUPT', `image: the ${format} cannot be decoded: ${problem}`, { cause })
  // The limit is ours to report; sharp's own stays behind it, for headers that lie.
  const options = { limitInputPixels: maxPixels, failOn: 'truncated', sequentialRead: true, pages: 1 } as const
  let size: { width?: number; height?: number }
  try {
    size = await sharp(bytes, { ...options, limitInputPixels: false }).metadata()
  } catch (error) {
    throw corrupt((error as Error).message, error)
  }
  const { width = 0, height = 0 } = size
  if (width < 1 || height < 1) throw corrupt(`expected at least one pixel, got ${width} × ${height}`)
  if (width * height > maxPixels) throw tooLarge(width, height, maxPixels)
  try {
    const { data, info } = await sharp(bytes, options)
      .autoOrient()
      .flatten({ background: '#ffffff' })
      .toColourspace('srgb')
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true })
    return rgbOf({ data, width: info.width, height: info.height, channels: info.channels as 1 | 3 | 4 })
  } catch (error) {
    if (error instanceof LapidaryError) throw error
    throw corrupt((error as Error).message.trim(), error)
  }
}

/** Raw pixels as RGB. */
function rgbOf({ data, width, height, channels }: CheckedRaw): Pixels {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.length)
  if (channels === 3) return { data: bytes, width, height }
  const rgb = new Uint8Array(width * height * 3)
  for (let pixel = 0; pixel < width * height; pixel++) {
    const alpha = channels === 4 ? (bytes[pixel * 4 + 3] as number) : 255
    for (let channel = 0; channel < 3; channel++) {
      const value = channels === 1 ? (bytes[pixel] as number) : (bytes[pixel * 4 + channel] as number)
      rgb[pixel * 3 + channel] = Math.round((value * alpha + 255 * (255 - alpha)) / 255)
    }
  }
  return { data: rgb, width, height }
}
