/**
 * The peer's server: node-llama-cpp behind plain `node:http`, one sequence of a shared context per request, batched by the package
 * itself. It speaks as much of /v1/completions as the benchmark asks.
 *
 *     node build/benchmarks/serve/node-llama-cpp.js model.gguf threads sequences contextLength
 */
import http from 'node:http'
import { loadLlama, type Sequence } from '../peers/llama.ts'

interface Body {
  readonly prompt: readonly (readonly number[])[]
  readonly max_tokens: number
}

const [path, threads, sequences, contextLength] = [process.argv[2], ...process.argv.slice(3).map(Number)] as [
  string,
  number,
  number,
  number,
]
const { model, sequences: free } = await loadLlama({ path, threads, contextLength, sequences })

// A request waits for a sequence that nobody uses.
const waiting: ((sequence: Sequence) => void)[] = []
const take = (): Promise<Sequence> => {
  const sequence = free.pop()
  return sequence ? Promise.resolve(sequence) : new Promise((resolve) => waiting.push(resolve))
}
const giveBack = (sequence: Sequence): void => {
  const next = waiting.shift()
  if (next) next(sequence)
  else free.push(sequence)
}

async function complete({ prompt, max_tokens }: Body, response: http.ServerResponse): Promise<void> {
  const sequence = await take()
  try {
    await sequence.clearHistory()
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    let tokens = 0
    for await (const id of sequence.evaluate([...(prompt[0] ?? [])], { temperature: 0, yieldEogToken: true })) {
      tokens++
      const choice = { index: 0, text: model.detokenize([id], true), finish_reason: null }
      response.write(`data: ${JSON.stringify({ choices: [choice] })}\n\n`)
      if (tokens === max_tokens || response.destroyed) break
    }
    response.write(`data: ${JSON.stringify({ choices: [], usage: { completion_tokens: tokens } })}\n\n`)
    response.end('data: [DONE]\n\n')
  } finally {
    giveBack(sequence)
  }
}

const server = http.createServer(async (request, response) => {
  if (request.method !== 'POST') {
    response.end('ok')
    return
  }
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  try {
    await complete(JSON.parse(Buffer.concat(chunks).toString()) as Body, response)
  } catch (error) {
    console.error(error)
    response.destroy()
  }
})
server.listen(0, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${(server.address() as { port: number }).port}`)
})
process.on('SIGTERM', () => process.exit(0))
