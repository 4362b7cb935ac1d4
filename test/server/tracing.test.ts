/** Spans, as the SDK of OpenTelemetry gets them. */
import { context, propagation, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import { W3CTraceContextPropagator } from '@opentelemetry/core'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import type { Gemma } from '../../lib/engine/gemma.ts'
import { LapidaryServer } from '../../lib/server/server.ts'
import { type Front, id, loadTiny, openai, post, startFront, until } from './fronts.ts'

const exporter = new InMemorySpanExporter()
const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
const secret = 'xylophone marmalade'
const messages = [{ role: 'user' as const, content: secret }]

let gemma: Gemma
let front: Front
beforeAll(async () => {
  trace.setGlobalTracerProvider(provider)
  propagation.setGlobalPropagator(new W3CTraceContextPropagator())
  gemma = await loadTiny()
  front = await startFront('node', { model: gemma })
})
afterAll(async () => {
  await front[Symbol.asyncDispose]()
  await gemma[Symbol.asyncDispose]()
  await provider.shutdown()
  trace.disable()
  propagation.disable()
  context.disable()
})
beforeEach(() => exporter.reset())

/** The only span, once it has ended. */
async function span(): Promise<ReturnType<InMemorySpanExporter['getFinishedSpans']>[number]> {
  await until(() => exporter.getFinishedSpans().length > 0, 'a span ended')
  const spans = exporter.getFinishedSpans()
  expect(spans).toHaveLength(1)
  expect(JSON.stringify([spans[0]!.name, spans[0]!.attributes, spans[0]!.events, spans[0]!.status])).not.toMatch(
    /xylophone|marmalade/,
  )
  return spans[0]!
}

test.each([false, true])('of a chat, streamed: %s', async (stream) => {
  const body = {
    model: id,
    messages,
    n: 2,
    max_tokens: 5,
    seed: 3,
    stream,
    stream_options: stream ? { include_usage: true } : null,
  }
  const answer = await (await post(front, '/v1/chat/completions', body)).text()
  const { prompt_tokens: input, completion_tokens: output } = JSON.parse(
    /"usage":(\{"prompt_tokens".*?\}\})/.exec(answer)![1]!,
  ) as Record<string, number>
  const { name, kind, attributes, status, parentSpanContext, instrumentationScope } = await span()
  expect(name).toBe(`chat ${id}`)
  expect(kind).toBe(SpanKind.SERVER)
  expect(instrumentationScope.name).toBe('lapidary')
  expect(parentSpanContext).toBeUndefined()
  expect(status.code).toBe(SpanStatusCode.UNSET)
  expect(attributes).toEqual({
    'gen_ai.operation.name': 'chat',
    'gen_ai.provider.name': 'lapidary',
    'gen_ai.request.model': id,
    'gen_ai.response.model': id,
    'gen_ai.response.finish_reasons': ['length', 'length'],
    'gen_ai.usage.input_tokens': input,
    'gen_ai.usage.output_tokens': output,
    'http.route': '/v1/chat/completions',
    'http.response.status_code': 200,
  })
})

test('below the caller’s, if its headers name one', async () => {
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
  const init = { headers: { traceparent } }
  await (await post(front, '/v1/completions', { prompt: secret, max_tokens: 2 }, init)).text()
  const own = await span()
  expect(own.name).toBe(`text_completion ${id}`)
  expect(own.spanContext().traceId).toBe('0af7651916cd43dd8448eb211c80319c')
  expect(own.parentSpanContext).toMatchObject({ spanId: 'b7ad6b7169203331', isRemote: true })
})

test('what the client did wrong is its answer, not an error of the server', async () => {
  await post(front, '/v1/chat/completions', { messages, temperature: -1 })
  const { status, attributes } = await span()
  expect(status.code).toBe(SpanStatusCode.UNSET)
  expect(attributes).toMatchObject({ 'http.response.status_code': 400 })
  expect(attributes).not.toHaveProperty('error.type')
})

test('a client that goes away, and a time that is up', async () => {
  const stream = await openai(front).chat.completions.create({ model: id, messages, stream: true, max_tokens: 900 })
  for await (const _ of stream) break
  const gone = await span()
  expect(gone.status.code).toBe(SpanStatusCode.ERROR)
  expect(gone.attributes).toMatchObject({ 'error.type': 'gone', 'lapidary.ended': 'gone' })
  exporter.reset()

  const server = new LapidaryServer({ model: gemma, requestTimeout: 1 })
  await server.loaded
  const { status } = await server.handle({
    method: 'POST',
    path: '/v1/completions',
    header: () => undefined,
    body: (async function* () {
      await new Promise((resolve) => setTimeout(resolve, 20))
      yield Buffer.from(JSON.stringify({ prompt: secret }))
    })(),
    signal: new AbortController().signal,
  })
  expect(status).toBe(504)
  const late = await span()
  expect(late.status.code).toBe(SpanStatusCode.ERROR)
  expect(late.attributes).toMatchObject({ 'error.type': 'timeout', 'http.response.status_code': 504 })
  await server.close()
})
