/**
 * refineLogits: the largest logits of a row, computed again from a more exact head.
 * @module
 */
import { defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

/** @internal The op behind `refineLogits`. */
export const refineLogitsOp: Op = defineOp('refine_logits', {
  inputs: ['logits!', 'hidden', 'table'],
  attributes: ['top'],
  outputs: [],
})

/** Settings of {@link refineLogits}. */
export interface RefineLogitsOptions {
  /** How many logits of each row, at least 1. Default 256. */
  readonly top?: number
}

/**
 * Overwrites the `top` largest logits of each row with hidden · table[id], computed in f32 from the table's exact weights.
 *
 * Reading the output matrix takes a large part of a decoding step. A 4-bit head finds the tokens that matter in half the bytes of an
 * 8-bit one; their logits then come from the matrix as the checkpoint stores it, which may be a mapped file of which
 * only these rows are read.
 *
 * @param logits f32 [rows, vocabulary]; rows may be strided. Written.
 * @param hidden f32 or bf16 [rows, hiddenSize]; rows may be strided.
 * @param table [vocabulary, hiddenSize] of any stored dtype, or packed by `packWeights`.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_INVALID_ARGUMENT
 * @example
 * const logits = matmul(hidden, head4)
 * refineLogits(logits, hidden, table)
 */
export function refineLogits(logits: Tensor, hidden: Tensor, table: Tensor, options: RefineLogitsOptions = {}): void {
  refineLogitsOp.all([logits, hidden, table], [options.top])
}
