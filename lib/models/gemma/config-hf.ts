/**
 * Gemma's configuration from Hugging Face's config.json, older and newer keys, with the defaults that files leave out.
 * @module
 */
import type { Checkpoint } from '../../checkpoint/checkpoint.ts'
import type { Architecture, GemmaConfig, LayerType } from './config.ts'
import { Fields, limits } from './config-fields.ts'
import { scaleFor } from './embedding-scale.ts'
import { embeddingTensor } from './weights.ts'

/** What transformers assumes where config.json is silent: its classes GemmaConfig, Gemma2Config and Gemma3TextConfig. */
interface Defaults {
  readonly vocabularySize: number
  readonly hiddenSize: number
  readonly ffnSize: number
  readonly layers: number
  readonly queryHeads: number
  readonly kvHeads: number
  readonly contextLength: number
  readonly attentionSoftcap: number
  readonly finalSoftcap: number
  readonly ropeTheta: number
  /** One layer of so many is global: 1, all of them. */
  readonly pattern: number
}

const defaults: Record<'gemma' | 'gemma2' | 'gemma3', Defaults> = {
  gemma: {
    vocabularySize: 256_000,
    hiddenSize: 3072,
    ffnSize: 24_576,
    layers: 28,
    queryHeads: 16,
    kvHeads: 16,
    contextLength: 8192,
    attentionSoftcap: 0,
    finalSoftcap: 0,
    ropeTheta: 10_000,
    pattern: 1,
  },
  gemma2: {
    vocabularySize: 256_000,
    hiddenSize: 2304,
    ffnSize: 9216,
    layers: 26,
    queryHeads: 8,
    kvHeads: 4,
    contextLength: 8192,
    attentionSoftcap: 50,
    finalSoftcap: 30,
    ropeTheta: 10_000,
    pattern: 2,
  },
  gemma3: {
    vocabularySize: 262_208,
    hiddenSize: 2304,
    ffnSize: 9216,
    layers: 26,
    queryHeads: 8,
    kvHeads: 4,
    contextLength: 131_072,
    attentionSoftcap: 0,
    finalSoftcap: 0,
    ropeTheta: 1_000_000,
    pattern: 6,
  },
}

const families = new Map<string, keyof typeof defaults>([
  ['gemma', 'gemma'],
  ['gemma2', 'gemma2'],
  ['gemma3_text', 'gemma3'],
])

export function hfConfig(checkpoint: Checkpoint): GemmaConfig {
  const top = new Fields(checkpoint.config, checkpoint.path)
  const fields = textFields(top)
  const family = families.get(fields.string('model_type', fields === top ? undefined : 'gemma3_text'))
  if (family === undefined) {
    throw fields.error('ERR_CHECKPOINT_UNSUPPORTED', 'model_type', 'gemma, gemma2, gemma3_text or gemma3')
  }
  const absent = defaults[family]
  // Gemma 1's first files name the exact GELU in hidden_act; the models were trained with the tanh form, and are run with it.
  if (family === 'gemma') fields.only('hidden_act', 'gelu', 'gelu_pytorch_tanh')
  fields.only('hidden_activation', 'gelu_pytorch_tanh')
  fields.only('attention_bias', false)
  fields.boolean('tie_word_embeddings', true)

  const layers = fields.dimension('num_hidden_layers', limits.layers, absent.layers)
  const hiddenSize = fields.dimension('hidden_size', limits.hiddenSize, absent.hiddenSize)
  const headDim = fields.dimension('head_dim', limits.headDim, 256)
  if (headDim % 8 !== 0) throw fields.error('ERR_CHECKPOINT_UNSUPPORTED', 'head_dim', 'a multiple of 8')
  const bidirectional = family === 'gemma3' && fields.boolean('use_bidirectional_attention', false)
  if (!bidirectional) fields.only('use_bidirectional_attention', false)
  const architecture: Architecture = bidirectional ? 'gemma-embedding' : family
  const layerTypes = readLayerTypes(fields, layers, absent.pattern)
  const hasLocal = layerTypes.includes('local')

  return {
    architecture,
    layers,
    hiddenSize,
    ffnSize: fields.dimension('intermediate_size', limits.ffnSize, absent.ffnSize),
    queryHeads: fields.dimension('num_attention_heads', limits.heads, absent.queryHeads),
    kvHeads: fields.dimension('num_key_value_heads', limits.heads, absent.kvHeads),
    headDim,
    vocabularySize: fields.dimension('vocab_size', limits.vocabularySize, absent.vocabularySize),
    contextLength: fields.dimension('max_position_embeddings', limits.contextLength, absent.contextLength),
    window: hasLocal ? fields.dimension('sliding_window', limits.contextLength, 4096) : 0,
    layerTypes,
    ...readRope(fields, family, absent.ropeTheta),
    queryScale: family === 'gemma' ? headDim ** -0.5 : fields.number('query_pre_attn_scalar', [1e-3, 1e6], 256) ** -0.5,
    attentionSoftcap: readSoftcap(fields, 'attn_logit_softcapping', absent.attentionSoftcap),
    finalSoftcap: readSoftcap(fields, 'final_logit_softcapping', absent.finalSoftcap),
    normEps: fields.number('rms_norm_eps', [0, 1e-2], 1e-6),
    normBias: 1,
    postNorms: family !== 'gemma',
    qkNorm: family === 'gemma3',
    bidirectional,
    embeddingScale: scaleFor(hiddenSize, embeddingTensor(checkpoint)),
  }
}

/** The text model's part: multimodal files keep it in `text_config`, often without most keys. */
function textFields(top: Fields): Fields {
  if (top.value('model_type') !== 'gemma3') return top
  const text = top.record('text_config')
  if (text === undefined)
    throw top.error('ERR_CHECKPOINT_CORRUPT', 'text_config', 'the configuration of the text model')
  return text
}

/** A cap that a file sets to null is off, one that it does not mention has the family's default. */
function readSoftcap(fields: Fields, key: string, absent: number): number {
  return fields.isNull(key) ? 0 : fields.softcap(key, absent)
}

function readLayerTypes(fields: Fields, layers: number, defaultPattern: number): LayerType[] {
  const listed = fields.value('layer_types')
  if (listed !== undefined) {
    if (!Array.isArray(listed) || listed.length !== layers) {
      throw fields.error('ERR_CHECKPOINT_CORRUPT', 'layer_types', `a list of ${layers} layer types`)
    }
    return listed.map((type: unknown) => {
      if (type === 'sliding_attention') return 'local'
      if (type === 'full_attention') return 'global'
      throw fields.error('ERR_CHECKPOINT_UNSUPPORTED', 'layer_types', 'sliding_attention or full_attention')
    })
  }
  if (defaultPattern === 1) return Array.from({ length: layers }, () => 'global')
  const key = fields.has('sliding_window_pattern') ? 'sliding_window_pattern' : '_sliding_window_pattern'
  return patternLayers(layers, fields.integer(key, [1, limits.layers], defaultPattern))
}

/** One layer of `pattern` is global, the last of each group; a truncated last group has none. */
export function patternLayers(layers: number, pattern: number): LayerType[] {
  return Array.from({ length: layers }, (_, layer) => ((layer + 1) % pattern === 0 ? 'global' : 'local'))
}

/**
 * Newer files: rope_parameters, one for all layers or one for each type of layer. Older ones: rope_theta with rope_scaling, and in Gemma 3
 * rope_local_base_freq, unscaled, for local layers.
 */
function readRope(
  fields: Fields,
  family: keyof typeof defaults,
  defaultTheta: number,
): Pick<GemmaConfig, 'ropeTheta' | 'positionScale'> {
  const parameters = fields.record('rope_parameters')
  const ofGlobal = parameters?.record('full_attention') ?? parameters ?? fields
  const ofLocal = parameters?.record('sliding_attention')
  const scaling = parameters ? ofGlobal : fields.record('rope_scaling')
  const theta = (from: Fields, key: string, absent: number) => from.number(key, [1, 1e12], absent)
  const global = theta(ofGlobal, 'rope_theta', defaultTheta)
  const globalScale = scaling ? readScaling(scaling) : 1
  if (family !== 'gemma3') {
    if (ofLocal) throw fields.error('ERR_CHECKPOINT_UNSUPPORTED', 'rope_parameters', 'one set for all layers')
    return { ropeTheta: { local: global, global }, positionScale: { local: globalScale, global: globalScale } }
  }
  const local = ofLocal ? theta(ofLocal, 'rope_theta', 10_000) : theta(fields, 'rope_local_base_freq', 10_000)
  return {
    ropeTheta: { local, global },
    positionScale: { local: ofLocal ? readScaling(ofLocal) : 1, global: globalScale },
  }
}

function readScaling(fields: Fields): number {
  const key = fields.has('rope_type') ? 'rope_type' : 'type'
  fields.only(key, 'default', 'linear')
  return fields.value(key) === 'linear' ? 1 / fields.number('factor', [1, 1e4]) : 1
}
