/**
 * Text that must not become a marker, carried through a chat template.
 *
 * A message's content travels through a template that may trim, split or join it, so its place in the result is not known. In
 * front of every character with which a marker could begin or end, a guard is put: an unpaired low surrogate, which no
 * well-formed text holds. Where one stands in the rendered text, no marker may reach over the character behind it. The guards
 * are taken out before anything is encoded: what holds no marker has the ids that it would have without them. So both ends of a
 * marker have to be the template's own.
 * @module
 */
import type { TextUnits } from './encoder.ts'
import { type PieceMatcher, Trust } from './matcher.ts'

const guards = ['\udc00', '\udc01'] as const

/** Replaces unpaired surrogates, as encoding to UTF-8 does. */
export function wellFormed(text: string): string {
  return text.replace(/\p{Surrogate}/gu, '\ufffd')
}

/**
 * Puts guards into a text.
 * @param trust the most that may be recognised in it: `Trust.text` or `Trust.markers`
 */
export function guard(text: string, matcher: PieceMatcher, trust: 0 | 1): string {
  let out = ''
  for (const character of wellFormed(text)) {
    const last = character.charCodeAt(character.length - 1)
    if (matcher.firstUnits.has(character.charCodeAt(0)) || matcher.lastUnits.has(last)) out += guards[trust]
    out += character
  }
  return out
}

/** Takes the guards out of a rendered text and notes where they stood. */
export function unitsOfGuarded(text: string, unitsOf: (text: string) => Uint16Array): TextUnits {
  const places: { at: number; trust: number }[] = []
  let plain = ''
  for (const character of text) {
    const trust = guards.indexOf(character as (typeof guards)[number])
    if (trust < 0) plain += character
    else places.push({ at: plain.length, trust })
  }
  const units = unitsOf(plain)
  const shift = units.length - plain.length
  const limits = new Uint8Array(units.length).fill(Trust.control)
  for (const { at, trust } of places)
    if (at + shift < limits.length) limits[at + shift] = Math.min(trust, limits[at + shift]!)
  return { units, limits }
}
