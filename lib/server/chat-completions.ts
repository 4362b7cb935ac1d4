/**
 * POST /v1/chat/completions
 * @module
 */
import type { GenerateOptions, Generation } from '../index.ts'
import { type Answer, AnswerReader, answerOf, readFormat } from './answer.ts'
import { apiErrorOf, invalid } from './api-error.ts'
import { type Call, makeId, now, type ServedModel } from './call.ts'
import type { AnswerEvent } from './call-parser.ts'
import {
  chatPrompt,
  choiceCount,
  maxTokens,
  merge,
  results,
  samplingOptions,
  startAnswers,
  usageOf,
} from './generate.ts'
import { grammarFor } from './grammar.ts'
import { type ApiResponse, eventResponse, jsonResponse, serverSentEvent } from './http.ts'
import { chatLogprobs } from './logprobs.ts'
import { conversation, readMessages } from './messages.ts'
import { readTools, type ToolUse } from './tools.ts'

/** A request, read and started. */
interface Chat {
  readonly model: ServedModel
  readonly tools: ToolUse | undefined
  readonly n: number
  readonly logprobs: boolean
  readonly includeUsage: boolean
  readonly generations: readonly Generation[]
}

/** Answers a conversation: at once, or as server-sent events. */
export async function chatCompletions(call: Call): Promise<ApiResponse> {
  const { body } = call
  const stream = body.boolean('stream') ?? false
  const chat = await start(call)
  if (stream) return eventResponse(chunks(call, chat))
  const all = await results(call, chat.generations)
  const choices = all.map((result, index) => {
    const answer = answerOf(result, chat.tools)
    return {
      index,
      message: messageOf(answer),
      logprobs: chat.logprobs ? logprobsOf(chat, answer.logprobs) : null,
      finish_reason: answer.finishReason,
    }
  })
  return jsonResponse({ ...head(chat, 'chat.completion'), choices, usage: usageOf(all, chat.n) })
}

async function start(call: Call): Promise<Chat> {
  const { body } = call
  const model = call.model('text')
  const { gemma } = model
  const messages = readMessages(body)
  const tools = readTools(body)
  const n = choiceCount(body)
  const logprobs = body.boolean('logprobs') ?? false
  const top = body.integer('top_logprobs', 0, 20)
  if (top !== undefined && !logprobs) throw invalid('top_logprobs', 'expected logprobs to be true with it')
  const streamOptions = body.object('stream_options')
  if (streamOptions && body.raw('stream') !== true)
    throw invalid('stream_options', 'expected stream to be true with it')
  const format = readFormat(body, 'response_format')
  const sampling = samplingOptions(body)
  const limit = maxTokens(body, 'max_completion_tokens', 'max_tokens')
  const prompt = chatPrompt(call, model, conversation(messages, tools, gemma), 'messages')
  const options: GenerateOptions = {
    ...sampling,
    maxTokens: limit,
    logprobs: logprobs ? (top ?? 0) : undefined,
    grammar: await call.lifetime.until(grammarFor(gemma, format, tools)),
  }
  call.lifetime.check()
  return {
    model,
    tools,
    n,
    logprobs,
    includeUsage: streamOptions?.boolean('include_usage') ?? false,
    generations: await startAnswers(call, model, prompt, n, options),
  }
}

function head({ model }: Chat, object: string): { id: string; object: string; created: number; model: string } {
  return { id: makeId('chatcmpl-'), object, created: now(), model: model.id }
}

function messageOf({ text, calls }: Answer): object {
  if (calls.length === 0) return { role: 'assistant', content: text, refusal: null }
  return { role: 'assistant', content: text === '' ? null : text, refusal: null, tool_calls: calls.map(callOf) }
}

function callOf(call: Answer['calls'][number]): object {
  return { id: call.id, type: 'function', function: { name: call.name, arguments: call.arguments } }
}

function logprobsOf({ model }: Chat, tokens: Answer['logprobs']): object {
  return { content: chatLogprobs(model.gemma.tokenizer, tokens), refusal: null }
}

/** What an event of an answer is in a chunk. */
function deltaOf(event: AnswerEvent): object {
  if (event.type === 'text') return { content: event.text }
  const { call: index } = event
  if (event.type === 'arguments') return { tool_calls: [{ index, function: { arguments: event.text } }] }
  return { tool_calls: [{ index, id: event.id, type: 'function', function: { name: event.name, arguments: '' } }] }
}

/**
 * The events of a stream: for each choice its role, then its parts, then its finish reason; with `include_usage` a last chunk without
 * choices; `[DONE]`. An error in between is an event that holds it, and the last.
 */
async function* chunks(call: Call, chat: Chat): AsyncGenerator<string> {
  const common = JSON.stringify(head(chat, 'chat.completion.chunk')).slice(0, -1)
  const usage = chat.includeUsage ? ',"usage":null' : ''
  const chunk = (index: number, delta: object, reason: string | null = null, logprobs: object | null = null): string =>
    serverSentEvent(
      `${common},"choices":${JSON.stringify([{ index, delta, logprobs, finish_reason: reason }])}${usage}}`,
    )
  const readers = chat.generations.map((generation) => new AnswerReader(generation, chat.tools))
  try {
    const all = []
    const begun = new Set<number>()
    const sources = readers.map((reader) => withEnd(reader))
    for await (const [index, event] of merge(sources)) {
      let text = ''
      if (!begun.has(index)) {
        begun.add(index)
        text = chunk(index, { role: 'assistant', content: '', refusal: null })
      }
      if (event.type === 'end') {
        call.lifetime.check()
        all[index] = event.result
        text += chunk(index, {}, event.reason)
      } else {
        const logprobs = event.type === 'text' && event.logprobs ? logprobsOf(chat, event.logprobs) : null
        text += chunk(index, deltaOf(event), null, logprobs)
      }
      yield text
    }
    if (chat.includeUsage) {
      yield serverSentEvent(`${common},"choices":[],"usage":${JSON.stringify(usageOf(all, chat.n))}}`)
    }
    yield serverSentEvent('[DONE]')
  } catch (error) {
    yield serverSentEvent(JSON.stringify(apiErrorOf(error)))
  }
}

type End = { readonly type: 'end' } & Awaited<ReturnType<AnswerReader['finish']>>

async function* withEnd(reader: AnswerReader): AsyncGenerator<AnswerEvent | End> {
  yield* reader.events()
  yield { type: 'end', ...(await reader.finish()) }
}
