// Many generations at once. They share the steps of one engine, which reads the weights once for all of them: together they take little longer
// than one alone. The same seed gives the same text, whoever else is served.
import { Gemma } from 'lapidary'

const gemma = await Gemma.load(process.argv[2])
const prompts = [
  'The captain',
  'Her sister',
  'The letter',
  'In the garden',
  'At noon',
  'The horse',
  'My uncle',
  'London',
]
const options = { seed: 5, maxTokens: 24 }

const started = performance.now()
const answers = await Promise.all(prompts.map((prompt) => gemma.generate(prompt, options)))
const seconds = (performance.now() - started) / 1000

for (const [index, { text }] of answers.entries()) console.log(`${prompts[index]}${text.replaceAll('\n', ' ')}`)
const total = answers.reduce((sum, { tokens }) => sum + tokens, 0)
console.log(`${answers.length} answers, ${(total / seconds).toFixed(0)} tokens/s together`)

const alone = await gemma.generate(prompts[3], options)
console.log(alone.text === answers[3].text ? 'the fourth alone: the same' : 'the fourth alone: ANOTHER TEXT')
