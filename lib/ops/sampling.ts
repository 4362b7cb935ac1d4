/**
 * argmax and sample, penalties and log probabilities: from logits to token ids.
 * @module
 */
import { defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

/** @internal The op behind `argmax`. */
export const argmaxOp: Op = defineOp('argmax', { inputs: ['logits'], attributes: [], outputs: ['tokens'] })

/** @internal The op behind `sample`. */
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

/** Settings of {@link sample}. */
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

/** @internal The op behind `adjustLogits`. */
export const adjustLogitsOp: Op = defineOp('adjust_logits', {
  inputs: ['logits', 'rows', 'settings', 'counts?', 'bias?', 'mask?'],
  attributes: [],
  outputs: ['out'],
})

/** Settings of {@link adjustLogits}. */
export interface AdjustLogitsOptions {
  /** i32 [rows]: which row of `counts` and `bias` belongs to each row of logits; −1: none, the row is copied as it is. */
  readonly rows: Tensor
  /** f32 [rows, 3]: repetition penalty (above 0; 1: none), presence penalty and frequency penalty (0: none) of each row. */
  readonly settings: Tensor
  /** i32 [sequences, vocabulary], as `countTokens` writes it. Without it there are no penalties. */
  readonly counts?: Tensor | undefined
  /** f32 [sequences, vocabulary], added last. −Infinity forbids a token. */
  readonly bias?: Tensor | undefined
  /**
   * i32 [rows, ⌈vocabulary / 32⌉]: the tokens that each row of logits may give, bit id mod 32 of word id / 32, whatever its row number.
   * The others become −Infinity. Default: all.
   */
  readonly mask?: Tensor | undefined
}

/**
 * Penalties for tokens that have occurred, a bias, and a mask of what a grammar allows, per sequence:
 *
 *     x = x > 0 ? x / repetition : x · repetition      of tokens in the prompt or generated
 *     x = x − frequency · count − presence             of generated tokens
 *     x = x + bias
 *     x = −Infinity                                    of tokens that mask does not allow
 *
 * The repetition penalty is that of Keskar et al. 2019 (arXiv 1909.05858) as Hugging Face transformers has it, the other two are
 * as OpenAI documents them for its API. Each step is rounded to f32.
 *
 * @param logits f32 or bf16 [rows, vocabulary]; rows may be strided.
 * @returns f32 [rows, vocabulary]
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED; when the stream reaches the call, ERR_INDEX_OUT_OF_RANGE for a row number
 *   outside, ERR_INVALID_ARGUMENT for a setting outside its range.
 * @example
 * const adjusted = adjustLogits(logits, { counts, rows, settings })
 * const tokens = sample(adjusted, state)
 * countTokens(tokens, counts, rows)
 */
export function adjustLogits(logits: Tensor, options: AdjustLogitsOptions): Tensor {
  const { rows, settings, counts, bias, mask } = options
  return adjustLogitsOp.one([logits, rows, settings, counts, bias, mask], [])
}

/** @internal The op behind `countTokens`. */
export const countTokensOp: Op = defineOp('count_tokens', {
  inputs: ['tokens', 'rows', 'counts!'],
  attributes: ['prompt'],
  outputs: [],
})

/** Settings of {@link countTokens}. */
export interface CountTokensOptions {
  /**
   * The tokens are of the prompt: they are marked (bit 30 of a count) rather than counted, so that the repetition penalty sees them
   * and the others do not. Default false.
   */
  readonly prompt?: boolean
}

/**
 * Counts tokens of sequences: counts[rows[i]][tokens[i]] += 1, for `adjustLogits`. Writes into `counts`.
 *
 * @param tokens i32 [n]
 * @param counts i32 [sequences, vocabulary]; zeros for a new sequence.
 * @param rows i32 [n], or [1] for all tokens: the row of counts of each token; −1: the token is not counted.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED; when the stream reaches the call, ERR_INDEX_OUT_OF_RANGE for a token or row
 *   outside counts, which is not counted.
 * @example
 * countTokens(promptIds, counts, row, { prompt: true })
 */
export function countTokens(tokens: Tensor, counts: Tensor, rows: Tensor, options: CountTokensOptions = {}): void {
  countTokensOp.all([tokens, rows, counts], [options.prompt])
}

/** @internal The op behind `logProbs`. */
export const logProbsOp: Op = defineOp('log_probs', {
  inputs: ['logits', 'tokens'],
  attributes: ['top'],
  outputs: ['chosen', 'ids', 'values'],
})

/** What {@link logProbs} gives. */
export interface LogProbs {
  /** f32 [rows]: of the token given for each row. */
  readonly chosen: Tensor
  /** i32 [rows, top]: the most probable tokens, most probable first; of equals the lower id. */
  readonly ids: Tensor
  /** f32 [rows, top]: theirs. */
  readonly values: Tensor
}

/**
 * Natural logarithms of softmax(logits): of one token per row, and of the most probable ones.
 *
 * A NaN logit has probability 0. A row whose largest logit is infinite has no softmax: its values are NaN.
 *
 * @param logits f32 or bf16 [rows, vocabulary]; rows may be strided.
 * @param tokens i32 [rows]
 * @param options.top How many of the most probable tokens, 0 to 256 and at most the vocabulary. Default 0.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_INVALID_ARGUMENT for top; when the stream reaches the call,
 *   ERR_INDEX_OUT_OF_RANGE for a token outside the vocabulary.
 * @example
 * const { chosen, ids, values } = logProbs(logits, tokens, { top: 5 })
 */
export function logProbs(logits: Tensor, tokens: Tensor, options: { readonly top?: number } = {}): LogProbs {
  const [chosen, ids, values] = logProbsOp.all([logits, tokens], [options.top]) as [Tensor, Tensor, Tensor]
  return { chosen, ids, values }
}
