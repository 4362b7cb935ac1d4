/**
 * A byte-level acceptor, written for being right: all ways to read a text, byte by byte. What masks of tokens are compared with.
 * @module
 */

export type Language =
  | { readonly kind: 'byte'; readonly low: number; readonly high: number }
  | { readonly kind: 'sequence'; readonly parts: readonly Language[] }
  | { readonly kind: 'choice'; readonly options: readonly Language[] }
  | { readonly kind: 'many'; readonly part: Language }
  | { readonly kind: 'later'; readonly get: () => Language }

/** What is still to come; null: nothing. */
type Rest = { readonly head: Language; readonly tail: Rest } | null

export const byte = (low: number, high: number = low): Language => ({ kind: 'byte', low, high })
export const text = (value: string): Language => sequence(...Array.from(Buffer.from(value), (one) => byte(one)))
export const sequence = (...parts: Language[]): Language => ({ kind: 'sequence', parts })
export const choice = (...options: Language[]): Language => ({ kind: 'choice', options })
export const many = (part: Language): Language => ({ kind: 'many', part })
export const optional = (part: Language): Language => choice(part, sequence())
export const later = (get: () => Language): Language => ({ kind: 'later', get })
export const times = (part: Language, least: number, most: number): Language => {
  let rest = sequence()
  for (let count = most; count > 0; count--)
    rest = count <= least ? sequence(part, rest) : optional(sequence(part, rest))
  return rest
}

const continuation = byte(0x80, 0xbf)
/** Any character above U+007F, by table 3-7 of the Unicode standard. */
export const beyondAscii: Language = choice(
  sequence(byte(0xc2, 0xdf), continuation),
  sequence(byte(0xe0), byte(0xa0, 0xbf), continuation),
  sequence(choice(byte(0xe1, 0xec), byte(0xee, 0xef)), continuation, continuation),
  sequence(byte(0xed), byte(0x80, 0x9f), continuation),
  sequence(byte(0xf0), byte(0x90, 0xbf), continuation, continuation),
  sequence(byte(0xf1, 0xf3), continuation, continuation, continuation),
  sequence(byte(0xf4), byte(0x80, 0x8f), continuation, continuation),
)
/** RFC 8259, section 7: a character that stands for itself in a string. */
export const unescaped: Language = choice(byte(0x20, 0x21), byte(0x23, 0x5b), byte(0x5d, 0x7f), beyondAscii)
const hex = choice(byte(0x30, 0x39), byte(0x41, 0x46), byte(0x61, 0x66))
const escaped = sequence(text('\\'), choice(...Array.from('"\\/bfnrt', text), sequence(text('u'), hex, hex, hex, hex)))
export const jsonString: Language = sequence(text('"'), many(choice(unescaped, escaped)), text('"'))
export const digit: Language = byte(0x30, 0x39)
export const jsonInteger: Language = choice(text('0'), sequence(optional(text('-')), byte(0x31, 0x39), many(digit)))

/** What has been read so far, of one text. */
export class ByteAcceptor {
  static readonly #known = new WeakMap<readonly Rest[], ByteAcceptor>()
  readonly #rests: readonly Rest[]
  readonly #next: (ByteAcceptor | null)[] = []

  private constructor(rests: readonly Rest[]) {
    this.#rests = rests
  }

  static of(language: Language): ByteAcceptor {
    return ByteAcceptor.#of(expand({ head: language, tail: null }))
  }

  static #of(rests: readonly Rest[]): ByteAcceptor {
    const acceptor = ByteAcceptor.#known.get(rests) ?? new ByteAcceptor(rests)
    ByteAcceptor.#known.set(rests, acceptor)
    return acceptor
  }

  /** Whether the text may end here. */
  get complete(): boolean {
    return this.#rests.includes(null)
  }

  /** After more bytes; null: they may not follow. */
  after(bytes: Uint8Array): ByteAcceptor | null {
    let at: ByteAcceptor | null = this
    for (let index = 0; at && index < bytes.length; index++) at = at.#afterByte(bytes[index]!)
    return at
  }

  #afterByte(value: number): ByteAcceptor | null {
    const known = this.#next[value]
    if (known !== undefined) return known
    const taken = this.#rests.filter(
      (rest) => rest?.head.kind === 'byte' && value >= rest.head.low && value <= rest.head.high,
    )
    const next = taken.map((rest) => expand((rest as { tail: Rest }).tail))
    this.#next[value] = next.length === 0 ? null : ByteAcceptor.#of(next.length === 1 ? next[0]! : next.flat())
    return this.#next[value]!
  }
}

const expanded = new WeakMap<object, readonly Rest[]>()
const over: readonly Rest[] = [null]

/** What a rest may begin with, down to single bytes. */
function expand(rest: Rest): readonly Rest[] {
  if (rest === null) return over
  const known = expanded.get(rest)
  if (known) return known
  const all = expandOnce(rest)
  expanded.set(rest, all)
  return all
}

function expandOnce(rest: NonNullable<Rest>): readonly Rest[] {
  const { head, tail } = rest
  switch (head.kind) {
    case 'byte':
      return [rest]
    case 'sequence':
      return expand(head.parts.reduceRight<Rest>((after, part) => ({ head: part, tail: after }), tail))
    case 'choice':
      return head.options.flatMap((option) => expand({ head: option, tail }))
    case 'many':
      return [...expand({ head: head.part, tail: rest }), ...expand(tail)]
    case 'later':
      return expand({ head: head.get(), tail })
  }
}
