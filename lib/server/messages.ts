/**
 * OpenAI's messages as a Gemma conversation: turns of user and model that alternate, a system text in front.
 * @module
 */
import type { ChatMessage, Gemma, TextPart } from '../index.ts'
import { invalid } from './api-error.ts'
import { Fields } from './fields.ts'
import { type RequestImage, readImagePart } from './images.ts'
import { type CallRecord, renderCalls, renderResult, type ToolUse, toolInstructions } from './tools.ts'

/**
 * A message, read and checked, still in OpenAI's roles.
 * @typeParam Image What stands for an image, in messages of users and tools; `never` where there are none.
 */
export interface Message<Image extends AnyImage = never> {
  readonly role: 'system' | 'user' | 'assistant' | 'tool'
  /** Parts follow one another without anything between them. */
  readonly content: string | readonly (TextPart | Image)[]
  /** Of an assistant: the functions it called. */
  readonly calls?: readonly CallRecord[]
  /** Of a tool: the call it answers. */
  readonly callId?: string
}

interface AnyImage {
  readonly type: 'image'
}

const roles = ['system', 'developer', 'user', 'assistant', 'tool', 'function'] as const

/** Reads `messages`. @throws ApiError 400 naming the message and the field. */
export function readMessages(body: Fields): Message<RequestImage>[] {
  const messages = body.required('messages', body.objects('messages'))
  if (messages.length === 0) throw invalid('messages', 'expected at least one message, got none')
  return messages.map((message) => {
    const role = message.required('role', message.choice('role', roles))
    const calls = role === 'assistant' ? message.objects('tool_calls')?.map(readCall) : undefined
    const optional = calls !== undefined && calls.length > 0
    const content = readContent(message, role, optional || role === 'assistant')
    if (role === 'tool' || role === 'function') {
      return { role: 'tool', content, callId: message.string(role === 'tool' ? 'tool_call_id' : 'name') ?? '' }
    }
    if (role === 'developer') return { role: 'system', content }
    return calls && calls.length > 0 ? { role: 'assistant', content, calls } : { role: role as 'user', content }
  })
}

function readCall(call: Fields): CallRecord {
  const description = call.required('function', call.object('function'))
  const name = description.required('name', description.string('name'))
  const given = description.string('arguments') ?? '{}'
  return { id: call.string('id') ?? '', name, arguments: given.trim() === '' ? '{}' : given }
}

/** What a message says: a string, or parts of text and, of users and tools, images. */
export function readContent(message: Fields, role: string, optional: boolean): Message<RequestImage>['content'] {
  const content = message.raw('content')
  if (typeof content === 'string') return content
  if (content === undefined && (optional || message.has('refusal'))) return message.string('refusal') ?? ''
  if (content === undefined) message.required('content', undefined)
  if (!Array.isArray(content)) return message.fail('content', 'a string or an array of parts')
  return readParts(content, `${message.path}content`, role)
}

/** Parts, of which images are only read where the role may show them. */
export function readParts(values: readonly unknown[], path: string, role: string): (TextPart | RequestImage)[] {
  return values.map((value, index) => {
    const part = new Fields(value, `${path}[${index}]`)
    const type = part.required('type', part.string('type'))
    if (type === 'refusal') return { type: 'text', text: part.required('refusal', part.string('refusal')) }
    if (type === 'text' || type === 'input_text' || type === 'output_text') {
      return { type: 'text', text: part.required('text', part.string('text')) }
    }
    if (type !== 'image_url' && type !== 'input_image') {
      throw invalid(`${part.path}type`, `expected text or an image, got ${JSON.stringify(type.slice(0, 40))}`)
    }
    if (role !== 'user' && role !== 'tool') {
      throw invalid(`${part.path}type`, `expected text: images stand in messages of users and tools, not of ${role}`)
    }
    return readImagePart(part)
  })
}

/**
 * The turns of a conversation. Gemma's format knows turns of user and model, in alternation, beginning with user:
 * - system and developer messages, and what there is to say about tools, come first; Gemma 1 and 2 get them in the first turn;
 * - a system message further on is a paragraph of the user's turn;
 * - results of tools are the user's; calls are the model's, written as it writes them;
 * - turns of one side that follow each other are one, parted by a blank line; a conversation that begins with the model gets an empty
 *   turn of the user in front.
 * The content of a turn is a string unless it holds images.
 */
export function conversation<Image extends AnyImage = never>(
  messages: readonly Message<Image>[],
  tools: ToolUse | undefined,
  gemma: Gemma,
): ChatMessage<TextPart | Image>[] {
  const leading = messages.findIndex(({ role }) => role !== 'system')
  const count = leading < 0 ? messages.length : leading
  const system = messages.slice(0, count).map(({ content }) => textOf(content))
  if (tools) system.push(toolInstructions(tools))
  const names = new Map<string, string>()
  const turns: Turn<Image>[] = []
  for (const message of messages.slice(count)) {
    const role = message.role === 'assistant' ? 'assistant' : 'user'
    for (const call of message.calls ?? []) names.set(call.id, call.name)
    let turn = turns.at(-1)
    if (turn?.role !== role) {
      if (turns.length === 0 && role === 'assistant') turns.push({ role: 'user', parts: [] })
      turn = { role, parts: [] }
      turns.push(turn)
    }
    const { content, calls, callId = '' } = message
    if (message.role === 'tool') {
      say(turn.parts, renderResult(names.get(callId), textOf(content)))
      if (typeof content !== 'string') turn.parts.push(...content.filter((part) => !isText(part)))
    } else {
      say(turn.parts, content)
    }
    if (calls) say(turn.parts, renderCalls(calls))
  }
  // A system message alone is a request too.
  if (turns.length === 0) turns.push({ role: 'user', parts: [] })
  const preface = system.filter((text) => text !== '').join('\n\n')
  const conversation: ChatMessage<TextPart | Image>[] = []
  const [first] = turns as [Turn<Image>]
  if (takesSystem(gemma)) {
    if (preface !== '') conversation.push({ role: 'system', content: preface })
  } else {
    const own = first.parts.splice(0)
    say(first.parts, preface)
    say(first.parts, own)
  }
  for (const { role, parts } of turns) {
    conversation.push({ role, content: parts.every(isText) ? textOf(parts) : parts })
  }
  return conversation
}

interface Turn<Image extends AnyImage> {
  readonly role: 'user' | 'assistant'
  /** No two texts follow each other, and none is empty. */
  readonly parts: (TextPart | Image)[]
}

/** Adds to a turn: a blank line parts its text from text before it. Images have line breaks of their own. */
function say<Image extends AnyImage>(parts: (TextPart | Image)[], content: Message<Image>['content']): void {
  let between = '\n\n'
  for (const part of typeof content === 'string' ? [{ type: 'text' as const, text: content }] : content) {
    const last = parts.at(-1)
    if (!isText(part)) parts.push(part)
    else if (part.text === '') continue
    else if (last && isText(last)) parts.splice(-1, 1, { type: 'text', text: last.text + between + part.text })
    else parts.push(part)
    between = ''
  }
}

function isText(part: TextPart | AnyImage): part is TextPart {
  return part.type === 'text'
}

function textOf(content: string | readonly (TextPart | AnyImage)[]): string {
  if (typeof content === 'string') return content
  return content.map((part) => (isText(part) ? part.text : '')).join('')
}

function takesSystem(gemma: Gemma): boolean {
  return gemma.config.architecture !== 'gemma' && gemma.config.architecture !== 'gemma2'
}
