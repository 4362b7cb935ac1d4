/**
 * `lapidary/fetch`: a web-standard handler, `Request` to `Response`, for Hono, Bun, Deno and others.
 * @module
 */
import { pathOf } from './node.ts'
import { LapidaryServer, type ServerOptions } from './server.ts'

export type { ServedModel } from './call.ts'
export type { CorsOption } from './cors.ts'
export type { ApiRequest, ApiResponse } from './http.ts'
export type { Ending } from './lifetime.ts'
export type { Metrics } from './metrics.ts'
export { LapidaryServer, type ModelEntry, type ServerLogger, type ServerOptions } from './server.ts'

/** A handler, and the server behind it. */
export interface FetchHandler {
  (request: Request): Promise<Response>
  readonly server: LapidaryServer
}

/**
 * Makes a handler that answers OpenAI's protocol. A client that goes away is known by the request's signal, or by the
 * cancellation of the response's body.
 *
 * @param prefix What stands before the paths, such as `/llm`.
 * @example
 * const handler = lapidary({ model: 'gemma-3-4b-it-q4_0.gguf' })
 * app.all('/v1/*', (context) => handler(context.req.raw))   // Hono
 * Deno.serve(handler)
 */
export function lapidary(options: ServerOptions | LapidaryServer = {}, prefix = ''): FetchHandler {
  const server = options instanceof LapidaryServer ? options : new LapidaryServer(options)
  const handler = async (request: Request): Promise<Response> => {
    const gone = new AbortController()
    if (request.signal.aborted) gone.abort()
    else request.signal.addEventListener('abort', () => gone.abort(), { once: true })
    const { status, headers, body } = await server.handle({
      method: request.method,
      path: pathOf(request.url.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i, '') || '/', prefix),
      header: (name) => request.headers.get(name) ?? undefined,
      body: request.body ? chunksOf(request.body) : undefined,
      signal: gone.signal,
    })
    // Connections are the host's business.
    const { connection: _, ...own } = headers
    if (typeof body !== 'string') return new Response(streamOf(body, gone), { status, headers: own })
    return new Response(status === 204 || request.method === 'HEAD' ? null : body, { status, headers: own })
  }
  return Object.assign(handler, { server })
}

export default lapidary

async function* chunksOf(body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const reader = body.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    reader.releaseLock()
  }
}

/** Events as bytes, at the pace at which they are read. */
function streamOf(events: AsyncIterable<string>, gone: AbortController): ReadableStream<Uint8Array> {
  const iterator = events[Symbol.asyncIterator]()
  const encoder = new TextEncoder()
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await iterator.next()
      if (done) controller.close()
      else controller.enqueue(encoder.encode(value))
    },
    async cancel() {
      gone.abort()
      await iterator.return?.()
    },
  })
}
