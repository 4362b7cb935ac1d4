/**
 * The configuration of a Gemma 1, 2, 3 (text) or EmbeddingGemma model, in one normal form whatever file it comes from.
 * @module
 */
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import { LapidaryError } from '../../errors.ts'
import { ggufConfig } from './config-gguf.ts'
import { hfConfig } from './config-hf.ts'

/** The model families that this package runs. */
export type Architecture = 'gemma' | 'gemma2' | 'gemma3' | 'gemma-embedding'
/** Local layers see a sliding window of keys, global ones all. */
export type LayerType = 'local' | 'global'

/** The sizes that a model is told by, whatever form its configuration has. */
export type GemmaDimensions = Pick<
  GemmaConfig,
  'layers' | 'hiddenSize' | 'ffnSize' | 'queryHeads' | 'kvHeads' | 'headDim' | 'contextLength' | 'window'
>

/** What differs between Gemma models; everything a forward pass needs to know beside the weights. */
export interface GemmaConfig {
  readonly architecture: Architecture
  readonly layers: number
  readonly hiddenSize: number
  /** Columns of gate and of up. */
  readonly ffnSize: number
  readonly queryHeads: number
  readonly kvHeads: number
  readonly headDim: number
  /** Rows of the embedding, which may be more than the tokenizer has pieces. */
  readonly vocabularySize: number
  /** Tokens that the model was trained to see at once. */
  readonly contextLength: number
  /**
   * Keys that a query of a local layer sees, its own included; 0: there are no local layers. Where `bidirectional`, key j is visible to
   * query i while |i − j| ≤ ⌊window / 2⌋.
   */
  readonly window: number
  readonly layerTypes: readonly LayerType[]
  /** Base of the rotary frequencies. */
  readonly ropeTheta: Readonly<Record<LayerType, number>>
  /** Factor of positions before rotation: 1/8 in the global layers of Gemma 3 models that were extended to 128K tokens. */
  readonly positionScale: Readonly<Record<LayerType, number>>
  /** Factor of attention scores. */
  readonly queryScale: number
  /** cap of cap · tanh(score / cap); 0: none. */
  readonly attentionSoftcap: number
  /** The same for logits. */
  readonly finalSoftcap: number
  /** Added to the mean square in every norm. */
  readonly normEps: number
  /** Added to norm weights: 1, or 0 where the file has added it (GGUF). */
  readonly normBias: 0 | 1
  /** Whether sub-layer outputs are normalised before the residual add (all but Gemma 1). */
  readonly postNorms: boolean
  /** Whether heads of q and k are normalised (Gemma 3). */
  readonly qkNorm: boolean
  /** Whether queries see keys on both sides (EmbeddingGemma). */
  readonly bidirectional: boolean
  /** Factor of embedding rows: √hiddenSize, rounded to the dtype of the weights as the reference does. */
  readonly embeddingScale: number
}

/**
 * Reads the configuration of a checkpoint: Hugging Face's config.json in its older and newer forms, also the text half of a multimodal
 * one, or the metadata of a GGUF file.
 *
 * @throws ERR_CHECKPOINT_UNSUPPORTED for other architectures and features, ERR_CHECKPOINT_CORRUPT for values that make no sense; both
 *   name the file and the key.
 */
export function gemmaConfig(checkpoint: Checkpoint): GemmaConfig {
  const config = checkpoint.format === 'gguf' ? ggufConfig(checkpoint) : hfConfig(checkpoint)
  if (config.queryHeads % config.kvHeads !== 0) {
    throw new LapidaryError(
      'ERR_CHECKPOINT_CORRUPT',
      `${checkpoint.path}: expected query heads in equal groups, got ${config.queryHeads} for ${config.kvHeads} key-value heads`,
    )
  }
  return config
}
