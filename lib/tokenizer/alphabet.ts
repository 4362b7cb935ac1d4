/**
 * From characters to the symbols that merging starts with, and which characters can be neighbours inside a piece.
 * @module
 */
import { isMergeable } from './merges.ts'
import { spaceSymbol, type Vocabulary } from './vocabulary.ts'

const joinsLog2 = 21
const space = 0x20

/** Characters that occur in pieces. */
interface InnerCharacters {
  readonly basic: Uint8Array
  readonly astral: Set<number>
}

/** @internal In texts, a space and the symbol that pieces spell it with mean the same. */
export class Alphabet {
  /** By UTF-16 unit, the symbol of that character, or -1. */
  readonly #basic: Int32Array = new Int32Array(65536).fill(-1)
  readonly #astral: Map<number, number> = new Map()
  /** A set of pairs of units, by hash: it may hold too much, never too little. */
  readonly #joins: Uint8Array = new Uint8Array(2 ** (joinsLog2 - 3))

  /** @param virtual give characters that only occur inside of pieces a symbol of their own */
  constructor(vocabulary: Vocabulary, virtual: boolean) {
    const inner: InnerCharacters = { basic: new Uint8Array(65536), astral: new Set() }
    for (let id = 0; id < vocabulary.size; id++) {
      if (isMergeable(vocabulary.types[id]!)) this.#learn(vocabulary, id, inner)
    }
    if (virtual) this.#addInner(vocabulary, inner)
  }

  /** The symbol of a code point, or -1. */
  symbolOf(codePoint: number): number {
    return codePoint < 65536 ? this.#basic[codePoint]! : (this.#astral.get(codePoint) ?? -1)
  }

  /** False where no piece holds these two units side by side, so that no merge can cross between them. */
  joins(left: number, right: number): boolean {
    const bit = joinOf(left, right)
    return (this.#joins[bit >>> 3]! & (1 << (bit & 7))) !== 0
  }

  #set(codePoint: number, symbol: number): void {
    if (codePoint === spaceSymbol) this.#basic[space] = symbol
    if (codePoint < 65536) this.#basic[codePoint] = symbol
    else this.#astral.set(codePoint, symbol)
  }

  #addInner(vocabulary: Vocabulary, inner: InnerCharacters): void {
    const missing: number[] = []
    for (let unit = 0; unit < 65536; unit++) if (inner.basic[unit] && this.symbolOf(unit) < 0) missing.push(unit)
    for (const codePoint of inner.astral) if (this.symbolOf(codePoint) < 0) missing.push(codePoint)
    if (missing.length === 0) return
    const first = vocabulary.addSymbols(missing.map((codePoint) => String.fromCodePoint(codePoint)))
    for (const [index, codePoint] of missing.entries()) this.#set(codePoint, first + index)
  }

  #join(left: number, right: number): void {
    const bit = joinOf(left, right)
    this.#joins[bit >>> 3]! |= 1 << (bit & 7)
  }

  #learn(vocabulary: Vocabulary, id: number, inner: InnerCharacters): void {
    const { bytes } = vocabulary
    const end = vocabulary.endOf(id)
    let previous = -1
    let single = -1
    for (let at = vocabulary.startOf(id); at < end; ) {
      const lead = bytes[at]!
      let codePoint = lead
      if (lead < 0x80) {
        at += 1
      } else if (lead < 0xe0) {
        codePoint = ((lead & 0x1f) << 6) | (bytes[at + 1]! & 0x3f)
        at += 2
      } else if (lead < 0xf0) {
        codePoint = ((lead & 0xf) << 12) | ((bytes[at + 1]! & 0x3f) << 6) | (bytes[at + 2]! & 0x3f)
        at += 3
      } else {
        codePoint =
          ((lead & 7) << 18) |
          ((bytes[at + 1]! & 0x3f) << 12) |
          ((bytes[at + 2]! & 0x3f) << 6) |
          (bytes[at + 3]! & 0x3f)
        at += 4
      }
      single = previous < 0 ? codePoint : -1
      if (single < 0) {
        const left = lastUnit(previous)
        const right = firstUnit(codePoint)
        this.#join(left, right)
        if (left === spaceSymbol) this.#join(space, right)
        if (right === spaceSymbol) this.#join(left, space)
        if (left === spaceSymbol && right === spaceSymbol) this.#join(space, space)
      }
      if (codePoint < 65536) inner.basic[codePoint] = 1
      else inner.astral.add(codePoint)
      previous = codePoint
    }
    if (single >= 0) this.#set(single, id)
  }
}

function joinOf(left: number, right: number): number {
  return (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> (32 - joinsLog2)
}

function firstUnit(codePoint: number): number {
  return codePoint < 65536 ? codePoint : 0xd7c0 + (codePoint >> 10)
}

function lastUnit(codePoint: number): number {
  return codePoint < 65536 ? codePoint : 0xdc00 | (codePoint & 0x3ff)
}
