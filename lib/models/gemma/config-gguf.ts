/**
 * Gemma's configuration from the metadata of a GGUF file.
 * @module
 */
import type { Checkpoint, StoredTensor } from '../../checkpoint/checkpoint.ts'
import { LapidaryError } from '../../errors.ts'
import type { Architecture, GemmaConfig, LayerType } from './config.ts'
import { Fields, limits } from './config-fields.ts'
import { patternLayers } from './config-hf.ts'
import { scaleFor } from './embedding-scale.ts'
import { embeddingTensor } from './weights.ts'

/**
 * Layers of the 27B models, whose query scale is (hiddenSize / queryHeads)^−½ where that of all others is headDim^−½. The file does not
 * say: readers know the two by their depth.
 */
const layersOf27b: Partial<Record<Architecture, number>> = { gemma2: 46, gemma3: 62 }

const supported: readonly Architecture[] = ['gemma', 'gemma2', 'gemma3', 'gemma-embedding']

export function ggufConfig(checkpoint: Checkpoint): GemmaConfig {
  const top = new Fields(checkpoint.config, checkpoint.path)
  const architecture = supported.find((name) => name === top.value('general.architecture'))
  if (architecture === undefined) {
    throw top.error('ERR_CHECKPOINT_UNSUPPORTED', 'general.architecture', supported.join(', '))
  }
  const fields = new Fields(checkpoint.config, checkpoint.path, `${architecture}.`)
  const isGemma2 = architecture === 'gemma2'
  const isGemma3 = architecture === 'gemma3' || architecture === 'gemma-embedding'
  const embedding = embeddingTensor(checkpoint)

  const layers = fields.dimension('block_count', limits.layers)
  const hiddenSize = fields.dimension('embedding_length', limits.hiddenSize)
  const queryHeads = fields.dimension('attention.head_count', limits.heads)
  const headDim = fields.dimension('attention.key_length', limits.headDim, hiddenSize / queryHeads)
  if (headDim % 8 !== 0) throw fields.error('ERR_CHECKPOINT_UNSUPPORTED', 'attention.key_length', 'a multiple of 8')
  fields.only('attention.value_length', headDim, BigInt(headDim))
  fields.only('rope.dimension_count', headDim, BigInt(headDim))
  const layerTypes = readLayerTypes(fields, layers, architecture)
  const is27b = layersOf27b[architecture] === layers
  const freqBase = fields.number('rope.freq_base', [1, 1e12], isGemma3 ? 1_000_000 : 10_000)
  const scale = readScaling(fields)

  return {
    architecture,
    layers,
    hiddenSize,
    ffnSize: fields.dimension('feed_forward_length', limits.ffnSize),
    queryHeads,
    kvHeads: fields.dimension('attention.head_count_kv', limits.heads, queryHeads),
    headDim,
    vocabularySize: readVocabularySize(fields, embedding),
    contextLength: fields.dimension('context_length', limits.contextLength),
    window: layerTypes.includes('local')
      ? fields.dimension('attention.sliding_window', limits.contextLength, isGemma2 ? 4096 : undefined)
      : 0,
    layerTypes,
    ropeTheta: {
      local: isGemma3 ? fields.number('rope.freq_base_swa', [1, 1e12], 10_000) : freqBase,
      global: freqBase,
    },
    positionScale: { local: isGemma3 ? 1 : scale, global: scale },
    queryScale: (is27b ? hiddenSize / queryHeads : headDim) ** -0.5,
    attentionSoftcap: fields.softcap('attn_logit_softcapping', isGemma2 ? 50 : 0),
    finalSoftcap: fields.softcap('final_logit_softcapping', isGemma2 ? 30 : 0),
    normEps: fields.number('attention.layer_norm_rms_epsilon', [0, 1e-2], 1e-6),
    normBias: 0,
    postNorms: architecture !== 'gemma',
    qkNorm: isGemma3,
    bidirectional: architecture === 'gemma-embedding',
    embeddingScale: scaleFor(hiddenSize, embedding),
  }
}

/** The rows of the embedding: few files have a key for it. */
function readVocabularySize(fields: Fields, embedding: StoredTensor | undefined): number {
  const rows = embedding?.shape[0]
  if (rows === undefined) return fields.dimension('vocab_size', limits.vocabularySize)
  if (Number.isInteger(rows) && rows >= 1 && rows <= limits.vocabularySize) return rows
  throw new LapidaryError(
    'ERR_CHECKPOINT_CORRUPT',
    `${embedding?.file}: tensor ${embedding?.name} at byte ${embedding?.offset}: expected 1 to ${limits.vocabularySize} rows, got ${rows}`,
  )
}

/** A flag per layer (true: local), or the number of layers of which one is global, or the architecture's own pattern. */
function readLayerTypes(fields: Fields, layers: number, architecture: Architecture): LayerType[] {
  const key = 'attention.sliding_window_pattern'
  const listed = fields.value(key)
  if (architecture === 'gemma') return Array.from({ length: layers }, () => 'global')
  if (typeof listed === 'object') {
    const flags = Array.isArray(listed) || ArrayBuffer.isView(listed) ? Array.from(listed as ArrayLike<unknown>) : []
    if (flags.length !== layers || !flags.every((local) => [true, false, 0, 1].includes(local as number))) {
      throw fields.error('ERR_CHECKPOINT_CORRUPT', key, `a list of ${layers} booleans`)
    }
    return flags.map((local) => (local ? 'local' : 'global'))
  }
  return patternLayers(layers, fields.integer(key, [1, limits.layers], architecture === 'gemma2' ? 2 : 6))
}

/** Ollama's converter leaves the scaling out of the models that were extended to 128K tokens. Its files say how many tokens an image has. */
function readScaling(fields: Fields): number {
  if (fields.has('mm.tokens_per_image') && !fields.has('rope.scaling.type') && !fields.has('rope.scaling.factor')) {
    return fields.value('context_length') === 131_072 ? 1 / 8 : 1
  }
  fields.only('rope.scaling.type', 'none', 'linear')
  if (fields.value('rope.scaling.type') === 'none') return 1
  return 1 / fields.number('rope.scaling.factor', [1, 1e4], 1)
}
