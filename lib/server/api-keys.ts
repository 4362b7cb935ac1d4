/**
 * API keys, compared without telling how much of one is right.
 * @module
 */
import { createHash, timingSafeEqual } from 'node:crypto'
import { ApiError } from './api-error.ts'

const digest = (text: string): Buffer => createHash('sha256').update(text).digest()

/** The keys that a server accepts. None: it accepts everybody. */
export class ApiKeys {
  readonly #digests: readonly Buffer[]

  constructor(keys: readonly string[]) {
    this.#digests = keys.map(digest)
  }

  /** @throws ApiError 401 unless the `authorization` header holds one of the keys. */
  check(authorization: string | undefined): void {
    if (this.#digests.length === 0) return
    const given = digest(/^Bearer +(\S+) *$/i.exec(authorization ?? '')?.[1] ?? '')
    // Digests have one length, and every key is compared: the time tells nothing.
    let known = false
    for (const key of this.#digests) known = timingSafeEqual(key, given) || known
    if (known) return
    const problem = authorization === undefined ? 'expected a header: authorization: Bearer KEY' : 'unknown API key'
    throw new ApiError(401, problem, { code: 'invalid_api_key', headers: { 'www-authenticate': 'Bearer' } })
  }
}
