/**
 * safetensors: one file's tensor descriptions.
 *
 * Layout: header length u64, little-endian; the header, a JSON object of { dtype, shape, data_offsets: [begin, end] } by name, and strings
 * under `__metadata__`; the data, where offsets count from, without holes. Source: the format's description in huggingface/safetensors.
 * @module
 */
import type { DType } from '../dtype.ts'
import type { StoredTensor } from './checkpoint.ts'
import { isObject, type JsonObject, longestJson, parseJsonObject } from './json.ts'
import { corrupt, quote, type Source } from './source.ts'

/** Bits of an element, and our dtype where there is one. */
const elementTypes: ReadonlyMap<string, readonly [bits: number, dtype?: DType]> = new Map<
  string,
  readonly [bits: number, dtype?: DType]
>([
  ['F32', [32, 'f32']],
  ['F16', [16, 'f16']],
  ['BF16', [16, 'bf16']],
  ['I32', [32, 'i32']],
  ['I8', [8, 'i8']],
  ['U8', [8, 'u8']],
  ['BOOL', [8]],
  ['I16', [16]],
  ['U16', [16]],
  ['U32', [32]],
  ['I64', [64]],
  ['U64', [64]],
  ['F64', [64]],
  ['C64', [64]],
  ['F8_E5M2', [8]],
  ['F8_E4M3', [8]],
  ['F8_E8M0', [8]],
  ['F8_E4M3FNUZ', [8]],
  ['F8_E5M2FNUZ', [8]],
  ['F6_E2M3', [6]],
  ['F6_E3M2', [6]],
  ['F4', [4]],
])

/** The content of one safetensors file. */
export interface SafetensorsFile {
  readonly tensors: readonly StoredTensor[]
  /** `__metadata__`. */
  readonly metadata: JsonObject
}

/**
 * Reads the header of one safetensors file.
 * @throws ERR_CHECKPOINT_CORRUPT, ERR_FILE
 */
export function parseSafetensors(source: Source): SafetensorsFile {
  const { path, size } = source
  if (size < 8) throw corrupt(path, 0, `expected a safetensors file, of 8 bytes at least, got ${size}`)
  const prefix = Buffer.alloc(8)
  source.read(0, prefix)
  const length = prefix.readUInt32LE(4) * 2 ** 32 + prefix.readUInt32LE(0)
  if (length > size - 8 || length > longestJson) {
    const most = Math.min(size - 8, longestJson)
    throw corrupt(path, 0, `expected a header of at most ${most} bytes (the file has ${size}), got ${length}`)
  }
  const header = parseJsonObject(source, 'the header', 8, length)
  const tensors: StoredTensor[] = []
  let metadata: JsonObject = {}
  for (const [name, entry] of Object.entries(header)) {
    if (name !== '__metadata__') {
      tensors.push(describeTensor(source, 8 + length, name, entry))
    } else if (isObject(entry)) {
      metadata = entry
    } else {
      throw corrupt(path, 8, `the header: __metadata__: expected an object, got ${quote(entry)}`)
    }
  }
  checkCoverage(source, 8 + length, tensors)
  return { tensors, metadata }
}

function describeTensor(source: Source, dataStart: number, name: string, entry: unknown): StoredTensor {
  const fail = (what: string): never => {
    throw corrupt(source.path, 8, `the header: tensor ${quote(name)}: ${what}`)
  }
  if (!isObject(entry)) return fail(`expected an object, got ${quote(entry)}`)
  const { dtype: storedType, shape, data_offsets: range } = entry
  if (!isTypeName(storedType)) return fail(`dtype: expected the name of an element type, got ${quote(storedType)}`)
  if (!isSizes(shape)) return fail(`shape: expected a list of non-negative integers, got ${quote(shape)}`)
  if (!isSizes(range) || range.length !== 2) {
    return fail(`data_offsets: expected two non-negative integers, got ${quote(range)}`)
  }
  const [begin, end] = range as [number, number]
  const dataBytes = source.size - dataStart
  if (begin > end || end > dataBytes) {
    return fail(
      `data_offsets: expected a range within the ${dataBytes} bytes of data that the file has, got ${begin} to ${end}`,
    )
  }
  const [bits, dtype] = elementTypes.get(storedType) ?? []
  // A dimension of 0 must not hide that the others are absurd.
  const elements = shape.reduce((product, dim) => product * Math.max(dim, 1), 1)
  if (!Number.isSafeInteger(elements * 8))
    return fail(`shape: expected fewer than 2^50 elements, got ${shape.join(' x ')}`)
  const expected = shape.includes(0) ? 0 : (elements * (bits ?? 0)) / 8
  if (bits !== undefined && expected !== end - begin) {
    return fail(
      `expected ${expected} bytes (${storedType} ${shape.join(' x ')}), got ${end - begin} at byte ${dataStart + begin}`,
    )
  }
  return { name, storedType, dtype, shape, file: source.path, offset: dataStart + begin, bytes: end - begin }
}

/** Types newer than the table are listed; what is no name is damage. */
function isTypeName(value: unknown): value is string {
  return typeof value === 'string' && /^[A-Z][A-Z0-9_]{0,31}$/.test(value)
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0)
}

/** Data without holes or overlaps, to the end of the file: the format demands it, so that anything else is damage. */
function checkCoverage(source: Source, dataStart: number, tensors: readonly StoredTensor[]): void {
  const byOffset = [...tensors].sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)
  let end = dataStart
  let before = 'the header'
  for (const { name, offset, bytes } of byOffset) {
    if (offset !== end) {
      const relation = offset < end ? 'apart from' : 'directly after'
      throw corrupt(
        source.path,
        offset,
        `tensor ${quote(name)}: expected it ${relation} ${before}, which ends at byte ${end}`,
      )
    }
    end = offset + bytes
    before = `tensor ${quote(name)}`
  }
  if (end !== source.size) {
    throw corrupt(source.path, end, `${before}: expected the file to end after it, got ${source.size - end} more bytes`)
  }
}
