/**
 * Stored weight formats for tests: encoders and decoders in double precision, written from the formats' definitions (docs/formats.md)
 * and sharing nothing with lib/ or native/.
 *
 * A block's *fields* are its numbers before they are squeezed into bytes: encode() and decode() turn fields into bytes and back, and
 * the formula turns fields into weights. Weights are exact in double precision; f32 results are compared with Math.fround of them.
 */

import { type BlockDType, type HostDType, type HostTensor, hostTensor, rawTensor } from './host-tensor.ts'
import { fromBits, isPlain, round, toBits } from './numbers.ts'
import { Random } from './random.ts'

export type { BlockDType }
export type StoredDType = 'f32' | 'f16' | 'bf16' | 'sfp8' | BlockDType

/** The numbers of one block. Which ones a format has, and their ranges, is in `blockFormats`. */
export interface BlockFields {
  readonly d: number
  /** q4_1, q5_1: the minimum m. K-quants: dmin. */
  readonly m?: number
  /** K-quants: scales and minimums of the sub-blocks. */
  readonly sc?: readonly number[]
  readonly mn?: readonly number[]
  readonly q: readonly number[]
}

interface BlockFormat {
  readonly weights: number
  readonly bytes: number
  /** Inclusive ranges of q, sc and mn. */
  readonly q: readonly [number, number]
  readonly sc?: readonly [number, number]
  readonly subBlocks?: number
  /** The largest |number| that a code stands for, where that is not a code's own size. */
  readonly largest?: number
  readonly hasMinimum?: boolean
  encode(fields: BlockFields, out: Uint8Array): void
  decode(bytes: Uint8Array): BlockFields
  weight(fields: BlockFields, j: number): number
}

const indices = (count: number) => Array.from({ length: count }, (_, i) => i)
const signed = (byte: number) => (byte << 24) >> 24

function putF16(out: Uint8Array, at: number, value: number): void {
  const bits = toBits('f16', value)
  out[at] = bits & 255
  out[at + 1] = bits >> 8
}
const getF16 = (bytes: Uint8Array, at: number) => fromBits('f16', bytes[at]! | (bytes[at + 1]! << 8))

/** Blocks of 32: low nibbles are weights 0 … 15, high ones 16 … 31. */
function putNibbles32(out: Uint8Array, at: number, q: readonly number[]): void {
  for (let j = 0; j < 16; j++) out[at + j] = (q[j]! & 15) | ((q[j + 16]! & 15) << 4)
}
const getNibble32 = (bytes: Uint8Array, at: number, j: number) =>
  j < 16 ? bytes[at + j]! & 15 : bytes[at + j - 16]! >> 4

/** Q4_K and Q5_K: eight 6-bit scales and minimums in 12 bytes. */
function putKScales(out: Uint8Array, at: number, sc: readonly number[], mn: readonly number[]): void {
  for (let s = 0; s < 4; s++) {
    out[at + s] = sc[s]! | ((sc[s + 4]! >> 4) << 6)
    out[at + s + 4] = mn[s]! | ((mn[s + 4]! >> 4) << 6)
    out[at + s + 8] = (sc[s + 4]! & 15) | ((mn[s + 4]! & 15) << 4)
  }
}
function getKScales(b: Uint8Array): { sc: number[]; mn: number[] } {
  const sc = indices(8).map((s) => (s < 4 ? b[s]! & 63 : (b[s + 4]! & 15) | ((b[s - 4]! >> 6) << 4)))
  const mn = indices(8).map((s) => (s < 4 ? b[s + 4]! & 63 : (b[s + 4]! >> 4) | ((b[s]! >> 6) << 4)))
  return { sc, mn }
}

/** Q4_K and Q5_K: chunks of 64 weights in 32 bytes; low nibbles are the first 32. */
const kNibble = (j: number) => ({ byte: 32 * Math.floor(j / 64) + (j % 32), high: j % 64 >= 32 })
/** Q6_K: where the low nibble, the upper two bits and the scale of weight j lie. */
function q6Position(j: number): { low: number; lowShift: number; high: number; highShift: number; scale: number } {
  const half = Math.floor(j / 128)
  const quarter = Math.floor((j % 128) / 32)
  const l = j % 32
  return {
    low: 64 * half + l + (quarter % 2) * 32,
    lowShift: quarter >= 2 ? 4 : 0,
    high: 32 * half + l,
    highShift: 2 * quarter,
    scale: 8 * half + Math.floor(l / 16) + 2 * quarter,
  }
}

/** Bit j of four bytes is bit 4 of code j. */
function putFifthBits(out: Uint8Array, at: number, q: readonly number[]): void {
  for (let i = 0; i < 4; i++) out[at + i] = indices(8).reduce((byte, j) => byte | ((q[8 * i + j]! >> 4) << j), 0)
}
const getFifthBit = (b: Uint8Array, at: number, j: number) => ((b[at + (j >> 3)]! >> (j & 7)) & 1) << 4

/** What the 4-bit numbers of IQ4_NL and IQ4_XS stand for (ggml-common.h, kvalues_iq4nl). */
const iq4Values = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]

/** Q3_K: bits 0 and 1 of weight j in a byte of qs, bit 2 in one of hmask; scales of six bits, plus 32. */
function q3Position(j: number): { low: number; lowShift: number; high: number; highShift: number } {
  const run = Math.floor(j / 32)
  return { low: 32 + 32 * (run >> 2) + (j % 32), lowShift: 2 * (run % 4), high: j % 32, highShift: run }
}
const q3Scale = (i: number) => ({
  low: 96 + (i % 8),
  lowShift: i < 8 ? 0 : 4,
  high: 104 + (i % 4),
  highShift: 2 * (i >> 2),
})

const minimumOfSub = (f: BlockFields, j: number) => f.d * f.sc![j >> 5]! * f.q[j]! - f.m! * f.mn![j >> 5]!

export const blockFormats: Record<BlockDType, BlockFormat> = {
  q4_0: {
    weights: 32,
    bytes: 18,
    q: [0, 15],
    encode(f, out) {
      putF16(out, 0, f.d)
      putNibbles32(out, 2, f.q)
    },
    decode: (b) => ({ d: getF16(b, 0), q: indices(32).map((j) => getNibble32(b, 2, j)) }),
    weight: (f, j) => f.d * (f.q[j]! - 8),
  },
  q4_1: {
    weights: 32,
    bytes: 20,
    q: [0, 15],
    hasMinimum: true,
    encode(f, out) {
      putF16(out, 0, f.d)
      putF16(out, 2, f.m!)
      putNibbles32(out, 4, f.q)
    },
    decode: (b) => ({ d: getF16(b, 0), m: getF16(b, 2), q: indices(32).map((j) => getNibble32(b, 4, j)) }),
    weight: (f, j) => f.d * f.q[j]! + f.m!,
  },
  q5_0: {
    weights: 32,
    bytes: 22,
    q: [0, 31],
    encode(f, out) {
      putF16(out, 0, f.d)
      putFifthBits(out, 2, f.q)
      putNibbles32(out, 6, f.q)
    },
    decode: (b) => ({
      d: getF16(b, 0),
      q: indices(32).map((j) => getNibble32(b, 6, j) | getFifthBit(b, 2, j)),
    }),
    weight: (f, j) => f.d * (f.q[j]! - 16),
  },
  q5_1: {
    weights: 32,
    bytes: 24,
    q: [0, 31],
    hasMinimum: true,
    encode(f, out) {
      putF16(out, 0, f.d)
      putF16(out, 2, f.m!)
      putFifthBits(out, 4, f.q)
      putNibbles32(out, 8, f.q)
    },
    decode: (b) => ({
      d: getF16(b, 0),
      m: getF16(b, 2),
      q: indices(32).map((j) => getNibble32(b, 8, j) | getFifthBit(b, 4, j)),
    }),
    weight: (f, j) => f.d * f.q[j]! + f.m!,
  },
  q8_0: {
    weights: 32,
    bytes: 34,
    q: [-128, 127],
    encode(f, out) {
      putF16(out, 0, f.d)
      for (let j = 0; j < 32; j++) out[2 + j] = f.q[j]! & 255
    },
    decode: (b) => ({ d: getF16(b, 0), q: indices(32).map((j) => signed(b[2 + j]!)) }),
    weight: (f, j) => f.d * f.q[j]!,
  },
  q3_k: {
    weights: 256,
    bytes: 110,
    q: [0, 7],
    sc: [-32, 31],
    subBlocks: 16,
    encode(f, out) {
      for (let j = 0; j < 256; j++) {
        const at = q3Position(j)
        out[at.low]! |= (f.q[j]! & 3) << at.lowShift
        out[at.high]! |= (f.q[j]! >> 2) << at.highShift
      }
      for (let s = 0; s < 16; s++) {
        const at = q3Scale(s)
        out[at.low]! |= ((f.sc![s]! + 32) & 15) << at.lowShift
        out[at.high]! |= ((f.sc![s]! + 32) >> 4) << at.highShift
      }
      putF16(out, 108, f.d)
    },
    decode: (b) => ({
      d: getF16(b, 108),
      sc: indices(16).map((s) => {
        const at = q3Scale(s)
        return (((b[at.low]! >> at.lowShift) & 15) | (((b[at.high]! >> at.highShift) & 3) << 4)) - 32
      }),
      q: indices(256).map((j) => {
        const at = q3Position(j)
        return ((b[at.low]! >> at.lowShift) & 3) | (((b[at.high]! >> at.highShift) & 1) << 2)
      }),
    }),
    weight: (f, j) => f.d * f.sc![j >> 4]! * (f.q[j]! - 4),
  },
  q4_k: {
    weights: 256,
    bytes: 144,
    q: [0, 15],
    sc: [0, 63],
    subBlocks: 8,
    hasMinimum: true,
    encode(f, out) {
      putF16(out, 0, f.d)
      putF16(out, 2, f.m!)
      putKScales(out, 4, f.sc!, f.mn!)
      for (let j = 0; j < 256; j++) {
        const { byte, high } = kNibble(j)
        out[16 + byte]! |= f.q[j]! << (high ? 4 : 0)
      }
    },
    decode: (b) => ({
      d: getF16(b, 0),
      m: getF16(b, 2),
      ...getKScales(b.subarray(4, 16)),
      q: indices(256).map((j) => (b[16 + kNibble(j).byte]! >> (kNibble(j).high ? 4 : 0)) & 15),
    }),
    weight: minimumOfSub,
  },
  q5_k: {
    weights: 256,
    bytes: 176,
    q: [0, 31],
    sc: [0, 63],
    subBlocks: 8,
    hasMinimum: true,
    encode(f, out) {
      putF16(out, 0, f.d)
      putF16(out, 2, f.m!)
      putKScales(out, 4, f.sc!, f.mn!)
      for (let j = 0; j < 256; j++) {
        const { byte, high } = kNibble(j)
        out[48 + byte]! |= (f.q[j]! & 15) << (high ? 4 : 0)
        out[16 + (j % 32)]! |= (f.q[j]! >> 4) << (j >> 5)
      }
    },
    decode: (b) => ({
      d: getF16(b, 0),
      m: getF16(b, 2),
      ...getKScales(b.subarray(4, 16)),
      q: indices(256).map((j) => {
        const { byte, high } = kNibble(j)
        return ((b[48 + byte]! >> (high ? 4 : 0)) & 15) | (((b[16 + (j % 32)]! >> (j >> 5)) & 1) << 4)
      }),
    }),
    weight: minimumOfSub,
  },
  q6_k: {
    weights: 256,
    bytes: 210,
    q: [0, 63],
    sc: [-128, 127],
    subBlocks: 16,
    encode(f, out) {
      for (let j = 0; j < 256; j++) {
        const at = q6Position(j)
        out[at.low]! |= (f.q[j]! & 15) << at.lowShift
        out[128 + at.high]! |= (f.q[j]! >> 4) << at.highShift
      }
      for (let s = 0; s < 16; s++) out[192 + s] = f.sc![s]! & 255
      putF16(out, 208, f.d)
    },
    decode: (b) => ({
      d: getF16(b, 208),
      sc: indices(16).map((s) => signed(b[192 + s]!)),
      q: indices(256).map((j) => {
        const at = q6Position(j)
        return ((b[at.low]! >> at.lowShift) & 15) | (((b[128 + at.high]! >> at.highShift) & 3) << 4)
      }),
    }),
    weight: (f, j) => f.d * f.sc![q6Position(j).scale]! * (f.q[j]! - 32),
  },
  iq4_nl: {
    weights: 32,
    bytes: 18,
    q: [0, 15],
    largest: 127,
    encode(f, out) {
      putF16(out, 0, f.d)
      putNibbles32(out, 2, f.q)
    },
    decode: (b) => ({ d: getF16(b, 0), q: indices(32).map((j) => getNibble32(b, 2, j)) }),
    weight: (f, j) => f.d * iq4Values[f.q[j]!]!,
  },
  iq4_xs: {
    weights: 256,
    bytes: 136,
    q: [0, 15],
    sc: [-32, 31],
    subBlocks: 8,
    largest: 127,
    encode(f, out) {
      putF16(out, 0, f.d)
      for (let s = 0; s < 8; s++) {
        const scale = f.sc![s]! + 32
        out[2 + (s >> 2)]! |= (scale >> 4) << (2 * (s % 4))
        out[4 + (s >> 1)]! |= (scale & 15) << (4 * (s % 2))
        putNibbles32(out, 8 + 16 * s, f.q.slice(32 * s, 32 * s + 32))
      }
    },
    decode: (b) => ({
      d: getF16(b, 0),
      sc: indices(8).map(
        (s) => (((b[4 + (s >> 1)]! >> (4 * (s % 2))) & 15) | (((b[2 + (s >> 2)]! >> (2 * (s % 4))) & 3) << 4)) - 32,
      ),
      q: indices(256).map((j) => getNibble32(b, 8 + 16 * (j >> 5), j % 32)),
    }),
    weight: (f, j) => f.d * f.sc![j >> 5]! * iq4Values[f.q[j]!]!,
  },
}

export const isBlockDType = (dtype: string): dtype is BlockDType => dtype in blockFormats

/** Weights that share a stored block: K is a multiple of it. */
export const blockOf = (dtype: StoredDType) => (isBlockDType(dtype) ? blockFormats[dtype].weights : 1)

export function encodeBlocks(dtype: BlockDType, blocks: readonly BlockFields[]): Uint8Array<ArrayBuffer> {
  const { bytes, encode } = blockFormats[dtype]
  const out = new Uint8Array(blocks.length * bytes)
  for (const [i, fields] of blocks.entries()) encode(fields, out.subarray(i * bytes, (i + 1) * bytes))
  return out
}

/** The exact weights of stored bytes. */
export function decodeBlocks(dtype: BlockDType, stored: Uint8Array): Float64Array {
  const { bytes, weights, decode, weight } = blockFormats[dtype]
  const values = new Float64Array((stored.length / bytes) * weights)
  for (let block = 0; block * bytes < stored.length; block++) {
    const fields = decode(stored.subarray(block * bytes, (block + 1) * bytes))
    for (let j = 0; j < weights; j++) values[block * weights + j] = weight(fields, j)
  }
  return values
}

/** A block tensor [rows, columns] from its blocks in order. */
export function blockTensor(dtype: BlockDType, shape: readonly number[], blocks: readonly BlockFields[]): HostTensor {
  const data = encodeBlocks(dtype, blocks)
  return rawTensor(dtype, shape, data, decodeBlocks(dtype, data))
}

/** A block of random codes whose weights are at most about `scale`, some with negative scales or extreme sub-scales. */
export function randomBlock(dtype: BlockDType, random: Random, scale = 1): BlockFields {
  const format = blockFormats[dtype]
  const [low, high] = format.q
  const span = (format.largest ?? Math.max(Math.abs(low), high)) * (format.sc ? format.sc[1] : 1)
  const f16 = (value: number) => round('f16', value)
  const draw = ([from, to]: readonly [number, number]) =>
    random.integer(0, 8) === 0 ? random.pick([from, to]) : random.integer(from, to + 1)
  const d = f16((scale * (0.25 + 0.75 * random.fraction()) * random.pick([1, 1, 1, -1])) / span)
  const subBlocks = indices(format.subBlocks ?? 0)
  return {
    d,
    ...(format.hasMinimum && { m: f16(((random.fraction() - 0.5) * scale) / (format.sc ? format.sc[1] : 1)) }),
    ...(format.sc && { sc: subBlocks.map(() => draw(format.sc!)) }),
    ...(format.sc && format.hasMinimum && { mn: subBlocks.map(() => draw(format.sc!)) }),
    q: indices(format.weights).map(() => draw(format.q)),
  }
}

/**
 * gemma.cpp's 8-bit switching float. v = 7 low bits; below 64 two mantissa bits and exponents from 2^-23, above three and from 2^-7. 0x80,
 * which no encoder writes, reads as −0.
 */
export function decodeSfp8(byte: number): number {
  const v = byte & 127
  const sign = byte & 128 ? -1 : 1
  if (v === 0) return sign * 0
  return sign * (v < 64 ? (1 + (v & 3) / 4) * 2 ** ((v >> 2) - 23) : (1 + (v & 7) / 8) * 2 ** ((v >> 3) - 15))
}

/** The byte nearest to a number, ties to the even one; magnitudes past 1.875 saturate. */
export function encodeSfp8(value: number): number {
  let best = 0
  for (let v = 1; v < 128; v++) {
    const [here, there] = [decodeSfp8(v), decodeSfp8(best)].map((x) => Math.abs(x - Math.abs(value))) as [
      number,
      number,
    ]
    if (here < there || (here === there && v % 2 === 0)) best = v
  }
  return best === 0 ? 0 : best | (value < 0 ? 128 : 0)
}

/** A random matrix of any stored dtype. Its `values` are before sfp8's tensor scale. */
export function randomStored(random: Random, dtype: StoredDType, shape: readonly number[], scale = 1): HostTensor {
  const count = shape.reduce((product, dim) => product * dim, 1)
  if (isPlain(dtype)) return random.normal(dtype, shape, scale)
  if (dtype === 'sfp8') {
    const data = random.bytes(count).map((byte) => (byte === 128 ? 0 : byte))
    return rawTensor('sfp8', shape, data, Float64Array.from(data, decodeSfp8))
  }
  const blocks = Array.from({ length: count / blockOf(dtype) }, () => randomBlock(dtype, random, scale))
  return blockTensor(dtype, shape, blocks)
}

// ── integer formats of checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────

export type GroupFormat = 'gptq' | 'gptq_v2' | 'awq' | 'compressed_tensors'
export type ChannelFormat = 'i8_channel' | 'i4_channel'

/** w[n, k] = s[n, g]·(q[n, k] − z[n, g]), g = floor(k / group); all row-major by n. */
export interface GroupFields {
  readonly rows: number
  readonly columns: number
  readonly group: number
  /** 0 … 15 */
  readonly q: ArrayLike<number>
  /** 0 … 15 (gptq: 1 … 16); absent: 8. */
  readonly z?: ArrayLike<number>
  readonly s: ArrayLike<number>
  /** Where a file keeps the columns: column j of q is its column order[j]. Default: in order. */
  readonly order?: readonly number[]
}

/** The tensors of one weight matrix as a checkpoint holds them, and the exact weights [rows, columns]. */
export interface StoredWeights {
  readonly weight: HostTensor
  readonly scales?: HostTensor
  readonly zeros?: HostTensor
  /** GPTQ's g_idx, of columns that are not in order. */
  readonly groupIndex?: HostTensor
  readonly values: Float64Array
}

/** AWQ's order: nibble i of a word is column awqOrder[i] of its eight. */
const awqOrder = [0, 2, 4, 6, 1, 3, 5, 7]
const plainOrder = [0, 1, 2, 3, 4, 5, 6, 7]

/** An i32 tensor [lines, words]; nibble i of word w of line l is value(l, 8·w + order[i]). */
function nibbleWords(
  lines: number,
  words: number,
  order: readonly number[],
  value: (line: number, index: number) => number,
): HostTensor {
  const data = new Int32Array(lines * words)
  for (let line = 0; line < lines; line++) {
    for (let w = 0; w < words; w++) {
      data[line * words + w] = order.reduce(
        (word, index, i) => word | ((value(line, 8 * w + index) & 15) << (4 * i)),
        0,
      )
    }
  }
  return hostTensor('i32', [lines, words], data)
}

const transposed = (tensor: HostTensor): HostTensor => {
  const [rows, columns] = tensor.shape as [number, number]
  const at = (i: number) => (i % rows) * columns + Math.floor(i / rows)
  return hostTensor(
    'i32',
    [columns, rows],
    Float64Array.from({ length: rows * columns }, (_, i) => tensor.values[at(i)]!),
  )
}

export function encodeGroups(
  format: GroupFormat,
  fields: GroupFields,
  scaleDtype: 'f16' | 'bf16' = 'f16',
): StoredWeights {
  const { rows, columns, group, q, z, s, order } = fields
  const groups = columns / group
  const places = order && Int32Array.from(order, (_, k) => order.indexOf(k))
  const place = (k: number) => places?.[k] ?? k
  const code = (n: number, k: number) => q[n * columns + place(k)]!
  const zero = (n: number, g: number) => (n < rows ? z![n * groups + g]! : 0)
  const groupsFirst = hostTensor(
    scaleDtype,
    [groups, rows],
    Float64Array.from({ length: rows * groups }, (_, i) => s[(i % rows) * groups + Math.floor(i / rows)]!),
  )
  const values = new Float64Array(rows * columns)
  for (let n = 0; n < rows; n++) {
    for (let k = 0; k < columns; k++) {
      const g = Math.floor(place(k) / group)
      values[n * columns + k] = round(scaleDtype, s[n * groups + g]!) * (code(n, k) - (z ? zero(n, g) : 8))
    }
  }
  const rowWords = Math.ceil(rows / 8)
  const index = places && {
    groupIndex: hostTensor(
      'i32',
      [columns],
      Float64Array.from(places, (j) => Math.floor(j / group)),
    ),
  }
  switch (format) {
    case 'gptq':
    case 'gptq_v2': {
      const offset = format === 'gptq' ? 1 : 0
      return {
        weight: transposed(nibbleWords(rows, columns / 8, plainOrder, code)),
        scales: groupsFirst,
        ...(z && { zeros: nibbleWords(groups, rowWords, plainOrder, (g, n) => zero(n, g) - offset) }),
        ...index,
        values,
      }
    }
    case 'awq':
      return {
        weight: nibbleWords(columns, rowWords, awqOrder, (k, n) => code(n, k)),
        scales: groupsFirst,
        ...(z && { zeros: nibbleWords(groups, rowWords, awqOrder, (g, n) => zero(n, g)) }),
        ...index,
        values,
      }
    case 'compressed_tensors':
      return {
        weight: nibbleWords(rows, columns / 8, plainOrder, code),
        scales: hostTensor(scaleDtype, [rows, groups], s),
        ...(z && { zeros: transposed(nibbleWords(groups, rowWords, plainOrder, (g, n) => zero(n, g))) }),
        ...index,
        values,
      }
  }
}

/** compressed-tensors' unpacked zero points: i8 [rows, groups], relative to 8. */
export function signedZeros({ rows, columns, group, z }: GroupFields): HostTensor {
  return hostTensor(
    'i8',
    [rows, columns / group],
    Float64Array.from(z!, (zero) => zero - 8),
  )
}

/** w[n, k] = s[n]·q[n, k], q in −128 … 127 or −8 … 7. */
export function encodeChannel(
  format: ChannelFormat,
  fields: {
    readonly rows: number
    readonly columns: number
    readonly q: ArrayLike<number>
    readonly s: ArrayLike<number>
  },
  scaleDtype: 'f32' | 'f16' | 'bf16' = 'f32',
): StoredWeights {
  const { rows, columns, q, s } = fields
  const values = Float64Array.from(
    { length: rows * columns },
    (_, i) => round(scaleDtype, s[Math.floor(i / columns)]!) * q[i]!,
  )
  const weight =
    format === 'i8_channel'
      ? hostTensor('i8', [rows, columns], q)
      : hostTensor(
          'u8',
          [rows, columns / 2],
          Float64Array.from({ length: (rows * columns) / 2 }, (_, i) => (q[2 * i]! + 8) | ((q[2 * i + 1]! + 8) << 4)),
        )
  return { weight, scales: hostTensor(scaleDtype, [rows], s), values }
}

// ── one entry for all of them ──────────────────────────────────────────────────────────────────────────────────────────────────

/** A stored form of a weight matrix, and what packWeights() must be told to read it. */
export interface WeightForm {
  readonly name: string
  readonly format: 'stored' | GroupFormat | ChannelFormat
  /** stored: the dtype. Others: of the scales. */
  readonly dtype: HostDType
  /** Integer groups: columns per scale; 0: one per row. */
  readonly group?: number
  readonly zeros?: 'packed' | 'i8'
  /** Integer groups: columns scattered over the groups, alike for matrices of as many columns and the same name here. */
  readonly order?: string
  /** sfp8: the tensor scale. */
  readonly scale?: number
  /** columns is a multiple of this. */
  readonly granule: number
}

const storedDtypes: readonly StoredDType[] = [
  ...(['f32', 'f16', 'bf16', 'sfp8'] as const),
  ...(Object.keys(blockFormats) as BlockDType[]),
]

/** Every stored form that packWeights() takes. */
export const weightForms: readonly WeightForm[] = [
  ...storedDtypes.map((dtype): WeightForm => ({ name: dtype, format: 'stored', dtype, granule: blockOf(dtype) })),
  { name: 'sfp8 scaled', format: 'stored', dtype: 'sfp8', scale: Math.fround(2.7), granule: 1 },
  { name: 'i8 channel', format: 'i8_channel', dtype: 'f32', granule: 1 },
  { name: 'i4 channel', format: 'i4_channel', dtype: 'bf16', granule: 2 },
  { name: 'gptq 128', format: 'gptq', dtype: 'f16', group: 128, zeros: 'packed', granule: 128 },
  { name: 'gptq 32', format: 'gptq', dtype: 'f16', group: 32, zeros: 'packed', granule: 32 },
  { name: 'gptq row', format: 'gptq', dtype: 'f16', group: 0, zeros: 'packed', granule: 8 },
  { name: 'gptq_v2 64', format: 'gptq_v2', dtype: 'f16', group: 64, zeros: 'packed', granule: 64 },
  { name: 'awq 128', format: 'awq', dtype: 'f16', group: 128, zeros: 'packed', granule: 128 },
  { name: 'awq 32 symmetric', format: 'awq', dtype: 'bf16', group: 32, granule: 32 },
  { name: 'compressed 32', format: 'compressed_tensors', dtype: 'bf16', group: 32, granule: 32 },
  { name: 'compressed 32 zeros', format: 'compressed_tensors', dtype: 'bf16', group: 32, zeros: 'packed', granule: 32 },
  { name: 'compressed 64', format: 'compressed_tensors', dtype: 'f16', group: 64, granule: 64 },
  {
    name: 'compressed 128 i8 zeros',
    format: 'compressed_tensors',
    dtype: 'bf16',
    group: 128,
    zeros: 'i8',
    granule: 128,
  },
  { name: 'compressed row', format: 'compressed_tensors', dtype: 'bf16', group: 0, granule: 8 },
]

/** Matrices quantised in the order of activations, which packWeights() takes with `columnOrder`. */
export const orderedForms: readonly WeightForm[] = [
  { name: 'gptq 32 ordered', format: 'gptq', dtype: 'f16', group: 32, zeros: 'packed', order: 'a', granule: 32 },
  { name: 'gptq 32 otherwise', format: 'gptq', dtype: 'f16', group: 32, zeros: 'packed', order: 'b', granule: 32 },
  { name: 'gptq_v2 64 ordered', format: 'gptq_v2', dtype: 'f16', group: 64, zeros: 'packed', order: 'a', granule: 64 },
  { name: 'awq 128 ordered', format: 'awq', dtype: 'bf16', group: 128, zeros: 'packed', order: 'a', granule: 128 },
  { name: 'compressed 32 ordered', format: 'compressed_tensors', dtype: 'bf16', group: 32, order: 'a', granule: 32 },
]

/** Random weights in a stored form, of magnitude about `scale`. awq needs rows of a multiple of 8. */
export function randomWeights(
  random: Random,
  form: WeightForm,
  rows: number,
  columns: number,
  scale = 1,
): StoredWeights {
  const { format, dtype } = form
  if (format === 'stored') {
    const weight = randomStored(random, dtype as StoredDType, [rows, columns], scale)
    const factor = form.scale ?? 1
    return { weight, values: weight.values.map((value) => value * factor) }
  }
  const scales = (count: number, largest: number) =>
    Float64Array.from(
      { length: count },
      () => ((0.25 + 0.75 * random.fraction()) * scale * random.pick([1, 1, 1, -1])) / largest,
    )
  const codes = (low: number, high: number) =>
    Int32Array.from({ length: rows * columns }, () => random.integer(low, high + 1))
  if (format === 'i8_channel' || format === 'i4_channel') {
    const top = format === 'i8_channel' ? 127 : 7
    const fields = { rows, columns, q: codes(-top - 1, top), s: scales(rows, top + 1) }
    return encodeChannel(format, fields, dtype as 'f32' | 'f16' | 'bf16')
  }
  const group = form.group || columns
  const count = rows * (columns / group)
  const offset = format === 'gptq' ? 1 : 0
  const z = form.zeros && Int32Array.from({ length: count }, () => random.integer(0, 16) + offset)
  const fields: GroupFields = {
    rows,
    columns,
    group,
    q: codes(0, 15),
    s: scales(count, 8),
    ...(z && { z }),
    ...(form.order && { order: columnOrder(form.order, columns) }),
  }
  const encoded = encodeGroups(format, fields, dtype as 'f16' | 'bf16')
  return form.zeros === 'i8' ? { ...encoded, zeros: signedZeros(fields) } : encoded
}

/** An order of columns that the name gives. */
export function columnOrder(name: string, columns: number): number[] {
  return Random.named(`${name} ${columns}`).permutation(columns)
}

/** The exact weights that the tensors of a form mean: the inverse of randomWeights. */
export function weightValues(
  form: WeightForm,
  tensors: {
    readonly weight: HostTensor
    readonly scales?: HostTensor | undefined
    readonly zeros?: HostTensor | undefined
  },
): Float64Array {
  const { weight, scales, zeros } = tensors
  const [first, second] = weight.shape as [number, number]
  if (form.format === 'stored') return weight.values.map((value) => value * (form.scale ?? 1))
  if (form.format === 'i8_channel') return weight.values.map((q, i) => scales!.values[Math.floor(i / second)]! * q)
  if (form.format === 'i4_channel') {
    const nibble = (i: number) => (weight.values[i >> 1]! >> (i % 2 ? 4 : 0)) & 15
    const value = (_: unknown, i: number) => scales!.values[Math.floor(i / (2 * second))]! * (nibble(i) - 8)
    return Float64Array.from({ length: 2 * first * second }, value)
  }
  const { format } = form
  const byRows = format === 'compressed_tensors'
  const rows = byRows ? first : format === 'awq' ? 8 * second : second
  const columns = byRows ? 8 * second : format === 'awq' ? first : 8 * first
  const group = form.group || columns
  const groups = columns / group
  const nibble = (tensor: HostTensor, line: number, word: number, position: number) =>
    (tensor.values[line * tensor.shape[1]! + word]! >> (4 * position)) & 15
  const code = (n: number, k: number) => {
    if (format === 'awq') return nibble(weight, k, n >> 3, awqOrder.indexOf(n & 7))
    return byRows ? nibble(weight, n, k >> 3, k & 7) : nibble(weight, k >> 3, n, k & 7)
  }
  const zero = (n: number, g: number) => {
    if (!zeros) return 8
    if (zeros.dtype === 'i8') return zeros.values[n * groups + g]! + 8
    if (format === 'awq') return nibble(zeros, g, n >> 3, awqOrder.indexOf(n & 7))
    return byRows ? nibble(zeros, n >> 3, g, n & 7) : nibble(zeros, g, n >> 3, n & 7) + (format === 'gptq' ? 1 : 0)
  }
  const values = new Float64Array(rows * columns)
  for (let n = 0; n < rows; n++) {
    for (let k = 0; k < columns; k++) {
      const g = Math.floor(k / group)
      const s = scales!.values[byRows ? n * groups + g : g * rows + n]!
      values[n * columns + k] = s * (code(n, k) - zero(n, g))
    }
  }
  return values
}

/** The options with which packWeights() reads a form; scales and zeros are tensors of the device. */
export function packOptions<T>(form: WeightForm, tensors: { scales?: T | undefined; zeros?: T | undefined }) {
  return {
    format: form.format,
    ...(tensors.scales !== undefined && { scales: tensors.scales }),
    ...(tensors.zeros !== undefined && { zeros: tensors.zeros }),
    ...(form.group !== undefined && { groupSize: form.group as 0 | 32 | 64 | 128 }),
    ...(form.scale !== undefined && { scale: form.scale }),
  }
}
