/**
 * argmax and sample: from logits to token ids.
 * @module
 */
import { defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

export const argmaxOp: Op = defineOp('argmax', { inputs: ['logits'], attributes: [], outputs: ['tokens'] })

export const sampleOp: Op = defineOp('sample', {
  inputs: ['logits', 'state!', 'settings?', 'bias?'],
  attributes: ['temperature', 'topK', 'topP', 'minP'],
  outputs: ['tokens'],
})

/**
 * The index of the largest element of each row, the first one of equals. NaN never wins; a row of NaN alone gives 0.
 *
 * @param logits f32 or bf16 [rows, vocabulary]; rows may be strided.
 * @returns i32 [rows]
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED
 * @example
 * const [token] = await argmax(logits).read()
 */
export function argmax(logits: Tensor): Tensor {
  return argmaxOp.one([logits], [])
}

export interface SampleOptions {
  /** Divides the logits. 0: the largest logit wins. Default 1. */
  readonly temperature?: number
  /** Only the topK most probable tokens; of equals the lower ids. Default 0: all. */
  readonly topK?: number
  /**
   * Only the most probable tokens whose probabilities sum to topP or just above, at least one (nucleus sampling,
   * Holtzman et al. 2019, arXiv 1904.09751). Default 1: all.
   */
  readonly topP?: number
  /** Only tokens of at least minP times the largest probability (Nguyen et al. 2024, arXiv 2407.01082). Default 0: all. */
  readonly minP?: number
  /** f32 [rows, 4]: temperature, topK, topP and minP of each row, in place of the options above. */
  readonly settings?: Tensor | undefined
  /** f32 [rows, vocabulary] or [1, vocabulary], added to the logits first. −Infinity forbids a token. */
  readonly bias?: Tensor | undefined
}

/**
 * Draws a token from each row: softmax of the logits (plus bias) over temperature, cut by topK, then topP, then minP, as
 * in Hugging Face transformers.
 *
 * The random number u in [0, 1) is made of seed and counter by Philox4x32-10 (Salmon et al., SC 2011), and the token is
 * the first kept id at which the running sum of probabilities exceeds u. The same state gives the same token, whatever
 * the number of threads. Rows with one seed draw the same numbers: give each sequence its own.
 *
 * NaN logits are never drawn. A row whose largest logit is infinite, or that is NaN throughout, gives what `argmax` gives.
 *
 * @param logits f32 or bf16 [rows, vocabulary]; rows may be strided.
 * @param state i32 [rows, 2]: seed and counter. Each call adds 1 to the counters, so that a replayed program draws anew.
 * @returns i32 [rows]
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_INVALID_ARGUMENT for an option outside its range; when the stream
 *   reaches the call, ERR_INVALID_ARGUMENT for such a row of `settings`.
 * @example
 * const state = Tensor.from(device, Int32Array.of(seed, 0), [1, 2])
 * const token = sample(logits, state, { temperature: 1, topK: 64, topP: 0.95 })
 */
export function sample(logits: Tensor, state: Tensor, options: SampleOptions = {}): Tensor {
  const { temperature, topK, topP, minP, settings, bias } = options
  return sampleOp.one([logits, state, settings, bias], [temperature, topK, topP, minP])
}
