// Tokens as they come. Ctrl-C ends the answer, within one step, and not the program.
import { Gemma } from 'lapidary'

const gemma = await Gemma.load(process.argv[2])
const interrupt = new AbortController()
process.once('SIGINT', () => interrupt.abort())

const generation = gemma.stream('The old house', { seed: 3, maxTokens: 64, signal: interrupt.signal })
for await (const { text } of generation) process.stdout.write(text)

const { finishReason, tokens, timings } = await generation.result
const seconds = timings.decodeMs / 1000
console.log(`\n${tokens} tokens, ${(tokens / seconds).toFixed(0)} tokens/s, ended: ${finishReason}`)
