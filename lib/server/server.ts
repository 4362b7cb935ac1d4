/**
 * The server without a transport: a request in, an answer out. The front ends (Fastify, fetch, Node) are thin over it.
 * @module
 */
import { basename } from 'node:path'
import {
  bundledModel,
  Gemma,
  type GemmaOptions,
  type Generation,
  LapidaryError,
  type RemoteImageOptions,
  RemoteImages,
} from '../index.ts'
import { ApiError, apiErrorOf } from './api-error.ts'
import { ApiKeys } from './api-keys.ts'
import { type Call, now, type ServedModel } from './call.ts'
import { chatCompletions } from './chat-completions.ts'
import { completions } from './completions.ts'
import { type CorsOption, corsHeaders, preflight } from './cors.ts'
import { embeddings } from './embeddings.ts'
import { describe, Fields } from './fields.ts'
import { type ApiRequest, type ApiResponse, errorResponse, jsonResponse, readJson } from './http.ts'
import { withoutImageBytes } from './images.ts'
import { Lifetime } from './lifetime.ts'
import { Metrics } from './metrics.ts'
import { responses } from './responses.ts'
import { detokenize, tokenize } from './tokens.ts'
import { type Span, startSpan } from './tracing.ts'

/** A model to serve. */
export interface ModelEntry extends GemmaOptions {
  /** A .gguf file or a Hugging Face folder, loaded and disposed by the server; or a model, which stays the caller's. */
  readonly model: string | Gemma
  /** What requests call it. Default: the name of the file or folder, without .gguf. */
  readonly id?: string
}

/** Where lines about failures go; what Fastify's and pino's loggers are. */
export interface ServerLogger {
  /** What a running server is worth knowing for. */
  info(details: object, message: string): void
  /** What went wrong. */
  error(details: object, message: string): void
}

/** Options of a server. Those of a model (context length, keys and values, …) stand beside them. */
export interface ServerOptions extends GemmaOptions {
  /** The model, as in {@link ModelEntry}. Default: the bundled one. */
  readonly model?: string | Gemma | undefined
  /** What requests call it. */
  readonly id?: string | undefined
  /** More models: an EmbeddingGemma beside a chat model, for one. */
  readonly models?: readonly ModelEntry[] | undefined
  /** Accept any name for a model, and take the first that does what is asked. Default false: unknown names are 404. */
  readonly anyModelName?: boolean | undefined
  /** Keys of which a request must bring one. Default: none, everybody is served. `/health`, `/ready` and `/metrics` need none. */
  readonly apiKeys?: readonly string[] | undefined
  /** The most bytes of a request: images as data URLs are a third longer than their files. Default 32 MiB, five photos of 5 MB. */
  readonly bodyLimit?: number | undefined
  /**
   * Whether requests may name images by http(s) URL, which the server then fetches: which hosts, how much, how long. `true` means the limits of
   * `RemoteImages`: `https:`, public addresses only, 16 MiB, 10 s, 3 redirects. Default false: images come as data URLs.
   */
  readonly remoteImages?: boolean | RemoteImageOptions | undefined
  /** Milliseconds that an answer may take, waiting included; 0: any. Default 600,000. */
  readonly requestTimeout?: number | undefined
  /** Pages of which origins may send requests. Default false: none. */
  readonly cors?: CorsOption | undefined
  /** What names of metrics begin with. Default `lapidary:`; `vllm:` serves dashboards and gateways made for vLLM. */
  readonly metricsPrefix?: string | undefined
  /** Told of failures. Default: nobody. */
  readonly logger?: ServerLogger | undefined
  /** Whether the logger is given the bodies of requests. Default false. */
  readonly logPrompts?: boolean | undefined
}

type Handler = (call: Call) => Promise<ApiResponse>

const postHandlers: Readonly<Record<string, Handler>> = {
  '/v1/chat/completions': chatCompletions,
  '/v1/completions': completions,
  '/v1/embeddings': embeddings,
  '/v1/responses': responses,
  '/tokenize': tokenize,
  '/detokenize': detokenize,
}

const openPaths = new Set(['/health', '/ready', '/metrics'])
const retryAfterLoading = { 'retry-after': '2' }

/**
 * Serves models with OpenAI's protocol. It loads them when made; until then `/ready` and all requests are answered with 503.
 *
 * @example
 * const server = new LapidaryServer({ model: 'gemma-3-4b-it-q4_0.gguf' })
 * await server.loaded
 * const { status, body } = await server.handle(request)
 */
export class LapidaryServer implements AsyncDisposable {
  /** Resolves when all models are there; rejects if one could not be loaded. */
  readonly loaded: Promise<void>
  readonly metrics: Metrics
  readonly #options: ServerOptions
  readonly #keys: ApiKeys
  readonly #bodyLimit: number
  readonly #remoteImages: RemoteImages | undefined
  readonly #models: ServedModel[] = []
  /** Those to dispose. */
  readonly #owned: Gemma[] = []
  readonly #active = new Set<Lifetime>()
  readonly #loading = new AbortController()
  readonly #idle: (() => void)[] = []
  #failure: unknown
  #ready = false
  #closing = false
  #closed: Promise<void> | undefined

  /** @throws ERR_INVALID_ARGUMENT for options of remote images that are out of range. */
  constructor(options: ServerOptions = {}) {
    this.#options = options
    this.#keys = new ApiKeys(options.apiKeys ?? [])
    this.#bodyLimit = options.bodyLimit ?? 2 ** 25
    this.#remoteImages = remoteImagesOf(options.remoteImages)
    this.metrics = new Metrics(this.#models, options.metricsPrefix)
    this.loaded = this.#load()
    // Whoever does not wait for it learns of it by /ready.
    this.loaded.catch(() => {})
  }

  /** The models by name, once they are loaded. */
  get models(): readonly ServedModel[] {
    return this.#models
  }

  /** The first model, for use beside the server. @throws ERR_BUSY while it is loading. */
  get gemma(): Gemma {
    const first = this.#models[0]
    if (first) return first.gemma
    throw new LapidaryError('ERR_BUSY', 'server: the model is not loaded yet: await server.loaded')
  }

  /** Requests being answered. */
  get active(): number {
    return this.#active.size
  }

  /** Answers a request. Never throws; what goes wrong is an answer too. */
  async handle(request: ApiRequest): Promise<ApiResponse> {
    const { cors = false } = this.#options
    const asked = preflight(cors, request)
    if (asked) return asked
    const response = await this.#answer(request)
    const allowed = corsHeaders(cors, request)
    return { ...response, headers: { ...response.headers, ...allowed } }
  }

  /**
   * Takes nothing more, waits until what is being answered is done, at most so long, ends the rest, and disposes the models that
   * it loaded. Safe at any moment, also twice.
   * @param deadline In milliseconds. Default 0: everything ends now.
   */
  async close(deadline = 0): Promise<void> {
    this.#closed ??= this.#close(deadline)
    await this.#closed
  }

  /** As `close`: waits for what runs, and disposes of what this server loaded. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(deadline: number): Promise<void> {
    this.#closing = true
    this.#loading.abort()
    if (deadline > 0) await this.#untilIdle(deadline)
    for (const lifetime of this.#active) lifetime.end('closing')
    // What ended early still says so to its client.
    await this.#untilIdle(1000)
    await this.loaded.catch(() => {})
    for (const gemma of this.#owned) await gemma[Symbol.asyncDispose]()
  }

  async #untilIdle(milliseconds: number): Promise<void> {
    if (this.#active.size === 0) return
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, milliseconds)
      this.#idle.push(() => {
        clearTimeout(timer)
        resolve()
      })
    })
  }

  async #load(): Promise<void> {
    const { model = bundledModel, id, models = [], ...gemmaOptions } = this.#options
    const first = { ...gemmaOptions, model, ...(id !== undefined && { id }) }
    try {
      for (const entry of [first, ...models]) await this.#loadOne(entry)
      this.#ready = true
    } catch (error) {
      this.#failure = error
      this.#options.logger?.error({ err: error }, 'a model could not be loaded')
      throw error
    }
  }

  async #loadOne({ model, id, ...options }: ModelEntry): Promise<void> {
    const own = !(model instanceof Gemma)
    const gemma = own ? await Gemma.load(model, { ...options, signal: this.#loading.signal }) : model
    if (own) this.#owned.push(gemma)
    const name = id ?? basename(gemma.info().path).replace(/\.gguf$/, '')
    if (this.#models.some((served) => served.id === name)) {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `server: models: expected different names, got ${name} twice`)
    }
    this.#models.push({ id: name, gemma, created: now() })
  }

  async #answer(request: ApiRequest): Promise<ApiResponse> {
    const { method, path } = request
    try {
      if (!openPaths.has(path)) this.#keys.check(request.header('authorization'))
      if (method === 'POST') {
        const handler = Object.hasOwn(postHandlers, path) ? postHandlers[path] : undefined
        if (handler) return await this.#run(request, handler)
      } else if (method === 'GET' || method === 'HEAD') {
        const response = await this.#get(path)
        if (response) return response
      }
      throw this.#unknown(method, path)
    } catch (error) {
      return this.#failed(error, request)
    }
  }

  #failed(error: unknown, { method, path }: ApiRequest): ApiResponse {
    const answer = apiErrorOf(error)
    if (answer.status >= 500 && answer.status !== 503) {
      this.#options.logger?.error({ err: answer.cause ?? answer, method, path }, 'a request failed')
    }
    return errorResponse(answer)
  }

  #unknown(method: string, path: string): ApiError {
    const posts = Object.hasOwn(postHandlers, path)
    const gets = openPaths.has(path) || /^\/v1\/models(?:\/|$)/.test(path)
    const shown = `${method.slice(0, 20)} ${path.slice(0, 200)}`
    if (!posts && !gets) return new ApiError(404, `unknown URL: ${shown}`, { code: 'unknown_url' })
    const allow = posts ? 'POST' : 'GET, HEAD'
    return new ApiError(405, `${shown}: expected ${allow}`, { code: 'method_not_allowed', headers: { allow } })
  }

  async #get(path: string): Promise<ApiResponse | undefined> {
    if (path === '/health') return jsonResponse({ status: 'ok' })
    if (path === '/ready') {
      if (this.#ready && !this.#closing) return jsonResponse({ status: 'ready' })
      return jsonResponse({ status: this.#status() }, 503, retryAfterLoading)
    }
    if (path === '/metrics') return await this.metrics.response()
    if (path === '/v1/models') return jsonResponse({ object: 'list', data: this.#models.map(modelObject) })
    const [, name] = /^\/v1\/models\/(.+)$/.exec(path) ?? []
    if (name === undefined) return undefined
    return jsonResponse(modelObject(this.#named(decodeName(name))))
  }

  #status(): string {
    return this.#closing ? 'closing' : this.#failure === undefined ? 'loading' : 'failed'
  }

  #checkServing(): void {
    if (this.#closing) {
      const headers = { 'retry-after': '1', connection: 'close' }
      throw new ApiError(503, 'the server is shutting down', { code: 'shutting_down', headers })
    }
    if (this.#ready) return
    const headers = retryAfterLoading
    if (this.#failure === undefined) throw new ApiError(503, 'the model is loading', { code: 'model_loading', headers })
    throw new ApiError(503, 'the model could not be loaded', { code: 'model_failed' })
  }

  #named(name: string): ServedModel {
    const model = this.#models.find(({ id }) => id === name)
    if (model) return model
    const problem = `The model ${JSON.stringify(name.slice(0, 100))} does not exist. GET /v1/models lists those there are.`
    throw new ApiError(404, problem, { param: 'model', code: 'model_not_found' })
  }

  /** Runs an endpoint, from its first byte to its last. */
  async #run(request: ApiRequest, handler: Handler): Promise<ApiResponse> {
    this.#checkServing()
    const { requestTimeout = 600_000, logPrompts = false, logger } = this.#options
    const lifetime = new Lifetime(request.signal, requestTimeout)
    this.#active.add(lifetime)
    const span = startSpan(request)
    const finished = this.metrics.begin(request.path)
    const end = (status: number): void => {
      if (!this.#active.delete(lifetime)) return
      lifetime[Symbol.dispose]()
      span.end(status, lifetime.ending)
      finished(status, lifetime.ending)
      if (this.#active.size === 0) for (const tell of this.#idle.splice(0)) tell()
    }
    try {
      const json = await readJson(request, this.#bodyLimit)
      if (logPrompts) logger?.info({ path: request.path, body: withoutImageBytes(json) }, 'request')
      const body = new Fields(json)
      const response = await handler(this.#call(body, lifetime, span))
      if (typeof response.body === 'string') {
        end(response.status)
        return response
      }
      return { ...response, body: untilDone(response.body, () => end(response.status)) }
    } catch (error) {
      // What an early end makes of the work in hand is not what the client is told.
      const response = this.#failed(lifetime.ending === undefined ? error : endingOf(lifetime), request)
      end(response.status)
      return response
    }
  }

  #call(body: Fields, lifetime: Lifetime, span: Span): Call {
    const began = performance.now()
    return {
      body,
      lifetime,
      remoteImages: this.#remoteImages,
      bodyLimit: this.#bodyLimit,
      model: (kind) => {
        const served = this.#modelOf(body, kind)
        span.model(served.id)
        return served
      },
      observe: (generation: Generation, isFirst: boolean) => {
        generation.result.then(
          (result) => {
            this.metrics.observe(result, performance.now() - began)
            span.observe(result, isFirst)
          },
          () => this.metrics.observeFailure(),
        )
      },
      observePrompt: (tokens) => {
        this.metrics.observePrompt(tokens)
        span.observePrompt(tokens)
      },
    }
  }

  #modelOf(body: Fields, kind: 'text' | 'embedding' | 'any'): ServedModel {
    const fits = ({ gemma }: ServedModel): boolean =>
      kind === 'any' || gemma.config.bidirectional === (kind === 'embedding')
    const name = body.string('model')
    const named = name === undefined ? undefined : this.#models.find(({ id }) => id === name)
    const free = name === undefined || this.#options.anyModelName === true
    const model = named ?? (free ? (this.#models.find(fits) ?? this.#models[0]) : this.#named(name as string))
    if (model && fits(model)) return model
    const problem =
      kind === 'embedding'
        ? 'generates text; embeddings need an EmbeddingGemma model'
        : 'embeds texts; it generates none'
    throw new ApiError(400, `model: ${model?.id} ${problem}`, { param: 'model', code: 'model_not_supported' })
  }
}

function remoteImagesOf(option: unknown): RemoteImages | undefined {
  if (option === undefined || option === false) return undefined
  if (option === true) return new RemoteImages()
  if (typeof option === 'object' && option !== null) return new RemoteImages(option)
  const problem = `server: remoteImages: expected true, false or options, got ${describe(option)}`
  throw new LapidaryError('ERR_INVALID_ARGUMENT', problem)
}

function endingOf(lifetime: Lifetime): unknown {
  try {
    lifetime.check()
    return undefined
  } catch (error) {
    return error
  }
}

function modelObject({ id, created, gemma }: ServedModel): object {
  return { id, object: 'model', created, owned_by: 'lapidary', max_model_len: gemma.contextLength }
}

function decodeName(name: string): string {
  try {
    return decodeURIComponent(name)
  } catch {
    return name
  }
}

/** The events, and a word when they are over, read to the end or not. */
function untilDone(events: AsyncIterable<string>, done: () => void): AsyncIterable<string> {
  const iterator = events[Symbol.asyncIterator]()
  const over = <T>(value: T): T => {
    done()
    return value
  }
  return {
    [Symbol.asyncIterator]: () => ({
      next: async () => {
        try {
          const result = await iterator.next()
          return result.done ? over(result) : result
        } catch (error) {
          done()
          throw error
        }
      },
      return: async () => {
        done()
        await iterator.return?.()
        return { done: true, value: undefined }
      },
    }),
  }
}
