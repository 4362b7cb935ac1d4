/**
 * Walks JSON in bytes. A `tokenizer.json` of 33 MB is mostly a million short strings; making each of them a JavaScript string
 * takes several times as long as reading them in place.
 * @module
 */
import { LapidaryError } from '../errors.ts'

const quote = 0x22
const backslash = 0x5c
const comma = 0x2c
const colon = 0x3a
const braces = { object: [0x7b, 0x7d], array: [0x5b, 0x5d] } as const

/** @internal */
export class JsonScanner {
  readonly bytes: Buffer
  at: number
  /** Of the string that {@link string} read last: where its content lies, and whether it has escapes. */
  start = 0
  end = 0
  escaped = false
  readonly #what: string

  constructor(bytes: Buffer, what: string, at = 0) {
    this.bytes = bytes
    this.#what = what
    this.at = at
  }

  fail(problem: string, at: number = this.at): never {
    throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${this.#what}: byte ${at}: ${problem}`)
  }

  /** The next byte that is not whitespace, not taken; NaN at the end. */
  peek(): number {
    const { bytes } = this
    let at = this.at
    while (bytes[at]! <= 0x20 && isWhitespace(bytes[at]!)) at += 1
    this.at = at
    return at < bytes.length ? bytes[at]! : Number.NaN
  }

  /** Enters an object or array. */
  open(kind: 'object' | 'array', name: string): void {
    if (this.peek() !== braces[kind][0]) this.fail(`${name}: expected an ${kind}`)
    this.at += 1
  }

  /** Whether another item follows; takes the comma in front of it, or the end of the object or array. */
  more(kind: 'object' | 'array', index: number): boolean {
    const next = this.peek()
    if (next === braces[kind][1]) {
      this.at += 1
      return false
    }
    if (index === 0) return true
    if (next !== comma) this.fail(`expected a comma or the end of the ${kind}`)
    this.at += 1
    return true
  }

  /** Reads a string and notes where it lies. */
  string(name: string): void {
    if (this.peek() !== quote) this.fail(`${name}: expected a string`)
    const { bytes } = this
    this.start = this.at + 1
    this.escaped = false
    let at = this.start
    for (; ; at++) {
      const byte = bytes[at]
      if (byte === undefined) this.fail(`${name}: the string does not end`, this.start - 1)
      if (byte === quote) break
      if (byte! < 0x20) this.fail(`${name}: a control character in a string`, at)
      if (byte !== backslash) continue
      this.escaped = true
      at += 1
    }
    this.end = at
    this.at = at + 1
  }

  /** The key of an object's item; its value is next. */
  key(name: string): string {
    this.string(`${name}: a key`)
    const text = this.text()
    this.colon(name)
    return text
  }

  colon(name: string): void {
    if (this.peek() !== colon) this.fail(`${name}: expected a colon`)
    this.at += 1
  }

  /** The string read last. */
  text(): string {
    if (!this.escaped) return this.bytes.toString('utf8', this.start, this.end)
    try {
      return JSON.parse(this.bytes.toString('utf8', this.start - 1, this.end + 1)) as string
    } catch {
      return this.fail('a string has a malformed escape', this.start)
    }
  }

  /** A whole number of at most 9 digits, 0 or above. */
  integer(name: string): number {
    const first = this.peek()
    const start = this.at
    let value = 0
    while (this.bytes[this.at]! >= 0x30 && this.bytes[this.at]! <= 0x39)
      value = value * 10 + this.bytes[this.at++]! - 0x30
    const digits = this.at - start
    const next = this.peek()
    if (digits === 0 || digits > 9 || (digits > 1 && first === 0x30) || (next !== comma && next !== braces.object[1])) {
      this.fail(`${name}: expected a whole number of 0 or above`, start)
    }
    return value
  }

  /** Parses any value. */
  value(name: string): unknown {
    this.peek()
    const start = this.at
    this.skip(name)
    try {
      return JSON.parse(this.bytes.toString('utf8', start, this.at))
    } catch (error) {
      return this.fail(`${name}: ${error instanceof Error ? error.message : String(error)}`, start)
    }
  }

  /** Goes behind a value: to the end of its brackets, or of its number or word. */
  skip(name: string): void {
    let depth = 0
    do {
      const next = this.peek()
      if (Number.isNaN(next)) this.fail(`${name}: the file ends within it`)
      if (next === quote) {
        this.string(name)
      } else if (next === braces.object[0] || next === braces.array[0]) {
        depth += 1
        this.at += 1
      } else if (next === braces.object[1] || next === braces.array[1]) {
        if (depth === 0) this.fail(`${name}: expected a value`)
        depth -= 1
        this.at += 1
      } else if (next === comma || next === colon) {
        if (depth === 0) this.fail(`${name}: expected a value`)
        this.at += 1
      } else {
        while (this.at < this.bytes.length && isWord(this.bytes[this.at]!)) this.at += 1
        if (!isWord(next)) this.fail(`${name}: unexpected character`)
      }
    } while (depth > 0)
  }
}

function isWhitespace(byte: number): boolean {
  return byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09
}

/** Letters, digits, sign and point: what numbers, `true`, `false` and `null` are made of. */
function isWord(byte: number): boolean {
  const isLetter = (byte | 0x20) >= 0x61 && (byte | 0x20) <= 0x7a
  return isLetter || (byte >= 0x30 && byte <= 0x39) || byte === 0x2b || byte === 0x2d || byte === 0x2e
}
