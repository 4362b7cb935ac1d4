/** One server behind each of its front ends, on loopback. */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import fastify from 'fastify'
import OpenAI from 'openai'
import { Gemma, type GemmaOptions } from '../../lib/engine/gemma.ts'
import plugin from '../../lib/server/fastify.ts'
import { lapidary as fetchHandler } from '../../lib/server/fetch.ts'
import { lapidary as nodeHandler } from '../../lib/server/node.ts'
import { LapidaryServer, type ServerOptions } from '../../lib/server/server.ts'

/** What the bundled model is called. */
export const id = 'tiny-q4_0'

/** The bundled model, small and the same bits in any batch. */
export async function loadTiny(options: GemmaOptions = {}): Promise<Gemma> {
  return await Gemma.load(undefined, { threads: 1, isa: 'avx2', contextLength: 1024, ...options })
}

export interface Front extends AsyncDisposable {
  readonly server: LapidaryServer
  /** `http://127.0.0.1:port`, with the prefix. */
  readonly url: string
}

export type FrontName = 'fastify' | 'node' | 'fetch'
export const frontNames: readonly FrontName[] = ['fastify', 'node', 'fetch']

/** Starts a front end. Closing it ends what runs. */
export async function startFront(name: FrontName, options: ServerOptions, prefix = ''): Promise<Front> {
  const server = new LapidaryServer(options)
  await server.loaded
  if (name === 'fastify') {
    const app = fastify({ forceCloseConnections: true })
    await app.register(plugin, { server, prefix })
    const url = await app.listen({ host: '127.0.0.1', port: 0 })
    return {
      server,
      url: url + prefix,
      [Symbol.asyncDispose]: async () => void (await Promise.all([server.close(), app.close()])),
    }
  }
  const http = createServer(name === 'node' ? nodeFront(server, prefix) : fetchFront(server, prefix))
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
  const { port } = http.address() as AddressInfo
  return {
    server,
    url: `http://127.0.0.1:${port}${prefix}`,
    async [Symbol.asyncDispose]() {
      await server.close()
      http.closeAllConnections()
      await new Promise((resolve) => http.close(resolve))
    },
  }
}

type Listener = Parameters<typeof createServer>[1]

function nodeFront(server: LapidaryServer, prefix: string): Listener {
  const handler = nodeHandler(server, prefix)
  return (request, response) => void handler(request, response)
}

/** A host for the web-standard handler, as Bun, Deno and Hono's adapter are. */
function fetchFront(server: LapidaryServer, prefix: string): Listener {
  const handler = fetchHandler(server, prefix)
  return async (incoming, outgoing) => {
    const gone = new AbortController()
    outgoing.once('close', () => gone.abort())
    const hasBody = incoming.method !== 'GET' && incoming.method !== 'HEAD'
    const request = new Request(`http://${incoming.headers.host}${incoming.url}`, {
      method: incoming.method ?? 'GET',
      headers: Object.entries(incoming.headers).map(([key, value]): [string, string] => [key, String(value)]),
      signal: gone.signal,
      ...(hasBody && { body: Readable.toWeb(incoming) as ReadableStream, duplex: 'half' }),
    })
    const response = await handler(request)
    outgoing.writeHead(response.status, Object.fromEntries(response.headers))
    if (!response.body) return void outgoing.end()
    try {
      for await (const chunk of response.body) outgoing.write(chunk)
    } catch {
      // The client is gone.
    }
    outgoing.end()
  }
}

export function openai(front: Front, apiKey = 'none'): OpenAI {
  return new OpenAI({ baseURL: `${front.url}/v1`, apiKey, maxRetries: 0 })
}

/** Sends JSON. */
export async function post(front: Front, path: string, body: unknown, init: RequestInit = {}): Promise<Response> {
  return await fetch(front.url + path, {
    method: 'POST',
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...init,
    headers: { 'content-type': 'application/json', ...init.headers },
  })
}

/** Waits until something holds; says what did not. */
export async function until(holds: () => boolean, what: string): Promise<void> {
  for (const end = Date.now() + 10_000; !holds(); ) {
    if (Date.now() > end) throw new Error(`it never came about that ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}
