/**
 * Reads a GGUF header from front to back through a window, checking every length against the file before it is believed.
 * @module
 */
import { isUtf8 } from 'node:buffer'
import { corrupt, type Source } from './source.ts'

/** Bytes read at a time. A 262,144-piece vocabulary has 6 MB of metadata. */
const windowBytes = 1 << 20

/** The longest string accepted: a chat template has some thousand bytes, a tokenizer's piece less than a hundred. */
const longestString = 16 << 20

/** Where a GGUF header may end at most: memory is bounded also for a large file that lies. */
const longestHeader = 256 << 20

export class GgufCursor {
  readonly source: Source
  /** What is being read, for messages: a key, a tensor … */
  what = 'the header'
  #window: Buffer
  /** Offset in the file of the window's first byte. */
  #base = 0
  #filled = 0
  /** In the window. */
  #at = 0

  constructor(source: Source) {
    this.source = source
    this.#window = Buffer.allocUnsafe(Math.min(windowBytes, source.size))
  }

  /** The offset in the file. */
  get position(): number {
    return this.#base + this.#at
  }

  /** Bytes from here to the end of the file. */
  get remaining(): number {
    return this.source.size - this.position
  }

  fail(what: string, offset: number = this.position): never {
    throw corrupt(this.source.path, offset, `${this.what}: ${what}`)
  }

  /** Makes `count` bytes readable at the returned index of the window, and steps over them. */
  #take(count: number): number {
    if (this.#at + count > this.#filled) this.#fill(count)
    const index = this.#at
    this.#at += count
    return index
  }

  #fill(count: number): void {
    this.expect(count)
    const position = this.position
    const size = Math.min(Math.max(count, windowBytes), this.remaining)
    if (size > this.#window.length) this.#window = Buffer.allocUnsafe(size)
    this.source.read(position, this.#window.subarray(0, size))
    this.#base = position
    this.#filled = size
    this.#at = 0
  }

  /** Checks that the file, and a header of sane size, has `count` more bytes. */
  expect(count: number, unit = 'bytes'): void {
    if (count > this.remaining) {
      this.fail(`expected ${count} ${unit} from here, got ${this.remaining}: the file has ${this.source.size} bytes`)
    }
    if (this.position + count > longestHeader) {
      this.fail(`expected metadata that ends by byte ${longestHeader}, got ${count} more bytes`)
    }
  }

  u8(): number {
    return this.#window[this.#take(1)] as number
  }

  i8(): number {
    return this.#window.readInt8(this.#take(1))
  }

  u16(): number {
    return this.#window.readUInt16LE(this.#take(2))
  }

  i16(): number {
    return this.#window.readInt16LE(this.#take(2))
  }

  u32(): number {
    return this.#window.readUInt32LE(this.#take(4))
  }

  i32(): number {
    return this.#window.readInt32LE(this.#take(4))
  }

  f32(): number {
    return this.#window.readFloatLE(this.#take(4))
  }

  f64(): number {
    return this.#window.readDoubleLE(this.#take(8))
  }

  /** As a number where one holds it exactly. */
  u64(): number | bigint {
    const index = this.#take(8)
    const high = this.#window.readUInt32LE(index + 4)
    if (high < 0x200000) return high * 2 ** 32 + this.#window.readUInt32LE(index)
    return this.#window.readBigUInt64LE(index)
  }

  /** As a number where one holds it exactly. */
  i64(): number | bigint {
    const value = this.#window.readBigInt64LE(this.#take(8))
    const number = Number(value)
    return Number.isSafeInteger(number) ? number : value
  }

  /** A count, length or dimension: beyond 2^53 nothing is. */
  size(name: string): number {
    const offset = this.position
    const value = this.u64()
    return typeof value === 'number' ? value : this.fail(`expected ${name} below 2^53, got ${value}`, offset)
  }

  bool(): boolean {
    const value = this.u8()
    if (value > 1) this.fail(`expected a boolean, 0 or 1, got ${value}`, this.position - 1)
    return value === 1
  }

  string(): string {
    const length = this.size('a length')
    if (length > longestString)
      this.fail(`expected a string of at most ${longestString} bytes, got ${length}`, this.position - 8)
    const start = this.#take(length)
    const text = this.#window.toString('utf8', start, start + length)
    // The decoder replaces what is not UTF-8; a U+FFFD may also be what the file says.
    if (text.includes('\ufffd') && !isUtf8(this.#window.subarray(start, start + length))) {
      this.fail('expected UTF-8', this.position - length)
    }
    return text
  }

  /** The next bytes, in memory of their own. */
  bytes(count: number): ArrayBuffer {
    this.expect(count)
    const bytes = new Uint8Array(count)
    const buffered = Math.min(count, this.#filled - this.#at)
    bytes.set(this.#window.subarray(this.#at, this.#at + buffered))
    if (buffered < count) this.source.read(this.position + buffered, bytes.subarray(buffered))
    this.#skip(count)
    return bytes.buffer
  }

  #skip(count: number): void {
    if (this.#at + count <= this.#filled) {
      this.#at += count
      return
    }
    this.#base = this.position + count
    this.#at = 0
    this.#filled = 0
  }
}
