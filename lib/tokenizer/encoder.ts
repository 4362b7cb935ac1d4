/**
 * Text to ids: pieces that are matched as they stand, and between them byte-pair encoding, stretch by stretch.
 * @module
 */
import { Alphabet } from './alphabet.ts'
import { PairMerger } from './bpe.ts'
import { PieceMatcher } from './matcher.ts'
import { type Merges, mergesOf } from './merges.ts'
import { spaceSymbol, type Vocabulary, type VocabularySource } from './vocabulary.ts'
import { WordCache, wordUnits } from './word-cache.ts'

/** UTF-16 units of a text, unpaired surrogates replaced by U+FFFD. */
export interface TextUnits {
  readonly units: Uint16Array
  /** See {@link PieceMatcher.match}. */
  readonly limits?: Uint8Array
}

const scratchSymbols = 4096
const space = 0x20

/** @internal */
export class Encoder {
  readonly matcher: PieceMatcher
  readonly #vocabulary: Vocabulary
  readonly #alphabet: Alphabet
  readonly #merger: PairMerger
  readonly #cache: WordCache = new WordCache()
  readonly #symbols: Int32Array = new Int32Array(scratchSymbols)
  #output: Int32Array = new Int32Array(0)
  #count = 0

  constructor(vocabulary: Vocabulary, source: VocabularySource) {
    const merges: Merges = mergesOf(vocabulary, source)
    this.#vocabulary = vocabulary
    this.matcher = new PieceMatcher(vocabulary, source.merges === undefined)
    this.#alphabet = new Alphabet(vocabulary, source.merges === undefined)
    this.#merger = new PairMerger(merges)
  }

  /** Entries taken from heaps so far: grows by at most a few times the length of a text, whatever it holds. */
  get heapPops(): number {
    return this.#merger.pops
  }

  encode({ units, limits }: TextUnits, trust: number, bos: boolean): Int32Array {
    const { matcher } = this
    const { length } = units
    this.#output = new Int32Array(16 + (length >> 1))
    this.#count = 0
    if (bos) this.#output[this.#count++] = this.#vocabulary.bos
    let start = 0
    for (let at = 0; at < length; ) {
      const piece = matcher.match(units, at, length, trust, limits)
      if (piece >= 0) {
        if (at > start) this.#word(units, start, at)
        this.#reserve(1)
        this.#output[this.#count++] = piece
        at += matcher.length
        start = at
        continue
      }
      at += isPair(units, at, length) ? 2 : 1
      if (at === length || !this.#alphabet.joins(units[at - 1]!, units[at]!)) {
        this.#word(units, start, at)
        start = at
      }
    }
    const ids = this.#output.slice(0, this.#count)
    this.#output = new Int32Array(0)
    return ids
  }

  #reserve(more: number): void {
    if (this.#count + more <= this.#output.length) return
    const grown = new Int32Array((this.#count + more) * 2)
    grown.set(this.#output)
    this.#output = grown
  }

  /** Appends the ids of a stretch that nothing crosses into. */
  #word(units: Uint16Array, start: number, end: number): void {
    // At most three byte pieces for a unit.
    this.#reserve((end - start) * 3)
    if (end - start > wordUnits) {
      this.#encode(units, start, end)
      return
    }
    const slot = this.#cache.slot(units, start, end)
    const cached = this.#cache.read(slot, units, start, end, this.#output, this.#count)
    if (cached >= 0) {
      this.#count += cached
      return
    }
    const from = this.#count
    this.#encode(units, start, end)
    this.#cache.write(slot, units, start, end, this.#output, from, this.#count)
  }

  #encode(units: Uint16Array, start: number, end: number): void {
    const alphabet = this.#alphabet
    const symbols = end - start > scratchSymbols ? new Int32Array(end - start) : this.#symbols
    let count = 0
    for (let at = start; at < end; ) {
      let codePoint = units[at]!
      if (isPair(units, at, end)) codePoint = 0x10000 + ((codePoint & 0x3ff) << 10) + (units[at + 1]! & 0x3ff)
      at += codePoint < 65536 ? 1 : 2
      const symbol = alphabet.symbolOf(codePoint)
      if (symbol >= 0) {
        symbols[count++] = symbol
        continue
      }
      this.#merge(symbols, count)
      count = 0
      this.#codePoint(codePoint)
    }
    this.#merge(symbols, count)
  }

  #merge(symbols: Int32Array, initial: number): void {
    const { size } = this.#vocabulary
    const count = this.#merger.merge(symbols, initial)
    for (let i = 0; i < count; i++) {
      const symbol = symbols[i]!
      if (symbol < size) {
        this.#output[this.#count++] = symbol
        continue
      }
      const end = this.#vocabulary.endOf(symbol)
      for (let at = this.#vocabulary.startOf(symbol); at < end; at++) this.#byte(this.#vocabulary.bytes[at]!)
    }
  }

  #codePoint(codePoint: number): void {
    if (codePoint < 0x80) {
      this.#byte(codePoint)
      return
    }
    if (codePoint < 0x800) {
      this.#byte(0xc0 | (codePoint >> 6))
    } else if (codePoint < 0x10000) {
      this.#byte(0xe0 | (codePoint >> 12))
      this.#byte(0x80 | ((codePoint >> 6) & 0x3f))
    } else {
      this.#byte(0xf0 | (codePoint >> 18))
      this.#byte(0x80 | ((codePoint >> 12) & 0x3f))
      this.#byte(0x80 | ((codePoint >> 6) & 0x3f))
    }
    this.#byte(0x80 | (codePoint & 0x3f))
  }

  #byte(byte: number): void {
    this.#output[this.#count++] = this.#vocabulary.byteIds[byte]!
  }
}

/** Whether the units at a place are the two halves of one character. Unpaired halves have been replaced before. */
function isPair(units: Uint16Array, at: number, end: number): boolean {
  return (units[at]! & 0xfc00) === 0xd800 && at + 1 < end
}

/**
 * The units of a text.
 * @param unify turn U+2581 into a space before anything is matched, as SentencePiece does; Hugging Face's tokenizers match pieces
 *   in the text as it stands
 */
export function unitsOf(text: string, dummyPrefix: boolean, unify: boolean): Uint16Array {
  const prefix = dummyPrefix && text.length > 0 ? 1 : 0
  const units = new Uint16Array(text.length + prefix)
  if (prefix) units[0] = space
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i)
    if ((unit & 0xf800) !== 0xd800) {
      units[i + prefix] = unify && unit === spaceSymbol ? space : unit
    } else if (unit < 0xdc00 && i + 1 < text.length && (text.charCodeAt(i + 1) & 0xfc00) === 0xdc00) {
      units[i + prefix] = unit
      units[i + prefix + 1] = text.charCodeAt(i + 1)
      i += 1
    } else {
      units[i + prefix] = 0xfffd
    }
  }
  return units
}
