/**
 * What an image may be given as, and its bytes.
 * @module
 */
import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { describeValue, LapidaryError } from '../errors.ts'

/** Pixels as they are: rows from the top, 8 bits per channel. A canvas's ImageData fits with `channels: 4`. */
export interface RawImage {
  readonly data: Uint8Array | Uint8ClampedArray
  readonly width: number
  readonly height: number
  /** 1 grey, 3 RGB, 4 RGB and alpha, which is laid over white. Default: what the number of bytes says. */
  readonly channels?: 1 | 3 | 4 | undefined
}

/**
 * An image: the path of a file, a `file:` URL, a `data:` URL (also as a string), the bytes of a file, a Blob, or raw pixels. Files are JPEG,
 * PNG, WebP, AVIF or GIF, of which the first frame counts. Remote URLs are not among them: see `RemoteImages`.
 */
export type ImageSource = string | URL | Uint8Array | ArrayBuffer | Blob | RawImage

/** Raw pixels, all decided. */
export type CheckedRaw = RawImage & { readonly channels: 1 | 3 | 4 }

/** What an image may cost before it is refused. */
export interface ImageLimits {
  /** Width times height. An image's header is read before memory is spent on its pixels, 3 to 8 bytes for each. Default 2^26 (67 million). */
  readonly maxPixels?: number | undefined
  /** Of the file, or of what a data URL encodes. Default 2^25 (32 MiB). */
  readonly maxBytes?: number | undefined
}

/** Limits, all decided. */
export type CheckedLimits = { readonly [K in keyof ImageLimits]-?: number }

/** @throws ERR_INVALID_ARGUMENT unless they are positive integers. */
export function checkLimits(limits: ImageLimits = {}): CheckedLimits {
  const { maxPixels = 2 ** 26, maxBytes = 2 ** 25 } = limits
  for (const [name, value] of Object.entries({ maxPixels, maxBytes })) {
    if (!Number.isSafeInteger(value) || value < 1) throw refuse(`${name}: expected a positive integer, got ${value}`)
  }
  return { maxPixels, maxBytes }
}

/** An image that has been read: bytes of a file, or raw pixels. */
export type ImageBytes =
  | { readonly kind: 'file'; readonly bytes: Uint8Array }
  | { readonly kind: 'raw'; readonly raw: CheckedRaw }

/**
 * The bytes of an image. Those of a caller's array are not copied.
 * @throws (rejects) ERR_INVALID_ARGUMENT for what is no image source, or larger than the limits; ERR_FILE.
 */
export async function readImage(source: ImageSource, limits: CheckedLimits): Promise<ImageBytes> {
  const file = (bytes: Uint8Array): ImageBytes => {
    checkSize(bytes.length, limits)
    return { kind: 'file', bytes }
  }
  if (typeof source === 'string') {
    if (/^data:/i.test(source)) return file(decodeDataUrl(source, limits))
    if (/^file:/i.test(source)) return file(await readFile(pathOf(new URL(source)), limits))
    if (/^[a-z][a-z0-9+.-]*:\/\//i.test(source)) throw refuseRemote(source)
    return file(await readFile(source, limits))
  }
  if (source instanceof URL) {
    if (source.protocol === 'data:') return file(decodeDataUrl(source.href, limits))
    if (source.protocol !== 'file:') throw refuseRemote(source.href)
    return file(await readFile(pathOf(source), limits))
  }
  if (source instanceof Uint8Array) return file(source)
  if (source instanceof ArrayBuffer) return file(new Uint8Array(source))
  if (source instanceof Blob) {
    checkSize(source.size, limits)
    return file(new Uint8Array(await source.arrayBuffer()))
  }
  return { kind: 'raw', raw: checkRaw(source, limits) }
}

/** A name for what an image holds: the same bytes have the same one. */
export function contentKey(image: ImageBytes): string {
  const hash = createHash('sha256')
  if (image.kind === 'file') return hash.update('file').update(image.bytes).digest('hex')
  const { data, width, height, channels } = image.raw
  return hash.update(`raw ${width} ${height} ${channels} `).update(data).digest('hex')
}

/**
 * What a data URL holds.
 * @throws ERR_INVALID_ARGUMENT if it is none, is not of an image, or encodes more than `maxBytes`, which is checked before it is decoded.
 */
export function decodeDataUrl(url: string, limits: ImageLimits = {}): Uint8Array {
  const checked = checkLimits(limits)
  const comma = typeof url === 'string' ? url.slice(0, 256).indexOf(',') : -1
  const [, type = '', parameters = ''] =
    /^data:([^;,]*)((?:;[^;,]*)*)$/i.exec(comma < 0 ? '' : url.slice(0, comma)) ?? []
  if (comma < 0 || !/^(image\/[\w.+-]+|application\/octet-stream)?$/i.test(type.trim())) {
    const got = comma < 0 ? describeStart(url) : `one of ${type || 'text'}`
    throw refuse(`expected a data URL of an image (data:image/png;base64,…), got ${got}`)
  }
  const isBase64 = /;\s*base64\s*$/i.test(parameters)
  // Three bytes in four characters; escapes shrink.
  checkSize(isBase64 ? Math.floor(((url.length - comma - 1) * 3) / 4) - 2 : (url.length - comma - 1) / 3, checked)
  const content = url.slice(comma + 1)
  if (!isBase64) return percentDecode(content)
  const text = content.includes('%') ? Buffer.from(percentDecode(content)).toString('latin1') : content
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(text)) throw refuse('expected base64 in the data URL, got other characters')
  return Buffer.from(text, 'base64')
}

function percentDecode(text: string): Uint8Array {
  const bytes = Buffer.from(text, 'latin1')
  const out = Buffer.alloc(bytes.length)
  let length = 0
  for (let at = 0; at < bytes.length; at++) {
    const hex = bytes[at] === 0x25 ? bytes.toString('latin1', at + 1, at + 3) : ''
    if (/^[0-9a-f]{2}$/i.test(hex)) {
      out[length++] = Number.parseInt(hex, 16)
      at += 2
    } else {
      out[length++] = bytes[at] as number
    }
  }
  return out.subarray(0, length)
}

function checkSize(bytes: number, { maxBytes }: CheckedLimits): void {
  if (bytes > maxBytes) throw refuse(`expected at most ${maxBytes} bytes, got ${Math.ceil(bytes)}`)
}

function pathOf(url: URL): string {
  try {
    return fileURLToPath(url)
  } catch (cause) {
    throw new LapidaryError('ERR_FILE', `image: ${describeStart(url.href)}: ${(cause as Error).message}`, { cause })
  }
}

/** A file is read after its size is known: never a pipe or a device, which have no end. */
async function readFile(path: string, limits: CheckedLimits): Promise<Uint8Array> {
  const fail = (problem: string, cause?: unknown) =>
    new LapidaryError('ERR_FILE', `image: ${describeStart(path)}: ${problem}`, { cause })
  if (path === '' || path.includes('\0')) throw fail('expected the path of a file')
  try {
    await using file = await openFile(path)
    const stats = await file.stat()
    if (!stats.isFile()) throw fail('expected a file, got something else')
    checkSize(stats.size, limits)
    const bytes = Buffer.alloc(stats.size)
    let length = 0
    while (length < bytes.length) {
      const { bytesRead } = await file.read(bytes, length, bytes.length - length, length)
      if (bytesRead === 0) break
      length += bytesRead
    }
    return bytes.subarray(0, length)
  } catch (error) {
    throw error instanceof LapidaryError ? error : fail((error as Error).message, error)
  }
}

/** File handles of Node 20 are not async-disposable everywhere. */
async function openFile(path: string): Promise<Awaited<ReturnType<typeof open>> & AsyncDisposable> {
  const file = await open(path, 'r')
  return Object.assign(file, { [Symbol.asyncDispose]: () => file.close() })
}

function checkRaw(source: unknown, { maxPixels }: CheckedLimits): CheckedRaw {
  const { data, width, height, channels } = (source ?? {}) as Partial<RawImage>
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray)) {
    throw refuse(
      `expected a path, file: or data: URL, bytes, Blob, or raw pixels { data, width, height }, got ${describeValue(source)}`,
    )
  }
  const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) > 0
  if (!isSize(width) || !isSize(height)) {
    throw refuse(`raw pixels: expected a width and a height of at least 1, got ${width} × ${height}`)
  }
  if (width * height > maxPixels) throw tooLarge(width, height, maxPixels)
  const count = channels ?? data.length / (width * height)
  if ((count !== 1 && count !== 3 && count !== 4) || data.length !== width * height * count) {
    const expected = `${width} × ${height} pixels of ${channels ?? '1, 3 or 4'} channels`
    throw refuse(`raw pixels: expected ${expected}, got ${data.length} bytes`)
  }
  return { data, width, height, channels: count }
}

/** @internal */
export function tooLarge(width: number, height: number, maxPixels: number): LapidaryError {
  return refuse(`expected at most ${maxPixels} pixels, got ${width} × ${height} = ${width * height}`)
}

function refuse(what: string): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `image: ${what}`)
}

function refuseRemote(url: string): LapidaryError {
  return refuse(
    `expected a path or a file: or data: URL, got ${describeStart(url)}: fetch remote images with RemoteImages`,
  )
}

/** Enough of a text to know it by. */
function describeStart(text: unknown): string {
  if (typeof text !== 'string') return describeValue(text)
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}…` : text)
}
