/**
 * The wire format of protocol buffers, as much of it as reading a `tokenizer.model` takes.
 * https://protobuf.dev/programming-guides/encoding
 * @module
 */
import { LapidaryError } from '../errors.ts'

export const WireType = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 } as const

/** @internal Walks the fields of a message. Every read is checked against the end of the message it is in. */
export class MessageReader {
  /** Of the field that {@link next} found. */
  field = 0
  wireType = 0
  /** Of a bytes field: where its content lies. */
  start = 0
  end = 0
  /** Of a varint field: its low 32 bits, signed. Of a fixed32 field: its bits. */
  value = 0
  readonly #bytes: Uint8Array
  readonly #what: string
  #at = 0
  /** Whether the number read last takes more than 32 bits. */
  #beyond = false
  #messageEnd = 0

  constructor(bytes: Uint8Array, what: string) {
    this.#bytes = bytes
    this.#what = what
    this.enter(0, bytes.length)
  }

  /** Goes on with another message. */
  enter(start: number, end: number): void {
    this.#at = start
    this.#messageEnd = end
  }

  /** Reads a field; false at the end of the message. */
  next(): boolean {
    if (this.#at >= this.#messageEnd) return false
    const fieldAt = this.#at
    const tag = this.#varint()
    this.field = tag >>> 3
    this.wireType = tag & 7
    if (this.field === 0) throw this.corrupt(fieldAt, 'a field has number 0')
    switch (this.wireType) {
      case WireType.varint:
        this.value = this.#varint()
        return true
      case WireType.fixed64:
        this.#skip(8, fieldAt)
        return true
      case WireType.bytes: {
        const low = this.#varint() >>> 0
        const length = this.#beyond ? Number.MAX_SAFE_INTEGER : low
        this.start = this.#at
        this.#skip(length, fieldAt)
        this.end = this.#at
        return true
      }
      case WireType.fixed32: {
        const at = this.#at
        this.#skip(4, fieldAt)
        const bytes = this.#bytes
        this.value = bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
        return true
      }
      default:
        throw this.corrupt(fieldAt, `field ${this.field} has wire type ${this.wireType}; expected 0, 1, 2 or 5`)
    }
  }

  /** Fails unless the field has this wire type. */
  expect(wireType: number, what: string): void {
    if (this.wireType !== wireType) {
      throw this.corrupt(this.#at, `${what} ends here and has wire type ${this.wireType}; expected ${wireType}`)
    }
  }

  corrupt(offset: number, problem: string): LapidaryError {
    return new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${this.#what}: byte ${offset}: ${problem}`)
  }

  #skip(length: number, fieldAt: number): void {
    if (length > this.#messageEnd - this.#at) {
      const left = this.#messageEnd - this.#at
      throw this.corrupt(fieldAt, `field ${this.field} is ${length} bytes long, but its message has ${left} more`)
    }
    this.#at += length
  }

  #varint(): number {
    const first = this.#at
    let value = 0
    this.#beyond = false
    for (let shift = 0; shift < 70; shift += 7) {
      if (this.#at >= this.#messageEnd) throw this.corrupt(first, 'a number goes on beyond the end of its message')
      const byte = this.#bytes[this.#at++]!
      if (shift < 32) value |= (byte & 0x7f) << shift
      if (shift >= 28 && (byte & 0x7f) >> (shift === 28 ? 4 : 0) !== 0) this.#beyond = true
      if (byte < 0x80) return value
    }
    throw this.corrupt(first, 'a number has more than 10 bytes')
  }
}
