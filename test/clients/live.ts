/** A server of a loaded model, on a port of its own. */

import type { AddressInfo } from 'node:net'
import fastify from 'fastify'
import type { Gemma } from '../../lib/index.ts'
import lapidary from '../../lib/server/fastify.ts'

export interface LiveServer extends AsyncDisposable {
  /** `http://127.0.0.1:…`, without a slash at its end. */
  readonly url: string
}

/** The model is called `tiny`, and stays the caller's; `models` stand beside it by name. */
export async function serve(gemma: Gemma, models: Readonly<Record<string, Gemma>> = {}): Promise<LiveServer> {
  const app = fastify({ forceCloseConnections: true })
  const others = Object.entries(models).map(([id, model]) => ({ id, model }))
  await app.register(lapidary, { model: gemma, id: 'tiny', models: others, closeDeadline: 100 })
  await app.listen({ host: '127.0.0.1', port: 0 })
  const url = `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`
  return { url, [Symbol.asyncDispose]: () => app.close() }
}
