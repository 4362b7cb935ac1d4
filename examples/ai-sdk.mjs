// The AI SDK over a Gemma in this process:  node examples/ai-sdk.mjs [model]
import { generateText, Output, streamText } from 'ai'
import { Gemma } from 'lapidary'
import { createLapidary } from 'lapidary/ai-sdk'
import { z } from 'zod'

const gemma = await Gemma.load(process.argv[2])
const lapidary = createLapidary({ gemma })

const { textStream } = streamText({ model: lapidary('gemma'), prompt: 'Who came to the door?', maxOutputTokens: 60 })
for await (const piece of textStream) process.stdout.write(piece)

// The answer can be nothing but JSON of the schema.
const schema = z.object({ name: z.string().max(20), age: z.int().min(0).max(120) })
const { output } = await generateText({
  model: lapidary('gemma'),
  prompt: 'Describe the visitor.',
  output: Output.object({ schema }),
})
console.log('\n', output)
await gemma[Symbol.asyncDispose]()
