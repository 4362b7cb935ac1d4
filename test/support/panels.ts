/**
 * The packed layout of weights, decoded as native/ops/weight_panels.h describes it, one code at a time: proves that what packWeights
 * writes is what the description says, padding included.
 */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { decodeSfp8 } from './formats.ts'
import { fromBits } from './numbers.ts'

const isaTable = readFileSync(fileURLToPath(new URL('../../native/kernels/cpu/isa.def', import.meta.url)), 'utf8')

/** R: the rows that one panel interleaves on a device of this instruction set. */
export function panelRows(isa: string): number {
  const found = isaTable.match(new RegExp(`^LAPIDARY_ISA\\(${isa},\\s*\\w+,\\s*(\\d+)`, 'm'))
  if (!found) throw new Error(`${isa} is not in isa.def`)
  return Number(found[1])
}

/** What a packed tensor is; group and scaleDtype are those of i4. */
export interface PackedForm {
  readonly dtype: string
  readonly rows: number
  readonly columns: number
  readonly panelRows: number
  readonly group?: number
  readonly symmetric?: boolean
  readonly scaleDtype?: 'f16' | 'bf16'
}

/** kTable4 of weight_panels.h: what IQ4's numbers mean, plus 128. */
const table4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113].map((value) => value + 128)

type Scheme = 'pair' | 'pairMin' | 'groupZero' | 'superMin' | 'super' | 'row'
interface Layout {
  readonly bits: 4 | 5 | 6 | 8
  /** Codes are numbers of entries of `table4`. */
  readonly table?: true
  readonly scheme: Scheme
  readonly zero: number
  /** Records of 64 columns that share a head; 0: all. */
  readonly records: number
  /** Bytes per row: of a head, and of the sub-scales before each record. */
  readonly head: number
  readonly sub: number
}

function layoutOf({ dtype, group = 0, symmetric = false }: PackedForm): Layout {
  const pair = (bits: 4 | 5 | 8, zero: number): Layout => ({ bits, scheme: 'pair', zero, records: 1, head: 4, sub: 0 })
  switch (dtype) {
    case 'q4_0':
      return pair(4, 8)
    case 'q5_0':
      return pair(5, 16)
    case 'q8_0':
      return pair(8, 128)
    case 'iq4_nl':
      return { ...pair(4, 128), table: true }
    case 'q5_1':
      return { bits: 5, scheme: 'pairMin', zero: 0, records: 1, head: 8, sub: 0 }
    case 'q3_k':
      return { bits: 4, scheme: 'super', zero: 4, records: 4, head: 4, sub: 4 }
    case 'iq4_xs':
      return { bits: 4, table: true, scheme: 'super', zero: 128, records: 4, head: 4, sub: 4 }
    case 'q4_1':
      return { bits: 4, scheme: 'pairMin', zero: 0, records: 1, head: 8, sub: 0 }
    case 'q4_k':
      return { bits: 4, scheme: 'superMin', zero: 0, records: 4, head: 4, sub: 4 }
    case 'q5_k':
      return { bits: 5, scheme: 'superMin', zero: 0, records: 4, head: 4, sub: 4 }
    case 'q6_k':
      return { bits: 6, scheme: 'super', zero: 32, records: 4, head: 4, sub: 4 }
    case 'i8':
      return { bits: 8, scheme: 'row', zero: 128, records: 0, head: 8, sub: 0 }
    case 'i4':
      if (group === 0) return { bits: 4, scheme: 'row', zero: 8, records: 0, head: 8, sub: 0 }
      if (symmetric) return pair(4, 8)
      return {
        bits: 4,
        scheme: 'groupZero',
        zero: 0,
        records: Math.max(1, group / 64),
        head: group === 32 ? 8 : 4,
        sub: 0,
      }
    default:
      throw new Error(`${dtype} has no integer panels`)
  }
}

const isFloatPanel = (dtype: string) => ['f32', 'f16', 'bf16', 'sfp8'].includes(dtype)
const roundUp = (value: number, to: number) => Math.ceil(value / to) * to

export interface Unpacked {
  /** Padded to whole panels and blocks. */
  readonly rows: number
  readonly columns: number
  /** The exact weights [rows, columns]. */
  readonly values: Float64Array
}

/** The first element of the panels' first `checked` columns that is not the matrix's weight, or 0 where it is padding; −1: none. */
export function firstWrong(unpacked: Unpacked, weights: Float64Array, columns: number, checked: number): number {
  const expected = new Float64Array(unpacked.rows * unpacked.columns)
  for (let n = 0; n * columns < weights.length; n++) {
    expected.set(weights.subarray(n * columns, (n + 1) * columns), n * unpacked.columns)
  }
  return unpacked.values.findIndex((value, i) => i % unpacked.columns < checked && value !== expected[i])
}

export function unpackPanels(bytes: Uint8Array, form: PackedForm): Unpacked {
  return isFloatPanel(form.dtype) ? unpackFloats(bytes, form) : unpackIntegers(bytes, form)
}

function unpackFloats(bytes: Uint8Array, { dtype, rows, columns, panelRows: R }: PackedForm): Unpacked {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const padded = { rows: roundUp(rows, R), columns: roundUp(columns, 32) }
  const elementBytes = { f32: 4, f16: 2, bf16: 2, sfp8: 1 }[dtype as 'f32']
  const headBytes = dtype === 'sfp8' ? 4 * R : 0
  const panelBytes = headBytes + R * padded.columns * elementBytes
  expectLength(bytes, (padded.rows / R) * panelBytes)
  // Columns of a row that lie together.
  const together = { f32: 1, f16: 1, bf16: 2, sfp8: 4 }[dtype as 'f32']
  const values = new Float64Array(padded.rows * padded.columns)
  for (let n = 0; n < padded.rows; n++) {
    const panel = Math.floor(n / R) * panelBytes
    const r = n % R
    for (let k = 0; k < padded.columns; k++) {
      const element = (Math.floor(k / together) * R + r) * together + (k % together)
      const at = panel + headBytes + element * elementBytes
      const value =
        dtype === 'f32'
          ? view.getFloat32(at, true)
          : dtype === 'sfp8'
            ? view.getFloat32(panel + 4 * r, true) * decodeSfp8(bytes[at]!)
            : fromBits(dtype as 'f16', view.getUint16(at, true))
      values[n * padded.columns + k] = value
    }
  }
  return { ...padded, values }
}

function unpackIntegers(bytes: Uint8Array, form: PackedForm): Unpacked {
  const { rows, columns, panelRows: R, group = 0, scaleDtype = 'f16' } = form
  const layout = layoutOf(form)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const padded = { rows: roundUp(rows, R), columns: roundUp(columns, 64 * Math.max(1, layout.records)) }
  const records = padded.columns / 64
  const recordBytes = R * (layout.sub + 8 * layout.bits)
  const perBlock = layout.records || records
  const blockBytes = R * layout.head + perBlock * recordBytes
  const panelBytes = (records / perBlock) * blockBytes
  expectLength(bytes, (padded.rows / R) * panelBytes)
  const values = new Float64Array(padded.rows * padded.columns)
  for (let n = 0; n < padded.rows; n++) {
    const panel = Math.floor(n / R) * panelBytes
    const r = n % R
    for (let k = 0; k < padded.columns; k++) {
      const record = Math.floor(k / 64)
      const c = k % 64
      const head = panel + Math.floor(record / perBlock) * blockBytes
      const sub = head + R * layout.head + (record % perBlock) * recordBytes
      const bits = codeAt(bytes, sub + R * layout.sub, layout.bits, R, r, c)
      const code = layout.table ? table4[bits]! : bits
      const half = (entry: number) => fromBits(scaleDtype, view.getUint16(head + 2 * (entry * R + r), true))
      const single = (entry: number) => view.getFloat32(head + 4 * (entry * R + r), true)
      const subscale = (entry: number) => bytes[sub + entry * R + r]!
      const i = c >> 5
      let value: number
      switch (layout.scheme) {
        case 'pair':
          value = half(i) * (code - layout.zero)
          break
        case 'pairMin':
          value = half(i) * code + half(2 + i)
          break
        case 'groupZero':
          value = group === 32 ? half(i) * (code - half(2 + i)) : half(0) * (code - half(1))
          break
        case 'superMin':
          value = half(0) * subscale(i) * code - half(1) * subscale(2 + i)
          break
        case 'super':
          value = single(0) * ((subscale(c >> 4) << 24) >> 24) * (code - layout.zero)
          break
        case 'row':
          value = single(0) * (code - single(1))
          break
      }
      values[n * padded.columns + k] = value
    }
  }
  return { ...padded, values }
}

/** The code of row r, column c of a record: vector c/4 holds 4R bytes, row r's at 4r. */
function codeAt(bytes: Uint8Array, record: number, bits: number, R: number, r: number, c: number): number {
  const vector = c >> 2
  const byte = 4 * r + (c & 3)
  const line = 4 * R
  if (bits === 8) return bytes[record + vector * line + byte]!
  const low = (bytes[record + (vector >> 1) * line + byte]! >> (vector % 2 ? 4 : 0)) & 15
  const planes = record + 8 * line
  if (bits === 5) return low | (((bytes[planes + vector * (R / 2) + (byte >> 3)]! >> (byte & 7)) & 1) << 4)
  if (bits === 6) return low | (((bytes[planes + (vector >> 2) * line + byte]! >> (2 * (vector & 3))) & 3) << 4)
  return low
}

function expectLength(bytes: Uint8Array, expected: number): void {
  if (bytes.length !== expected) throw new Error(`expected ${expected} bytes of panels, got ${bytes.length}`)
}

/**
 * The same in fragment order, the layout of GPUs: lane 4g + t has rows g and g + 8 and, of every 32 columns, 8t … 8t + 7.
 */
export function unpackFragments(bytes: Uint8Array, form: PackedForm): Unpacked {
  const float = isFloatPanel(form.dtype)
  const { rows, columns, group = 0, scaleDtype = 'f16', dtype } = form
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const layout = float ? undefined : layoutOf(form)
  const records =
    Math.ceil(columns / (float ? 32 : 64 * Math.max(1, layout!.records))) * (float ? 1 : Math.max(1, layout!.records))
  const padded = { rows: roundUp(rows, 16), columns: records * (float ? 32 : 64) }
  const elementBytes = { f32: 4, f16: 2, bf16: 2, sfp8: 1 }[dtype as 'f32']
  const headBytes = 16 * (float ? (dtype === 'sfp8' ? 4 : 0) : layout!.head)
  const recordBytes = float ? 16 * 32 * elementBytes : 16 * (layout!.sub + 8 * layout!.bits)
  const perBlock = float ? records : layout!.records || records
  const blockBytes = headBytes + perBlock * recordBytes
  const panelBytes = (records / perBlock) * blockBytes
  expectLength(bytes, (padded.rows / 16) * panelBytes)
  const values = new Float64Array(padded.rows * padded.columns)
  for (let n = 0; n < padded.rows; n++) {
    const panel = Math.floor(n / 16) * panelBytes
    const [g, h] = [n % 8, Math.floor((n % 16) / 8)]
    const entry = (index: number, entries: number) => 2 * (g * entries + index) + h
    for (let k = 0; k < padded.columns; k++) {
      const lane = 4 * g + Math.floor((k % 32) / 8)
      const c = k % 8
      if (float) {
        const at = (8 * h + c) * elementBytes
        const place =
          panel + headBytes + Math.floor(k / 32) * recordBytes + Math.floor(at / 16) * 512 + lane * 16 + (at % 16)
        values[n * padded.columns + k] =
          dtype === 'f32'
            ? view.getFloat32(place, true)
            : dtype === 'sfp8'
              ? view.getFloat32(panel + 4 * entry(0, 1), true) * decodeSfp8(bytes[place]!)
              : fromBits(dtype as 'f16', view.getUint16(place, true))
        continue
      }
      const { bits, scheme, sub, zero, table } = layout!
      const record = Math.floor(k / 64)
      const half = Math.floor((k % 64) / 32)
      const head = panel + Math.floor(record / perBlock) * blockBytes
      const own = head + headBytes + (record % perBlock) * recordBytes
      const codes = own + 16 * sub
      const nibble = (c >> 1) + 4 * (c & 1)
      const word = 2 * half + h
      let code: number
      if (bits === 8) {
        code = view.getInt8(codes + 512 * half + 16 * lane + 8 * h + [0, 4, 1, 5, 2, 6, 3, 7].indexOf(c))
      } else {
        code = (view.getUint32(codes + 16 * lane + 4 * word, true) >>> (4 * nibble)) & 15
        const plane = codes + 512
        if (bits === 5) {
          code |= ((view.getUint32(plane + 4 * lane, true) >>> (8 * (nibble >> 1) + 2 * word + (nibble & 1))) & 1) << 4
        }
        if (bits === 6) {
          const shift = 8 * (nibble >> 1) + 4 * h + 2 * (nibble & 1)
          code |= ((view.getUint32(plane + 8 * lane + 4 * half, true) >>> shift) & 3) << 4
        }
      }
      if (table) code = table4[code]!
      const half16 = (index: number, entries: number) =>
        fromBits(scaleDtype, view.getUint16(head + 2 * entry(index, entries), true))
      const single = (index: number, entries: number) => view.getFloat32(head + 4 * entry(index, entries), true)
      const subscale = (index: number) => bytes[own + entry(index, 4)]!
      const value = (): number => {
        switch (scheme) {
          case 'pair':
            return half16(half, 2) * (code - (bits === 8 ? 0 : zero))
          case 'pairMin':
            return half16(half, 4) * code + half16(2 + half, 4)
          case 'groupZero':
            return group === 32 ? half16(half, 4) * (code - half16(2 + half, 4)) : half16(0, 2) * (code - half16(1, 2))
          case 'superMin':
            return half16(0, 2) * subscale(half) * code - half16(1, 2) * subscale(2 + half)
          case 'super':
            return single(0, 1) * ((subscale((k % 64) >> 4) << 24) >> 24) * (code - zero)
          case 'row':
            return single(0, 2) * (code - single(1, 2))
        }
      }
      values[n * padded.columns + k] = value()
    }
  }
  return { ...padded, values }
}
