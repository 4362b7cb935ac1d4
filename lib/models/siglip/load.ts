/**
 * Loading a vision tower to a device.
 * @module
 */
import type { Device } from '../../device.ts'
import type { Stream } from '../../stream.ts'
import type { Tensor } from '../../tensor.ts'
import type { GemmaLoadOptions } from '../gemma/load-options.ts'
import type { VisionConfig } from './config.ts'
import { VisionLoader } from './loader.ts'
import type { VisionTensors } from './model.ts'
import type { VisionWeights } from './weights.ts'

export interface VisionLoadOptions
  extends Pick<GemmaLoadOptions, 'activations' | 'weights' | 'packedCache' | 'signal'> {
  /** Where loading and packing are queued. Default: the device's current stream. */
  readonly stream?: Stream | undefined
}

/**
 * A vision tower on a device. Its matrices are packed in the device's memory, as the file stores them.
 *
 * @example
 * using tower = await VisionModel.load(device, config, visionWeights(checkpoint, config))
 */
export class VisionModel implements Disposable {
  /** What the functions of forward.ts take. */
  readonly tensors: VisionTensors
  /** Of the packed matrices, in memory. */
  readonly weightBytes: number
  /** The packed cache that the matrices came from, or that was written; undefined without one. */
  readonly cacheFile: string | undefined
  /** Whether the matrices came from the packed cache. */
  readonly fromCache: boolean
  readonly #made: readonly Tensor[]

  private constructor(tensors: VisionTensors, loader: VisionLoader) {
    this.tensors = tensors
    this.weightBytes = loader.packedBytes
    this.cacheFile = loader.cacheFile
    this.fromCache = loader.fromCache
    this.#made = loader.made
  }

  /**
   * Packs the matrices of a tower, or reads them from the packed cache: a file beside the tower's own, under the rules of
   * `GemmaLoadOptions.packedCache`.
   * @throws ERR_CHECKPOINT_CORRUPT, ERR_CHECKPOINT_UNSUPPORTED, ERR_FILE, ERR_OUT_OF_MEMORY, ERR_ABORTED. What was loaded until then is
   *   released.
   */
  static async load(
    device: Device,
    config: VisionConfig,
    weights: VisionWeights,
    options: VisionLoadOptions = {},
  ): Promise<VisionModel> {
    const loader = new VisionLoader(device, config, weights, options)
    try {
      return new VisionModel(await loader.load(), loader)
    } catch (error) {
      await loader.abandon()
      throw error
    }
  }

  /** Lets go of the weights; work in flight keeps what it needs. Safe twice. */
  dispose(): void {
    for (const tensor of this.#made) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
