/**
 * Loading a vision tower to a device.
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
import { mapStored, packingError, packMatrix, stackable } from '../gemma/packing.ts'
import type { VisionConfig } from './config.ts'
import { patchOrder } from './forward.ts'
import { padColumns, paddedColumns, padRows } from './head-columns.ts'
import type { Affine, VisionLayer, VisionTensors } from './model.ts'
import type { StoredAffine, VisionLayerWeights, VisionWeights } from './weights.ts'

export interface VisionLoadOptions {
  /** What activations are rounded to between ops. Default: bf16; f32 where the weights are f32. */
  readonly activations?: 'f32' | 'bf16' | undefined
  /** `f32` widens every matrix. Default `stored`. */
  readonly weights?: 'stored' | 'f32' | undefined
  /** Where loading and packing are queued. Default: the device's current stream. */
  readonly stream?: Stream | undefined
  /** Ends the load with ERR_ABORTED. */
  readonly signal?: AbortSignal | undefined
}

/**
 * A vision tower on a device. Its matrices are packed in the device's memory, as the file stores them.
 *
 * @example
 * using tower = await VisionModel.load(device, config, visionWeights(checkpoint, config))
 */
export class VisionModel implements Disposable {
  /** What the functions of forward.ts take. */
  readonly tensors: VisionTensors
  /** Of the packed matrices, in memory. */
  readonly weightBytes: number
  readonly #made: readonly Tensor[]

  private constructor(tensors: VisionTensors, loader: VisionLoader) {
    this.tensors = tensors
    this.weightBytes = loader.packedBytes
    this.#made = loader.made
  }

  /**
   * Packs the matrices of a tower.
   * @throws ERR_CHECKPOINT_CORRUPT, ERR_CHECKPOINT_UNSUPPORTED, ERR_FILE, ERR_OUT_OF_MEMORY, ERR_ABORTED. What was loaded until then is
   *   released.
   */
  static async load(
    device: Device,
    config: VisionConfig,
    weights: VisionWeights,
    options: VisionLoadOptions = {},
  ): Promise<VisionModel> {
    const loader = new VisionLoader(device, config, weights, options)
    try {
      return new VisionModel(await loader.load(), loader)
    } catch (error) {
      for (const tensor of loader.made.splice(0)) tensor.dispose()
      throw error
    }
  }

  /** Lets go of the weights; work in flight keeps what it needs. Safe twice. */
  dispose(): void {
    for (const tensor of this.#made) tensor.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** One load: what has been made so far. */
class VisionLoader {
  readonly made: Tensor[] = []
  packedBytes = 0
  readonly #device: Device
  readonly #config: VisionConfig
  readonly #weights: VisionWeights
  readonly #options: VisionLoadOptions
  readonly #stream: Stream
  readonly #widen: boolean

  constructor(device: Device, config: VisionConfig, weights: VisionWeights, options: VisionLoadOptions) {
    this.#device = device
    this.#config = config
    this.#weights = weights
    this.#options = options
    this.#stream = options.stream ?? device.currentStream
    this.#widen = options.weights === 'f32'
  }

  async load(): Promise<VisionTensors> {
    const config = this.#config
    const { layers, patch, positions, finalNorm, softNorm, projection } = this.#weights
    const isF32 = this.#widen || layers[0]?.q.weight.weight.dtype === 'f32'
    const loaded: VisionLayer[] = []
    for (const layer of layers) loaded.push(await this.#layer(layer))
    const { width, patchSize } = config
    const kernel: LinearWeight = {
      name: patch.weight.name,
      shape: [width, 3 * patchSize ** 2],
      format: 'stored',
      weight: { ...patch.weight, shape: [width, 3 * patchSize ** 2] },
    }
    const model: VisionTensors = {
      config,
      activations: this.#options.activations ?? (isF32 ? 'f32' : 'bf16'),
      headColumns: paddedColumns(config.headDim),
      patch: await this.#linear({ weight: kernel, bias: patch.bias }),
      positions: this.#keep(await this.#positions(positions)),
      layers: loaded,
      finalNorm: await this.#norm(finalNorm),
      softNorm: await this.#vector(softNorm),
      projection: await this.#projection(projection),
      poolStarts: this.#keep(
        Tensor.from(
          this.#device,
          Int32Array.from({ length: config.imageTokens + 1 }, (_, token) => token * config.poolSize ** 2),
        ),
      ),
    }
    await this.#stream.synchronize()
    return model
  }

  async #layer(stored: VisionLayerWeights): Promise<VisionLayer> {
    const { signal } = this.#options
    if (signal?.aborted) throw new LapidaryError('ERR_ABORTED', 'VisionModel.load: aborted', { cause: signal.reason })
    return {
      attentionNorm: await this.#norm(stored.attentionNorm),
      ...(await this.#attention(stored)),
      ffnNorm: await this.#norm(stored.ffnNorm),
      up: await this.#linear(stored.up),
      down: await this.#linear(stored.down),
    }
  }

  async #attention({ q, k, v, output }: VisionLayerWeights): Promise<Pick<VisionLayer, 'qkv' | 'output'>> {
    const { heads, headDim } = this.#config
    const columns = paddedColumns(headDim)
    if (columns !== headDim) {
      // No published tower: its heads get columns of zeros, which change no score.
      const shape = { heads, headDim, columns }
      const qkv: (Affine & { parts: number })[] = []
      for (const { weight, bias } of [q, k, v]) {
        const rows = padRows(await this.#floats(weight.weight), this.#config.width, shape)
        const padded = Tensor.from(this.#device, padRows(await this.#floats(bias), 1, shape))
        qkv.push({ weight: this.#packF32(rows, heads * columns), bias: this.#keep(padded), parts: 1 })
      }
      const values = padColumns(await this.#floats(output.weight.weight), this.#config.width, shape)
      return {
        qkv,
        output: { weight: this.#packF32(values, this.#config.width), bias: await this.#vector(output.bias) },
      }
    }
    const biases = new Map([q, k, v].map(({ weight, bias }) => [weight, bias]))
    const qkv: (Affine & { parts: number })[] = []
    for (const run of stackable([q.weight, k.weight, v.weight], this.#widen)) {
      const parts: Float32Array[] = []
      for (const weight of run) parts.push(await this.#floats(biases.get(weight) as StoredTensor))
      const bias = Float32Array.from(parts.flatMap((part) => Array.from(part)))
      qkv.push({
        weight: await this.#matrix(run),
        bias: this.#keep(Tensor.from(this.#device, bias)),
        parts: run.length,
      })
    }
    return { qkv, output: await this.#linear(output) }
  }

  async #linear({ weight, bias }: StoredAffine<LinearWeight>): Promise<Affine> {
    return { weight: await this.#matrix([weight]), bias: await this.#vector(bias) }
  }

  async #norm({ weight, bias }: StoredAffine): Promise<Affine> {
    return { weight: await this.#vector(weight), bias: await this.#vector(bias) }
  }

  async #matrix(parts: readonly LinearWeight[]): Promise<Tensor> {
    const [first] = parts as [LinearWeight]
    const rows = parts.reduce((sum, { shape }) => sum + shape[0], 0)
    const plan = { name: first.name, shape: [rows, first.shape[1]] as const, parts, interleave: 'rows' as const }
    const stored = parts.map(({ weight }) => weight)
    return await this.#named(stored, async () => {
      const packed = this.#keep(this.#stream.use(() => packMatrix(this.#device, plan, this.#widen)))
      await this.#stream.synchronize()
      this.packedBytes += packed.packedForm().bytes
      return packed
    })
  }

  #packF32(values: Float32Array, rows: number): Tensor {
    return this.#keep(
      this.#stream.use(() => scope(() => packWeights(Tensor.from(this.#device, values, [rows, values.length / rows])))),
    )
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

  /** The projection, stored [width, hiddenSize], as matmul takes it. 16-bit floats stay so. */
  async #projection(stored: StoredTensor): Promise<Tensor> {
    const { width, hiddenSize } = this.#config
    const keeps = !this.#widen && (stored.dtype === 'bf16' || stored.dtype === 'f16')
    const dtype = keeps ? (stored.dtype as 'bf16' | 'f16') : 'f32'
    const values = keeps ? await this.#bits(stored) : await this.#floats(stored)
    const turned = values.slice() as typeof values
    for (let row = 0; row < width; row++) {
      for (let column = 0; column < hiddenSize; column++) {
        turned[column * width + row] = values[row * hiddenSize + column] as number
      }
    }
    return this.#keep(
      this.#stream.use(() => scope(() => packWeights(Tensor.from(this.#device, turned, [hiddenSize, width], dtype)))),
    )
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

  #keep(tensor: Tensor): Tensor {
    this.made.push(tensor)
    return tensor
  }
}
