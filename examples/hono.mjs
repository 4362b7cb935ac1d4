// A Gemma in a Hono app, by the web's Request and Response:  node examples/hono.mjs [model]
import { serve } from '@hono/node-server'
import { Hono } from 'hono'
import { lapidary } from 'lapidary/fetch'

const app = new Hono()
const handler = lapidary({ model: process.argv[2], id: 'gemma' })
app.all('/v1/*', (context) => handler(context.req.raw))
app.get('/', (context) => context.text('Ask at /v1/chat/completions.'))

await handler.server.loaded
const server = serve({ fetch: app.fetch, port: Number(process.env.PORT ?? 8080), hostname: '127.0.0.1' }, (info) => {
  console.log(`http://127.0.0.1:${info.port}`)
})
process.once('SIGTERM', async () => {
  server.close()
  await handler.server.close(10_000)
  server.closeAllConnections()
})
