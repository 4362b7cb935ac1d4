/**
 * JSON from files that may be anything.
 * @module
 */
import { isUtf8 } from 'node:buffer'
import { corrupt, quote, type Source } from './source.ts'

/** What a file holds beside its numbers has some megabytes at most; parsed, JSON takes up to thirty times its bytes. */
export const longestJson: number = 16 << 20

/** A JSON object. */
export type JsonObject = Readonly<Record<string, unknown>>

/**
 * Parses `length` bytes of a file, at `offset`, as a JSON object.
 * @param what Names it in messages, such as "the header".
 * @param longest The most bytes that it may have.
 * @throws ERR_CHECKPOINT_CORRUPT if it is no object, is not UTF-8, or has one key twice at its top level.
 */
export function parseJsonObject(
  source: Source,
  what: string,
  offset = 0,
  length: number = source.size,
  longest: number = longestJson,
): JsonObject {
  const { path } = source
  if (length > longest) throw corrupt(path, offset, `${what}: expected at most ${longest} bytes, got ${length}`)
  const bytes = Buffer.allocUnsafe(length)
  source.read(offset, bytes)
  if (!isUtf8(bytes)) throw corrupt(path, offset + firstBadByte(bytes), `${what}: expected UTF-8`)
  const text = bytes.toString('utf8')
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    const message = (error as Error).message
    // Some of V8's messages name no position.
    const position = message.includes('end of JSON') ? text.length : Number(/position (\d+)/.exec(message)?.[1] ?? 0)
    const at = Buffer.byteLength(text.slice(0, position))
    throw corrupt(path, offset + at, `${what}: expected JSON: ${message.replace(/\p{Cc}+/gu, ' ')}`)
  }
  if (!isObject(value)) throw corrupt(path, offset, `${what}: expected a JSON object, got ${quote(value)}`)
  const repeated = repeatedKey(text)
  if (repeated) {
    const at = Buffer.byteLength(text.slice(0, repeated.position))
    throw corrupt(path, offset + at, `${what}: expected key ${quote(repeated.key)} once, got it again`)
  }
  return value
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function firstBadByte(bytes: Buffer): number {
  let good = 0
  let bad = bytes.length
  // Invariant: what ends before `good` is UTF-8, but for a character cut at its end.
  while (bad - good > 1) {
    const middle = (good + bad) >> 1
    if (isUtf8(bytes.subarray(0, middle - cutCharacter(bytes, middle)))) good = middle
    else bad = middle
  }
  return good
}

/** Bytes before `end` that begin a character which goes on after it. */
function cutCharacter(bytes: Buffer, end: number): number {
  for (let back = 1; back <= Math.min(3, end); back++) {
    const byte = bytes[end - back] as number
    if (byte < 0x80) return 0
    if (byte > 0xf4) return 0
    if (byte >= 0xc2) return back < (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2) ? back : 0
  }
  return 0
}

/**
 * The first key that an object, given as valid JSON text, has twice at its top level: JSON.parse keeps the last without a word. Two
 * descriptions of one tensor are a contradiction.
 */
function repeatedKey(text: string): { key: string; position: number } | undefined {
  const seen = new Set<string>()
  let depth = 0
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code === 0x7b || code === 0x5b) depth++
    else if (code === 0x7d || code === 0x5d) depth--
    else if (code === 0x22) {
      const end = endOfString(text, at)
      if (depth === 1 && isKey(text, end)) {
        const key = JSON.parse(text.slice(at, end)) as string
        if (seen.has(key)) return { key, position: at }
        seen.add(key)
      }
      at = end - 1
    }
  }
  return undefined
}

/** The position after the quote that closes the string which begins at `start`. */
function endOfString(text: string, start: number): number {
  let end = text.indexOf('"', start + 1)
  while (true) {
    let backslashes = 0
    while (text.charCodeAt(end - 1 - backslashes) === 0x5c) backslashes++
    if (backslashes % 2 === 0) return end + 1
    end = text.indexOf('"', end + 1)
  }
}

function isKey(text: string, end: number): boolean {
  let at = end
  while (' \t\n\r'.includes(text.charAt(at))) at++
  return text.charCodeAt(at) === 0x3a
}
