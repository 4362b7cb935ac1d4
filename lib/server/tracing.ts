/**
 * Spans for OpenTelemetry, by the conventions for generative AI. They cost nothing unless the application has set up an SDK.
 * @module
 */
import { type Attributes, context, propagation, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api'
import type { GenerationResult } from '../index.ts'
import type { ApiRequest } from './http.ts'
import type { Ending } from './lifetime.ts'

/** The span of one request. */
export interface Span {
  model(id: string): void
  /** A choice has ended. @param isFirst Of those for its prompt, which is counted once. */
  observe(result: GenerationResult, isFirst: boolean): void
  /** Tokens that were read but not generated from. */
  observePrompt(tokens: number): void
  end(status: number, ending: Ending | undefined): void
}

const operations: Readonly<Record<string, string>> = {
  '/v1/chat/completions': 'chat',
  '/v1/responses': 'chat',
  '/v1/completions': 'text_completion',
  '/v1/embeddings': 'embeddings',
}

const carrier = {
  get: (request: ApiRequest, name: string): string | undefined => request.header(name.toLowerCase()),
  keys: (): string[] => ['traceparent', 'tracestate', 'baggage'],
}

/** Begins the span of a request, below the caller's if its headers name one. */
export function startSpan(request: ApiRequest): Span {
  const operation = operations[request.path] ?? request.path.slice(1)
  const parent = propagation.extract(context.active(), request, carrier)
  const attributes: Attributes = {
    'gen_ai.operation.name': operation,
    'gen_ai.provider.name': 'lapidary',
    'http.route': request.path,
  }
  const span = trace.getTracer('lapidary').startSpan(operation, { kind: SpanKind.SERVER, attributes }, parent)
  let input = 0
  let output = 0
  const reasons: string[] = []
  return {
    model(id) {
      span.setAttribute('gen_ai.request.model', id)
      span.setAttribute('gen_ai.response.model', id)
      span.updateName(`${operation} ${id}`)
    },
    observe({ promptTokens, tokens, finishReason }, isFirst) {
      if (isFirst) input += promptTokens
      output += tokens
      reasons.push(finishReason === 'context' ? 'length' : finishReason)
      span.setAttribute('gen_ai.response.finish_reasons', reasons)
      span.setAttribute('gen_ai.usage.input_tokens', input)
      span.setAttribute('gen_ai.usage.output_tokens', output)
    },
    observePrompt(tokens) {
      input += tokens
      span.setAttribute('gen_ai.usage.input_tokens', input)
    },
    end(status, ending) {
      span.setAttribute('http.response.status_code', status)
      if (ending) span.setAttribute('lapidary.ended', ending)
      if (status >= 500 || ending) {
        span.setAttribute('error.type', ending ?? String(status))
        span.setStatus({ code: SpanStatusCode.ERROR })
      }
      span.end()
    },
  }
}
