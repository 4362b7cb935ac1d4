/**
 * embedding: rows of a table by token id.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

const outputDtypes = ['f32', 'bf16'] as const

/** @internal The op behind `embedding`. */
export const embeddingOp: Op = defineOp('embedding', {
  inputs: ['ids', 'table'],
  attributes: ['scale', 'outputDtype'],
  outputs: ['out'],
})

/** Settings of {@link embedding}. */
export interface EmbeddingOptions {
  /**
   * Multiplies every element, in f32. Default 1. Gemma takes √hiddenSize rounded to the checkpoint's dtype (bf16: 50.5 for 2560); the
   * tensor scale of a stored sfp8 table is a factor of it too.
   */
  readonly scale?: number
  /** Default f32. */
  readonly outputDtype?: 'f32' | 'bf16'
}

/**
 * out[t] = scale · table[ids[t]].
 *
 * @param ids i32 [tokens]; −1 is no token: a row of zeros, to which something else may be added.
 * @param table [vocabulary, hiddenSize] of any stored dtype (plain rows may be strided), or packed by `packWeights`, so that a tied
 *   output matrix serves both ends.
 * @returns f32 or bf16 [tokens, hiddenSize]
 * @throws ERR_DTYPE_UNSUPPORTED, ERR_SHAPE_MISMATCH; when the stream reaches the call, ERR_INDEX_OUT_OF_RANGE for another id outside the table
 *   (its row is zeros).
 * @example
 * const hidden = embedding(ids, table, { scale: 50.5, outputDtype: 'bf16' })
 */
export function embedding(ids: Tensor, table: Tensor, options: EmbeddingOptions = {}): Tensor {
  const { scale, outputDtype } = options
  return embeddingOp.one([ids, table], [scale, choiceIndex(outputDtypes, outputDtype, 'outputDtype')])
}
