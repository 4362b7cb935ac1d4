/** OpenAI's own client against a live server with the bundled model. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import type OpenAI from 'openai'
import { APIError } from 'openai'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Gemma } from '../../lib/engine/gemma.ts'
import { tinyFolder } from '../engine/models.ts'
import { type Front, id, loadTiny, openai, post, startFront } from './fronts.ts'

const embeddingFolder = mkdtempSync(join(tmpdir(), 'lapidary-server-'))
let gemma: Gemma
let embedder: Gemma
let front: Front
let client: OpenAI

beforeAll(async () => {
  gemma = await loadTiny()
  // The small model's weights, read as an embedding model's.
  cpSync(tinyFolder, embeddingFolder, { recursive: true })
  const file = join(embeddingFolder, 'config.json')
  const config = JSON.parse(readFileSync(file, 'utf8')) as object
  writeFileSync(file, JSON.stringify({ ...config, use_bidirectional_attention: true }))
  embedder = await Gemma.load(embeddingFolder, { threads: 1, packedCache: false })
  front = await startFront('fastify', { model: gemma, models: [{ model: embedder, id: 'embedder' }] })
  client = openai(front)
})

afterAll(async () => {
  await front[Symbol.asyncDispose]()
  await Promise.all([gemma[Symbol.asyncDispose](), embedder[Symbol.asyncDispose]()])
  rmSync(embeddingFolder, { recursive: true })
})

const user = (content: string): OpenAI.ChatCompletionMessageParam[] => [{ role: 'user', content }]

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = []
  for await (const item of items) all.push(item)
  return all
}

/** The error that a request ends with. */
async function failure(work: Promise<unknown>): Promise<APIError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(APIError)
  return error as APIError
}

describe('chat', () => {
  const request = { model: id, messages: user('Tell me of the king.'), max_tokens: 12, seed: 5 }

  test('an answer is what the engine says, with usage', async () => {
    const expected = await gemma.chat([{ role: 'user', content: 'Tell me of the king.' }], { maxTokens: 12, seed: 5 })
      .result
    const completion = await client.chat.completions.create(request)
    expect(completion).toMatchObject({ object: 'chat.completion', model: id })
    expect(completion.id).toMatch(/^chatcmpl-[0-9a-f]{32}$/)
    const [choice] = completion.choices
    expect(choice).toMatchObject({ index: 0, finish_reason: 'length', logprobs: null })
    expect(choice?.message).toEqual({ role: 'assistant', content: expected.text, refusal: null })
    expect(completion.usage).toMatchObject({ prompt_tokens: expected.promptTokens, completion_tokens: 12 })
    expect(completion.usage?.total_tokens).toBe(expected.promptTokens + 12)
  })

  test('a stream says the same: role first, finish reason last, then usage without choices', async () => {
    const whole = await client.chat.completions.create(request)
    const stream = await client.chat.completions.create({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
    })
    const chunks: OpenAI.ChatCompletionChunk[] = []
    for await (const chunk of stream) chunks.push(chunk)
    expect(chunks[0]?.choices[0]?.delta.role).toBe('assistant')
    expect(chunks.slice(1).every((chunk) => chunk.choices[0]?.delta.role === undefined)).toBe(true)
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('')
    expect(text).toBe(whole.choices[0]?.message.content)
    const [finish, usage] = chunks.slice(-2)
    expect(finish?.choices).toEqual([{ index: 0, delta: {}, logprobs: null, finish_reason: 'length' }])
    expect(usage?.choices).toEqual([])
    expect(usage?.usage).toMatchObject({ prompt_tokens: whole.usage?.prompt_tokens, completion_tokens: 12 })
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true)
    expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1)
  })

  test('n choices differ, in a stream too, and the first is that of n = 1', async () => {
    const one = await client.chat.completions.create(request)
    const whole = await client.chat.completions.create({ ...request, n: 3 })
    const texts = whole.choices.map(({ message }) => message.content)
    expect(whole.choices.map(({ index }) => index)).toEqual([0, 1, 2])
    expect(new Set(texts).size).toBe(3)
    expect(texts[0]).toBe(one.choices[0]?.message.content)
    expect(whole.usage).toMatchObject({ prompt_tokens: one.usage?.prompt_tokens, completion_tokens: 36 })
    const streamed = ['', '', '']
    for await (const { choices } of await client.chat.completions.create({ ...request, n: 3, stream: true })) {
      for (const { index, delta } of choices) streamed[index] += delta.content ?? ''
    }
    expect(streamed).toEqual(texts)
  })

  test('logprobs are the engine’s, with bytes that spell the text', async () => {
    const completion = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 3 })
    const content = completion.choices[0]?.logprobs?.content ?? []
    expect(content.length).toBe(12)
    for (const { logprob, top_logprobs } of content) {
      expect(logprob).toBeLessThan(0)
      expect(top_logprobs.length).toBe(3)
      expect(top_logprobs.map((other) => other.logprob)).toEqual(
        top_logprobs.map((o) => o.logprob).sort((a, b) => b - a),
      )
    }
    const bytes = Buffer.from(content.flatMap((token) => token.bytes ?? []))
    expect(bytes.toString()).toBe(completion.choices[0]?.message.content)
    const streamed = await client.chat.completions.create({ ...request, logprobs: true, top_logprobs: 3, stream: true })
    const chunks = await collect(streamed)
    expect(chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.content ?? [])).toEqual(content)
  })

  test('stop, logit_bias, penalties and temperature reach the engine', async () => {
    const plain = await client.chat.completions.create({ ...request, temperature: 0 })
    const text = plain.choices[0]?.message.content as string
    const stop = text.slice(4, 7)
    const stopped = await client.chat.completions.create({ ...request, temperature: 0, stop })
    expect(stopped.choices[0]).toMatchObject({
      finish_reason: 'stop',
      message: { content: text.slice(0, text.indexOf(stop)) },
    })
    const forced = gemma.tokenize('qu')[0] as number
    const biased = await client.chat.completions.create({ ...request, temperature: 0, logit_bias: { [forced]: 100 } })
    expect(biased.choices[0]?.message.content).toBe(gemma.tokenizer.decode(Array(12).fill(forced)))
    const penalised = await client.chat.completions.create({
      ...request,
      temperature: 0,
      logit_bias: { [forced]: 20 },
      frequency_penalty: 2,
      max_tokens: 40,
    })
    expect(penalised.choices[0]?.message.content).not.toBe(gemma.tokenizer.decode(Array(40).fill(forced)))
  })

  test('any order of roles and parts is a conversation', async () => {
    const { prompt_tokens } = (
      await client.chat.completions.create({
        ...request,
        messages: [
          { role: 'developer', content: 'Be brief.' },
          { role: 'assistant', content: 'Good day.' },
          {
            role: 'user',
            content: [
              { type: 'text', text: 'One. ' },
              { type: 'text', text: 'Two.' },
            ],
          },
          { role: 'user', content: 'Three.' },
          { role: 'system', content: 'Still brief.' },
        ],
      })
    ).usage as OpenAI.CompletionUsage
    const ids = gemma.tokenizeChat([
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: '' },
      { role: 'assistant', content: 'Good day.' },
      { role: 'user', content: 'One. Two.\n\nThree.\n\nStill brief.' },
    ])
    expect(prompt_tokens).toBe(ids.length)
  })

  test('a second turn takes the first one’s keys from the cache', async () => {
    const first = 'Once upon a time there was a king who had three sons. '.repeat(12)
    const messages = user(first)
    const answer = await client.chat.completions.create({ ...request, messages, prompt_cache_key: 'story' })
    messages.push(
      { role: 'assistant', content: answer.choices[0]?.message.content ?? '' },
      { role: 'user', content: 'And then?' },
    )
    const second = await client.chat.completions.create({ ...request, messages, prompt_cache_key: 'story' })
    expect(second.usage?.prompt_tokens_details?.cached_tokens).toBeGreaterThanOrEqual(128)
  })
})

describe('grammars', () => {
  const schema = {
    type: 'object',
    properties: {
      city: { type: 'string', maxLength: 10 },
      degrees: { type: 'integer', minimum: -40, maximum: 50 },
      sky: { enum: ['clear', 'cloudy'] },
      hours: { type: 'array', items: { type: 'integer', minimum: 0, maximum: 23 }, minItems: 2, maxItems: 3 },
    },
    required: ['city', 'degrees', 'sky', 'hours'],
    additionalProperties: false,
  }
  const ajv = new Ajv()

  test('json_schema: whatever the model would say, the result parses and validates', async () => {
    const completion = await client.chat.completions.create({
      model: id,
      messages: user('The weather?'),
      response_format: { type: 'json_schema', json_schema: { name: 'weather', schema, strict: true } },
      n: 4,
      seed: 1,
      max_tokens: 300,
    })
    for (const { message, finish_reason } of completion.choices) {
      expect(finish_reason).toBe('stop')
      expect(ajv.validate(schema, JSON.parse(message.content as string)), ajv.errorsText()).toBe(true)
    }
  })

  test('json_object: an object', async () => {
    const forced = gemma.tokenize('}')[0] as number
    const completion = await client.chat.completions.create({
      model: id,
      messages: user('An object.'),
      response_format: { type: 'json_object' },
      // The small model would not come to an end by itself.
      logit_bias: { [forced]: 100 },
      max_tokens: 50,
    })
    expect(JSON.parse(completion.choices[0]?.message.content as string)).toBeTypeOf('object')
  })

  test('a schema that cannot be is a 400 that says why', async () => {
    const error = await failure(
      client.chat.completions.create({
        model: id,
        messages: user('x'),
        response_format: { type: 'json_schema', json_schema: { name: 'x', schema: { type: 'nonsense' } } },
      }),
    )
    expect(error.status).toBe(400)
    expect(error).toMatchObject({ param: 'response_format', code: 'invalid_schema', type: 'invalid_request_error' })
    expect(error.message).toMatch(/nonsense/)
  })
})

describe('tools', () => {
  const parameters = {
    type: 'object',
    properties: { city: { enum: ['Oslo', 'Rome'] }, days: { type: 'integer', minimum: 1, maximum: 7 } },
    required: ['city', 'days'],
    additionalProperties: false,
  }
  const tools: OpenAI.ChatCompletionFunctionTool[] = [
    { type: 'function', function: { name: 'get_weather', description: 'The weather', parameters } },
    { type: 'function', function: { name: 'get_time', parameters: { type: 'object', properties: {} } } },
  ]
  const request = { model: id, messages: user('The weather?'), tools, max_tokens: 300 }
  const ajv = new Ajv()
  type Call = { id: string; name: string; arguments: string }

  function checkCalls(calls: readonly Call[]): void {
    expect(calls.length).toBeGreaterThan(0)
    for (const call of calls) {
      expect(call.id).toMatch(/^call_[0-9a-f]{32}$/)
      const given = JSON.parse(call.arguments) as object
      if (call.name === 'get_weather') expect(ajv.validate(parameters, given), ajv.errorsText()).toBe(true)
      else expect([call.name, given]).toEqual(['get_time', {}])
    }
    expect(new Set(calls.map((call) => call.id)).size).toBe(calls.length)
  }

  test('required: calls, whole and streamed alike', async () => {
    let most = 0
    for (const seed of [1, 2, 3, 4, 5, 6]) {
      const completion = await client.chat.completions.create({ ...request, tool_choice: 'required', seed })
      const [choice] = completion.choices
      if (choice?.finish_reason === 'length') continue
      expect(choice).toMatchObject({ finish_reason: 'tool_calls', message: { content: null } })
      const made = choice?.message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[]
      const calls = made.map((call) => ({
        id: call.id,
        ...call.function,
      }))
      checkCalls(calls)
      most = Math.max(most, calls.length)
      const streamed: Call[] = []
      let reason: string | null = null
      let deltas = 0
      const stream = await client.chat.completions.create({ ...request, tool_choice: 'required', seed, stream: true })
      for await (const { choices } of stream) {
        reason = choices[0]?.finish_reason ?? reason
        expect(choices[0]?.delta.content ?? '').toBe('')
        for (const delta of choices[0]?.delta.tool_calls ?? []) {
          deltas++
          // The name comes first, with the id and nothing else.
          if (delta.id !== undefined) {
            expect(delta).toMatchObject({ index: streamed.length, type: 'function', function: { arguments: '' } })
            streamed.push({ id: delta.id, name: delta.function?.name as string, arguments: '' })
          } else {
            ;(streamed[delta.index] as Call).arguments += delta.function?.arguments
          }
        }
      }
      expect(reason).toBe('tool_calls')
      checkCalls(streamed)
      expect(streamed.map(({ name, arguments: given }) => [name, given])).toEqual(
        calls.map((c) => [c.name, c.arguments]),
      )
      if (calls[0]?.name === 'get_weather') expect(deltas).toBeGreaterThan(2)
    }
    expect(most).toBeGreaterThan(0)
  })

  test('a named function is the one called, once', async () => {
    const completion = await client.chat.completions.create({
      ...request,
      tool_choice: { type: 'function', function: { name: 'get_weather' } },
    })
    const calls = completion.choices[0]?.message.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[]
    expect(calls.map((call) => call.function.name)).toEqual(['get_weather'])
  })

  test('auto and none: text stays text; results of tools go back', async () => {
    for (const tool_choice of ['auto', 'none'] as const) {
      const completion = await client.chat.completions.create({
        ...request,
        tool_choice,
        max_tokens: 8,
        messages: [
          ...user('The weather in Oslo?'),
          {
            role: 'assistant',
            content: null,
            tool_calls: [
              {
                id: 'call_1',
                type: 'function',
                function: { name: 'get_weather', arguments: '{"city": "Oslo", "days": 1}' },
              },
            ],
          },
          { role: 'tool', tool_call_id: 'call_1', content: '{"degrees": 3}' },
        ],
      })
      expect(completion.choices[0]).toMatchObject({ finish_reason: 'length' })
      expect(completion.choices[0]?.message.content?.length).toBeGreaterThan(0)
    }
    const tokens = await post(front, '/tokenize', {
      messages: [
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'c', type: 'function', function: { name: 'f', arguments: '{}' } }],
        },
        { role: 'tool', tool_call_id: 'c', content: '{"degrees": 3}' },
      ],
    })
    const { tokens: ids } = (await tokens.json()) as { tokens: number[] }
    const text = gemma.tokenizer.decode(ids)
    expect(text).toContain('{"name": "f", "parameters": {}}')
    expect(text).toContain('{"name":"f","response":{"degrees":3}}')
  })
})

describe('completions', () => {
  test('text, texts, ids, lists of ids', async () => {
    const prompts = ['Once upon', 'The king']
    const ids = prompts.map((prompt) => [...gemma.tokenize(prompt, { bos: true })])
    const ask = async (prompt: OpenAI.CompletionCreateParams['prompt']): Promise<string[]> => {
      const { choices } = await client.completions.create({ model: id, prompt, max_tokens: 6, temperature: 0 })
      return choices.map(({ text }) => text)
    }
    const both = await ask(prompts)
    expect(both.length).toBe(2)
    expect(await ask(prompts[0] as string)).toEqual([both[0]])
    expect(await ask(ids[1] as number[])).toEqual([both[1]])
    expect(await ask(ids)).toEqual(both)
    const { choices } = await client.completions.create({ model: id, prompt: 'Once' })
    expect(choices[0]?.finish_reason).toMatch(/length|stop/)
  })

  test('echo with logprobs: those of the prompt are what scoring says', async () => {
    const prompt = [...gemma.tokenize('The old man said nothing', { bos: true })]
    const { choices, usage } = await client.completions.create({
      model: id,
      prompt,
      max_tokens: 2,
      echo: true,
      logprobs: 3,
      temperature: 0,
    })
    const scores = await gemma.score(prompt, { top: 3 })
    const logprobs = choices[0]?.logprobs as OpenAI.CompletionChoice.Logprobs
    expect(logprobs.tokens?.length).toBe(prompt.length + 2)
    expect(logprobs.token_logprobs?.slice(0, prompt.length)).toEqual([null, ...scores.map(({ logprob }) => logprob)])
    expect(logprobs.top_logprobs?.[0]).toBeNull()
    scores.forEach(({ top }, index) => {
      const given = logprobs.top_logprobs?.[index + 1] as Record<string, number>
      expect(Object.values(given).slice(0, 3)).toEqual(top.map(({ logprob }) => logprob))
    })
    expect(logprobs.tokens?.join('')).toBe(choices[0]?.text)
    logprobs.tokens?.forEach((token, index) => {
      const at = logprobs.text_offset?.[index] as number
      expect(choices[0]?.text.slice(at, at + token.length)).toBe(token)
    })
    expect(usage).toMatchObject({ prompt_tokens: prompt.length, completion_tokens: 2 })
  })

  test('echo without generation scores alone; a stream of it says the same', async () => {
    const request = { model: id, prompt: ['The king', 'A queen'], max_tokens: 0, echo: true, logprobs: 1 }
    const whole = await client.completions.create(request)
    expect(whole.choices.map(({ text, finish_reason }) => [text, finish_reason])).toEqual([
      ['The king', 'length'],
      ['A queen', 'length'],
    ])
    expect(whole.usage?.completion_tokens).toBe(0)
    const chunks = await collect(await client.completions.create({ ...request, stream: true }))
    expect(chunks.flatMap(({ choices }) => choices)).toEqual(whole.choices)
  })

  test('a stream says what the whole says', async () => {
    const request = { model: id, prompt: 'Once upon', max_tokens: 8, seed: 3, n: 2, echo: true, logprobs: 0 }
    const whole = await client.completions.create(request)
    const texts = ['', '']
    const tokens: string[][] = [[], []]
    for await (const { choices } of await client.completions.create({ ...request, stream: true })) {
      for (const { index, text, logprobs } of choices) {
        texts[index] += text
        tokens[index]?.push(...(logprobs?.tokens ?? []))
      }
    }
    expect(texts).toEqual(whole.choices.map(({ text }) => text))
    expect(tokens).toEqual(whole.choices.map(({ logprobs }) => logprobs?.tokens))
  })

  test('best_of gives the most probable', async () => {
    const request = { model: id, prompt: 'Once upon', max_tokens: 6, seed: 9, logprobs: 0 }
    const mean = (choice: OpenAI.CompletionChoice): number =>
      (choice.logprobs?.token_logprobs ?? []).reduce((sum, value) => sum + value, 0) / 6
    const all = await client.completions.create({ ...request, n: 5 })
    const best = await client.completions.create({ ...request, n: 2, best_of: 5 })
    const sorted = all.choices.map(mean).sort((a, b) => b - a)
    expect(best.choices.map(mean)).toEqual(sorted.slice(0, 2))
    expect(best.usage?.completion_tokens).toBe(30)
  })
})

describe('embeddings', () => {
  test('base64, as the client asks, and floats are the same; shorter ones have length 1', async () => {
    const input = ['a cat', 'a small feline']
    // The client asks for base64 and decodes it.
    const { data, usage, model } = await client.embeddings.create({ model: 'embedder', input })
    const vectors = await embedder.embed(input)
    expect(model).toBe('embedder')
    expect(data.map(({ embedding }) => Float32Array.from(embedding))).toEqual(vectors)
    expect(usage.prompt_tokens).toBe(input.reduce((sum, text) => sum + embedder.tokenizeForEmbedding(text).length, 0))
    const floats = await client.embeddings.create({ model: 'embedder', input, encoding_format: 'float' })
    expect(floats.data.map(({ embedding }) => Float32Array.from(embedding))).toEqual(vectors)
    const ids = [...embedder.tokenizeForEmbedding('a cat')]
    const short = await client.embeddings.create({
      model: 'embedder',
      input: ids,
      dimensions: 64,
      encoding_format: 'float',
    })
    const embedding = short.data[0]?.embedding ?? []
    expect(embedding.length).toBe(64)
    expect(Math.abs(Math.hypot(...embedding) - 1)).not.toBeGreaterThan(1e-6)
    expect((embedding[1] as number) / (embedding[0] as number)).toBeCloseTo(
      (vectors[0]?.[1] as number) / (vectors[0]?.[0] as number),
      5,
    )
  })

  test('each model does its own work', async () => {
    const wrong = await failure(client.embeddings.create({ model: id, input: 'x' }))
    expect(wrong).toMatchObject({ status: 400, code: 'model_not_supported', param: 'model' })
    const other = await failure(client.chat.completions.create({ model: 'embedder', messages: user('x') }))
    expect(other).toMatchObject({ status: 400, code: 'model_not_supported' })
    expect(await failure(client.embeddings.create({ model: 'embedder', input: [] }))).toMatchObject({
      status: 400,
      param: 'input',
    })
    const long = 'word '.repeat(3000)
    expect(await failure(client.embeddings.create({ model: 'embedder', input: long }))).toMatchObject({
      code: 'context_length_exceeded',
    })
  })
})

describe('responses', () => {
  const request = { model: id, input: 'Tell me of the king.', max_output_tokens: 12 }

  test('text is what chat says', async () => {
    const chat = await client.chat.completions.create({
      model: id,
      messages: user(request.input),
      max_tokens: 12,
      temperature: 0,
    })
    const response = await client.responses.create({ ...request, temperature: 0 })
    expect(response).toMatchObject({
      object: 'response',
      status: 'incomplete',
      incomplete_details: { reason: 'max_output_tokens' },
    })
    expect(response.output_text).toBe(chat.choices[0]?.message.content)
    expect(response.usage).toMatchObject({ input_tokens: chat.usage?.prompt_tokens, output_tokens: 12 })
  })

  test('a stream has the events of the protocol, in order and numbered', async () => {
    const types: string[] = []
    let text = ''
    let last: OpenAI.Responses.Response | undefined
    for await (const event of await client.responses.create({ ...request, temperature: 0, stream: true })) {
      expect(event.sequence_number).toBe(types.length)
      types.push(event.type)
      if (event.type === 'response.output_text.delta') text += event.delta
      if (event.type === 'response.incomplete') last = event.response
    }
    expect(types.filter((type, index) => type !== types[index - 1])).toEqual([
      'response.created',
      'response.in_progress',
      'response.output_item.added',
      'response.content_part.added',
      'response.output_text.delta',
      'response.output_text.done',
      'response.content_part.done',
      'response.output_item.done',
      'response.incomplete',
    ])
    const item = last?.output[0] as OpenAI.Responses.ResponseOutputMessage
    expect(item.content[0]).toMatchObject({ type: 'output_text', text })
    expect(text).toBe((await client.responses.create({ ...request, temperature: 0 })).output_text)
  })

  test('functions: called, streamed, answered', async () => {
    const parameters = {
      type: 'object',
      properties: { days: { type: 'integer', minimum: 1, maximum: 9 } },
      required: ['days'],
    }
    const tools = [{ type: 'function' as const, name: 'forecast', parameters, strict: true }]
    const asked = {
      ...request,
      max_output_tokens: 200,
      tools,
      tool_choice: { type: 'function' as const, name: 'forecast' },
    }
    const response = await client.responses.create({ ...asked, instructions: 'Be brief.' })
    const [call] = response.output as OpenAI.Responses.ResponseFunctionToolCall[]
    expect(response.status).toBe('completed')
    expect(call).toMatchObject({ type: 'function_call', name: 'forecast', status: 'completed' })
    expect((JSON.parse(call?.arguments as string) as { days: number }).days).toBeGreaterThanOrEqual(1)
    const types: string[] = []
    let given = ''
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      types.push(event.type)
      if (event.type === 'response.function_call_arguments.delta') given += event.delta
      if (event.type === 'response.function_call_arguments.done') expect(event.arguments).toBe(given)
    }
    expect(types).toContain('response.function_call_arguments.done')
    expect(types.at(-1)).toBe('response.completed')
    const next = await client.responses.create({
      ...request,
      input: [
        { role: 'user', content: [{ type: 'input_text', text: 'The weather?' }] },
        { type: 'function_call', call_id: 'c', name: 'forecast', arguments: '{"days": 2}' },
        { type: 'function_call_output', call_id: 'c', output: 'rain' },
      ],
    })
    expect(next.output_text.length).toBeGreaterThan(0)
  })

  test('what is stored elsewhere is refused', async () => {
    const error = await failure(client.responses.create({ ...request, previous_response_id: 'resp_1' }))
    expect(error).toMatchObject({ status: 400, param: 'previous_response_id' })
  })
})

test('models are listed and named', async () => {
  const { data } = await client.models.list()
  expect(data.map((model) => model.id)).toEqual([id, 'embedder'])
  expect(await client.models.retrieve(id)).toMatchObject({ id, object: 'model', owned_by: 'lapidary' })
  expect(await failure(client.models.retrieve('nobody'))).toMatchObject({ status: 404, code: 'model_not_found' })
})
