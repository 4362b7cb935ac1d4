/**
 * How a model is loaded.
 * @module
 */
import type { StoredTensor } from '../../checkpoint/checkpoint.ts'
import type { LinearWeight } from '../../checkpoint/linear.ts'
import { type DType, dtypes } from '../../dtype.ts'

/** How the head is kept: as the file stores it, or rounded to 8 or 4 bits. Decoding reads all of it for each token. */
export type HeadFormat = 'stored' | 'q8_0' | 'q4_0'
export const headFormats: readonly HeadFormat[] = ['stored', 'q8_0', 'q4_0']

/**
 * What `head` is by default: the fewest bytes whose loss is lost in that of the layers (README, "Quality"). Beside layers of 4 or 5 bits a
 * head of 4 adds a twentieth to a fifth of their divergence, once its largest logits are refined; beside 8 or 16 bits a head of 8 adds nothing that
 * shows. A head that is as small already, or that exactness was asked for, stays.
 *
 * @param layer How the layers' matrices are stored.
 * @param head The matrix that the head is made from.
 */
export function defaultHead(layer: LinearWeight, head: StoredTensor): HeadFormat {
  const columns = head.shape[1] as number
  if (columns % 32 !== 0) return 'stored'
  const bits = (8 * head.bytes) / head.shape.reduce((product, dim) => product * dim, 1)
  const layerBits = layer.format === 'stored' ? bitsOf(layer.weight.dtype) : layer.format === 'i8_channel' ? 8 : 4
  if (layerBits > 16) return 'stored'
  if (layerBits < 6) return bits > 5 ? 'q4_0' : 'stored'
  return bits > 9 ? 'q8_0' : 'stored'
}

function bitsOf(dtype: DType | undefined): number {
  const info = dtypes.find(({ name }) => name === dtype)
  return info ? (8 * info.blockBytes) / info.block : Number.POSITIVE_INFINITY
}

/** What `refine` is by default. */
export const defaultRefine: number = 256

export interface GemmaLoadOptions {
  /** Default: by how the layers are stored (4 bits beside 4-bit layers, 8 beside wider ones). Look-ups of the embedding use the stored rows whatever the head is. */
  readonly head?: HeadFormat | undefined
  /**
   * With a rounded head: how many of a row's largest logits are computed again from the stored matrix. 0: none. Default
   * 256.
   */
  readonly refine?: number | undefined
  /** What activations are rounded to between ops. Default: bf16; f32 where the weights are f32. The residual stream is f32 always. */
  readonly activations?: 'f32' | 'bf16' | undefined
  /** `f32` widens every matrix, the head included: slow, large, and as exact as the file. For references. Default `stored`. */
  readonly weights?: 'stored' | 'f32' | undefined
  /**
   * Keeps the packed matrices in a file, so that the next load is fast: true beside the checkpoint, or in the folder named here, which is
   * made where it is missing. Default true for models above 64 MB. Where the file cannot be written, the model loads without it. The file is replaced when the checkpoint's
   * files change in size or time.
   */
  readonly packedCache?: boolean | string | undefined
  /** Told the bytes of matrices done so far, and of all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
  /** Ends the load with ERR_ABORTED. */
  readonly signal?: AbortSignal | undefined
}
