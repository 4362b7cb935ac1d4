/**
 * Runs the vision tower between the steps of the engine: loaded when the first image comes, captured layer by layer.
 * @module
 */
import type { Device } from '../device.ts'
import { embedPatches, encoderLayer, softTokens } from '../models/siglip/forward.ts'
import type { VisionModel } from '../models/siglip/load.ts'
import type { VisionTensors } from '../models/siglip/model.ts'
import { imagePatches } from '../models/siglip/patches.ts'
import { Program } from '../program.ts'
import type { Stream } from '../stream.ts'
import type { Tensor } from '../tensor.ts'
import type { SideJob } from './engine.ts'
import { abortError } from './scoring.ts'

/** One program for each part of the tower: others compute between them, and a caller may give up. */
interface Captured {
  readonly begin: Program
  readonly layers: readonly Program[]
  readonly end: Program
}

export class VisionRunner implements Disposable {
  readonly #stream: Stream
  readonly #model: VisionModel
  readonly #programs: Captured

  constructor(device: Device, stream: Stream, model: VisionModel) {
    this.#stream = stream
    this.#model = model
    this.#programs = stream.use(() => capture(device, model.tensors))
  }

  get weightBytes(): number {
    return this.#model.weightBytes
  }

  /** Of the intermediates, which all parts share. */
  get arenaBytes(): number {
    return this.#programs.layers[0]?.info().arenaBytes ?? 0
  }

  /** Queues the first part. @returns f32 [patches, width] */
  begin(pixels: Uint8Array): Tensor {
    const patches = imagePatches(pixels, this.#model.tensors.config)
    return this.#stream.use(() => this.#programs.begin.run(patches))
  }

  get layers(): number {
    return this.#programs.layers.length
  }

  /** Queues one layer, and lets go of the states it takes. */
  layer(index: number, states: Tensor): Tensor {
    try {
      return this.#stream.use(() => (this.#programs.layers[index] as Program).run(states))
    } finally {
      states.dispose()
    }
  }

  /** The soft tokens: f32 [imageTokens, hiddenSize]. */
  async end(states: Tensor): Promise<Float32Array> {
    try {
      return (await this.#stream.use(() => this.#programs.end.execute(states))) as Float32Array
    } finally {
      states.dispose()
    }
  }

  async settle(): Promise<void> {
    await this.#stream.synchronize()
  }

  dispose(): void {
    const { begin, layers, end } = this.#programs
    for (const program of [begin, ...layers, end]) program.dispose()
    this.#model.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function capture(device: Device, model: VisionTensors): Captured {
  const { config } = model
  const patches = config.patchesPerSide ** 2
  const states = [{ shape: [patches, config.width], dtype: 'f32' } as const]
  const made: Program[] = []
  const keep = (program: Program): Program => {
    made.push(program)
    return program
  }
  try {
    // Layers need the most memory between ops, and all of them share it.
    const layers = Array.from({ length: config.layers }, (_, layer) =>
      keep(
        Program.capture(device, states, (x) => encoderLayer(model, layer, x as Tensor), {
          arena: made[0],
        }),
      ),
    )
    const arena = { arena: layers[0] }
    const pixels = [{ shape: [patches, 3 * config.patchSize ** 2], dtype: 'f32' } as const]
    const begin = keep(Program.capture(device, pixels, (x) => embedPatches(model, x as Tensor), arena))
    const end = keep(Program.capture(device, states, (x) => softTokens(model, x as Tensor), arena))
    return { begin, layers, end }
  } catch (error) {
    for (const program of made) program.dispose()
    throw error
  }
}

/** The encoding of one view, in parts of one layer. */
export class EncodeJob implements SideJob {
  readonly done: Promise<Float32Array>
  readonly #runner: VisionRunner
  readonly #pixels: Uint8Array
  readonly #signal: AbortSignal
  #settle: { resolve: (soft: Float32Array) => void; reject: (error: unknown) => void } = {
    resolve: () => {},
    reject: () => {},
  }
  #states: Tensor | undefined
  #layer = 0
  #soft: Float32Array | undefined

  constructor(runner: VisionRunner, pixels: Uint8Array, signal: AbortSignal) {
    this.#runner = runner
    this.#pixels = pixels
    this.#signal = signal
    this.done = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
  }

  get cancelled(): boolean {
    return this.#signal.aborted
  }

  /** It keeps nothing in pages. */
  reserve(): boolean {
    return true
  }

  async compute(): Promise<boolean> {
    if (this.#states === undefined) {
      this.#states = this.#runner.begin(this.#pixels)
    } else if (this.#layer < this.#runner.layers) {
      this.#states = this.#runner.layer(this.#layer++, this.#states)
    } else {
      this.#soft = await this.#runner.end(this.#states)
      return true
    }
    await this.#runner.settle()
    return false
  }

  close(error: unknown): void {
    this.#states?.dispose()
    if (error !== undefined) this.#settle.reject(error)
    else if (this.#soft) this.#settle.resolve(this.#soft)
    else this.#settle.reject(abortError(this.#signal))
  }
}
