/** LangChain over a model in process: the real `@langchain/core`. */

import { AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage } from '@langchain/core/messages'
import { StringOutputParser } from '@langchain/core/output_parsers'
import { ChatPromptTemplate } from '@langchain/core/prompts'
import { tool } from '@langchain/core/tools'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ChatLapidary, LapidaryEmbeddings } from '../../lib/clients/langchain.ts'
import type { Gemma } from '../../lib/index.ts'
import { loadBundled } from '../engine/models.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { loadEmbedding } from './models.ts'

let gemma: Gemma
let model: ChatLapidary
beforeAll(async () => {
  gemma = await loadBundled()
  model = new ChatLapidary({ gemma, model: 'tiny', temperature: 0, maxTokens: 24 })
})
afterAll(() => gemma[Symbol.asyncDispose]())

const prompt = 'Who came to the door?'

describe('text', () => {
  test('invoke gives what the engine gives', async () => {
    const expected = await gemma.chat([{ role: 'user', content: prompt }], { temperature: 0, maxTokens: 24 }).result
    const message = await model.invoke(prompt)
    expect(message).toBeInstanceOf(AIMessageChunk)
    expect(message.content).toBe(expected.text)
    expect(message.usage_metadata).toMatchObject({
      input_tokens: expected.promptTokens,
      output_tokens: expected.tokens,
      total_tokens: expected.promptTokens + expected.tokens,
    })
    expect(message.response_metadata).toMatchObject({ finish_reason: 'length', model_name: 'tiny' })
  })

  test('a stream adds up to the same', async () => {
    const whole = await model.invoke(prompt)
    let sum: AIMessageChunk | undefined
    let chunks = 0
    for await (const chunk of await model.stream(prompt)) {
      sum = sum ? sum.concat(chunk) : chunk
      chunks++
    }
    expect(sum?.content).toBe(whole.content)
    expect(sum?.usage_metadata).toMatchObject({ output_tokens: 24 })
    expect(sum?.response_metadata).toMatchObject({ finish_reason: 'length', model_name: 'tiny' })
    expect(chunks).toBeGreaterThan(10)
  })

  test('a chain, its callbacks, and a history', async () => {
    const template = ChatPromptTemplate.fromMessages([
      ['system', 'You are a {job}.'],
      ['human', '{question}'],
    ])
    const tokens: string[] = []
    const chain = template.pipe(model).pipe(new StringOutputParser())
    let text = ''
    const stream = await chain.stream(
      { job: 'butler', question: prompt },
      { callbacks: [{ handleLLMNewToken: (token) => void tokens.push(token) }] },
    )
    for await (const piece of stream) text += piece
    const expected = await gemma.chat(
      [
        { role: 'system', content: 'You are a butler.' },
        { role: 'user', content: prompt },
      ],
      { temperature: 0, maxTokens: 24 },
    ).result
    expect(text).toBe(expected.text)
    expect(tokens.join('')).toBe(expected.text)
    const again = await model.invoke([
      new SystemMessage('You are a butler.'),
      new HumanMessage({ content: [{ type: 'text', text: prompt }] }),
      new AIMessage(text),
      new HumanMessage('And then?'),
    ])
    expect(again.content).not.toBe('')
  })

  test('settings of a call come before those of the model; stops add up', async () => {
    const random = { temperature: 1, seed: 7, maxTokens: 60 }
    const [one, same, other] = await Promise.all([
      model.invoke(prompt, random),
      model.invoke(prompt, random),
      model.invoke(prompt, { ...random, seed: 8 }),
    ])
    expect(one.content).toBe(same.content)
    expect(one.content).not.toBe(other.content)
    const stopping = new ChatLapidary({ gemma, temperature: 0, maxTokens: 100, stop: ['.'] })
    const stopped = await stopping.invoke(prompt, { stop: [','] })
    expect(stopped.content).not.toMatch(/[.,]/)
    expect(stopped.response_metadata.finish_reason).toBe('stop')
    expect(model.invocationParams({ maxTokens: 5, stop: ['x'] })).toEqual({
      model: 'tiny',
      temperature: 0,
      maxTokens: 5,
      stop: ['x'],
    })
  })

  test('a batch shares the steps of the engine', async () => {
    const { steps } = gemma.info().engine
    const answers = await model.batch([prompt, `${prompt} When?`, `${prompt} Why?`, `${prompt} How?`])
    expect(answers.map(({ usage_metadata }) => usage_metadata)).toMatchObject(Array(4).fill({ output_tokens: 24 }))
    expect(gemma.info().engine.steps - steps).toBeLessThan(4 * 24)
  })

  test('events of the new protocol', async () => {
    const stream = model.streamEvents(prompt)
    let text = ''
    for await (const piece of stream.text) text += piece
    expect(text).toBe((await model.invoke(prompt)).content)
  })
})

describe('ends', () => {
  const endless = { maxTokens: 1500, logitBias: undefined }

  test('an abort ends a whole answer, and a stream', async () => {
    const controller = new AbortController()
    const invoked = model.invoke(prompt, { ...endless, signal: controller.signal })
    setTimeout(() => controller.abort(), 20)
    await expect(invoked).rejects.toMatchObject({ name: 'AbortError' })
    const other = new AbortController()
    const streamed = (async () => {
      for await (const _ of await model.stream(prompt, { ...endless, signal: other.signal })) other.abort()
    })()
    await expect(streamed).rejects.toMatchObject({ name: 'AbortError' })
    expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
  })

  test('whoever leaves a stream ends the generation', async () => {
    for await (const _ of await model.stream(prompt, endless)) break
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
  })

  test('what a model does not take is an error that says where', async () => {
    const image = new HumanMessage({
      content: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } }],
    })
    await rejectsCode(model.invoke([image]), 'ERR_INVALID_ARGUMENT', /messages\[0\]\.content\[0\]: expected text/)
    await rejectsCode(model.invoke(prompt, { temperature: -1 }), 'ERR_INVALID_ARGUMENT', /temperature/)
    throwsCode(() => new ChatLapidary({ gemma: {} as Gemma }), 'ERR_INVALID_ARGUMENT', /loaded Gemma/)
  })
})

describe('tools', () => {
  const weather = tool(async ({ place }: { place: string }) => `foggy in ${place}`, {
    name: 'weather',
    description: 'The weather at a place',
    schema: z.object({ place: z.enum(['London', 'Dartmoor']) }),
  })

  test('a bound tool is called, and its result is understood', async () => {
    const bound = model.bindTools([weather], { tool_choice: 'any', maxTokens: 200 })
    const question = new HumanMessage('How is the weather on the moor?')
    const message = await bound.invoke([question])
    expect(message.response_metadata.finish_reason).toBe('tool_calls')
    const call = message.tool_calls?.[0]
    expect(call).toMatchObject({ name: 'weather', id: expect.stringMatching(/^call_/) })
    const result = await weather.invoke(call!)
    expect(result).toBeInstanceOf(ToolMessage)
    const answer = await model.invoke([question, message, result])
    expect(answer.content).not.toBe('')
  })

  test('a streamed call adds up to the same', async () => {
    const bound = model.bindTools([weather], { tool_choice: 'weather', maxTokens: 200 })
    const whole = await bound.invoke('How is the weather?')
    let sum: AIMessageChunk | undefined
    let fragments = 0
    for await (const chunk of await bound.stream('How is the weather?')) {
      sum = sum ? sum.concat(chunk) : chunk
      fragments += chunk.tool_call_chunks?.length ?? 0
    }
    expect(sum?.tool_calls?.map(({ name, args }) => ({ name, args }))).toEqual(
      whole.tool_calls?.map(({ name, args }) => ({ name, args })),
    )
    expect(fragments).toBeGreaterThan(3)
  })

  test.each(['jsonSchema', 'functionCalling'])('structured output by %s', async (method) => {
    const schema = z.object({ name: z.string().max(12), age: z.int().min(0).max(120) })
    const writer = new ChatLapidary({ gemma, temperature: 0, maxTokens: 300 })
    const visitor = await writer
      .withStructuredOutput(schema, { name: 'visitor', method })
      .invoke('Describe the visitor.')
    expect(schema.parse(visitor)).toEqual(visitor)
    const both = await writer
      .withStructuredOutput(z.toJSONSchema(schema), { method, includeRaw: true })
      .invoke('Describe him.')
    expect(schema.parse(both.parsed)).toEqual(both.parsed)
    expect(both.raw).toBeInstanceOf(AIMessageChunk)
  })

  test('structured output by another method', () => {
    throwsCode(() => model.withStructuredOutput({}, { method: 'guess' }), 'ERR_INVALID_ARGUMENT', /jsonSchema/)
  })

  test('a choice that names no tool', async () => {
    const bound = model.bindTools([weather], { tool_choice: 'other' })
    await rejectsCode(bound.invoke('How?'), 'ERR_INVALID_ARGUMENT', /tool_choice/)
  })
})

describe('embeddings', () => {
  test('queries and documents have the prefixes that the model was trained with', async () => {
    await using embedding = await loadEmbedding()
    const embeddings = new LapidaryEmbeddings({ gemma: embedding.gemma })
    const expected = await embedding.gemma.embed([
      'title: none | text: a cat',
      'title: none | text: a dog',
      'task: search result | query: a cat',
      'a cat',
    ])
    expect(await embeddings.embedDocuments(['a cat', 'a dog'])).toEqual(
      expected.slice(0, 2).map((vector) => [...vector]),
    )
    expect(await embeddings.embedQuery('a cat')).toEqual([...expected[2]!])
    const bare = new LapidaryEmbeddings({ gemma: embedding.gemma, queryPrefix: '', documentPrefix: '' })
    expect(await bare.embedQuery('a cat')).toEqual([...expected[3]!])
  })
})
