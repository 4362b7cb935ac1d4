/**
 * A bounded cache from short stretches of text to their ids: most of a text is words that came before.
 * @module
 */

const slotsLog2 = 14
/** Longest stretch and most ids that are kept. */
export const wordUnits = 20
const wordIds = 7
const idStride = wordIds + 1

/** @internal Direct mapped: a newcomer replaces what its slot held. Fixed size, about 1.3 MB, no object per entry. */
export class WordCache {
  readonly #lengths: Uint8Array = new Uint8Array(2 ** slotsLog2)
  readonly #units: Uint16Array = new Uint16Array(2 ** slotsLog2 * wordUnits)
  /** Per slot: how many, and the ids. */
  readonly #ids: Int32Array = new Int32Array(2 ** slotsLog2 * idStride)

  /** The slot of a stretch of 1 to `wordUnits` units. */
  slot(units: Uint16Array, start: number, end: number): number {
    let hash = end - start
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ units[i]!, 0x9e3779b1)
    return (hash ^ (hash >>> 13)) >>> (32 - slotsLog2)
  }

  /** Copies the ids of a stretch to `output` at `at`; returns how many, or -1 where the slot holds something else. */
  read(slot: number, units: Uint16Array, start: number, end: number, output: Int32Array, at: number): number {
    const length = end - start
    if (this.#lengths[slot] !== length) return -1
    const base = slot * wordUnits
    for (let i = 0; i < length; i++) if (this.#units[base + i] !== units[start + i]) return -1
    const ids = slot * idStride
    const count = this.#ids[ids]!
    for (let i = 0; i < count; i++) output[at + i] = this.#ids[ids + 1 + i]!
    return count
  }

  write(
    slot: number,
    units: Uint16Array,
    start: number,
    end: number,
    output: Int32Array,
    from: number,
    to: number,
  ): void {
    if (to - from > wordIds) return
    this.#lengths[slot] = end - start
    const base = slot * wordUnits
    for (let i = start; i < end; i++) this.#units[base + i - start] = units[i]!
    const ids = slot * idStride
    this.#ids[ids] = to - from
    for (let i = from; i < to; i++) this.#ids[ids + 1 + i - from] = output[i]!
  }
}
