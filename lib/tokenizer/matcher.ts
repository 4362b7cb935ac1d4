/**
 * Finds the pieces that are matched before anything merges: user-defined pieces, markers, control pieces. The longest at a
 * position wins.
 * @module
 */
import { PieceType, type Vocabulary } from './vocabulary.ts'

/** How far a text is trusted: which pieces are recognised in it. */
export const Trust = {
  /** Runs of whitespace, HTML tags. */
  text: 0,
  /** And markers: turns, images, reserved names. */
  markers: 1,
  /** And control pieces: the text `<bos>` is the token. */
  control: 2,
} as const

/** The trust that a piece asks for, or -1 where it is never matched. */
export function trustOf(type: number): number {
  switch (type) {
    case PieceType.userDefined:
      return Trust.text
    case PieceType.marker:
      return Trust.markers
    case PieceType.control:
    case PieceType.unknown:
      return Trust.control
    default:
      return -1
  }
}

/** @internal A trie over UTF-16 units in flat arrays. The children of a node are consecutive. */
export class PieceMatcher {
  /** Of a node: its unit, its piece or -1, where its children begin; they end where the next node's begin. */
  readonly #units: Uint16Array
  readonly #pieces: Int32Array
  readonly #trusts: Uint8Array
  readonly #children: Int32Array
  /** By first unit, the node, or 0. */
  readonly #roots: Int32Array = new Int32Array(65536)
  /** Length of the match that {@link match} found last. */
  length = 0
  /** Units that begin or end a piece which asks for trust. */
  readonly firstUnits: ReadonlySet<number>
  readonly lastUnits: ReadonlySet<number>

  /** @param unified whether U+2581 has become a space in the texts to match */
  constructor(vocabulary: Vocabulary, unified: boolean) {
    const entries: { text: string; id: number; trust: number }[] = []
    const firstUnits = new Set<number>()
    const lastUnits = new Set<number>()
    for (let id = 0; id < vocabulary.size; id++) {
      const trust = trustOf(vocabulary.types[id]!)
      if (trust < 0) continue
      const text = unified ? vocabulary.textOf(id) : vocabulary.pieceOf(id)
      entries.push({ text, id, trust })
      if (trust === Trust.text) continue
      firstUnits.add(text.charCodeAt(0))
      lastUnits.add(text.charCodeAt(text.length - 1))
    }
    this.firstUnits = firstUnits
    this.lastUnits = lastUnits
    entries.sort((a, b) => (a.text < b.text ? -1 : a.text > b.text ? 1 : a.id - b.id))

    // Breadth first, so that the children of a node get consecutive numbers. A range of the sorted entries is a node.
    const units: number[] = [0]
    const pieces: number[] = [-1]
    const trusts: number[] = [0]
    const children: number[] = []
    let ranges = [{ low: 0, high: entries.length, depth: 0 }]
    for (let node = 0; node < ranges.length; node++) {
      const { low, high, depth } = ranges[node]!
      children.push(units.length)
      let at = low
      // More than one only where pieces differ in nothing but a space and U+2581: the first is meant.
      while (at < high && entries[at]!.text.length === depth) at += 1
      while (at < high) {
        const unit = entries[at]!.text.charCodeAt(depth)
        let end = at + 1
        while (end < high && entries[end]!.text.charCodeAt(depth) === unit) end += 1
        const complete = entries[at]!.text.length === depth + 1
        if (depth === 0) this.#roots[unit] = units.length
        units.push(unit)
        pieces.push(complete ? entries[at]!.id : -1)
        trusts.push(complete ? entries[at]!.trust : 0)
        ranges.push({ low: at, high: end, depth: depth + 1 })
        at = end
      }
    }
    ranges = []
    children.push(units.length)
    this.#units = Uint16Array.from(units)
    this.#pieces = Int32Array.from(pieces)
    this.#trusts = Uint8Array.from(trusts)
    this.#children = Int32Array.from(children)
  }

  /**
   * The longest piece that begins at units[start], or -1; its length is then in `length`.
   * @param trust what is recognised
   * @param limits by unit, the most trust that a match over it has
   */
  match(units: Uint16Array, start: number, end: number, trust: number, limits?: Uint8Array): number {
    let node = this.#roots[units[start]!]!
    if (node === 0) return -1
    let found = -1
    let allowed = limits ? Math.min(trust, limits[start]!) : trust
    for (let at = start + 1; ; at++) {
      if (this.#pieces[node]! >= 0 && this.#trusts[node]! <= allowed) {
        found = this.#pieces[node]!
        this.length = at - start
      }
      if (at >= end) return found
      if (limits && limits[at]! < allowed) allowed = limits[at]!
      const unit = units[at]!
      const last = this.#children[node + 1]!
      let child = this.#children[node]!
      while (child < last && this.#units[child] !== unit) child += 1
      if (child === last) return found
      node = child
    }
  }
}
