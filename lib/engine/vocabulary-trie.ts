/**
 * The tokens of a vocabulary by their bytes, and which of them a grammar allows.
 * @module
 */
import { setImmediate } from 'node:timers/promises'
import { LapidaryError } from '../errors.ts'
import type { Tokenizer } from '../tokenizer/tokenizer.ts'
import type { GrammarStates, State } from './grammar-states.ts'

/** Tokens that are put in before others have their turn: some milliseconds. */
const slice = 2 ** 14
/** Places that making new states for one mask may look at: far more than any but a contrived grammar needs, a fraction of a second. */
const mostWork = 2 ** 18
/** Plain characters of a token at most, by part of the vocabulary. */
const partLengths = [4, 8, 16, 32] as const

/**
 * A vocabulary in parts: tokens of plain characters (what a string of JSON holds as it is) by length, and all others. Where so many plain
 * characters may follow whichever they are, a part is allowed as a whole; otherwise it is walked. So a string of JSON takes a walk over the
 * others only, 15,000 of Gemma 3's quarter of a million.
 */
export class VocabularyTrie {
  /** Words of a mask. */
  readonly #words: number
  readonly #parts: readonly Part[]

  private constructor(words: number, parts: readonly Part[]) {
    this.#words = words
    this.#parts = parts
  }

  /** Takes some milliseconds for each slice of the vocabulary, between which others have their turn. */
  static async build(tokenizer: Tokenizer, vocabularySize: number): Promise<VocabularyTrie> {
    const size = Math.min(vocabularySize, tokenizer.vocabularySize)
    const words = Math.ceil(vocabularySize / 32)
    const texts = [...partLengths, 0].map(() => ({ ids: [] as number[], bytes: 1 }))
    for (let id = 0; id < size; id++) {
      const text = tokenizer.textBytesOf(id)
      // What is empty would change nothing, for ever.
      if (text === undefined || text.length === 0) continue
      const length = plainLength(text)
      const fits = partLengths.findIndex((most) => length <= most)
      const part = texts[fits < 0 ? partLengths.length : fits] as (typeof texts)[number]
      part.ids.push(id)
      part.bytes += text.length
      if (id % slice === slice - 1) await setImmediate()
    }
    const parts: Part[] = []
    for (const [index, { ids, bytes }] of texts.entries()) {
      const builder = new Builder(bytes)
      const all = new Int32Array(words)
      for (const [done, id] of ids.entries()) {
        builder.add(id, tokenizer.textBytesOf(id) as Uint8Array)
        setBit(all, id)
        if (done % slice === slice - 1) await setImmediate()
      }
      parts.push({ plainLength: partLengths[index] ?? Number.POSITIVE_INFINITY, all, trie: new TokenTrie(builder) })
      await setImmediate()
    }
    return new VocabularyTrie(words, parts)
  }

  /**
   * A bit for every token whose bytes may follow.
   * @throws ERR_INVALID_ARGUMENT if the grammar is too ambiguous.
   */
  maskOf(states: GrammarStates, state: State): Int32Array {
    const mask = new Int32Array(this.#words)
    const depth = states.plainDepth(state, partLengths[partLengths.length - 1] as number)
    for (const { plainLength, all, trie } of this.#parts) {
      if (plainLength > depth) trie.mark(states, state, mask)
      else for (let word = 0; word < all.length; word++) mask[word] = (mask[word] as number) | (all[word] as number)
    }
    return mask
  }
}

interface Part {
  /** Infinity: not all of its tokens are plain characters. */
  readonly plainLength: number
  /** A bit for each of its tokens. */
  readonly all: Int32Array
  readonly trie: TokenTrie
}

/** The number of characters, if they are plain and the bytes are whole characters; else Infinity. */
function plainLength(text: Uint8Array): number {
  let count = 0
  for (const byte of text) {
    if (byte < 0x20 || byte === 0x22 || byte === 0x5c) return Number.POSITIVE_INFINITY
    if ((byte & 0xc0) !== 0x80) count++
  }
  // The bytes of a character that has no piece are tokens of their own.
  return text.length === 1 && (text[0] as number) >= 0x80 ? Number.POSITIVE_INFINITY : count
}

function setBit(mask: Int32Array, id: number): void {
  mask[id >> 5] = (mask[id >> 5] as number) | (1 << (id & 31))
}

/**
 * Texts of tokens as one tree, node by node in the order of a walk: beginnings that no text of the grammar has are skipped with all that
 * begin so.
 */
class TokenTrie {
  readonly #bytes: Uint8Array
  readonly #depths: Uint16Array
  /** The node after all those below. */
  readonly #ends: Int32Array
  /** A token that ends at a node, and the next one with the same bytes; −1: none. */
  readonly #tokens: Int32Array
  readonly #sameBytes: ReadonlyMap<number, number>
  readonly #deepest: number

  constructor(builder: Builder) {
    const { count } = builder
    this.#bytes = new Uint8Array(count)
    this.#depths = new Uint16Array(count)
    this.#ends = new Int32Array(count)
    this.#tokens = new Int32Array(count)
    this.#sameBytes = builder.sameBytes
    this.#deepest = this.#flatten(builder)
  }

  /** Sets the bit of every token whose bytes may follow. */
  mark(states: GrammarStates, from: State, mask: Int32Array): void {
    const bytes = this.#bytes
    const depths = this.#depths
    const ends = this.#ends
    const tokens = this.#tokens
    const { classOf } = states
    const path: State[] = new Array(this.#deepest + 1).fill(from)
    const end = states.work + mostWork
    for (let index = 0; index < bytes.length; ) {
      const depth = depths[index] as number
      const state = path[depth] as State
      const byteClass = classOf[bytes[index] as number] as number
      let next = state.next[byteClass]
      if (next === undefined) {
        next = states.advance(state, byteClass)
        if (states.work > end) throw tooComplex()
      }
      if (next === null) {
        index = ends[index] as number
        continue
      }
      path[depth + 1] = next
      const id = tokens[index] as number
      if (id >= 0) this.#setBits(mask, id)
      index++
    }
  }

  #setBits(mask: Int32Array, id: number): void {
    for (let one: number | undefined = id; one !== undefined; one = this.#sameBytes.get(one)) setBit(mask, one)
  }

  /** Lays the nodes out in the order of a walk. Returns the length of the longest text. */
  #flatten({ bytes, firstChild, sibling, token }: Builder): number {
    const open: { readonly at: number; readonly next: number }[] = []
    let at = 0
    let deepest = 0
    let node = firstChild[0] as number
    for (let depth = 0; node > 0 || open.length > 0; ) {
      if (node > 0) {
        this.#bytes[at] = bytes[node] as number
        this.#depths[at] = depth
        this.#tokens[at] = token[node] as number
        open.push({ at: at++, next: sibling[node] as number })
        deepest = Math.max(deepest, ++depth)
        node = firstChild[node] as number
      } else {
        const { at: parent, next } = open.pop() as { at: number; next: number }
        this.#ends[parent] = at
        depth--
        node = next
      }
    }
    return deepest
  }
}

/** A tree under construction: children of a node are a list. Node 0 is the root; 0 also ends a list. */
class Builder {
  count = 0
  readonly bytes: Uint8Array
  readonly firstChild: Int32Array
  readonly sibling: Int32Array
  readonly token: Int32Array
  /** By token, another one with the same bytes. */
  readonly sameBytes = new Map<number, number>()

  constructor(nodes: number) {
    this.bytes = new Uint8Array(nodes)
    this.firstChild = new Int32Array(nodes)
    this.sibling = new Int32Array(nodes)
    this.token = new Int32Array(nodes).fill(-1)
  }

  add(id: number, text: Uint8Array): void {
    let node = 0
    for (const byte of text) node = this.#child(node, byte)
    const other = this.token[node] as number
    if (other >= 0) this.sameBytes.set(id, other)
    this.token[node] = id
  }

  #child(parent: number, byte: number): number {
    for (let child = this.firstChild[parent] as number; child > 0; child = this.sibling[child] as number) {
      if (this.bytes[child] === byte) return child
    }
    const child = ++this.count
    this.bytes[child] = byte
    this.sibling[child] = this.firstChild[parent] as number
    this.firstChild[parent] = child
    return child
  }
}

function tooComplex(): LapidaryError {
  const problem =
    'expected one of which few parts may begin alike, got one with too many ways to read a token: simplify it'
  return new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}`)
}
