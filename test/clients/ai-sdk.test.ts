/** The AI SDK over models in process: the real `ai` package, specification V3, and V4 by its types. */

import { embed, embedMany, generateObject, generateText, Output, stepCountIs, streamText, type ToolSet, tool } from 'ai'
import type { EmbeddingModelV4, LanguageModelV4 } from 'ai-sdk-provider-v4'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { createLapidary, createLapidaryV4, LapidaryLanguageModel } from '../../lib/clients/ai-sdk.ts'
import type { Gemma } from '../../lib/index.ts'
import { loadBundled } from '../engine/models.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { loadEmbedding } from './models.ts'

let gemma: Gemma
let embedding: Awaited<ReturnType<typeof loadEmbedding>>
let lapidary: ReturnType<typeof createLapidary>
beforeAll(async () => {
  gemma = await loadBundled()
  embedding = await loadEmbedding()
  lapidary = createLapidary({ tiny: gemma, vectors: embedding.gemma })
})
afterAll(async () => {
  await gemma[Symbol.asyncDispose]()
  await embedding[Symbol.asyncDispose]()
})

const prompt = 'Who came to the door?'
const settings = { maxOutputTokens: 24, temperature: 0 }

describe('text', () => {
  test('generateText gives what the engine gives', async () => {
    const expected = await gemma.generate(gemma.tokenizeChat([{ role: 'user', content: prompt }]), {
      temperature: 0,
      maxTokens: 24,
    })
    const result = await generateText({ model: lapidary('tiny'), prompt, ...settings })
    expect(result.text).toBe(expected.text)
    expect(result.text).not.toBe('')
    expect(result.usage).toMatchObject({
      inputTokens: expected.promptTokens,
      outputTokens: expected.tokens,
      totalTokens: expected.promptTokens + expected.tokens,
    })
    expect(result.finishReason).toBe('length')
    expect(result.rawFinishReason).toBe('length')
    expect(result.response.modelId).toBe('tiny')
    expect(result.providerMetadata?.lapidary?.timings).toMatchObject({ totalMs: expect.any(Number) })
    expect(result.warnings).toEqual([])
  })

  test('a stream adds up to the same, part by part', async () => {
    const whole = await generateText({ model: lapidary('tiny'), prompt, ...settings })
    const result = streamText({ model: lapidary('tiny'), prompt, ...settings })
    const pieces: string[] = []
    for await (const piece of result.textStream) pieces.push(piece)
    expect(pieces.join('')).toBe(whole.text)
    expect(pieces.length).toBeGreaterThan(10)
    expect(await result.usage).toMatchObject({ outputTokens: 24 })
    expect(await result.finishReason).toBe('length')
    expect((await result.response).modelId).toBe('tiny')
  })

  test('parts of a stream come in the order that the specification has', async () => {
    const { stream } = await lapidary('tiny').doStream({
      prompt: [{ role: 'user', content: [{ type: 'text', text: prompt }] }],
      ...settings,
    })
    const types: string[] = []
    for await (const part of stream) if (types.at(-1) !== part.type) types.push(part.type)
    expect(types).toEqual(['stream-start', 'response-metadata', 'text-start', 'text-delta', 'text-end', 'finish'])
  })

  test('a system message, a history, stop sequences and a seed', async () => {
    const ask = (seed: number) =>
      generateText({
        model: lapidary('tiny'),
        system: 'You are a butler.',
        messages: [
          { role: 'user', content: 'Good evening.' },
          { role: 'assistant', content: [{ type: 'text', text: 'Good evening, sir.' }] },
          { role: 'user', content: [{ type: 'text', text: prompt }] },
        ],
        maxOutputTokens: 40,
        temperature: 1,
        seed,
        stopSequences: ['.'],
      })
    const [one, same, other] = await Promise.all([ask(1), ask(1), ask(2)])
    expect(one.text).toBe(same.text)
    expect(one.text).not.toBe(other.text)
    expect(one.text).not.toContain('.')
    expect(
      await gemma.generate(
        gemma.tokenizeChat([
          { role: 'system', content: 'You are a butler.' },
          { role: 'user', content: 'Good evening.' },
          { role: 'assistant', content: 'Good evening, sir.' },
          { role: 'user', content: prompt },
        ]),
        { maxTokens: 40, temperature: 1, seed: 1, stop: '.' },
      ),
    ).toMatchObject({ text: one.text })
  })

  test('a prefix that was computed before is told from the rest of the prompt', async () => {
    const long = `${'It was a dark and stormy night. '.repeat(20)}${prompt}`
    await generateText({ model: lapidary('tiny'), prompt: long, ...settings })
    const { usage } = await generateText({ model: lapidary('tiny'), prompt: `${long} And why?`, ...settings })
    const { cacheReadTokens = 0, noCacheTokens = 0 } = usage.inputTokenDetails
    expect(cacheReadTokens).toBeGreaterThanOrEqual(64)
    expect(cacheReadTokens + noCacheTokens).toBe(usage.inputTokens)
  })

  test('settings of its own', async () => {
    const forbid = {
      logitBias: { ...Object.fromEntries(Array.from({ length: 4096 }, (_, id) => [id, -100])), 300: 100 },
    }
    const { text, warnings } = await generateText({
      model: lapidary('tiny'),
      prompt,
      ...settings,
      maxOutputTokens: 3,
      providerOptions: { lapidary: { ...forbid, unknown: 1 } },
    })
    expect(text).toBe(gemma.tokenizer.decode([300, 300, 300]))
    expect(warnings).toMatchObject([{ type: 'unsupported', feature: 'providerOptions.lapidary.unknown' }])
  })
})

describe('ends', () => {
  const endless = { model: undefined as never, prompt, temperature: 0, maxOutputTokens: 1500 }
  const options = { lapidary: { stopTokens: [] } }

  test('an abort ends a whole answer within a step', async () => {
    const controller = new AbortController()
    const promise = generateText({
      ...endless,
      model: lapidary('tiny'),
      abortSignal: controller.signal,
      providerOptions: options,
    })
    setTimeout(() => controller.abort(), 30)
    await expect(promise).rejects.toMatchObject({ name: 'AbortError' })
    expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
  })

  test('an abort ends a stream, as the AI SDK tells it', async () => {
    const controller = new AbortController()
    const aborted: unknown[] = []
    const result = streamText({
      ...endless,
      model: lapidary('tiny'),
      abortSignal: controller.signal,
      providerOptions: options,
      onAbort: (event) => {
        aborted.push(event)
      },
    })
    const types = new Set<string>()
    for await (const part of result.fullStream) {
      types.add(part.type)
      if (part.type === 'text-delta') controller.abort()
    }
    expect(types).toContain('abort')
    expect(types).not.toContain('finish')
    expect(aborted).toHaveLength(1)
    expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
  })

  test('whoever stops reading ends the generation', async () => {
    const { stream } = await lapidary('tiny').doStream({
      prompt: [{ role: 'user', content: [{ type: 'text', text: prompt }] }],
      maxOutputTokens: 1500,
      providerOptions: options,
    })
    const reader = stream.getReader()
    for (let part = 0; part < 4; part++) await reader.read()
    expect(gemma.info().engine.running).toBe(1)
    await reader.cancel()
    expect(gemma.info().engine.running).toBe(0)
  })

  test('an aborted signal starts nothing', async () => {
    const { steps } = gemma.info().engine
    await expect(
      generateText({ ...endless, model: lapidary('tiny'), abortSignal: AbortSignal.abort() }),
    ).rejects.toMatchObject({ name: 'AbortError' })
    expect(gemma.info().engine.steps).toBe(steps)
  })

  test('what a model does not take is an error that says where', async () => {
    const model = lapidary('tiny')
    const file = { type: 'file' as const, mediaType: 'image/png', data: new Uint8Array(8) }
    await rejectsCode(
      model.doGenerate({ prompt: [{ role: 'user', content: [{ type: 'text', text: 'See' }, file] }] }),
      'ERR_INVALID_ARGUMENT',
      /prompt\[0\]\.content\[1\]: expected text, got a part of type file/,
    )
    await rejectsCode(
      model.doGenerate({ prompt: [{ role: 'user', content: [] }], temperature: -1 }),
      'ERR_INVALID_ARGUMENT',
      /temperature/,
    )
    throwsCode(() => lapidary('other'), 'ERR_INVALID_ARGUMENT', /one of tiny, vectors/)
    throwsCode(() => lapidary.imageModel('tiny'), 'ERR_INVALID_ARGUMENT')
    throwsCode(() => new LapidaryLanguageModel({} as Gemma), 'ERR_INVALID_ARGUMENT', /loaded Gemma/)
  })
})

describe('tools and objects', () => {
  const weather = tool({
    description: 'The weather at a place',
    inputSchema: z.object({ place: z.enum(['London', 'Dartmoor']), celsius: z.boolean() }),
    execute: async ({ place }) => ({ place, sky: 'foggy' }),
  })
  const tools = { weather } satisfies ToolSet

  test('a call that is required is made, executed, and answered', async () => {
    const result = await generateText({
      model: lapidary('tiny'),
      prompt: 'How is the weather on the moor?',
      tools,
      toolChoice: 'required',
      temperature: 0,
      maxOutputTokens: 200,
      // The tiny model calls again and again if it must: the second answer is free.
      stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: 'none' as const }),
    })
    const [first, second] = result.steps
    expect(first?.finishReason).toBe('tool-calls')
    expect(first?.toolCalls.length).toBeGreaterThanOrEqual(1)
    const call = first?.toolCalls[0]
    expect(call).toMatchObject({ type: 'tool-call', toolName: 'weather', toolCallId: expect.stringMatching(/^call_/) })
    expect(call?.input).toMatchObject({ place: expect.stringMatching(/^(London|Dartmoor)$/) })
    expect(first?.toolResults[0]).toMatchObject({ output: { sky: 'foggy' }, toolCallId: call?.toolCallId })
    expect(second?.toolCalls).toEqual([])
    expect(second?.text).not.toBe('')
  })

  test('arguments are streamed, and are what the call has', async () => {
    const { fullStream } = streamText({
      model: lapidary('tiny'),
      prompt: 'How is the weather on the moor?',
      tools: { weather: tool({ description: weather.description!, inputSchema: weather.inputSchema }) },
      toolChoice: { type: 'tool', toolName: 'weather' },
      temperature: 0,
      maxOutputTokens: 200,
    })
    const deltas = new Map<string, string[]>()
    const calls: { toolCallId: string; input: unknown }[] = []
    let finishReason: string | undefined
    for await (const part of fullStream) {
      if (part.type === 'tool-input-start') deltas.set(part.id, [])
      if (part.type === 'tool-input-delta') deltas.get(part.id)?.push(part.delta)
      if (part.type === 'tool-call') calls.push(part)
      if (part.type === 'finish') finishReason = part.finishReason
    }
    expect(calls).toHaveLength(1)
    const pieces = deltas.get(calls[0]!.toolCallId)!
    expect(pieces.length).toBeGreaterThan(3)
    expect(JSON.parse(pieces.join(''))).toEqual(calls[0]!.input)
    expect(finishReason).toBe('tool-calls')
  })

  test('tools of other kinds are left out, and said so', async () => {
    const { warnings } = await lapidary('tiny').doGenerate({
      prompt: [{ role: 'user', content: [{ type: 'text', text: prompt }] }],
      tools: [{ type: 'provider', id: 'openai.web_search', name: 'search', args: {} }],
      ...settings,
    })
    expect(warnings).toMatchObject([{ type: 'unsupported', feature: 'tool search' }])
  })

  const schema = z.object({
    name: z.string().max(12),
    age: z.int().min(0).max(120),
    tags: z.array(z.enum(['old', 'new'])).max(3),
  })

  test('generateObject and Output.object give what the schema allows', async () => {
    const common = { model: lapidary('tiny'), prompt: 'Describe the visitor.', temperature: 0, maxOutputTokens: 300 }
    const { object } = await generateObject({ ...common, schema })
    expect(schema.parse(object)).toEqual(object)
    const { output } = await generateText({ ...common, output: Output.object({ schema }) })
    expect(output).toEqual(object)
    const choice = await generateText({ ...common, output: Output.choice({ options: ['man', 'woman'] }) })
    expect(['man', 'woman']).toContain(choice.output)
  })

  test('JSON without a schema is an object', async () => {
    const { content, warnings } = await lapidary('tiny').doGenerate({
      prompt: [{ role: 'user', content: [{ type: 'text', text: 'An empty object, please.' }] }],
      responseFormat: { type: 'json' },
      temperature: 0,
      // Left alone the tiny model writes until its tokens end: a cut object is no JSON.
      maxOutputTokens: 8,
    })
    expect(content[0]).toMatchObject({ type: 'text', text: expect.stringMatching(/^\s*\{/) })
    expect(warnings).toEqual([])
  })
})

describe('embeddings', () => {
  test('embed and embedMany give the vectors of the engine, and count tokens', async () => {
    const values = ['a cat', 'a small feline', 'the stock exchange']
    const expected = (await embedding.gemma.embed(values)).map((vector) => [...vector])
    const many = await embedMany({ model: lapidary.embeddingModel('vectors'), values })
    expect(many.embeddings).toEqual(expected)
    const tokens = values.reduce((sum, text) => sum + embedding.gemma.tokenizeForEmbedding(text).length, 0)
    expect(many.usage.tokens).toBe(tokens)
    const one = await embed({ model: lapidary.embeddingModel('vectors'), value: values[0]! })
    expect(one.embedding).toEqual(expected[0])
  })

  test('a model that writes embeds nothing', async () => {
    const { doEmbed } = lapidary.embeddingModel('tiny')
    await rejectsCode(doEmbed.call(lapidary.embeddingModel('tiny'), { values: ['a'] }), 'ERR_INVALID_ARGUMENT')
    await expect(
      lapidary.embeddingModel('vectors').doEmbed({ values: ['a'], abortSignal: AbortSignal.abort() }),
    ).rejects.toMatchObject({ name: 'AbortError' })
  })
})

describe('specification V4', () => {
  test('models are what its types say, and answer its calls', async () => {
    const v4 = createLapidaryV4({ tiny: gemma, vectors: embedding.gemma })
    const model: LanguageModelV4 = v4('tiny')
    const vectors: EmbeddingModelV4 = v4.embeddingModel('vectors')
    expect([v4.specificationVersion, model.specificationVersion, vectors.specificationVersion]).toEqual([
      'v4',
      'v4',
      'v4',
    ])
    const ask = (reasoning: 'none' | 'high') =>
      model.doGenerate({
        prompt: [
          { role: 'system', content: 'You are a butler.' },
          { role: 'user', content: [{ type: 'text', text: prompt }] },
        ],
        reasoning,
        ...settings,
      })
    const { content, warnings } = await ask('none')
    expect(content).toMatchObject([{ type: 'text' }])
    expect(warnings).toEqual([])
    expect((await ask('high')).warnings).toMatchObject([{ type: 'unsupported', feature: 'reasoning' }])
    const parts = []
    const { stream } = await model.doStream({
      prompt: [{ role: 'user', content: [{ type: 'text', text: prompt }] }],
      ...settings,
    })
    for await (const part of stream) parts.push(part)
    expect(parts.at(-1)).toMatchObject({ type: 'finish', finishReason: { unified: 'length', raw: 'length' } })
    const image = { type: 'file' as const, mediaType: 'image/png', data: { type: 'data' as const, data: 'AAAA' } }
    await rejectsCode(
      Promise.resolve(model.doGenerate({ prompt: [{ role: 'user', content: [image] }] })),
      'ERR_INVALID_ARGUMENT',
      /type file/,
    )
    expect((await vectors.doEmbed({ values: ['a cat'] })).embeddings).toHaveLength(1)
  })
})
