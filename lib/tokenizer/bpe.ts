/**
 * Byte-pair encoding of one stretch of symbols: the adjacent pair of lowest cost merges, ties to the left, until none is left.
 * Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units", 2016, arXiv 1508.07909; the heap
 * over a linked list is SentencePiece's (Kudo and Richardson, 2018, arXiv 1808.06226).
 * @module
 */
import type { Merges } from './merges.ts'

/** Up to here, looking at every pair each time beats keeping a heap. */
const scanSymbols = 24

/** @internal Scratch memory that grows to the longest stretch seen, up to a bound; a longer one gets its own for the call. */
export class PairMerger {
  readonly #merges: Merges
  readonly #pairs: Int32Array = new Int32Array(scanSymbols)
  readonly #costs: Float64Array = new Float64Array(scanSymbols)
  /** Entries taken from the heap so far: the work done on long stretches. */
  pops = 0

  constructor(merges: Merges) {
    this.#merges = merges
  }

  /** Merges symbols[0 … count] in place; returns how many are left. */
  merge(symbols: Int32Array, count: number): number {
    if (count < 2) return count
    return count <= scanSymbols ? this.#scan(symbols, count) : this.#heap(symbols, count)
  }

  #scan(symbols: Int32Array, initial: number): number {
    const merges = this.#merges
    const pairs = this.#pairs
    const costs = this.#costs
    let count = initial
    for (let i = 0; i + 1 < count; i++) {
      const merge = merges.find(symbols[i]!, symbols[i + 1]!)
      pairs[i] = merge
      costs[i] = merge < 0 ? Infinity : merges.cost(merge)
    }
    for (;;) {
      let best = -1
      let bestCost = Infinity
      for (let i = 0; i + 1 < count; i++) {
        if (costs[i]! < bestCost) {
          bestCost = costs[i]!
          best = i
        }
      }
      if (best < 0) return count
      symbols[best] = merges.product(pairs[best]!)
      count -= 1
      for (let i = best + 1; i < count; i++) {
        symbols[i] = symbols[i + 1]!
        pairs[i] = pairs[i + 1]!
        costs[i] = costs[i + 1]!
      }
      for (let i = Math.max(0, best - 1); i <= best && i + 1 < count; i++) {
        const merge = merges.find(symbols[i]!, symbols[i + 1]!)
        pairs[i] = merge
        costs[i] = merge < 0 ? Infinity : merges.cost(merge)
      }
    }
  }

  /** O(n log n): every merge takes one pair away and adds at most two to the heap. */
  #heap(symbols: Int32Array, count: number): number {
    const merges = this.#merges
    const previous = new Int32Array(count)
    const next = new Int32Array(count)
    const pairs = new Int32Array(count).fill(-1)
    const heap = new PairHeap(count)
    const refresh = (left: number): void => {
      const right = next[left]!
      const merge = right < count ? merges.find(symbols[left]!, symbols[right]!) : -1
      pairs[left] = merge
      if (merge >= 0) heap.push(merges.cost(merge), left, merge)
    }
    for (let i = 0; i < count; i++) {
      previous[i] = i - 1
      next[i] = i + 1
    }
    for (let i = 0; i < count; i++) refresh(i)
    while (heap.size > 0) {
      const left = heap.topLeft
      const merge = heap.topMerge
      heap.pop()
      this.pops += 1
      // A pair whose neighbours have changed since is stale: what stands at its place now has its own entry.
      if (pairs[left] !== merge) continue
      const right = next[left]!
      symbols[left] = merges.product(merge)
      pairs[right] = -1
      next[left] = next[right]!
      if (next[left]! < count) previous[next[left]!] = left
      refresh(left)
      if (previous[left]! >= 0) refresh(previous[left]!)
    }
    let kept = 0
    for (let i = 0; i < count; i = next[i]!) symbols[kept++] = symbols[i]!
    return kept
  }
}

/** A binary heap over (cost, left position) in flat arrays. */
class PairHeap {
  size = 0
  #costs: Float64Array
  #lefts: Int32Array
  #merges: Int32Array

  constructor(capacity: number) {
    this.#costs = new Float64Array(capacity)
    this.#lefts = new Int32Array(capacity)
    this.#merges = new Int32Array(capacity)
  }

  get topLeft(): number {
    return this.#lefts[0]!
  }

  get topMerge(): number {
    return this.#merges[0]!
  }

  push(cost: number, left: number, merge: number): void {
    if (this.size === this.#costs.length) this.#grow()
    const costs = this.#costs
    const lefts = this.#lefts
    let at = this.size++
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (costs[parent]! < cost || (costs[parent] === cost && lefts[parent]! <= left)) break
      this.#move(parent, at)
      at = parent
    }
    this.#put(at, cost, left, merge)
  }

  pop(): void {
    const last = --this.size
    if (last === 0) return
    const costs = this.#costs
    const lefts = this.#lefts
    const cost = costs[last]!
    const left = lefts[last]!
    const merge = this.#merges[last]!
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= last) break
      const right = child + 1
      if (
        right < last &&
        (costs[right]! < costs[child]! || (costs[right] === costs[child] && lefts[right]! < lefts[child]!))
      )
        child = right
      if (cost < costs[child]! || (cost === costs[child] && left <= lefts[child]!)) break
      this.#move(child, at)
      at = child
    }
    this.#put(at, cost, left, merge)
  }

  #move(from: number, to: number): void {
    this.#costs[to] = this.#costs[from]!
    this.#lefts[to] = this.#lefts[from]!
    this.#merges[to] = this.#merges[from]!
  }

  #put(at: number, cost: number, left: number, merge: number): void {
    this.#costs[at] = cost
    this.#lefts[at] = left
    this.#merges[at] = merge
  }

  #grow(): void {
    const capacity = this.#costs.length * 2
    const costs = new Float64Array(capacity)
    const lefts = new Int32Array(capacity)
    const merges = new Int32Array(capacity)
    costs.set(this.#costs)
    lefts.set(this.#lefts)
    merges.set(this.#merges)
    this.#costs = costs
    this.#lefts = lefts
    this.#merges = merges
  }
}
