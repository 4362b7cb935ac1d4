/**
 * Functions that the model may call. Gemma 1 to 3 were trained on no format for them: they are described in the system text and called
 * in JSON, as Google's guide for Gemma 3 has it: `{"name": …, "parameters": {…}}`, or an array of such objects for several calls.
 * @module
 */
import { invalid } from './api-error.ts'
import type { Fields } from './fields.ts'

/** A function as declared. */
export interface Tool {
  readonly name: string
  readonly description: string | undefined
  /** A JSON schema of an object. */
  readonly parameters: Readonly<Record<string, unknown>>
  readonly strict: boolean | undefined
}

/** A call that an earlier answer made. */
export interface CallRecord {
  readonly id: string
  readonly name: string
  /** JSON. */
  readonly arguments: string
}

/** The tools of a request, and what is asked of the model about them. */
export interface ToolUse {
  readonly tools: readonly Tool[]
  /** `required`: it must call one of them. */
  readonly choice: 'auto' | 'required'
  /** Whether it may call several in one answer. */
  readonly parallel: boolean
}

const namePattern = /^[\w.-]{1,128}$/

/** Reads `tools`, `tool_choice` and `parallel_tool_calls`; undefined if no tool may be called. */
export function readTools(body: Fields): ToolUse | undefined {
  const declared = body.objects('tools')?.map(readTool) ?? []
  const names = new Set(declared.map(({ name }) => name))
  if (names.size < declared.length) throw invalid('tools', 'expected different names, got one twice')
  const choice = body.raw('tool_choice')
  const parallel = body.boolean('parallel_tool_calls') ?? true
  if (declared.length === 0) {
    if (choice !== undefined && choice !== 'none' && choice !== 'auto') {
      throw invalid('tool_choice', 'expected tools to choose from, got none')
    }
    return undefined
  }
  if (choice === undefined || choice === 'auto') return { tools: declared, choice: 'auto', parallel }
  if (choice === 'none') return undefined
  if (choice === 'required') return { tools: declared, choice: 'required', parallel }
  const named = typeof choice === 'object' ? body.object('tool_choice') : undefined
  // Chat completions name the function in an object of its own, responses beside the type.
  const name = (named?.object('function') ?? named)?.string('name')
  if (name === undefined) return body.fail('tool_choice', "'none', 'auto', 'required' or the name of a function")
  const tool = declared.find((candidate) => candidate.name === name)
  if (!tool) throw invalid('tool_choice', 'expected the name of one of the tools')
  return { tools: [tool], choice: 'required', parallel: false }
}

function readTool(tool: Fields): Tool {
  const type = tool.required('type', tool.string('type'))
  if (type !== 'function') throw invalid(`${tool.path}type`, "expected 'function'", 'unsupported_tool')
  const description = tool.object('function') ?? tool
  const name = description.required('name', description.string('name'))
  if (!namePattern.test(name)) {
    throw invalid(`${description.path}name`, 'expected 1 to 128 letters, digits, underscores, dots or dashes')
  }
  description.object('parameters')
  return {
    name,
    description: description.string('description'),
    parameters: (description.raw('parameters') as Record<string, unknown> | undefined) ?? {
      type: 'object',
      properties: {},
    },
    strict: description.boolean('strict'),
  }
}

/** What the model is told. */
export function toolInstructions({ tools, choice, parallel }: ToolUse): string {
  const declarations = tools.map(({ name, description, parameters }) => ({
    name,
    ...(description !== undefined && { description }),
    parameters,
  }))
  const intent = choice === 'required' ? 'You must call' : 'If you decide to call'
  const several = parallel ? ', or a JSON array of such objects to call several' : ', and only one of them'
  return [
    'You have access to functions.',
    `${intent} ${choice === 'required' ? 'one: answer' : 'any of them, answer'} with nothing but`,
    '{"name": function name, "parameters": dictionary of argument name and its value}',
    `${several}. Do not write any other text in an answer that calls a function.\n`,
  ]
    .join(' ')
    .replace(' ,', ',')
    .concat(JSON.stringify(declarations))
}

/** Calls as the model writes them: what it reads again is what it wrote. */
export function renderCalls(calls: readonly CallRecord[]): string {
  const rendered = calls.map(
    ({ name, arguments: given }) => `{"name": ${JSON.stringify(name)}, "parameters": ${given}}`,
  )
  return rendered.length === 1 ? (rendered[0] as string) : `[${rendered.join(', ')}]`
}

/** What a function returned, as the user's side tells it. */
export function renderResult(name: string | undefined, text: string): string {
  let value: unknown = text
  try {
    value = JSON.parse(text)
  } catch {
    // Plain text is a string of JSON.
  }
  return JSON.stringify(name === undefined ? { response: value } : { name, response: value })
}

/**
 * The schema of an answer that must call: one call, or an array of calls. The name comes before the parameters, which are those of the
 * function named.
 */
export function callSchema({ tools, parallel }: ToolUse): Record<string, unknown> {
  const call = {
    anyOf: tools.map(({ name, parameters }) => ({
      type: 'object',
      properties: { name: { const: name }, parameters },
      required: ['name', 'parameters'],
      additionalProperties: false,
    })),
  }
  return parallel ? { anyOf: [...call.anyOf, { type: 'array', items: call, minItems: 1 }] } : call
}
