/**
 * Ids to text, one at a time.
 * @module
 */
import { PieceType, type Vocabulary } from './vocabulary.ts'

const replacement = '\ufffd'

/**
 * Turns ids into text as they come. A character whose bytes have not all arrived is held back; bytes that can no longer become a
 * character are U+FFFD each. What all calls return, joined, is `tokenizer.decode` of all ids. Made by `tokenizer.decoder()`.
 *
 * @example
 * const decoder = tokenizer.decoder()
 * for (const id of ids) process.stdout.write(decoder.push(id))
 * process.stdout.write(decoder.end())
 */
export class StreamDecoder {
  readonly #vocabulary: Vocabulary
  readonly #special: boolean
  /** Bytes of a character that is not complete, and how many it will have. */
  readonly #pending: Uint8Array = new Uint8Array(4)
  #pendingCount = 0
  #pendingLength = 0
  #atStart = true

  /** @internal */
  constructor(vocabulary: Vocabulary, special: boolean) {
    this.#vocabulary = vocabulary
    this.#special = special
  }

  /** The text that this id completes. An id outside the vocabulary has none. */
  push(id: number): string {
    const { types, size, bytes } = this.#vocabulary
    if (!(id >= 0 && id < size)) return ''
    const type = types[id]
    if (type === PieceType.byte) {
      // The piece is spelt <0xHH>: its value stands at two places of it.
      const start = this.#vocabulary.startOf(id)
      return this.#byte((hexDigit(bytes[start + 3]!) << 4) | hexDigit(bytes[start + 4]!))
    }
    const isText = type === PieceType.normal || type === PieceType.userDefined
    if (!isText && !this.#special) return ''
    let text = this.#vocabulary.textOf(id)
    if (this.#atStart && isText) {
      this.#atStart = false
      if (this.#vocabulary.dummyPrefix && text.startsWith(' ')) text = text.slice(1)
    }
    return this.end() + text
  }

  /** What is left when no more ids come: U+FFFD for each byte of an incomplete character. */
  end(): string {
    const count = this.#pendingCount
    this.#pendingCount = 0
    return count === 0 ? '' : replacement.repeat(count)
  }

  #byte(byte: number): string {
    this.#atStart = false
    let out = ''
    if (this.#pendingCount > 0) {
      if (this.#continues(byte)) {
        this.#pending[this.#pendingCount++] = byte
        if (this.#pendingCount < this.#pendingLength) return ''
        this.#pendingCount = 0
        return Buffer.from(this.#pending.subarray(0, this.#pendingLength)).toString('utf8')
      }
      out = this.end()
    }
    if (byte < 0x80) return out + String.fromCharCode(byte)
    const length = byte < 0xc2 || byte > 0xf4 ? 0 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4
    if (length === 0) return out + replacement
    this.#pending[0] = byte
    this.#pendingCount = 1
    this.#pendingLength = length
    return out
  }

  /** Whether a byte may follow those that are held back: no overlong forms, no surrogates, nothing above U+10FFFF. */
  #continues(byte: number): boolean {
    if ((byte & 0xc0) !== 0x80) return false
    if (this.#pendingCount > 1) return true
    switch (this.#pending[0]) {
      case 0xe0:
        return byte >= 0xa0
      case 0xed:
        return byte < 0xa0
      case 0xf0:
        return byte >= 0x90
      case 0xf4:
        return byte < 0x90
      default:
        return true
    }
  }
}

function hexDigit(unit: number): number {
  return unit < 0x40 ? unit - 0x30 : unit - 0x37
}
