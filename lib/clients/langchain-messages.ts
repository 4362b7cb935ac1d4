/**
 * LangChain's messages and tools, read.
 * @module
 */
import type { BindToolsInput } from '@langchain/core/language_models/chat_models'
import type { AIMessage, BaseMessage, ToolMessage } from '@langchain/core/messages'
import { convertToOpenAITool } from '@langchain/core/utils/function_calling'
import { LapidaryError } from '../errors.ts'
import type { AnswerFormat } from '../server/answer.ts'
import type { Message } from '../server/messages.ts'
import type { Tool, ToolUse } from '../server/tools.ts'

const refuse = (what: string): never => {
  throw new LapidaryError('ERR_INVALID_ARGUMENT', what)
}

/** Messages as a conversation. @throws ERR_INVALID_ARGUMENT for images and other things that a text model does not take. */
export function messagesOf(messages: readonly BaseMessage[]): Message[] {
  return messages.map((message, index) => {
    const where = `messages[${index}]`
    const text = textOf(message, where)
    const type = message.getType()
    switch (type) {
      case 'system':
      case 'developer':
        return { role: 'system', content: text }
      case 'human':
        return { role: 'user', content: text }
      case 'ai':
        return { role: 'assistant', content: text, ...callsOf(message as AIMessage) }
      case 'tool':
        return { role: 'tool', content: text, callId: (message as ToolMessage).tool_call_id }
      default:
        return refuse(`${where}: expected a message of system, human, ai or tool, got one of ${type}`)
    }
  })
}

function callsOf({ tool_calls }: AIMessage): Pick<Message, 'calls'> {
  if (!tool_calls || tool_calls.length === 0) return {}
  return { calls: tool_calls.map(({ id, name, args }) => ({ id: id ?? '', name, arguments: JSON.stringify(args) })) }
}

/** What is not said but thought or called is no text. */
const silent = ['reasoning', 'tool_call', 'tool_use', 'tool_call_chunk']

function textOf({ content }: BaseMessage, where: string): string {
  if (typeof content === 'string') return content
  return content
    .map((part, index) => {
      if (part.type === 'text') return String(part.text)
      if (silent.includes(String(part.type))) return ''
      return refuse(`${where}.content[${index}]: expected text, got a part of type ${String(part.type)}`)
    })
    .join('')
}

/** The functions that may be called, and whether one must be. @throws ERR_INVALID_ARGUMENT for a choice of none of them. */
export function toolUseOf(given: readonly BindToolsInput[] | undefined, choice: unknown): ToolUse | undefined {
  const tools = (given ?? []).map(toolOf)
  if (tools.length === 0 || choice === 'none') return undefined
  if (choice === undefined || choice === 'auto') return { tools, choice: 'auto', parallel: true }
  if (choice === 'any' || choice === 'required') return { tools, choice: 'required', parallel: true }
  const wanted = typeof choice === 'string' ? choice : (choice as { function?: { name?: unknown } }).function?.name
  const named = tools.filter(({ name }) => name === wanted)
  if (named.length === 0) refuse(`tool_choice: expected the name of one of the tools, got ${String(wanted)}`)
  return { tools: named, choice: 'required', parallel: false }
}

function toolOf(tool: BindToolsInput): Tool {
  const { name, description, parameters } = convertToOpenAITool(tool).function
  return { name, description, parameters: parameters as Tool['parameters'], strict: undefined }
}

/** What the answer must look like, from `response_format` as OpenAI has it. */
export function formatOf(
  format: { type: 'json_object' } | { type: 'json_schema'; json_schema: { schema: object } } | undefined,
): AnswerFormat | undefined {
  if (!format) return undefined
  if (format.type === 'json_object') return { type: 'json' }
  return { type: 'schema', schema: format.json_schema.schema, strict: undefined }
}
