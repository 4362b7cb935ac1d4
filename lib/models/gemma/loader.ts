/**
 * One load of a model: what is to be made, what has been made, and the packed cache that it comes from or goes to.
 * @module
 */
import { tmpdir } from 'node:os'
import type { Checkpoint, StoredTensor } from '../../checkpoint/checkpoint.ts'
import type { LinearWeight } from '../../checkpoint/linear.ts'
import type { Device } from '../../device.ts'
import { LapidaryError } from '../../errors.ts'
import { cast } from '../../ops/row-ops.ts'
import { Tensor } from '../../tensor.ts'
import type { GemmaConfig } from './config.ts'
import type { GemmaLoadOptions, HeadFormat } from './load-options.ts'
import { defaultRefine } from './load-options.ts'
import type { HeadProjection, LayerTensors, ModelTensors, Projection } from './model.ts'
import {
  type CacheIdentity,
  cacheIdentity,
  cachePath,
  openPackedCache,
  PackedCacheWriter,
  smallestCachedBytes,
} from './packed-cache.ts'
import {
  headBlocks,
  joinBlocks,
  type MatrixPlan,
  mapStored,
  packingError,
  packMatrix,
  stackable,
  storedBytes,
} from './packing.ts'
import type { LayerWeights, ModelWeights } from './weights.ts'

/** The plans of one layer's matrices. */
interface LayerPlan {
  readonly qkv: readonly MatrixPlan[]
  readonly output: MatrixPlan
  readonly gateUp: readonly MatrixPlan[]
  readonly down: MatrixPlan
}

export class Loader {
  /** Everything made, for releasing. */
  readonly made: Tensor[] = []
  packedBytes = 0
  fromCache = false
  cacheFile: string | undefined
  readonly #device: Device
  readonly #checkpoint: Checkpoint
  readonly #config: GemmaConfig
  readonly #weights: ModelWeights
  readonly #options: GemmaLoadOptions & { readonly head: HeadFormat }
  readonly #widen: boolean
  readonly #layerPlans: readonly LayerPlan[]
  readonly #densePlans: readonly MatrixPlan[]
  #writer: PackedCacheWriter | undefined
  #done = 0
  #total = 0

  constructor(
    device: Device,
    checkpoint: Checkpoint,
    config: GemmaConfig,
    weights: ModelWeights,
    options: GemmaLoadOptions & { readonly head: HeadFormat },
  ) {
    this.#device = device
    this.#checkpoint = checkpoint
    this.#config = config
    this.#weights = weights
    this.#options = options
    this.#widen = options.weights === 'f32'
    this.#layerPlans = weights.layers.map((layer, index) => planLayer(layer, `layers.${index}`, this.#widen))
    this.#densePlans = weights.dense.map((stored, index) => planMatrix(`dense.${index}`, [plainLinear(stored)]))
  }

  async load(): Promise<ModelTensors> {
    const { finalNorm, layers } = this.#weights
    const isF32 = this.#widen || layers[0]?.q.weight.dtype === 'f32'
    const matrices = (await this.#fromCache()) ?? (await this.#packed())
    const matrix = (plan: MatrixPlan) => matrices.get(plan.name) as Tensor
    const table = this.#lookupTable(matrices.get('head'))
    const model: ModelTensors = {
      config: this.#config,
      activations: this.#options.activations ?? (isF32 ? 'f32' : 'bf16'),
      embedding: table,
      layers: layers.map((layer, index) => this.#layer(layer, this.#layerPlans[index] as LayerPlan, matrix)),
      finalNorm: this.#norm(finalNorm),
      head: matrices.get('head'),
      refinement: this.#refinement(table),
      dense: this.#densePlans.map(matrix),
    }
    await this.#device.currentStream.synchronize()
    if (this.#writer) this.cacheFile = await this.#writer.finish()
    for (const tensor of matrices.values()) this.packedBytes += tensor.packedForm().bytes
    return model
  }

  /** Releases everything: the load has failed. */
  async abandon(): Promise<void> {
    for (const tensor of this.made.splice(0)) tensor.dispose()
    await this.#writer?.discard()
  }

  #layer(stored: LayerWeights, plan: LayerPlan, matrix: (plan: MatrixPlan) => Tensor): LayerTensors {
    const norm = (tensor: StoredTensor | undefined) => tensor && this.#norm(tensor)
    const project = (run: MatrixPlan): Projection => ({ weight: matrix(run), columnOrder: this.#columnOrder(run) })
    const qkv = plan.qkv.map((run): HeadProjection => {
      return { ...project(run), heads: run.parts.map((part) => part.shape[0] / this.#config.headDim) }
    })
    return {
      attentionNorm: this.#norm(stored.attentionNorm),
      qkv,
      qNorm: norm(stored.qNorm),
      kNorm: norm(stored.kNorm),
      output: project(plan.output),
      attentionPostNorm: norm(stored.attentionPostNorm),
      ffnNorm: this.#norm(stored.ffnNorm),
      gateUp: plan.gateUp.map(project) as [Projection] | [Projection, Projection],
      down: project(plan.down),
      ffnPostNorm: norm(stored.ffnPostNorm),
    }
  }

  /** What x is to be put in; the parts of a plan have one order. */
  #columnOrder({ parts }: MatrixPlan): Tensor | undefined {
    const order = parts[0]?.columnOrder
    return order && this.#keep(Tensor.from(this.#device, order))
  }

  /** A vector as f32 in memory of its own. */
  #norm(stored: StoredTensor): Tensor {
    using mapped = mapStored(this.#device, stored)
    return this.#keep(cast(mapped, 'f32'))
  }

  #keep(tensor: Tensor): Tensor {
    this.made.push(tensor)
    return tensor
  }

  get #plans(): MatrixPlan[] {
    return [
      ...this.#layerPlans.flatMap(({ qkv, output, gateUp, down }) => [...qkv, output, ...gateUp, down]),
      ...this.#densePlans,
    ]
  }

  /** The matrix that the head is made from; embedding models have none. */
  get #headSource(): StoredTensor | undefined {
    return this.#config.bidirectional ? undefined : (this.#weights.head ?? this.#weights.embedding)
  }

  /**
   * Where embeddings are looked up: in a packed head of the very same values, so that the file need not be in memory besides; else in the
   * mapped file.
   */
  #lookupTable(head: Tensor | undefined): Tensor {
    const isSame = this.#weights.head === undefined && !this.#widen && this.#options.head === 'stored'
    return head && isSame ? head : this.#keep(mapStored(this.#device, this.#weights.embedding))
  }

  /** The stored rows beside a head that was rounded from them. */
  #refinement(embedding: Tensor): ModelTensors['refinement'] {
    const { head, refine = defaultRefine } = this.#options
    const source = this.#headSource
    if (source === undefined || this.#widen || head === 'stored' || head === source.dtype || refine === 0)
      return undefined
    const table = source === this.#weights.embedding ? embedding : this.#keep(mapStored(this.#device, source))
    return { table, top: refine }
  }

  /** All matrices from the packed cache, if there is one that fits; otherwise a new one is begun where that is wanted. */
  async #fromCache(): Promise<Map<string, Tensor> | undefined> {
    const plans = this.#plans
    const head = this.#headSource
    this.#total = plans.reduce((sum, plan) => sum + storedBytes(plan), head?.bytes ?? 0)
    const shapes = new Map<string, readonly number[]>(plans.map((plan) => [plan.name, plan.shape]))
    if (head) shapes.set('head', head.shape)
    const { found, writer } = await openPackedCache({
      sources: this.#checkpoint,
      identity: this.#identity(),
      wanted: this.#options.packedCache,
      bytes: this.#total,
      shapes,
      device: this.#device,
      stream: this.#device.currentStream,
      onBytes: (bytes, total) => {
        if (bytes > 0) this.#options.onProgress?.(bytes, total)
        if (bytes < total) this.#checkAborted()
      },
    })
    this.#writer = writer
    if (!found) return undefined
    for (const tensor of found.matrices.values()) this.#keep(tensor)
    this.fromCache = true
    this.cacheFile = found.file
    return found.matrices
  }

  async #packed(): Promise<Map<string, Tensor>> {
    const matrices = new Map<string, Tensor>()
    const head = this.#headSource
    // First, while memory is free: where its blocks are joined in memory, they take its size twice.
    if (head) {
      this.#checkAborted()
      matrices.set('head', this.#keep(await this.#named([head], () => this.#packHead(head))))
    }
    for (const plan of this.#plans) {
      this.#checkAborted()
      const stored = plan.parts.map(({ weight }) => weight)
      const packed = await this.#named(stored, async () => {
        const tensor = this.#keep(packMatrix(this.#device, plan, this.#widen))
        await this.#device.currentStream.synchronize()
        return tensor
      })
      matrices.set(plan.name, packed)
      await this.#writer?.add(plan.name, packed)
      this.#progress(storedBytes(plan), this.#total)
    }
    return matrices
  }

  async #packHead(stored: StoredTensor): Promise<Tensor> {
    const format = this.#widen ? 'f32' : this.#options.head
    const blocks = () => this.#headBlocks(stored, format)
    const assembled = await this.#assembleHead(stored.shape[0] as number, blocks)
    if (assembled) return assembled
    const parts: Tensor[] = []
    try {
      for (const block of blocks()) {
        parts.push(block)
        await this.#device.currentStream.synchronize()
      }
      const head = joinBlocks(parts)
      await this.#device.currentStream.synchronize()
      await this.#writer?.add('head', head)
      return head
    } catch (error) {
      for (const part of parts) part.dispose()
      throw error
    }
  }

  /** The head is a large part of some models: its blocks can be aborted, and count as progress. */
  *#headBlocks(stored: StoredTensor, format: HeadFormat | 'f32'): Generator<Tensor> {
    const rows = stored.shape[0] as number
    this.#done = 0
    for (const block of headBlocks(this.#device, stored, format)) {
      const count = block.shape[0] as number
      yield block
      this.#progress((stored.bytes / rows) * count, this.#total)
      this.#checkAborted()
    }
  }

  /**
   * Through the cache, or else, also where its disk is full, through a file that lasts as long as this takes. Undefined where neither can be
   * written: joining in memory takes the head's size several times.
   */
  async #assembleHead(rows: number, blocks: () => Iterable<Tensor>): Promise<Tensor | undefined> {
    if ((this.#headSource?.bytes ?? 0) < smallestCachedBytes) return undefined
    const through = async (writer: PackedCacheWriter | undefined): Promise<Tensor | undefined> => {
      const head = await writer?.assemble('head', rows, blocks())
      if (head) await this.#device.currentStream.synchronize()
      return head
    }
    const kept = await through(this.#writer)
    if (kept) return kept
    const scratch = await this.#scratch()
    try {
      return await through(scratch)
    } finally {
      await scratch?.discard()
    }
  }

  #scratch(): Promise<PackedCacheWriter | undefined> {
    const identity = this.#identity()
    return PackedCacheWriter.create(cachePath(this.#checkpoint, identity, tmpdir()), this.#checkpoint, identity)
  }

  async #named<T>(stored: readonly StoredTensor[], body: () => Promise<T>): Promise<T> {
    try {
      return await body()
    } catch (error) {
      throw packingError(error, stored)
    }
  }

  #identity(): CacheIdentity {
    // config.json, which says whether the head is the embedding, is none of the files whose time is compared.
    const isUntied = this.#checkpoint.format === 'safetensors' && this.#weights.head !== undefined
    return cacheIdentity(this.#device, {
      ...(this.#widen ? { weights: 'f32' } : { head: this.#options.head }),
      ...(isUntied && { source: 'untied' }),
    })
  }

  #progress(bytes: number, total: number): void {
    this.#done += bytes
    this.#options.onProgress?.(this.#done, total)
  }

  #checkAborted(): void {
    const { signal } = this.#options
    if (signal?.aborted) throw new LapidaryError('ERR_ABORTED', 'GemmaModel.load: aborted', { cause: signal.reason })
  }
}

function planLayer(layer: LayerWeights, name: string, widen: boolean): LayerPlan {
  const runs = (part: string, linears: readonly LinearWeight[], interleave: MatrixPlan['interleave']) =>
    stackable(linears, widen).map((run, index) => planMatrix(`${name}.${part}.${index}`, run, interleave))
  return {
    qkv: runs('qkv', [layer.q, layer.k, layer.v], 'rows'),
    output: planMatrix(`${name}.output`, [layer.output]),
    gateUp: runs('gateUp', [layer.gate, layer.up], 'gate_up'),
    down: planMatrix(`${name}.down`, [layer.down]),
  }
}

function planMatrix(
  name: string,
  parts: readonly LinearWeight[],
  interleave: MatrixPlan['interleave'] = 'rows',
): MatrixPlan {
  const rows = parts.reduce((sum, part) => sum + part.shape[0], 0)
  return { name, shape: [rows, parts[0]?.shape[1] as number], parts, interleave }
}

function plainLinear(stored: StoredTensor): LinearWeight {
  return { name: stored.name, shape: stored.shape as [number, number], format: 'stored', weight: stored }
}
