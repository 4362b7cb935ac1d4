/** The small model, as these tests load it. */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Gemma, type GemmaOptions, type GenerateOptions, type GenerationResult } from '../../lib/engine/gemma.ts'
import type { Isa } from '../../lib/index.ts'
import { bestIsa, openDevice, presentIsas } from '../support/devices.ts'

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/tiny-model/${name}`, import.meta.url))

/** bf16 weights. */
export const tinyFolder = fixture('hf')

/** Trained text, and text the model has not seen. */
export const evalText = readFileSync(fixture('eval.txt'), 'utf8')

export interface Expected {
  readonly greedy: Readonly<Record<string, { readonly ids: number[]; readonly text: string }>>
  readonly perplexity: { readonly tokens: number; readonly value: number }
}
export const expected = JSON.parse(readFileSync(fixture('expected.json'), 'utf8')) as Expected

/**
 * The best instruction set on which a row of matmul does not depend on the number of rows, whatever the weights: AMX multiplies many rows of
 * quantised weights in bf16 and few in int8.
 */
export const exactIsa: Isa = presentIsas.filter((isa) => !isa.startsWith('amx')).at(-1) ?? bestIsa

/** The bundled int4 model on a guarded device. One thread: steps of a small model are shorter than the time slices of a busy machine. */
export async function loadBundled(options: GemmaOptions = {}): Promise<Gemma> {
  return await Gemma.load(undefined, { device: await openDevice(exactIsa, 1), ...options })
}

/** Exact weights, f32 throughout. */
export async function loadExact(options: GemmaOptions = {}): Promise<Gemma> {
  const device = await openDevice(exactIsa, 1)
  return await Gemma.load(tinyFolder, { device, weights: 'f32', activations: 'f32', kv: 'f32', ...options })
}

/** Greedy, and never ended by a stop token. */
export const plain: GenerateOptions = { temperature: 0, stopTokens: [] }

/** What must be the same of two runs. */
export function outcome({ text, ids, finishReason, tokens }: GenerationResult): object {
  return { text, ids, finishReason, tokens }
}

/** Log probabilities in double precision. */
export function logSoftmax(logits: Float32Array): Float64Array {
  const most = logits.reduce((a, b) => Math.max(a, b))
  let sum = 0
  for (const logit of logits) sum += Math.exp(logit - most)
  return Float64Array.from(logits, (logit) => logit - most - Math.log(sum))
}
