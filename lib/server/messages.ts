/**
 * OpenAI's messages as a Gemma conversation: turns of user and model that alternate, a system text in front.
 * @module
 */
import type { ChatMessage, Gemma } from '../index.ts'
import { invalid } from './api-error.ts'
import { Fields } from './fields.ts'
import { type CallRecord, renderCalls, renderResult, type ToolUse, toolInstructions } from './tools.ts'

/** A message, read and checked, still in OpenAI's roles. */
export interface Message {
  readonly role: 'system' | 'user' | 'assistant' | 'tool'
  readonly text: string
  /** Of an assistant: the functions it called. */
  readonly calls?: readonly CallRecord[]
  /** Of a tool: the call it answers. */
  readonly callId?: string
}

const roles = ['system', 'developer', 'user', 'assistant', 'tool', 'function'] as const

/** Reads `messages`. @throws ApiError 400 naming the message and the field. */
export function readMessages(body: Fields): Message[] {
  const messages = body.required('messages', body.objects('messages'))
  if (messages.length === 0) throw invalid('messages', 'expected at least one message, got none')
  return messages.map((message) => {
    const role = message.required('role', message.choice('role', roles))
    const calls = role === 'assistant' ? message.objects('tool_calls')?.map(readCall) : undefined
    const optional = calls !== undefined && calls.length > 0
    const text = readContent(message, optional || role === 'assistant')
    if (role === 'tool' || role === 'function') {
      return { role: 'tool', text, callId: message.string(role === 'tool' ? 'tool_call_id' : 'name') ?? '' }
    }
    if (role === 'developer') return { role: 'system', text }
    return calls && calls.length > 0 ? { role: 'assistant', text, calls } : { role: role as 'user', text }
  })
}

function readCall(call: Fields): CallRecord {
  const description = call.required('function', call.object('function'))
  const name = description.required('name', description.string('name'))
  const given = description.string('arguments') ?? '{}'
  return { id: call.string('id') ?? '', name, arguments: given.trim() === '' ? '{}' : given }
}

/** The text of a message: a string, or text parts, which follow one another. */
export function readContent(message: Fields, optional: boolean): string {
  const content = message.raw('content')
  if (typeof content === 'string') return content
  if (content === undefined && (optional || message.has('refusal'))) return message.string('refusal') ?? ''
  if (content === undefined) message.required('content', undefined)
  if (!Array.isArray(content)) return message.fail('content', 'a string or an array of parts')
  return content
    .map((value, index) => {
      const part = new Fields(value, `${message.path}content[${index}]`)
      const type = part.required('type', part.string('type'))
      if (type === 'refusal') return part.required('refusal', part.string('refusal'))
      if (type === 'text' || type === 'input_text' || type === 'output_text') {
        return part.required('text', part.string('text'))
      }
      throw invalid(`${part.path}type`, `this model takes text parts only, got ${JSON.stringify(type.slice(0, 40))}`)
    })
    .join('')
}

/**
 * The turns of a conversation. Gemma's format knows turns of user and model, in alternation, beginning with user:
 * - system and developer messages, and what there is to say about tools, come first; Gemma 1 and 2 get them in the first turn;
 * - a system message further on is a paragraph of the user's turn;
 * - results of tools are the user's; calls are the model's, written as it writes them;
 * - turns of one side that follow each other are one, parted by a blank line; a conversation that begins with the model gets an empty
 *   turn of the user in front.
 */
export function conversation(messages: readonly Message[], tools: ToolUse | undefined, gemma: Gemma): ChatMessage[] {
  const leading = messages.findIndex(({ role }) => role !== 'system')
  const count = leading < 0 ? messages.length : leading
  const system = messages.slice(0, count).map(({ text }) => text)
  if (tools) system.push(toolInstructions(tools))
  const names = new Map<string, string>()
  const turns: { role: 'user' | 'assistant'; texts: string[] }[] = []
  for (const message of messages.slice(count)) {
    const role = message.role === 'assistant' ? 'assistant' : 'user'
    for (const call of message.calls ?? []) names.set(call.id, call.name)
    let turn = turns.at(-1)
    if (turn?.role !== role) {
      if (turns.length === 0 && role === 'assistant') turns.push({ role: 'user', texts: [] })
      turn = { role, texts: [] }
      turns.push(turn)
    }
    if (message.text !== '' && message.role !== 'tool') turn.texts.push(message.text)
    if (message.calls) turn.texts.push(renderCalls(message.calls))
    if (message.role === 'tool') turn.texts.push(renderResult(names.get(message.callId ?? ''), message.text))
  }
  // A system message alone is a request too.
  if (turns.length === 0) turns.push({ role: 'user', texts: [] })
  const preface = system.filter((text) => text !== '').join('\n\n')
  const conversation: ChatMessage[] = []
  if (preface !== '') {
    if (takesSystem(gemma)) conversation.push({ role: 'system', content: preface })
    else turns[0]?.texts.unshift(preface)
  }
  for (const { role, texts } of turns) conversation.push({ role, content: texts.join('\n\n') })
  return conversation
}

function takesSystem(gemma: Gemma): boolean {
  return gemma.config.architecture !== 'gemma' && gemma.config.architecture !== 'gemma2'
}
