/**
 * `lapidary quantize`: a smaller GGUF file of a checkpoint of floats.
 * @module
 */
import { existsSync, statSync } from 'node:fs'
import { basename } from 'node:path'
import { openCheckpoint } from '../checkpoint/checkpoint.ts'
import { Device, LapidaryError } from '../index.ts'
import { type QuantizedHeadType, type QuantizedType, quantizeCheckpoint } from '../models/gemma/quantize.ts'
import { formatBytes, formatSeconds } from './format.ts'
import { Interrupt } from './interrupt.ts'
import { Progress } from './progress.ts'
import { print, printJson } from './terminal.ts'

export interface QuantizeCommandOptions {
  type: QuantizedType
  head: QuantizedHeadType
  force?: boolean
  json?: boolean
}

function checkOutput(path: string, force: boolean): void {
  if (existsSync(path) && statSync(path).isFile() && !force)
    throw new LapidaryError('ERR_FILE', `${path}: exists; --force replaces it`)
}

/** Runs the command. */
export async function quantize(input: string, output: string, options: QuantizeCommandOptions): Promise<void> {
  checkOutput(output, options.force === true)
  const { type, head } = options
  using interrupt = new Interrupt()
  const checkpoint = await openCheckpoint(input)
  using device = await Device.open()
  using progress = new Progress(`writing ${basename(output)}`, 'bytes')
  const start = performance.now()
  const bytes = await quantizeCheckpoint(device, checkpoint, output, {
    type,
    headType: head,
    onProgress: (done, total) => progress.update(done, total),
    signal: interrupt.signal,
  })
  const seconds = (performance.now() - start) / 1000
  progress[Symbol.dispose]()
  const inputBytes = checkpoint.files.reduce((sum, file) => sum + statSync(file).size, 0)
  if (options.json) printJson({ input, output, type, head, bytes, inputBytes, seconds })
  else print(`${output}: ${formatBytes(bytes)} of ${formatBytes(inputBytes)}, in ${formatSeconds(seconds)}\n`)
}
