/**
 * Gemma: a model, ready to be talked to.
 * @module
 */
import { fileURLToPath } from 'node:url'
import { type Checkpoint, openCheckpoint } from '../checkpoint/checkpoint.ts'
import { Device, type DeviceInfo } from '../device.ts'
import { describeValue, LapidaryError } from '../errors.ts'
import { type GemmaConfig, gemmaConfig } from '../models/gemma/config.ts'
import { encoder, encoderInput } from '../models/gemma/encoder.ts'
import { GemmaModel } from '../models/gemma/load.ts'
import { findVision, type VisionSearch } from '../models/siglip/find.ts'
import { scope } from '../scope.ts'
import type { Stream } from '../stream.ts'
import { type ChatMessage, ChatTemplate } from '../tokenizer/chat.ts'
import { type EncodeOptions, Tokenizer } from '../tokenizer/tokenizer.ts'
import { checkLimits, type ImageSource } from '../vision/image-source.ts'
import { type ContentPart, hasImagePart, hasImageParts, type ImagePart } from './content.ts'
import { Engine } from './engine.ts'
import { Generation, type GenerationRequest, type GenerationResult } from './generation.ts'
import { Grammar, type GrammarSource, Grammars } from './grammar.ts'
import { ImageReader } from './image-reader.ts'
import { KvCache, type KvMemory, kvMemory } from './kv-cache.ts'
import {
  checkIds,
  checkOptions,
  checkSignal,
  checkStop,
  checkStopTokens,
  type EngineSizes,
  engineSizes,
  type GemmaOptions,
  type GenerateOptions,
  type LogitsOptions,
  type PerplexityOptions,
  type ScoreOptions,
} from './options.ts'
import {
  maxLogprobs,
  numberOption,
  positiveInteger,
  resolveSampling,
  type SamplingDefaults,
  samplingDefaults,
} from './sampler.ts'
import { abortError, ScoreJob, scoreWindows } from './scoring.ts'
import type { TokenLogprobs } from './sequence.ts'
import { type ScoreKind, type Scores, StepRunner } from './step-runner.ts'

export type { ContentPart, ImagePart, VideoPart } from './content.ts'
export { Generation, type GenerationResult, type GenerationTimings, type Piece } from './generation.ts'
export { Grammar, type GrammarSource } from './grammar.ts'
export { type KvDType, type KvMemory, kvMemory } from './kv-cache.ts'
export type { GemmaOptions, GenerateOptions, LogitsOptions, PerplexityOptions, ScoreOptions } from './options.ts'
export type { SamplingDefaults, SamplingOptions } from './sampler.ts'
export type { FinishReason, TokenLogprobs } from './sequence.ts'

/** The checkpoint that comes with the package: a small model trained on public-domain prose. From lib/ and dist/ alike. */
export const bundledModel: string = fileURLToPath(new URL('../../models/tiny-q4_0.gguf', import.meta.url))

/** What a loaded model is. */
export interface GemmaInfo extends EngineSizes {
  readonly path: string
  readonly format: Checkpoint['format']
  readonly architecture: GemmaConfig['architecture']
  readonly activations: 'f32' | 'bf16'
  /** Of the packed matrices, in memory. */
  readonly weightBytes: number
  /** Whether they came from the packed cache. */
  readonly fromCache: boolean
  /** How it samples where the caller does not say. */
  readonly sampling: SamplingDefaults
  /** Keys and values of one full sequence. */
  readonly kvMemory: KvMemory
  /** Bytes of the KV cache: set aside, in use, and of these what only later prefixes may use. */
  readonly cache: { readonly reserved: number; readonly used: number; readonly cached: number }
  /** Requests now, and steps so far. */
  readonly engine: {
    readonly running: number
    readonly waiting: number
    readonly steps: number
    readonly preemptions: number
  }
  /** How it sees images; undefined: it does not. */
  readonly vision:
    | {
        /** The file or folder of the tower. */
        readonly path: string
        /** Pixels of a side: images are resized to a square. */
        readonly imageSize: number
        /** Soft tokens of an image. */
        readonly imageTokens: number
        /** Of the packed matrices, in memory; 0 until the first image comes. */
        readonly weightBytes: number
        /** Whether they came from the packed cache. */
        readonly fromCache: boolean
        /** Of the tower's intermediates, from the first image on. */
        readonly arenaBytes: number
      }
    | undefined
  /** Captured steps, and the memory of their intermediates. */
  readonly programs: { readonly programs: number; readonly arenaBytes: number }
  readonly device: DeviceInfo
}

/** The parts of a model that generates text. */
interface Decoder {
  readonly cache: KvCache
  readonly runner: StepRunner
  readonly engine: Engine
  /** Undefined where the model sees no images. */
  readonly images: ImageReader | undefined
}

/** Texts of one call of the encoder hold about so many tokens. */
const encoderBatchTokens = 2048

/**
 * A Gemma model: Gemma 1, 2 or 3 for text, Gemma 3 for images too, or EmbeddingGemma for vectors. Any number of requests may run at once; they share the
 * steps of one engine.
 *
 * @example
 * await using gemma = await Gemma.load()   // the bundled model
 * for await (const { text } of gemma.stream('Once upon a time', { maxTokens: 100 })) process.stdout.write(text)
 */
export class Gemma implements AsyncDisposable {
  readonly config: GemmaConfig
  readonly tokenizer: Tokenizer
  readonly #checkpoint: Checkpoint
  readonly #sizes: EngineSizes
  readonly #model: GemmaModel
  readonly #device: Device
  readonly #ownsDevice: boolean
  readonly #stream: Stream
  readonly #defaults: SamplingDefaults
  readonly #stopTokens: ReadonlySet<number>
  readonly #decoder: Decoder | undefined
  /** Why the tower that lies there does not run. */
  readonly #visionProblem: LapidaryError | undefined
  #template: ChatTemplate | undefined
  #grammars: Grammars | undefined
  /** Calls of the encoder in flight. */
  readonly #embedding = new Set<Promise<unknown>>()
  #disposal: Promise<void> | undefined

  private constructor(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    model: GemmaModel,
    device: Device,
    ownsDevice: boolean,
    options: GemmaOptions,
    vision: VisionSearch,
  ) {
    this.config = model.config
    this.tokenizer = tokenizer
    this.#checkpoint = checkpoint
    this.#model = model
    this.#device = device
    this.#ownsDevice = ownsDevice
    this.#sizes = engineSizes(options, model.config)
    this.#visionProblem = vision.problem
    this.#defaults = samplingDefaults(checkpoint, model.config.architecture)
    this.#stopTokens = modelStopTokens(checkpoint, tokenizer)
    this.#stream = device.createStream()
    this.#stream.wait(device.stream)
    try {
      this.#decoder = model.config.bidirectional ? undefined : this.#makeDecoder(options, vision)
    } catch (error) {
      this.#stream.dispose()
      throw error
    }
  }

  /**
   * Loads a model.
   * @param path A .gguf file, a Hugging Face folder, or a .safetensors file. Default: the bundled model.
   * @throws ERR_FILE, ERR_CHECKPOINT_CORRUPT, ERR_CHECKPOINT_UNSUPPORTED, ERR_INVALID_ARGUMENT, ERR_DEVICE_UNAVAILABLE,
   *   ERR_OUT_OF_MEMORY; ERR_ABORTED if options.signal is.
   * @example
   * const gemma = await Gemma.load('gemma-3-4b-it-q4_0.gguf', { contextLength: 32_768, kv: 'i8' })
   */
  static async load(path: string = bundledModel, options: GemmaOptions = {}): Promise<Gemma> {
    checkOptions(options)
    const signal = checkSignal(options.signal)
    if (signal?.aborted) throw abortError(signal)
    const checkpoint = await openCheckpoint(path)
    const tokenizer = await Tokenizer.load(checkpoint)
    const { device: given = 'cpu', threads, isa, unverified } = options
    if (typeof given !== 'string' && !(given instanceof Device)) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `device: expected a Device, 'cpu' or 'cuda', got ${describeValue(given)}`,
      )
    }
    const ownsDevice = typeof given === 'string'
    const device = ownsDevice
      ? await Device.open(given, {
          ...(threads !== undefined && { threads }),
          ...(isa !== undefined && { isa }),
          ...(unverified !== undefined && { unverified }),
        })
      : given
    let model: GemmaModel | undefined
    try {
      checkLimits(options.images)
      const vision = findVision(checkpoint, gemmaConfig(checkpoint), options.mmproj)
      model = await GemmaModel.load(device, checkpoint, options)
      if (signal?.aborted) throw abortError(signal)
      return new Gemma(checkpoint, tokenizer, model, device, ownsDevice, options, vision)
    } catch (error) {
      model?.dispose()
      if (ownsDevice) device.dispose()
      throw error
    }
  }

  /** The tokens that end an answer where the caller does not say: end of text and end of turn. */
  get stopTokens(): ReadonlySet<number> {
    return this.#stopTokens
  }

  /** The most tokens of prompt and answer together. */
  get contextLength(): number {
    return this.#sizes.contextLength
  }

  /** What is loaded, how much memory it takes, and what it is doing: asks everything, also the device. */
  info(): GemmaInfo {
    const { path, format } = this.#checkpoint
    const { contextLength, kv } = this.#sizes
    return {
      ...this.#sizes,
      path,
      format,
      architecture: this.config.architecture,
      activations: this.#model.activations,
      weightBytes: this.#model.weightBytes,
      fromCache: this.#model.fromCache,
      sampling: this.#defaults,
      kvMemory: kvMemory(this.config, contextLength, kv),
      cache: this.#decoder?.cache.memory() ?? { reserved: 0, used: 0, cached: 0 },
      engine: this.#decoder?.engine.info() ?? { running: 0, waiting: 0, steps: 0, preemptions: 0 },
      vision: this.#decoder?.images?.info(),
      programs: this.#decoder?.runner.info() ?? { programs: 0, arenaBytes: 0 },
      device: this.#device.info(),
    }
  }

  /** The ids of a text. Without options no bos token is put in front, and markers are recognised. */
  tokenize(text: string, options: EncodeOptions = {}): Int32Array {
    return this.tokenizer.encode(text, options)
  }

  /**
   * Continues a prompt. The generation begins at once, whether it is iterated or not.
   * @param prompt Text, in front of which the bos token is put; ids, taken as they are; or parts of text and images, as in a message.
   * @throws ERR_INVALID_ARGUMENT for a prompt that is empty or too long, ids outside the vocabulary, options out of range; ERR_BUSY if too
   *   many requests are waiting; ERR_DISPOSED.
   * @example
   * for await (const piece of gemma.stream('The king said', { temperature: 0.8, stop: '\n' })) process.stdout.write(piece.text)
   */
  stream(prompt: string | ArrayLike<number> | readonly ContentPart[], options: GenerateOptions = {}): Generation {
    checkOptions(options)
    if (hasImagePart(prompt)) {
      const images = this.#expectImages()
      return this.#start((signal) => images.prompt(prompt, options, signal), options)
    }
    this.#checkOpen()
    return this.#start(this.#ids(prompt, options.allowMarkers, this.#sizes.contextLength - 1), options)
  }

  #chatTemplate(): ChatTemplate {
    this.#expectDecoder()
    this.#template ??= ChatTemplate.for(this.#checkpoint, this.tokenizer)
    return this.#template
  }

  #start(prompt: GenerationRequest['prompt'], options: GenerateOptions): Generation {
    const { engine } = this.#expectDecoder()
    const { vocabularySize } = this.config
    const { stopTokens } = options
    return new Generation(engine, {
      prompt,
      maxTokens: numberOption('maxTokens', options.maxTokens, maxTokensRange, Number.POSITIVE_INFINITY),
      sampling: resolveSampling(options, this.#defaults, vocabularySize),
      stopTokens: stopTokens === undefined ? this.#stopTokens : checkStopTokens(stopTokens),
      stop: checkStop(options.stop),
      priority: numberOption('priority', options.priority, priorityRange, 0),
      signal: checkSignal(options.signal),
      decoder: this.tokenizer.decoder(),
      constraint: checkGrammar(options.grammar)?.begin(this.tokenizer),
    })
  }

  /**
   * Compiles a grammar for the `grammar` option of any number of generations. The last 64 are kept. That takes a thread of its own
   * milliseconds to a second, by the size of the source; the first one some more. Generations go on meanwhile.
   * @throws ERR_INVALID_ARGUMENT for a source that cannot be understood or is longer than 64 KiB.
   * @example
   * const grammar = await gemma.compileGrammar({ schema: { type: 'object', properties: { age: { type: 'integer' } }, required: ['age'] } })
   * const { text } = await gemma.chat(messages, { grammar }).result   // {"age": 42}
   */
  async compileGrammar(source: GrammarSource): Promise<Grammar> {
    this.#expectDecoder()
    this.#grammars ??= new Grammars(this.tokenizer, this.config.vocabularySize, this.#stopTokens)
    return await this.#grammars.compile(source)
  }

  /** Continues a prompt, and resolves to all of it. @throws (rejects) As `stream`; errors of the device. */
  async generate(
    prompt: string | ArrayLike<number> | readonly ContentPart[],
    options: GenerateOptions = {},
  ): Promise<GenerationResult> {
    return await this.stream(prompt, options).result
  }

  /**
   * Answers the last message of a conversation, in the model's own chat format. What earlier calls computed of the same
   * conversation is used again.
   * @throws As `stream`; ERR_INVALID_ARGUMENT for messages that the format does not allow.
   *
   * A message may hold images, and videos as frames with their times. They are read and encoded before the answer begins; what is wrong with
   * one is what `result` rejects with: ERR_INVALID_ARGUMENT (no image, too large, too many for the context), ERR_DATA_CORRUPT, ERR_FILE,
   * ERR_NATIVE_MISSING without the package sharp.
   * @example
   * for await (const piece of gemma.chat([{ role: 'user', content: 'Why is the sky blue?' }])) process.stdout.write(piece.text)
   * @example
   * const content = [{ type: 'image', image: 'photo.jpg' }, { type: 'text', text: 'What is this?' }]
   * const { text } = await gemma.chat([{ role: 'user', content }]).result
   */
  chat(messages: readonly ChatMessage<ContentPart>[], options: GenerateOptions = {}): Generation {
    checkOptions(options)
    if (!hasImageParts(messages)) {
      return this.stream(this.tokenizeChat(messages as readonly ChatMessage[], options), options)
    }
    const template = this.#chatTemplate()
    const images = this.#expectImages()
    return this.#start((signal) => images.chat(template, messages, options, signal), options)
  }

  /**
   * The ids of a conversation in the model's own chat format, up to where its answer begins: what `chat` computes.
   * @throws ERR_INVALID_ARGUMENT for messages that the format does not allow; ERR_DISPOSED.
   */
  tokenizeChat(
    messages: readonly ChatMessage[],
    options: { readonly allowMarkers?: boolean | undefined } = {},
  ): Int32Array {
    checkOptions(options)
    const { allowMarkers = false } = options
    return this.#chatTemplate().encode(messages, { generationPrompt: true, allowMarkers })
  }

  /**
   * The soft tokens of an image: what the text model reads in its place. They are kept for a while, so that a conversation about the image
   * begins sooner.
   * @returns f32 [imageTokens, hiddenSize]; with pan and scan one for each view, the whole image first.
   * @throws (rejects) what `chat` says of images; ERR_ABORTED.
   */
  async encodeImage(
    image: ImageSource,
    options: { readonly panAndScan?: ImagePart['panAndScan']; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<Float32Array[]> {
    checkOptions(options)
    const signal = checkSignal(options.signal)
    return await this.#expectImages().encode({ type: 'image', image, panAndScan: options.panAndScan }, signal)
  }

  /**
   * The scores of the token after each position: the model's own, before sampling settings.
   * @returns data f32 [rows, vocabulary]
   * @throws As `stream`; ERR_ABORTED.
   */
  async logits(
    prompt: string | ArrayLike<number>,
    options: LogitsOptions = {},
  ): Promise<{ data: Float32Array; rows: number; vocabulary: number }> {
    checkOptions(options)
    const vocabulary = this.config.vocabularySize
    const tokens = this.#ids(prompt, options.allowMarkers, this.#sizes.contextLength)
    const rows = Math.min(numberOption('rows', options.rows, positiveInteger, tokens.length), tokens.length)
    const data = new Float32Array(rows * vocabulary)
    let at = 0
    const window = { tokens, compute: tokens.length, from: tokens.length - rows }
    await this.#score('logits', [window], options.signal, ({ values }) => {
      data.set(values, at)
      at += values.length
    })
    return { data, rows, vocabulary }
  }

  /**
   * How probable each token of a text is after those before it.
   * @param text Text, in front of which the bos token is put; or ids, taken as they are. At most contextLength of them.
   * @returns One entry per token but the first.
   * @throws As `stream`; ERR_ABORTED.
   * @example
   * const scores = await gemma.score('The king is dead', { top: 5 })
   */
  async score(text: string | ArrayLike<number>, options: ScoreOptions = {}): Promise<TokenLogprobs[]> {
    checkOptions(options)
    const tokens = this.#ids(text, options.allowMarkers, this.#sizes.contextLength)
    const top = numberOption('top', options.top, topRange, 0)
    const result: TokenLogprobs[] = []
    if (tokens.length === 1) return result
    const window = { tokens, compute: tokens.length - 1, from: 0 }
    await this.#score(
      'logprobs',
      [window],
      options.signal,
      ({ values, topIds, topValues, top: width }) => {
        for (let row = 0; row < values.length; row++) {
          result.push({
            id: tokens[result.length + 1] as number,
            logprob: values[row] as number,
            top: Array.from({ length: Math.min(top, width) }, (_, index) => ({
              id: topIds[row * width + index] as number,
              logprob: topValues[row * width + index] as number,
            })),
          })
        }
      },
      top,
    )
    return result
  }

  /**
   * How well the model predicts a text: exp of the mean negative log probability of its tokens. The text, with bos in front, is cut into
   * windows that are scored each on its own.
   * @returns nll is the mean, in nats; tokens the number of tokens predicted.
   * @throws As `stream`; ERR_ABORTED.
   */
  async perplexity(
    text: string | ArrayLike<number>,
    options: PerplexityOptions = {},
  ): Promise<{ perplexity: number; tokens: number; nll: number }> {
    checkOptions(options)
    const limit = this.#sizes.contextLength
    const length = numberOption('contextLength', options.contextLength, windowRange(2, limit), Math.min(512, limit))
    const stride = numberOption('stride', options.stride, windowRange(1, length), length)
    const windows = scoreWindows(this.#ids(text, options.allowMarkers, Number.POSITIVE_INFINITY), length, stride)
    const total = windows.reduce((sum, { compute, from }) => sum + compute - from, 0)
    if (total === 0) {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', 'perplexity: text: expected at least one token to predict')
    }
    let sum = 0
    let tokens = 0
    await this.#score('logprobs', windows, options.signal, ({ values }) => {
      for (const score of values) sum -= score
      tokens += values.length
      options.onProgress?.(tokens, total)
    })
    return { perplexity: Math.exp(sum / tokens), tokens, nll: sum / tokens }
  }

  /**
   * One vector of length 1 for each text, or for ids, which are taken as they are. EmbeddingGemma only.
   * @throws (rejects) ERR_INVALID_ARGUMENT for other models, and for texts longer than the model's context.
   * @example
   * const [a, b] = await gemma.embed(['a cat', 'a small feline'])   // their dot product is the cosine
   */
  async embed(texts: readonly (string | ArrayLike<number>)[]): Promise<Float32Array[]> {
    this.#checkOpen()
    if (this.#decoder) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `embed: expected an embedding model, got ${this.config.architecture}: it generates text`,
      )
    }
    const work = this.#embed(texts)
    this.#embedding.add(work)
    try {
      return await work
    } finally {
      this.#embedding.delete(work)
    }
  }

  /** The ids that `embed` makes of a text, as the reference's tokenizer does: bos, text, eos. */
  tokenizeForEmbedding(text: string): Int32Array {
    return Int32Array.from([...this.tokenizer.encode(text, { bos: true, markers: false }), this.tokenizer.eos])
  }

  /** How many numbers a vector of `embed` has. */
  get embeddingSize(): number {
    return this.#model.dense.at(-1)?.shape[0] ?? this.config.hiddenSize
  }

  /** Ends what is running with ERR_DISPOSED, waits for the step in progress, and frees everything. Safe at any moment, also twice. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposal ??= this.#dispose()
    await this.#disposal
  }

  async #dispose(): Promise<void> {
    await this.#decoder?.engine[Symbol.asyncDispose]()
    await Promise.allSettled(this.#embedding)
    await this.#decoder?.images?.[Symbol.asyncDispose]()
    this.#decoder?.runner.dispose()
    this.#decoder?.cache.dispose()
    this.#model.dispose()
    this.#stream.dispose()
    if (this.#ownsDevice) this.#device.dispose()
  }

  #makeDecoder(options: GemmaOptions, { found: vision }: VisionSearch): Decoder {
    const { contextLength, maxSequences, maxQueue, kv, prefillChunk, pageTokens, cacheTokens, prefixCache } =
      this.#sizes
    const cache = new KvCache(this.#device, this.config, {
      dtype: kv,
      contextLength,
      // An image is computed in one step.
      chunk: Math.max(prefillChunk, vision?.config.imageTokens ?? 0),
      maxSequences,
      pageTokens,
      prefixCache,
      cacheTokens,
    })
    const runner = new StepRunner(this.#device, this.#stream, this.#model, cache, maxSequences)
    const engine = new Engine(cache.pages, runner, {
      contextLength,
      maxSequences,
      maxQueue,
      stepTokens: prefillChunk,
    })
    const images =
      vision &&
      new ImageReader(this.#device, this.#stream, engine, vision, this.tokenizer, {
        contextLength,
        limits: checkLimits(options.images),
        activations: this.#model.activations,
        weights: options.weights,
        packedCache: options.packedCache,
      })
    return { cache, runner, engine, images }
  }

  async #score(
    kind: ScoreKind,
    windows: ReturnType<typeof scoreWindows>,
    given: unknown,
    take: (scores: Scores) => void,
    top = 0,
  ): Promise<void> {
    const { engine, runner, cache } = this.#expectDecoder()
    const signal = checkSignal(given)
    const job = new ScoreJob(runner, cache.pages, kind, windows, {
      chunk: this.#sizes.prefillChunk,
      top,
      take,
      signal,
    })
    engine.run(job)
    await job.done
  }

  async #embed(texts: readonly (string | ArrayLike<number>)[]): Promise<Float32Array[]> {
    if (!Array.isArray(texts)) {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `embed: expected an array of texts, got ${describeValue(texts)}`)
    }
    const all = texts.map((text) => this.#encoderIds(text))
    const vectors: Float32Array[] = []
    for (let first = 0; first < all.length; ) {
      let end = first + 1
      let tokens = (all[first] as Int32Array).length
      while (end < all.length && tokens + (all[end] as Int32Array).length <= encoderBatchTokens) {
        tokens += (all[end++] as Int32Array).length
      }
      const batch = all.slice(first, end)
      using output = this.#stream.use(() =>
        scope(() => encoder(this.#model, encoderInput(this.#device, this.config, batch))),
      )
      const reading = this.#stream.use(() => output.read())
      const data = (await reading) as Float32Array
      const width = data.length / batch.length
      for (let index = 0; index < batch.length; index++) {
        vectors.push(data.slice(index * width, (index + 1) * width))
      }
      first = end
      this.#checkOpen()
    }
    return vectors
  }

  #encoderIds(text: string | ArrayLike<number>): Int32Array {
    const { contextLength } = this.#sizes
    if (typeof text !== 'string') return this.#ids(text, false, contextLength)
    const ids = this.tokenizeForEmbedding(text)
    if (ids.length > contextLength) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `embed: expected texts of at most ${contextLength} tokens, got one of ${ids.length}`,
      )
    }
    return ids
  }

  /** The ids of text or checked ids. */
  #ids(prompt: unknown, allowMarkers: boolean | undefined, limit: number): Int32Array {
    const { vocabularySize } = this.config
    if (typeof prompt === 'string') {
      const ids = this.tokenizer.encode(prompt, { bos: true, markers: allowMarkers ?? false })
      return checkIds(ids, vocabularySize, limit)
    }
    if (Array.isArray(prompt) || (ArrayBuffer.isView(prompt) && !(prompt instanceof DataView))) {
      return checkIds(prompt as ArrayLike<number>, vocabularySize, limit)
    }
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `prompt: expected a string or token ids, got ${describeValue(prompt)}`,
    )
  }

  #expectDecoder(): Decoder {
    this.#checkOpen()
    if (this.#decoder) return this.#decoder
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `expected a model that generates text, got ${this.config.architecture}: it embeds texts`,
    )
  }

  #expectImages(): ImageReader {
    const { images } = this.#expectDecoder()
    if (images) return images
    const problem = this.#visionProblem
    if (problem) throw new LapidaryError(problem.code, `image: ${problem.message}`, { cause: problem })
    const { path, format } = this.#checkpoint
    const file = format === 'gguf' ? 'an mmproj file beside it or as the option mmproj' : 'a vision tower in its files'
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `image: expected a model that sees images (Gemma 3 4B, 12B or 27B, with ${file}), got ${this.config.architecture} without: ${path}`,
    )
  }

  #checkOpen(): void {
    if (this.#disposal) throw new LapidaryError('ERR_DISPOSED', 'gemma: the model has been disposed')
  }
}

const maxTokensRange = {
  text: 'an integer of at least 1, or Infinity',
  holds: (value: number): boolean => value >= 1 && (Number.isInteger(value) || value === Number.POSITIVE_INFINITY),
}

const priorityRange = { text: 'a finite number', holds: Number.isFinite }

function checkGrammar(grammar: unknown): Grammar | undefined {
  if (grammar === undefined || grammar instanceof Grammar) return grammar
  throw new LapidaryError(
    'ERR_INVALID_ARGUMENT',
    `grammar: expected what gemma.compileGrammar gives, got ${describeValue(grammar)}`,
  )
}

const topRange = {
  text: `an integer from 0 to ${maxLogprobs}`,
  holds: (value: number): boolean => Number.isInteger(value) && value >= 0 && value <= maxLogprobs,
}

function windowRange(low: number, high: number): typeof maxTokensRange {
  return {
    text: `an integer from ${low} to ${high}`,
    holds: (value) => Number.isInteger(value) && value >= low && value <= high,
  }
}

/** The end-of-text and end-of-turn tokens: those of generation_config.json and of the tokenizer. */
function modelStopTokens(checkpoint: Checkpoint, tokenizer: Tokenizer): ReadonlySet<number> {
  const stored = checkpoint.generationConfig?.eos_token_id
  const listed = Array.isArray(stored) ? stored : [stored]
  const ids = [...listed, tokenizer.eos, tokenizer.endOfTurn]
  return new Set(ids.filter((id): id is number => Number.isInteger(id) && (id as number) >= 0))
}
