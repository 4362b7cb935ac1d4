/** What a server does when it is busy, left, closed or guarded. */
import { connect } from 'node:net'
import fastify from 'fastify'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Gemma } from '../../lib/engine/gemma.ts'
import plugin from '../../lib/server/fastify.ts'
import { LapidaryServer, type ServerLogger } from '../../lib/server/server.ts'
import { bundledModel } from '../cli/cli.ts'
import { type Front, frontNames, id, loadTiny, openai, post, startFront, until } from './fronts.ts'

const chat = '/v1/chat/completions'
const messages = [{ role: 'user', content: 'Hello' }]
/** It ends only when it is ended: the context holds a thousand tokens. */
const endless = { messages, ignore_eos: true, stream: true }
const idle = (gemma: Gemma): boolean => gemma.info().engine.running + gemma.info().engine.waiting === 0

describe.each(frontNames)('clients that go away: %s', (name) => {
  let gemma: Gemma
  let front: Front
  beforeAll(async () => {
    gemma = await loadTiny()
    front = await startFront(name, { model: gemma })
  })
  afterAll(async () => {
    await front[Symbol.asyncDispose]()
    await gemma[Symbol.asyncDispose]()
  })

  test('in the middle of a stream', async () => {
    const controller = new AbortController()
    const response = await post(front, chat, endless, { signal: controller.signal })
    const reader = response.body!.getReader()
    await reader.read()
    expect(gemma.info().engine.running).toBe(1)
    controller.abort()
    await until(() => idle(gemma) && front.server.active === 0, 'the sequence ended')
    // It was ended, not finished.
    expect(await front.server.metrics.registry.metrics()).toMatch(/request_success_total\{finished_reason="abort"\} 1/)
  })

  test('while it waits for a whole answer, and with several choices', async () => {
    const controller = new AbortController()
    const answer = post(front, chat, { ...endless, stream: false, n: 3 }, { signal: controller.signal })
    await until(() => gemma.info().engine.running === 3, 'three sequences run')
    controller.abort()
    await expect(answer).rejects.toThrow()
    await until(() => idle(gemma) && front.server.active === 0, 'the sequences ended')
  })

  test('before its body is whole', async () => {
    const { hostname, port } = new URL(front.url)
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    socket.write(
      `POST ${chat} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"mess`,
    )
    await until(() => front.server.active === 1, 'the request began')
    socket.destroy()
    await until(() => front.server.active === 0, 'the request ended')
  })

  test('a reader that does not read holds up nobody else', async () => {
    const { hostname, port } = new URL(front.url)
    const body = JSON.stringify(endless)
    const socket = connect(Number(port), hostname)
    socket.pause()
    socket.write(
      `POST ${chat} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    )
    await until(() => gemma.info().engine.running === 1, 'it runs')
    const response = await post(front, chat, { messages, max_tokens: 3 })
    expect(response.status).toBe(200)
    socket.destroy()
    await until(() => idle(gemma) && front.server.active === 0, 'it ended')
  })
})

describe('a full queue', () => {
  test('is 429 with Retry-After, and what was taken is answered', async () => {
    await using gemma = await loadTiny({ maxSequences: 1, maxQueue: 2 })
    await using front = await startFront('fastify', { model: gemma })
    const running = new AbortController()
    const first = await post(front, chat, endless, { signal: running.signal })
    await until(() => gemma.info().engine.running === 1, 'the first runs')
    const waiting = [1, 2].map(() => post(front, chat, { messages, max_tokens: 2 }))
    await until(() => gemma.info().engine.waiting === 2, 'two wait')
    for (const stream of [true, false]) {
      const refused = await post(front, chat, { messages, stream })
      expect(refused.status).toBe(429)
      expect(refused.headers.get('retry-after')).toBe('1')
      expect(await refused.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'ERR_BUSY' } })
    }
    // All or nothing: of several choices none is left behind.
    expect((await post(front, chat, { messages, n: 2 })).status).toBe(429)
    expect(gemma.info().engine).toMatchObject({ running: 1, waiting: 2 })
    running.abort()
    await first.text().catch(() => {})
    for (const response of await Promise.all(waiting)) expect(response.status).toBe(200)
    expect((await post(front, chat, { messages, max_tokens: 1 })).status).toBe(200)
  })

  test('lower priorities go first', async () => {
    await using gemma = await loadTiny({ maxSequences: 1 })
    await using front = await startFront('node', { model: gemma })
    const running = new AbortController()
    const first = await post(front, chat, endless, { signal: running.signal })
    await until(() => gemma.info().engine.running === 1, 'the first runs')
    const order: string[] = []
    const ask = async (name: string, fields: object): Promise<void> => {
      const before = gemma.info().engine.waiting
      const answer = post(front, chat, { messages, max_tokens: 4, ...fields }).then(async (response) => {
        await response.json()
        order.push(name)
      })
      answers.push(answer)
      await until(() => gemma.info().engine.waiting === before + 1, `${name} waits`)
    }
    const answers: Promise<void>[] = []
    await ask('flex', { service_tier: 'flex' })
    await ask('plain', {})
    await ask('urgent', { priority: -5 })
    await ask('tier', { service_tier: 'priority' })
    running.abort()
    await first.text().catch(() => {})
    await Promise.all(answers)
    expect(order).toEqual(['urgent', 'tier', 'plain', 'flex'])
  })
})

test('a request that takes too long is 504, or an error in its stream', async () => {
  await using gemma = await loadTiny()
  await using front = await startFront('fastify', { model: gemma, requestTimeout: 60 })
  const whole = await post(front, chat, { ...endless, stream: false })
  expect(whole.status).toBe(504)
  expect(await whole.json()).toMatchObject({ error: { type: 'server_error', code: 'request_timeout' } })
  const events = await (await post(front, chat, endless)).text()
  expect(events).toMatch(/data: \{"error":\{"message":"the answer took longer than 0\.06 s".*\}\n\n$/)
  expect(events).not.toContain('[DONE]')
  const stream = await openai(front).chat.completions.create({
    model: id,
    messages: messages as never,
    stream: true,
    ignore_eos: true,
  } as never)
  await expect(
    (async () => {
      for await (const _ of stream as unknown as AsyncIterable<unknown>) {
        /* to its end */
      }
    })(),
  ).rejects.toThrow(/longer than/)
  await until(() => idle(gemma), 'nothing runs')
})

test('closing: what runs may finish until the deadline, nothing more is taken', async () => {
  const gemma = await loadTiny()
  const front = await startFront('node', { model: gemma })
  const short = post(front, chat, { messages, max_tokens: 30, ignore_eos: true })
  await until(() => gemma.info().engine.running === 1, 'it runs')
  const closing = front.server.close(20_000)
  const refused = await post(front, chat, { messages })
  expect(refused.status).toBe(503)
  expect(await refused.json()).toMatchObject({ error: { code: 'shutting_down' } })
  expect((await fetch(`${front.url}/ready`)).status).toBe(503)
  expect((await fetch(`${front.url}/health`)).status).toBe(200)
  expect((await short).status).toBe(200)
  await closing
  await front[Symbol.asyncDispose]()
  // A model that was given stays the giver's.
  expect((await gemma.generate('x', { maxTokens: 1 })).tokens).toBe(1)
  const other = await startFront('node', { model: gemma })
  const cut = await post(other, chat, endless)
  await until(() => gemma.info().engine.running === 1, 'it runs')
  await other.server.close(30)
  expect(await cut.text()).toMatch(/"code":"shutting_down"\}\}\n\n$/)
  await other[Symbol.asyncDispose]()
  await gemma[Symbol.asyncDispose]()
})

test('keys: one of several, or 401', async () => {
  await using gemma = await loadTiny()
  await using front = await startFront('fetch', { model: gemma, apiKeys: ['first-key', 'second-key'] })
  for (const key of ['first-key', 'second-key']) expect((await openai(front, key).models.list()).data.length).toBe(1)
  for (const authorization of ['', 'Bearer', 'Bearer first', 'Bearer first-key2', 'Basic first-key', 'first-key']) {
    const response = await post(front, chat, { messages }, { headers: authorization === '' ? {} : { authorization } })
    expect(response.status).toBe(401)
    expect(response.headers.get('www-authenticate')).toBe('Bearer')
    expect(await response.json()).toMatchObject({ error: { type: 'authentication_error', code: 'invalid_api_key' } })
  }
  for (const path of ['/health', '/ready', '/metrics']) expect((await fetch(front.url + path)).status).toBe(200)
})

test('cross-origin requests: none unless asked for', async () => {
  await using gemma = await loadTiny()
  const ask = async (
    cors: boolean | string[] | undefined,
    origin: string,
  ): Promise<[number, string | null, string | null]> => {
    await using front = await startFront('fastify', { model: gemma, cors })
    const headers = {
      origin,
      'access-control-request-method': 'POST',
      'access-control-request-headers': 'x-stainless-os',
    }
    const preflight = await fetch(front.url + chat, { method: 'OPTIONS', headers })
    const response = await post(front, chat, { messages, max_tokens: 1 }, { headers: { origin } })
    expect(response.status).toBe(200)
    if (preflight.status === 204) expect(preflight.headers.get('access-control-allow-headers')).toBe('x-stainless-os')
    const name = 'access-control-allow-origin'
    return [preflight.status, preflight.headers.get(name), response.headers.get(name)]
  }
  expect(await ask(undefined, 'https://a.example')).toEqual([405, null, null])
  expect(await ask(true, 'https://a.example')).toEqual([204, '*', '*'])
  expect(await ask(['https://a.example'], 'https://a.example')).toEqual([204, 'https://a.example', 'https://a.example'])
  expect(await ask(['https://a.example'], 'https://b.example')).toEqual([405, null, null])
})

test('nothing of a prompt is logged unless asked for', async () => {
  const lines: string[] = []
  const note = (details: object, message: string): void => {
    lines.push(message + JSON.stringify(details, (_, value) => (value instanceof Error ? String(value.stack) : value)))
  }
  const logger: ServerLogger = { info: note, error: note }
  const secret = 'the password is swordfish'
  await using gemma = await loadTiny()
  for (const logPrompts of [false, true]) {
    lines.length = 0
    await using front = await startFront('node', { model: gemma, logger, logPrompts })
    await post(front, chat, { messages: [{ role: 'user', content: secret }], max_tokens: 1 })
    await post(front, chat, { messages: [{ role: 'user', content: secret }], stop: '' })
    expect(lines.join('\n').includes(secret)).toBe(logPrompts)
  }
})

test('metrics count what happened', async () => {
  await using gemma = await loadTiny()
  await using front = await startFront('fastify', { model: gemma, metricsPrefix: 'vllm:' })
  const prompt = 'Once upon a time there was a king. '.repeat(20)
  const request = { messages: [{ role: 'user', content: prompt }], max_tokens: 5, ignore_eos: true }
  const usage = []
  for (let round = 0; round < 2; round++) {
    usage.push(
      (
        (await (await post(front, chat, request)).json()) as {
          usage: Record<string, number> & { prompt_tokens_details: { cached_tokens: number } }
        }
      ).usage,
    )
  }
  await post(front, chat, {})
  const text = await (await fetch(`${front.url}/metrics`)).text()
  const value = (name: string): number =>
    Number(new RegExp(`^vllm:${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm').exec(text)?.[1])
  expect(value('num_requests_running')).toBe(0)
  expect(value('num_requests_waiting')).toBe(0)
  expect(value('kv_cache_usage_perc')).toBe(0)
  expect(value('kv_cache_cached_perc')).toBeGreaterThan(0)
  expect(value('prompt_tokens_total')).toBe(
    usage.reduce((sum, { prompt_tokens }) => sum + (prompt_tokens as number), 0),
  )
  expect(value('generation_tokens_total')).toBe(10)
  expect(value('prefix_cache_queries_total')).toBe(value('prompt_tokens_total'))
  expect(value('prefix_cache_hits_total')).toBe(usage[1]?.prompt_tokens_details.cached_tokens)
  expect(value('prefix_cache_hits_total')).toBeGreaterThan(60)
  for (const name of ['time_to_first_token_seconds', 'time_per_output_token_seconds', 'e2e_request_latency_seconds']) {
    expect(value(`${name}_count`)).toBe(2)
    expect(value(`${name}_sum`)).toBeGreaterThan(0)
  }
  expect(value('time_to_first_token_seconds_sum')).toBeLessThan(value('e2e_request_latency_seconds_sum'))
  expect(text).toMatch(/http_requests_total\{handler="\/v1\/chat\/completions",status="400",ended="answered"\} 1/)
})

describe('the Fastify plugin', () => {
  test('loads its model, decorates the app, runs its hooks, and leaves nothing behind', async () => {
    const app = fastify()
    const seen: string[] = []
    app.addHook('onRequest', async (request) => void seen.push(request.url))
    await app.register(plugin, { model: bundledModel, id: 'mine', threads: 1, prefix: '/llm' })
    app.post('/echo', async (request) => request.body)
    await app.ready()
    await app.lapidary.loaded
    expect(app.lapidary.gemma.info().path).toBe(bundledModel)
    const answer = await app.inject({
      method: 'POST',
      url: '/llm/v1/completions',
      payload: { prompt: 'Once', max_tokens: 2 },
    })
    expect(answer.json()).toMatchObject({ model: 'mine', object: 'text_completion' })
    const stream = await app.inject({
      method: 'POST',
      url: '/llm/v1/completions',
      payload: { prompt: 'Once', max_tokens: 2, stream: true },
    })
    expect(stream.body.endsWith('data: [DONE]\n\n')).toBe(true)
    // The app's own parsers are as they were.
    expect((await app.inject({ method: 'POST', url: '/echo', payload: { a: 1 } })).json()).toEqual({ a: 1 })
    expect((await app.inject({ method: 'POST', url: '/v1/completions', payload: {} })).statusCode).toBe(404)
    expect(seen).toContain('/llm/v1/completions')
    const { gemma } = app.lapidary
    await app.close()
    await expect(gemma.generate('x')).rejects.toThrow(/disposed/)
  })

  test('a model that is not there fails the registration', async () => {
    const app = fastify()
    await expect(app.register(plugin, { model: '/nowhere/model.gguf' })).rejects.toThrow(/nowhere/)
    await app.close()
  })
})

test('while a model loads, and where it could not be loaded, requests are 503', async () => {
  const server = new LapidaryServer({ model: bundledModel, threads: 1 })
  const ask = (path: string) =>
    server.handle({
      method: 'GET',
      path,
      header: () => undefined,
      body: undefined,
      signal: new AbortController().signal,
    })
  expect(await ask('/ready')).toMatchObject({ status: 503, body: '{"status":"loading"}' })
  expect((await ask('/health')).status).toBe(200)
  await server.loaded
  expect((await ask('/ready')).status).toBe(200)
  await server.close()
  const failed = new LapidaryServer({ model: '/nowhere/model.gguf' })
  await expect(failed.loaded).rejects.toThrow(/nowhere/)
  const ready = await failed.handle({
    method: 'GET',
    path: '/ready',
    header: () => undefined,
    body: undefined,
    signal: new AbortController().signal,
  })
  expect(ready).toMatchObject({ status: 503, body: '{"status":"failed"}' })
  await failed.close()
})
