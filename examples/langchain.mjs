// LangChain over a Gemma in this process:  node examples/langchain.mjs [model]
import { StringOutputParser } from '@langchain/core/output_parsers'
import { ChatPromptTemplate } from '@langchain/core/prompts'
import { Gemma } from 'lapidary'
import { ChatLapidary } from 'lapidary/langchain'

const gemma = await Gemma.load(process.argv[2])
const model = new ChatLapidary({ gemma, maxTokens: 60 })

const prompt = ChatPromptTemplate.fromTemplate('Tell me about {subject}.')
const chain = prompt.pipe(model).pipe(new StringOutputParser())
for await (const piece of await chain.stream({ subject: 'the moor' })) process.stdout.write(piece)
console.log()
await gemma[Symbol.asyncDispose]()
