/**
 * What an answer must look like, as a grammar.
 * @module
 */
import { type Gemma, type Grammar, LapidaryError } from '../index.ts'
import type { AnswerFormat } from './answer.ts'
import { invalid } from './api-error.ts'
import { callSchema, type ToolUse } from './tools.ts'

/**
 * The grammar of an answer; undefined: anything goes. An answer that must call a function is a call, whatever `response_format` says.
 * @throws ApiError 400 for a schema that cannot be compiled.
 */
export async function grammarFor(
  gemma: Gemma,
  format: AnswerFormat | undefined,
  tools: ToolUse | undefined,
): Promise<Grammar | undefined> {
  const calls = tools?.choice === 'required'
  try {
    if (calls) return await gemma.compileGrammar({ schema: callSchema(tools) })
    if (format?.type === 'json') return await gemma.compileGrammar({ schema: { type: 'object' }, strict: false })
    if (format) return await gemma.compileGrammar({ schema: format.schema, strict: format.strict })
    return undefined
  } catch (error) {
    if (!(error instanceof LapidaryError) || error.code !== 'ERR_INVALID_ARGUMENT') throw error
    throw invalid(calls ? 'tools' : 'response_format', error.message, 'invalid_schema')
  }
}
