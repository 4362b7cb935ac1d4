/**
 * Loading a model for a command, and saying how it did.
 * @module
 */
import { basename } from 'node:path'
import type { Gemma, GemmaOptions, GenerationResult } from '../index.ts'
import { formatNumber, formatSeconds } from './format.ts'
import { given, type ModelOptions, modelOptionNames } from './options.ts'
import { Progress } from './progress.ts'

/** Of a command's options those that say which model is run and how. */
function pickModelOptions(options: ModelOptions): ModelOptions {
  return Object.fromEntries(modelOptionNames.map((name) => [name, options[name]]))
}

/** Loads the model that the options name, or the bundled one, with a line of progress. */
export async function loadModel(options: ModelOptions, signal?: AbortSignal): Promise<Gemma> {
  const { Gemma } = await import('../index.ts')
  const name = options.model === undefined ? 'the bundled model' : basename(options.model)
  using progress = new Progress(`loading ${name}`, 'bytes')
  return await Gemma.load(options.model, {
    ...(given(pickModelOptions(options), 'model') as GemmaOptions),
    // A command runs one sequence: the cache need not hold more.
    maxSequences: 1,
    onProgress: (done, total) => progress.update(done, total),
    ...(signal && { signal }),
  })
}

/** How fast it went, in one line. */
export function summarize({ promptTokens, cachedTokens, tokens, timings, finishReason }: GenerationResult): string {
  const speed = (count: number, ms: number): string => `${formatNumber((1000 * count) / Math.max(ms, 1e-3))} tokens/s`
  const evaluated = promptTokens - cachedTokens
  const cached = cachedTokens > 0 ? ` and ${cachedTokens} cached` : ''
  return [
    `prompt ${evaluated}${cached} tokens, ${speed(evaluated, timings.prefillMs)}`,
    `answer ${tokens} tokens, ${speed(Math.max(tokens - 1, 0), timings.decodeMs)}`,
    formatSeconds(timings.totalMs / 1000),
    `ended: ${finishReason}`,
  ].join(' · ')
}
