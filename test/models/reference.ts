/**
 * Gemma 1, 2, 3 and EmbeddingGemma in double precision: naive loops from the specification's formulas, sharing nothing with lib/.
 *
 * `disturb` is called with the result of every operation and may change it: how rounding at each place moves the final result is measured by
 * disturbing these places at random (test/models/rounding.ts).
 */

export type Kind = 'local' | 'global'

export interface ReferenceConfig {
  readonly layers: number
  readonly hiddenSize: number
  readonly ffnSize: number
  readonly queryHeads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly vocabulary: number
  readonly window: number
  readonly kinds: readonly Kind[]
  readonly theta: Readonly<Record<Kind, number>>
  /** Positions are divided by it. */
  readonly factor: Readonly<Record<Kind, number>>
  /** Scores are q·k / √queryScalar. */
  readonly queryScalar: number
  readonly attentionCap: number
  readonly finalCap: number
  readonly eps: number
  readonly postNorms: boolean
  readonly qkNorm: boolean
  /** Visible to query i: |i − j| ≤ ⌊window / 2⌋ in local layers, everything in global ones. */
  readonly bidirectional: boolean
  readonly embeddingScale: number
  /** What a rotary frequency is rounded to. Default: not at all. */
  readonly roundFrequency?: (frequency: number) => number
}

export interface ReferenceLayer {
  readonly attentionNorm: Float64Array
  readonly q: Float64Array
  readonly k: Float64Array
  readonly v: Float64Array
  readonly o: Float64Array
  readonly qNorm?: Float64Array | undefined
  readonly kNorm?: Float64Array | undefined
  readonly attentionPostNorm?: Float64Array | undefined
  readonly ffnNorm: Float64Array
  readonly gate: Float64Array
  readonly up: Float64Array
  readonly down: Float64Array
  readonly ffnPostNorm?: Float64Array | undefined
}

/** All matrices [out, in] row-major; norm weights as Hugging Face stores them, to which 1 is added. */
export interface ReferenceWeights {
  readonly embedding: Float64Array
  readonly layers: readonly ReferenceLayer[]
  readonly finalNorm: Float64Array
  /** Default: the embedding. */
  readonly head?: Float64Array
  readonly dense?: readonly Float64Array[]
}

/** Where a value stands when `disturb` sees it. */
export type Place =
  /** The residual stream, [tokens, hiddenSize] */
  | 'residual'
  /** What a sub-layer reads, after its norm. */
  | 'normed'
  /** What a matrix is multiplied by, [tokens, K]. */
  | 'input'
  /** Of a matrix product; `terms` is K. */
  | 'product'
  | 'query'
  | 'key'
  | 'value'
  /** Weights of the softmax, before they are divided by their sum. */
  | 'weights'
  | 'context'
  /** gelu(gate) · up */
  | 'gated'
  | 'logits'

export type Disturb = (place: Place, values: Float64Array, row: number, terms: number) => void

export interface ReferenceResult {
  /** The input of each layer, then the result of the final norm: [tokens, hiddenSize] each. */
  readonly hidden: readonly Float64Array[]
  /** [tokens from `logitsFrom`, vocabulary] */
  readonly logits: Float64Array
}

export interface ReferenceOptions {
  readonly disturb?: Disturb | undefined
  /** The first token whose logits are wanted. Default 0. */
  readonly logitsFrom?: number | undefined
}

export function reference(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  ids: ArrayLike<number>,
  { disturb = () => {}, logitsFrom = 0 }: ReferenceOptions = {},
): ReferenceResult {
  const { hiddenSize: d, headDim, queryHeads, kvHeads, ffnSize, eps } = config
  const tokens = ids.length
  const product = (x: Float64Array, w: Float64Array, n: number, k: number) => {
    const input = x.slice()
    disturb('input', input, k, 0)
    const out = multiply(input, w, tokens, n, k)
    disturb('product', out, n, k)
    return out
  }
  const normed = (x: Float64Array, weight: Float64Array) => {
    const out = rmsNorm(x, d, weight, eps)
    disturb('normed', out, d, 0)
    return out
  }

  let x = new Float64Array(tokens * d)
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < d; i++) x[t * d + i] = weights.embedding[ids[t]! * d + i]! * config.embeddingScale
  }
  disturb('residual', x, d, 0)
  const hidden: Float64Array[] = []
  const residualAdd = (out: Float64Array, postNorm: Float64Array | undefined) => {
    const added = postNorm ? rmsNorm(out, d, postNorm, eps) : out
    x = x.map((value, i) => value + added[i]!)
    disturb('residual', x, d, 0)
  }

  for (const [index, layer] of weights.layers.entries()) {
    hidden.push(x)
    const kind = config.kinds[index]!
    const n = normed(x, layer.attentionNorm)
    let q = product(n, layer.q, queryHeads * headDim, d)
    let k = product(n, layer.k, kvHeads * headDim, d)
    const v = product(n, layer.v, kvHeads * headDim, d)
    if (layer.qNorm) q = rmsNorm(q, headDim, layer.qNorm, eps)
    if (layer.kNorm) k = rmsNorm(k, headDim, layer.kNorm, eps)
    rotate(config, kind, q, queryHeads)
    rotate(config, kind, k, kvHeads)
    disturb('query', q, headDim, 0)
    disturb('key', k, headDim, 0)
    disturb('value', v, headDim, 0)
    const context = attention(config, kind, q, k, v, tokens, disturb)
    disturb('context', context, headDim, 0)
    residualAdd(product(context, layer.o, d, queryHeads * headDim), layer.attentionPostNorm)

    const m = normed(x, layer.ffnNorm)
    const gate = product(m, layer.gate, ffnSize, d)
    const up = product(m, layer.up, ffnSize, d)
    const gated = gate.map((value, i) => gelu(value) * up[i]!)
    disturb('gated', gated, ffnSize, 0)
    residualAdd(product(gated, layer.down, d, ffnSize), layer.ffnPostNorm)
  }
  const last = rmsNorm(x, d, weights.finalNorm, eps)
  hidden.push(last)
  const rows = tokens - logitsFrom
  const headInput = last.slice(logitsFrom * d)
  disturb('input', headInput, d, 0)
  const logits = multiply(headInput, weights.head ?? weights.embedding, rows, config.vocabulary, d)
  disturb('logits', logits, config.vocabulary, d)
  if (config.finalCap > 0) {
    for (let i = 0; i < logits.length; i++) logits[i] = config.finalCap * Math.tanh(logits[i]! / config.finalCap)
  }
  return { hidden, logits }
}

/** EmbeddingGemma's vector of a text: the mean of the last hidden states, the dense layers, length 1. */
export function referenceEmbedding(
  config: ReferenceConfig,
  weights: ReferenceWeights,
  ids: ArrayLike<number>,
  disturb: Disturb = () => {},
): Float64Array {
  const { hidden } = reference({ ...config, vocabulary: 0 }, weights, ids, { disturb, logitsFrom: ids.length })
  const last = hidden.at(-1)!
  let pooled = new Float64Array(config.hiddenSize)
  for (let i = 0; i < last.length; i++) pooled[i % config.hiddenSize]! += last[i]! / ids.length
  for (const matrix of weights.dense ?? []) {
    const input = pooled.slice()
    disturb('input', input, input.length, 0)
    pooled = multiply(input, matrix, 1, matrix.length / input.length, input.length)
  }
  const length = Math.sqrt(pooled.reduce((sum, value) => sum + value * value, 0))
  return pooled.map((value) => value / length)
}

/** x [rows, k] · wᵀ, w [n, k]. Four rows at a time, which changes no sum: a model's worth of these loops takes seconds. */
function multiply(x: Float64Array, w: Float64Array, rows: number, n: number, k: number): Float64Array<ArrayBuffer> {
  const out = new Float64Array(rows * n)
  for (let r = 0; r < rows; r += 4) {
    const at = [r, r + 1, r + 2, r + 3].map((row) => Math.min(row, rows - 1) * k) as [number, number, number, number]
    for (let j = 0; j < n; j++) {
      let [a, b, c, d] = [0, 0, 0, 0]
      for (let i = 0; i < k; i++) {
        const weight = w[j * k + i]!
        a += x[at[0] + i]! * weight
        b += x[at[1] + i]! * weight
        c += x[at[2] + i]! * weight
        d += x[at[3] + i]! * weight
      }
      const sums = [a, b, c, d]
      for (let row = r; row < Math.min(r + 4, rows); row++) out[row * n + j] = sums[row - r]!
    }
  }
  return out
}

function rmsNorm(x: Float64Array, size: number, weight: Float64Array, eps: number): Float64Array<ArrayBuffer> {
  const out = new Float64Array(x.length)
  for (let start = 0; start < x.length; start += size) {
    let squares = 0
    for (let i = 0; i < size; i++) squares += x[start + i]! ** 2
    const inverse = 1 / Math.sqrt(squares / size + eps)
    for (let i = 0; i < size; i++) out[start + i] = x[start + i]! * inverse * (1 + weight[i]!)
  }
  return out
}

/** Pairs (i, i + headDim / 2) turn by position / factor · theta^(−2i / headDim). */
function rotate(config: ReferenceConfig, kind: Kind, x: Float64Array, heads: number): void {
  const { headDim, roundFrequency = (frequency: number) => frequency } = config
  const half = headDim / 2
  for (let i = 0; i < half; i++) {
    const frequency = roundFrequency(config.theta[kind] ** ((-2 * i) / headDim)) / config.factor[kind]
    for (let start = 0; start < x.length; start += headDim) {
      const angle = Math.floor(start / (heads * headDim)) * frequency
      const [a, b] = [x[start + i]!, x[start + half + i]!]
      x[start + i] = a * Math.cos(angle) - b * Math.sin(angle)
      x[start + half + i] = b * Math.cos(angle) + a * Math.sin(angle)
    }
  }
}

function sees(config: ReferenceConfig, kind: Kind, i: number, j: number): boolean {
  if (config.bidirectional) return kind === 'global' || Math.abs(i - j) <= Math.floor(config.window / 2)
  return j <= i && (kind === 'global' || i - j < config.window)
}

function attention(
  config: ReferenceConfig,
  kind: Kind,
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  tokens: number,
  disturb: Disturb,
): Float64Array {
  const { queryHeads, kvHeads, headDim, attentionCap } = config
  const out = new Float64Array(tokens * queryHeads * headDim)
  for (let head = 0; head < queryHeads; head++) {
    const kvHead = Math.floor(head / (queryHeads / kvHeads))
    for (let i = 0; i < tokens; i++) {
      const at = (i * queryHeads + head) * headDim
      const keys: number[] = []
      const scores: number[] = []
      for (let j = 0; j < tokens; j++) {
        if (!sees(config, kind, i, j)) continue
        let score = 0
        for (let c = 0; c < headDim; c++) score += q[at + c]! * k[(j * kvHeads + kvHead) * headDim + c]!
        score /= Math.sqrt(config.queryScalar)
        if (attentionCap > 0) score = attentionCap * Math.tanh(score / attentionCap)
        keys.push(j)
        scores.push(score)
      }
      const highest = Math.max(...scores)
      const weights = Float64Array.from(scores, (score) => Math.exp(score - highest))
      const sum = weights.reduce((total, weight) => total + weight, 0)
      disturb('weights', weights, weights.length, 0)
      for (const [index, j] of keys.entries()) {
        const share = weights[index]! / sum
        for (let c = 0; c < headDim; c++) out[at + c]! += share * v[(j * kvHeads + kvHead) * headDim + c]!
      }
    }
  }
  return out
}

function gelu(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))
}
