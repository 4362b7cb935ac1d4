/**
 * Grammars made from JSON schemas: the characters that may stand in a string as they are.
 * @module
 */

/** Code points [low, high]. */
type Range = readonly [low: number, high: number]

// RFC 8259: control characters, quotation marks and backslashes are written by escapes.
const reserved: readonly Range[] = [
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
]
const last = 0x10ffff

/**
 * Takes the characters that JSON wants escaped out of the character classes of a grammar in EBNF. XGrammar copies the classes of a
 * `pattern`, and one for strings of bounded length, as they are: `.` would allow a quotation mark, and end the string. The rules for
 * JSON itself (`basic_…`) are right and stay.
 */
export function withoutEscapes(ebnf: string): string {
  return ebnf
    .split('\n')
    .map((rule) =>
      /^basic_\w+ ::=/.test(rule) ? rule : rule.replace(/"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]/g, rewrite),
    )
    .join('\n')
}

/** A literal stays; a class loses what is to be escaped. */
function rewrite(part: string): string {
  if (part.startsWith('"')) return part
  const negated = part.startsWith('[^')
  const ranges = parseClass(part.slice(negated ? 2 : 1, -1))
  const allowed = subtract(negated ? subtract([[0, last]], ranges) : ranges, reserved)
  // A class must not be empty: one of a character that no text holds.
  return `[${(allowed.length > 0 ? allowed : [[last, last] as const]).map(writeRange).join('')}]`
}

function parseClass(text: string): Range[] {
  const units = [...text.matchAll(/\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])/gsu)]
  const named: Readonly<Record<string, string>> = { n: '\n', r: '\r', t: '\t', '0': '\0', f: '\f', v: '\v', b: '\b' }
  const points = units.map(([, hex2, hex4, hex8, escaped, plain]) => {
    const hex = hex2 ?? hex4 ?? hex8
    if (hex !== undefined) return Number.parseInt(hex, 16)
    return (plain ?? named[escaped as string] ?? (escaped as string)).codePointAt(0) as number
  })
  const ranges: Range[] = []
  for (let index = 0; index < points.length; index++) {
    const low = points[index] as number
    if (units[index + 1]?.[0] === '-' && index + 2 < points.length) {
      ranges.push([low, points[index + 2] as number])
      index += 2
    } else {
      ranges.push([low, low])
    }
  }
  return ranges
}

function subtract(from: readonly Range[], what: readonly Range[]): Range[] {
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

function writeRange([low, high]: Range): string {
  const write = (point: number): string => `\\U${point.toString(16).padStart(8, '0')}`
  return low === high ? write(low) : `${write(low)}-${write(high)}`
}
