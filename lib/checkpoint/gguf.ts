/**
 * GGUF versions 2 and 3, little-endian: one file's metadata and tensor descriptions.
 *
 * Layout: magic `GGUF`, version u32, tensor count u64, metadata count u64; the metadata (key, type, value); the tensors (name, dimensions
 * innermost first, type, offset); padding to the alignment; the data, where the tensors' offsets count from.
 * Source: ggml's docs/gguf.md.
 * @module
 */
import type { StoredTensor } from './checkpoint.ts'
import { GgufCursor } from './gguf-cursor.ts'
import {
  type GgmlType,
  type GgufEntry,
  type GgufValue,
  type GgufValueType,
  ggmlTypeById,
  ggufValueTypes,
  numericArrays,
  valueBytes,
} from './gguf-types.ts'
import { corrupt, quote, type Source, unsupported } from './source.ts'

/** Of tensors, and of metadata keys, in one file: each costs many times its bytes in the file. Models have some thousand. */
const mostEntries = 1 << 16
/** Items of strings, booleans, 64-bit integers and arrays in one file: 16 vocabularies of 262,144 pieces. */
const mostItems = 1 << 22
/** Arrays inside arrays; each costs far more memory than its bytes in the file. */
const mostArrays = 1 << 16
const deepestArray = 4
/** ggml's own limit. */
const mostDimensions = 4

/** The content of one GGUF file. */
export interface GgufFile {
  readonly version: number
  readonly metadata: ReadonlyMap<string, GgufEntry>
  readonly tensors: readonly StoredTensor[]
}

/**
 * Reads the header of one GGUF file.
 * @throws ERR_CHECKPOINT_CORRUPT, ERR_CHECKPOINT_UNSUPPORTED (version 1, versions after 3, big-endian, ggml's older formats), ERR_FILE
 */
export function parseGguf(source: Source): GgufFile {
  const cursor = new GgufCursor(source)
  const version = readVersion(cursor)
  const tensorCount = readCount(cursor, 'tensors', 8 + 1 + 4 + 4 + 8)
  const metadataCount = readCount(cursor, 'metadata keys', 8 + 1 + 4 + 1)
  const metadata = readMetadata(cursor, metadataCount)
  const alignment = readAlignment(source, metadata)
  const described = readTensors(cursor, tensorCount)
  cursor.what = 'the header'
  return { version, metadata, tensors: placeTensors(source, described, cursor.position, alignment) }
}

function readVersion(cursor: GgufCursor): number {
  const { path, size } = cursor.source
  if (size === 0) throw corrupt(path, 0, 'expected a GGUF file, got an empty one')
  cursor.expect(4)
  const magic = cursor.u32()
  if (magic !== 0x46554747) {
    // 'ggml', 'ggmf', 'ggjt' as u32, little-endian.
    if ([0x67676d6c, 0x67676d66, 0x67676a74].includes(magic)) {
      throw unsupported(
        path,
        0,
        "a ggml file from before GGUF: convert the original checkpoint with llama.cpp's converter",
      )
    }
    throw corrupt(path, 0, `expected the magic "GGUF", got 0x${magic.toString(16).padStart(8, '0')}`)
  }
  const version = cursor.u32()
  if (version === 2 || version === 3) return version
  if (version > 0 && (version & 0xffff) === 0)
    throw unsupported(path, 4, 'a big-endian GGUF file: expected a little-endian one')
  throw unsupported(path, 4, `expected GGUF version 2 or 3, got ${version}: convert the checkpoint again`)
}

function readCount(cursor: GgufCursor, name: string, leastBytes: number): number {
  const offset = cursor.position
  const count = cursor.size(`a number of ${name}`)
  if (count > mostEntries) cursor.fail(`expected at most ${mostEntries} ${name}, got ${count}`, offset)
  const most = Math.floor(cursor.remaining / leastBytes)
  if (count > most) cursor.fail(`expected at most ${most} ${name} in what is left, got ${count}`, offset)
  return count
}

// ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What is left of the limits of one file. */
interface Budget {
  items: number
  arrays: number
}

function readMetadata(cursor: GgufCursor, count: number): Map<string, GgufEntry> {
  const metadata = new Map<string, GgufEntry>()
  const budget: Budget = { items: mostItems, arrays: mostArrays }
  for (let i = 0; i < count; i++) {
    cursor.what = `metadata key ${i} of ${count}`
    const offset = cursor.position
    const key = cursor.string()
    if (key === '') cursor.fail('expected a key, got an empty string', offset)
    cursor.what = `metadata key ${quote(key)}`
    if (metadata.has(key)) cursor.fail('expected it once, got it again', offset)
    const type = readType(cursor)
    if (type === 'array') {
      const items = readType(cursor)
      metadata.set(key, { type, items, value: readArray(cursor, items, budget, 1) })
    } else {
      metadata.set(key, { type, value: readScalar(cursor, type) })
    }
  }
  return metadata
}

function spend(cursor: GgufCursor, budget: Budget, kind: keyof Budget, count: number): void {
  budget[kind] -= count
  if (budget[kind] >= 0) return
  const most = kind === 'items' ? mostItems : mostArrays
  cursor.fail(`expected at most ${most} ${kind} in a file's metadata, got more`)
}

function readType(cursor: GgufCursor): GgufValueType {
  const id = cursor.u32()
  return ggufValueTypes[id] ?? cursor.fail(`expected a value type from 0 to 12, got ${id}`, cursor.position - 4)
}

function readScalar(cursor: GgufCursor, type: Exclude<GgufValueType, 'array'>): GgufValue {
  return cursor[type]()
}

function readArray(cursor: GgufCursor, items: GgufValueType, budget: Budget, depth: number): GgufValue {
  const offset = cursor.position
  const count = cursor.size('a number of items')
  const itemBytes = items === 'string' ? 8 : items === 'array' ? 12 : valueBytes[items]
  if (count > cursor.remaining / itemBytes) {
    const most = Math.floor(cursor.remaining / itemBytes)
    cursor.fail(`expected at most ${most} items of type ${items} in what is left, got ${count}`, offset)
  }
  const typedArray = numericArrays[items]
  if (typedArray) return new typedArray(cursor.bytes(count * itemBytes))
  spend(cursor, budget, 'items', count)
  const values: GgufValue[] = []
  if (items !== 'array') {
    for (let i = 0; i < count; i++) values.push(readScalar(cursor, items))
    return values
  }
  if (depth === deepestArray) cursor.fail(`expected arrays at most ${deepestArray} deep`, offset)
  spend(cursor, budget, 'arrays', count)
  for (let i = 0; i < count; i++) values.push(readArray(cursor, readType(cursor), budget, depth + 1))
  return values
}

function readAlignment(source: Source, metadata: ReadonlyMap<string, GgufEntry>): number {
  const entry = metadata.get('general.alignment')
  if (!entry) return 32
  const { type, value } = entry
  if (type === 'u32' && typeof value === 'number' && value > 0 && (value & (value - 1)) === 0) return value
  throw corrupt(
    source.path,
    undefined,
    `metadata key "general.alignment": expected a power of two of type u32, got ${quote(String(value))} of type ${type}`,
  )
}

// ── tensors ──────────────────────────────────────────────────────────────────────────────────────────────────────────

interface DescribedTensor {
  readonly name: string
  /** Row-major. */
  readonly shape: readonly number[]
  readonly typeId: number
  readonly type: GgmlType | undefined
  /** From the beginning of the data. */
  readonly offset: number
  /** Undefined where the type is not known. */
  readonly bytes: number | undefined
  /** Where the header describes it. */
  readonly describedAt: number
}

function readTensors(cursor: GgufCursor, count: number): DescribedTensor[] {
  const names = new Set<string>()
  const tensors: DescribedTensor[] = []
  for (let i = 0; i < count; i++) {
    cursor.what = `tensor ${i} of ${count}`
    const describedAt = cursor.position
    const name = cursor.string()
    if (name === '') cursor.fail('expected a name, got an empty string', describedAt)
    cursor.what = `tensor ${quote(name)}`
    if (names.has(name)) cursor.fail('expected it once, got it again', describedAt)
    names.add(name)
    const shape = readShape(cursor)
    const typeId = cursor.u32()
    const type = ggmlTypeById.get(typeId)
    const bytes = type && storedBytes(cursor, shape, type)
    const offset = cursor.size('an offset')
    tensors.push({ name, shape, typeId, type, offset, bytes, describedAt })
  }
  return tensors
}

function readShape(cursor: GgufCursor): number[] {
  const rank = cursor.u32()
  if (rank > mostDimensions)
    cursor.fail(`expected at most ${mostDimensions} dimensions, got ${rank}`, cursor.position - 4)
  const shape: number[] = []
  let elements = 1
  for (let axis = 0; axis < rank; axis++) {
    const dim = cursor.size('a dimension')
    shape.unshift(dim)
    // A dimension of 0 must not hide that the others are absurd.
    elements *= Math.max(dim, 1)
    if (!Number.isSafeInteger(elements))
      cursor.fail(`expected fewer than 2^53 elements, got dimensions ${shape.join(' x ')}`)
  }
  return shape
}

function storedBytes(cursor: GgufCursor, shape: readonly number[], type: GgmlType): number {
  const columns = shape.at(-1) ?? 1
  if (columns % type.block !== 0) {
    cursor.fail(`expected rows of a multiple of ${type.block} elements (${type.name}), got ${columns}`)
  }
  const elements = shape.reduce((product, dim) => product * dim, 1)
  const bytes = (elements / type.block) * type.blockBytes
  return Number.isSafeInteger(bytes) ? bytes : cursor.fail(`expected less than 2^53 bytes, got ${bytes}`)
}

/** Checks that the tensors lie inside the file, aligned and apart. */
function placeTensors(
  source: Source,
  described: readonly DescribedTensor[],
  headerEnd: number,
  alignment: number,
): StoredTensor[] {
  const dataStart = Math.ceil(headerEnd / alignment) * alignment
  const byOffset = [...described].sort((a, b) => a.offset - b.offset)
  const extents = new Map<DescribedTensor, number>()
  let previous: DescribedTensor | undefined
  let end = 0
  for (const [index, tensor] of byOffset.entries()) {
    const { name, offset, describedAt } = tensor
    const fail = (what: string): never => {
      throw corrupt(source.path, describedAt, `tensor ${quote(name)}: ${what}`)
    }
    if (offset % alignment !== 0) fail(`expected an offset that is a multiple of ${alignment}, got ${offset}`)
    const start = dataStart + offset
    // What a newer type takes is known only from where the next tensor begins.
    const next = byOffset[index + 1]
    const bytes = tensor.bytes ?? Math.max((next ? dataStart + next.offset : source.size) - start, 0)
    if (start + bytes > source.size) {
      fail(`expected its ${bytes} bytes at ${start} to end within the file, which has ${source.size} bytes`)
    }
    if (bytes > 0) {
      if (previous && offset < end)
        fail(
          `expected it apart from tensor ${quote(previous.name)}, which ends at ${dataStart + end}; it begins at ${start}`,
        )
      previous = tensor
      end = offset + bytes
    }
    extents.set(tensor, bytes)
  }
  return described.map((tensor) => ({
    name: tensor.name,
    storedType: tensor.type?.name ?? `type ${tensor.typeId}`,
    dtype: tensor.type?.dtype,
    shape: tensor.shape,
    file: source.path,
    offset: dataStart + tensor.offset,
    bytes: extents.get(tensor) ?? 0,
  }))
}
