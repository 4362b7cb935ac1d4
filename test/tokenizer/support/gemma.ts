/**
 * The vocabularies of Gemma 2 and 3, from development dependencies, and the expected ids for them.
 * @module
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

export interface Vector {
  readonly text: string
  readonly ids: readonly number[]
  readonly decoded: string
}

const require = createRequire(import.meta.url)

/** Gemma 1's vocabulary is Gemma 2's. */
export type Family = 'gemma2' | 'gemma3'

export function tokenizerJson(family: Family): Buffer {
  return readFileSync(require.resolve(`@lenml/tokenizer-${family}/models/tokenizer.json`))
}

export function tokenizerConfig(family: Family): Record<string, unknown> {
  const file = require.resolve(`@lenml/tokenizer-${family}/models/tokenizer_config.json`)
  return JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>
}

export const fixtures: URL = new URL('../../fixtures/', import.meta.url)

export function vectors(family: Family): { sha256: string; cases: Vector[] } {
  return JSON.parse(readFileSync(new URL(`tokenizer/vectors-${family}.json`, fixtures), 'utf8')) as {
    sha256: string
    cases: Vector[]
  }
}
