/**
 * What the front ends and the server hand each other: a request and an answer, of no framework.
 * @module
 */
import { ApiError } from './api-error.ts'

/** A request, as a front end describes it. */
export interface ApiRequest {
  readonly method: string
  /** Without query, and without the prefix under which the server is mounted. */
  readonly path: string
  /** The value of a header, where the request has it. @param name in lower case */
  readonly header: (name: string) => string | undefined
  /** Read at most once, and not at all if the request is refused before. */
  readonly body: AsyncIterable<Uint8Array> | undefined
  /** Aborted when the client is gone. */
  readonly signal: AbortSignal
}

/** What is sent back. */
export interface ApiResponse {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  /** All of it, or server-sent events as they come. Whoever stops reading calls `return` of the iterator. */
  readonly body: string | AsyncIterable<string>
}

export function jsonResponse(
  value: unknown,
  status = 200,
  headers: Readonly<Record<string, string>> = {},
): ApiResponse {
  return {
    status,
    headers: { 'content-type': 'application/json; charset=utf-8', ...headers },
    body: JSON.stringify(value),
  }
}

export function errorResponse(error: ApiError): ApiResponse {
  return jsonResponse(error, error.status, error.headers)
}

/** Server-sent events. `x-accel-buffering` tells nginx not to collect them. */
export function eventResponse(events: AsyncIterable<string>): ApiResponse {
  return {
    status: 200,
    headers: {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
    },
    body: events,
  }
}

/** One server-sent event. JSON has no raw line breaks: one line of data. */
export function serverSentEvent(data: string, name?: string): string {
  return name === undefined ? `data: ${data}\n\n` : `event: ${name}\ndata: ${data}\n\n`
}

/**
 * Reads a JSON body.
 * @throws ApiError 413 if it is longer than `limit` bytes, 415 for another content type, 400 if it is no JSON in UTF-8.
 */
export async function readJson(request: ApiRequest, limit: number): Promise<unknown> {
  const tooLong = (): ApiError =>
    new ApiError(413, `body: expected at most ${limit} bytes`, {
      code: 'request_too_large',
      headers: { connection: 'close' },
    })
  if (Number(request.header('content-length')) > limit) throw tooLong()
  const type = request.header('content-type')
  if (type !== undefined && !/^application\/(?:[\w.+-]+\+)?json\b/i.test(type)) {
    throw new ApiError(415, `content-type: expected application/json, got ${type.slice(0, 100)}`, {
      code: 'unsupported_media_type',
    })
  }
  const chunks: Uint8Array[] = []
  let length = 0
  for await (const chunk of request.body ?? []) {
    length += chunk.length
    if (length > limit) throw tooLong()
    chunks.push(chunk)
  }
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks, length)))
  } catch (cause) {
    const problem = cause instanceof SyntaxError ? 'it is no JSON' : 'it is not UTF-8'
    throw new ApiError(400, `body: expected a JSON document: ${problem}`, { code: 'invalid_json', cause })
  }
}
