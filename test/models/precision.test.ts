/**
 * Rounded paths: bf16 activations, bf16 and int8 caches, 4- and 8-bit weights, on every instruction set, within bounds derived from the
 * reference (rounding.ts) run with exactly the weights that the model has.
 */

import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { dequantize } from '../../lib/index.ts'
import { type GemmaLoadOptions, GemmaModel } from '../../lib/models/gemma/load.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { decodeBlocks } from '../support/formats.ts'
import {
  bundledModel,
  isFast,
  oracleExpected,
  oracleFolder,
  readReference,
  tinyExpected,
  tinyFolder,
} from './fixtures.ts'
import { type ReferenceConfig, type ReferenceLayer, type ReferenceWeights, reference } from './reference.ts'
import { boundFrom, type Deviation, deviation, disturbance, exceeds, type Rounding } from './rounding.ts'
import { changed, equalSteps, type RunOptions, run } from './run.ts'

const seeds = isFast ? [1] : [1, 2]

interface Reference {
  readonly config: ReferenceConfig
  readonly weights: ReferenceWeights
}

/** The exact logits, and how far rounding of this kind may move them. */
function derive({ config, weights }: Reference, ids: ArrayLike<number>, rounding: Rounding) {
  const exact = reference(config, weights, ids).logits
  const samples = seeds.map((seed): Deviation => {
    return deviation(reference(config, weights, ids, { disturb: disturbance(rounding, seed) }).logits, exact)
  })
  return { exact, bound: boundFrom(samples) }
}

describe.each(['gemma2-tiny', 'gemma3-text-tiny'] as const)('%s in bf16', (name) => {
  const { ids } = oracleExpected(name)
  const model = readReference(oracleFolder(name))
  const cuts: readonly RunOptions[] = [{}, { steps: equalSteps(ids.length, 1) }, { steps: equalSteps(ids.length, 5) }]

  test.each(['bf16', 'i8'] as const)('%s keys and values', (kv) => {
    const { exact, bound } = derive(model, ids, { activations: 'bf16', kv, products: 'f32' })
    return forEachIsa(async (device) => {
      const options: GemmaLoadOptions = { packedCache: false, activations: 'bf16' }
      using loaded = await GemmaModel.load(device, await openCheckpoint(oracleFolder(name)), options)
      for (const cut of cuts) {
        const { logits } = await run(loaded, ids, { ...cut, kv })
        expect(exceeds(logits, exact, bound)).toBeUndefined()
        // Rounding is there to be seen: f32 would stay far below.
        expect(deviation(logits, exact).rms).toBeGreaterThan(bound.rms / 1000)
      }
      const { logits } = await run(changed(loaded, { window: loaded.config.window - 2 }), ids, { kv })
      expect(exceeds(logits, exact, bound)).toBeDefined()
    })
  })
})

/** The weights of the bundled GGUF file, decoded by test/support/formats.ts. */
async function bundledWeights(): Promise<ReferenceWeights> {
  const { tensors } = await openCheckpoint(bundledModel)
  const values = (name: string): Float64Array => {
    const { file, offset, bytes, storedType } = tensors.get(`${name}.weight`)!
    const data = readFileSync(file).subarray(offset, offset + bytes)
    if (storedType !== 'F32') return decodeBlocks(storedType.toLowerCase() as 'q4_0' | 'q8_0', data)
    return Float64Array.from({ length: bytes / 4 }, (_, i) => data.readFloatLE(4 * i))
  }
  // The file's norm weights have 1 added, which the reference adds itself.
  const norm = (name: string) => values(name).map((weight) => weight - 1)
  const layers: ReferenceLayer[] = []
  for (let layer = 0; tensors.has(`blk.${layer}.attn_q.weight`); layer++) {
    const matrix = (name: string) => values(`blk.${layer}.${name}`)
    const vector = (name: string) => norm(`blk.${layer}.${name}`)
    layers.push({
      attentionNorm: vector('attn_norm'),
      q: matrix('attn_q'),
      k: matrix('attn_k'),
      v: matrix('attn_v'),
      o: matrix('attn_output'),
      qNorm: vector('attn_q_norm'),
      kNorm: vector('attn_k_norm'),
      attentionPostNorm: vector('post_attention_norm'),
      ffnNorm: vector('ffn_norm'),
      gate: matrix('ffn_gate'),
      up: matrix('ffn_up'),
      down: matrix('ffn_down'),
      ffnPostNorm: vector('post_ffw_norm'),
    })
  }
  return { embedding: values('token_embd'), layers, finalNorm: norm('output_norm') }
}

describe.skipIf(isFast)('the trained model', () => {
  // More than the 48 rows from which tile kernels take over.
  const ids = tinyExpected().ids.subarray(0, 52)
  const { config, weights } = readReference(tinyFolder)

  test('bf16 weights', () => {
    const { exact, bound } = derive({ config, weights }, ids, { activations: 'bf16', kv: 'bf16', products: 'bf16' })
    return forEachIsa(async (device) => {
      using model = await GemmaModel.load(device, await openCheckpoint(tinyFolder), { packedCache: false })
      expect(model.activations).toBe('bf16')
      const { logits } = await run(model, ids, { kv: 'bf16', pageTokens: 16 })
      expect(exceeds(logits, exact, bound)).toBeUndefined()
    })
  })

  test.each(['stored', 'q4_0'] as const)('4-bit weights, head %s', async (head) => {
    const checkpoint = await openCheckpoint(bundledModel)
    const stored = await bundledWeights()
    const load = { packedCache: false, head, refine: 0 } as const
    using any = await GemmaModel.load(await anyDevice(), checkpoint, load)
    using exactHead = dequantize(any.head!)
    const exactWeights = { ...stored, head: Float64Array.from(await exactHead.readF32()) }
    if (head === 'stored') expect(exactWeights.head).toEqual(stored.embedding)
    const rounding: Rounding = { activations: 'bf16', kv: 'bf16', products: 'int8' }
    const { exact, bound } = derive({ config, weights: exactWeights }, ids, rounding)
    await forEachIsa(async (device) => {
      using model = await GemmaModel.load(device, checkpoint, load)
      for (const steps of [[ids.length], equalSteps(ids.length, 13)]) {
        const { logits } = await run(model, ids, { kv: 'bf16', pageTokens: 16, steps })
        expect(exceeds(logits, exact, bound)).toBeUndefined()
      }
    })
    using wrong = await GemmaModel.load(await anyDevice(), checkpoint, load)
    for (const change of [{ normBias: 1 }, { ropeTheta: { local: 1e6, global: 1e4 } }, { window: 16 }] as const) {
      const { logits } = await run(changed(wrong, change), ids, { kv: 'bf16', pageTokens: 16 })
      expect(exceeds(logits, exact, bound)).toBeDefined()
    }
  })
})
