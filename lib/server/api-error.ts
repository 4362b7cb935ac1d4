/**
 * Errors as OpenAI's clients expect them.
 * @module
 */
import { LapidaryError } from '../errors.ts'

interface ApiErrorDetails {
  /** The field at fault. */
  readonly param?: string | undefined
  readonly code?: string | undefined
  readonly headers?: Readonly<Record<string, string>>
  readonly cause?: unknown
}

/** An answer that says what went wrong: status, and `{ error: { message, type, param, code } }`. */
export class ApiError extends Error {
  override readonly name = 'ApiError'
  readonly status: number
  readonly param: string | null
  readonly code: string | null
  readonly headers: Readonly<Record<string, string>>

  constructor(status: number, message: string, details: ApiErrorDetails = {}) {
    super(message, { cause: details.cause })
    this.status = status
    this.param = details.param ?? null
    this.code = details.code ?? null
    this.headers = details.headers ?? {}
  }

  /** OpenAI's names for kinds of errors. */
  get type(): string {
    if (this.status === 401) return 'authentication_error'
    if (this.status === 429) return 'rate_limit_error'
    return this.status >= 500 ? 'server_error' : 'invalid_request_error'
  }

  toJSON(): { error: { message: string; type: string; param: string | null; code: string | null } } {
    const { message, type, param, code } = this
    return { error: { message, type, param, code } }
  }
}

/** A field of a request that has a wrong value. */
export function invalid(param: string, problem: string, code = 'invalid_value'): ApiError {
  return new ApiError(400, `${param}: ${problem}`, { param, code })
}

/** Seconds after which a client may try again. Nobody knows; clients add a random part of their own. */
const retryAfter = { 'retry-after': '1' }

/** The answer for whatever was thrown. What is no fault of the client says no more than its code. */
export function apiErrorOf(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (!(error instanceof LapidaryError)) return new ApiError(500, 'the server failed', { cause: error })
  const { code, message } = error
  const details = { code, cause: error }
  switch (code) {
    case 'ERR_INVALID_ARGUMENT':
      return new ApiError(400, message, details)
    case 'ERR_BUSY':
      return new ApiError(429, 'too many requests are waiting: try again later', { ...details, headers: retryAfter })
    case 'ERR_DISPOSED':
    case 'ERR_ABORTED':
      return new ApiError(503, 'the server is shutting down', { ...details, headers: retryAfter })
    case 'ERR_OUT_OF_MEMORY':
      return new ApiError(503, 'the server is short of memory', { ...details, headers: retryAfter })
    default:
      return new ApiError(500, `the server failed: ${code}`, details)
  }
}
