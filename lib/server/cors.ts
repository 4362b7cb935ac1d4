/**
 * Cross-origin requests of browsers. Off unless asked for: a page on the web must not talk to a server on loopback.
 * @module
 */
import type { ApiRequest, ApiResponse } from './http.ts'

/** `true`: pages of any origin; or the origins allowed, such as `https://example.org`. */
export type CorsOption = boolean | readonly string[]

/** The headers of an answer to a page; none if its origin is not allowed. */
export function corsHeaders(option: CorsOption, request: ApiRequest): Record<string, string> {
  const origin = request.header('origin')
  if (option === false || origin === undefined) return {}
  if (option === true) return { 'access-control-allow-origin': '*' }
  return option.includes(origin) ? { 'access-control-allow-origin': origin, vary: 'origin' } : { vary: 'origin' }
}

/** The answer to a browser that asks before it sends; undefined: no such request, or nobody allowed it. */
export function preflight(option: CorsOption, request: ApiRequest): ApiResponse | undefined {
  if (request.method !== 'OPTIONS' || request.header('access-control-request-method') === undefined) return undefined
  const headers = corsHeaders(option, request)
  if (headers['access-control-allow-origin'] === undefined) return undefined
  return {
    status: 204,
    headers: {
      ...headers,
      'access-control-allow-methods': 'GET, POST, OPTIONS',
      // OpenAI's clients send headers of their own.
      'access-control-allow-headers': request.header('access-control-request-headers') ?? 'authorization, content-type',
      'access-control-max-age': '7200',
    },
    body: '',
  }
}
