/**
 * Where a checkpoint keeps the weights of a vision tower and its projector.
 * @module
 */
import type { Checkpoint, StoredTensor } from '../../checkpoint/checkpoint.ts'
import type { LinearWeight } from '../../checkpoint/linear.ts'
import { LapidaryError } from '../../errors.ts'
import { WeightReader } from '../gemma/weights.ts'
import type { VisionConfig } from './config.ts'

/** Weight and bias. */
export interface StoredAffine<Weight = StoredTensor> {
  readonly weight: Weight
  readonly bias: StoredTensor
}

/** The stored weights of one encoder layer. */
export interface VisionLayerWeights {
  readonly attentionNorm: StoredAffine
  readonly q: StoredAffine<LinearWeight>
  readonly k: StoredAffine<LinearWeight>
  readonly v: StoredAffine<LinearWeight>
  readonly output: StoredAffine<LinearWeight>
  readonly ffnNorm: StoredAffine
  readonly up: StoredAffine<LinearWeight>
  readonly down: StoredAffine<LinearWeight>
}

/** All stored weights of a tower and its projector. */
export interface VisionWeights {
  /** The files that hold them. */
  readonly files: readonly string[]
  /** The convolution's kernel [width, 3, patchSize, patchSize]. */
  readonly patch: StoredAffine
  /** [patches, width], in raster order. */
  readonly positions: StoredTensor
  readonly layers: readonly VisionLayerWeights[]
  readonly finalNorm: StoredAffine
  readonly softNorm: StoredTensor
  /** [width, hiddenSize]: soft tokens are x · W, not x · Wᵀ. */
  readonly projection: StoredTensor
}

interface Names {
  readonly layers: string
  readonly patch: string
  readonly positions: string
  readonly finalNorm: string
  readonly softNorm: string
  readonly projection: string
  readonly layer: Readonly<Record<keyof VisionLayerWeights, string>>
}

const ggufNames: Names = {
  layers: 'v.blk',
  patch: 'v.patch_embd',
  positions: 'v.position_embd.weight',
  finalNorm: 'v.post_ln',
  softNorm: 'mm.soft_emb_norm.weight',
  projection: 'mm.input_projection.weight',
  layer: {
    attentionNorm: 'ln1',
    q: 'attn_q',
    k: 'attn_k',
    v: 'attn_v',
    output: 'attn_out',
    ffnNorm: 'ln2',
    up: 'ffn_up',
    down: 'ffn_down',
  },
}

/** As llama.cpp's first converter wrote them, of which the most downloaded files are: what goes up is called down. */
const exchangedGgufNames: Names = { ...ggufNames, layer: { ...ggufNames.layer, up: 'ffn_down', down: 'ffn_up' } }

function hfNames(tower: string, projector: string): Names {
  return {
    layers: `${tower}encoder.layers`,
    patch: `${tower}embeddings.patch_embedding`,
    positions: `${tower}embeddings.position_embedding.weight`,
    finalNorm: `${tower}post_layernorm`,
    softNorm: `${projector}mm_soft_emb_norm.weight`,
    projection: `${projector}mm_input_projection_weight`,
    layer: {
      attentionNorm: 'layer_norm1',
      q: 'self_attn.q_proj',
      k: 'self_attn.k_proj',
      v: 'self_attn.v_proj',
      output: 'self_attn.out_proj',
      ffnNorm: 'layer_norm2',
      up: 'mlp.fc1',
      down: 'mlp.fc2',
    },
  }
}

/** As published; as transformers 4.52 and 5 write them. */
const hfPrefixes = [
  ['vision_tower.vision_model.', 'multi_modal_projector.'],
  ['model.vision_tower.vision_model.', 'model.multi_modal_projector.'],
  ['model.vision_tower.', 'model.multi_modal_projector.'],
  ['vision_tower.', 'multi_modal_projector.'],
] as const

/** Whether a Hugging Face checkpoint holds a tower: text-only copies keep the configuration of one. */
export function hasVisionWeights(checkpoint: Checkpoint): boolean {
  return hfPrefixes.some(([tower]) => checkpoint.tensors.has(hfNames(tower, '').positions))
}

/**
 * Finds every weight of the tower and checks its shape.
 *
 * @throws ERR_CHECKPOINT_CORRUPT if a tensor is absent or has another shape than the configuration says; ERR_CHECKPOINT_UNSUPPORTED for a
 *   type that no kernel reads. Errors name file, tensor and byte offset.
 */
export function visionWeights(checkpoint: Checkpoint, config: VisionConfig): VisionWeights {
  const names = namesOf(checkpoint, config)
  const { width, ffnSize, hiddenSize, patchSize, patchesPerSide } = config
  const reader = new WeightReader(checkpoint)
  const norm = (name: string): StoredAffine => ({
    weight: reader.vector(`${name}.weight`, width),
    bias: reader.vector(`${name}.bias`, width),
  })
  const layers = Array.from({ length: config.layers }, (_, layer): VisionLayerWeights => {
    const name = (part: keyof VisionLayerWeights) => `${names.layers}.${layer}.${names.layer[part]}`
    const linear = (part: keyof VisionLayerWeights, rows: number, columns: number) => ({
      weight: reader.matrix(name(part), [rows, columns]),
      bias: reader.vector(`${name(part)}.bias`, rows),
    })
    return {
      attentionNorm: norm(name('attentionNorm')),
      q: linear('q', width, width),
      k: linear('k', width, width),
      v: linear('v', width, width),
      output: linear('output', width, width),
      ffnNorm: norm(name('ffnNorm')),
      up: linear('up', ffnSize, width),
      down: linear('down', width, ffnSize),
    }
  })
  return {
    files: checkpoint.files,
    patch: {
      weight: reader.plain(`${names.patch}.weight`, [width, 3, patchSize, patchSize]),
      bias: reader.vector(`${names.patch}.bias`, width),
    },
    positions: reader.plain(names.positions, [patchesPerSide ** 2, width]),
    layers,
    finalNorm: norm(names.finalNorm),
    softNorm: reader.vector(names.softNorm, width),
    projection: reader.plain(names.projection, [width, hiddenSize]),
  }
}

function namesOf(checkpoint: Checkpoint, { width, ffnSize }: VisionConfig): Names {
  if (checkpoint.format === 'gguf') {
    const columns = checkpoint.tensors.get('v.blk.0.ffn_down.weight')?.shape[1]
    return columns === width && columns !== ffnSize ? exchangedGgufNames : ggufNames
  }
  const all = hfPrefixes.map(([tower, projector]) => hfNames(tower, projector))
  const names = all.find(({ positions }) => checkpoint.tensors.has(positions))
  if (names) return names
  throw new LapidaryError(
    'ERR_CHECKPOINT_CORRUPT',
    `${checkpoint.path}: expected a tensor named ${all.map(({ positions }) => positions).join(', ')}; found none`,
  )
}
