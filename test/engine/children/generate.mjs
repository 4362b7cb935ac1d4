// Leaves while text is being generated. argv[2]: how.
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { Gemma } from '../../../dist/index.js'

const how = isMainThread ? process.argv[2] : 'endless'

if (how === 'worker') {
  const worker = new Worker(fileURLToPath(import.meta.url))
  await new Promise((resolve) => worker.once('message', resolve))
  await worker.terminate()
  console.log('terminated')
} else {
  const gemma = await Gemma.load(undefined, { threads: 1 })
  const options = { temperature: 0, stopTokens: [], maxTokens: how === 'end' ? 20 : 1500 }
  const generation = gemma.stream('Once upon a time', options)
  await generation[Symbol.asyncIterator]().next()
  parentPort?.postMessage('generating')
  if (how === 'exit') process.exit(0)
  if (how === 'kill') process.kill(process.pid, 'SIGTERM')
  // The script ends: the generation keeps the process alive until it is done.
  if (how === 'end') generation.result.then(({ tokens, finishReason }) => console.log(tokens, finishReason))
  if (how === 'dispose') {
    generation.result.catch(({ code }) => console.log(code))
    await gemma[Symbol.asyncDispose]()
  }
}
