/** Whole models in every kind of file: architectures in GGUF, mixed block types, integer weights of Hugging Face folders. */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { Random } from '../support/random.ts'
import { RandomModel, type RandomModelOptions } from './random-model.ts'
import { reference } from './reference.ts'
import { boundFrom, deviation, disturbance, exceeds, type Rounding } from './rounding.ts'
import { equalSteps, run } from './run.ts'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lapidary-models-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

const kinds = ['local', 'global', 'local'] as const
/** Rows of K-quants are multiples of 256. */
const kQuantSizes = { hiddenSize: 256, ffnSize: 256, headDim: 64, queryHeads: 4, kvHeads: 2 }

interface Case {
  readonly name: string
  readonly options: RandomModelOptions
  /** GGUF, or the quantization_config of a Hugging Face folder. */
  readonly file: 'gguf' | { readonly prefix?: string; readonly quantization?: object }
  readonly products: Rounding['products']
}

const cases: readonly Case[] = [
  {
    name: 'gemma in GGUF, f16',
    options: { family: 'gemma', kinds: ['global', 'global'], form: () => 'f16' },
    file: 'gguf',
    products: 'bf16',
  },
  { name: 'gemma2 in GGUF, bf16', options: { family: 'gemma2', kinds }, file: 'gguf', products: 'bf16' },
  {
    name: 'gemma3 in GGUF, q8_0',
    options: { family: 'gemma3', kinds, form: () => 'q8_0' },
    file: 'gguf',
    products: 'int8',
  },
  {
    // As Q4_K_M files: v and down in more bits in some layers, so that q, k and v cannot be one matrix.
    name: 'gemma3 in GGUF, q4_k with q6_k',
    options: {
      family: 'gemma3',
      kinds,
      sizes: kQuantSizes,
      form: (matrix, layer) =>
        matrix === 'embedding' || (layer !== 1 && (matrix === 'v' || matrix === 'down')) ? 'q6_k' : 'q4_k',
    },
    file: 'gguf',
    products: 'int8',
  },
  {
    name: 'gemma3 in GGUF, a different type for each matrix',
    options: {
      family: 'gemma3',
      kinds,
      form: (matrix) =>
        ({ q: 'q4_0', k: 'q4_1', v: 'q5_0', gate: 'q8_0', up: 'q4_0', embedding: 'f32' })[matrix as string] ?? 'q5_0',
    },
    file: 'gguf',
    products: 'int8',
  },
  {
    // llama.cpp's Q5_K_M and IQ4_XS of models whose rows are no multiples of 256, Gemma 3 1B among them: Q5_1, Q8_0 and IQ4_NL
    // stand in for the K-quants.
    name: 'gemma3 in GGUF, the fallbacks of narrow models: q5_1, q8_0, iq4_nl',
    options: {
      family: 'gemma3',
      kinds,
      form: (matrix, layer) =>
        ({ embedding: 'iq4_nl', v: layer === 1 ? 'q5_1' : 'q8_0', gate: 'iq4_nl', up: 'iq4_nl', o: 'iq4_nl' })[
          matrix as string
        ] ?? 'q5_1',
    },
    file: 'gguf',
    products: 'int8',
  },
  {
    // As Q3_K_M and IQ4_XS files.
    name: 'gemma3 in GGUF, q3_k with q5_k, iq4_xs and q6_k',
    options: {
      family: 'gemma3',
      kinds,
      sizes: kQuantSizes,
      form: (matrix, layer) =>
        ({ embedding: 'q6_k', v: 'q5_k', o: 'q4_k', down: layer === 1 ? 'q3_k' : 'iq4_xs' })[matrix as string] ??
        'q3_k',
    },
    file: 'gguf',
    products: 'int8',
  },
  {
    name: 'gemma3, GPTQ',
    options: { family: 'gemma3', kinds, form: (matrix) => (matrix === 'embedding' ? 'f16' : 'gptq 32') },
    file: { quantization: { quant_method: 'gptq', bits: 4, group_size: 32, desc_act: false, sym: false } },
    products: 'int8',
  },
  {
    // Quantised in the order of activations; up's order is not gate's, which keeps the two apart.
    name: 'gemma3, GPTQ with desc_act',
    options: {
      family: 'gemma3',
      kinds,
      form: (matrix) => ({ embedding: 'f16', up: 'gptq 32 otherwise' })[matrix as string] ?? 'gptq 32 ordered',
    },
    file: { quantization: { quant_method: 'gptq', bits: 4, group_size: 32, desc_act: true, sym: false } },
    products: 'int8',
  },
  {
    name: 'gemma2, compressed-tensors with actorder group',
    options: {
      family: 'gemma2',
      kinds,
      form: (matrix) => (matrix === 'embedding' ? 'bf16' : 'compressed 32 ordered'),
    },
    file: {
      quantization: {
        quant_method: 'compressed-tensors',
        format: 'pack-quantized',
        config_groups: {
          group_0: {
            targets: ['Linear'],
            weights: { num_bits: 4, group_size: 32, symmetric: true, actorder: 'group' },
          },
        },
      },
    },
    products: 'int8',
  },
  {
    name: 'gemma3, GPTQ of some matrices of each layer, named as in older multimodal files',
    options: {
      family: 'gemma3',
      kinds: ['local', 'global'],
      form: (matrix) => (['q', 'k', 'gate', 'down'].includes(matrix) ? 'gptq 32' : 'bf16'),
    },
    file: {
      prefix: 'language_model.model.',
      quantization: {
        quant_method: 'gptq',
        bits: 4,
        group_size: 32,
        desc_act: false,
        lm_head: false,
        modules_in_block_to_quantize: [['self_attn.q_proj', 'self_attn.k_proj'], ['mlp.gate_proj'], ['mlp.down_proj']],
      },
    },
    products: 'int8',
  },
  {
    name: 'gemma2, AWQ',
    options: { family: 'gemma2', kinds, form: (matrix) => (matrix === 'embedding' ? 'f16' : 'awq 32 symmetric') },
    file: { quantization: { quant_method: 'awq', bits: 4, group_size: 32, version: 'gemm', zero_point: false } },
    products: 'int8',
  },
  {
    name: 'gemma3, compressed-tensors',
    options: { family: 'gemma3', kinds, form: (matrix) => (matrix === 'embedding' ? 'bf16' : 'compressed 32') },
    file: {
      quantization: {
        quant_method: 'compressed-tensors',
        format: 'pack-quantized',
        config_groups: { group_0: { targets: ['Linear'], weights: { num_bits: 4, group_size: 32, symmetric: true } } },
      },
    },
    products: 'int8',
  },
  {
    name: 'gemma3, the text part of a multimodal file',
    options: { family: 'gemma3', kinds },
    file: { prefix: 'model.language_model.' },
    products: 'bf16',
  },
]

test.each(cases)('$name', async ({ name, options, file, products }) => {
  const model = new RandomModel(name, options)
  const place = mkdtempSync(join(folder, 'case-'))
  const path = file === 'gguf' ? join(place, 'model.gguf') : place
  if (file === 'gguf') await model.writeGguf(path)
  else model.writeHf(path, file)

  const ids = Random.named('text').i32([30], 0, model.config.vocabulary).data
  const exact = reference(model.config, model.weights, ids).logits
  const samples = [1, 2, 3].map((seed) => {
    const disturb = disturbance({ activations: 'bf16', kv: 'bf16', products }, seed)
    return deviation(reference(model.config, model.weights, ids, { disturb }).logits, exact)
  })
  const bound = boundFrom(samples)
  // A wrong weight anywhere must not hide in the bound.
  const wrong = reference({ ...model.config, queryScalar: 4 * model.config.queryScalar }, model.weights, ids).logits
  expect(exceeds(wrong, exact, bound)).toBeDefined()

  const checkpoint = await openCheckpoint(path)
  await forEachIsa(async (device) => {
    using loaded = await GemmaModel.load(device, checkpoint, { packedCache: false, activations: 'bf16' })
    for (const size of [30, 4]) {
      const { logits } = await run(loaded, ids, { kv: 'bf16', steps: equalSteps(30, size) })
      expect(exceeds(logits, exact, bound)).toBeUndefined()
    }
    // The same weights widened to f32 are the file's exactly, whatever its format.
    using widened = await GemmaModel.load(device, checkpoint, { packedCache: false, weights: 'f32' })
    const { logits } = await run(widened, ids)
    expect(deviation(logits, exact).max).toBeLessThanOrEqual(2e-4 * Math.max(1, ...exact.map(Math.abs)))
  })
})

test('a model in activation order is the same from its packed cache', async () => {
  const options: RandomModelOptions = {
    family: 'gemma3',
    kinds,
    form: (matrix) => (matrix === 'embedding' ? 'f16' : 'gptq 32 ordered'),
  }
  const place = mkdtempSync(join(folder, 'case-'))
  const quantization = { quant_method: 'gptq', bits: 4, group_size: 32, desc_act: true, sym: false }
  const model = new RandomModel('cached', options)
  model.writeHf(place, { quantization })
  const ids = Random.named('text').i32([30], 0, model.config.vocabulary).data
  const checkpoint = await openCheckpoint(place)
  const device = await anyDevice()
  const load = async (): Promise<[fromCache: boolean, logits: Float64Array]> => {
    using loaded = await GemmaModel.load(device, checkpoint, { packedCache: true })
    return [loaded.fromCache, (await run(loaded, ids)).logits]
  }
  const [first, again] = [await load(), await load()]
  expect([first[0], again[0]]).toEqual([false, true])
  expect(again[1]).toEqual(first[1])
})
