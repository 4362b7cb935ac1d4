/**
 * A vision tower on a device: what the forward pass reads.
 * @module
 */
import type { Tensor } from '../../tensor.ts'
import type { VisionConfig } from './config.ts'

/** A packed matrix, or the weight of a norm, and what is added after it: f32. */
export interface Affine {
  readonly weight: Tensor
  readonly bias: Tensor
}

/** The weights of one encoder layer. */
export interface VisionLayer {
  readonly attentionNorm: Affine
  /** q, k and v stacked; in parts where they cannot be, each computing so many of the three. */
  readonly qkv: readonly (Affine & { readonly parts: number })[]
  readonly output: Affine
  readonly ffnNorm: Affine
  readonly up: Affine
  readonly down: Affine
}

/** Configuration and weights, as the functions of forward.ts take them. */
export interface VisionTensors {
  readonly config: VisionConfig
  /** What activations are rounded to between ops; the residual stream is always f32. */
  readonly activations: 'f32' | 'bf16'
  /** Columns of a head as computed: a multiple of 8, the rest of them zeros. */
  readonly headColumns: number
  readonly patch: Affine
  /** f32 [patches, width], in the order of the patches (see `patchOrder`). */
  readonly positions: Tensor
  readonly layers: readonly VisionLayer[]
  readonly finalNorm: Affine
  /** f32 [width] */
  readonly softNorm: Tensor
  /** [hiddenSize, width], packed. */
  readonly projection: Tensor
  /** i32 [imageTokens + 1]: the patches of each soft token. */
  readonly poolStarts: Tensor
}
