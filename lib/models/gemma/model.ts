/**
 * A Gemma model on a device: what the forward pass reads.
 * @module
 */
import type { Tensor } from '../../tensor.ts'
import type { GemmaConfig } from './config.ts'

/** A matrix that a layer multiplies by. */
export interface Projection {
  /** Packed. */
  readonly weight: Tensor
  /** i32: where GPTQ quantised columns in the order of their activations, that order. */
  readonly columnOrder: Tensor | undefined
}

/** What computes one or more of q, k and v: its rows are the heads of each, in that order. */
export interface HeadProjection extends Projection {
  /** Heads of each part. */
  readonly heads: readonly number[]
}

/** The weights of one decoder layer. Matrices are packed; norms are f32. */
export interface LayerTensors {
  readonly attentionNorm: Tensor
  /** q, k and v stacked; in parts where their formats differ, as in some K-quantised files. */
  readonly qkv: readonly HeadProjection[]
  readonly qNorm: Tensor | undefined
  readonly kNorm: Tensor | undefined
  readonly output: Projection
  readonly attentionPostNorm: Tensor | undefined
  readonly ffnNorm: Tensor
  /** gate and up interleaved for matmul's `geglu` epilogue; or two matrices where their formats differ. */
  readonly gateUp: readonly [gateUp: Projection] | readonly [gate: Projection, up: Projection]
  readonly down: Projection
  readonly ffnPostNorm: Tensor | undefined
}

/** Configuration and weights, as the functions of forward.ts and encoder.ts take them. */
export interface ModelTensors {
  readonly config: GemmaConfig
  /** What activations are rounded to between ops; the residual stream is always f32. */
  readonly activations: 'f32' | 'bf16'
  /** [vocabulary, hiddenSize]: mapped from the file, of which only rows that are looked up are read; or a head of the same values. */
  readonly embedding: Tensor
  readonly layers: readonly LayerTensors[]
  readonly finalNorm: Tensor
  /** [vocabulary, hiddenSize], packed. EmbeddingGemma has none. */
  readonly head: Tensor | undefined
  /** Where the head was rounded: the matrix as stored, from which that many of a row's largest logits are computed again. */
  readonly refinement?: { readonly table: Tensor; readonly top: number } | undefined
  /** EmbeddingGemma's matrices after pooling, packed; of other models empty. */
  readonly dense: readonly Tensor[]
}
