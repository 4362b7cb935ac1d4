/**
 * `lapidary serve`: the Fastify plugin in an app; where Fastify is not installed, the same server on plain `node:http`.
 * @module
 */
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { CorsOption } from '../server/cors.ts'
import type { LapidaryServer, ServerLogger, ServerOptions } from '../server/server.ts'
import { failedStatus, UsageError } from './failure.ts'
import { given, type ModelOptions, modelOptionNames } from './options.ts'
import { note } from './terminal.ts'

export interface ServeCommandOptions extends ModelOptions {
  host: string
  port: number
  id?: string
  embeddingModel?: string
  apiKey?: string[]
  cors?: string[]
  maxSequences?: number
  maxQueue?: number
  cacheTokens?: number
  prefixCache?: boolean
  bodyLimit?: number
  remoteImages?: boolean
  remoteImageHost?: string[]
  requestTimeout?: number
  closeDeadline: number
  anyModelName?: boolean
  metricsPrefix?: string
  logPrompts?: boolean
  quiet?: boolean
}

/** What listens: its address, and how it ends. */
interface Listening {
  readonly port: number
  /** Stops accepting, lets what runs finish until the deadline, ends the rest. */
  close(): Promise<void>
}

/** Runs the command: until SIGTERM or SIGINT. A second signal ends the process at once. */
export async function serve(options: ServeCommandOptions): Promise<void> {
  const logger = options.quiet ? undefined : new LineLogger()
  const { LapidaryServer } = await import('../server/server.ts')
  const server = new LapidaryServer(serverOptions(options, logger))
  const stopped = stopSignal()
  let listening: Listening
  try {
    listening = await listen(server, options, logger)
  } catch (error) {
    await server.close()
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EADDRINUSE' || code === 'EACCES' || code === 'EADDRNOTAVAIL') {
      throw new UsageError(`${options.host}:${options.port} cannot be listened on: ${code}`, 'choose another --port')
    }
    throw error
  }
  const host = options.host.includes(':') ? `[${options.host}]` : options.host
  if (!options.quiet) note(`listening on http://${host}:${listening.port}; loading the model`)
  try {
    const first = await Promise.race([server.loaded.then(() => 'loaded' as const), stopped])
    if (first === 'loaded') {
      if (!options.quiet) note(`ready: ${server.models.map(({ id }) => id).join(', ')}`)
      await stopped
    }
    if (!options.quiet) note(`closing: ${server.active} requests in flight`)
  } catch (error) {
    process.exitCode = failedStatus
    throw error
  } finally {
    await listening.close()
  }
}

/** Resolves at the first signal to stop. From then on a signal has its default effect. */
function stopSignal(): Promise<'stopped'> {
  return new Promise((resolve) => {
    const stop = (): void => {
      process.off('SIGTERM', stop)
      process.off('SIGINT', stop)
      resolve('stopped')
    }
    process.on('SIGTERM', stop)
    process.on('SIGINT', stop)
  })
}

function serverOptions(options: ServeCommandOptions, logger: ServerLogger | undefined): ServerOptions {
  const { embeddingModel, apiKey = [], cors, bodyLimit, requestTimeout, remoteImages, remoteImageHost } = options
  const fromEnvironment = process.env.LAPIDARY_API_KEY?.split(',').filter((key) => key !== '') ?? []
  const keys = [...apiKey, ...fromEnvironment]
  const engine = given(pick(options, [...modelOptionNames, 'maxSequences', 'maxQueue', 'cacheTokens', 'prefixCache']))
  return {
    ...(engine as ServerOptions),
    id: options.id,
    ...(embeddingModel !== undefined && { models: [{ model: embeddingModel }] }),
    apiKeys: keys,
    ...(cors && { cors: corsOption(cors) }),
    bodyLimit,
    remoteImages: remoteImageHost ? { allowedHosts: remoteImageHost } : remoteImages,
    requestTimeout: requestTimeout === undefined ? undefined : requestTimeout * 1000,
    anyModelName: options.anyModelName,
    metricsPrefix: options.metricsPrefix,
    logPrompts: options.logPrompts,
    logger,
  }
}

function pick<T extends object, K extends keyof T>(values: T, names: readonly K[]): Pick<T, K> {
  return Object.fromEntries(names.map((name) => [name, values[name]])) as Pick<T, K>
}

function corsOption(origins: readonly string[]): CorsOption {
  return origins.includes('*') ? true : origins
}

async function listen(server: LapidaryServer, options: ServeCommandOptions, logger?: LineLogger): Promise<Listening> {
  const { host, port, closeDeadline } = options
  const modules = await importFastify()
  if (!modules) return await listenPlainly(server, options, logger)
  const app = modules.fastify({
    // The server reads bodies itself, with its own limit.
    bodyLimit: Number.MAX_SAFE_INTEGER,
    routerOptions: { ignoreTrailingSlash: true },
  })
  app.addHook('onResponse', (request, reply, done) => {
    logger?.request(request.method, request.url, reply.statusCode, reply.elapsedTime)
    done()
  })
  await app.register(modules.plugin, { server })
  await app.listen({ host, port })
  return {
    port: (app.server.address() as AddressInfo).port,
    close: async () => {
      await closeServer(app.server, server, closeDeadline)
      await app.close()
    },
  }
}

async function importFastify(): Promise<
  { fastify: typeof import('fastify').default; plugin: typeof import('../server/fastify.ts').default } | undefined
> {
  try {
    const [{ default: fastify }, { default: plugin }] = await Promise.all([
      import('fastify'),
      import('../server/fastify.ts'),
    ])
    return { fastify, plugin }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return undefined
    throw error
  }
}

async function listenPlainly(
  server: LapidaryServer,
  options: ServeCommandOptions,
  logger?: LineLogger,
): Promise<Listening> {
  const { lapidary } = await import('../server/node.ts')
  const handler = lapidary(server)
  const http = createServer((request, response) => {
    const began = performance.now()
    response.once('close', () => {
      logger?.request(request.method ?? '', request.url ?? '', response.statusCode, performance.now() - began)
    })
    void handler(request, response)
  })
  await new Promise<void>((resolve, reject) => {
    http.once('error', reject)
    http.listen(options.port, options.host, resolve)
  })
  return {
    port: (http.address() as AddressInfo).port,
    close: () => closeServer(http, server, options.closeDeadline),
  }
}

/** Longer than this the last bytes of an answer do not take to leave, unless nobody reads them. */
const flushTime = 1000

/** Accepts no more connections, lets what runs finish until the deadline (in seconds), and ends those connections that remain. */
async function closeServer(http: Server, server: LapidaryServer, deadline: number): Promise<void> {
  const closed = new Promise<void>((resolve) => http.close(() => resolve()))
  http.closeIdleConnections()
  await server.close(deadline * 1000)
  http.closeIdleConnections()
  // A connection on which nothing was ever asked is not idle to Node.
  const timer = setTimeout(() => http.closeAllConnections(), flushTime)
  await closed
  clearTimeout(timer)
}

/** One line per request on standard error; never what a request says. */
class LineLogger implements ServerLogger {
  info(details: object, message: string): void {
    note(`${message} ${JSON.stringify(details)}`)
  }

  error(details: { err?: unknown; path?: string }, message: string): void {
    const { err, path } = details
    const problem =
      err instanceof Error ? `${(err as { code?: string }).code ?? err.name}: ${err.message}` : String(err)
    note(`${message}${path === undefined ? '' : ` (${path})`}: ${problem}`)
  }

  request(method: string, url: string, status: number, milliseconds: number): void {
    note(`${method} ${url} ${status} ${Math.round(milliseconds)} ms`)
  }
}
