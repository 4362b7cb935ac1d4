/**
 * `lapidary/node`: a handler for `node:http`, and for Express and whatever else takes `(request, response)`.
 * @module
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { ApiRequest, ApiResponse } from './http.ts'
import { LapidaryServer, type ServerOptions } from './server.ts'

export type { ServedModel } from './call.ts'
export type { CorsOption } from './cors.ts'
export type { ApiRequest, ApiResponse } from './http.ts'
export type { Ending } from './lifetime.ts'
export type { Metrics } from './metrics.ts'
export { LapidaryServer, type ModelEntry, type ServerLogger, type ServerOptions } from './server.ts'

/** A handler, and the server behind it. */
export interface NodeHandler {
  (request: IncomingMessage, response: ServerResponse): Promise<void>
  readonly server: LapidaryServer
}

/**
 * Makes a handler that answers OpenAI's protocol. Of Express, put it before anything that reads bodies.
 *
 * @param prefix What stands before the paths, such as `/llm`. Express takes away the path of `app.use` itself.
 * @example
 * const handler = lapidary({ model: 'gemma-3-4b-it-q4_0.gguf' })
 * http.createServer(handler).listen(8080)
 * app.use('/llm', handler)          // Express
 * await handler.server.close(10_000) // at the end
 */
export function lapidary(options: ServerOptions | LapidaryServer = {}, prefix = ''): NodeHandler {
  const server = options instanceof LapidaryServer ? options : new LapidaryServer(options)
  const handler = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    await writeResponse(response, await server.handle(nodeRequest(request, response, prefix)))
  }
  return Object.assign(handler, { server })
}

export default lapidary

/** @internal The path of a URL without `prefix`; as it is where it does not begin so. */
export function pathOf(url: string, prefix = ''): string {
  const end = url.search(/[?#]/)
  const path = end < 0 ? url : url.slice(0, end)
  return prefix !== '' && path.startsWith(prefix) ? path.slice(prefix.length) || '/' : path
}

/** @internal What the server needs of a request of Node's. Its signal is aborted when the connection closes before the answer is out. */
export function nodeRequest(request: IncomingMessage, response: ServerResponse, prefix: string): ApiRequest {
  const gone = new AbortController()
  response.once('close', () => {
    if (!response.writableFinished) gone.abort()
  })
  if (response.destroyed || request.socket.destroyed) gone.abort()
  return {
    method: request.method ?? 'GET',
    path: pathOf(request.url ?? '/', prefix),
    header: (name) => {
      const value = request.headers[name]
      return Array.isArray(value) ? value.join(', ') : value
    },
    body: bodyOf(request),
    signal: gone.signal,
  }
}

/** A body that some parser has read already is given as it was understood. */
function bodyOf(request: IncomingMessage & { body?: unknown }): AsyncIterable<Uint8Array> {
  if (request.body === undefined || !request.readableEnded) return request
  return (async function* () {
    yield Buffer.from(JSON.stringify(request.body))
  })()
}

/** Writes an answer, at the pace at which the client reads. */
async function writeResponse(response: ServerResponse, { status, headers, body }: ApiResponse): Promise<void> {
  // Gone already; what was begun has been told by the signal.
  if (response.destroyed) return
  response.writeHead(status, headers)
  if (typeof body === 'string') {
    response.end(response.req.method === 'HEAD' ? '' : body)
    return
  }
  response.flushHeaders()
  for await (const text of body) {
    if (response.destroyed) return
    if (!response.write(text)) await drained(response)
  }
  response.end()
}

async function drained(response: ServerResponse): Promise<void> {
  if (response.destroyed) return
  await new Promise<void>((resolve) => {
    const done = (): void => {
      response.off('drain', done)
      response.off('close', done)
      resolve()
    }
    response.on('drain', done)
    response.on('close', done)
  })
}
