/**
 * Where bytes of a checkpoint file come from: a file, or memory. Headers only: tensor data never comes this way.
 * @module
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { dirname } from 'node:path'
import { type ErrorCode, LapidaryError } from '../errors.ts'

/** A file whose bytes can be read at any place. Reads are synchronous: headers are small, and their parsing takes longer. */
export interface Source {
  /** The file's path, for messages. */
  readonly path: string
  /** In bytes. */
  readonly size: number
  /**
   * Fills `into` with the bytes at `offset`, which the caller has checked against `size`.
   * @throws ERR_FILE if the file has meanwhile become shorter, or cannot be read.
   */
  read(offset: number, into: Uint8Array): void
}

/**
 * Runs `use` on the file at `path`. Symbolic links are followed; folders, pipes, sockets and devices are refused.
 * @throws ERR_FILE if it cannot be opened.
 */
export function withFile<T>(path: string, use: (source: Source) => T): T {
  let descriptor: number
  try {
    // Opening a pipe that nobody writes would wait for ever.
    descriptor = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  } catch (error) {
    throw fileError(path, error)
  }
  try {
    const stat = fstatSync(descriptor)
    if (!stat.isFile()) {
      const kind = stat.isDirectory() ? 'a folder' : stat.isFIFO() ? 'a pipe' : 'a device or socket'
      throw new LapidaryError('ERR_FILE', `${path}: expected a file, got ${kind}`)
    }
    return use(new OpenFile(path, stat.size, descriptor))
  } finally {
    closeSync(descriptor)
  }
}

class OpenFile implements Source {
  readonly path: string
  readonly size: number
  readonly #descriptor: number

  constructor(path: string, size: number, descriptor: number) {
    this.path = path
    this.size = size
    this.#descriptor = descriptor
  }

  read(offset: number, into: Uint8Array): void {
    let done = 0
    while (done < into.length) {
      let count: number
      try {
        count = readSync(this.#descriptor, into, done, into.length - done, offset + done)
      } catch (error) {
        throw fileError(this.path, error)
      }
      if (count === 0) {
        const text = `${this.path}: expected ${this.size} bytes, got ${offset + done}: the file became shorter while it was read`
        throw new LapidaryError('ERR_FILE', text)
      }
      done += count
    }
  }
}

/** Memory as a file named `path`. */
export function memorySource(path: string, bytes: Uint8Array): Source {
  return {
    path,
    size: bytes.length,
    read: (offset, into) => into.set(bytes.subarray(offset, offset + into.length)),
  }
}

/** The operating system's answer as an ERR_FILE that names the file. */
export function fileError(path: string, error: unknown): LapidaryError {
  const reasons: Record<string, string> = {
    ENOENT: 'there is no such file',
    ENOTDIR: 'a part of the path is no folder',
    EACCES: 'permission denied',
    EPERM: 'permission denied',
    EISDIR: 'expected a file, got a folder',
    ELOOP: 'the symbolic link leads to itself',
    ENOSPC: 'no space is left on the device',
    ENXIO: 'expected a file, got a device or socket',
    ENAMETOOLONG: 'the name is too long',
  }
  const code = (error as NodeJS.ErrnoException | undefined)?.code ?? ''
  const reason = reasons[code] ?? (error instanceof Error ? error.message : String(error))
  return new LapidaryError('ERR_FILE', `${path}: ${reason}`, { cause: error })
}

/** The same for a file that was to be written: what is not there is its folder. */
export function outputError(path: string, error: unknown): LapidaryError {
  if ((error as NodeJS.ErrnoException | undefined)?.code !== 'ENOENT') return fileError(path, error)
  return new LapidaryError('ERR_FILE', `${path}: there is no such folder as ${dirname(path)}`, { cause: error })
}

/** Text from a file, made fit for one line of a message: cut, and without control characters. */
export function quote(text: unknown): string {
  const plain = typeof text === 'string' ? text : (safeJson(text) ?? String(text))
  const cut = plain.length > 80 ? `${plain.slice(0, 77)}…` : plain
  const shown = JSON.stringify(cut)
  return typeof text === 'string' ? shown : shown.slice(1, -1).replaceAll('\\"', '"')
}

function safeJson(value: unknown): string | undefined {
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}(${(value as Uint8Array).length})`
  if (Array.isArray(value) && value.length > 16) return `a list of ${value.length}`
  try {
    return JSON.stringify(value)
  } catch {
    return typeof value
  }
}

/** An error about a place in a file: `<file>: byte <offset>: <what>`. */
export function formatError(
  code: Extract<ErrorCode, 'ERR_CHECKPOINT_CORRUPT' | 'ERR_CHECKPOINT_UNSUPPORTED'>,
  path: string,
  offset: number | undefined,
  what: string,
): LapidaryError {
  return new LapidaryError(code, offset === undefined ? `${path}: ${what}` : `${path}: byte ${offset}: ${what}`)
}

/** ERR_CHECKPOINT_CORRUPT at a place in a file. */
export function corrupt(path: string, offset: number | undefined, what: string): LapidaryError {
  return formatError('ERR_CHECKPOINT_CORRUPT', path, offset, what)
}

/** ERR_CHECKPOINT_UNSUPPORTED at a place in a file. */
export function unsupported(path: string, offset: number | undefined, what: string): LapidaryError {
  return formatError('ERR_CHECKPOINT_UNSUPPORTED', path, offset, what)
}
