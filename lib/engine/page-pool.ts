/**
 * The pages of one KV cache pool: which are free, and how many hold each of the others.
 * @module
 */
import { LapidaryError } from '../errors.ts'

/**
 * Pages 0 … count−1 with reference counts. Sequences and the prefix cache share pages: a page is free when the last one lets go.
 * Low pages are handed out first and a page given back is the next one taken, so that a pool that is never full never touches
 * most of its memory.
 */
export class PagePool {
  readonly count: number
  readonly #free: Int32Array
  readonly #references: Int32Array
  #freeCount: number

  constructor(count: number) {
    this.count = count
    this.#free = Int32Array.from({ length: count }, (_, index) => count - 1 - index)
    this.#references = new Int32Array(count)
    this.#freeCount = count
  }

  get free(): number {
    return this.#freeCount
  }

  /** A page with one reference, or −1 if none is free. */
  take(): number {
    if (this.#freeCount === 0) return -1
    const page = this.#free[--this.#freeCount] as number
    this.#references[page] = 1
    return page
  }

  retain(page: number): void {
    if (!((this.#references[page] ?? 0) > 0)) throw this.#defect('retain', page)
    ;(this.#references[page] as number)++
  }

  release(page: number): void {
    const references = this.#references[page] ?? 0
    if (references <= 0) throw this.#defect('release', page)
    this.#references[page] = references - 1
    if (references === 1) this.#free[this.#freeCount++] = page
  }

  references(page: number): number {
    return this.#references[page] ?? 0
  }

  #defect(what: string, page: number): LapidaryError {
    return new LapidaryError('ERR_INTERNAL', `PagePool.${what}: expected a page in use, got page ${page}`)
  }
}
