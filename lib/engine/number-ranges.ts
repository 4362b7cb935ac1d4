/**
 * Numbers between bounds, as grammars. XGrammar 0.1.27 has its own, which let 129 pass for a maximum of 120; so bounded numbers are
 * taken out of a schema, and rules put in their place.
 * @module
 */
import { LapidaryError } from '../errors.ts'

/** Digits that are written so: from `low` to `high`. */
type Digits = readonly (readonly [low: number, high: number])[]

/** Digits after the point of a bounded number, at most. */
const decimals = 4
/** Bounds are clipped to what a double holds exactly with that many decimals. */
const largest = 1e11

/** A schema without bounded numbers, and what puts them into the grammar made from it. */
export interface WithoutRanges {
  readonly schema: unknown
  readonly insert: (ebnf: string) => string
}

/** @throws ERR_INVALID_ARGUMENT if no number lies between bounds. */
export function withoutRanges(schema: unknown): WithoutRanges {
  const rules: string[] = []
  const walk = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(walk)
    if (typeof value !== 'object' || value === null) return value
    const node = value as Record<string, unknown>
    const { type } = node
    const numeric = type === 'integer' || type === 'number'
    if (numeric && bounds.some((name) => typeof node[name] === 'number')) {
      return { const: mark(rules.push(rangeRule(node, type === 'integer')) - 1) }
    }
    if (Array.isArray(type) && bounds.some((name) => typeof node[name] === 'number')) {
      return { anyOf: type.map((one) => walk({ ...node, type: one })) }
    }
    const copy: Record<string, unknown> = {}
    // What these hold is a value, not a schema.
    for (const [key, part] of Object.entries(node)) copy[key] = key === 'const' || key === 'enum' ? part : walk(part)
    return copy
  }
  const stripped = walk(schema)
  const insert = (ebnf: string): string => {
    let text = ebnf
    // The mark stands in a literal, which is closed before it and opened again.
    for (const index of rules.keys()) text = text.replaceAll(`\\"${mark(index)}\\"`, `" ${ruleName(index)} "`)
    return [text, ...rules.map((rule, index) => `${ruleName(index)} ::= ${rule}`)].join('\n')
  }
  return { schema: stripped, insert }
}

const bounds = ['minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum']
const mark = (index: number): string => `lapidary number ${index}`
const ruleName = (index: number): string => `bounded_number_${index}`

function rangeRule(node: Record<string, unknown>, integer: boolean): string {
  const alternatives: string[] = []
  for (let scale = 0; scale <= (integer ? 0 : decimals); scale++) {
    const unit = 10 ** scale
    const clip = (value: number): number => Math.max(-largest, Math.min(largest, value)) * unit
    // Products such as 0.07 · 100 are within this of the integer they mean.
    const slack = 1e-6
    let low = -largest * unit
    let high = largest * unit
    const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = node as Record<string, number | undefined>
    if (typeof minimum === 'number') low = Math.max(low, Math.ceil(clip(minimum) - slack))
    if (typeof exclusiveMinimum === 'number') low = Math.max(low, Math.floor(clip(exclusiveMinimum) + slack) + 1)
    if (typeof maximum === 'number') high = Math.min(high, Math.floor(clip(maximum) + slack))
    if (typeof exclusiveMaximum === 'number') high = Math.min(high, Math.ceil(clip(exclusiveMaximum) - slack) - 1)
    if (low > high) continue
    if (low < 0) {
      const from = Math.max(1, -high)
      for (const digits of between(from, -low, scale)) alternatives.push(`"-" ${write(digits, scale)}`)
    }
    if (high >= 0) for (const digits of between(Math.max(0, low), high, scale)) alternatives.push(write(digits, scale))
  }
  if (alternatives.length > 0) return alternatives.join(' | ')
  const given = JSON.stringify(
    Object.fromEntries(bounds.filter((name) => name in node).map((name) => [name, node[name]])),
  )
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: expected bounds with a number between them, got ${given}`)
}

/** The numerals from low to high, neither negative, with more than `scale` digits. */
function between(low: number, high: number, scale: number): Digits[] {
  const first = String(low).padStart(scale + 1, '0')
  const last = String(high).padStart(scale + 1, '0')
  const all: Digits[] = []
  for (let length = first.length; length <= last.length; length++) {
    const from = length === first.length ? first : `1${'0'.repeat(length - 1)}`
    const to = length === last.length ? last : '9'.repeat(length)
    all.push(...sameLength(from, to))
  }
  return all
}

/** The numerals from low to high, which have the same length. */
function sameLength(low: string, high: string): Digits[] {
  if (low === '') return [[]]
  const from = Number(low[0])
  const to = Number(high[0])
  const rest = low.length - 1
  const any: Digits = Array.from({ length: rest }, () => [0, 9])
  const then = (digit: number, tails: Digits[]): Digits[] => tails.map((tail) => [[digit, digit], ...tail])
  const lowest = '0'.repeat(rest)
  const highest = '9'.repeat(rest)
  if (from === to) return then(from, sameLength(low.slice(1), high.slice(1)))
  const wholeLow = low.slice(1) === lowest
  const wholeHigh = high.slice(1) === highest
  const middle: [number, number] = [wholeLow ? from : from + 1, wholeHigh ? to : to - 1]
  return [
    ...(wholeLow ? [] : then(from, sameLength(low.slice(1), highest))),
    ...(middle[0] <= middle[1] ? [[middle, ...any]] : []),
    ...(wholeHigh ? [] : then(to, sameLength(lowest, high.slice(1)))),
  ]
}

function write(digits: Digits, scale: number): string {
  const parts = digits.map(([low, high]) => (low === high ? `"${low}"` : `[${low}-${high}]`))
  if (scale > 0) parts.splice(parts.length - scale, 0, '"."')
  return parts.join(' ')
}
