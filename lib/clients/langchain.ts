/**
 * `lapidary/langchain`: Gemma as a chat model and as embeddings of LangChain, in the process that asks. `@langchain/core` 1.x is the
 * caller's, an optional peer dependency.
 *
 * @example
 * import { Gemma } from 'lapidary'
 * import { ChatLapidary } from 'lapidary/langchain'
 *
 * const model = new ChatLapidary({ gemma: await Gemma.load('gemma-3-4b-it-q4_0.gguf'), temperature: 0 })
 * const answer = await model.invoke('Why is the sky blue?')
 * @module
 */
import type { CallbackManagerForLLMRun } from '@langchain/core/callbacks/manager'
import { Embeddings, type EmbeddingsParams } from '@langchain/core/embeddings'
import type { BaseLanguageModelInput, StructuredOutputMethodOptions } from '@langchain/core/language_models/base'
import {
  BaseChatModel,
  type BaseChatModelCallOptions,
  type BaseChatModelParams,
  type BindToolsInput,
  type LangSmithParams,
} from '@langchain/core/language_models/chat_models'
import {
  assembleStructuredOutputPipeline,
  createContentParser,
  createFunctionCallingParser,
} from '@langchain/core/language_models/structured_output'
import {
  type AIMessage,
  AIMessageChunk,
  type BaseMessage,
  type StandardMessageStructure,
  type UsageMetadata,
} from '@langchain/core/messages'
import type { InvalidToolCall, ToolCall } from '@langchain/core/messages/tool'
import { ChatGenerationChunk, type ChatResult } from '@langchain/core/outputs'
import type { Runnable } from '@langchain/core/runnables'
import { convertToOpenAITool } from '@langchain/core/utils/function_calling'
import { toJsonSchema } from '@langchain/core/utils/json_schema'
import { LapidaryError } from '../errors.ts'
import type { Gemma, GenerateOptions, GenerationTimings, SamplingOptions } from '../index.ts'
import { type ChatAnswer, type ChatEvent, expectGemma, startChat } from './chat.ts'
import { formatOf, messagesOf, toolUseOf } from './langchain-messages.ts'

/** How a {@link ChatLapidary} answers; each may be set at the model, or for one call. */
export interface ChatLapidarySettings extends SamplingOptions {
  /** Tokens of an answer at most. Default: as many as the context has room for. */
  readonly maxTokens?: number | undefined
}

export interface ChatLapidaryParams extends BaseChatModelParams, ChatLapidarySettings {
  /** It stays the caller's to dispose. */
  readonly gemma: Gemma
  /** What it is called in traces and response metadata. Default: the architecture. */
  readonly model?: string
  /** Texts that end an answer, for every call. */
  readonly stop?: readonly string[]
}

export interface ChatLapidaryCallOptions extends BaseChatModelCallOptions, ChatLapidarySettings {
  /** Set by `bindTools`. */
  tools?: BindToolsInput[]
  /** What the answer must look like: any JSON object, or one of a schema. Default: anything goes. */
  response_format?: { type: 'json_object' } | { type: 'json_schema'; json_schema: { schema: object } } | undefined
}

/** A schema of Zod, of another library of the Standard Schema, or JSON Schema itself. */
type OutputSchema<RunOutput extends Record<string, unknown>> = Parameters<typeof createContentParser<RunOutput>>[0]

/** The names of the settings, to tell them from LangChain's own. */
const settings = [
  'maxTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logitBias',
  'seed',
  'logprobs',
] as const satisfies readonly (keyof ChatLapidarySettings)[]

function pickSettings(from: ChatLapidarySettings): ChatLapidarySettings {
  return Object.fromEntries(settings.filter((name) => from[name] !== undefined).map((name) => [name, from[name]]))
}

/** A Gemma model as LangChain's chat model. Calls of several chains share the steps of one engine. */
export class ChatLapidary extends BaseChatModel<ChatLapidaryCallOptions, AIMessageChunk> {
  static override lc_name(): string {
    return 'ChatLapidary'
  }

  readonly model: string
  readonly settings: ChatLapidarySettings
  readonly stop: readonly string[]
  readonly #gemma: Gemma

  constructor(params: ChatLapidaryParams) {
    super(params)
    this.#gemma = expectGemma(params.gemma)
    this.model = params.model ?? params.gemma.config.architecture
    this.settings = pickSettings(params)
    this.stop = params.stop ?? []
  }

  /** The type that traces show. */
  override _llmType(): string {
    return 'lapidary'
  }

  /** What counts for tracing, and as the key of LangChain's cache: the model, and what makes its answers. */
  override invocationParams(options?: this['ParsedCallOptions']): Record<string, unknown> {
    const stop = [...this.stop, ...(options?.stop ?? [])]
    return { model: this.model, ...this.settings, ...pickSettings(options ?? {}), ...(stop.length > 0 && { stop }) }
  }

  override _identifyingParams(): Record<string, unknown> {
    return this.invocationParams()
  }

  /** What LangSmith is told of the model. */
  override getLsParams(options: this['ParsedCallOptions']): LangSmithParams {
    const { temperature, maxTokens } = { ...this.settings, ...pickSettings(options) }
    return {
      ls_provider: 'lapidary',
      ls_model_name: this.model,
      ls_model_type: 'chat',
      ...(temperature !== undefined && { ls_temperature: temperature }),
      ...(maxTokens !== undefined && { ls_max_tokens: maxTokens }),
      ...(options.stop && { ls_stop: options.stop }),
    }
  }

  /** The same model with functions it may call; `tool_choice` in `kwargs` says whether it must. */
  override bindTools(
    tools: BindToolsInput[],
    kwargs?: Partial<ChatLapidaryCallOptions>,
  ): Runnable<BaseLanguageModelInput, AIMessageChunk, ChatLapidaryCallOptions> {
    return this.withConfig({ tools: tools.map((tool) => convertToOpenAITool(tool)), ...kwargs })
  }

  /**
   * The same model with answers that are parsed. `method` is `jsonSchema` (the default: the answer can be nothing but JSON of the
   * schema), `functionCalling` (the arguments of a function that must be called) or `jsonMode` (any JSON object).
   * @throws ERR_INVALID_ARGUMENT for another method.
   */
  override withStructuredOutput<RunOutput extends Record<string, unknown>>(
    outputSchema: OutputSchema<RunOutput>,
    config?: StructuredOutputMethodOptions<false>,
  ): Runnable<BaseLanguageModelInput, RunOutput>
  override withStructuredOutput<RunOutput extends Record<string, unknown>>(
    outputSchema: OutputSchema<RunOutput>,
    config?: StructuredOutputMethodOptions<true>,
  ): Runnable<BaseLanguageModelInput, { raw: BaseMessage; parsed: RunOutput }>
  override withStructuredOutput<RunOutput extends Record<string, unknown>>(
    outputSchema: OutputSchema<RunOutput>,
    config: StructuredOutputMethodOptions<boolean> = {},
  ): Runnable<BaseLanguageModelInput, RunOutput | { raw: BaseMessage; parsed: RunOutput }> {
    const { name = 'extract', method = 'jsonSchema', includeRaw } = config
    const schema = toJsonSchema(outputSchema) as { description?: string }
    const finish = (
      model: Runnable<BaseLanguageModelInput, AIMessageChunk>,
      parser: Runnable<never, RunOutput>,
    ): Runnable<BaseLanguageModelInput, RunOutput> =>
      assembleStructuredOutputPipeline(model, parser, includeRaw) as Runnable<BaseLanguageModelInput, RunOutput>
    switch (method) {
      case 'jsonSchema':
        return finish(
          this.withConfig({ response_format: { type: 'json_schema', json_schema: { schema } } }),
          createContentParser(outputSchema),
        )
      case 'jsonMode':
        return finish(this.withConfig({ response_format: { type: 'json_object' } }), createContentParser(outputSchema))
      case 'functionCalling': {
        const description = schema.description ?? ''
        const tool = { type: 'function', function: { name, description, parameters: schema } }
        return finish(this.bindTools([tool], { tool_choice: name }), createFunctionCallingParser(outputSchema, name))
      }
      default:
        throw new LapidaryError(
          'ERR_INVALID_ARGUMENT',
          `method: expected jsonSchema, functionCalling or jsonMode, got ${String(method)}`,
        )
    }
  }

  /** @throws (rejects) ERR_INVALID_ARGUMENT, ERR_BUSY, ERR_DISPOSED; what the caller's signal was aborted with. */
  override async _generate(messages: BaseMessage[], options: this['ParsedCallOptions']): Promise<ChatResult> {
    let text = ''
    const calls: { id: string; name: string; json: string }[] = []
    for await (const event of await this.#start(messages, options)) {
      if (event.type === 'text') text += event.text
      else if (event.type === 'call') calls.push({ id: event.id, name: event.name, json: '' })
      else if (event.type === 'arguments') (calls[event.call] as { json: string }).json += event.text
      else {
        const { usage_metadata, ...response_metadata } = this.#end(event)
        const message = new AIMessageChunk<StandardMessageStructure>({
          content: text,
          ...parsedCalls(calls),
          usage_metadata,
          response_metadata,
        })
        return { generations: [{ text, message, generationInfo: response_metadata }] }
      }
    }
    throw new LapidaryError('ERR_INTERNAL', 'langchain: expected an answer to have an end')
  }

  /** The answer in chunks: text, then calls, and usage in the last one. @throws As `_generate`. */
  override async *_streamResponseChunks(
    messages: BaseMessage[],
    options: this['ParsedCallOptions'],
    runManager?: CallbackManagerForLLMRun,
  ): AsyncGenerator<ChatGenerationChunk> {
    for await (const event of await this.#start(messages, options)) {
      const chunk = this.#chunk(event)
      yield chunk
      await runManager?.handleLLMNewToken(chunk.text, { prompt: 0, completion: 0 }, undefined, undefined, undefined, {
        chunk,
      })
    }
  }

  #start(messages: BaseMessage[], options: this['ParsedCallOptions']): Promise<ChatAnswer> {
    const tools = toolUseOf(options.tools, options.tool_choice)
    const generate: GenerateOptions = {
      ...this.settings,
      ...pickSettings(options),
      stop: [...this.stop, ...(options.stop ?? [])],
      signal: options.signal,
    }
    const format = formatOf(options.response_format)
    return startChat(this.#gemma, { messages: messagesOf(messages), tools, format, options: generate })
  }

  #chunk(event: ChatEvent): ChatGenerationChunk {
    switch (event.type) {
      case 'text':
        return new ChatGenerationChunk({ text: event.text, message: new AIMessageChunk({ content: event.text }) })
      case 'call':
        return callChunk({ index: event.call, id: event.id, name: event.name, args: '' })
      case 'arguments':
        return callChunk({ index: event.call, args: event.text })
      case 'finish': {
        const { usage_metadata, ...response_metadata } = this.#end(event)
        return new ChatGenerationChunk({
          text: '',
          message: new AIMessageChunk<StandardMessageStructure>({ content: '', usage_metadata, response_metadata }),
          generationInfo: { finish_reason: response_metadata.finish_reason },
        })
      }
    }
  }

  #end({ result, reason }: Extract<ChatEvent, { type: 'finish' }>): {
    usage_metadata: UsageMetadata
    finish_reason: string
    model_name: string
    timings: GenerationTimings
  } {
    const { promptTokens, cachedTokens, tokens, timings, logprobs } = result
    return {
      usage_metadata: {
        input_tokens: promptTokens,
        output_tokens: tokens,
        total_tokens: promptTokens + tokens,
        input_token_details: { cache_read: cachedTokens },
      },
      finish_reason: reason,
      model_name: this.model,
      timings,
      ...(logprobs && { logprobs }),
    }
  }
}

function callChunk(chunk: { index: number; args: string; id?: string; name?: string }): ChatGenerationChunk {
  const tool_call_chunks = [{ type: 'tool_call_chunk' as const, ...chunk }]
  return new ChatGenerationChunk({ text: '', message: new AIMessageChunk({ content: '', tool_call_chunks }) })
}

/** Calls by whether their arguments are JSON: an answer that was cut short may end within them. */
function parsedCalls(
  calls: readonly { id: string; name: string; json: string }[],
): Pick<AIMessage, 'tool_calls' | 'invalid_tool_calls'> {
  const tool_calls: ToolCall[] = []
  const invalid_tool_calls: InvalidToolCall[] = []
  for (const { id, name, json } of calls) {
    try {
      tool_calls.push({ type: 'tool_call', id, name, args: JSON.parse(json) })
    } catch {
      invalid_tool_calls.push({ type: 'invalid_tool_call', id, name, args: json, error: 'the arguments are no JSON' })
    }
  }
  return { tool_calls, invalid_tool_calls }
}

/** What {@link LapidaryEmbeddings} is made with. */
export interface LapidaryEmbeddingsParams extends EmbeddingsParams {
  /** EmbeddingGemma; it stays the caller's to dispose. */
  readonly gemma: Gemma
  /** Put in front of a query. Default: the prefix with which EmbeddingGemma was trained for retrieval. */
  readonly queryPrefix?: string
  /** Put in front of a document. Default: likewise, without a title. */
  readonly documentPrefix?: string
}

/** EmbeddingGemma as LangChain's embeddings: vectors of length 1. */
export class LapidaryEmbeddings extends Embeddings {
  readonly queryPrefix: string
  readonly documentPrefix: string
  readonly #gemma: Gemma

  constructor(params: LapidaryEmbeddingsParams) {
    super(params)
    this.#gemma = expectGemma(params.gemma)
    // config_sentence_transformers.json of google/embeddinggemma-300m.
    this.queryPrefix = params.queryPrefix ?? 'task: search result | query: '
    this.documentPrefix = params.documentPrefix ?? 'title: none | text: '
  }

  override async embedDocuments(documents: string[]): Promise<number[][]> {
    const vectors = await this.#gemma.embed(documents.map((text) => this.documentPrefix + text))
    return vectors.map((vector) => Array.from(vector))
  }

  override async embedQuery(query: string): Promise<number[]> {
    const [vector] = await this.#gemma.embed([this.queryPrefix + query])
    return Array.from(vector as Float32Array)
  }
}
