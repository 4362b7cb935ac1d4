/** Configurations of every published model, as their files state them, in one normal form. */

import { describe, expect, test } from 'vitest'
import { type Checkpoint, openCheckpoint, type StoredTensor } from '../../lib/checkpoint/checkpoint.ts'
import { type GemmaConfig, gemmaConfig } from '../../lib/models/gemma/config.ts'
import { round } from '../support/numbers.ts'
import { bundledModel, oracleFolder, tinyFolder } from './fixtures.ts'

type Json = Record<string, unknown>

/** A checkpoint of a configuration and an embedding. */
function checkpoint(
  format: 'safetensors' | 'gguf',
  config: Json,
  shape: number[],
  dtype: 'bf16' | 'f16' | 'f32' | 'q4_0' = 'bf16',
): Checkpoint {
  const name = format === 'gguf' ? 'token_embd.weight' : 'model.embed_tokens.weight'
  const file = format === 'gguf' ? 'model.gguf' : 'model.safetensors'
  const embedding: StoredTensor = { name, storedType: dtype.toUpperCase(), dtype, shape, file, offset: 0, bytes: 0 }
  return { format, path: file, files: [file], tensors: new Map([[name, embedding]]), config, tokenizerFiles: {} }
}

const hf = (config: Json, dtype?: 'bf16' | 'f16' | 'f32'): GemmaConfig =>
  gemmaConfig(checkpoint('safetensors', config, [256_000, (config.hidden_size as number) ?? 2048], dtype))

const globals = ({ layerTypes }: GemmaConfig) =>
  [...layerTypes.keys()].filter((layer) => layerTypes[layer] === 'global')

// As published, without keys that do not matter here. The later ones say little beside their defaults.
const gemma1of2b = {
  model_type: 'gemma',
  head_dim: 256,
  hidden_act: 'gelu',
  hidden_size: 2048,
  intermediate_size: 16384,
  max_position_embeddings: 8192,
  num_attention_heads: 8,
  num_hidden_layers: 18,
  num_key_value_heads: 1,
  rms_norm_eps: 1e-6,
  rope_scaling: null,
  rope_theta: 10000.0,
  vocab_size: 256000,
}
const gemma2of27b = {
  model_type: 'gemma2',
  attn_logit_softcapping: 50.0,
  final_logit_softcapping: 30.0,
  head_dim: 128,
  hidden_act: 'gelu_pytorch_tanh',
  hidden_activation: 'gelu_pytorch_tanh',
  hidden_size: 4608,
  intermediate_size: 36864,
  max_position_embeddings: 8192,
  num_attention_heads: 32,
  num_hidden_layers: 46,
  num_key_value_heads: 16,
  query_pre_attn_scalar: 144,
  rms_norm_eps: 1e-6,
  rope_theta: 10000.0,
  sliding_window: 4096,
  vocab_size: 256000,
}
const gemma3of1b = {
  model_type: 'gemma3_text',
  architectures: ['Gemma3ForCausalLM'],
  attn_logit_softcapping: null,
  final_logit_softcapping: null,
  head_dim: 256,
  hidden_activation: 'gelu_pytorch_tanh',
  hidden_size: 1152,
  intermediate_size: 6912,
  max_position_embeddings: 32768,
  num_attention_heads: 4,
  num_hidden_layers: 26,
  num_key_value_heads: 1,
  query_pre_attn_scalar: 256,
  rms_norm_eps: 1e-6,
  rope_local_base_freq: 10000,
  rope_scaling: null,
  rope_theta: 1000000,
  sliding_window: 512,
  sliding_window_pattern: 6,
  vocab_size: 262144,
}
const gemma3of4b = {
  model_type: 'gemma3',
  mm_tokens_per_image: 256,
  text_config: {
    hidden_size: 2560,
    intermediate_size: 10240,
    model_type: 'gemma3_text',
    num_hidden_layers: 34,
    rope_scaling: { factor: 8.0, rope_type: 'linear' },
    sliding_window: 1024,
  },
  vision_config: { model_type: 'siglip_vision_model' },
}
const gemma3of27b = {
  model_type: 'gemma3',
  text_config: {
    head_dim: 128,
    hidden_size: 5376,
    intermediate_size: 21504,
    model_type: 'gemma3_text',
    num_attention_heads: 32,
    num_hidden_layers: 62,
    num_key_value_heads: 16,
    query_pre_attn_scalar: 168,
    rope_scaling: { factor: 8.0, rope_type: 'linear' },
    sliding_window: 1024,
  },
}
const embeddingGemma = {
  ...gemma3of1b,
  use_bidirectional_attention: true,
  hidden_size: 768,
  intermediate_size: 1152,
  num_attention_heads: 3,
  num_hidden_layers: 24,
  max_position_embeddings: 2048,
  _sliding_window_pattern: 6,
  sliding_window_pattern: undefined,
}

describe('Hugging Face', () => {
  test('Gemma 1 2B', () => {
    expect(hf(gemma1of2b)).toEqual({
      architecture: 'gemma',
      layers: 18,
      hiddenSize: 2048,
      ffnSize: 16384,
      queryHeads: 8,
      kvHeads: 1,
      headDim: 256,
      vocabularySize: 256_000,
      contextLength: 8192,
      window: 0,
      layerTypes: Array.from({ length: 18 }, () => 'global'),
      ropeTheta: { local: 10_000, global: 10_000 },
      positionScale: { local: 1, global: 1 },
      queryScale: 1 / 16,
      attentionSoftcap: 0,
      finalSoftcap: 0,
      normEps: 1e-6,
      normBias: 1,
      postNorms: false,
      qkNorm: false,
      bidirectional: false,
      embeddingScale: 45.25,
    })
  })

  test('Gemma 2 27B, also without what its first files lack', () => {
    const config = hf(gemma2of27b)
    expect(config).toMatchObject({
      architecture: 'gemma2',
      window: 4096,
      queryScale: 144 ** -0.5,
      attentionSoftcap: 50,
      finalSoftcap: 30,
      postNorms: true,
      qkNorm: false,
      embeddingScale: 68,
    })
    expect(config.layerTypes).toEqual(Array.from({ length: 46 }, (_, layer) => (layer % 2 === 0 ? 'local' : 'global')))
    const { attn_logit_softcapping, final_logit_softcapping, rope_theta, ...less } = gemma2of27b
    expect(hf(less)).toEqual(config)
    // null is not absence: it switches the cap off.
    expect(hf({ ...gemma2of27b, attn_logit_softcapping: null })).toEqual({ ...config, attentionSoftcap: 0 })
  })

  test('Gemma 3 1B', () => {
    const config = hf(gemma3of1b)
    expect(config).toMatchObject({
      architecture: 'gemma3',
      layers: 26,
      window: 512,
      vocabularySize: 262_144,
      contextLength: 32_768,
      ropeTheta: { local: 10_000, global: 1_000_000 },
      positionScale: { local: 1, global: 1 },
      queryScale: 1 / 16,
      attentionSoftcap: 0,
      finalSoftcap: 0,
      qkNorm: true,
      embeddingScale: 34,
    })
    expect(globals(config)).toEqual([5, 11, 17, 23])
  })

  test('Gemma 3 4B and 27B: the text half, mostly by default', () => {
    expect(hf(gemma3of4b)).toMatchObject({
      layers: 34,
      hiddenSize: 2560,
      queryHeads: 8,
      kvHeads: 4,
      headDim: 256,
      vocabularySize: 262_208,
      contextLength: 131_072,
      window: 1024,
      ropeTheta: { local: 10_000, global: 1_000_000 },
      positionScale: { local: 1, global: 1 / 8 },
      queryScale: 1 / 16,
    })
    const big = hf(gemma3of27b)
    expect(big).toMatchObject({ queryScale: 168 ** -0.5, headDim: 128, positionScale: { local: 1, global: 1 / 8 } })
    expect(globals(big)).toEqual([5, 11, 17, 23, 29, 35, 41, 47, 53, 59])
  })

  test('the newer form says the same', () => {
    const { rope_theta, rope_local_base_freq, rope_scaling, sliding_window_pattern, ...rest } = gemma3of1b
    const layer_types = Array.from({ length: 26 }, (_, i) => ((i + 1) % 6 ? 'sliding_attention' : 'full_attention'))
    const rope = (full: Json) => ({
      full_attention: { rope_theta: 1e6, ...full },
      sliding_attention: { rope_theta: 1e4, rope_type: 'default' },
    })
    expect(hf({ ...rest, layer_types, rope_parameters: rope({ rope_type: 'default' }) })).toEqual(hf(gemma3of1b))
    const scaled = hf({ ...rest, layer_types, rope_parameters: rope({ rope_type: 'linear', factor: 8 }) })
    expect(scaled).toEqual(hf({ ...gemma3of1b, rope_scaling: { type: 'linear', factor: 8 } }))
    expect(scaled.positionScale).toEqual({ local: 1, global: 1 / 8 })
    const flat = { rope_type: 'default', rope_theta: 10_000 }
    const { rope_theta: _, ...gemma2 } = gemma2of27b
    expect(hf({ ...gemma2, rope_parameters: flat })).toEqual(hf(gemma2of27b))
  })

  test('EmbeddingGemma', () => {
    const config = hf(embeddingGemma)
    expect(config).toMatchObject({ architecture: 'gemma-embedding', bidirectional: true, window: 512, layers: 24 })
    expect(globals(config)).toEqual([5, 11, 17, 23])
    expect(hf({ ...embeddingGemma, use_bidirectional_attention: false })).toMatchObject({
      architecture: 'gemma3',
      bidirectional: false,
    })
  })

  // Specification, section 2.1.
  test.each([
    [3072, 55.5],
    [1152, 34],
    [2048, 45.25],
    [2560, 50.5],
    [3840, 62],
    [5376, 73.5],
    [640, 25.25],
    [2304, 48],
    [3584, 59.75],
    [4608, 68],
    [1536, 39.25],
    [2816, 53],
  ])('the embedding scale of %d is %d in bf16', (hidden_size, scale) => {
    expect(hf({ ...gemma3of1b, hidden_size }).embeddingScale).toBe(scale)
    expect(hf({ ...gemma3of1b, hidden_size }, 'f32').embeddingScale).toBe(Math.fround(Math.sqrt(hidden_size)))
    expect(hf({ ...gemma3of1b, hidden_size }, 'f16').embeddingScale).toBe(round('f16', Math.sqrt(hidden_size)))
  })
})

const gguf = (config: Json, shape: number[], dtype?: 'f16' | 'q4_0' | 'f32') =>
  gemmaConfig(checkpoint('gguf', config, shape, dtype))

const ggufOf27b = {
  'general.architecture': 'gemma3',
  'gemma3.context_length': 131072,
  'gemma3.embedding_length': 5376,
  'gemma3.block_count': 62,
  'gemma3.feed_forward_length': 21504,
  'gemma3.attention.head_count': 32,
  'gemma3.attention.head_count_kv': 16,
  'gemma3.attention.key_length': 128,
  'gemma3.attention.value_length': 128,
  'gemma3.attention.layer_norm_rms_epsilon': 1e-6,
  'gemma3.attention.sliding_window': 1024,
  'gemma3.rope.freq_base': 1e6,
  'gemma3.rope.scaling.type': 'linear',
  'gemma3.rope.scaling.factor': 8,
}

describe('GGUF', () => {
  test('Gemma 3 27B is what Hugging Face says, but for what the converter has changed', () => {
    expect(gguf(ggufOf27b, [262_144, 5376], 'f16')).toEqual({
      ...hf(gemma3of27b),
      normBias: 0,
      vocabularySize: 262_144,
    })
  })

  test('Gemma 2 27B and 9B: the query scale is not in the file', () => {
    const config = Object.fromEntries([
      ['general.architecture', 'gemma2'],
      ...Object.entries(ggufOf27b)
        .filter(([key]) => key.startsWith('gemma3.') && !key.includes('rope'))
        .map(([key, value]) => [key.replace('gemma3', 'gemma2'), value]),
      ['gemma2.block_count', 46],
      ['gemma2.embedding_length', 4608],
      ['gemma2.attention.sliding_window', 4096],
      ['gemma2.feed_forward_length', 36864],
      ['gemma2.context_length', 8192],
      ['gemma2.attn_logit_softcapping', 50],
    ])
    expect(gguf(config, [256_000, 4608], 'q4_0')).toEqual({ ...hf(gemma2of27b), normBias: 0 })
    expect(gguf({ ...config, 'gemma2.block_count': 42 }, [256_000, 4608]).queryScale).toBe(128 ** -0.5)
  })

  test('patterns: a flag per layer, a number, or the built-in one; 64-bit numbers', () => {
    const key = 'gemma3.attention.sliding_window_pattern'
    const flags = Array.from({ length: 62 }, (_, layer) => layer % 3 !== 0)
    const types = flags.map((local) => (local ? 'local' : 'global'))
    expect(gguf({ ...ggufOf27b, [key]: flags }, [9, 5376]).layerTypes).toEqual(types)
    expect(gguf({ ...ggufOf27b, [key]: Uint8Array.from(flags, Number) }, [9, 5376]).layerTypes).toEqual(types)
    expect(globals(gguf({ ...ggufOf27b, [key]: 31 }, [9, 5376]))).toEqual([30, 61])
    expect(gguf({ ...ggufOf27b, 'gemma3.context_length': 4096n }, [9, 5376]).contextLength).toBe(4096)
    expect(gguf({ ...ggufOf27b, 'gemma3.rope.freq_base_swa': 5000 }, [9, 5376]).ropeTheta.local).toBe(5000)
  })
})

test('the fixtures', async () => {
  const read = async (path: string) => gemmaConfig(await openCheckpoint(path))
  expect(await read(oracleFolder('gemma3-text-tiny'))).toMatchObject({
    window: 6,
    positionScale: { local: 1, global: 1 / 8 },
    queryScale: 12 ** -0.5,
    embeddingScale: Math.fround(Math.sqrt(48)),
  })
  const { normBias, ...tiny } = await read(tinyFolder)
  expect(normBias).toBe(1)
  // GGUF holds epsilon in f32.
  expect(await read(bundledModel)).toEqual({ ...tiny, normBias: 0, normEps: Math.fround(tiny.normEps) })
})

describe('refused', () => {
  test.each([0, 2 ** 40])('an embedding of %d rows', (rows) => {
    const message = expect.stringMatching(/model\.gguf.*token_embd\.weight.*byte 0/)
    expect(() => gguf(ggufOf27b, [rows, 5376])).toThrow(
      expect.objectContaining({ code: 'ERR_CHECKPOINT_CORRUPT', message }),
    )
  })

  test.each<[string, Json, string, string]>([
    ['another family', { model_type: 'llama' }, 'ERR_CHECKPOINT_UNSUPPORTED', 'model_type'],
    ['Gemma 3n', { model_type: 'gemma3n_text' }, 'ERR_CHECKPOINT_UNSUPPORTED', 'model_type'],
    ['no family', { model_type: undefined }, 'ERR_CHECKPOINT_CORRUPT', 'model_type'],
    ['a family of no kind', { model_type: 7 }, 'ERR_CHECKPOINT_CORRUPT', 'model_type'],
    ['a family of the prototype', { model_type: 'constructor' }, 'ERR_CHECKPOINT_UNSUPPORTED', 'model_type'],
    ['a multimodal file without text', { model_type: 'gemma3' }, 'ERR_CHECKPOINT_CORRUPT', 'text_config'],
    ['biases', { attention_bias: true }, 'ERR_CHECKPOINT_UNSUPPORTED', 'attention_bias'],
    ['a head tied to no answer', { tie_word_embeddings: 'no' }, 'ERR_CHECKPOINT_CORRUPT', 'tie_word_embeddings'],
    ['another activation', { hidden_activation: 'silu' }, 'ERR_CHECKPOINT_UNSUPPORTED', 'hidden_activation'],
    ['no layers', { num_hidden_layers: 0 }, 'ERR_CHECKPOINT_CORRUPT', 'num_hidden_layers'],
    ['half a layer', { num_hidden_layers: 1.5 }, 'ERR_CHECKPOINT_CORRUPT', 'num_hidden_layers'],
    ['a billion layers', { num_hidden_layers: 1e9 }, 'ERR_CHECKPOINT_CORRUPT', 'num_hidden_layers'],
    ['layers in words', { num_hidden_layers: '26' }, 'ERR_CHECKPOINT_CORRUPT', 'num_hidden_layers'],
    ['a negative size', { hidden_size: -1152 }, 'ERR_CHECKPOINT_CORRUPT', 'hidden_size'],
    ['an infinite size', { hidden_size: Number.POSITIVE_INFINITY }, 'ERR_CHECKPOINT_CORRUPT', 'hidden_size'],
    ['a huge vocabulary', { vocab_size: 2 ** 40 }, 'ERR_CHECKPOINT_CORRUPT', 'vocab_size'],
    ['heads that attention does not take', { head_dim: 36 }, 'ERR_CHECKPOINT_UNSUPPORTED', 'head_dim'],
    ['huge heads', { head_dim: 4096 }, 'ERR_CHECKPOINT_CORRUPT', 'head_dim'],
    [
      'heads in unequal groups',
      { num_attention_heads: 4, num_key_value_heads: 3 },
      'ERR_CHECKPOINT_CORRUPT',
      'key-value heads',
    ],
    ['no window', { sliding_window: 0 }, 'ERR_CHECKPOINT_CORRUPT', 'sliding_window'],
    ['a rotary base of 0', { rope_theta: 0 }, 'ERR_CHECKPOINT_CORRUPT', 'rope_theta'],
    [
      'another rotary scaling',
      { rope_scaling: { rope_type: 'yarn', factor: 8 } },
      'ERR_CHECKPOINT_UNSUPPORTED',
      'rope_type',
    ],
    ['a scaling without factor', { rope_scaling: { rope_type: 'linear' } }, 'ERR_CHECKPOINT_CORRUPT', 'factor'],
    ['a scaling that is a list', { rope_scaling: [8] }, 'ERR_CHECKPOINT_CORRUPT', 'rope_scaling'],
    ['layer types of another number', { layer_types: ['full_attention'] }, 'ERR_CHECKPOINT_CORRUPT', 'layer_types'],
    [
      'layer types of no kind',
      { layer_types: Array(26).fill('linear_attention') },
      'ERR_CHECKPOINT_UNSUPPORTED',
      'layer_types',
    ],
    ['a pattern of 0', { sliding_window_pattern: 0 }, 'ERR_CHECKPOINT_CORRUPT', 'sliding_window_pattern'],
    ['a query scale of 0', { query_pre_attn_scalar: 0 }, 'ERR_CHECKPOINT_CORRUPT', 'query_pre_attn_scalar'],
    ['a negative cap', { final_logit_softcapping: -30 }, 'ERR_CHECKPOINT_CORRUPT', 'final_logit_softcapping'],
    ['a negative epsilon', { rms_norm_eps: -1 }, 'ERR_CHECKPOINT_CORRUPT', 'rms_norm_eps'],
    ['NaN', { rms_norm_eps: Number.NaN }, 'ERR_CHECKPOINT_CORRUPT', 'rms_norm_eps'],
  ])('%s', (_, change, code, key) => {
    const message = expect.stringContaining(key)
    expect(() => hf({ ...gemma3of1b, ...change })).toThrow(expect.objectContaining({ code, message }))
  })

  test.each<[string, Json, string, string]>([
    ['another architecture', { 'general.architecture': 'llama' }, 'ERR_CHECKPOINT_UNSUPPORTED', 'general.architecture'],
    ['no architecture', { 'general.architecture': undefined }, 'ERR_CHECKPOINT_UNSUPPORTED', 'general.architecture'],
    ['no layers', { 'gemma3.block_count': undefined }, 'ERR_CHECKPOINT_CORRUPT', 'gemma3.block_count'],
    ['huge layers', { 'gemma3.block_count': 2n ** 60n }, 'ERR_CHECKPOINT_CORRUPT', 'gemma3.block_count'],
    [
      'no window',
      { 'gemma3.attention.sliding_window': undefined },
      'ERR_CHECKPOINT_CORRUPT',
      'gemma3.attention.sliding_window',
    ],
    [
      'another scaling',
      { 'gemma3.rope.scaling.type': 'yarn' },
      'ERR_CHECKPOINT_UNSUPPORTED',
      'gemma3.rope.scaling.type',
    ],
    ['values of another size', { 'gemma3.attention.value_length': 64 }, 'ERR_CHECKPOINT_UNSUPPORTED', 'value_length'],
    ['partial rotation', { 'gemma3.rope.dimension_count': 64 }, 'ERR_CHECKPOINT_UNSUPPORTED', 'rope.dimension_count'],
    [
      'a pattern of another length',
      { 'gemma3.attention.sliding_window_pattern': [true] },
      'ERR_CHECKPOINT_CORRUPT',
      'sliding_window_pattern',
    ],
  ])('%s in GGUF', (_, change, code, key) => {
    const message = expect.stringContaining(key)
    expect(() => gguf({ ...ggufOf27b, ...change }, [9, 5376])).toThrow(expect.objectContaining({ code, message }))
  })
})
