/** What flashAttention must give: naive loops in double precision from the formula, and how far a kernel may be from them. */

import { gamma, outputBound, smallestNormal, unitRoundoff } from '../support/numbers.ts'
import {
  type Case,
  dtypeOf,
  type Inputs,
  kvDtypeOf,
  outputDtypeOf,
  rowOf,
  tokensOf,
  visible,
} from './flash-attention.cases.ts'

const u = unitRoundoff('f32')

/** The errors that the contract (native/ops/flash_attention.h) allows each kind of kernel. */
interface Kind {
  /** Relative, of q where it is not bf16 already. */
  readonly query: number
  /** Relative, of e^x. */
  readonly exponential: number
  /** Relative, of a weight that multiplies v, beside that of its exponential. */
  readonly weight: number
  /** Of tanh x: relative, and absolute where |x| > 5.5. */
  readonly tanh: readonly [number, number]
}

const f32Kind: Kind = { query: 0, exponential: 4 * u, weight: u, tanh: [4 * u, 0] }
const bf16Kind: Kind = {
  query: unitRoundoff('bf16'),
  exponential: 2 ** -13,
  weight: unitRoundoff('bf16') + u,
  tanh: [4.3e-6, 3.8e-5],
}

/** On CUDA, where tanh is one instruction. */
const cudaBf16Kind: Kind = { ...bf16Kind, tanh: [2 ** -10.9, 0] }

/** Keys between two moves of the softmax reference or two partial results, at least. */
const kLeastBlock = 64
/** A reference moves by at least this, in powers of e or 2. */
const kLeastMove = 8

export interface Expectation {
  readonly value: Float64Array
  readonly bound: Float64Array
}

/**
 * Bounds are those of the bf16 kind where kernels of the device may be of it; `f32`: of the f32 kind throughout. With s̃ = s + δ, exponents x̃ = x + ε and weights
 * w̃ = w (1 + η), first for scores, then for the quotient:
 *
 *     |δ|   ≤ |scale| · (query + γ(headDim + 4)) · Σ|q||k| + tanh's
 *     |η|   ≤ e^ε − 1 + exponential, ε = |δ| + roundings of x and of x − m, + moves of the reference
 *     error ≤ Σ w |v| (η + weight + γ(n)) / l + |out| · (Σ w η / l + γ(n))
 */
export function reference(c: Case, h: Inputs, of: 'cpu' | 'cuda' | 'f32' = 'cpu'): Expectation[] {
  const dtype = kvDtypeOf(c)
  const rounds = of !== 'f32' && (dtype === 'bf16' || dtype === 'i8')
  const kind = !rounds ? f32Kind : of === 'cuda' ? cudaBf16Kind : bf16Kind
  const { queryHeads, kvHeads, headDim } = c
  const value = new Float64Array(tokensOf(c) * queryHeads * headDim)
  const error = new Float64Array(value.length)
  let token = c.padding ?? 0
  for (const [s, tokens] of c.queries.entries()) {
    for (let i = 0; i < tokens; i++, token++) {
      const { low, high } = visible(c, h, s, i)
      for (let head = 0; head < queryHeads; head++) {
        const kvHead = Math.floor(head / (queryHeads / kvHeads))
        const rows: number[] = []
        for (let j = low; j < high; j++) rows.push(rowOf(c, h, s, kvHead, j))
        const at = (token * queryHeads + head) * headDim
        const range = [at, at + headDim] as const
        attend(c, h, kind, at, rows, value.subarray(...range), error.subarray(...range))
      }
    }
  }
  return [{ value, bound: outputBound(outputDtypeOf(c), value, error) }]
}

function attend(
  c: Case,
  h: Inputs,
  kind: Kind,
  query: number,
  rows: readonly number[],
  out: Float64Array,
  error: Float64Array,
): void {
  const { headDim } = c
  const scale = Math.fround(c.scale || 1 / Math.sqrt(headDim))
  const cap = Math.fround(c.softcap ?? 0)
  const queryError = dtypeOf(c) === 'bf16' ? 0 : kind.query
  const scores: number[] = []
  const scoreErrors: number[] = []
  let largest = 0
  for (const row of rows) {
    let dot = 0
    let size = 0
    for (let d = 0; d < headDim; d++) {
      const product = h.q.values[query + d]! * h.k.values[row * headDim + d]!
      dot += product
      size += Math.abs(product)
    }
    const factor = Math.abs(scale) * (h.kScales?.values[row] ?? 1)
    let score = dot * Math.sign(scale) * factor
    let delta = factor * size * (queryError + gamma(headDim + 4)) + factor * headDim * smallestNormal('f32')
    if (cap > 0) {
      const y = score / cap
      const [relative, absolute] = kind.tanh
      score = cap * Math.tanh(y)
      // The slope of tanh is at most 1; the rational function's error is absolute from 5.5 on.
      delta +=
        cap * (Math.abs(y) > 5.4 ? absolute : 0) + Math.abs(score) * (relative + 4 * u) + 4 * u * Math.abs(y) * cap
    }
    scores.push(score)
    scoreErrors.push(delta)
    largest = Math.max(largest, Math.abs(score))
  }

  const n = rows.length
  const top = scores.reduce((most, score) => Math.max(most, score), Number.NEGATIVE_INFINITY)
  const weights = scores.map((score) => Math.exp(score - top))
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  // Each move multiplies what came before by another exponential; chunks are joined by one more, and at most one per block moves.
  const moves = Math.min(Math.ceil(n / kLeastBlock), Math.ceil((2 * largest * Math.LOG2E) / kLeastMove)) + 2
  const move = kind.exponential + 4 * u * (largest + kLeastMove)
  const eta = scoreErrors.map((delta) => {
    // The exponent's roundings: of score · factor, and of the difference from a reference within kLeastMove of some score.
    const epsilon = delta + 4 * u * (2 * largest + kLeastMove)
    return Math.expm1(epsilon) + 1.1 * kind.exponential + moves * move
  })
  const roundings = gamma(n + 2 * moves + 8)
  const totalError = weights.reduce((sum, weight, j) => sum + weight * eta[j]!, 0) / total + roundings
  for (let d = 0; d < headDim && n > 0; d++) {
    let sum = 0
    let sumError = 0
    // Plain loops here and above: most of the time of the suite is theirs.
    for (let j = 0; j < n; j++) {
      const row = rows[j]!
      const term = weights[j]! * h.v.values[row * headDim + d]! * (h.vScales?.values[row] ?? 1)
      sum += term
      sumError += Math.abs(term) * (eta[j]! + 1.1 * kind.weight + roundings)
    }
    out[d] = sum / total
    // 1 / (1 − totalError) carries the products of errors.
    error[d] = (sumError / total + Math.abs(out[d]!) * totalError) / (1 - totalError) + smallestNormal('f32')
  }
}
