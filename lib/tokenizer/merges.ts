/**
 * Which two neighbouring pieces merge, into what, and which merge comes first. Two kinds of file say it in two ways.
 * @module
 */
import { longestProbe, type MergeLists, PieceType, type Vocabulary, type VocabularySource } from './vocabulary.ts'

/** @internal The merges of a vocabulary. A merge is a number; of two, the one of lower cost comes first. */
export interface Merges {
  /** The merge of two neighbours, or -1. */
  find(left: number, right: number): number
  cost(merge: number): number
  product(merge: number): number
}

/**
 * SentencePiece: two pieces merge if the concatenation of their texts is a piece, the highest score first. Nothing is built for
 * it: the hash of a concatenation continues that of its left half.
 */
class ScoredMerges implements Merges {
  readonly #vocabulary: Vocabulary
  readonly #scores: Float32Array

  constructor(vocabulary: Vocabulary, scores: Float32Array) {
    this.#vocabulary = vocabulary
    this.#scores = scores
  }

  find(left: number, right: number): number {
    const id = this.#vocabulary.concatenation(left, right)
    return id >= 0 && this.#vocabulary.types[id] === PieceType.normal ? id : -1
  }

  cost(merge: number): number {
    return -this.#scores[merge]!
  }

  product(merge: number): number {
    return merge
  }
}

/** tokenizer.json: a list of pairs, the first of the list first. */
class ListedMerges implements Merges {
  readonly #left: Int32Array
  readonly #right: Int32Array
  readonly #product: Int32Array
  readonly #slots: Int32Array

  constructor(vocabulary: Vocabulary, { left, right, product }: MergeLists) {
    this.#left = left
    this.#right = right
    this.#product = product
    this.#slots = new Int32Array(2 ** Math.max(4, Math.ceil(Math.log2(left.length * 1.6)))).fill(-1)
    const mask = this.#slots.length - 1
    for (let merge = 0; merge < left.length; merge++) {
      if (!isMergeable(vocabulary.types[product[merge]!]!)) continue
      let slot = slotOf(left[merge]!, right[merge]!) & mask
      for (let probe = 0; this.#slots[slot]! >= 0; probe++) {
        const other = this.#slots[slot]!
        // Of a pair that is listed twice, the last place counts.
        if (left[other] === left[merge] && right[other] === right[merge]) break
        if (probe === longestProbe)
          throw vocabulary.corrupt(`more than ${longestProbe} merges have hashes like that of merge ${merge}`)
        slot = (slot + 1) & mask
      }
      this.#slots[slot] = merge
    }
  }

  find(left: number, right: number): number {
    const mask = this.#slots.length - 1
    for (let slot = slotOf(left, right) & mask; ; slot = (slot + 1) & mask) {
      const merge = this.#slots[slot]!
      if (merge < 0 || (this.#left[merge] === left && this.#right[merge] === right)) return merge
    }
  }

  cost(merge: number): number {
    return merge
  }

  product(merge: number): number {
    return this.#product[merge]!
  }
}

function slotOf(left: number, right: number): number {
  const mixed = Math.imul(Math.imul(left, 0x9e3779b1) ^ right, 0x85ebca6b)
  return mixed ^ (mixed >>> 15)
}

/** Text must never merge into a marker or a control piece. Runs of whitespace are in some lists and are user-defined as well. */
export function isMergeable(type: number): boolean {
  return type === PieceType.normal || type === PieceType.userDefined
}

/** @internal */
export function mergesOf(vocabulary: Vocabulary, source: VocabularySource): Merges {
  if (source.merges) return new ListedMerges(vocabulary, source.merges(vocabulary))
  if (source.scores) return new ScoredMerges(vocabulary, source.scores)
  throw vocabulary.corrupt('there are neither scores nor merges')
}
