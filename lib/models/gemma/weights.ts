/**
 * Where a checkpoint keeps each weight of a Gemma model, and whether it is what the configuration asks for.
 * @module
 */
import type { Checkpoint, StoredTensor } from '../../checkpoint/checkpoint.ts'
import { isObject } from '../../checkpoint/json.ts'
import { type LinearWeight, linearWeight } from '../../checkpoint/linear.ts'
import { LapidaryError } from '../../errors.ts'
import type { GemmaConfig } from './config.ts'

/** The stored weights of one decoder layer. */
export interface LayerWeights {
  readonly attentionNorm: StoredTensor
  readonly q: LinearWeight
  readonly k: LinearWeight
  readonly v: LinearWeight
  readonly qNorm: StoredTensor | undefined
  readonly kNorm: StoredTensor | undefined
  readonly output: LinearWeight
  readonly attentionPostNorm: StoredTensor | undefined
  readonly ffnNorm: StoredTensor
  readonly gate: LinearWeight
  readonly up: LinearWeight
  readonly down: LinearWeight
  readonly ffnPostNorm: StoredTensor | undefined
}

/** All stored weights of a model. */
export interface ModelWeights {
  readonly embedding: StoredTensor
  readonly layers: readonly LayerWeights[]
  readonly finalNorm: StoredTensor
  /** An output matrix of its own, which some quantised files have; otherwise it is the embedding. */
  readonly head: StoredTensor | undefined
  /** EmbeddingGemma's matrices after pooling, where the file has them. */
  readonly dense: readonly StoredTensor[]
}

type LayerNames = Readonly<Record<keyof LayerWeights, string>>

const hfLayer: LayerNames = {
  attentionNorm: 'input_layernorm.weight',
  q: 'self_attn.q_proj',
  k: 'self_attn.k_proj',
  v: 'self_attn.v_proj',
  qNorm: 'self_attn.q_norm.weight',
  kNorm: 'self_attn.k_norm.weight',
  output: 'self_attn.o_proj',
  attentionPostNorm: 'post_attention_layernorm.weight',
  ffnNorm: 'pre_feedforward_layernorm.weight',
  gate: 'mlp.gate_proj',
  up: 'mlp.up_proj',
  down: 'mlp.down_proj',
  ffnPostNorm: 'post_feedforward_layernorm.weight',
}

/** Without post-norms the name of the norm after attention is that of the norm before the feed-forward part. */
const hfLayerGemma1: LayerNames = { ...hfLayer, ffnNorm: 'post_attention_layernorm.weight' }

const ggufLayer: LayerNames = {
  attentionNorm: 'attn_norm.weight',
  q: 'attn_q',
  k: 'attn_k',
  v: 'attn_v',
  qNorm: 'attn_q_norm.weight',
  kNorm: 'attn_k_norm.weight',
  output: 'attn_output',
  attentionPostNorm: 'post_attention_norm.weight',
  ffnNorm: 'ffn_norm.weight',
  gate: 'ffn_gate',
  up: 'ffn_up',
  down: 'ffn_down',
  ffnPostNorm: 'post_ffw_norm.weight',
}

/** Text-only files, current and older multimodal ones, and bare decoders, in the order of trial. */
const hfPrefixes = ['model.', 'model.language_model.', 'language_model.model.', '']

/** Parts of multimodal files beside the text model, and copies of what is tied. */
const otherParts =
  /^(model\.)?(vision_tower|multi_modal_projector|audio_tower|embed_vision|embed_audio)\.|(^|\.)lm_head\./

/** Buffers that some writers keep: they follow from the configuration. */
const buffers = /\.rotary_emb\.inv_freq$|^rope_freqs\.weight$/

/** A vision tower and its projector inside a text model's file, as Ollama writes them. */
const ggufVision = /^(v|mm)\./

function hfPrefix(checkpoint: Checkpoint): string | undefined {
  return hfPrefixes.find((prefix) => checkpoint.tensors.has(`${prefix}embed_tokens.weight`))
}

/** @internal The stored embedding, if the file has one under a name that is known. */
export function embeddingTensor(checkpoint: Checkpoint): StoredTensor | undefined {
  if (checkpoint.format === 'gguf') return checkpoint.tensors.get('token_embd.weight')
  return checkpoint.tensors.get(`${hfPrefix(checkpoint)}embed_tokens.weight`)
}

/**
 * Finds every weight of the model and checks its shape.
 *
 * @throws ERR_CHECKPOINT_CORRUPT if a tensor is absent, has another shape than the configuration says, or is not part of the
 *   architecture; ERR_CHECKPOINT_UNSUPPORTED for a type that no kernel reads. Errors name file, tensor and byte offset.
 */
export function modelWeights(checkpoint: Checkpoint, config: GemmaConfig): ModelWeights {
  const isGguf = checkpoint.format === 'gguf'
  const prefix = isGguf ? '' : hfPrefix(checkpoint)
  if (prefix === undefined) {
    const names = hfPrefixes.map((name) => `${name}embed_tokens.weight`).join(', ')
    throw corrupt(`${checkpoint.path}: expected a tensor named ${names}; found none`)
  }
  const { hiddenSize, ffnSize, headDim, queryHeads, kvHeads, postNorms, qkNorm } = config
  const reader = new WeightReader(checkpoint)
  const names = isGguf ? ggufLayer : postNorms ? hfLayer : hfLayerGemma1
  const embedding = reader.plain(`${prefix}${isGguf ? 'token_embd' : 'embed_tokens'}.weight`, [
    config.vocabularySize,
    hiddenSize,
  ])
  const layers = Array.from({ length: config.layers }, (_, layer): LayerWeights => {
    const name = (part: keyof LayerWeights) => `${prefix}${isGguf ? 'blk' : 'layers'}.${layer}.${names[part]}`
    const norm = (part: keyof LayerWeights, size: number) => reader.vector(name(part), size)
    const matrix = (part: keyof LayerWeights, rows: number, columns: number) =>
      reader.matrix(name(part), [rows, columns])
    return {
      attentionNorm: norm('attentionNorm', hiddenSize),
      q: matrix('q', queryHeads * headDim, hiddenSize),
      k: matrix('k', kvHeads * headDim, hiddenSize),
      v: matrix('v', kvHeads * headDim, hiddenSize),
      qNorm: qkNorm ? norm('qNorm', headDim) : undefined,
      kNorm: qkNorm ? norm('kNorm', headDim) : undefined,
      output: matrix('output', hiddenSize, queryHeads * headDim),
      attentionPostNorm: postNorms ? norm('attentionPostNorm', hiddenSize) : undefined,
      ffnNorm: norm('ffnNorm', hiddenSize),
      gate: matrix('gate', ffnSize, hiddenSize),
      up: matrix('up', ffnSize, hiddenSize),
      down: matrix('down', hiddenSize, ffnSize),
      ffnPostNorm: postNorms ? norm('ffnPostNorm', hiddenSize) : undefined,
    }
  })
  const finalNorm = reader.vector(`${prefix}${isGguf ? 'output_norm' : 'norm'}.weight`, hiddenSize)
  const headShape = [config.vocabularySize, hiddenSize]
  const head = isGguf ? reader.optional('output.weight', headShape) : untiedHead(checkpoint, reader, headShape)
  const dense = isGguf ? denseOfGguf(reader, checkpoint, hiddenSize) : []
  reader.refuseOthers(prefix)
  return { embedding, layers, finalNorm, head, dense }
}

/** The head of a checkpoint that says that it is not the embedding: quantisers that round only one of the two part them. */
function untiedHead(checkpoint: Checkpoint, reader: WeightReader, shape: readonly number[]): StoredTensor | undefined {
  const { config } = checkpoint
  const isUntied = [config, config.text_config].some((part) => isObject(part) && part.tie_word_embeddings === false)
  if (!isUntied) return undefined
  const prefix = checkpoint.tensors.has('language_model.lm_head.weight') ? 'language_model.' : ''
  return reader.plain(`${prefix}lm_head.weight`, shape)
}

/** The two matrices after pooling: each takes what the one before gives, and the last returns to hiddenSize. */
function denseOfGguf(reader: WeightReader, checkpoint: Checkpoint, hiddenSize: number): StoredTensor[] {
  const dense: StoredTensor[] = []
  for (const name of ['dense_2.weight', 'dense_3.weight']) {
    const columns = dense.at(-1)?.shape[0] ?? hiddenSize
    const rows = checkpoint.tensors.get(name)?.shape[0]
    if (rows !== undefined) dense.push(reader.plain(name, [rows, columns]))
  }
  return dense
}

/** @internal Takes tensors out of a checkpoint, checks them, and remembers which were taken. */
export class WeightReader {
  readonly #checkpoint: Checkpoint
  readonly #taken = new Set<string>()

  constructor(checkpoint: Checkpoint) {
    this.#checkpoint = checkpoint
  }

  plain(name: string, shape: readonly number[]): StoredTensor {
    const tensor = this.optional(name, shape)
    if (tensor === undefined) {
      throw corrupt(`${this.#checkpoint.path}: expected a tensor ${name} [${shape.join(', ')}]; there is none`)
    }
    return tensor
  }

  /** The weight of a norm. */
  vector(name: string, size: number): StoredTensor {
    const tensor = this.plain(name, [size])
    if (tensor.dtype === 'f32' || tensor.dtype === 'bf16' || tensor.dtype === 'f16') return tensor
    throw new LapidaryError(
      'ERR_CHECKPOINT_UNSUPPORTED',
      `${where(tensor)}: expected f32, bf16 or f16, got ${tensor.storedType}`,
    )
  }

  optional(name: string, shape: readonly number[]): StoredTensor | undefined {
    const tensor = this.#checkpoint.tensors.get(name)
    if (tensor === undefined) return undefined
    this.#taken.add(name)
    checkStored(tensor, shape)
    return tensor
  }

  matrix(prefix: string, shape: readonly [number, number]): LinearWeight {
    const linear = linearWeight(this.#checkpoint, prefix)
    const { weight, scales, zeros, groupIndex } = linear
    for (const tensor of [weight, scales, zeros, groupIndex]) if (tensor) this.#taken.add(tensor.name)
    // compressed-tensors repeats the shape in a tensor of its own, which linearWeight has compared.
    this.#taken.add(`${prefix}.weight_shape`)
    const [n, k] = linear.shape
    if (n !== shape[0] || k !== shape[1]) throw wrongShape(weight, shape, linear.shape)
    return linear
  }

  /** A tensor that nobody asked for means that the configuration does not describe the file. */
  refuseOthers(prefix: string): void {
    for (const [name, tensor] of this.#checkpoint.tensors) {
      if (!name.startsWith(prefix) || this.#taken.has(name) || otherParts.test(name) || buffers.test(name)) continue
      if (this.#checkpoint.format === 'gguf' && ggufVision.test(name)) continue
      throw corrupt(`${where(tensor)}: is not part of the architecture that the configuration describes`)
    }
  }
}

/** @internal Throws unless a tensor has the shape expected and a dtype that kernels read. */
export function checkStored(tensor: StoredTensor, shape: readonly number[]): void {
  const fits = tensor.shape.length === shape.length && tensor.shape.every((dim, axis) => dim === shape[axis])
  if (!fits) throw wrongShape(tensor, shape, tensor.shape)
  if (tensor.dtype === undefined) {
    throw new LapidaryError(
      'ERR_CHECKPOINT_UNSUPPORTED',
      `${where(tensor)}: expected a type that a kernel reads, got ${tensor.storedType}`,
    )
  }
}

function wrongShape(tensor: StoredTensor, expected: readonly number[], got: readonly number[]): LapidaryError {
  return corrupt(`${where(tensor)}: expected shape [${expected.join(', ')}], got [${got.join(', ')}]`)
}

function where(tensor: StoredTensor): string {
  return `${tensor.file}: tensor ${tensor.name} at byte ${tensor.offset}`
}

function corrupt(message: string): LapidaryError {
  return new LapidaryError('ERR_CHECKPOINT_CORRUPT', message)
}
