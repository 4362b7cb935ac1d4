/**
 * flashAttention: softmax attention over the keys that each query row sees.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

const outputDtypes = ['same', 'f32', 'bf16'] as const

/** @internal The op behind `flashAttention`. */
export const flashAttentionOp: Op = defineOp('flash_attention', {
  inputs: [
    'q',
    'k',
    'v',
    'queryStarts?',
    'keyStarts?',
    'pageTable?',
    'keyLengths?',
    'keyLow?',
    'keyHigh?',
    'kScales?',
    'vScales?',
  ],
  attributes: ['scale', 'causal', 'window', 'softcap', 'outputDtype'],
  outputs: ['out'],
})

/** Settings of {@link flashAttention}. */
export interface FlashAttentionOptions {
  /** Factor of the scores. Default 1 / √headDim. */
  readonly scale?: number
  /** Whether a query sees only keys up to its own position. Default true. */
  readonly causal?: boolean
  /** How many keys a causal query sees at most, its own included. Default 0: all. */
  readonly window?: number
  /** Scores become softcap · tanh(score / softcap). Default 0: off. */
  readonly softcap?: number
  /** Default `same` as q. */
  readonly outputDtype?: (typeof outputDtypes)[number]
  /** i32 [sequences + 1]: sequence s owns the query rows from queryStarts[s] to queryStarts[s + 1]. Default: one sequence. */
  readonly queryStarts?: Tensor
  /** i32 [sequences + 1]: the same for the rows of plain k and v. */
  readonly keyStarts?: Tensor
  /** i32 [sequences, tableWidth]: where each page of each sequence lies. Makes k and v paged. A ring is a narrow table. */
  readonly pageTable?: Tensor
  /** i32 [sequences]: how many keys each sequence has so far. Required with pages. */
  readonly keyLengths?: Tensor
  /** With keyHigh, i32 [tokens]: the visible interval [low, high) of each token, in place of causal and window. */
  readonly keyLow?: Tensor
  readonly keyHigh?: Tensor
  /** f32, of i8 keys: [keys, kvHeads], or [pages, kvHeads, pageTokens]. */
  readonly kScales?: Tensor
  readonly vScales?: Tensor
}

/**
 * out = softmax(scale · q·kᵀ, soft-capped, over the visible keys) · v.
 *
 * Milakov & Gimelshein 2018 (arXiv:1805.02867); Dao et al. 2022 (arXiv:2205.14135). Sliding windows and soft caps as Gemma 2 and 3
 * have them (arXiv:2408.00118, arXiv:2503.19786). Keys outside a row's interval cost nothing.
 *
 * @param q f32 or bf16 [tokens, queryHeads, headDim]; query head h uses kv head h / (queryHeads / kvHeads).
 * @param k f32, bf16, f16 or i8: plain [keys, kvHeads, headDim], or paged [pages, kvHeads, pageTokens, headDim].
 * @param v Like k.
 * @returns [tokens, queryHeads, headDim]. A row that sees no key is zeros.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED; when the stream reaches the call, ERR_INDEX_OUT_OF_RANGE if starts, lengths,
 *   intervals or pages point outside.
 * @example
 * const out = flashAttention(q, k, v, { window: 1024 })
 */
export function flashAttention(q: Tensor, k: Tensor, v: Tensor, options: FlashAttentionOptions = {}): Tensor {
  const { queryStarts, keyStarts, pageTable, keyLengths, keyLow, keyHigh, kScales, vScales } = options
  const { scale, causal, window, softcap, outputDtype } = options
  return flashAttentionOp.one(
    [q, k, v, queryStarts, keyStarts, pageTable, keyLengths, keyLow, keyHigh, kScales, vScales],
    [scale, causal, window, softcap, choiceIndex(outputDtypes, outputDtype, 'outputDtype')],
  )
}
