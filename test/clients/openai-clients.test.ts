/** Clients that other people wrote, over HTTP: LangChain's and the AI SDK's for servers that speak OpenAI's protocol. */

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import type { AIMessageChunk } from '@langchain/core/messages'
import { tool as langchainTool } from '@langchain/core/tools'
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { embedMany, generateObject, generateText, streamText, tool } from 'ai'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import type { Gemma } from '../../lib/index.ts'
import { loadBundled } from '../engine/models.ts'
import { type LiveServer, serve } from './live.ts'
import { loadEmbedding } from './models.ts'

let gemma: Gemma
let embedding: Awaited<ReturnType<typeof loadEmbedding>>
let server: LiveServer
let expected: Awaited<ReturnType<Gemma['generate']>>
const prompt = 'Who came to the door?'
beforeAll(async () => {
  gemma = await loadBundled()
  embedding = await loadEmbedding()
  server = await serve(gemma, { vectors: embedding.gemma })
  expected = await gemma.chat([{ role: 'user', content: prompt }], { temperature: 0, maxTokens: 24 }).result
})
afterAll(async () => {
  await server[Symbol.asyncDispose]()
  await gemma[Symbol.asyncDispose]()
  await embedding[Symbol.asyncDispose]()
})

const schema = z.object({ name: z.string().max(12), age: z.int().min(0).max(120) })

describe('@langchain/openai', () => {
  const chat = (fields: object = {}) =>
    new ChatOpenAI({
      model: 'tiny',
      apiKey: 'none',
      configuration: { baseURL: `${server.url}/v1` },
      temperature: 0,
      maxTokens: 24,
      ...fields,
    })

  test('invoke', async () => {
    const message = await chat().invoke(prompt)
    expect(message.content).toBe(expected.text)
    expect(message.usage_metadata).toMatchObject({
      input_tokens: expected.promptTokens,
      output_tokens: expected.tokens,
    })
    expect(message.response_metadata).toMatchObject({ finish_reason: 'length' })
  })

  test('stream, with usage in the last chunk', async () => {
    let sum: AIMessageChunk | undefined
    for await (const chunk of await chat().stream(prompt)) sum = sum ? sum.concat(chunk) : chunk
    expect(sum?.content).toBe(expected.text)
    expect(sum?.usage_metadata).toMatchObject({ output_tokens: expected.tokens })
  })

  test('tools, called and streamed', async () => {
    const weather = langchainTool(async ({ place }) => `foggy in ${place}`, {
      name: 'weather',
      description: 'The weather at a place',
      schema: z.object({ place: z.enum(['London', 'Dartmoor']) }),
    })
    const bound = chat({ maxTokens: 200 }).bindTools([weather], { tool_choice: 'weather' })
    const message = await bound.invoke('How is the weather?')
    expect(message.tool_calls).toMatchObject([{ name: 'weather', id: expect.any(String) }])
    expect(['London', 'Dartmoor']).toContain(message.tool_calls?.[0]?.args.place)
    let sum: AIMessageChunk | undefined
    for await (const chunk of await bound.stream('How is the weather?')) sum = sum ? sum.concat(chunk) : chunk
    expect(sum?.tool_calls?.map(({ args }) => args)).toEqual(message.tool_calls?.map(({ args }) => args))
  })

  test.each(['jsonSchema', 'functionCalling'] as const)('structured output by %s', async (method) => {
    const visitor = await chat({ maxTokens: 300 })
      .withStructuredOutput(schema, { name: 'visitor', method })
      .invoke('Describe the visitor.')
    expect(schema.parse(visitor)).toEqual(visitor)
  })

  test('embeddings', async () => {
    const embeddings = new OpenAIEmbeddings({
      model: 'vectors',
      apiKey: 'none',
      configuration: { baseURL: `${server.url}/v1` },
    })
    const own = await embedding.gemma.embed(['a cat', 'a dog'])
    expect(await embeddings.embedDocuments(['a cat', 'a dog'])).toEqual(own.map((vector) => [...vector]))
  })
})

describe('@ai-sdk/openai-compatible', () => {
  const provider = () =>
    createOpenAICompatible({
      name: 'lapidary',
      baseURL: `${server.url}/v1`,
      includeUsage: true,
      supportsStructuredOutputs: true,
    })
  const settings = { temperature: 0, maxOutputTokens: 24 }

  test('generateText', async () => {
    const { text, usage, finishReason } = await generateText({ model: provider()('tiny'), prompt, ...settings })
    expect(text).toBe(expected.text)
    expect(usage).toMatchObject({ inputTokens: expected.promptTokens, outputTokens: expected.tokens })
    expect(finishReason).toBe('length')
  })

  test('streamText', async () => {
    const result = streamText({ model: provider()('tiny'), prompt, ...settings })
    let text = ''
    for await (const piece of result.textStream) text += piece
    expect(text).toBe(expected.text)
    expect(await result.usage).toMatchObject({ outputTokens: expected.tokens })
  })

  test('completions', async () => {
    const { text } = await generateText({
      model: provider().completionModel('tiny'),
      prompt: 'The king said',
      ...settings,
      stopSequences: ['.'],
    })
    expect(text).not.toBe('')
    expect(text).not.toContain('.')
  })

  test('tools and objects', async () => {
    const common = { model: provider()('tiny'), temperature: 0, maxOutputTokens: 300 }
    const { toolCalls, finishReason } = await generateText({
      ...common,
      prompt: 'How is the weather?',
      tools: { weather: tool({ inputSchema: z.object({ place: z.enum(['London', 'Dartmoor']) }) }) },
      toolChoice: 'required',
    })
    expect(toolCalls[0]).toMatchObject({ toolName: 'weather' })
    expect(finishReason).toBe('tool-calls')
    const { object } = await generateObject({ ...common, schema, prompt: 'Describe the visitor.' })
    expect(schema.parse(object)).toEqual(object)
  })

  test('embeddings', async () => {
    const { embeddings } = await embedMany({ model: provider().embeddingModel('vectors'), values: ['a cat', 'a dog'] })
    const own = await embedding.gemma.embed(['a cat', 'a dog'])
    expect(embeddings).toEqual(own.map((vector) => [...vector]))
  })

  test('whoever stops reading a stream ends the generation', async () => {
    const controller = new AbortController()
    const result = streamText({
      model: provider()('tiny'),
      prompt,
      maxOutputTokens: 1900,
      temperature: 1,
      seed: 1,
      abortSignal: controller.signal,
    })
    for await (const _ of result.textStream) controller.abort()
    const start = performance.now()
    while (gemma.info().engine.running > 0 && performance.now() - start < 5000) {
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    expect(gemma.info().engine.running).toBe(0)
  })
})
