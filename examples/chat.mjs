// A conversation: each line of standard input is a message. What was said before stays in the cache, so that a turn computes only what is
// new. The bundled model was trained on novels and not to converse: pass an instruction-tuned one.
import { createInterface } from 'node:readline/promises'
import { Gemma } from 'lapidary'

const gemma = await Gemma.load(process.argv[2])
const messages = []
const lines = createInterface({ input: process.stdin, output: process.stdout, prompt: '> ' })

lines.prompt()
for await (const content of lines) {
  messages.push({ role: 'user', content })
  let answer = ''
  for await (const { text } of gemma.chat(messages, { maxTokens: 128 })) {
    process.stdout.write(text)
    answer += text
  }
  messages.push({ role: 'assistant', content: answer })
  process.stdout.write('\n')
  lines.prompt()
}
