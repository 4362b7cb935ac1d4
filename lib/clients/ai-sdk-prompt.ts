/**
 * Calls of the AI SDK, read: prompt and settings of specifications V3 and V4, which differ only in parts that these models do not take.
 * @module
 */
import type { LanguageModelV3CallOptions, LanguageModelV3ToolChoice, SharedV3Warning } from '@ai-sdk/provider'
import { describeValue, LapidaryError } from '../errors.ts'
import type { GenerateOptions } from '../index.ts'
import type { AnswerFormat } from '../server/answer.ts'
import type { Message } from '../server/messages.ts'
import type { CallRecord, Tool, ToolUse } from '../server/tools.ts'

/** A part of a message. What it holds depends on its type; parts of V3 and V4 that are taken hold the same. */
interface Part {
  readonly type: string
  readonly text?: unknown
  readonly toolCallId?: unknown
  readonly toolName?: unknown
  readonly input?: unknown
  readonly output?: unknown
}

interface PromptMessage {
  readonly role: string
  readonly content: string | readonly Part[]
}

/** A function, or a tool of some provider. */
interface AnyTool {
  readonly type: string
  readonly name: string
  readonly description?: unknown
  readonly inputSchema?: unknown
  readonly id?: unknown
  readonly args?: unknown
}

/** What `generateText` and its like ask of a model, in either specification. */
export interface CallOptions
  extends Pick<
    LanguageModelV3CallOptions,
    | 'maxOutputTokens'
    | 'temperature'
    | 'stopSequences'
    | 'topP'
    | 'topK'
    | 'presencePenalty'
    | 'frequencyPenalty'
    | 'seed'
    | 'responseFormat'
    | 'includeRawChunks'
    | 'abortSignal'
  > {
  prompt: readonly PromptMessage[]
  tools?: readonly AnyTool[]
  toolChoice?: LanguageModelV3ToolChoice
  /** V4 only. */
  reasoning?: string
  providerOptions?: Readonly<Record<string, Readonly<Record<string, unknown>>>>
}

const refuse = (what: string): never => {
  throw new LapidaryError('ERR_INVALID_ARGUMENT', what)
}

/** The prompt as a conversation. @throws ERR_INVALID_ARGUMENT for files, and parts that no text model takes. */
export function messagesOf(prompt: readonly PromptMessage[]): Message[] {
  return prompt.flatMap((message, index) => {
    const where = `prompt[${index}]`
    const { role, content } = message
    if (role === 'tool') return toolResults(parts(content, where), where)
    const text = typeof content === 'string' ? content : textOf(parts(content, where), where)
    if (role === 'system' || role === 'user') return [{ role, content: text }]
    if (role !== 'assistant') return refuse(`${where}.role: expected system, user, assistant or tool, got ${role}`)
    const calls = typeof content === 'string' ? [] : callsOf(content)
    return [{ role, content: text, ...(calls.length > 0 && { calls }) }]
  })
}

function parts(content: string | readonly Part[], where: string): readonly Part[] {
  return Array.isArray(content) ? content : refuse(`${where}.content: expected parts, got ${describeValue(content)}`)
}

/** Texts stand side by side; what the model thought is no part of what it said. */
function textOf(content: readonly Part[], where: string): string {
  return content
    .map((part, index) => {
      if (part.type === 'text') return String(part.text)
      if (part.type === 'reasoning' || part.type === 'tool-call') return ''
      return refuse(`${where}.content[${index}]: expected text, got a part of type ${part.type}`)
    })
    .join('')
}

function callsOf(content: readonly Part[]): CallRecord[] {
  return content
    .filter((part) => part.type === 'tool-call')
    .map(({ toolCallId, toolName, input }) => ({
      id: String(toolCallId),
      name: String(toolName),
      arguments: JSON.stringify(input ?? {}),
    }))
}

function toolResults(content: readonly Part[], where: string): Message[] {
  return content
    .filter((part) => part.type !== 'tool-approval-response')
    .map((part, index) => {
      if (part.type !== 'tool-result') {
        return refuse(`${where}.content[${index}]: expected a tool result, got a part of type ${part.type}`)
      }
      return { role: 'tool', callId: String(part.toolCallId), content: outputText(part.output) }
    })
}

function outputText(output: unknown): string {
  const { type, value, reason } = output as { type: string; value?: unknown; reason?: string }
  switch (type) {
    case 'text':
    case 'error-text':
      return String(value)
    case 'execution-denied':
      return reason ?? 'The user did not allow this.'
    case 'content':
      return (value as readonly Part[]).map((part) => (part.type === 'text' ? String(part.text) : '')).join('')
    default:
      return JSON.stringify(value)
  }
}

/** The functions that may be called; undefined if none. @throws ERR_INVALID_ARGUMENT if a choice names none of them. */
export function toolUseOf({ tools = [], toolChoice = { type: 'auto' } }: CallOptions): ToolUse | undefined {
  const functions = tools.filter(({ type }) => type === 'function').map(toolOf)
  if (functions.length === 0 || toolChoice.type === 'none') return undefined
  if (toolChoice.type !== 'tool') return { tools: functions, choice: toolChoice.type, parallel: true }
  const named = functions.filter(({ name }) => name === toolChoice.toolName)
  if (named.length === 0) refuse(`toolChoice: expected the name of one of the tools, got ${toolChoice.toolName}`)
  return { tools: named, choice: 'required', parallel: false }
}

function toolOf({ name, description, inputSchema }: AnyTool): Tool {
  return {
    name,
    description: typeof description === 'string' ? description : undefined,
    parameters: inputSchema as Tool['parameters'],
    strict: undefined,
  }
}

/** What the answer must look like. */
export function formatOf({ responseFormat }: CallOptions): AnswerFormat | undefined {
  if (responseFormat?.type !== 'json') return undefined
  return responseFormat.schema ? { type: 'schema', schema: responseFormat.schema, strict: undefined } : { type: 'json' }
}

/** Settings of this provider that the AI SDK has no names for: `providerOptions: { lapidary: { minP: 0.05 } }`. */
const ownSettings = ['minP', 'repetitionPenalty', 'logitBias', 'stopTokens', 'logprobs', 'priority'] as const

/** The sampling settings. Their values are for the engine to check. */
export function generateOptionsOf(options: CallOptions): GenerateOptions {
  const own = options.providerOptions?.lapidary ?? {}
  const picked = Object.fromEntries(ownSettings.filter((name) => name in own).map((name) => [name, own[name]]))
  return {
    maxTokens: options.maxOutputTokens,
    temperature: options.temperature,
    topP: options.topP,
    topK: options.topK,
    presencePenalty: options.presencePenalty,
    frequencyPenalty: options.frequencyPenalty,
    seed: options.seed,
    stop: options.stopSequences,
    signal: options.abortSignal,
    ...picked,
  }
}

/** What of a call is left out, said to the caller. */
export function warningsOf(options: CallOptions): SharedV3Warning[] {
  const warnings: SharedV3Warning[] = []
  const unsupported = (feature: string, details: string): void => {
    warnings.push({ type: 'unsupported', feature, details })
  }
  for (const { type, name } of options.tools ?? []) {
    if (type !== 'function') unsupported(`tool ${name}`, 'only function tools can be called')
  }
  if (options.reasoning !== undefined && !['provider-default', 'none'].includes(options.reasoning)) {
    unsupported('reasoning', 'these models do not reason apart from their answer')
  }
  for (const name of Object.keys(options.providerOptions?.lapidary ?? {})) {
    if (!(ownSettings as readonly string[]).includes(name)) {
      unsupported(`providerOptions.lapidary.${name}`, `known are ${ownSettings.join(', ')}`)
    }
  }
  return warnings
}
