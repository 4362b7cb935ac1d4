/**
 * What the clients have in common: a conversation, and the answer to it as it is generated.
 * @module
 */
import { describeValue, LapidaryError } from '../errors.ts'
import { Gemma, type GenerateOptions, type GenerationResult } from '../index.ts'
import { type Answer, type AnswerFormat, AnswerReader } from '../server/answer.ts'
import { ApiError } from '../server/api-error.ts'
import type { AnswerEvent } from '../server/call-parser.ts'
import { grammarFor } from '../server/grammar.ts'
import { conversation, type Message } from '../server/messages.ts'
import type { ToolUse } from '../server/tools.ts'

/** What a client asks for. */
export interface ChatRequest {
  readonly messages: readonly Message[]
  /** Functions that may, or must, be called. */
  readonly tools?: ToolUse | undefined
  /** What the answer must look like. Default: anything goes. */
  readonly format?: AnswerFormat | undefined
  readonly options: GenerateOptions
}

/** What is added to the answer; `finish` comes last. */
export type ChatEvent =
  | AnswerEvent
  | { readonly type: 'finish'; readonly result: GenerationResult; readonly reason: Answer['finishReason'] }

/** An answer being generated. Iterate it once. */
export interface ChatAnswer extends AsyncIterable<ChatEvent> {
  /** Ends it now, also while it waits for its turn. Nothing happens if it has ended. */
  cancel(): void
}

/**
 * Answers a conversation. What is wrong with the request is thrown here; then the generation runs, iterated or not. Leaving the loop ends
 * it. The caller's signal makes the loop throw what the signal was aborted with, as other libraries do.
 * @throws (rejects) ERR_INVALID_ARGUMENT, ERR_BUSY, ERR_DISPOSED
 */
export async function startChat(gemma: Gemma, request: ChatRequest): Promise<ChatAnswer> {
  const { messages, tools, format, options } = request
  const { signal } = options
  signal?.throwIfAborted()
  const grammar = await grammarOf(gemma, format, tools)
  signal?.throwIfAborted()
  const generation = gemma.chat(conversation(messages, tools, gemma), { ...options, grammar })
  async function* events(): AsyncGenerator<ChatEvent, undefined> {
    const reader = new AnswerReader(generation, tools)
    yield* reader.events()
    const { result, reason } = await reader.finish()
    if (result.finishReason === 'abort') {
      throw signal?.reason ?? new LapidaryError('ERR_ABORTED', 'the generation was cancelled')
    }
    yield { type: 'finish', result, reason }
    return undefined
  }
  return { [Symbol.asyncIterator]: events, cancel: () => generation.cancel() }
}

/** The server's own, with the error of a library: whoever calls this is no client of HTTP. */
async function grammarOf(
  gemma: Gemma,
  format: AnswerFormat | undefined,
  tools: ToolUse | undefined,
): ReturnType<typeof grammarFor> {
  try {
    return await grammarFor(gemma, format, tools)
  } catch (error) {
    if (!(error instanceof ApiError)) throw error
    throw new LapidaryError('ERR_INVALID_ARGUMENT', error.message, { cause: error })
  }
}

/** @throws ERR_INVALID_ARGUMENT unless it is a loaded model. */
export function expectGemma(value: unknown): Gemma {
  if (value instanceof Gemma) return value
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `gemma: expected a loaded Gemma, got ${describeValue(value)}`)
}
