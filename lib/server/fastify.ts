/**
 * `lapidary/fastify`: the server as a Fastify 5 plugin.
 * @module
 */
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyPluginAsync, FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { nodeRequest } from './node.ts'
import { LapidaryServer, type ServerOptions } from './server.ts'

export type { ServedModel } from './call.ts'
export type { CorsOption } from './cors.ts'
export type { ApiRequest, ApiResponse } from './http.ts'
export type { Ending } from './lifetime.ts'
export type { Metrics } from './metrics.ts'
export { LapidaryServer, type ModelEntry, type ServerLogger, type ServerOptions } from './server.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** The server: its models are `lapidary.models`, the first of them `lapidary.gemma`. */
    readonly lapidary: LapidaryServer
  }
}

export interface LapidaryFastifyOptions extends ServerOptions {
  /** What stands before the paths, such as `/llm`. Default: nothing. */
  readonly prefix?: string | undefined
  /** A server made elsewhere; the plugin then closes nothing. */
  readonly server?: LapidaryServer | undefined
  /** Milliseconds that requests get to finish when the app closes; the rest end then. Default 10,000. */
  readonly closeDeadline?: number | undefined
}

/**
 * Longer than this the registration does not wait for a model: Fastify gives plugins ten seconds. What goes wrong until then (a path
 * that is not there, a file that is no model) fails the registration; after it, `app.lapidary.loaded`.
 */
const registrationWait = 5000

async function plugin(app: FastifyInstance, options: LapidaryFastifyOptions): Promise<void> {
  const { prefix = '', server: given, closeDeadline = 10_000, ...serverOptions } = options
  const server = given ?? new LapidaryServer({ logger: app.log, ...serverOptions })
  app.decorate('lapidary', server)
  if (!given) {
    // Before connections are waited for: they end when their answers do.
    app.addHook('preClose', async () => server.close(closeDeadline))
    app.addHook('onClose', async () => server.close(closeDeadline))
  }
  // Of its own: the app's body parsers stay as they are, and read nothing here.
  await app.register(routes(server, prefix), { prefix })
  if (given) return
  let timer: NodeJS.Timeout | undefined
  const waited = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, registrationWait)
  })
  try {
    await Promise.race([server.loaded, waited])
  } finally {
    clearTimeout(timer)
  }
}

function routes(server: LapidaryServer, prefix: string): FastifyPluginAsync {
  return async (app) => {
    app.removeAllContentTypeParsers()
    app.addContentTypeParser('*', (_request, _payload, done) => done(null))
    const handler = (request: FastifyRequest, reply: FastifyReply): Promise<unknown> =>
      answer(server, prefix, request, reply)
    for (const url of ['/v1/*', '/tokenize', '/detokenize', '/health', '/ready', '/metrics']) {
      app.route({ method: ['GET', 'HEAD', 'POST', 'OPTIONS', 'PUT', 'PATCH', 'DELETE'], url, handler })
    }
  }
}

async function answer(
  server: LapidaryServer,
  prefix: string,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<unknown> {
  const { status, headers, body } = await server.handle(nodeRequest(request.raw, reply.raw, prefix))
  reply.code(status).headers(headers)
  return reply.send(typeof body === 'string' ? body : Readable.from(body, { objectMode: false, highWaterMark: 1 }))
}

/**
 * The plugin. It decorates the app with `lapidary` and answers below `prefix`; hooks of the app (authentication, logging, rate
 * limits) see its requests like any other.
 *
 * @example
 * import lapidary from 'lapidary/fastify'
 * await app.register(lapidary, { model: 'gemma-3-4b-it-q4_0.gguf' })
 */
const lapidary: FastifyPluginAsync<LapidaryFastifyOptions> = fp(plugin, { name: 'lapidary', fastify: '5.x' })

export default lapidary
export { lapidary }
