/**
 * `lapidary/ai-sdk`: Gemma as a provider of the AI SDK, in the process that asks. Specification V3 (ai 6) and V4 (ai 7). Of
 * `@ai-sdk/provider` only types are used: nothing of it is loaded.
 *
 * @example
 * import { generateText } from 'ai'
 * import { Gemma } from 'lapidary'
 * import { createLapidary } from 'lapidary/ai-sdk'
 *
 * const lapidary = createLapidary({ gemma: await Gemma.load('gemma-3-4b-it-q4_0.gguf') })
 * const { text } = await generateText({ model: lapidary('gemma'), prompt: 'Why is the sky blue?' })
 * @module
 */
import { randomUUID } from 'node:crypto'
import type {
  EmbeddingModelV3,
  EmbeddingModelV3CallOptions,
  EmbeddingModelV3Result,
  JSONObject,
  LanguageModelV3,
  LanguageModelV3File,
  LanguageModelV3FinishReason,
  LanguageModelV3GenerateResult,
  LanguageModelV3Source,
  LanguageModelV3StreamPart,
  LanguageModelV3StreamResult,
  LanguageModelV3Text,
  LanguageModelV3ToolCall,
  LanguageModelV3Usage,
  SharedV3ProviderMetadata,
  SharedV3Warning,
} from '@ai-sdk/provider'
import { describeValue, LapidaryError } from '../errors.ts'
import type { Gemma } from '../index.ts'
import { type CallOptions, formatOf, generateOptionsOf, messagesOf, toolUseOf, warningsOf } from './ai-sdk-prompt.ts'
import { type ChatAnswer, type ChatEvent, expectGemma, startChat } from './chat.ts'

/** What these models answer: parts of which both specifications have the same notion. */
type Content = LanguageModelV3Text | LanguageModelV3ToolCall
type StreamPart = Exclude<
  LanguageModelV3StreamPart,
  LanguageModelV3File | LanguageModelV3Source | { type: 'tool-result' }
>
type GenerateResult = LanguageModelV3GenerateResult & { content: Content[] }
type StreamResult = LanguageModelV3StreamResult & { stream: ReadableStream<StreamPart> }

/** A language model, but for the number of its specification. */
abstract class LanguageModel {
  readonly provider = 'lapidary'
  readonly modelId: string
  /** None: text models take no files, by address or otherwise. */
  readonly supportedUrls: Record<string, RegExp[]> = {}
  readonly #gemma: Gemma

  /** @param modelId What it is called in responses and telemetry. Default: the architecture. */
  constructor(gemma: Gemma, modelId?: string) {
    this.#gemma = expectGemma(gemma)
    this.modelId = modelId ?? gemma.config.architecture
  }

  /** @throws (rejects) ERR_INVALID_ARGUMENT, ERR_BUSY, ERR_DISPOSED; what the caller's signal was aborted with. */
  async doGenerate(options: CallOptions): Promise<GenerateResult> {
    const { answer, warnings, response } = await this.#start(options)
    const content: Content[] = []
    for await (const part of streamParts(answer)) {
      if (part.type === 'text-start') content.push({ type: 'text', text: '' })
      else if (part.type === 'text-delta') (content.at(-1) as { text: string }).text += part.delta
      else if (part.type === 'tool-call') content.push(part)
      else if (part.type === 'finish') {
        const { usage, finishReason, providerMetadata } = part
        return { content, usage, finishReason, ...(providerMetadata && { providerMetadata }), response, warnings }
      }
    }
    throw new LapidaryError('ERR_INTERNAL', 'ai-sdk: expected an answer to have an end')
  }

  /** @throws (rejects) As `doGenerate`. What fails later errors the stream. */
  async doStream(options: CallOptions): Promise<StreamResult> {
    const { answer, warnings, response } = await this.#start(options)
    const parts = streamParts(answer)
    const stream = new ReadableStream<StreamPart>({
      start(controller) {
        controller.enqueue({ type: 'stream-start', warnings })
        controller.enqueue({ type: 'response-metadata', ...response })
      },
      async pull(controller) {
        const { done, value } = await parts.next()
        if (done) controller.close()
        else controller.enqueue(value)
      },
      cancel() {
        answer.cancel()
      },
    })
    return { stream }
  }

  async #start(options: CallOptions): Promise<{
    answer: ChatAnswer
    warnings: SharedV3Warning[]
    response: { id: string; timestamp: Date; modelId: string }
  }> {
    const answer = await startChat(this.#gemma, {
      messages: messagesOf(options.prompt),
      tools: toolUseOf(options),
      format: formatOf(options),
      options: generateOptionsOf(options),
    })
    return {
      answer,
      warnings: warningsOf(options),
      response: { id: randomUUID(), timestamp: new Date(), modelId: this.modelId },
    }
  }
}

/** An answer in the parts that a stream is made of. Blocks of text, and calls, follow one another. */
async function* streamParts(answer: ChatAnswer): AsyncGenerator<StreamPart, undefined> {
  let blocks = 0
  let text: string | undefined
  let call: { readonly id: string; readonly name: string; input: string } | undefined
  function* close(): Generator<StreamPart> {
    if (text !== undefined) yield { type: 'text-end', id: text }
    if (call) {
      const { id, name, input } = call
      yield { type: 'tool-input-end', id }
      yield { type: 'tool-call', toolCallId: id, toolName: name, input }
    }
    text = undefined
    call = undefined
  }
  for await (const event of answer) {
    switch (event.type) {
      case 'text':
        if (event.text === '') break
        if (text === undefined) {
          yield* close()
          text = String(blocks++)
          yield { type: 'text-start', id: text }
        }
        yield { type: 'text-delta', id: text, delta: event.text }
        break
      case 'call':
        yield* close()
        call = { id: event.id, name: event.name, input: '' }
        yield { type: 'tool-input-start', id: call.id, toolName: call.name }
        break
      case 'arguments':
        if (!call) break
        call.input += event.text
        yield { type: 'tool-input-delta', id: call.id, delta: event.text }
        break
      case 'finish':
        yield* close()
        yield { type: 'finish', ...endOf(event) }
    }
  }
  return undefined
}

function endOf({ result, reason }: Extract<ChatEvent, { type: 'finish' }>): {
  usage: LanguageModelV3Usage
  finishReason: LanguageModelV3FinishReason
  providerMetadata: SharedV3ProviderMetadata
} {
  const { finishReason: raw, promptTokens, cachedTokens, tokens, timings, logprobs } = result
  return {
    usage: {
      inputTokens: {
        total: promptTokens,
        noCache: promptTokens - cachedTokens,
        cacheRead: cachedTokens,
        cacheWrite: undefined,
      },
      outputTokens: { total: tokens, text: tokens, reasoning: undefined },
    },
    finishReason: { unified: reason === 'tool_calls' ? 'tool-calls' : reason, raw },
    providerMetadata: {
      lapidary: { timings: { ...timings }, ...(logprobs && { logprobs: logprobs as unknown as JSONObject[] }) },
    },
  }
}

/** A model of specification V3: `ai` 6, and 7. */
export class LapidaryLanguageModel extends LanguageModel implements LanguageModelV3 {
  readonly specificationVersion = 'v3'
}

/** The same of specification V4: `ai` 7. */
export class LapidaryLanguageModelV4 extends LanguageModel {
  readonly specificationVersion = 'v4'
}

/** An embedding model, but for the number of its specification. */
abstract class EmbeddingModel {
  readonly provider = 'lapidary'
  readonly modelId: string
  /** They are computed in batches of the right size. */
  readonly maxEmbeddingsPerCall: number = Number.POSITIVE_INFINITY
  readonly supportsParallelCalls = true
  readonly #gemma: Gemma

  constructor(gemma: Gemma, modelId?: string) {
    this.#gemma = expectGemma(gemma)
    this.modelId = modelId ?? gemma.config.architecture
  }

  /** Texts as they are: a prefix such as `task: search result | query: ` is the caller's. @throws (rejects) As `gemma.embed`. */
  async doEmbed({ values, abortSignal }: EmbeddingModelV3CallOptions): Promise<EmbeddingModelV3Result> {
    abortSignal?.throwIfAborted()
    const vectors = await this.#gemma.embed(values)
    abortSignal?.throwIfAborted()
    const tokens = values.reduce((sum, text) => sum + this.#gemma.tokenizeForEmbedding(text).length, 0)
    return { embeddings: vectors.map((vector) => Array.from(vector)), usage: { tokens }, warnings: [] }
  }
}

/** An embedding model of specification V3: `ai` 6, and 7. */
export class LapidaryEmbeddingModel extends EmbeddingModel implements EmbeddingModelV3 {
  readonly specificationVersion = 'v3'
}

/** The same of specification V4: `ai` 7. */
export class LapidaryEmbeddingModelV4 extends EmbeddingModel {
  readonly specificationVersion = 'v4'
}

/** Models by the names under which they are asked for. */
export interface LapidaryProvider<Language, Embedding> {
  /** @throws ERR_INVALID_ARGUMENT if there is none of that name. */
  (modelId: string): Language
  /** The model of this name. */
  languageModel(modelId: string): Language
  /** The encoder of this name. */
  embeddingModel(modelId: string): Embedding
  /** Always throws: these models make no images. */
  imageModel(modelId: string): never
}

/** A provider of specification V3: AI SDK 6. */
export type LapidaryProviderV3 = LapidaryProvider<LapidaryLanguageModel, LapidaryEmbeddingModel> & {
  readonly specificationVersion: 'v3'
}

/** A provider of specification V4: AI SDK 7. */
export type LapidaryProviderV4 = LapidaryProvider<LapidaryLanguageModelV4, LapidaryEmbeddingModelV4> & {
  readonly specificationVersion: 'v4'
}

/**
 * A provider of loaded models, of specification V3, which `ai` 6 and 7 take. The models stay the caller's to dispose.
 * @param models By the names that callers use.
 * @example
 * const lapidary = createLapidary({ gemma: await Gemma.load('gemma-3-4b-it-q4_0.gguf') })
 * const result = streamText({ model: lapidary('gemma'), prompt: 'Why is the sky blue?' })
 */
export function createLapidary(models: Readonly<Record<string, Gemma>>): LapidaryProviderV3 {
  return provider('v3', models, LapidaryLanguageModel, LapidaryEmbeddingModel)
}

/** The same of specification V4. */
export function createLapidaryV4(models: Readonly<Record<string, Gemma>>): LapidaryProviderV4 {
  return provider('v4', models, LapidaryLanguageModelV4, LapidaryEmbeddingModelV4)
}

type ModelClass<T> = new (gemma: Gemma, modelId: string) => T

function provider<Version extends 'v3' | 'v4', Language, Embedding>(
  specificationVersion: Version,
  models: Readonly<Record<string, Gemma>>,
  Language: ModelClass<Language>,
  Embedding: ModelClass<Embedding>,
): LapidaryProvider<Language, Embedding> & { readonly specificationVersion: Version } {
  const known = new Map(Object.entries(models).map(([name, gemma]) => [name, expectGemma(gemma)]))
  const find = (modelId: string): Gemma => {
    const gemma = known.get(modelId)
    if (gemma) return gemma
    const names = [...known.keys()].join(', ') || 'none'
    throw new LapidaryError('ERR_INVALID_ARGUMENT', `model: expected one of ${names}, got ${describeValue(modelId)}`)
  }
  const languageModel = (modelId: string): Language => new Language(find(modelId), modelId)
  return Object.assign((modelId: string) => languageModel(modelId), {
    specificationVersion,
    languageModel,
    embeddingModel: (modelId: string) => new Embedding(find(modelId), modelId),
    imageModel: (modelId: string): never => {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `imageModel: Gemma makes no images (${describeValue(modelId)})`)
    },
  })
}
