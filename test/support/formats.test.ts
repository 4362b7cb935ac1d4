/** The tests' own encoders and decoders, checked against each other and against bytes written by hand. */

import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import {
  type BlockDType,
  blockFormats,
  decodeBlocks,
  decodeSfp8,
  encodeBlocks,
  encodeSfp8,
  randomBlock,
  randomWeights,
  weightForms,
  weightValues,
} from './formats.ts'
import { Random } from './random.ts'

const zeros = (count: number) => new Array<number>(count).fill(0)

/** What ggml itself makes of blocks: the file says how it was made. */
const ggmlBlocks = JSON.parse(readFileSync(new URL('../fixtures/ggml-blocks.json', import.meta.url), 'utf8')) as {
  readonly formats: Readonly<Record<BlockDType, { readonly blocks: string; readonly values: string }>>
}

describe('block formats', () => {
  for (const dtype of Object.keys(blockFormats) as BlockDType[]) {
    test(`${dtype}: decode(encode(fields)) gives the fields back`, () => {
      const random = Random.named(dtype)
      for (let i = 0; i < 20; i++) {
        const fields = randomBlock(dtype, random)
        expect(blockFormats[dtype].decode(encodeBlocks(dtype, [fields]))).toEqual(fields)
      }
    })
  }

  test.each(Object.keys(blockFormats) as BlockDType[])('%s: ggml decodes the same weights', (dtype) => {
    const { blocks, values } = ggmlBlocks.formats[dtype]
    const bytes = Uint8Array.from(Buffer.from(values, 'base64'))
    const expected = new Float32Array(bytes.buffer)
    expect(expected.length).toBe(512)
    expect(Float32Array.from(decodeBlocks(dtype, Buffer.from(blocks, 'base64')))).toEqual(expected)
  })

  test('q4_0 by hand: d = 0.5, byte j holds weights j (low) and j + 16 (high)', () => {
    const bytes = Uint8Array.from([0x00, 0x38, 0x1f, ...new Array(15).fill(0x88)])
    const weights = decodeBlocks('q4_0', bytes)
    expect(weights[0]).toBe(0.5 * 7)
    expect(weights[16]).toBe(0.5 * -7)
    expect(weights[1]).toBe(0)
  })

  test('q4_k by hand: sub-block 5 takes its upper scale bits from byte 1', () => {
    // d = 1, dmin = 1; b[1] = 2 << 6 | 3, b[5] = 1 << 6 | 4, b[9] = 0xA7: sc[5] = 0x7 | 2 << 4, mn[5] = 0xA | 1 << 4
    const scales = zeros(12)
    scales[1] = (2 << 6) | 3
    scales[5] = (1 << 6) | 4
    scales[9] = 0xa7
    const bytes = Uint8Array.from([0x00, 0x3c, 0x00, 0x3c, ...scales, ...zeros(128)])
    bytes[16 + 64] = 0x90 // chunk 2, high nibble: weight 160, the first of sub-block 5
    const weights = decodeBlocks('q4_k', bytes)
    expect(weights[160]).toBe((7 + 32) * 9 - (10 + 16))
    expect(weights[161]).toBe(-(10 + 16))
    expect(weights[32]).toBe(-4)
  })

  test('q6_k by hand: weight 128 + 97 is in the high nibble of ql[64 + 33]', () => {
    const bytes = new Uint8Array(210)
    bytes[64 + 33] = 0x50
    bytes[128 + 32 + 1] = 0b11 << 6
    bytes[192 + 8 + 6] = 0xfe // −2
    bytes[209] = 0x3c
    expect(decodeBlocks('q6_k', bytes)[225]).toBe(-2 * (5 + 48 - 32))
  })

  test('q3_k by hand: weight 128 + 97 has bit 2 in bit 7 of hmask[1]', () => {
    const bytes = new Uint8Array(110)
    bytes[32 + 32 + 1] = 0b10 << 6 // qs[33], the fourth run of the second half
    bytes[1] = 1 << 7
    bytes[96 + 6] = 0x50 // scale 14: its lower four bits, and 0b01 above them
    bytes[104 + 2] = 0b01 << 6
    bytes[109] = 0x3c
    expect(decodeBlocks('q3_k', bytes)[225]).toBe((5 + 16 - 32) * (2 + 4 - 4))
    expect(decodeBlocks('q3_k', bytes)[224]).toBe((5 + 16 - 32) * (0 - 4))
  })

  test('iq4_xs by hand: sub-block 5 takes its upper scale bits from byte 3', () => {
    const bytes = new Uint8Array(136)
    bytes[1] = 0x3c
    bytes[3] = 0b10 << 2 // scales_h, bits 10 and 11
    bytes[4 + 2] = 0x90
    bytes[8 + 16 * 5 + 3] = 0xf0 // high nibble: weight 160 + 16 + 3
    expect(decodeBlocks('iq4_xs', bytes)[179]).toBe((9 + 32 - 32) * 113)
    expect(decodeBlocks('iq4_xs', bytes)[163]).toBe((9 + 32 - 32) * -127)
  })
})

describe('sfp8', () => {
  test('every byte but 0x80 survives', () => {
    for (let byte = 0; byte < 256; byte++) if (byte !== 128) expect(encodeSfp8(decodeSfp8(byte))).toBe(byte)
  })
  test('ends of the ranges', () => {
    expect(decodeSfp8(127)).toBe(1.875)
    expect(decodeSfp8(64)).toBe(2 ** -7)
    expect(decodeSfp8(63)).toBe(1.75 * 2 ** -8)
    expect(decodeSfp8(1)).toBe(1.25 * 2 ** -23)
    expect(encodeSfp8(0.007568359375)).toBe(64)
  })
})

describe('integer formats', () => {
  for (const form of weightForms.filter(({ format }) => format !== 'stored')) {
    test(`${form.name}: what was encoded is decoded`, () => {
      const encoded = randomWeights(Random.named(form.name), form, 24, 256)
      expect(weightValues(form, encoded)).toEqual(encoded.values)
    })
  }
})
