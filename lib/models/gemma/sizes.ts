/**
 * The published sizes of the Gemma text models, as data.
 * @module
 */
import type { GemmaConfig, GemmaDimensions } from './config.ts'

/** The shape of one published text decoder. */
export interface GemmaSize extends GemmaDimensions, Pick<GemmaConfig, 'attentionSoftcap' | 'finalSoftcap'> {
  readonly architecture: 'gemma' | 'gemma2' | 'gemma3'
  /** Pieces of the tokenizer. Some Hugging Face files pad the embedding beyond it. */
  readonly vocabularySize: number
  /** Layer i is global where (i + 1) mod period = 0; 1: all are. */
  readonly period: number
  readonly ropeTheta: { readonly local: number; readonly global: number }
  /** What positions of global layers are divided by. */
  readonly positionDivisor: number
  /** Queries are scaled by its inverse square root. */
  readonly queryScalar: number
}

/** A published size by name. */
export type GemmaSizeName =
  | 'gemma-1-2b'
  | 'gemma-1-7b'
  | 'gemma-2-2b'
  | 'gemma-2-9b'
  | 'gemma-2-27b'
  | 'gemma-3-270m'
  | 'gemma-3-1b'
  | 'gemma-3-4b'
  | 'gemma-3-12b'
  | 'gemma-3-27b'

const gemma1 = {
  architecture: 'gemma',
  headDim: 256,
  vocabularySize: 256000,
  contextLength: 8192,
  window: 0,
  period: 1,
  ropeTheta: { local: 10000, global: 10000 },
  positionDivisor: 1,
  queryScalar: 256,
  attentionSoftcap: 0,
  finalSoftcap: 0,
} as const

const gemma2 = {
  ...gemma1,
  architecture: 'gemma2',
  window: 4096,
  period: 2,
  attentionSoftcap: 50,
  finalSoftcap: 30,
} as const

const gemma3 = {
  ...gemma1,
  architecture: 'gemma3',
  vocabularySize: 262144,
  window: 512,
  period: 6,
  contextLength: 32768,
  ropeTheta: { local: 10000, global: 1000000 },
} as const

const gemma3Long = { ...gemma3, window: 1024, contextLength: 131072, positionDivisor: 8 } as const

/** Gemma 1, 2 and 3 by name. Sources: the published configurations, and the Gemma 3 report (arXiv 2503.19786). */
export const gemmaSizes: Readonly<Record<GemmaSizeName, GemmaSize>> = {
  'gemma-1-2b': { ...gemma1, layers: 18, hiddenSize: 2048, ffnSize: 16384, queryHeads: 8, kvHeads: 1 },
  'gemma-1-7b': { ...gemma1, layers: 28, hiddenSize: 3072, ffnSize: 24576, queryHeads: 16, kvHeads: 16 },
  'gemma-2-2b': { ...gemma2, layers: 26, hiddenSize: 2304, ffnSize: 9216, queryHeads: 8, kvHeads: 4 },
  'gemma-2-9b': { ...gemma2, layers: 42, hiddenSize: 3584, ffnSize: 14336, queryHeads: 16, kvHeads: 8 },
  'gemma-2-27b': {
    ...gemma2,
    layers: 46,
    hiddenSize: 4608,
    ffnSize: 36864,
    queryHeads: 32,
    kvHeads: 16,
    headDim: 128,
    queryScalar: 144,
  },
  'gemma-3-270m': { ...gemma3, layers: 18, hiddenSize: 640, ffnSize: 2048, queryHeads: 4, kvHeads: 1 },
  'gemma-3-1b': { ...gemma3, layers: 26, hiddenSize: 1152, ffnSize: 6912, queryHeads: 4, kvHeads: 1 },
  'gemma-3-4b': { ...gemma3Long, layers: 34, hiddenSize: 2560, ffnSize: 10240, queryHeads: 8, kvHeads: 4 },
  'gemma-3-12b': { ...gemma3Long, layers: 48, hiddenSize: 3840, ffnSize: 15360, queryHeads: 16, kvHeads: 8 },
  'gemma-3-27b': {
    ...gemma3Long,
    layers: 62,
    hiddenSize: 5376,
    ffnSize: 21504,
    queryHeads: 32,
    kvHeads: 16,
    headDim: 128,
    queryScalar: 168,
  },
}
