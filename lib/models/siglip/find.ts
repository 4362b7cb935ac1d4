/**
 * Finding the vision tower of a model: in its own files, or in a projector file beside it.
 * @module
 */
import { readdirSync } from 'node:fs'
import path from 'node:path'
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import { openProjector } from '../../checkpoint/gguf-files.ts'
import { describeValue, LapidaryError } from '../../errors.ts'
import type { GemmaConfig } from '../gemma/config.ts'
import { ggufVisionConfig, hfVisionConfig, type VisionConfig } from './config.ts'
import { hasVisionWeights, type VisionWeights, visionWeights } from './weights.ts'

/** A tower that can be loaded. */
export interface FoundVision {
  /** The file or folder that holds it. */
  readonly path: string
  readonly config: VisionConfig
  readonly weights: VisionWeights
}

/** What was found: nothing, a tower, or why the one that is there does not run. */
export interface VisionSearch {
  readonly found?: FoundVision | undefined
  readonly problem?: LapidaryError | undefined
}

/** Published files differ in precision only: bf16 is what the tower was trained in, f32 is twice as large and no better. */
const preferred = ['bf16', 'f16', 'q8_0', 'f32']

/**
 * The vision tower of a model. Reads headers only. What is wrong with a tower that was not asked for is returned, not thrown: text runs
 * without it.
 *
 * @param mmproj A projector file to take; false: none. Default: the model's own tower, or of a GGUF model a file beside it whose name holds
 *   `mmproj` and that was made for a model of this size.
 * @throws Of a file that was named: ERR_CHECKPOINT_UNSUPPORTED, ERR_CHECKPOINT_CORRUPT, ERR_FILE; ERR_INVALID_ARGUMENT if it belongs to
 *   another model.
 */
export function findVision(
  checkpoint: Checkpoint,
  text: GemmaConfig,
  mmproj?: string | false | undefined,
): VisionSearch {
  if (mmproj === false) return {}
  if (mmproj !== undefined) {
    if (typeof mmproj !== 'string') {
      throw new LapidaryError('ERR_INVALID_ARGUMENT', `mmproj: expected a path or false, got ${describeValue(mmproj)}`)
    }
    const found = openVision(mmproj)
    checkFits(found, checkpoint, text)
    return { found }
  }
  if (text.architecture !== 'gemma3') return {}
  if (checkpoint.format === 'gguf') return findBeside(checkpoint, text)
  try {
    return { found: findInside(checkpoint, text) }
  } catch (error) {
    return { problem: problemOf(error) }
  }
}

function findInside(checkpoint: Checkpoint, text: GemmaConfig): FoundVision | undefined {
  if (!hasVisionWeights(checkpoint)) return undefined
  const config = hfVisionConfig(checkpoint, text.hiddenSize)
  if (config === undefined) return undefined
  checkWindow(config, checkpoint.path, text)
  return { path: checkpoint.path, config, weights: visionWeights(checkpoint, config) }
}

/** A defect is no property of a file. */
function problemOf(error: unknown): LapidaryError {
  if (error instanceof LapidaryError) return error
  throw error
}

function openVision(file: string): FoundVision {
  const checkpoint = openProjector(file)
  const config = ggufVisionConfig(checkpoint)
  return { path: file, config, weights: visionWeights(checkpoint, config) }
}

function checkFits({ path: file, config }: FoundVision, checkpoint: Checkpoint, text: GemmaConfig): void {
  if (text.architecture !== 'gemma3') {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `mmproj: expected a Gemma 3 model for it, got ${text.architecture} (${checkpoint.path})`,
    )
  }
  if (config.hiddenSize !== text.hiddenSize) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `mmproj: ${file}: expected a projector for a hidden size of ${text.hiddenSize} (${checkpoint.path}), got one for ${config.hiddenSize}: it belongs to another model`,
    )
  }
  checkWindow(config, file, text)
}

/** Images are computed as if no window cut them: none of Gemma's does. */
function checkWindow({ imageTokens }: VisionConfig, file: string, { window, layerTypes }: GemmaConfig): void {
  if (!layerTypes.includes('local') || imageTokens <= window) return
  throw new LapidaryError(
    'ERR_CHECKPOINT_UNSUPPORTED',
    `${file}: expected images of at most as many tokens as local layers see, ${window}, got ${imageTokens}`,
  )
}

function findBeside(checkpoint: Checkpoint, text: GemmaConfig): VisionSearch {
  const folder = path.dirname(path.resolve(checkpoint.files[0] as string))
  const names = readdirSync(folder).filter((name) => /mmproj.*\.gguf$/i.test(name))
  const rank = (name: string) => {
    const at = preferred.findIndex((type) => name.toLowerCase().includes(type))
    return at < 0 ? preferred.length : at
  }
  let problem: LapidaryError | undefined
  for (const name of names.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))) {
    try {
      const found = openVision(path.join(folder, name))
      if (found.config.hiddenSize !== text.hiddenSize) continue
      checkWindow(found.config, found.path, text)
      return { found }
    } catch (error) {
      // One that is of no use does not hide another that is.
      problem ??= problemOf(error)
    }
  }
  return { problem }
}
