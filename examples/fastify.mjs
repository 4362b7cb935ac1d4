// A Gemma behind your own Fastify app:  node examples/fastify.mjs [model]
import fastify from 'fastify'
import lapidary from 'lapidary/fastify'

const app = fastify()
// Without a model: the bundled one, which babbles like an old novel.
await app.register(lapidary, { model: process.argv[2], id: 'gemma' })
app.get('/', async () => `Ask at /v1/chat/completions; ${app.lapidary.active} requests are being answered.`)

console.log(await app.listen({ port: Number(process.env.PORT ?? 8080) }))
process.once('SIGTERM', () => app.close())
