/**
 * Loading a Gemma model: from a checkpoint's files, or from the packed cache beside them, to a device.
 * @module
 */
import path from 'node:path'
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import type { Device } from '../../device.ts'
import { LapidaryError } from '../../errors.ts'
import type { Tensor } from '../../tensor.ts'
import { type GemmaConfig, gemmaConfig } from './config.ts'
import { sentenceDense } from './dense.ts'
import { defaultHead, type GemmaLoadOptions, type HeadFormat, headFormats } from './load-options.ts'
import { Loader } from './loader.ts'
import type { LayerTensors, ModelTensors } from './model.ts'
import { type ModelWeights, modelWeights } from './weights.ts'

export { defaultHead, defaultRefine, type GemmaLoadOptions, type HeadFormat } from './load-options.ts'

/**
 * A Gemma model on a device. Its matrices are packed in the device's memory; the embedding table stays in the file, of which look-ups
 * read single rows.
 *
 * @example
 * using model = await GemmaModel.load(device, await openCheckpoint('gemma-3-1b-it-q4_0.gguf'))
 */
export class GemmaModel implements ModelTensors, Disposable {
  readonly device: Device
  readonly config: GemmaConfig
  readonly activations: 'f32' | 'bf16'
  readonly embedding: Tensor
  readonly layers: readonly LayerTensors[]
  readonly finalNorm: Tensor
  readonly head: Tensor | undefined
  readonly refinement: ModelTensors['refinement']
  readonly dense: readonly Tensor[]
  /** Of the packed matrices, in memory. */
  readonly weightBytes: number
  /** The packed cache that the matrices came from, or that was written; undefined without one. */
  readonly cacheFile: string | undefined
  /** Whether the matrices came from the packed cache. */
  readonly fromCache: boolean
  readonly #tensors: readonly Tensor[]

  private constructor(device: Device, model: ModelTensors, loader: Loader) {
    this.device = device
    this.config = model.config
    this.activations = model.activations
    this.embedding = model.embedding
    this.layers = model.layers
    this.finalNorm = model.finalNorm
    this.head = model.head
    this.refinement = model.refinement
    this.dense = model.dense
    this.weightBytes = loader.packedBytes
    this.cacheFile = loader.cacheFile
    this.fromCache = loader.fromCache
    this.#tensors = loader.made
  }

  /**
   * Loads a model: checks every tensor against the configuration, then packs the matrices or reads them from the packed cache.
   *
   * @throws ERR_CHECKPOINT_CORRUPT, ERR_CHECKPOINT_UNSUPPORTED: the message names file, tensor, what was expected and what came, and the
   *   byte offset. ERR_INVALID_ARGUMENT for an option, ERR_ABORTED, ERR_FILE, ERR_OUT_OF_MEMORY. What was loaded until then is released.
   */
  static async load(device: Device, checkpoint: Checkpoint, options: GemmaLoadOptions = {}): Promise<GemmaModel> {
    const config = gemmaConfig(checkpoint)
    checkOptions(options, config)
    const weights = await completeWeights(checkpoint, config)
    const head = options.head ?? chooseHead(options, weights)
    const loader = new Loader(device, checkpoint, config, weights, { ...options, head })
    try {
      return new GemmaModel(device, await loader.load(), loader)
    } catch (error) {
      await loader.abandon()
      throw error
    }
  }

  /** Lets go of the weights; work in flight keeps what it needs. Safe twice. */
  dispose(): void {
    for (const tensor of this.#tensors) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function checkOptions(options: GemmaLoadOptions, { hiddenSize }: GemmaConfig): void {
  const { head, activations, weights, refine = 0 } = options
  const refuse = (option: string, expected: string, got: unknown) =>
    new LapidaryError('ERR_INVALID_ARGUMENT', `GemmaModel.load: ${option}: expected ${expected}, got ${String(got)}`)
  const oneOf = (option: string, value: string | undefined, choices: readonly string[]) => {
    if (value !== undefined && !choices.includes(value)) throw refuse(option, choices.join(', '), value)
  }
  oneOf('head', head, headFormats)
  oneOf('activations', activations, ['f32', 'bf16'])
  oneOf('weights', weights, ['stored', 'f32'])
  if (!(Number.isInteger(refine) && refine >= 0)) throw refuse('refine', 'a count, at least 0', refine)
  if (head !== undefined && head !== 'stored' && hiddenSize % 32 !== 0) {
    throw refuse('head', `stored, for a hidden size that is no multiple of 32 (${hiddenSize})`, head)
  }
}

function chooseHead(options: GemmaLoadOptions, weights: ModelWeights): HeadFormat {
  const first = weights.layers[0]?.q
  if (options.weights === 'f32' || first === undefined) return 'stored'
  return defaultHead(first, weights.head ?? weights.embedding)
}

/** Sentence-transformers keeps the layers after pooling in folders of their own. */
async function completeWeights(checkpoint: Checkpoint, config: GemmaConfig): Promise<ModelWeights> {
  const weights = modelWeights(checkpoint, config)
  if (!config.bidirectional || checkpoint.format === 'gguf') return weights
  const dense = await sentenceDense(path.dirname(path.resolve(checkpoint.files[0] as string)), config.hiddenSize)
  return { ...weights, dense }
}
