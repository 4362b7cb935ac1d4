/**
 * Writes GGUF version 3: metadata first, then the tensors' bytes, in pieces as they come.
 * @module
 */
import { randomBytes } from 'node:crypto'
import { open, rename, stat, unlink } from 'node:fs/promises'
import { type DType, dtypes } from '../dtype.ts'
import { LapidaryError } from '../errors.ts'
import {
  type GgmlType,
  type GgufEntry,
  type GgufValue,
  type GgufValueType,
  ggmlTypeOf,
  ggufValueTypes,
  numericArrays,
} from './gguf-types.ts'
import { outputError, quote } from './source.ts'

/** What ggml assumes where the metadata does not say. */
const alignment = 32

/** A tensor to be written. */
export interface GgufTensor {
  readonly name: string
  /** One that GGUF has: not `u8`, `sfp8` or `i4`. */
  readonly dtype: DType
  /** Row-major, outermost dimension first. */
  readonly shape: readonly number[]
  /** Called once, when the tensor's turn comes. The pieces must add up to the tensor's bytes. */
  readonly data: () => Iterable<Uint8Array> | AsyncIterable<Uint8Array>
}

export interface WriteGgufOptions {
  /** Called after every piece with bytes of tensors written and bytes in all. */
  readonly onProgress?: (done: number, total: number) => void
  readonly signal?: AbortSignal
}

/** A metadata value of the given type. */
export function ggufValue(type: Exclude<GgufValueType, 'array'>, value: number | bigint | boolean | string): GgufEntry {
  return { type, value }
}

/** A metadata array whose items have the given type. */
export function ggufArray(items: Exclude<GgufValueType, 'array'>, value: ArrayLike<GgufValue>): GgufEntry {
  return { type: 'array', items, value: value as GgufValue }
}

/**
 * Writes a GGUF file. It appears under its name when it is complete; a failure or an abort leaves nothing behind, and a file that was
 * there before untouched. A process that is killed leaves `<path>.<random>.partial`.
 *
 * @param metadata Must hold general.architecture.
 * @returns Bytes of the file.
 * @throws ERR_INVALID_ARGUMENT if a name repeats, a dtype has no GGUF type, or a tensor's pieces do not add up to its bytes; ERR_FILE;
 *   ERR_ABORTED
 * @example
 * await writeGguf('out.gguf', [['general.architecture', ggufValue('string', 'gemma3')]], [
 *   { name: 'output_norm.weight', dtype: 'f32', shape: [640], data: () => [new Uint8Array(2560)] },
 * ])
 */
export async function writeGguf(
  path: string,
  metadata: Iterable<readonly [key: string, entry: GgufEntry]>,
  tensors: readonly GgufTensor[],
  options: WriteGgufOptions = {},
): Promise<number> {
  const { onProgress, signal } = options
  const placed = placeTensors(tensors)
  const header = encodeHeader([...metadata], placed)
  const last = placed.at(-1)
  const total = placed.reduce((sum, { bytes }) => sum + bytes, 0)
  const partial = `${path}.${randomBytes(6).toString('hex')}.partial`
  let done = 0
  const fail = (error: unknown): LapidaryError => (error instanceof LapidaryError ? error : outputError(path, error))

  throwIfAborted(signal, path)
  await expectReplaceable(path)
  const file = await open(partial, 'wx').catch((error: unknown) => {
    throw fail(error)
  })
  try {
    await writeAll(header, 0)
    for (const { tensor, offset, bytes } of placed) {
      let written = 0
      for await (const piece of tensor.data()) {
        throwIfAborted(signal, path)
        if (written + piece.length > bytes) throw wrongBytes(tensor, bytes, `${written + piece.length} or more`)
        await writeAll(piece, header.length + offset + written)
        written += piece.length
        done += piece.length
        onProgress?.(done, total)
      }
      if (written !== bytes) throw wrongBytes(tensor, bytes, String(written))
    }
    throwIfAborted(signal, path)
    // The padding after the last tensor.
    const size = header.length + (last ? align(last.offset + last.bytes) : 0)
    await file.truncate(size).catch((error: unknown) => {
      throw fail(error)
    })
    await file.close()
    await rename(partial, path).catch((error: unknown) => {
      throw fail(error)
    })
    return size
  } catch (error) {
    await file.close().catch(() => undefined)
    await unlink(partial).catch(() => undefined)
    throw error
  }

  async function writeAll(bytes: Uint8Array, position: number): Promise<void> {
    try {
      for (let at = 0; at < bytes.length; ) {
        at += (await file.write(bytes, at, bytes.length - at, position + at)).bytesWritten
      }
    } catch (error) {
      throw fail(error)
    }
  }
}

/** The file is renamed into its place: what is there and is no file, /dev/stdout for one, would be gone. */
async function expectReplaceable(path: string): Promise<void> {
  const there = await stat(path).catch(() => undefined)
  if (there === undefined || there.isFile()) return
  const kind = there.isDirectory() ? 'a folder' : 'a device, pipe or socket'
  throw new LapidaryError('ERR_FILE', `${path}: expected a file to write, got ${kind}`)
}

function invalid(what: string): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `writeGguf: ${what}`)
}

function wrongBytes({ name }: GgufTensor, bytes: number, got: string): LapidaryError {
  return invalid(`tensor ${quote(name)}: expected pieces of ${bytes} bytes in all, got ${got}`)
}

/** @internal */
export function throwIfAborted(signal: AbortSignal | undefined, path: string): void {
  if (signal?.aborted) {
    throw new LapidaryError('ERR_ABORTED', `${path}: the signal ended the writing`, { cause: signal.reason })
  }
}

function align(offset: number): number {
  return Math.ceil(offset / alignment) * alignment
}

interface PlacedTensor {
  readonly tensor: GgufTensor
  readonly type: GgmlType
  /** From the beginning of the data. */
  readonly offset: number
  readonly bytes: number
}

function placeTensors(tensors: readonly GgufTensor[]): PlacedTensor[] {
  const names = new Set<string>()
  let end = 0
  return tensors.map((tensor) => {
    const { name, dtype, shape } = tensor
    if (name === '' || names.has(name)) throw invalid(`tensors: expected names that differ, got ${quote(name)} again`)
    names.add(name)
    const type = ggmlTypeOf.get(dtype)
    if (!type) throw invalid(`tensor ${quote(name)}: dtype: expected one that GGUF has, got ${dtype}`)
    const bytes = storedBytes(dtype, shape)
    if (bytes === undefined)
      throw invalid(`tensor ${quote(name)}: expected a shape that fits ${dtype}, got [${shape.join(', ')}]`)
    const offset = align(end)
    end = offset + bytes
    return { tensor, type, offset, bytes }
  })
}

/** Bytes of a tensor; undefined if the shape is no shape, or its rows do not end with a block. */
export function storedBytes(dtype: DType, shape: readonly number[]): number | undefined {
  const info = dtypes.find(({ name }) => name === dtype)
  const isShape = shape.length <= 4 && shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0)
  if (!info || !isShape || (shape.at(-1) ?? 1) % info.block !== 0) return undefined
  return (shape.reduce((product, dim) => product * dim, 1) / info.block) * info.blockBytes
}

// ── the header ───────────────────────────────────────────────────────────────────────────────────────────────────────

function encodeHeader(
  metadata: readonly (readonly [string, GgufEntry])[],
  tensors: readonly PlacedTensor[],
): Uint8Array {
  const keys = new Set(metadata.map(([key]) => key))
  if (keys.size !== metadata.length) throw invalid('metadata: expected keys that differ')
  if (!keys.has('general.architecture')) throw invalid('metadata: expected general.architecture, got none')
  const out = new Encoder()
  out.u32(0x46554747)
  out.u32(3)
  out.u64(tensors.length)
  out.u64(metadata.length)
  for (const [key, entry] of metadata) {
    out.string(key)
    out.entry(key, entry)
  }
  for (const { tensor, type, offset } of tensors) {
    out.string(tensor.name)
    out.u32(tensor.shape.length)
    for (const dim of tensor.shape.toReversed()) out.u64(dim)
    out.u32(type.id)
    out.u64(offset)
  }
  return out.finish()
}

/** A buffer that grows. */
class Encoder {
  #bytes = Buffer.alloc(1 << 16)
  #at = 0

  #claim(count: number): number {
    if (this.#at + count > this.#bytes.length) {
      const larger = Buffer.alloc(Math.max(this.#bytes.length * 2, this.#at + count))
      this.#bytes.copy(larger, 0, 0, this.#at)
      this.#bytes = larger
    }
    const start = this.#at
    this.#at += count
    return start
  }

  u32(value: number): void {
    const start = this.#claim(4)
    this.#bytes.writeUInt32LE(value, start)
  }

  u64(value: number | bigint): void {
    const start = this.#claim(8)
    this.#bytes.writeBigUInt64LE(BigInt(value), start)
  }

  string(text: string): void {
    const most = text.length * 3
    const start = this.#claim(8 + most)
    const length = this.#bytes.write(text, start + 8, most, 'utf8')
    this.#bytes.writeBigUInt64LE(BigInt(length), start)
    this.#at = start + 8 + length
  }

  entry(key: string, { type, items, value }: GgufEntry): void {
    this.u32(ggufValueTypes.indexOf(type))
    try {
      if (type !== 'array') {
        this.#scalar(type, value)
        return
      }
      const list = value as ArrayLike<GgufValue>
      if (items === undefined || items === 'array') throw invalid('arrays of arrays are not written')
      this.u32(ggufValueTypes.indexOf(items))
      this.u64(list.length)
      this.#items(items, list)
    } catch (error) {
      // Buffer's own range errors, and BigInt's.
      throw invalid(`metadata: ${quote(key)}: expected values of type ${items ?? type}: ${(error as Error).message}`)
    }
  }

  #items(items: Exclude<GgufValueType, 'array'>, list: ArrayLike<GgufValue>): void {
    const typedArray = numericArrays[items]
    if (typedArray && list instanceof typedArray) {
      const bytes = new Uint8Array(list.buffer, list.byteOffset, list.byteLength)
      const start = this.#claim(bytes.length)
      this.#bytes.set(bytes, start)
      return
    }
    for (let i = 0; i < list.length; i++) this.#scalar(items, list[i] as GgufValue)
  }

  #scalar(type: Exclude<GgufValueType, 'array'>, value: GgufValue): void {
    if (type === 'string') {
      if (typeof value !== 'string') throw new TypeError(`got ${quote(value)}`)
      this.string(value)
      return
    }
    if (type === 'bool') {
      if (typeof value !== 'boolean') throw new TypeError(`got ${quote(value)}`)
      const start = this.#claim(1)
      this.#bytes[start] = value ? 1 : 0
      return
    }
    if (typeof value !== 'number' && typeof value !== 'bigint') throw new TypeError(`got ${quote(value)}`)
    this.#number(type, value)
  }

  #number(type: Exclude<GgufValueType, 'array' | 'string' | 'bool'>, value: number | bigint): void {
    const isFloat = type === 'f32' || type === 'f64'
    if (!isFloat && typeof value === 'number' && !Number.isSafeInteger(value)) throw new RangeError(`got ${value}`)
    const bytes = type.endsWith('64') ? 8 : type.endsWith('32') ? 4 : type.endsWith('16') ? 2 : 1
    const start = this.#claim(bytes)
    switch (type) {
      case 'u64':
        this.#bytes.writeBigUInt64LE(BigInt(value), start)
        break
      case 'i64':
        this.#bytes.writeBigInt64LE(BigInt(value), start)
        break
      case 'f32':
        this.#bytes.writeFloatLE(Number(value), start)
        break
      case 'f64':
        this.#bytes.writeDoubleLE(Number(value), start)
        break
      default:
        if (type.startsWith('u')) this.#bytes.writeUIntLE(Number(value), start, bytes)
        else this.#bytes.writeIntLE(Number(value), start, bytes)
    }
  }

  /** What was written, padded to where the data begins. */
  finish(): Uint8Array {
    const size = align(this.#at)
    this.#claim(size - this.#at)
    return this.#bytes.subarray(0, size)
  }
}
