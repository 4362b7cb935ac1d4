/**
 * Configurations as published, word for word but for keys that change nothing: Google's in the form of each version of transformers, copies by
 * quantisers and fine-tuners, and the keys of the GGUF files that people download. What they mean stands in the specification, section 1.1.
 */

import { describe, expect, test } from 'vitest'
import type { Checkpoint, StoredTensor } from '../../lib/checkpoint/checkpoint.ts'
import { type GemmaConfig, gemmaConfig } from '../../lib/models/gemma/config.ts'
import { ggufVisionConfig, hfVisionConfig } from '../../lib/models/siglip/config.ts'

type Json = Record<string, unknown>

interface Size {
  readonly layers: number
  readonly hidden: number
  readonly ffn: number
  readonly heads: readonly [query: number, kv: number]
  readonly headDim: number
  readonly window: number
  readonly context: number
  readonly theta: readonly [local: number, global: number]
  readonly divisor: number
  readonly queryScalar: number
  readonly caps: readonly [attention: number, final: number]
  /** One layer of so many is global. */
  readonly period: number
}

const gemma1 = {
  headDim: 256,
  window: 0,
  context: 8192,
  theta: [1e4, 1e4],
  divisor: 1,
  queryScalar: 256,
  caps: [0, 0],
  period: 1,
} as const
const gemma2 = { ...gemma1, window: 4096, caps: [50, 30], period: 2 } as const
const gemma3 = { ...gemma1, window: 512, context: 32_768, theta: [1e4, 1e6], period: 6 } as const
const gemma3Long = { ...gemma3, window: 1024, context: 131_072, divisor: 8 } as const
const sizes = {
  '1-2b': { ...gemma1, layers: 18, hidden: 2048, ffn: 16_384, heads: [8, 1] },
  '1-7b': { ...gemma1, layers: 28, hidden: 3072, ffn: 24_576, heads: [16, 16] },
  '2-2b': { ...gemma2, layers: 26, hidden: 2304, ffn: 9216, heads: [8, 4] },
  '2-9b': { ...gemma2, layers: 42, hidden: 3584, ffn: 14_336, heads: [16, 8] },
  '2-27b': { ...gemma2, layers: 46, hidden: 4608, ffn: 36_864, heads: [32, 16], headDim: 128, queryScalar: 144 },
  '3-270m': { ...gemma3, layers: 18, hidden: 640, ffn: 2048, heads: [4, 1] },
  '3-1b': { ...gemma3, layers: 26, hidden: 1152, ffn: 6912, heads: [4, 1] },
  '3-4b': { ...gemma3Long, layers: 34, hidden: 2560, ffn: 10_240, heads: [8, 4] },
  '3-12b': { ...gemma3Long, layers: 48, hidden: 3840, ffn: 15_360, heads: [16, 8] },
  '3-27b': { ...gemma3Long, layers: 62, hidden: 5376, ffn: 21_504, heads: [32, 16], headDim: 128, queryScalar: 168 },
  embedding: { ...gemma3, layers: 24, hidden: 768, ffn: 1152, heads: [3, 1], context: 2048 },
} satisfies Record<string, Size>
type SizeName = keyof typeof sizes

/** What a configuration says, in the words of the specification's table. */
function sizeOf(config: GemmaConfig): Size {
  const globals = [...config.layerTypes.keys()].filter((layer) => config.layerTypes[layer] === 'global')
  const period = (globals[0] ?? -1) + 1
  expect(globals).toEqual([...config.layerTypes.keys()].filter((layer) => (layer + 1) % period === 0))
  expect(config.positionScale.local).toBe(1)
  return {
    layers: config.layers,
    hidden: config.hiddenSize,
    ffn: config.ffnSize,
    heads: [config.queryHeads, config.kvHeads],
    headDim: config.headDim,
    window: config.window,
    context: config.contextLength,
    theta: [config.ropeTheta.local, config.ropeTheta.global],
    divisor: 1 / config.positionScale.global,
    queryScalar: Math.round(config.queryScale ** -2),
    caps: [config.attentionSoftcap, config.finalSoftcap],
    period,
  }
}

function checkpoint(format: 'safetensors' | 'gguf', config: Json, shape: number[]): Checkpoint {
  const [name, file] =
    format === 'gguf' ? ['token_embd.weight', 'a.gguf'] : ['model.embed_tokens.weight', 'a.safetensors']
  const tensor: StoredTensor = { name, storedType: 'BF16', dtype: 'bf16', shape, file, offset: 0, bytes: 0 }
  return { format, path: file, files: [file], tensors: new Map([[name, tensor]]), config, tokenizerFiles: {} }
}

const layerTypes = (layers: number, period: number) =>
  Array.from({ length: layers }, (_, i) => ((i + 1) % period ? 'sliding_attention' : 'full_attention'))

const gemma1Hf = {
  architectures: ['GemmaForCausalLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  bos_token_id: 2,
  eos_token_id: 1,
  head_dim: 256,
  hidden_act: 'gelu',
  initializer_range: 0.02,
  max_position_embeddings: 8192,
  model_type: 'gemma',
  pad_token_id: 0,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 10000.0,
  torch_dtype: 'bfloat16',
  transformers_version: '4.38.0.dev0',
  use_cache: true,
  vocab_size: 256000,
}
const gemma2Hf = {
  ...gemma1Hf,
  architectures: ['Gemma2ForCausalLM'],
  attn_logit_softcapping: 50.0,
  cache_implementation: 'hybrid',
  final_logit_softcapping: 30.0,
  hidden_act: 'gelu_pytorch_tanh',
  hidden_activation: 'gelu_pytorch_tanh',
  model_type: 'gemma2',
  query_pre_attn_scalar: 256,
  sliding_window: 4096,
  transformers_version: '4.42.0.dev0',
}
const gemma3TextHf = {
  architectures: ['Gemma3ForCausalLM'],
  attention_bias: false,
  attention_dropout: 0.0,
  attn_logit_softcapping: null,
  bos_token_id: 2,
  cache_implementation: 'hybrid',
  eos_token_id: [1, 106],
  final_logit_softcapping: null,
  head_dim: 256,
  hidden_activation: 'gelu_pytorch_tanh',
  initializer_range: 0.02,
  max_position_embeddings: 32768,
  model_type: 'gemma3_text',
  num_attention_heads: 4,
  num_key_value_heads: 1,
  pad_token_id: 0,
  query_pre_attn_scalar: 256,
  rms_norm_eps: 1e-6,
  rope_local_base_freq: 10000,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: 512,
  torch_dtype: 'bfloat16',
  use_cache: true,
  vocab_size: 262144,
}
const siglip = {
  hidden_size: 1152,
  image_size: 896,
  intermediate_size: 4304,
  model_type: 'siglip_vision_model',
  num_attention_heads: 16,
  num_hidden_layers: 27,
  patch_size: 14,
  vision_use_head: false,
}
const gemma3Hf = (text: Json): Json => ({
  architectures: ['Gemma3ForConditionalGeneration'],
  boi_token_index: 255999,
  eoi_token_index: 256000,
  eos_token_id: [1, 106],
  image_token_index: 262144,
  initializer_range: 0.02,
  mm_tokens_per_image: 256,
  model_type: 'gemma3',
  text_config: {
    model_type: 'gemma3_text',
    rope_scaling: { factor: 8.0, rope_type: 'linear' },
    sliding_window: 1024,
    ...text,
  },
  torch_dtype: 'bfloat16',
  transformers_version: '4.50.0.dev0',
  vision_config: siglip,
})
const text4b = { hidden_size: 2560, intermediate_size: 10240, num_hidden_layers: 34 }
/** As transformers 4.53 to 4.57 write what they have read: nothing is left to defaults. */
const whole4b = {
  ...gemma3TextHf,
  ...text4b,
  _sliding_window_pattern: 6,
  layer_types: layerTypes(34, 6),
  max_position_embeddings: 131072,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  rope_scaling: { factor: 8.0, rope_type: 'linear' },
  sliding_window: 1024,
  use_bidirectional_attention: false,
  vocab_size: 262208,
}
const { rope_scaling, rope_theta, rope_local_base_freq, torch_dtype, ...without4 } = whole4b

const hfFiles: readonly (readonly [string, SizeName, Json])[] = [
  [
    'gemma-2b',
    '1-2b',
    {
      ...gemma1Hf,
      hidden_size: 2048,
      intermediate_size: 16384,
      num_attention_heads: 8,
      num_hidden_layers: 18,
      num_key_value_heads: 1,
    },
  ],
  [
    'gemma-7b-it',
    '1-7b',
    {
      ...gemma1Hf,
      hidden_size: 3072,
      intermediate_size: 24576,
      num_attention_heads: 16,
      num_hidden_layers: 28,
      num_key_value_heads: 16,
    },
  ],
  [
    'gemma-1.1-2b-it, the activation named twice',
    '1-2b',
    {
      ...gemma1Hf,
      hidden_act: 'gelu_pytorch_tanh',
      hidden_activation: null,
      hidden_size: 2048,
      intermediate_size: 16384,
      num_attention_heads: 8,
      num_hidden_layers: 18,
      num_key_value_heads: 1,
    },
  ],
  [
    'gemma-2-2b-it',
    '2-2b',
    {
      ...gemma2Hf,
      hidden_size: 2304,
      intermediate_size: 9216,
      num_attention_heads: 8,
      num_hidden_layers: 26,
      num_key_value_heads: 4,
    },
  ],
  [
    'gemma-2-9b',
    '2-9b',
    {
      ...gemma2Hf,
      hidden_size: 3584,
      intermediate_size: 14336,
      num_attention_heads: 16,
      num_hidden_layers: 42,
      num_key_value_heads: 8,
      sliding_window_size: 4096,
    },
  ],
  [
    'gemma-2-27b-it',
    '2-27b',
    {
      ...gemma2Hf,
      head_dim: 128,
      hidden_size: 4608,
      intermediate_size: 36864,
      num_attention_heads: 32,
      num_hidden_layers: 46,
      num_key_value_heads: 16,
      query_pre_attn_scalar: 144,
      _attn_implementation: 'eager',
    },
  ],
  [
    'gemma-2-2b, written again by transformers 5',
    '2-2b',
    {
      ...gemma2Hf,
      hidden_size: 2304,
      intermediate_size: 9216,
      num_attention_heads: 8,
      num_hidden_layers: 26,
      num_key_value_heads: 4,
      rope_theta: undefined,
      rope_scaling: undefined,
      rope_parameters: { rope_theta: 10000.0, rope_type: 'default' },
      layer_types: layerTypes(26, 2),
      dtype: 'bfloat16',
      tie_word_embeddings: true,
      use_bidirectional_attention: null,
    },
  ],
  [
    'gemma-3-270m-it (transformers 4.56)',
    '3-270m',
    {
      ...gemma3TextHf,
      _sliding_window_pattern: 6,
      hidden_size: 640,
      intermediate_size: 2048,
      num_hidden_layers: 18,
      layer_types: layerTypes(18, 6),
      use_bidirectional_attention: false,
    },
  ],
  [
    'gemma-3-1b-pt',
    '3-1b',
    { ...gemma3TextHf, hidden_size: 1152, intermediate_size: 6912, num_hidden_layers: 26, sliding_window_pattern: 6 },
  ],
  ['gemma-3-4b-it', '3-4b', gemma3Hf(text4b)],
  [
    'gemma-3-12b-it',
    '3-12b',
    gemma3Hf({
      hidden_size: 3840,
      intermediate_size: 15360,
      num_attention_heads: 16,
      num_hidden_layers: 48,
      num_key_value_heads: 8,
    }),
  ],
  [
    'gemma-3-27b-it',
    '3-27b',
    gemma3Hf({
      head_dim: 128,
      hidden_size: 5376,
      intermediate_size: 21504,
      num_attention_heads: 32,
      num_hidden_layers: 62,
      num_key_value_heads: 16,
      query_pre_attn_scalar: 168,
    }),
  ],
  ['gemma-3-4b, written again by transformers 4.57 or GPTQModel', '3-4b', gemma3Hf(whole4b)],
  [
    'gemma-3-4b, written again by transformers 5',
    '3-4b',
    {
      ...gemma3Hf({
        ...without4,
        rope_scaling: undefined,
        dtype: 'bfloat16',
        rope_parameters: {
          full_attention: { factor: 8.0, rope_theta: 1000000.0, rope_type: 'linear' },
          sliding_attention: { rope_theta: 10000.0, rope_type: 'default' },
        },
        tie_word_embeddings: true,
      }),
      dtype: 'bfloat16',
      tie_word_embeddings: true,
      vision_config: {
        ...siglip,
        attention_dropout: 0.0,
        hidden_act: 'gelu_pytorch_tanh',
        layer_norm_eps: 1e-6,
        num_channels: 3,
      },
    },
  ],
  ['the text half of gemma-3-4b as a model of its own', '3-4b', whole4b],
  [
    'embeddinggemma-300m',
    'embedding',
    {
      ...gemma3TextHf,
      _sliding_window_pattern: 6,
      architectures: ['Gemma3TextModel'],
      hidden_size: 768,
      intermediate_size: 1152,
      num_attention_heads: 3,
      num_hidden_layers: 24,
      layer_types: layerTypes(24, 6),
      max_position_embeddings: 2048,
      use_bidirectional_attention: true,
    },
  ],
]

describe('config.json', () => {
  test.each(hfFiles)('%s', (_, name, json) => {
    const size: Size = sizes[name]
    const config = gemmaConfig(checkpoint('safetensors', json, [262_208, size.hidden]))
    expect(sizeOf(config)).toEqual(size)
    const isMultimodal = json.model_type === 'gemma3'
    expect(config.vocabularySize).toBe(isMultimodal || json === whole4b ? 262_208 : (json.vocab_size as number))
    expect(config.bidirectional).toBe(name === 'embedding')
  })

  test('the vision half, as first published and written again', () => {
    for (const [what, , json] of hfFiles.filter(([, , json]) => json.model_type === 'gemma3')) {
      const vision = hfVisionConfig(checkpoint('safetensors', json, [1, 1]), 2560)
      expect(vision, what).toMatchObject({
        layers: 27,
        width: 1152,
        ffnSize: 4304,
        heads: 16,
        headDim: 72,
        imageSize: 896,
        imageTokens: 256,
        poolSize: 4,
        normEps: 1e-6,
      })
    }
  })
})

/** Keys as llama.cpp's converter writes them. */
function ggufKeys(architecture: string, name: SizeName, more: Json = {}): Json {
  const size: Size = sizes[name]
  const own: Json = {
    context_length: size.context,
    embedding_length: size.hidden,
    block_count: size.layers,
    feed_forward_length: size.ffn,
    'attention.head_count': size.heads[0],
    'attention.head_count_kv': size.heads[1],
    'attention.layer_norm_rms_epsilon': Math.fround(1e-6),
    'attention.key_length': size.headDim,
    'attention.value_length': size.headDim,
    ...more,
  }
  return Object.fromEntries([
    ['general.architecture', architecture],
    ...Object.entries(own)
      .filter(([, value]) => value !== undefined)
      .map(([key, value]) => [`${architecture}.${key}`, value]),
  ])
}
const swa = (name: SizeName): Json => ({ 'attention.sliding_window': sizes[name].window })
const longRope = { 'rope.freq_base': 1e6, 'rope.scaling.type': 'linear', 'rope.scaling.factor': 8 }
const local = (layers: number) => Array.from({ length: layers }, (_, i) => (i + 1) % 6 !== 0)

const ggufFiles: readonly (readonly [string, SizeName, Json, rows: number])[] = [
  ['Google, gemma-2b.gguf of February 2024: 128 rows more', '1-2b', ggufKeys('gemma', '1-2b'), 256_128],
  ['gemma-1.1-7b-it', '1-7b', ggufKeys('gemma', '1-7b'), 256_000],
  [
    'gemma-2-2b-it, bartowski',
    '2-2b',
    ggufKeys('gemma2', '2-2b', { ...swa('2-2b'), attn_logit_softcapping: 50, final_logit_softcapping: 30 }),
    256_000,
  ],
  ['gemma-2-9b-it of June 2024, before caps and window had keys', '2-9b', ggufKeys('gemma2', '2-9b'), 256_000],
  [
    'gemma-2-27b-it, bartowski',
    '2-27b',
    ggufKeys('gemma2', '2-27b', { ...swa('2-27b'), attn_logit_softcapping: 50, final_logit_softcapping: 30 }),
    256_000,
  ],
  [
    'gemma-3-270m-it, unsloth: window pattern and rotary base spelt out',
    '3-270m',
    ggufKeys('gemma3', '3-270m', {
      ...swa('3-270m'),
      'rope.freq_base': 1e6,
      'rope.freq_base_swa': 1e4,
      'attention.sliding_window_pattern': local(18),
    }),
    262_144,
  ],
  ['gemma-3-1b-it, ggml-org', '3-1b', ggufKeys('gemma3', '3-1b', { ...swa('3-1b'), 'rope.freq_base': 1e6 }), 262_144],
  ['gemma-3-4b-it-qat-q4_0, Google', '3-4b', ggufKeys('gemma3', '3-4b', { ...swa('3-4b'), ...longRope }), 262_144],
  [
    'gemma-3-4b-it, bartowski: rows for the padded vocabulary',
    '3-4b',
    ggufKeys('gemma3', '3-4b', { ...swa('3-4b'), ...longRope }),
    262_208,
  ],
  [
    'gemma-3-12b-it, the period as a number',
    '3-12b',
    ggufKeys('gemma3', '3-12b', { ...swa('3-12b'), ...longRope, 'attention.sliding_window_pattern': 6 }),
    262_208,
  ],
  ['gemma-3-27b-it', '3-27b', ggufKeys('gemma3', '3-27b', { ...swa('3-27b'), ...longRope }), 262_208],
  [
    'embeddinggemma-300M, ggml-org',
    'embedding',
    ggufKeys('gemma-embedding', 'embedding', {
      ...swa('embedding'),
      'rope.freq_base': 1e6,
      pooling_type: 1,
      dense_2_feat_in: 768,
      dense_2_feat_out: 3072,
      dense_3_feat_in: 3072,
      dense_3_feat_out: 768,
    }),
    262_144,
  ],
  [
    "gemma3:4b of Ollama, whose converter leaves out the rotary bases, their scaling and the norms' epsilon",
    '3-4b',
    ggufKeys('gemma3', '3-4b', {
      ...swa('3-4b'),
      'attention.layer_norm_rms_epsilon': undefined,
      'mm.tokens_per_image': 256,
      'vision.block_count': 27,
      'vision.embedding_length': 1152,
    }),
    262_208,
  ],
  [
    'gemma3:1b of Ollama',
    '3-1b',
    ggufKeys('gemma3', '3-1b', { ...swa('3-1b'), 'rope.global.freq_base': 1e6, 'rope.local.freq_base': 1e4 }),
    262_144,
  ],
]

describe('GGUF metadata', () => {
  test.each(ggufFiles)('%s', (_, name, metadata, rows) => {
    const size: Size = sizes[name]
    const config = gemmaConfig(checkpoint('gguf', metadata, [rows, size.hidden]))
    expect(sizeOf(config)).toEqual(size)
    expect(config).toMatchObject({ vocabularySize: rows, normBias: 0, bidirectional: name === 'embedding' })
    expect(config.normEps).toBeCloseTo(1e-6, 12)
  })

  test('projectors: keys of the first converter, and of the current one', () => {
    const first = {
      'general.architecture': 'clip',
      'clip.projector_type': 'gemma3',
      'clip.has_text_encoder': false,
      'clip.has_vision_encoder': true,
      'clip.has_llava_projector': false,
      'clip.use_gelu': true,
      'clip.vision.image_size': 896,
      'clip.vision.patch_size': 14,
      'clip.vision.embedding_length': 1152,
      'clip.vision.feed_forward_length': 4304,
      'clip.vision.projection_dim': 2560,
      'clip.vision.block_count': 27,
      'clip.vision.attention.head_count': 16,
      'clip.vision.attention.layer_norm_epsilon': 1e-6,
      'clip.vision.image_mean': [0.5, 0.5, 0.5],
      'clip.vision.image_std': [0.5, 0.5, 0.5],
    }
    const config = ggufVisionConfig(checkpoint('gguf', first, [1, 1]))
    expect(config).toMatchObject({
      layers: 27,
      width: 1152,
      headDim: 72,
      imageTokens: 256,
      hiddenSize: 2560,
      poolSize: 4,
    })
    const { 'clip.projector_type': type, ...rest } = first
    const current = {
      ...rest,
      'clip.vision.projector_type': type,
      'clip.vision.projector.scale_factor': 4,
      'clip.has_audio_encoder': false,
    }
    expect(ggufVisionConfig(checkpoint('gguf', current, [1, 1]))).toEqual(config)
  })
})
