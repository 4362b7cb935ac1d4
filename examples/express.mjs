// A Gemma below a path of your own Express app:  node examples/express.mjs [model]
import express from 'express'
import { lapidary } from 'lapidary/node'

const app = express()
const handler = lapidary({ model: process.argv[2], id: 'gemma' })
// Before anything that reads bodies.
app.use('/llm', handler)
app.use(express.json())
app.get('/', (_request, response) => {
  response.send('Ask at /llm/v1/chat/completions.')
})

await handler.server.loaded
const server = app.listen(Number(process.env.PORT ?? 8080), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}`)
})
process.once('SIGTERM', async () => {
  server.close()
  await handler.server.close(10_000)
  server.closeAllConnections()
})
