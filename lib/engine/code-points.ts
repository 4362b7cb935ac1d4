/**
 * Sets of characters in grammars: how they are written, and the bytes that they are.
 * @module
 */

/** Code points [low, high]. */
export type Range = readonly [low: number, high: number]

/** Of Unicode. */
export const lastCodePoint = 0x10ffff

// RFC 8259: control characters, quotation marks and backslashes are written by escapes.
/** What a string of JSON does not hold as it is. */
export const reservedRanges: readonly Range[] = [
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
]

/** What it does: plain characters. */
export const plainRanges: readonly Range[] = subtract([[0, lastCodePoint]], reservedRanges)

const escapes: Readonly<Record<string, string>> = {
  n: '\n',
  r: '\r',
  t: '\t',
  '0': '\0',
  f: '\f',
  v: '\v',
  b: '\b',
}

/** The code points of a text with the escapes of EBNF, and which of them are a hyphen written as it is. */
export function readEscaped(text: string): {
  readonly points: readonly number[]
  readonly hyphens: readonly boolean[]
} {
  const units = [...text.matchAll(/\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])/gsu)]
  const points = units.map(([, hex2, hex4, hex8, escaped, plain]) => {
    const hex = hex2 ?? hex4 ?? hex8
    if (hex !== undefined) return Number.parseInt(hex, 16)
    return (plain ?? escapes[escaped as string] ?? (escaped as string)).codePointAt(0) as number
  })
  return { points, hyphens: units.map(([unit]) => unit === '-') }
}

/** The code points of a character class in EBNF, brackets included. */
export function readClass(text: string): Range[] {
  const negated = text.startsWith('[^')
  const { points, hyphens } = readEscaped(text.slice(negated ? 2 : 1, -1))
  const ranges: Range[] = []
  for (let index = 0; index < points.length; index++) {
    const low = points[index] as number
    if (hyphens[index + 1] && index + 2 < points.length) {
      ranges.push([low, points[index + 2] as number])
      index += 2
    } else {
      ranges.push([low, low])
    }
  }
  return negated ? subtract([[0, lastCodePoint]], ranges) : ranges
}

/** What is left of `from` without `what`. */
export function subtract(from: readonly Range[], what: readonly Range[]): Range[] {
  let left = [...from]
  for (const [low, high] of what) {
    left = left.flatMap(([first, end]): Range[] => {
      const parts: Range[] = []
      if (first < low) parts.push([first, Math.min(end, low - 1)])
      if (end > high) parts.push([Math.max(first, high + 1), end])
      return parts
    })
  }
  return left
}

/** The ends of what UTF-8 writes in one, two, three and four bytes; surrogates are no characters. */
const encodable: readonly Range[] = [
  [0, 0x7f],
  [0x80, 0x7ff],
  [0x800, 0xd7ff],
  [0xe000, 0xffff],
  [0x10000, lastCodePoint],
]

/**
 * The UTF-8 of all characters of a range: byte strings whose bytes lie each between bounds. Cut so that the bytes after a first one that
 * differs are all there are (Cox 2010, "Regular Expression Matching in the Wild").
 */
export function utf8Sequences([low, high]: Range): Range[][] {
  return encodable.flatMap(([first, last]) => {
    const from = Math.max(low, first)
    const to = Math.min(high, last)
    return from > to ? [] : sameLength(from, to, first < 0x80 ? 1 : first < 0x800 ? 2 : first < 0x10000 ? 3 : 4)
  })
}

function sameLength(low: number, high: number, length: number): Range[][] {
  for (let after = 1; after < length; after++) {
    const mask = 2 ** (6 * after) - 1
    if ((low & ~mask) === (high & ~mask)) continue
    if ((low & mask) !== 0)
      return [...sameLength(low, low | mask, length), ...sameLength((low | mask) + 1, high, length)]
    if ((high & mask) !== mask) {
      return [...sameLength(low, (high & ~mask) - 1, length), ...sameLength(high & ~mask, high, length)]
    }
  }
  const first = Buffer.from(String.fromCodePoint(low))
  const last = Buffer.from(String.fromCodePoint(high))
  return [Array.from(first, (byte, index): Range => [byte, last[index] as number])]
}
