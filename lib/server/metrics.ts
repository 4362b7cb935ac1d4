/**
 * Metrics for Prometheus: vLLM's names and meanings, under a prefix of our own.
 * @module
 */
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { GenerationResult } from '../index.ts'
import type { ServedModel } from './call.ts'
import type { ApiResponse } from './http.ts'
import type { Ending } from './lifetime.ts'

// vLLM's buckets, in seconds.
const firstTokenBuckets = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
]
const perTokenBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5]
const requestBuckets = [0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960]
const tokenBuckets = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]

/** The metrics of one server, in a registry of their own. */
export class Metrics {
  readonly registry: Registry = new Registry()
  readonly #finished: Counter<'finished_reason'>
  readonly #failed: Counter
  readonly #promptTokens: Counter
  readonly #generationTokens: Counter
  readonly #prefixQueries: Counter
  readonly #prefixHits: Counter
  readonly #firstToken: Histogram
  readonly #perToken: Histogram
  readonly #endToEnd: Histogram
  readonly #queue: Histogram
  readonly #prefill: Histogram
  readonly #decode: Histogram
  readonly #promptSize: Histogram
  readonly #generationSize: Histogram
  readonly #http: Counter<'handler' | 'status' | 'ended'>

  /** @param models Read when metrics are asked for. */
  constructor(models: readonly ServedModel[], prefix = 'lapidary:') {
    const registers = [this.registry]
    const counter = <T extends string = never>(name: string, help: string, labelNames: T[] = []): Counter<T> =>
      new Counter({ name: prefix + name, help, labelNames, registers })
    const histogram = (name: string, help: string, buckets: number[]): Histogram =>
      new Histogram({ name: prefix + name, help, buckets, registers })
    const gauge = (name: string, help: string, value: (model: ServedModel) => number): void => {
      new Gauge({
        name: prefix + name,
        help,
        labelNames: ['model_name'],
        registers,
        collect() {
          for (const model of models) this.set({ model_name: model.id }, value(model))
        },
      })
    }
    gauge('num_requests_running', 'Sequences in the batch.', ({ gemma }) => gemma.info().engine.running)
    gauge(
      'num_requests_waiting',
      'Sequences that wait for a place in the batch.',
      ({ gemma }) => gemma.info().engine.waiting,
    )
    gauge('kv_cache_usage_perc', 'The part of the KV cache that sequences use; 1: all of it.', ({ gemma }) => {
      const { reserved, used, cached } = gemma.info().cache
      return reserved === 0 ? 0 : (used - cached) / reserved
    })
    gauge('kv_cache_cached_perc', 'The part that is kept for later prefixes only.', ({ gemma }) => {
      const { reserved, cached } = gemma.info().cache
      return reserved === 0 ? 0 : cached / reserved
    })
    // A counter by meaning; its value is the engine's own.
    gauge(
      'num_preemptions_total',
      'Sequences put back for want of KV memory.',
      ({ gemma }) => gemma.info().engine.preemptions,
    )
    gauge('engine_steps_total', 'Steps of the engine.', ({ gemma }) => gemma.info().engine.steps)
    this.#finished = counter('request_success_total', 'Finished sequences, by reason.', ['finished_reason'])
    this.#failed = counter('request_failure_total', 'Sequences that failed.')
    this.#promptTokens = counter('prompt_tokens_total', 'Tokens of prompts.')
    this.#generationTokens = counter('generation_tokens_total', 'Tokens generated.')
    this.#prefixQueries = counter(
      'prefix_cache_queries_total',
      'Tokens of prompts that were looked up in the prefix cache.',
    )
    this.#prefixHits = counter('prefix_cache_hits_total', 'Those that were found.')
    this.#firstToken = histogram(
      'time_to_first_token_seconds',
      'From the request to its first token.',
      firstTokenBuckets,
    )
    this.#perToken = histogram(
      'time_per_output_token_seconds',
      'Between tokens, the mean of a sequence.',
      perTokenBuckets,
    )
    this.#endToEnd = histogram('e2e_request_latency_seconds', 'From the request to its last token.', requestBuckets)
    this.#queue = histogram('request_queue_time_seconds', 'Spent waiting.', requestBuckets)
    this.#prefill = histogram('request_prefill_time_seconds', 'From the batch to the first token.', requestBuckets)
    this.#decode = histogram('request_decode_time_seconds', 'From the first token to the last.', requestBuckets)
    this.#promptSize = histogram('request_prompt_tokens', 'Tokens of a prompt.', tokenBuckets)
    this.#generationSize = histogram('request_generation_tokens', 'Tokens of an answer.', tokenBuckets)
    this.#http = counter('http_requests_total', 'Answers, by endpoint and status.', ['handler', 'status', 'ended'])
  }

  /** A request began; to be told how it ended. */
  begin(handler: string): (status: number, ending: Ending | undefined) => void {
    return (status, ending) => this.#http.inc({ handler, status: String(status), ended: ending ?? 'answered' })
  }

  /** A finished sequence. @param milliseconds Since its request came. */
  observe(result: GenerationResult, milliseconds: number): void {
    const { timings, tokens, promptTokens, cachedTokens, finishReason } = result
    this.#finished.inc({ finished_reason: finishReason === 'context' ? 'length' : finishReason })
    this.#promptTokens.inc(promptTokens)
    this.#generationTokens.inc(tokens)
    this.#prefixQueries.inc(promptTokens)
    this.#prefixHits.inc(cachedTokens)
    this.#promptSize.observe(promptTokens)
    this.#generationSize.observe(tokens)
    this.#endToEnd.observe(milliseconds / 1000)
    this.#queue.observe(timings.queueMs / 1000)
    // One that was aborted before its first token has no such times.
    if (tokens === 0) return
    // What came before the engine had it, too: reading, tokenising.
    this.#firstToken.observe(Math.max(0, milliseconds - timings.decodeMs) / 1000)
    this.#prefill.observe(timings.prefillMs / 1000)
    this.#decode.observe(timings.decodeMs / 1000)
    if (tokens > 1) this.#perToken.observe(timings.decodeMs / (tokens - 1) / 1000)
  }

  /** Counts a request that was refused or failed. */
  observeFailure(): void {
    this.#failed.inc()
  }

  /** Tokens of texts that were scored or embedded. */
  observePrompt(tokens: number): void {
    this.#promptTokens.inc(tokens)
  }

  /** GET /metrics */
  async response(): Promise<ApiResponse> {
    const { contentType } = this.registry
    return { status: 200, headers: { 'content-type': contentType }, body: await this.registry.metrics() }
  }
}
