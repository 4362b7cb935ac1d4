/**
 * Where keys and values of each sequence lie: page tables of global layers, rings of local ones.
 * @module
 */
import { PagePool } from './page-pool.ts'
import { PrefixCache, type PrefixMatch } from './prefix-cache.ts'

export interface KvPagesOptions {
  /** Tokens per page. */
  readonly pageTokens: number
  /** Keys that a query of a local layer sees, its own included; 0: there are no local layers. */
  readonly window: number
  /** The most tokens a sequence may have. */
  readonly contextLength: number
  /** The most tokens of one sequence in one step; a page if that is more. */
  readonly chunk: number
  /** Pages of the global layers, at least what one sequence of contextLength needs. */
  readonly globalPages: number
  /** Pages of the local layers, at least one ring. 0 without a window. */
  readonly localPages: number
  /** Whether later sequences may reuse pages. */
  readonly prefixCache: boolean
}

/** How many pages tables hold: the width of a global table, and of a ring. */
export function tableWidths(options: Pick<KvPagesOptions, 'pageTokens' | 'window' | 'contextLength' | 'chunk'>): {
  global: number
  local: number
} {
  const { pageTokens, window, contextLength } = options
  const chunk = Math.max(options.chunk, pageTokens)
  const global = Math.ceil(contextLength / pageTokens)
  if (window === 0) return { global, local: 0 }
  // A step at position p reads keys from p − window + 1 and writes up to p + chunk − 1; the window before the last page boundary
  // (at most pageTokens − 1 tokens back) is kept with it, for the prefix cache. So many tokens, wherever they start:
  const tokens = window + chunk + pageTokens - 2
  return { global, local: Math.min(global, Math.ceil((tokens - 1) / pageTokens) + 1) }
}

/** The pools, the prefix cache, and the rules by which sequences get pages. No tensor is touched here. */
export class KvPages {
  readonly pageTokens: number
  readonly window: number
  readonly widths: { readonly global: number; readonly local: number }
  readonly globalPool: PagePool
  readonly localPool: PagePool
  readonly prefixes: PrefixCache | undefined

  constructor(options: KvPagesOptions) {
    this.pageTokens = options.pageTokens
    this.window = options.window
    this.widths = tableWidths(options)
    this.globalPool = new PagePool(Math.max(options.globalPages, this.widths.global))
    this.localPool = new PagePool(options.window === 0 ? 0 : Math.max(options.localPages, this.widths.local))
    if (options.prefixCache) {
      this.prefixes = new PrefixCache({
        pageTokens: this.pageTokens,
        window: this.window,
        globalPool: this.globalPool,
        localPool: this.localPool,
      })
    }
  }

  /** An empty table. */
  open(): SequencePages {
    return new SequencePages(this)
  }

  /** Whether so many tokens could get pages now, beginning with an empty table of which `held` tokens are already there. */
  hasRoom(tokens: number, held: number): boolean {
    const global = Math.ceil(tokens / this.pageTokens) - Math.floor(held / this.pageTokens)
    const local = Math.min(this.widths.local, global)
    return (
      this.#room(this.globalPool, global, () => this.prefixes?.evictableGlobal() ?? 0) &&
      (this.window === 0 || this.#room(this.localPool, local, () => this.prefixes?.evictableLocal() ?? 0))
    )
  }

  /**
   * How many tokens `later` may begin with once the prompt of `earlier` is computed: a multiple of the page size, up to where both are alike
   * and local layers keep what is seen from there.
   */
  reusable(earlier: Int32Array, promptLength: number, later: Int32Array): number {
    const { pageTokens, prefixes } = this
    if (!prefixes) return 0
    const kept = Math.floor((promptLength - 1) / pageTokens) * pageTokens
    const limit = Math.min(kept, later.length - 1)
    let alike = 0
    while (alike < limit && earlier[alike] === later[alike]) alike++
    const tokens = Math.floor(alike / pageTokens) * pageTokens
    return this.window === 0 || prefixes.windowStart(tokens) === prefixes.windowStart(kept) ? tokens : 0
  }

  /** @internal A page of the global layers, from the prefix cache if need be; −1: all are in use. */
  takeGlobal(): number {
    const page = this.globalPool.take()
    if (page >= 0 || !this.prefixes?.evictGlobal()) return page
    return this.globalPool.take()
  }

  /** @internal */
  takeLocal(): number {
    const page = this.localPool.take()
    if (page >= 0 || !this.prefixes?.evictLocal()) return page
    return this.localPool.take()
  }

  /** Counting what could be given up takes a walk: only when what is free does not suffice. */
  #room(pool: PagePool, wanted: number, evictable: () => number): boolean {
    return pool.free >= wanted || pool.free + evictable() >= wanted
  }
}

/** The pages of one sequence. */
export class SequencePages {
  /** Physical page of each logical page of the global layers; entries from `globalCount` on are stale. */
  readonly global: Int32Array
  /** A ring: logical page p stands at p mod its length. */
  readonly local: Int32Array
  readonly #pages: KvPages
  #globalCount = 0
  /** Logical pages [localFirst, localEnd) are held. */
  #localFirst = 0
  #localEnd = 0
  /** Where an earlier sequence had the same tokens, but the window before this point was not kept. */
  #branch = 0

  constructor(pages: KvPages) {
    this.#pages = pages
    this.global = new Int32Array(pages.widths.global)
    this.local = new Int32Array(pages.widths.local)
  }

  /** Takes up the longest known prefix of `tokens`, leaving at least one token to compute. Returns its length. */
  adopt(tokens: Int32Array): number {
    const match = this.#pages.prefixes?.match(tokens, tokens.length - 1)
    if (!match) return 0
    this.#branch = match.shared > match.length ? match.shared : 0
    return this.#hold(match)
  }

  #hold(match: PrefixMatch): number {
    const { globalPool, localPool } = this.#pages
    for (const page of match.globalPages) {
      globalPool.retain(page)
      this.global[this.#globalCount++] = page
    }
    this.#localFirst = match.localFirst
    this.#localEnd = match.localFirst
    for (const page of match.localPages) {
      localPool.retain(page)
      this.local[this.#localEnd++ % this.local.length] = page
    }
    return match.length
  }

  /**
   * Makes room to compute tokens [start, start + count), start being what is computed so far. Pages that no query from here on
   * sees are let go. False if pages are lacking; what was taken until then is kept for the next attempt.
   */
  reserve(start: number, count: number): boolean {
    const { pageTokens, window, localPool, prefixes } = this.#pages
    const end = Math.ceil((start + count) / pageTokens)
    while (this.#globalCount < end) {
      const page = this.#pages.takeGlobal()
      if (page < 0) return false
      this.global[this.#globalCount++] = page
    }
    if (window === 0) return true
    // With a prefix cache the window before the last page boundary may still be published.
    const oldest = prefixes ? Math.floor(start / pageTokens) * pageTokens : start
    const first = Math.floor(Math.max(0, oldest - window + 1) / pageTokens)
    while (this.#localFirst < Math.min(first, this.#localEnd)) localPool.release(this.#localAt(this.#localFirst++))
    this.#localFirst = Math.max(this.#localFirst, first)
    this.#localEnd = Math.max(this.#localEnd, this.#localFirst)
    while (this.#localEnd < end) {
      const page = this.#pages.takeLocal()
      if (page < 0) return false
      this.local[this.#localEnd++ % this.local.length] = page
    }
    return true
  }

  get pageTokens(): number {
    return this.#pages.pageTokens
  }

  /** The slot of a token in the global layers: page · pageTokens + offset. */
  globalSlot(position: number): number {
    const { pageTokens } = this.#pages
    const page = Math.floor(position / pageTokens)
    return (this.global[page] as number) * pageTokens + (position - page * pageTokens)
  }

  localSlot(position: number): number {
    const { pageTokens } = this.#pages
    const page = Math.floor(position / pageTokens)
    return this.#localAt(page) * pageTokens + (position - page * pageTokens)
  }

  /** Offers what is computed to later sequences: at a point where some may go on from here. */
  publish(tokens: Int32Array, computed: number): void {
    const { pageTokens, globalPool, prefixes } = this.#pages
    const pages = Math.floor(computed / pageTokens)
    if (!prefixes || pages === 0) return
    // A later sequence with more tokens begins after the last full page; one with just these must compute its last token.
    const ends = [Math.floor((computed - 1) / pageTokens) * pageTokens, pages * pageTokens]
    prefixes.publish(tokens, pages, ends, {
      globalPage: (index) => this.global[index] as number,
      replaceGlobalPage: (index, page) => {
        globalPool.retain(page)
        globalPool.release(this.global[index] as number)
        this.global[index] = page
      },
      localPage: (index) => (index >= this.#localFirst && index < this.#localEnd ? this.#localAt(index) : -1),
    })
  }

  /** To be called after each step with what is computed now: keeps the window at the branch point when it is passed. */
  passed(tokens: Int32Array, computed: number): void {
    if (this.#branch === 0 || computed < this.#branch) return
    this.publish(tokens, this.#branch)
    this.#branch = 0
  }

  /** Lets go of all pages. The table is as new. */
  release(): void {
    const { globalPool, localPool } = this.#pages
    for (let page = 0; page < this.#globalCount; page++) globalPool.release(this.global[page] as number)
    while (this.#localFirst < this.#localEnd) localPool.release(this.#localAt(this.#localFirst++))
    this.#globalCount = 0
    this.#localFirst = 0
    this.#localEnd = 0
    this.#branch = 0
  }

  #localAt(page: number): number {
    return this.local[page % this.local.length] as number
  }
}
