/**
 * What an answer must look like, as a grammar.
 * @module
 */
import type { Gemma } from '../index.ts'
import type { AnswerFormat } from './answer.ts'
import { ApiError } from './api-error.ts'
import type { ToolUse } from './tools.ts'

/** The grammar of an answer; undefined: anything goes. */
export async function grammarFor(
  _gemma: Gemma,
  format: AnswerFormat | undefined,
  tools: ToolUse | undefined,
): Promise<undefined> {
  if (format || tools?.choice === 'required') throw new ApiError(400, 'response_format: not supported yet')
}
