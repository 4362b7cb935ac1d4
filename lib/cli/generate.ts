/**
 * `lapidary generate`: continues a text.
 * @module
 */
import type { GenerateOptions } from '../index.ts'
import { Interrupt, interruptedStatus } from './interrupt.ts'
import { loadModel, summarize } from './model.ts'
import { given, type ModelOptions, modelOptionNames, type SamplingOptions } from './options.ts'
import { readPrompt, withImages } from './prompt.ts'
import { note, print, printJsonLine, printText, styled, visible } from './terminal.ts'

export interface GenerateCommandOptions extends ModelOptions, SamplingOptions {
  file?: string
  image?: string[]
  json?: boolean
  quiet?: boolean
}

/** Runs the command. */
export async function generate(argument: string | undefined, options: GenerateCommandOptions): Promise<void> {
  const prompt = await readPrompt(argument, options.file)
  using interrupt = new Interrupt()
  await using gemma = await loadModel(options, interrupt.signal)
  const sampling = given(options, ...modelOptionNames, 'file', 'image', 'json', 'quiet') as GenerateOptions
  const content = options.image ? withImages(options.image, prompt) : prompt
  const generation = gemma.stream(content, { ...sampling, signal: interrupt.signal })
  // At a terminal the text is for reading, and begins with what was given.
  if (!options.json && process.stdout.isTTY) print(styled('bold', visible(prompt)))
  let last = ''
  for await (const piece of generation) {
    if (options.json) printJsonLine({ type: 'piece', ...piece })
    else printText(piece.text)
    last = piece.text || last
  }
  const result = await generation.result
  if (options.json) printJsonLine({ type: 'result', ...result })
  else if (!last.endsWith('\n')) print('\n')
  if (!options.quiet && !options.json) note(summarize(result))
  if (interrupt.signal.aborted) process.exitCode = interruptedStatus
}
