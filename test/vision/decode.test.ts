/** Decoding: every format and colour model, every kind of source, everything that is refused. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { deflateSync } from 'node:zlib'
import sharp from 'sharp'
import { afterAll, describe, expect, test } from 'vitest'
import { decodeImage, imageFormat, type Pixels } from '../../lib/vision/decode.ts'
import { checkLimits, contentKey, decodeDataUrl, type ImageSource, readImage } from '../../lib/vision/image-source.ts'
import { importSharp } from '../../lib/vision/sharp.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'

const limits = checkLimits()
const folder = mkdtempSync(path.join(tmpdir(), 'lapidary-images-'))
afterAll(() => rmSync(folder, { recursive: true }))

const decode = async (source: ImageSource): Promise<Pixels> => decodeImage(await readImage(source, limits), limits)

/** Left half red, right half blue, a green strip at the top: which way is up can be told. */
const [width, height] = [32, 16]
const picture = Buffer.alloc(width * height * 3)
for (let y = 0; y < height; y++)
  for (let x = 0; x < width; x++) {
    const color = y < 4 ? [0, 255, 0] : x < width / 2 ? [255, 0, 0] : [0, 0, 255]
    picture.set(color, (y * width + x) * 3)
  }
const source = () => sharp(picture, { raw: { width, height, channels: 3 } })
const pixel = ({ data, width }: Pixels, x: number, y: number) => [
  ...data.subarray((y * width + x) * 3, (y * width + x) * 3 + 3),
]

function near(got: readonly number[], expected: readonly number[], tolerance: number): void {
  for (const [channel, value] of got.entries())
    expect(Math.abs(value - expected[channel]!)).toBeLessThanOrEqual(tolerance)
}

function isPicture(pixels: Pixels, tolerance: number): void {
  expect([pixels.width, pixels.height]).toEqual([width, height])
  near(pixel(pixels, 2, 1), [0, 255, 0], tolerance)
  near(pixel(pixels, 2, 12), [255, 0, 0], tolerance)
  near(pixel(pixels, 29, 12), [0, 0, 255], tolerance)
}

describe('formats', () => {
  const lossless = { lossless: true }
  test.each([
    ['png', () => source().png(), 0],
    ['png', () => source().png({ palette: true }), 2],
    ['png', () => source().png({ progressive: true }), 0],
    ['jpeg', () => source().jpeg({ quality: 100, chromaSubsampling: '4:4:4' }), 6],
    ['jpeg', () => source().jpeg({ quality: 100, progressive: true, chromaSubsampling: '4:4:4' }), 6],
    ['webp', () => source().webp(lossless), 0],
    ['avif', () => source().avif({ quality: 100, chromaSubsampling: '4:4:4' }), 12],
    ['gif', () => source().gif(), 8],
  ] as const)('%s', async (format, encode, tolerance) => {
    const bytes = await encode().toBuffer()
    expect(imageFormat(bytes)).toBe(format)
    isPicture(await decode(bytes), tolerance)
  })

  test('of an animated GIF the first frame counts', async () => {
    const frames = Buffer.concat([picture, Buffer.alloc(picture.length, 77)])
    const raw = { width, height: height * 2, channels: 3, pageHeight: height } as const
    const bytes = await sharp(frames, { raw })
      .gif({ delay: [10, 10] })
      .toBuffer()
    expect((await sharp(bytes).metadata()).pages).toBe(2)
    isPicture(await decode(bytes), 8)
  })

  test.each([1, 2, 3, 4, 5, 6, 7, 8])('EXIF orientation %i', async (orientation) => {
    // Which side of the upright picture a stored row and column stand for (Exif 2.3, table 6).
    const [w, h] = [width - 1, height - 1]
    const upright: Record<number, (x: number, y: number) => [number, number]> = {
      1: (x, y) => [x, y],
      2: (x, y) => [w - x, y],
      3: (x, y) => [w - x, h - y],
      4: (x, y) => [x, h - y],
      5: (x, y) => [y, x],
      6: (x, y) => [w - y, x],
      7: (x, y) => [w - y, h - x],
      8: (x, y) => [y, h - x],
    }
    const raw = {
      width: orientation < 5 ? width : height,
      height: orientation < 5 ? height : width,
      channels: 3,
    } as const
    const data = Buffer.alloc(picture.length)
    for (let y = 0; y < raw.height; y++)
      for (let x = 0; x < raw.width; x++) {
        const [fromX, fromY] = upright[orientation]!(x, y)
        picture.copy(data, (y * raw.width + x) * 3, (fromY * width + fromX) * 3, (fromY * width + fromX + 1) * 3)
      }
    const bytes = await sharp(data, { raw }).withMetadata({ orientation }).png().toBuffer()
    isPicture(await decode(bytes), 0)
  })

  test('grey, one channel', async () => {
    const bytes = await sharp(Buffer.from([0, 100, 200, 255]), { raw: { width: 2, height: 2, channels: 1 } })
      .toColourspace('b-w')
      .png()
      .toBuffer()
    expect((await sharp(bytes).metadata()).channels).toBe(1)
    const pixels = await decode(bytes)
    expect([...pixels.data]).toEqual([0, 0, 0, 100, 100, 100, 200, 200, 200, 255, 255, 255])
  })

  test('grey and alpha', async () => {
    const raw = { width: 2, height: 1, channels: 2 } as const
    const bytes = await sharp(Buffer.from([10, 255, 10, 0]), { raw })
      .toColourspace('b-w')
      .png()
      .toBuffer()
    expect([...(await decode(bytes)).data]).toEqual([10, 10, 10, 255, 255, 255])
  })

  test('16 bits', async () => {
    const samples = Uint16Array.from([0, 32768, 65535, 257, 514, 65278])
    const bytes = png16(2, 1, samples)
    expect((await sharp(bytes).metadata()).depth).toBe('ushort')
    near([...(await decode(bytes)).data], [0, 128, 255, 1, 2, 254], 1)
  })

  test('CMYK', async () => {
    const bytes = await source().toColourspace('cmyk').jpeg({ quality: 100 }).toBuffer()
    expect((await sharp(bytes).metadata()).space).toBe('cmyk')
    const pixels = await decode(bytes)
    expect([pixels.width, pixels.height]).toEqual([width, height])
    // Print colours are duller; which is which can be told.
    const [red, green, blue] = [pixel(pixels, 2, 12), pixel(pixels, 2, 1), pixel(pixels, 29, 12)]
    expect(red[0]! - Math.max(red[1]!, red[2]!)).toBeGreaterThan(80)
    expect(green[1]! - Math.max(green[0]!, green[2]!)).toBeGreaterThan(10)
    expect(blue[2]! - Math.max(blue[0]!, blue[1]!)).toBeGreaterThan(60)
  })

  test('alpha is laid over white', async () => {
    const raw = { width: 3, height: 1, channels: 4 } as const
    const bytes = await sharp(Buffer.from([9, 9, 9, 0, 100, 50, 0, 255, 0, 0, 0, 128]), { raw })
      .png()
      .toBuffer()
    near([...(await decode(bytes)).data], [255, 255, 255, 100, 50, 0, 127, 127, 127], 1)
  })
})

/** A PNG of 16-bit RGB, from the specification: sharp writes none from raw bytes. */
function png16(width: number, height: number, samples: Uint16Array): Buffer {
  const rows: Buffer[] = []
  for (let y = 0; y < height; y++) {
    const row = Buffer.alloc(1 + width * 6)
    for (let i = 0; i < width * 3; i++) row.writeUInt16BE(samples[y * width * 3 + i]!, 1 + i * 2)
    rows.push(row)
  }
  return pngOf(width, height, 16, 2, deflateSync(Buffer.concat(rows)))
}

function pngOf(width: number, height: number, depth: number, color: number, data: Buffer): Buffer {
  const header = Buffer.alloc(13)
  header.writeUInt32BE(width, 0)
  header.writeUInt32BE(height, 4)
  header[8] = depth
  header[9] = color
  return Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    chunk('IDAT', data),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), data])
  let crc = 0xffffffff
  for (const byte of body) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0)
  }
  const out = Buffer.alloc(body.length + 8)
  out.writeUInt32BE(data.length, 0)
  body.copy(out, 4)
  out.writeUInt32BE((crc ^ 0xffffffff) >>> 0, body.length + 4)
  return out
}

describe('sources', async () => {
  const bytes = await source().png().toBuffer()
  const file = path.join(folder, 'a picture, 100%.png')
  writeFileSync(file, bytes)
  test.each<[string, ImageSource]>([
    ['a path', file],
    ['a file: URL', pathToFileURL(file)],
    ['a file: URL as a string', pathToFileURL(file).href],
    ['a Buffer', bytes],
    [
      'a view into a larger array',
      new Uint8Array(Buffer.concat([Buffer.alloc(7), bytes, Buffer.alloc(5)])).subarray(7, 7 + bytes.length),
    ],
    ['an ArrayBuffer', Uint8Array.from(bytes).buffer],
    ['a Blob', new Blob([Uint8Array.from(bytes)])],
    ['a data URL', `data:image/png;base64,${bytes.toString('base64')}`],
    ['a data URL object', new URL(`data:image/png;base64,${bytes.toString('base64')}`)],
    ['a data URL with parameters', `data:image/png;name=x;base64,${bytes.toString('base64')}`],
    ['a data URL with escapes', `data:,${[...bytes].map((b) => `%${b.toString(16).padStart(2, '0')}`).join('')}`],
    ['raw RGB', { data: picture, width, height }],
    ['raw RGB, clamped', { data: new Uint8ClampedArray(picture), width, height, channels: 3 }],
  ])('%s', async (_, image) => {
    isPicture(await decode(image), 0)
  })

  test('raw RGBA and grey', async () => {
    const rgba = { data: Uint8Array.of(10, 20, 30, 255, 10, 20, 30, 0), width: 2, height: 1 }
    expect([...(await decode(rgba)).data]).toEqual([10, 20, 30, 255, 255, 255])
    expect([...(await decode({ data: Uint8Array.of(7, 9), width: 1, height: 2 })).data]).toEqual([7, 7, 7, 9, 9, 9])
  })

  test('the same bytes have the same key, others another', async () => {
    const key = async (image: ImageSource) => contentKey(await readImage(image, limits))
    const other = Buffer.from(bytes)
    other[other.length - 1]! ^= 1
    expect(await key(bytes)).toBe(await key(file))
    expect(await key(other)).not.toBe(await key(bytes))
    const raw = { data: picture, width, height }
    expect(await key(raw)).toBe(await key({ ...raw, channels: 3 }))
    expect(await key(raw)).not.toBe(await key({ ...raw, width: height, height: width }))
  })
})

test('the event loop turns while an image is decoded', async () => {
  const [side, channels] = [2000, 3] as const
  const noise = Buffer.alloc(side * side * channels, Buffer.from(Array.from({ length: 997 }, (_, i) => (i * i) & 255)))
  const bytes = await sharp(noise, { raw: { width: side, height: side, channels } })
    .png()
    .toBuffer()
  let [turns, done] = [0, false]
  const turn = () => {
    turns++
    if (!done) setImmediate(turn)
  }
  const decoded = decode(bytes)
  setImmediate(turn)
  expect((await decoded).data.length).toBe(noise.length)
  done = true
  // Were it decoded in one piece on this thread, there would be a handful.
  expect(turns).toBeGreaterThan(50)
})

describe('what is refused', async () => {
  const png = await source().png().toBuffer()
  const truncated = async (bytes: Buffer) =>
    [bytes.subarray(0, Math.floor(bytes.length / 2)), 'ERR_DATA_CORRUPT'] as const
  const noise = Buffer.alloc(96 * 96 * 3)
  for (let i = 0; i < noise.length; i++) noise[i] = (Math.imul(i, 2654435761) >>> 13) & 255
  const large = () => sharp(noise, { raw: { width: 96, height: 96, channels: 3 } })

  test.each([
    [
      'text',
      Buffer.from('hello, world'),
      /expected JPEG, PNG, WebP, AVIF or GIF, got 12 bytes that begin with 68656c6c/,
    ],
    ['nothing', Buffer.alloc(0), /got no bytes/],
    ['SVG, which names other files', Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>'), /begin with 3c737667/],
    ['TIFF', Buffer.from('II*\0\0\0\0\0'), /expected JPEG/],
    ['a PDF', Buffer.from('%PDF-1.7'), /expected JPEG/],
  ])('%s', async (_, bytes, message) => {
    await rejectsCode(decode(bytes), 'ERR_INVALID_ARGUMENT', message)
  })

  test.each([
    ['PNG', () => large().png()],
    ['JPEG', () => large().jpeg()],
    ['WebP', () => large().webp()],
    ['AVIF', () => large().avif({ effort: 0 })],
    ['GIF', () => large().gif()],
  ])('a truncated %s', async (_, encode) => {
    const [bytes, code] = await truncated(await encode().toBuffer())
    await rejectsCode(decode(bytes), code, /cannot be decoded/)
  })

  test('a signature alone', async () => {
    await rejectsCode(decode(png.subarray(0, 8)), 'ERR_DATA_CORRUPT', /png/)
    await rejectsCode(decode(Buffer.from([0xff, 0xd8, 0xff])), 'ERR_DATA_CORRUPT', /jpeg/)
  })

  test('no pixels', async () => {
    await rejectsCode(decode(pngOf(0, 5, 8, 2, deflateSync(Buffer.alloc(0)))), 'ERR_DATA_CORRUPT', /png/)
    await rejectsCode(decode({ data: new Uint8Array(0), width: 0, height: 4 }), 'ERR_INVALID_ARGUMENT', /0 × 4/)
  })

  test('50,000 × 50,000 pixels, before memory is spent on them', async () => {
    // 7.5 GB of zeros in a file of a few hundred bytes, were it whole.
    const bomb = pngOf(50_000, 50_000, 8, 2, deflateSync(Buffer.alloc(200_000)))
    expect(bomb.length).toBeLessThan(1000)
    const before = process.memoryUsage().rss
    await rejectsCode(decode(bomb), 'ERR_INVALID_ARGUMENT', /at most 67108864 pixels, got 50000 × 50000 = 2500000000/)
    expect(process.memoryUsage().rss - before).toBeLessThan(200 * 2 ** 20)
    const raw = { data: new Uint8Array(3), width: 50_000, height: 50_000 }
    await rejectsCode(decode(raw), 'ERR_INVALID_ARGUMENT', /at most 67108864 pixels/)
  })

  test('so many of other formats, as their headers say', async () => {
    const size = 50_000
    const jpeg = await source().jpeg().toBuffer()
    const frame = jpeg.indexOf(Buffer.from([0xff, 0xc0])) // SOF0: length, precision, height, width (ITU T.81, B.2.2)
    expect(frame).toBeGreaterThan(0)
    jpeg.writeUInt16BE(size, frame + 5)
    jpeg.writeUInt16BE(size, frame + 7)
    const gif = await source().gif().toBuffer()
    const image = gif.indexOf(Buffer.from([0x2c, 0, 0, 0, 0, width, 0, height, 0])) // GIF 89a, 20: the place, then the size
    expect(image).toBeGreaterThan(0)
    for (const at of [6, 8, image + 5, image + 7]) gif.writeUInt16LE(size, at)
    const before = process.memoryUsage().rss
    for (const bytes of [jpeg, gif]) {
      await rejectsCode(decode(bytes), 'ERR_INVALID_ARGUMENT', /at most 67108864 pixels, got 50000 × 50000/)
    }
    expect(process.memoryUsage().rss - before).toBeLessThan(200 * 2 ** 20)
  })

  test('more pixels or bytes than the caller allows', async () => {
    const few = checkLimits({ maxPixels: width * height - 1 })
    await rejectsCode(decodeImage(await readImage(png, few), few), 'ERR_INVALID_ARGUMENT', /at most 511 pixels/)
    const small = checkLimits({ maxBytes: png.length - 1 })
    const file = path.join(folder, 'small.png')
    writeFileSync(file, png)
    for (const image of [
      png,
      file,
      new Blob([Uint8Array.from(png)]),
      `data:image/png;base64,${png.toString('base64')}`,
    ]) {
      await rejectsCode(readImage(image, small), 'ERR_INVALID_ARGUMENT', new RegExp(`at most ${png.length - 1} bytes`))
    }
    throwsCode(() => checkLimits({ maxPixels: 0 }), 'ERR_INVALID_ARGUMENT', /maxPixels/)
    throwsCode(() => checkLimits({ maxBytes: 1.5 }), 'ERR_INVALID_ARGUMENT', /maxBytes/)
  })

  test('files that are none', async () => {
    await rejectsCode(decode(path.join(folder, 'absent.png')), 'ERR_FILE', /absent\.png.*ENOENT/)
    await rejectsCode(decode(folder), 'ERR_FILE')
    await rejectsCode(decode('/dev/zero'), 'ERR_FILE', /expected a file, got something else/)
    await rejectsCode(decode(''), 'ERR_FILE')
    await rejectsCode(decode('a\0b'), 'ERR_FILE')
    await rejectsCode(decode(new URL('file://elsewhere/picture.png')), 'ERR_FILE')
  })

  test('remote URLs, which are RemoteImages’ business', async () => {
    for (const url of [
      'https://example.com/a.png',
      new URL('http://127.0.0.1/'),
      'ftp://example.com/a',
      'HTTPS://example.com/a.png',
    ]) {
      await rejectsCode(decode(url), 'ERR_INVALID_ARGUMENT', /RemoteImages/)
    }
  })

  test('data URLs that are none, or of something else', () => {
    for (const url of ['data:', 'data:image/png;base64', 'data:text/html,<b>', 'x', 7 as never]) {
      throwsCode(() => decodeDataUrl(url), 'ERR_INVALID_ARGUMENT', /data URL/)
    }
    throwsCode(() => decodeDataUrl('data:image/png;base64,@@@@'), 'ERR_INVALID_ARGUMENT', /base64/)
    throwsCode(
      () => decodeDataUrl(`data:image/png;base64,${'A'.repeat(400)}`, { maxBytes: 200 }),
      'ERR_INVALID_ARGUMENT',
      /200 bytes/,
    )
  })

  test.each([
    ['null', null],
    ['a number', 7],
    ['an array', [1, 2, 3]],
    ['pixels without a size', { data: new Uint8Array(3) }],
    ['too few bytes', { data: new Uint8Array(11), width: 2, height: 2 }],
    ['channels that do not fit', { data: new Uint8Array(12), width: 2, height: 2, channels: 4 }],
    ['a negative size', { data: new Uint8Array(12), width: -2, height: -2 }],
    ['floats', { data: new Float32Array(12), width: 2, height: 2 }],
  ])('%s', async (_, image) => {
    await rejectsCode(decode(image as unknown as ImageSource), 'ERR_INVALID_ARGUMENT', /image: /)
  })

  test('without sharp the error says what to install', async () => {
    const missing = Object.assign(new Error('Cannot find package'), { code: 'ERR_MODULE_NOT_FOUND' })
    await rejectsCode(
      importSharp(() => Promise.reject(missing)),
      'ERR_NATIVE_MISSING',
      /not installed: npm install sharp@/,
    )
    const broken = () => Promise.reject(new Error('Could not load the "sharp" module\nmore'))
    await rejectsCode(
      importSharp(broken),
      'ERR_NATIVE_MISSING',
      /does not load: Could not load the "sharp" module: npm/,
    )
  })
})
