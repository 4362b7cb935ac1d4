/**
 * The packed cache: a file beside the checkpoint that holds its matrices as the kernels stream them, so that the next start reads instead
 * of packing.
 *
 *     bytes 0 … 79     magic, version, and where the index is, with its SHA-256
 *     from byte 4096   packed matrices, each at a multiple of 4096
 *     at the end       the index, JSON: layout and options, the checkpoint's files with sizes and times, and each matrix's place and form
 *
 * The index is written last, the file is flushed and then renamed: what has the right name is whole. A file that does not fit the checkpoint,
 * the options or this version is ignored and replaced.
 * @module
 */
import { createHash } from 'node:crypto'
import { type FileHandle, mkdir, open, readdir, rename, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import type { Device } from '../../device.ts'
import { LapidaryError } from '../../errors.ts'
import { packWeights } from '../../ops/pack-weights.ts'
import type { Stream } from '../../stream.ts'
import { type PackedForm, Tensor } from '../../tensor.ts'

const magic = 'LAPIDARY PACKED\n'
const version = 1
const preludeBytes = 80
const alignment = 4096
/** An index beyond this is damage: that of 62 layers takes 100 KB. */
const maxIndexBytes = 2 ** 24
/** A temporary file that nobody has written to for so long is what a killed process left. */
const abandonedMs = 3_600_000

/** Smaller models are packed faster than a cache is opened. */
export const smallestCachedBytes: number = 64 * 2 ** 20

/** Whose matrices they are: the first file gives the cache its name. */
export type CacheSources = Pick<Checkpoint, 'files'>

/** What a cache must agree on to be used. */
export interface CacheIdentity {
  /** Of the device's packed layout; part of the file's name, so that machines that share a folder do not displace each other. */
  readonly layout: string
  readonly options: Readonly<Record<string, string>>
}

interface Source {
  readonly name: string
  readonly size: number
  readonly mtimeMs: number
}

interface Place {
  readonly offset: number
  readonly form: PackedForm
}

interface Index {
  readonly identity: CacheIdentity
  readonly sources: readonly Source[]
  readonly tensors: Readonly<Record<string, Place>>
}

/** What a cache for this device must agree on. Its packed layout shows on any packed matrix. */
export function cacheIdentity(device: Device, options: CacheIdentity['options']): CacheIdentity {
  using sample = Tensor.zeros(device, [1, 32])
  using packed = packWeights(sample)
  const { panelRows, layoutVersion } = packed.packedForm()
  return { layout: `r${panelRows}v${layoutVersion}`, options }
}

/**
 * Where the cache of a checkpoint is kept.
 * @param folder undefined: beside the checkpoint.
 */
export function cachePath(checkpoint: CacheSources, identity: CacheIdentity, folder?: string): string {
  const main = path.resolve(checkpoint.files[0] as string)
  const options = Object.values(identity.options).map((value) => `-${value}`)
  const suffix = `lapidary-${identity.layout}${options.join('')}`
  if (folder === undefined) return `${main}.${suffix}`
  // Models of one name from different places share the folder.
  const place = createHash('sha256').update(main).digest('hex').slice(0, 12)
  return path.join(folder, `${path.basename(main)}-${place}.${suffix}`)
}

/** A cache that fits. */
export class PackedCacheReader {
  readonly #file: string
  readonly #index: Index

  private constructor(file: string, index: Index) {
    this.#file = file
    this.#index = index
  }

  /** The cache at `file`, or undefined where there is none that is whole and fits. Never throws. */
  static async open(
    file: string,
    checkpoint: CacheSources,
    identity: CacheIdentity,
  ): Promise<PackedCacheReader | undefined> {
    let handle: FileHandle | undefined
    try {
      handle = await open(file, 'r')
      const index = await readIndex(handle)
      const expected = JSON.stringify([identity, await describeSources(checkpoint)])
      if (index === undefined || JSON.stringify([index.identity, index.sources]) !== expected) return undefined
      return new PackedCacheReader(file, index)
    } catch {
      return undefined
    } finally {
      await handle?.close().catch(() => {})
    }
  }

  /** Whether it holds a matrix of each of these names and shapes. */
  holds(shapes: ReadonlyMap<string, readonly number[]>): boolean {
    for (const [name, shape] of shapes) {
      if (JSON.stringify(this.#index.tensors[name]?.form.shape) !== JSON.stringify(shape)) return false
    }
    return true
  }

  /**
   * Reads matrices, one after the other.
   * @param read Is told the bytes read so far, and of all; before the first, 0. Throwing ERR_ABORTED ends the reading.
   * @returns undefined if the file became unreadable under our hands. What was read by then is released, also when aborted.
   */
  async loadAll(
    device: Device,
    stream: Stream,
    names: Iterable<string>,
    read: (bytes: number, total: number) => void,
  ): Promise<Map<string, Tensor> | undefined> {
    const places = [...names].map((name) => [name, this.#index.tensors[name] as Place] as const)
    const total = places.reduce((sum, [, { form }]) => sum + form.bytes, 0)
    const matrices = new Map<string, Tensor>()
    let bytes = 0
    try {
      read(bytes, total)
      for (const [name, { form, offset }] of places) {
        const options = { shape: form.shape, dtype: form.dtype, offset, form }
        matrices.set(
          name,
          stream.use(() => Tensor.load(device, this.#file, options)),
        )
        await stream.synchronize()
        bytes += form.bytes
        read(bytes, total)
      }
      return matrices
    } catch (error) {
      for (const tensor of matrices.values()) tensor.dispose()
      if (error instanceof LapidaryError && error.code === 'ERR_ABORTED') throw error
      return undefined
    }
  }
}

/** The bytes of an index that the prelude vouches for, or undefined. */
async function readIndex(handle: FileHandle): Promise<Index | undefined> {
  const prelude = Buffer.alloc(preludeBytes)
  const { size } = await handle.stat()
  await handle.read(prelude, 0, preludeBytes, 0)
  if (prelude.toString('latin1', 0, magic.length) !== magic || prelude.readUInt32LE(16) !== version) return undefined
  const offset = Number(prelude.readBigUInt64LE(24))
  const bytes = Number(prelude.readBigUInt64LE(32))
  if (bytes > maxIndexBytes || offset + bytes !== size) return undefined
  const text = Buffer.alloc(bytes)
  await handle.read(text, 0, bytes, offset)
  if (!createHash('sha256').update(text).digest().equals(prelude.subarray(40, 72))) return undefined
  const index = JSON.parse(text.toString()) as Index
  const inside = Object.values(index.tensors).every((place) => place.offset + place.form.bytes <= offset)
  return inside ? index : undefined
}

async function describeSources(checkpoint: CacheSources): Promise<Source[]> {
  return Promise.all(
    checkpoint.files.map(async (file) => {
      const { size, mtimeMs } = await stat(file)
      return { name: path.basename(file), size, mtimeMs }
    }),
  )
}

/** Writes a cache as matrices are packed. Nothing that goes wrong with it throws: the load goes on without a cache. */
export class PackedCacheWriter {
  readonly #file: string
  readonly #temporary: string
  readonly #identity: CacheIdentity
  readonly #sources: readonly Source[]
  readonly #tensors: Record<string, Place> = {}
  #end = alignment
  #failed = false

  private constructor(file: string, identity: CacheIdentity, sources: readonly Source[]) {
    this.#file = file
    this.#temporary = `${file}.${process.pid}-${Date.now().toString(36)}.partial`
    this.#identity = identity
    this.#sources = sources
  }

  /** A writer, or undefined where the folder cannot be written to. */
  static async create(
    file: string,
    checkpoint: CacheSources,
    identity: CacheIdentity,
  ): Promise<PackedCacheWriter | undefined> {
    try {
      await removeAbandoned(file)
      const writer = new PackedCacheWriter(file, identity, await describeSources(checkpoint))
      await (await open(writer.#temporary, 'wx')).close()
      return writer
    } catch {
      return undefined
    }
  }

  /** Keeps a packed matrix. */
  async add(name: string, tensor: Tensor): Promise<void> {
    const offset = this.#end
    if (await this.#save(tensor, offset)) this.#place(name, offset, tensor.packedForm())
  }

  /**
   * Keeps a matrix that is packed block by block, and reads it back whole: so the blocks and the whole are never in memory at once.
   * @param blocks Blocks of whole panels, in order. Each is released here.
   * @returns undefined if writing failed.
   */
  async assemble(name: string, rows: number, blocks: Iterable<Tensor>): Promise<Tensor | undefined> {
    const start = this.#end
    let end = start
    let first: Tensor | undefined
    let form: PackedForm | undefined
    for (const block of blocks) {
      using held = block
      first ??= held
      const { bytes, ...rest } = held.packedForm()
      form ??= { ...rest, bytes }
      if (!(await this.#save(held, end))) return undefined
      end += bytes
    }
    if (first === undefined || form === undefined) return undefined
    const shape = [rows, form.shape[1] as number]
    const whole: PackedForm = { ...form, shape, bytes: end - start }
    this.#place(name, start, whole)
    return Tensor.load(first.device, this.#temporary, { shape, dtype: whole.dtype, offset: start, form: whole })
  }

  /** Writes the index and gives the file its name, which is returned; undefined if writing failed. */
  async finish(): Promise<string | undefined> {
    let handle: FileHandle | undefined
    try {
      if (this.#failed) return undefined
      const index: Index = { identity: this.#identity, sources: this.#sources, tensors: this.#tensors }
      const text = Buffer.from(JSON.stringify(index))
      const prelude = Buffer.alloc(preludeBytes)
      prelude.write(magic, 'latin1')
      prelude.writeUInt32LE(version, 16)
      prelude.writeBigUInt64LE(BigInt(this.#end), 24)
      prelude.writeBigUInt64LE(BigInt(text.length), 32)
      createHash('sha256').update(text).digest().copy(prelude, 40)
      handle = await open(this.#temporary, 'r+')
      await handle.write(text, 0, text.length, this.#end)
      await handle.write(prelude, 0, preludeBytes, 0)
      await handle.truncate(this.#end + text.length)
      await handle.sync()
      await handle.close()
      handle = undefined
      await rename(this.#temporary, this.#file)
      return this.#file
    } catch {
      await this.discard()
      return undefined
    } finally {
      await handle?.close().catch(() => {})
    }
  }

  /** Removes what was written. */
  async discard(): Promise<void> {
    this.#failed = true
    await unlink(this.#temporary).catch(() => {})
  }

  async #save(tensor: Tensor, offset: number): Promise<boolean> {
    if (this.#failed) return false
    try {
      await tensor.save(this.#temporary, offset)
      return true
    } catch {
      // The disk is full, or the folder has gone.
      await this.discard()
      return false
    }
  }

  #place(name: string, offset: number, form: PackedForm): void {
    this.#tensors[name] = { offset, form }
    this.#end = Math.ceil((offset + form.bytes) / alignment) * alignment
  }
}

/** Removes what killed processes left, where it can. Never throws: another process may do the same, or finish its file, at this moment. */
async function removeAbandoned(file: string): Promise<void> {
  const folder = path.dirname(file)
  for (const name of await readdir(folder).catch(() => [])) {
    if (!name.startsWith(`${path.basename(file)}.`) || !name.endsWith('.partial')) continue
    const partial = path.join(folder, name)
    const written = await stat(partial).catch(() => undefined)
    if (written && Date.now() - written.mtimeMs > abandonedMs) await unlink(partial).catch(() => {})
  }
}

/** What a loader wants from the packed cache. */
export interface CacheRequest {
  readonly sources: CacheSources
  readonly identity: CacheIdentity
  /** Whether, and in which folder. Default: beside the checkpoint, if the matrices are large enough. */
  readonly wanted: boolean | string | undefined
  /** Of the matrices as they are stored. */
  readonly bytes: number
  readonly shapes: ReadonlyMap<string, readonly number[]>
  readonly device: Device
  readonly stream: Stream
  /** As {@link PackedCacheReader.loadAll} calls it; what it throws ends the loading. */
  readonly onBytes: (bytes: number, total: number) => void
}

/** All matrices and the file they came from, if there is one that fits; otherwise a new one to be written; nothing where none is wanted. */
export async function openPackedCache(request: CacheRequest): Promise<{
  readonly found?: { readonly file: string; readonly matrices: Map<string, Tensor> }
  readonly writer?: PackedCacheWriter | undefined
}> {
  const { sources, identity, shapes, device, stream } = request
  const wanted = request.wanted ?? request.bytes >= smallestCachedBytes
  if (wanted === false) return {}
  const file = cachePath(sources, identity, wanted === true ? undefined : wanted)
  if (wanted !== true) await mkdir(wanted, { recursive: true }).catch(() => {})
  const reader = await PackedCacheReader.open(file, sources, identity)
  const matrices = reader?.holds(shapes)
    ? await reader.loadAll(device, stream, shapes.keys(), request.onBytes)
    : undefined
  // A process that was killed while it wrote may be followed by none that writes.
  if (matrices) await removeAbandoned(file)
  return matrices ? { found: { file, matrices } } : { writer: await PackedCacheWriter.create(file, sources, identity) }
}
