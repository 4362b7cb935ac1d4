/**
 * `lapidary perplexity`: how well a model predicts a text.
 * @module
 */
import { formatCount, formatNumber } from './format.ts'
import { Interrupt } from './interrupt.ts'
import { loadModel } from './model.ts'
import type { ModelOptions } from './options.ts'
import { Progress } from './progress.ts'
import { readPrompt } from './prompt.ts'
import { note, print, printJson } from './terminal.ts'

export interface PerplexityCommandOptions extends ModelOptions {
  json?: boolean
  quiet?: boolean
  stride?: number
}

/** Runs the command. `file` may be `-`: standard input. */
export async function perplexity(file: string, options: PerplexityCommandOptions): Promise<void> {
  const text = await readPrompt(undefined, file)
  using interrupt = new Interrupt()
  await using gemma = await loadModel(options, interrupt.signal)
  using progress = new Progress('reading', 'tokens')
  const start = performance.now()
  const { contextLength, stride } = options
  const result = await gemma.perplexity(text, {
    contextLength,
    stride,
    signal: interrupt.signal,
    onProgress: (done, total) => progress.update(done, total),
  })
  const seconds = (performance.now() - start) / 1000
  const tokensPerSecond = result.tokens / seconds
  progress[Symbol.dispose]()
  if (options.json) return printJson({ ...result, seconds, tokensPerSecond })
  print(`perplexity ${result.perplexity.toPrecision(6)} over ${formatCount(result.tokens)} tokens\n`)
  if (!options.quiet) note(`${formatNumber(tokensPerSecond)} tokens/s`)
}
