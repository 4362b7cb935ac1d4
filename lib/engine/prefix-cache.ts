/**
 * The prefix cache: pages of prompts and answers that a later sequence may begin with.
 * @module
 */
import type { PagePool } from './page-pool.ts'

/** One page of tokens after a known history. The path from the root is the history. */
interface Node {
  readonly parent: Node | undefined
  readonly key: string
  readonly children: Map<string, Node>
  /** Logical page number: the root's children are page 0. */
  readonly index: number
  readonly globalPage: number
  /** −1: the keys of local layers are gone. */
  localPage: number
}

/** What a sequence may reuse. */
export interface PrefixMatch {
  /** Tokens, a multiple of the page size: all their keys are there that a query from here on can see. */
  readonly length: number
  /** Pages of the global layers for tokens [0, length). */
  readonly globalPages: readonly number[]
  /** Pages of the local layers for logical pages [localFirst, localFirst + localPages.length). */
  readonly localPages: readonly number[]
  readonly localFirst: number
  /**
   * Tokens, a multiple of the page size, at least `length`: so far an earlier sequence had the same ones. Where it is more than
   * `length` the keys of the local layers were not kept at this point; whoever computes them should publish them.
   */
  readonly shared: number
}

export interface PrefixCacheOptions {
  readonly pageTokens: number
  /** Keys that a local layer sees; 0: there are no local layers. */
  readonly window: number
  readonly globalPool: PagePool
  readonly localPool: PagePool
}

/**
 * A radix tree whose edges are pages of tokens (Zheng et al. 2023, "SGLang", arXiv:2312.07104). Every node holds a page of the
 * global layers. Layers with a sliding window need more care: after a ring has wrapped the keys before the window are gone, so a
 * prefix can be taken up only where the window before it was kept. It is kept at the end of a prompt, at the end of an
 * answer, and where a second prompt parted from an earlier one, since a third one is likely to part there too (Pan et al. 2024,
 * "Marconi", arXiv:2411.19379, admits states of recurrent layers by the same rule).
 *
 * The cache holds one reference per page. Pages nobody else holds are given up, least recently used first, when a
 * sequence needs them.
 */
export class PrefixCache {
  readonly #pageTokens: number
  readonly #window: number
  readonly #globalPool: PagePool
  readonly #localPool: PagePool
  readonly #root = new Map<string, Node>()
  /** Sets iterate in insertion order: the front is the least recently used. Nodes, and nodes with a local page. */
  readonly #nodes = new Set<Node>()
  readonly #windows = new Set<Node>()

  constructor(options: PrefixCacheOptions) {
    this.#pageTokens = options.pageTokens
    this.#window = options.window
    this.#globalPool = options.globalPool
    this.#localPool = options.localPool
  }

  /** The number of pages held: of global and of local layers. */
  get size(): { global: number; local: number } {
    return { global: this.#nodes.size, local: this.#windows.size }
  }

  /** The longest prefix of `tokens` to begin with, at most `limit` tokens of it. Retains nothing; counts as a use. */
  match(tokens: Int32Array, limit: number): PrefixMatch {
    const size = this.#pageTokens
    const path: Node[] = []
    let children = this.#root
    while ((path.length + 1) * size <= limit) {
      const node = children.get(this.#key(tokens, path.length))
      if (!node) break
      path.push(node)
      children = node.children
    }
    let pages = 0
    let run = 0 // consecutive pages up to here whose local keys are there
    for (const node of path) {
      run = node.localPage >= 0 ? run + 1 : 0
      const count = node.index + 1
      if (this.#window === 0 || run >= count - this.windowStart(count * size)) pages = count
    }
    const localFirst = this.#window === 0 ? pages : this.windowStart(pages * size)
    const used = path.slice(0, pages)
    this.#touch(path, localFirst, pages)
    return {
      length: pages * size,
      globalPages: used.map((node) => node.globalPage),
      localPages: used.slice(localFirst).map((node) => node.localPage),
      localFirst,
      shared: path.length * size,
    }
  }

  /** The first logical page with a key that a query at `position` or after it can see in a local layer. */
  windowStart(position: number): number {
    return Math.floor(Math.max(0, position - this.#window + 1) / this.#pageTokens)
  }

  /**
   * Keeps the full pages of a sequence, and the window before each of `checkpoints`.
   * @param tokens The sequence's tokens.
   * @param pages How many full pages of them are computed.
   * @param checkpoints Positions, multiples of the page size, at most pages · pageTokens.
   * @param table Reads and replaces the sequence's pages: where a page with the same history is already held, the sequence is given
   *   that one (retained) and lets go of its own.
   */
  publish(
    tokens: Int32Array,
    pages: number,
    checkpoints: readonly number[],
    table: {
      globalPage(index: number): number
      replaceGlobalPage(index: number, page: number): void
      /** −1: no longer held. */
      localPage(index: number): number
    },
  ): void {
    const path: Node[] = []
    let parent: Node | undefined
    for (let index = 0; index < pages; index++) {
      const siblings = parent?.children ?? this.#root
      const key = this.#key(tokens, index)
      let node = siblings.get(key)
      const own = table.globalPage(index)
      if (!node) {
        this.#globalPool.retain(own)
        node = { parent, key, children: new Map(), index, globalPage: own, localPage: -1 }
        siblings.set(key, node)
      } else if (node.globalPage !== own) {
        table.replaceGlobalPage(index, node.globalPage)
      }
      path.push(node)
      parent = node
    }
    for (const checkpoint of this.#window === 0 ? [] : checkpoints) {
      const end = checkpoint / this.#pageTokens
      const first = this.windowStart(checkpoint)
      for (const node of path.slice(first, end)) {
        const page = table.localPage(node.index)
        if (node.localPage >= 0 || page < 0) continue
        this.#localPool.retain(page)
        node.localPage = page
      }
      this.#touch(path, first, end)
    }
    if (checkpoints.length === 0 || this.#window === 0) this.#touch(path, 0, 0)
  }

  /** Pages of the global layers that could be given up now. */
  evictableGlobal(): number {
    return countIf(this.#nodes, (node) => this.#globalPool.references(node.globalPage) === 1)
  }

  evictableLocal(): number {
    return countIf(this.#windows, (node) => this.#localPool.references(node.localPage) === 1)
  }

  /** Gives up one page of the global layers (and the local one of the same tokens). False if all are in use. */
  evictGlobal(): boolean {
    for (const node of this.#nodes) {
      if (node.children.size > 0 || this.#globalPool.references(node.globalPage) > 1) continue
      this.#remove(node)
      return true
    }
    return false
  }

  /** Gives up one page of the local layers. */
  evictLocal(): boolean {
    for (const node of this.#windows) {
      if (this.#localPool.references(node.localPage) > 1) continue
      this.#dropLocal(node)
      return true
    }
    return false
  }

  /** Gives up everything. Sequences keep the pages they hold. */
  clear(): void {
    for (const node of [...this.#nodes].sort((a, b) => b.index - a.index)) this.#remove(node)
  }

  #remove(node: Node): void {
    this.#dropLocal(node)
    this.#globalPool.release(node.globalPage)
    this.#nodes.delete(node)
    ;(node.parent?.children ?? this.#root).delete(node.key)
  }

  #dropLocal(node: Node): void {
    if (node.localPage < 0) return
    this.#localPool.release(node.localPage)
    node.localPage = -1
    this.#windows.delete(node)
  }

  /**
   * Marks a path as just used, its end first: whoever evicts takes the deepest page of a path before the ones it needs. For
   * windows too: without its last page a window of a short history still serves all shorter ones.
   */
  #touch(path: readonly Node[], localFirst: number, localEnd: number): void {
    for (let index = path.length - 1; index >= 0; index--) {
      const node = path[index] as Node
      this.#nodes.delete(node)
      this.#nodes.add(node)
      if (index >= localFirst && index < localEnd && node.localPage >= 0) {
        this.#windows.delete(node)
        this.#windows.add(node)
      }
    }
  }

  #key(tokens: Int32Array, page: number): string {
    return tokens.subarray(page * this.#pageTokens, (page + 1) * this.#pageTokens).join()
  }
}

function countIf<T>(items: Iterable<T>, holds: (item: T) => boolean): number {
  let count = 0
  for (const item of items) if (holds(item)) count++
  return count
}
