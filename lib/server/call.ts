/**
 * A call of an endpoint: what its handler is given.
 * @module
 */
import { randomUUID } from 'node:crypto'
import type { Gemma, Generation, RemoteImages } from '../index.ts'
import type { Fields } from './fields.ts'
import type { Lifetime } from './lifetime.ts'

/** A model that requests may name. */
export interface ServedModel {
  readonly id: string
  readonly gemma: Gemma
  /** Seconds since 1970 at which it was loaded. */
  readonly created: number
}

/** What a handler may ask of the server. */
export interface Call {
  readonly body: Fields
  readonly lifetime: Lifetime
  /** Fetches the images that requests name by URL. Undefined: they may name none. */
  readonly remoteImages: RemoteImages | undefined
  /** The most bytes of a request. */
  readonly bodyLimit: number
  /** The model that the body names, or the only one of its kind. @throws ApiError 404, 400, 503 */
  readonly model: (kind: 'text' | 'embedding' | 'any') => ServedModel
  /** Counts a generation in metrics and traces. @param isFirst Of the choices for its prompt, which is counted once. */
  readonly observe: (generation: Generation, isFirst: boolean) => void
  /** Counts tokens that were computed but not generated from. */
  readonly observePrompt: (tokens: number) => void
}

/** An id as OpenAI's look: a prefix and 32 hexadecimal digits. */
export function makeId(prefix: string): string {
  return prefix + randomUUID().replaceAll('-', '')
}

export function now(): number {
  return Math.floor(Date.now() / 1000)
}
