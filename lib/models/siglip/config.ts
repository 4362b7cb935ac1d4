/**
 * The configuration of Gemma 3's vision tower, in one normal form whatever file it comes from.
 * @module
 */
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import { LapidaryError } from '../../errors.ts'
import { Fields, limits } from '../gemma/config-fields.ts'

/** Sizes of a SigLIP encoder and of the projector behind it. */
export interface VisionConfig {
  readonly layers: number
  /** Columns of the encoder's states. */
  readonly width: number
  readonly ffnSize: number
  readonly heads: number
  readonly headDim: number
  /** Pixels of a side: images are resized to a square. */
  readonly imageSize: number
  /** Pixels of a patch's side. */
  readonly patchSize: number
  /** Patches of a side. */
  readonly patchesPerSide: number
  /** Patches of a side that are averaged into one soft token. */
  readonly poolSize: number
  /** Soft tokens of an image. */
  readonly imageTokens: number
  /** Columns of a soft token: the hidden size of the text model. */
  readonly hiddenSize: number
  /** Added to the variance in LayerNorm, and to the mean square in the norm before the projection. */
  readonly normEps: number
  /** Added to the weight of the norm before the projection: 1, or 0 where the file has added it (GGUF). */
  readonly softNormBias: 0 | 1
  /** Of each channel: (x / 255 − mean) / std. */
  readonly mean: readonly number[]
  readonly std: readonly number[]
}

/** What no tower comes near. */
const largestImage = 4096
const largestPatch = 256

/**
 * The vision half of a Hugging Face checkpoint; undefined if it has none.
 * @throws ERR_CHECKPOINT_UNSUPPORTED for another kind of tower, ERR_CHECKPOINT_CORRUPT for values that make no sense.
 */
export function hfVisionConfig(checkpoint: Checkpoint, hiddenSize: number): VisionConfig | undefined {
  const top = new Fields(checkpoint.config, checkpoint.path)
  const fields = top.value('model_type') === 'gemma3' ? top.record('vision_config') : undefined
  if (fields === undefined) return undefined
  // What transformers assumes where the file is silent: its class SiglipVisionConfig.
  fields.only('model_type', 'siglip_vision_model')
  fields.only('hidden_act', 'gelu_pytorch_tanh')
  fields.only('num_channels', 3)
  fields.only('vision_use_head', false)
  const sizes = {
    layers: fields.dimension('num_hidden_layers', limits.layers, 12),
    width: fields.dimension('hidden_size', limits.hiddenSize, 768),
    ffnSize: fields.dimension('intermediate_size', limits.ffnSize, 3072),
    heads: fields.dimension('num_attention_heads', limits.heads, 12),
    imageSize: fields.dimension('image_size', largestImage, 224),
    patchSize: fields.dimension('patch_size', largestPatch, 16),
    normEps: fields.number('layer_norm_eps', [0, 1e-2], 1e-6),
  }
  const tokens = top.dimension('mm_tokens_per_image', limits.contextLength, 256)
  const perSide = Math.sqrt(tokens)
  if (!Number.isInteger(perSide)) throw top.error('ERR_CHECKPOINT_CORRUPT', 'mm_tokens_per_image', 'a square')
  const poolSize = Math.floor(sizes.imageSize / sizes.patchSize) / perSide
  return derived(checkpoint, { ...sizes, poolSize, hiddenSize, softNormBias: 1, mean: halves, std: halves })
}

const halves = [0.5, 0.5, 0.5]

/**
 * The configuration of a GGUF projector file (`mmproj`) for Gemma 3.
 * @throws as {@link hfVisionConfig}; also if the file is one for another kind of model.
 */
export function ggufVisionConfig(checkpoint: Checkpoint): VisionConfig {
  const top = new Fields(checkpoint.config, checkpoint.path)
  top.only('general.architecture', 'clip')
  const type = top.has('clip.vision.projector_type') ? 'clip.vision.projector_type' : 'clip.projector_type'
  if (top.value(type) !== 'gemma3') throw top.error('ERR_CHECKPOINT_UNSUPPORTED', type, 'gemma3')
  const fields = new Fields(checkpoint.config, checkpoint.path, 'clip.vision.')
  return derived(checkpoint, {
    layers: fields.dimension('block_count', limits.layers),
    width: fields.dimension('embedding_length', limits.hiddenSize),
    ffnSize: fields.dimension('feed_forward_length', limits.ffnSize),
    heads: fields.dimension('attention.head_count', limits.heads),
    imageSize: fields.dimension('image_size', largestImage),
    patchSize: fields.dimension('patch_size', largestPatch),
    normEps: fields.number('attention.layer_norm_epsilon', [0, 1e-2], 1e-6),
    // Writers leave it out where it is that of the published models.
    poolSize: fields.dimension('projector.scale_factor', largestImage, 4),
    hiddenSize: fields.dimension('projection_dim', limits.hiddenSize),
    softNormBias: 0,
    mean: channels(fields, 'image_mean'),
    std: channels(fields, 'image_std'),
  })
}

function channels(fields: Fields, key: string): readonly number[] {
  const value = fields.value(key)
  if (value === undefined) return halves
  const numbers = Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value as ArrayLike<unknown>) : []
  const fits = (number: unknown): boolean => typeof number === 'number' && Number.isFinite(number)
  if (numbers.length === 3 && numbers.every(fits) && (key !== 'image_std' || numbers.every((x) => (x as number) > 0))) {
    return numbers as number[]
  }
  throw fields.error('ERR_CHECKPOINT_CORRUPT', key, 'three numbers')
}

type Sizes = Omit<VisionConfig, 'headDim' | 'patchesPerSide' | 'imageTokens'>

function derived(checkpoint: Checkpoint, sizes: Sizes): VisionConfig {
  const { width, heads, imageSize, patchSize, poolSize } = sizes
  const patchesPerSide = imageSize / patchSize
  const check = (holds: boolean, what: string) => {
    if (!holds) throw new LapidaryError('ERR_CHECKPOINT_CORRUPT', `${checkpoint.path}: vision: expected ${what}`)
  }
  check(width % heads === 0, `heads in equal parts of ${width} columns, got ${heads}`)
  check(Number.isInteger(patchesPerSide), `images of whole patches, got ${imageSize} pixels of patches of ${patchSize}`)
  check(
    Number.isInteger(poolSize) && patchesPerSide % poolSize === 0,
    `${patchesPerSide} patches of a side in whole soft tokens, got ${poolSize} for each`,
  )
  return { ...sizes, headDim: width / heads, patchesPerSide, imageTokens: (patchesPerSide / poolSize) ** 2 }
}
