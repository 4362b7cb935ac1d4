/**
 * An answer of a chat: text, or calls of functions, as it is generated.
 * @module
 */
import type { GenerateOptions, Generation, GenerationResult, TokenLogprobs } from '../index.ts'
import { type AnswerEvent, CallParser } from './call-parser.ts'
import type { Fields } from './fields.ts'
import { finishReason } from './generate.ts'
import type { ToolUse } from './tools.ts'

/** A finished answer. */
export interface Answer {
  readonly text: string
  readonly calls: readonly { readonly id: string; readonly name: string; readonly arguments: string }[]
  readonly finishReason: 'stop' | 'length' | 'tool_calls'
  readonly logprobs: readonly TokenLogprobs[]
}

/** Follows one generation. */
export class AnswerReader {
  readonly #generation: Generation
  readonly #parser: CallParser | undefined

  constructor(generation: Generation, tools: ToolUse | undefined) {
    this.#generation = generation
    this.#parser = tools && new CallParser(tools.tools.map(({ name }) => name))
  }

  /** What is generated, as it comes. Leaving early ends the generation. */
  async *events(): AsyncGenerator<AnswerEvent> {
    const parser = this.#parser
    for await (const { text, logprobs } of this.#generation) {
      if (parser) yield* parser.push(text)
      else if (text !== '' || logprobs) yield { type: 'text', text, ...(logprobs && { logprobs }) }
    }
    if (parser) yield* parser.end()
  }

  /** How it ended, once `events` has. */
  async finish(): Promise<{ result: GenerationResult; reason: Answer['finishReason'] }> {
    const result = await this.#generation.result
    const reason = finishReason(result.finishReason)
    return { result, reason: reason === 'stop' && this.#parser && this.#parser.calls > 0 ? 'tool_calls' : reason }
  }
}

/** The answer that a whole text is. */
export function answerOf(result: GenerationResult, tools: ToolUse | undefined): Answer {
  const reason = finishReason(result.finishReason)
  const { logprobs = [] } = result
  if (!tools) return { text: result.text, calls: [], finishReason: reason, logprobs }
  const parser = new CallParser(tools.tools.map(({ name }) => name))
  let text = ''
  const calls: { id: string; name: string; arguments: string }[] = []
  for (const event of [...parser.push(result.text), ...parser.end()]) {
    if (event.type === 'text') text += event.text
    else if (event.type === 'call') calls.push({ id: event.id, name: event.name, arguments: '' })
    else (calls[event.call] as { arguments: string }).arguments += event.text
  }
  return { text, calls, finishReason: calls.length > 0 && reason === 'stop' ? 'tool_calls' : reason, logprobs }
}

/** What an answer is bound to: `response_format`, and tools that must be called. Undefined: nothing. */
export type AnswerFormat =
  | { readonly type: 'json' }
  | { readonly type: 'schema'; readonly schema: object; readonly strict: boolean | undefined }

export interface AnswerOptions {
  readonly options: GenerateOptions
  readonly tools: ToolUse | undefined
}

/** Reads `response_format`, or `text.format` of responses. */
export function readFormat(parent: Fields | undefined, name: string): AnswerFormat | undefined {
  const format = parent?.object(name)
  const type = format?.required('type', format.choice('type', ['text', 'json_object', 'json_schema']))
  if (!format || type === 'text') return undefined
  if (type === 'json_object') return { type: 'json' }
  // Chat completions nest the schema, responses do not.
  const holder = format.object('json_schema') ?? format
  const schema = holder.required('schema', holder.object('schema') && (holder.raw('schema') as object))
  return { type: 'schema', schema, strict: holder.boolean('strict') }
}
