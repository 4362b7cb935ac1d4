/**
 * The forward pass of Gemma 1, 2 and 3: an ordinary function over ops, run eagerly or captured as a program.
 *
 * What differs between the three is in the configuration: which layers have a window, the bases of their rotary frequencies, soft caps
 * (Gemma 2, arXiv 2408.00118), norms of the heads of q and k (Gemma 3, arXiv 2503.19786), norms after sub-layers (both).
 * @module
 */
import { LapidaryError } from '../../errors.ts'
import { embedding } from '../../ops/embedding.ts'
import { flashAttention } from '../../ops/flash-attention.ts'
import { type MatmulOptions, matmul } from '../../ops/matmul.ts'
import { qkNormRope } from '../../ops/qk-norm-rope.ts'
import { refineLogits } from '../../ops/refine-logits.ts'
import { add, addRmsNorm, gatherColumns, geglu, rmsNorm, softcap } from '../../ops/row-ops.ts'
import { scope } from '../../scope.ts'
import type { Tensor } from '../../tensor.ts'
import type { HeadProjection, LayerTensors, ModelTensors, Projection } from './model.ts'

/** Where the keys and values of a step's tokens go, and where those of its sequences lie, for layers of one type. */
export interface PagedStep {
  /** i32 [tokens]: page · pageTokens + offset of each token's row; −1 keeps nothing. */
  readonly slots: Tensor
  /** i32 [sequences, width]: the pages of each sequence. A ring is a narrow table, of at least window + (new tokens of the sequence) − 1 rows. */
  readonly pages: Tensor
  /** i32 [tokens], together: the keys [low, high) that each token sees, where some see more than those before them (images). */
  readonly keyLow?: Tensor | undefined
  readonly keyHigh?: Tensor | undefined
}

/** One step of some sequences: the tokens that are new in each, one after the other. */
export interface StepInput {
  /** i32 [tokens]; −1 where `soft` has a row. */
  readonly ids: Tensor
  /** f32 [tokens, hiddenSize]: soft tokens of images, in place of embeddings and without their factor; zeros for text. Default: none. */
  readonly soft?: Tensor | undefined
  /** i32 [tokens]: the place of each token in its sequence, from 0. */
  readonly positions: Tensor
  /** i32 [sequences + 1]: sequence s owns tokens queryStarts[s] to queryStarts[s + 1]. */
  readonly queryStarts: Tensor
  /** i32 [sequences]: tokens of each sequence after this step. */
  readonly keyLengths: Tensor
  readonly local: PagedStep
  readonly global: PagedStep
  /**
   * i32 [rows]: the tokens whose result is wanted. Default: all. The rest of the last layer's work after its attention is left out
   * for the others, which saves a deep model's prefill 1 / layers of its time.
   */
  readonly rows?: Tensor | undefined
}

/** The paged keys and values of one layer. */
export interface LayerCache {
  /** f32, bf16, f16 or i8 [pages, kvHeads, pageTokens, headDim] */
  readonly kCache: Tensor
  readonly vCache: Tensor
  /** f32 [pages, kvHeads, pageTokens], of an i8 cache. */
  readonly kScales?: Tensor | undefined
  readonly vScales?: Tensor | undefined
}

/** q [tokens, queryHeads, headDim], k and v [tokens, kvHeads, headDim] before norms and rotation. */
export interface Heads {
  readonly q: Tensor
  readonly k: Tensor
  readonly v: Tensor
}

/** What a layer hands to the next: the sum of everything so far, and its norm, which the next sub-layer reads. */
interface Stream {
  /** f32 [tokens, hiddenSize] */
  readonly residual: Tensor
  readonly normed: Tensor
}

/**
 * Runs the decoder over one step, and keeps the keys and values of its tokens.
 *
 * @param caches One per layer. Written.
 * @param observe Is given the input of each layer, and as number `layers` the result: f32 [tokens, hiddenSize]. It may queue a read; the
 *   tensor is released afterwards.
 * @returns f32 [tokens or rows, hiddenSize], after the final norm.
 * @example
 * const hidden = decoder(model, step, caches)
 * const next = argmax(logits(model, hidden))
 */
export function decoder(
  model: ModelTensors,
  step: StepInput,
  caches: readonly LayerCache[],
  observe?: (layer: number, hidden: Tensor) => void,
): Tensor {
  const { layers, layerTypes } = model.config
  if (caches.length !== layers) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `decoder: caches: expected one for each of ${layers} layers, got ${caches.length}`,
    )
  }
  let stream = embed(model, step.ids, step.soft)
  for (let layer = 0; layer < layers; layer++) {
    observe?.(layer, stream.residual)
    const cache = caches[layer] as LayerCache
    const { slots, pages, keyLow, keyHigh } = step[layerTypes[layer] as 'local' | 'global']
    const rows = layer === layers - 1 ? step.rows : undefined
    stream = runLayer(model, layer, stream, rows, ({ q, k, v }) => {
      const rotated = qkNormRope(q, k, v, {
        ...positional(model, layer, step.positions),
        cache: { ...cache, slots },
      })
      return flashAttention(rotated.q, cache.kCache, cache.vCache, {
        ...scores(model),
        window: layerTypes[layer] === 'local' ? model.config.window : 0,
        queryStarts: step.queryStarts,
        keyLengths: step.keyLengths,
        pageTable: pages,
        ...(keyLow && keyHigh && { keyLow, keyHigh }),
        ...(cache.kScales && cache.vScales && { kScales: cache.kScales, vScales: cache.vScales }),
      })
    })
  }
  observe?.(layers, stream.normed)
  stream.residual.dispose()
  return stream.normed
}

/**
 * The scores of every token of the vocabulary: the head, which is the embedding unless the file has another, and the final soft cap. Where
 * the head was rounded at loading, the largest scores come from the matrix as stored.
 *
 * @param hidden f32 or bf16 [rows, hiddenSize]: what {@link decoder} returns.
 * @returns f32 [rows, vocabulary]
 * @throws ERR_INVALID_ARGUMENT for an embedding model, which has no head.
 */
export function logits(model: ModelTensors, hidden: Tensor): Tensor {
  const { head, config, refinement } = model
  if (head === undefined) {
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `logits: expected a model that generates text, got ${config.architecture}`,
    )
  }
  return scope(() => {
    const scores = matmul(hidden, head)
    if (refinement) refineLogits(scores, hidden, refinement.table, { top: refinement.top })
    return config.finalSoftcap > 0 ? softcap(scores, config.finalSoftcap) : scores
  })
}

/** @internal The embedding of each token, or its soft token, and its first norm. */
export function embed(model: ModelTensors, ids: Tensor, soft?: Tensor): Stream {
  const { config, activations } = model
  const residual = scope(() => {
    const embedded = embedding(ids, model.embedding, { scale: config.embeddingScale })
    return soft ? add(embedded, soft) : embedded
  })
  const first = (model.layers[0] as LayerTensors).attentionNorm
  return { residual, normed: rmsNorm(residual, first, { ...norm(model), outputDtype: activations }) }
}

/** @internal One layer: attention and the feed-forward part, each between norms, each added to the residual stream. */
export function runLayer(
  model: ModelTensors,
  layer: number,
  { residual, normed }: Stream,
  rows: Tensor | undefined,
  attend: (heads: Heads) => Tensor,
): Stream {
  const { config, activations } = model
  const weights = model.layers[layer] as LayerTensors
  const next = model.layers[layer + 1]
  const stream = scope(() => {
    const context = attend(projectHeads(model, normed, weights.qkv))
    const flat = context.reshape([normed.shape[0] as number, config.queryHeads * config.headDim])
    const attended = addRmsNorm(
      project(pick(flat, rows), weights.output, { outputDtype: activations }),
      pick(residual, rows),
      {
        ...norm(model),
        postNorm: config.postNorms,
        postWeight: weights.attentionPostNorm,
        preWeight: weights.ffnNorm,
        outputDtype: activations,
      },
    )
    const activated = gatedUnits(model, attended.normed, weights.gateUp)
    return addRmsNorm(project(activated, weights.down, { outputDtype: activations }), attended.residual, {
      ...norm(model),
      postNorm: config.postNorms,
      postWeight: weights.ffnPostNorm,
      preWeight: next ? next.attentionNorm : model.finalNorm,
      outputDtype: next ? activations : 'f32',
    })
  })
  residual.dispose()
  normed.dispose()
  return stream
}

/** @internal QK-norm and rotation of a layer, as qkNormRope takes them. */
export function positional(model: ModelTensors, layer: number, positions: Tensor): Parameters<typeof qkNormRope>[3] {
  const { config } = model
  const { qNorm, kNorm } = model.layers[layer] as LayerTensors
  const type = config.layerTypes[layer] as 'local' | 'global'
  return {
    positions,
    ropeTheta: config.ropeTheta[type],
    positionScale: config.positionScale[type],
    qNorm,
    kNorm,
    weightBias: config.normBias,
    eps: config.normEps,
  }
}

/** @internal Scale and soft cap of attention scores. */
export function scores(model: ModelTensors): { scale: number; softcap: number } {
  return { scale: model.config.queryScale, softcap: model.config.attentionSoftcap }
}

function norm({ config }: ModelTensors): { eps: number; weightBias: number } {
  return { eps: config.normEps, weightBias: config.normBias }
}

function projectHeads(model: ModelTensors, normed: Tensor, projections: readonly HeadProjection[]): Heads {
  const parts = projections.flatMap((projection) => {
    const { heads } = projection
    const count = heads.reduce((sum, part) => sum + part, 0)
    const all = project(normed, projection, { outputDtype: model.activations }).reshape([
      normed.shape[0] as number,
      count,
      model.config.headDim,
    ])
    let start = 0
    return heads.map((part) => {
      start += part
      return all.slice(start - part, start, 1)
    })
  })
  const [q, k, v] = parts as [Tensor, Tensor, Tensor]
  return { q, k, v }
}

/** x · Wᵀ, x in the order of W's columns. */
function project(x: Tensor, { weight, columnOrder }: Projection, options?: MatmulOptions): Tensor {
  return matmul(columnOrder ? gatherColumns(x, columnOrder) : x, weight, options)
}

/** gelu(x · gateᵀ) · (x · upᵀ) */
function gatedUnits({ activations }: ModelTensors, x: Tensor, weights: LayerTensors['gateUp']): Tensor {
  const [gate, up] = weights
  if (up === undefined) return project(x, gate, { epilogue: 'geglu', outputDtype: activations })
  return geglu(project(x, gate), project(x, up), { outputDtype: activations })
}

/** Some rows of a matrix: the table look-up of embedding, without a factor. */
function pick(x: Tensor, rows: Tensor | undefined): Tensor {
  return rows ? embedding(rows, x, { outputDtype: x.dtype as 'f32' | 'bf16' }) : x
}
