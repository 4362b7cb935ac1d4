/**
 * One load of a vision tower: which matrices it has, and where they come from, the checkpoint or the packed cache.
 * @module
 */
import type { StoredTensor } from '../../checkpoint/checkpoint.ts'
import type { LinearWeight } from '../../checkpoint/linear.ts'
import type { Device } from '../../device.ts'
import { LapidaryError } from '../../errors.ts'
import { packWeights } from '../../ops/pack-weights.ts'
import { dequantize } from '../../ops/quantize.ts'
import { scope } from '../../scope.ts'
import type { Stream } from '../../stream.ts'
import { Tensor } from '../../tensor.ts'
import { cacheIdentity, openPackedCache, type PackedCacheWriter } from '../gemma/packed-cache.ts'
import { mapStored, packingError, packMatrix, stackable, storedBytes } from '../gemma/packing.ts'
import type { VisionConfig } from './config.ts'
import { patchOrder } from './forward.ts'
import { padColumns, paddedColumns, padRows } from './head-columns.ts'
import type { VisionLoadOptions } from './load.ts'
import type { Affine, VisionLayer, VisionTensors } from './model.ts'
import type { StoredAffine, VisionLayerWeights, VisionWeights } from './weights.ts'

/** A matrix that the tower multiplies by. */
interface Plan {
  readonly name: string
  readonly shape: readonly [n: number, k: number]
  readonly stored: readonly StoredTensor[]
  /** Bytes that packing reads. */
  readonly bytes: number
  /** Queues packing it. */
  readonly pack: () => Promise<Tensor> | Tensor
}

/** A matrix and what makes its bias. */
interface AffinePlan {
  readonly matrix: Plan
  readonly bias: () => Promise<Tensor>
}

interface LayerPlan {
  readonly stored: VisionLayerWeights
  readonly qkv: readonly (AffinePlan & { readonly parts: number })[]
  readonly output: AffinePlan
  readonly up: AffinePlan
  readonly down: AffinePlan
}

export class VisionLoader {
  /** Everything made, for releasing. */
  readonly made: Tensor[] = []
  packedBytes = 0
  fromCache = false
  cacheFile: string | undefined
  readonly #device: Device
  readonly #config: VisionConfig
  readonly #weights: VisionWeights
  readonly #options: VisionLoadOptions
  readonly #stream: Stream
  readonly #widen: boolean
  readonly #patch: AffinePlan
  readonly #layers: readonly LayerPlan[]
  readonly #projection: Plan
  #writer: PackedCacheWriter | undefined

  constructor(device: Device, config: VisionConfig, weights: VisionWeights, options: VisionLoadOptions) {
    this.#device = device
    this.#config = config
    this.#weights = weights
    this.#options = options
    this.#stream = options.stream ?? device.currentStream
    this.#widen = options.weights === 'f32'
    const { patch } = weights
    const shape = [config.width, 3 * config.patchSize ** 2] as const
    const kernel = { name: 'patch', shape, format: 'stored', weight: { ...patch.weight, shape } } as const
    this.#patch = this.#linear('patch', { weight: kernel, bias: patch.bias })
    this.#layers = weights.layers.map((layer, index) => this.#layerPlan(layer, `layers.${index}`))
    this.#projection = this.#projectionPlan(weights.projection)
  }

  async load(): Promise<VisionTensors> {
    const config = this.#config
    const { layers, positions, finalNorm, softNorm } = this.#weights
    const isF32 = this.#widen || layers[0]?.q.weight.weight.dtype === 'f32'
    const matrices = (await this.#fromCache()) ?? (await this.#packed())
    for (const tensor of matrices.values()) this.packedBytes += tensor.packedForm().bytes
    const affine = async ({ matrix, bias }: AffinePlan): Promise<Affine> => {
      return { weight: matrices.get(matrix.name) as Tensor, bias: await bias() }
    }
    const loaded: VisionLayer[] = []
    for (const plan of this.#layers) {
      this.#checkAborted()
      const qkv: VisionLayer['qkv'][number][] = []
      for (const part of plan.qkv) qkv.push({ ...(await affine(part)), parts: part.parts })
      loaded.push({
        attentionNorm: await this.#norm(plan.stored.attentionNorm),
        qkv,
        output: await affine(plan.output),
        ffnNorm: await this.#norm(plan.stored.ffnNorm),
        up: await affine(plan.up),
        down: await affine(plan.down),
      })
    }
    const model: VisionTensors = {
      config,
      activations: this.#options.activations ?? (isF32 ? 'f32' : 'bf16'),
      headColumns: paddedColumns(config.headDim),
      patch: await affine(this.#patch),
      positions: this.#keep(await this.#positions(positions)),
      layers: loaded,
      finalNorm: await this.#norm(finalNorm),
      softNorm: await this.#vector(softNorm),
      projection: matrices.get(this.#projection.name) as Tensor,
      poolStarts: this.#keep(
        Tensor.from(
          this.#device,
          Int32Array.from({ length: config.imageTokens + 1 }, (_, token) => token * config.poolSize ** 2),
        ),
      ),
    }
    await this.#stream.synchronize()
    if (this.#writer) this.cacheFile = await this.#writer.finish()
    return model
  }

  /** Releases everything: the load has failed. */
  async abandon(): Promise<void> {
    for (const tensor of this.made.splice(0)) tensor.dispose()
    await this.#writer?.discard()
  }

  // ── what there is to pack ──────────────────────────────────────────────────────────────────────────────────────

  get #plans(): Plan[] {
    const layers = this.#layers.flatMap(({ qkv, output, up, down }) => [...qkv, output, up, down])
    return [...[this.#patch, ...layers].map(({ matrix }) => matrix), this.#projection]
  }

  #layerPlan(stored: VisionLayerWeights, name: string): LayerPlan {
    return {
      stored,
      ...this.#attentionPlan(stored, name),
      up: this.#linear(`${name}.up`, stored.up),
      down: this.#linear(`${name}.down`, stored.down),
    }
  }

  #attentionPlan({ q, k, v, output }: VisionLayerWeights, name: string): Pick<LayerPlan, 'qkv' | 'output'> {
    const { heads, headDim, width } = this.#config
    const columns = paddedColumns(headDim)
    if (columns !== headDim) {
      // No published tower: its heads get columns of zeros, which change no score.
      const shape = { heads, headDim, columns }
      const padded = ({ weight: { weight }, bias }: StoredAffine<LinearWeight>, part: number) => ({
        matrix: this.#widened(`${name}.qkv.${part}`, [heads * columns, width], weight, (values) =>
          padRows(values, width, shape),
        ),
        bias: async () => this.#keep(Tensor.from(this.#device, padRows(await this.#floats(bias), 1, shape))),
        parts: 1,
      })
      const { weight } = output.weight
      const rows = this.#widened(`${name}.output`, [width, heads * columns], weight, (values) =>
        padColumns(values, width, shape),
      )
      return { qkv: [q, k, v].map(padded), output: { matrix: rows, bias: () => this.#vector(output.bias) } }
    }
    const biases = new Map([q, k, v].map(({ weight, bias }) => [weight, bias]))
    const qkv = stackable([q.weight, k.weight, v.weight], this.#widen).map((run, index) => ({
      matrix: this.#stacked(`${name}.qkv.${index}`, run),
      bias: async () => {
        const parts: number[] = []
        for (const weight of run) parts.push(...(await this.#floats(biases.get(weight) as StoredTensor)))
        return this.#keep(Tensor.from(this.#device, Float32Array.from(parts)))
      },
      parts: run.length,
    }))
    return { qkv, output: this.#linear(`${name}.output`, output) }
  }

  #linear(name: string, { weight, bias }: StoredAffine<LinearWeight>): AffinePlan {
    return { matrix: this.#stacked(name, [weight]), bias: () => this.#vector(bias) }
  }

  #stacked(name: string, parts: readonly LinearWeight[]): Plan {
    const rows = parts.reduce((sum, { shape }) => sum + shape[0], 0)
    const shape = [rows, parts[0]?.shape[1] as number] as const
    const plan = { name, shape, parts, interleave: 'rows' as const }
    const stored = parts.map(({ weight }) => weight)
    return { name, shape, stored, bytes: storedBytes(plan), pack: () => packMatrix(this.#device, plan, this.#widen) }
  }

  /** A matrix that is made from floats. */
  #widened(
    name: string,
    shape: Plan['shape'],
    stored: StoredTensor,
    make: (values: Float32Array) => Float32Array,
  ): Plan {
    const pack = async () => this.#packFloats(make(await this.#floats(stored)), shape, 'f32')
    return { name, shape, stored: [stored], bytes: stored.bytes, pack }
  }

  /** The projection, stored [width, hiddenSize], as matmul takes it. 16-bit floats stay so. */
  #projectionPlan(stored: StoredTensor): Plan {
    const { width, hiddenSize } = this.#config
    const keeps = !this.#widen && (stored.dtype === 'bf16' || stored.dtype === 'f16')
    const dtype = keeps ? (stored.dtype as 'bf16' | 'f16') : 'f32'
    const shape = [hiddenSize, width] as const
    const pack = async () => {
      const values = keeps ? await this.#bits(stored) : await this.#floats(stored)
      const turned = values.slice() as typeof values
      for (let row = 0; row < width; row++) {
        for (let column = 0; column < hiddenSize; column++) {
          turned[column * width + row] = values[row * hiddenSize + column] as number
        }
      }
      return this.#packFloats(turned, shape, dtype)
    }
    return { name: 'projection', shape, stored: [stored], bytes: stored.bytes, pack }
  }

  #packFloats(values: Float32Array | Uint16Array, shape: Plan['shape'], dtype: 'f32' | 'f16' | 'bf16'): Tensor {
    return this.#stream.use(() => scope(() => packWeights(Tensor.from(this.#device, values, shape, dtype))))
  }

  // ── where it comes from ────────────────────────────────────────────────────────────────────────────────────────

  /** All matrices from the packed cache, if there is one that fits; otherwise a new one is begun where that is wanted. */
  async #fromCache(): Promise<Map<string, Tensor> | undefined> {
    const plans = this.#plans
    const total = plans.reduce((sum, { bytes }) => sum + bytes, 0)
    const identity = this.#stream.use(() =>
      cacheIdentity(this.#device, { part: 'vision', ...(this.#widen && { weights: 'f32' }) }),
    )
    const { found, writer } = await openPackedCache({
      sources: this.#weights,
      identity,
      wanted: this.#options.packedCache,
      bytes: total,
      shapes: new Map(plans.map(({ name, shape }) => [name, shape])),
      device: this.#device,
      stream: this.#stream,
      onBytes: () => this.#checkAborted(),
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
    for (const { name, stored, pack } of this.#plans) {
      this.#checkAborted()
      const packed = await this.#named(stored, async () => {
        const tensor = this.#keep(await this.#stream.use(pack))
        await this.#stream.synchronize()
        return tensor
      })
      matrices.set(name, packed)
      await this.#stream.use(() => this.#writer?.add(name, packed))
    }
    return matrices
  }

  // ── vectors ────────────────────────────────────────────────────────────────────────────────────────────────────

  async #norm({ weight, bias }: StoredAffine): Promise<Affine> {
    return { weight: await this.#vector(weight), bias: await this.#vector(bias) }
  }

  /** A vector as f32 in memory of its own. */
  async #vector(stored: StoredTensor): Promise<Tensor> {
    return this.#keep(Tensor.from(this.#device, await this.#floats(stored)))
  }

  /** Positions in the order of the patches. */
  async #positions(stored: StoredTensor): Promise<Tensor> {
    const { width } = this.#config
    const raster = await this.#floats(stored)
    const ordered = new Float32Array(raster.length)
    for (const [at, patch] of patchOrder(this.#config).entries()) {
      ordered.set(raster.subarray(patch * width, (patch + 1) * width), at * width)
    }
    return Tensor.from(this.#device, ordered, [raster.length / width, width])
  }

  async #bits(stored: StoredTensor): Promise<Uint16Array> {
    const mapped = mapStored(this.#device, stored)
    try {
      return (await this.#stream.use(() => mapped.read())) as Uint16Array
    } finally {
      mapped.dispose()
    }
  }

  /** The values of a stored tensor. */
  async #floats(stored: StoredTensor): Promise<Float32Array> {
    return await this.#named([stored], async () => {
      const size = stored.shape.reduce((product, dim) => product * dim, 1)
      const columns = stored.shape.at(-1) ?? 1
      const shape = [size / columns, columns]
      const wide = this.#stream.use(() => scope(() => dequantize(mapStored(this.#device, { ...stored, shape }))))
      try {
        return (await this.#stream.use(() => wide.read())) as Float32Array
      } finally {
        wide.dispose()
      }
    })
  }

  async #named<T>(stored: readonly StoredTensor[], body: () => Promise<T>): Promise<T> {
    try {
      return await body()
    } catch (error) {
      throw packingError(error, stored)
    }
  }

  #checkAborted(): void {
    const { signal } = this.#options
    if (signal?.aborted) throw new LapidaryError('ERR_ABORTED', 'VisionModel.load: aborted', { cause: signal.reason })
  }

  #keep(tensor: Tensor): Tensor {
    this.made.push(tensor)
    return tensor
  }
}
