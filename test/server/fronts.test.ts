/** Requests and their bytes, the same through every front end. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Gemma } from '../../lib/engine/gemma.ts'
import { type Front, frontNames, id, loadTiny, post, startFront } from './fronts.ts'

let gemma: Gemma
beforeAll(async () => {
  gemma = await loadTiny()
})
afterAll(async () => {
  await gemma[Symbol.asyncDispose]()
})

const messages = [{ role: 'user', content: 'Hello' }]
const chat = '/v1/chat/completions'
const nested = (depth: number): string => '['.repeat(depth) + ']'.repeat(depth)

interface ErrorCase {
  readonly name: string
  readonly path?: string
  readonly method?: string
  readonly body?: unknown
  readonly headers?: Record<string, string>
  readonly status: number
  readonly param?: string
  readonly code?: string
  readonly message?: RegExp
}

const errors: ErrorCase[] = [
  { name: 'no JSON', body: '{"model": ', status: 400, code: 'invalid_json' },
  { name: 'no body', body: '', status: 400, code: 'invalid_json' },
  { name: 'an array', body: [], status: 400, code: 'invalid_type', message: /body: expected an object, got an array/ },
  { name: 'deep brackets', body: `{"messages": ${nested(5000)}}`, status: 400, param: 'messages[0]' },
  { name: 'another type of content', body: 'a=b', headers: { 'content-type': 'text/plain' }, status: 415 },
  { name: 'too long', body: { messages, padding: 'x'.repeat(70_000) }, status: 413, code: 'request_too_large' },
  { name: 'no messages', body: { model: id }, status: 400, param: 'messages', code: 'missing_required_parameter' },
  { name: 'empty messages', body: { messages: [] }, status: 400, param: 'messages' },
  { name: 'a message of no role', body: { messages: [{ content: 'x' }] }, status: 400, param: 'messages[0].role' },
  {
    name: 'an unknown role',
    body: { messages: [{ role: 'king', content: 'x' }] },
    status: 400,
    param: 'messages[0].role',
  },
  { name: 'no content', body: { messages: [{ role: 'user' }] }, status: 400, param: 'messages[0].content' },
  {
    name: 'an image that is a path',
    body: { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: '/etc/hostname' } }] }] },
    status: 400,
    param: 'messages[0].content[0].image_url.url',
    code: 'invalid_image_url',
  },
  {
    name: 'sound',
    body: { messages: [{ role: 'user', content: [{ type: 'input_audio', input_audio: {} }] }] },
    status: 400,
    param: 'messages[0].content[0].type',
  },
  { name: 'an unknown model', body: { model: 'gpt', messages }, status: 404, param: 'model', code: 'model_not_found' },
  { name: 'a model that is a number', body: { model: 5, messages }, status: 400, param: 'model' },
  { name: 'temperature −1', body: { messages, temperature: -1 }, status: 400, param: 'temperature' },
  { name: 'temperature as text', body: { messages, temperature: '1' }, status: 400, param: 'temperature' },
  { name: 'top_p 2', body: { messages, top_p: 2 }, status: 400, param: 'top_p' },
  { name: 'n 0', body: { messages, n: 0 }, status: 400, param: 'n' },
  { name: 'n 1.5', body: { messages, n: 1.5 }, status: 400, param: 'n' },
  { name: 'n 1000', body: { messages, n: 1000 }, status: 400, param: 'n' },
  { name: 'max_tokens 0', body: { messages, max_tokens: 0 }, status: 400, param: 'max_tokens' },
  { name: 'stop empty', body: { messages, stop: '' }, status: 400, param: 'stop' },
  { name: 'stop of numbers', body: { messages, stop: [1] }, status: 400, param: 'stop' },
  { name: 'logit_bias 200', body: { messages, logit_bias: { 5: 200 } }, status: 400, param: 'logit_bias.5' },
  { name: 'logit_bias of no token', body: { messages, logit_bias: { x: 1 } }, status: 400 },
  { name: 'top_logprobs alone', body: { messages, top_logprobs: 2 }, status: 400, param: 'top_logprobs' },
  { name: 'top_logprobs 21', body: { messages, logprobs: true, top_logprobs: 21 }, status: 400, param: 'top_logprobs' },
  { name: 'stream_options alone', body: { messages, stream_options: {} }, status: 400, param: 'stream_options' },
  { name: 'stream as text', body: { messages, stream: 'yes' }, status: 400, param: 'stream' },
  {
    name: 'an unknown format',
    body: { messages, response_format: { type: 'xml' } },
    status: 400,
    param: 'response_format.type',
  },
  {
    name: 'a format without schema',
    body: { messages, response_format: { type: 'json_schema' } },
    status: 400,
    param: 'response_format.schema',
  },
  {
    name: 'tools of no function',
    body: { messages, tools: [{ type: 'search' }] },
    status: 400,
    param: 'tools[0].type',
  },
  {
    name: 'a tool of a bad name',
    body: { messages, tools: [{ type: 'function', function: { name: 'a b' } }] },
    status: 400,
    param: 'tools[0].function.name',
  },
  { name: 'tool_choice without tools', body: { messages, tool_choice: 'required' }, status: 400, param: 'tool_choice' },
  {
    name: 'tool_choice of another',
    body: {
      messages,
      tools: [{ type: 'function', function: { name: 'f' } }],
      tool_choice: { type: 'function', function: { name: 'g' } },
    },
    status: 400,
    param: 'tool_choice',
  },
  {
    name: 'too many tokens',
    body: { messages: [{ role: 'user', content: 'long '.repeat(2000) }] },
    status: 400,
    param: 'messages',
    code: 'context_length_exceeded',
    message: /maximum context length is 1024 tokens/,
  },
  { name: 'suffix', path: '/v1/completions', body: { prompt: 'x', suffix: 'y' }, status: 400, param: 'suffix' },
  { name: 'no prompt', path: '/v1/completions', body: {}, status: 400, param: 'prompt' },
  { name: 'ids outside', path: '/v1/completions', body: { prompt: [1, 5000] }, status: 400, param: 'prompt[0]' },
  { name: 'mixed prompts', path: '/v1/completions', body: { prompt: ['a', 1] }, status: 400, param: 'prompt[1]' },
  {
    name: 'best_of below n',
    path: '/v1/completions',
    body: { prompt: 'x', n: 3, best_of: 2 },
    status: 400,
    param: 'best_of',
  },
  {
    name: 'max_tokens 0 without echo',
    path: '/v1/completions',
    body: { prompt: 'x', max_tokens: 0 },
    status: 400,
    param: 'max_tokens',
  },
  { name: 'tokenize nothing', path: '/tokenize', body: {}, status: 400, param: 'prompt' },
  { name: 'detokenize text', path: '/detokenize', body: { tokens: ['a'] }, status: 400, param: 'tokens' },
  { name: 'an unknown path', path: '/v1/nothing', body: {}, status: 404, code: 'unknown_url' },
  { name: 'another method', path: '/v1/models', body: {}, status: 405, code: 'method_not_allowed' },
  { name: 'GET of a POST', path: chat, method: 'GET', status: 405, code: 'method_not_allowed' },
]

describe.each(frontNames)('%s', (name) => {
  let front: Front
  beforeAll(async () => {
    front = await startFront(name, { model: gemma, bodyLimit: 65_536 }, '/llm')
  })
  afterAll(async () => {
    await front[Symbol.asyncDispose]()
  })

  test.each(errors)(
    '$name: $status',
    async ({ path = chat, method, body, headers = {}, status, param, code, message }) => {
      const init = { headers, ...(method !== undefined && { method }) }
      const response =
        method === 'GET' ? await fetch(front.url + path, init) : await post(front, path, body ?? {}, init)
      const { error } = (await response.json()) as { error: Record<string, unknown> }
      expect({ status: response.status, ...error }).toMatchObject({
        status,
        type: 'invalid_request_error',
        ...(param !== undefined && { param }),
        ...(code !== undefined && { code }),
      })
      expect(Object.keys(error)).toEqual(['message', 'type', 'param', 'code'])
      expect(error.message).toMatch(message ?? /./)
      expect(response.headers.get('content-type')).toBe('application/json; charset=utf-8')
      expect(front.server.active).toBe(0)
    },
  )

  test('the bytes of a stream', async () => {
    const response = await post(front, chat, {
      messages,
      max_tokens: 2,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
      user: 'u',
      some_field_of_tomorrow: { a: 1 },
      seed: null,
    })
    expect(response.status).toBe(200)
    expect(response.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    expect(response.headers.get('cache-control')).toBe('no-cache, no-transform')
    const text = await response.text()
    const {
      text: answer,
      ids,
      promptTokens,
    } = await gemma.chat([{ role: 'user', content: 'Hello' }], { maxTokens: 2, temperature: 0 }).result
    const pieces = ids.map((token) => gemma.tokenizer.decode([token]))
    expect(pieces.join('')).toBe(answer)
    const [, head] =
      /^data: (\{"id":"chatcmpl-[0-9a-f]{32}","object":"chat\.completion\.chunk","created":\d+,"model":"tiny-q4_0"),/.exec(
        text,
      ) ?? []
    const chunk = (choices: object[], usage: object | null): string =>
      `data: ${head},"choices":${JSON.stringify(choices)},"usage":${JSON.stringify(usage)}}\n\n`
    const choice = (delta: object, finish_reason: string | null = null): object => ({
      index: 0,
      delta,
      logprobs: null,
      finish_reason,
    })
    expect(text).toBe(
      [
        chunk([choice({ role: 'assistant', content: '', refusal: null })], null),
        ...pieces.map((content) => chunk([choice({ content })], null)),
        chunk([choice({}, 'length')], null),
        chunk([], {
          prompt_tokens: promptTokens,
          completion_tokens: 2,
          total_tokens: promptTokens + 2,
          // The second of these requests has the first one's page only if it is full.
          prompt_tokens_details: { cached_tokens: 0 },
        }),
        'data: [DONE]\n\n',
      ].join(''),
    )
  })

  test('without include_usage no chunk has a usage', async () => {
    const response = await post(front, chat, { messages, max_tokens: 2, stream: true })
    const text = await response.text()
    expect(text).not.toContain('usage')
    expect(text.endsWith('data: [DONE]\n\n')).toBe(true)
  })

  test('health, ready, models, metrics, tokenize', async () => {
    expect(await (await fetch(`${front.url}/health`)).json()).toEqual({ status: 'ok' })
    expect(await (await fetch(`${front.url}/ready?x=1`)).json()).toEqual({ status: 'ready' })
    expect(((await (await fetch(`${front.url}/v1/models`)).json()) as { data: unknown[] }).data.length).toBe(1)
    const head = await fetch(`${front.url}/health`, { method: 'HEAD' })
    expect([head.status, await head.text()]).toEqual([200, ''])
    const metrics = await fetch(`${front.url}/metrics`)
    expect(metrics.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/)
    expect(await metrics.text()).toMatch(/^lapidary:num_requests_running\{model_name="tiny-q4_0"\} 0$/m)
    const { tokens } = (await (await post(front, '/tokenize', { prompt: 'The king<start_of_turn>' })).json()) as {
      tokens: number[]
    }
    expect(tokens).toEqual([...gemma.tokenize('The king<start_of_turn>', { bos: true, markers: false })])
    const { prompt } = (await (await post(front, '/detokenize', { tokens: tokens.slice(1) })).json()) as {
      prompt: string
    }
    expect(prompt).toBe('The king<start_of_turn>')
  })

  test('a body in pieces, with a character cut in two', async () => {
    const bytes = new TextEncoder().encode(
      JSON.stringify({ messages: [{ role: 'user', content: 'é東京🙂' }], max_tokens: 1 }),
    )
    let at = 0
    const body = new ReadableStream({
      pull(controller) {
        if (at >= bytes.length) return controller.close()
        controller.enqueue(bytes.subarray(at, ++at))
      },
    })
    const response = await fetch(front.url + chat, {
      method: 'POST',
      body,
      duplex: 'half',
      headers: { 'content-type': 'application/json' },
    } as RequestInit)
    expect(response.status).toBe(200)
    const broken = new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d])
    const bad = await fetch(front.url + chat, {
      method: 'POST',
      body: broken,
      headers: { 'content-type': 'application/json' },
    })
    expect(await bad.json()).toMatchObject({ error: { code: 'invalid_json', message: expect.stringMatching(/UTF-8/) } })
  })
})
