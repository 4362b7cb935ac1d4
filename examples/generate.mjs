// A text continued.
import { Gemma } from 'lapidary'

const gemma = await Gemma.load(process.argv[2])
const prompt = 'It was a dark and stormy night'
const { text, finishReason } = await gemma.generate(prompt, { temperature: 0.7, seed: 1, maxTokens: 48 })
console.log(`${prompt}${text} … (${finishReason})`)
