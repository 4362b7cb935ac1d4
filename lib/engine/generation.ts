/**
 * A generation in progress: its pieces as they come, and its result.
 * @module
 */
import { LapidaryError } from '../errors.ts'
import type { StreamDecoder } from '../tokenizer/stream-decoder.ts'
import type { Engine } from './engine.ts'
import type { TokenConstraint } from './grammar.ts'
import type { ImageRun } from './image-runs.ts'
import type { SamplingSettings } from './sampler.ts'
import type { FinishReason, Sequence, TokenLogprobs } from './sequence.ts'
import { StopStrings } from './stop-strings.ts'

/** What one token adds. */
export interface Piece {
  /** May be empty: characters whose bytes have not all come, and possible beginnings of a stop string, are held back. */
  readonly text: string
  /** The token. The last piece, of what was held back at the end, has none. */
  readonly ids: readonly number[]
  /** One per id, if asked for. */
  readonly logprobs?: readonly TokenLogprobs[]
}

/** A finished generation. */
export interface GenerationResult {
  /** Without the stop string. */
  readonly text: string
  /** The generated tokens, without the stop token; with those of a stop string. */
  readonly ids: readonly number[]
  readonly finishReason: FinishReason
  readonly promptTokens: number
  /** Tokens of the prompt whose keys and values an earlier request had left. */
  readonly cachedTokens: number
  /** Generated. */
  readonly tokens: number
  readonly timings: GenerationTimings
  /** One per id, if asked for. */
  readonly logprobs?: readonly TokenLogprobs[]
}

/** In milliseconds. */
export interface GenerationTimings {
  /** From the request to its admission to the batch; images are read and encoded before it. */
  readonly queueMs: number
  /** Of that, reading and encoding images; 0 without. */
  readonly imageMs: number
  /** From there to the first token. */
  readonly prefillMs: number
  /** From the first token to the end. */
  readonly decodeMs: number
  readonly totalMs: number
}

/** @internal A prompt that is ready to be computed. */
export interface ReadyPrompt {
  readonly ids: Int32Array
  readonly images?: readonly ImageRun[] | undefined
}

/** @internal What a generation is started with; everything checked. */
export interface GenerationRequest {
  /** With images: a function that makes them ready. It rejects soon after its signal. */
  readonly prompt: Int32Array | ((signal: AbortSignal) => Promise<ReadyPrompt>)
  readonly maxTokens: number
  readonly sampling: SamplingSettings
  readonly stopTokens: ReadonlySet<number>
  readonly stop: readonly string[]
  readonly constraint: TokenConstraint | undefined
  readonly priority: number
  readonly signal: AbortSignal | undefined
  readonly decoder: StreamDecoder
}

interface Waiter {
  readonly resolve: (result: IteratorResult<Piece, undefined>) => void
  readonly reject: (error: unknown) => void
}

/**
 * Text being generated. It runs from the moment it is made, iterated or not; leaving the loop early ends it.
 *
 * @example
 * const generation = gemma.stream('Once upon a time')
 * for await (const { text } of generation) process.stdout.write(text)
 * const { finishReason, tokens } = await generation.result
 */
export class Generation implements AsyncIterable<Piece> {
  /** Everything together, at the end. Rejects if the request failed; a request that was aborted resolves with what it has. */
  readonly result: Promise<GenerationResult>
  /**
   * Resolves when the prompt is complete and queued: at once for text, when all images are read and encoded for others. Rejects as `result`
   * does if it never comes to that; an abort resolves it. What is wrong with an image is known here, before there is a piece.
   */
  readonly ready: Promise<void>
  readonly #engine: Engine
  /** Undefined while images are made ready, and after the end: soft tokens of images need not last as long as their answer. */
  #sequence: Sequence | undefined
  readonly #preparation = new AbortController()
  readonly #requestedAt: number = performance.now()
  readonly #request: GenerationRequest
  readonly #stops: StopStrings
  readonly #onAbort = (): void => this.cancel()
  readonly #pieces: Piece[] = []
  readonly #waiters: Waiter[] = []
  readonly #ids: number[] = []
  readonly #logprobs: TokenLogprobs[] = []
  #text = ''
  #settle: { resolve: (result: GenerationResult) => void; reject: (error: unknown) => void }
  #settleReady: { resolve: () => void; reject: (error: unknown) => void }
  #ended = false
  #failure: { readonly error: unknown } | undefined

  /** @internal */
  constructor(engine: Engine, request: GenerationRequest) {
    this.#engine = engine
    this.#request = request
    this.#stops = new StopStrings(request.stop)
    this.#settle = { resolve: () => {}, reject: () => {} }
    this.result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
    this.#settleReady = { resolve: () => {}, reject: () => {} }
    this.ready = new Promise((resolve, reject) => {
      this.#settleReady = { resolve, reject }
    })
    // Whoever only iterates learns of a failure there.
    this.result.catch(() => {})
    this.ready.catch(() => {})
    const { prompt, signal } = request
    if (typeof prompt === 'function') void this.#prepare(prompt)
    else this.#submit({ ids: prompt })
    if (signal?.aborted) this.cancel()
    else signal?.addEventListener('abort', this.#onAbort, { once: true })
  }

  /** Ends the generation now, with finish reason `abort`. Nothing happens if it has ended. */
  cancel(): void {
    if (this.#sequence) this.#engine.abort(this.#sequence)
    else if (!this.#ended) {
      this.#preparation.abort()
      this.#finish('abort')
    }
  }

  /** Submits the prompt once its images are ready, unless the generation has ended by then. */
  async #prepare(prepare: (signal: AbortSignal) => Promise<ReadyPrompt>): Promise<void> {
    try {
      const prompt = await prepare(this.#preparation.signal)
      if (!this.#ended) this.#submit(prompt)
    } catch (error) {
      if (!this.#ended) this.#fail(error)
    }
  }

  #submit({ ids, images }: ReadyPrompt): void {
    const { maxTokens, sampling, stopTokens, constraint, priority } = this.#request
    this.#sequence = this.#engine.submit({
      prompt: ids,
      images,
      maxTokens,
      sampling,
      stopTokens,
      constraint,
      priority,
      onToken: (id, logprobs) => this.#take(id, logprobs),
      onFinish: (reason) => this.#finish(reason),
      onError: (error) => this.#fail(error),
    })
    this.#settleReady.resolve()
  }

  /** The pieces, from the first one not yet taken. There is one sequence of pieces, however often this is called. */
  [Symbol.asyncIterator](): AsyncIterator<Piece, undefined> {
    return {
      next: () => this.#next(),
      return: async () => {
        this.cancel()
        this.#pieces.length = 0
        return { done: true, value: undefined }
      },
    }
  }

  #next(): Promise<IteratorResult<Piece, undefined>> {
    const value = this.#pieces.shift()
    if (value) return Promise.resolve({ done: false, value })
    if (this.#failure) return Promise.reject(this.#failure.error)
    if (this.#ended) return Promise.resolve({ done: true, value: undefined })
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }))
  }

  #take(id: number, logprobs: TokenLogprobs | undefined): boolean {
    this.#ids.push(id)
    if (logprobs) this.#logprobs.push(logprobs)
    const { text, stopped } = this.#stops.push(this.#request.decoder.push(id))
    this.#emit({ text, ids: [id], ...(logprobs && { logprobs: [logprobs] }) })
    return stopped
  }

  #emit(piece: Piece): void {
    this.#text += piece.text
    const waiter = this.#waiters.shift()
    if (waiter) waiter.resolve({ done: false, value: piece })
    else this.#pieces.push(piece)
  }

  #finish(finishReason: FinishReason): void {
    const { decoder, sampling } = this.#request
    const sequence = this.#sequence
    const { text, stopped } = this.#stops.push(decoder.end())
    const rest = stopped ? text : text + this.#stops.end()
    if (rest !== '') this.#emit({ text: rest, ids: [] })
    this.#end()
    this.#settleReady.resolve()
    const end = performance.now()
    const submitted = sequence?.submittedAt ?? end
    const admitted = sequence?.admittedAt || end
    const first = sequence?.firstTokenAt || end
    this.#settle.resolve({
      text: this.#text,
      ids: this.#ids,
      finishReason,
      promptTokens: sequence?.promptLength ?? 0,
      cachedTokens: sequence?.cachedTokens ?? 0,
      tokens: this.#ids.length,
      timings: {
        queueMs: admitted - this.#requestedAt,
        imageMs: typeof this.#request.prompt === 'function' ? submitted - this.#requestedAt : 0,
        prefillMs: first - admitted,
        decodeMs: end - first,
        totalMs: end - this.#requestedAt,
      },
      ...(sampling.logprobs !== undefined && { logprobs: this.#logprobs }),
    })
    for (const waiter of this.#waiters.splice(0)) waiter.resolve({ done: true, value: undefined })
  }

  #fail(error: unknown): void {
    // Each failed request has an error of its own: several may share the cause.
    const own =
      error instanceof LapidaryError
        ? new LapidaryError(error.code, error.message, { cause: error, images: error.images })
        : error
    this.#failure = { error: own }
    this.#end()
    this.#settleReady.reject(own)
    this.#settle.reject(own)
    for (const waiter of this.#waiters.splice(0)) waiter.reject(own)
  }

  #end(): void {
    this.#ended = true
    this.#sequence = undefined
    this.#request.signal?.removeEventListener('abort', this.#onAbort)
  }
}
