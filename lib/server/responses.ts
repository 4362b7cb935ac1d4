/**
 * POST /v1/responses: OpenAI's newer protocol, for text, images and functions. Nothing is stored.
 * @module
 */
import type { GenerateOptions, Generation, GenerationResult } from '../index.ts'
import { type Answer, AnswerReader, answerOf, readFormat } from './answer.ts'
import { apiErrorOf, invalid } from './api-error.ts'
import { type Call, makeId, now, type ServedModel } from './call.ts'
import { Fields } from './fields.ts'
import { chatPrompt, maxTokens, results, samplingOptions, startAnswers } from './generate.ts'
import { grammarFor } from './grammar.ts'
import { type ApiResponse, eventResponse, jsonResponse, serverSentEvent } from './http.ts'
import type { RequestImage } from './images.ts'
import { conversation, type Message, readContent, readParts } from './messages.ts'
import { readTools, type ToolUse } from './tools.ts'

interface Started {
  readonly model: ServedModel
  readonly tools: ToolUse | undefined
  readonly generation: Generation
  /** What the answer repeats of the request. */
  readonly settings: object
}

/** Answers an input: at once, or as named server-sent events. */
export async function responses(call: Call): Promise<ApiResponse> {
  const { body } = call
  const stream = body.boolean('stream') ?? false
  const started = await start(call)
  if (stream) return eventResponse(events(call, started))
  const [result] = await results(call, [started.generation])
  const answer = answerOf(result as GenerationResult, started.tools)
  const base = baseOf(started)
  return jsonResponse({ ...base, ...endOf(result as GenerationResult), output: outputOf(answer) })
}

async function start(call: Call): Promise<Started> {
  const { body } = call
  const model = call.model('text')
  const { gemma } = model
  for (const name of ['previous_response_id', 'conversation', 'prompt']) {
    if (body.has(name)) throw invalid(name, 'nothing is stored here: send the whole input', 'unsupported')
  }
  if (body.boolean('background')) throw invalid('background', 'expected false', 'unsupported')
  const instructions = body.string('instructions')
  const messages = readInput(body)
  if (instructions !== undefined) messages.unshift({ role: 'system', content: instructions })
  const tools = readTools(body)
  const format = readFormat(body.object('text'), 'format')
  const prompt = chatPrompt(call, model, conversation(messages, tools, gemma), 'input')
  const limit = maxTokens(body, 'max_output_tokens')
  const options: GenerateOptions = {
    ...samplingOptions(body),
    maxTokens: limit,
    grammar: await call.lifetime.until(grammarFor(gemma, format, tools)),
  }
  call.lifetime.check()
  const [generation] = (await startAnswers(call, model, prompt, 1, options)) as [Generation]
  const settings = {
    instructions: instructions ?? null,
    max_output_tokens: limit ?? null,
    metadata: body.raw('metadata') ?? {},
    parallel_tool_calls: body.boolean('parallel_tool_calls') ?? true,
    previous_response_id: null,
    store: false,
    temperature: options.temperature ?? gemma.info().sampling.temperature,
    text: { format: body.object('text')?.raw('format') ?? { type: 'text' } },
    tool_choice: body.raw('tool_choice') ?? 'auto',
    tools: body.raw('tools') ?? [],
    top_p: options.topP ?? gemma.info().sampling.topP,
    truncation: 'disabled',
    user: body.string('user') ?? null,
  }
  return { model, tools, generation, settings }
}

/** Reads `input`: text, or items: messages, calls of functions and their results. */
function readInput(body: Fields): Message<RequestImage>[] {
  const input = body.required('input', body.raw('input'))
  if (typeof input === 'string') return [{ role: 'user', content: input }]
  if (!Array.isArray(input) || input.length === 0) return body.fail('input', 'a string or an array of items')
  return input.flatMap((value, index): Message<RequestImage>[] => {
    const item = new Fields(value, `input[${index}]`)
    const type = item.string('type') ?? 'message'
    if (type === 'message') {
      const role = item.required('role', item.choice('role', ['system', 'developer', 'user', 'assistant'] as const))
      return [{ role: role === 'developer' ? 'system' : role, content: readContent(item, role, false) }]
    }
    if (type === 'function_call') {
      const name = item.required('name', item.string('name'))
      const given = item.string('arguments') ?? '{}'
      return [{ role: 'assistant', content: '', calls: [{ id: item.string('call_id') ?? '', name, arguments: given }] }]
    }
    if (type === 'function_call_output') {
      const output = item.required('output', item.raw('output'))
      return [{ role: 'tool', content: outputOfTool(item, output), callId: item.string('call_id') ?? '' }]
    }
    // What a model of another kind thought: nothing to Gemma.
    if (type === 'reasoning') return []
    throw invalid(`${item.path}type`, `expected a message, a function_call or a function_call_output`)
  })
}

/** What a function returned: text, parts of text and images, or anything else as JSON. */
function outputOfTool(item: Fields, output: unknown): Message<RequestImage>['content'] {
  if (typeof output === 'string') return output
  const types: readonly unknown[] = ['input_text', 'input_image']
  const isParts = Array.isArray(output) && output.length > 0 && output.every((part) => types.includes(part?.type))
  return isParts ? readParts(output, `${item.path}output`, 'tool') : JSON.stringify(output)
}

function baseOf({ model, settings }: Started): Record<string, unknown> {
  return {
    id: makeId('resp_'),
    object: 'response',
    created_at: now(),
    status: 'in_progress',
    error: null,
    incomplete_details: null,
    model: model.id,
    output: [],
    ...settings,
    usage: null,
  }
}

/** How a response ends. */
function endOf({ finishReason, promptTokens, cachedTokens, tokens }: GenerationResult): object {
  const whole = finishReason === 'stop'
  return {
    status: whole ? 'completed' : 'incomplete',
    incomplete_details: whole ? null : { reason: 'max_output_tokens' },
    usage: {
      input_tokens: promptTokens,
      input_tokens_details: { cached_tokens: cachedTokens },
      output_tokens: tokens,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: promptTokens + tokens,
    },
  }
}

type CallItem = Answer['calls'][number]

function outputOf({ text, calls }: Answer): object[] {
  const items = calls.map((call) => callItem(makeId('fc_'), call, 'completed'))
  return text === '' && calls.length > 0 ? items : [messageItem(makeId('msg_'), text, 'completed'), ...items]
}

function textPart(text: string): object {
  return { type: 'output_text', text, annotations: [], logprobs: [] }
}

function messageItem(id: string, text: string | undefined, status: string): object {
  return { id, type: 'message', status, role: 'assistant', content: text === undefined ? [] : [textPart(text)] }
}

function callItem(id: string, call: CallItem, status: string): object {
  return { id, type: 'function_call', status, call_id: call.id, name: call.name, arguments: call.arguments }
}

/** One item of the output, while it is written. */
interface OpenItem {
  readonly id: string
  readonly index: number
  text: string
  /** Of a function's call. */
  readonly call?: { readonly id: string; readonly name: string }
}

/** Writes named events with a running number, and keeps what the last one repeats. */
class EventWriter {
  readonly output: object[] = []
  #number = 0
  #open: OpenItem | undefined

  event(type: string, fields: object): string {
    return serverSentEvent(JSON.stringify({ type, sequence_number: this.#number++, ...fields }), type)
  }

  text(delta: string): string {
    let events = ''
    if (!this.#open || this.#open.call) {
      events = this.close() + this.#begin({ id: makeId('msg_'), index: this.output.length, text: '' })
    }
    const open = this.#open as OpenItem
    open.text += delta
    return (
      events + this.event('response.output_text.delta', { ...this.#place(open), content_index: 0, delta, logprobs: [] })
    )
  }

  call(id: string, name: string): string {
    return this.close() + this.#begin({ id: makeId('fc_'), index: this.output.length, text: '', call: { id, name } })
  }

  arguments(delta: string): string {
    const open = this.#open as OpenItem
    open.text += delta
    return this.event('response.function_call_arguments.delta', { ...this.#place(open), delta })
  }

  /** Ends the item at hand. */
  close(): string {
    const open = this.#open
    if (!open) return ''
    this.#open = undefined
    const place = this.#place(open)
    const { id, index: output_index, text } = open
    let events = ''
    if (open.call) {
      events += this.event('response.function_call_arguments.done', { ...place, arguments: text, name: open.call.name })
    } else {
      events += this.event('response.output_text.done', { ...place, content_index: 0, text, logprobs: [] })
      events += this.event('response.content_part.done', { ...place, content_index: 0, part: textPart(text) })
    }
    const item = open.call
      ? callItem(id, { ...open.call, arguments: text }, 'completed')
      : messageItem(id, text, 'completed')
    this.output.push(item)
    return events + this.event('response.output_item.done', { output_index, item })
  }

  #begin(open: OpenItem): string {
    this.#open = open
    const { id, index: output_index, call } = open
    const item = call
      ? callItem(id, { ...call, arguments: '' }, 'in_progress')
      : messageItem(id, undefined, 'in_progress')
    const added = this.event('response.output_item.added', { output_index, item })
    if (call) return added
    return (
      added + this.event('response.content_part.added', { ...this.#place(open), content_index: 0, part: textPart('') })
    )
  }

  #place({ id, index }: OpenItem): { item_id: string; output_index: number } {
    return { item_id: id, output_index: index }
  }
}

async function* events(call: Call, started: Started): AsyncGenerator<string> {
  const base = baseOf(started)
  const writer = new EventWriter()
  const reader = new AnswerReader(started.generation, started.tools)
  try {
    yield writer.event('response.created', { response: base }) +
      writer.event('response.in_progress', { response: base })
    for await (const event of reader.events()) {
      if (event.type === 'text') yield writer.text(event.text)
      else if (event.type === 'call') yield writer.call(event.id, event.name)
      else yield writer.arguments(event.text)
    }
    const { result } = await reader.finish()
    call.lifetime.check()
    let last = writer.close()
    // An answer without a word is a message too.
    if (writer.output.length === 0) last = writer.text('') + writer.close()
    const end = endOf(result)
    const type = result.finishReason === 'stop' ? 'response.completed' : 'response.incomplete'
    yield last + writer.event(type, { response: { ...base, ...end, output: writer.output } })
  } catch (error) {
    const { message, code, param } = apiErrorOf(error)
    yield writer.event('error', { message, code, param })
  }
}
