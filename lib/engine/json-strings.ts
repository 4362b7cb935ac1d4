/**
 * Grammars made from JSON schemas: the characters that may stand in a string as they are.
 * @module
 */
import { type Range, readClass, reservedRanges, subtract } from './code-points.ts'

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
  return `[${subtract(readClass(part), reservedRanges).map(writeRange).join('')}]`
}

function writeRange([low, high]: Range): string {
  const write = (point: number): string => `\\U${point.toString(16).padStart(8, '0')}`
  return low === high ? write(low) : `${write(low)}-${write(high)}`
}
