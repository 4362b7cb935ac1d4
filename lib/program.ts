/**
 * Programs: capture a sequence of calls once, replay it with other inputs in one crossing.
 * @module
 */
import type { Device } from './device.ts'
import { type DType, dtypeIndex } from './dtype.ts'
import { describeValue, LapidaryError } from './errors.ts'
import { native } from './native.ts'
import { scope } from './scope.ts'
import { handleOf, Tensor, wrapTensor, wrapTensors } from './tensor.ts'

/** The form of a program's input; an existing tensor serves as well. */
export interface TensorSpec {
  readonly shape: readonly number[]
  readonly dtype: DType
}

/** What a captured function may return. */
export type ProgramOutputs = Tensor | readonly Tensor[] | Readonly<Record<string, Tensor>>

const collected = new FinalizationRegistry<number>((handle) => native.releaseProgram(handle))

/**
 * A captured sequence of calls. Its intermediates share one planned arena; tensors from outside that it uses (weights, caches)
 * are kept alive and used in place; inputs are bound and outputs are fresh at each run. A replay gives the same bits as
 * calling the function would.
 *
 * @example
 * using program = Program.capture(device, [{ shape: [1, 640], dtype: 'f32' }], (x) => matmul(rmsNorm(x, weight), packed))
 * const y = program.run(x)
 */
export class Program<Outputs extends ProgramOutputs = Tensor> implements Disposable {
  readonly device: Device
  readonly #handle: number
  readonly #rebuild: (tensors: Tensor[]) => Outputs
  #disposed = false

  private constructor(device: Device, handle: number, rebuild: (tensors: Tensor[]) => Outputs) {
    this.device = device
    this.#handle = handle
    this.#rebuild = rebuild
    collected.register(this, handle, this)
  }

  /**
   * Runs `body` once with placeholder inputs and records its calls instead of executing them. `body` must be synchronous, and must
   * not read, write or run other programs. The program runs on the stream that is current now.
   * @throws ERR_CAPTURE if another capture is in progress.
   */
  static capture<Outputs extends ProgramOutputs>(
    device: Device,
    inputs: readonly TensorSpec[],
    body: (...inputs: Tensor[]) => Outputs,
  ): Program<Outputs> {
    native.beginCapture(device.currentStream.handle)
    let handle: number
    let rebuild: ((tensors: Tensor[]) => Outputs) | undefined
    try {
      handle = scope(() => {
        const placeholders = inputs.map(({ dtype, shape }) =>
          wrapTensor(device, native.captureInput(dtypeIndex(dtype), shape), dtypeIndex(dtype), 0, [...shape]),
        )
        const flat = flatten(body(...placeholders))
        rebuild = flat.rebuild
        return native.endCapture(flat.tensors.map((tensor) => handleOf(tensor, 'Program.capture: output')))
      })
    } catch (error) {
      native.abortCapture()
      throw error
    }
    return new Program(device, handle, rebuild as (tensors: Tensor[]) => Outputs)
  }

  /** Queues one replay. Inputs must have the dtypes and shapes captured, and be contiguous. */
  run(...inputs: Tensor[]): Outputs {
    const handles = inputs.map((tensor, index) => handleOf(tensor, `program.run: input ${index}`))
    return this.#rebuild(wrapTensors(this.device, native.runProgram(this.#handle, handles)))
  }

  /** The number of calls, the arena's bytes, and what the intermediates would take without sharing. */
  info(): { calls: number; arenaBytes: number; intermediateBytes: number } {
    return native.programInfo(this.#handle)
  }

  /** Frees the arena and lets go of captured tensors. Replays in flight finish. Safe twice. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    collected.unregister(this)
    native.releaseProgram(this.#handle)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** The tensors of a result in order, and how to put others in their places. */
function flatten<Outputs extends ProgramOutputs>(
  outputs: Outputs,
): { tensors: Tensor[]; rebuild: (tensors: Tensor[]) => Outputs } {
  if (outputs instanceof Tensor) {
    return { tensors: [outputs], rebuild: (tensors) => tensors[0] as Outputs }
  }
  if (Array.isArray(outputs)) {
    return { tensors: [...outputs], rebuild: (tensors) => tensors as unknown as Outputs }
  }
  if (outputs !== null && typeof outputs === 'object' && !(outputs instanceof Promise)) {
    const names = Object.keys(outputs)
    return {
      tensors: Object.values(outputs as Record<string, Tensor>),
      rebuild: (tensors) =>
        Object.fromEntries(names.map((name, index) => [name, tensors[index]])) as unknown as Outputs,
    }
  }
  if (outputs instanceof Promise) outputs.catch(() => {})
  throw new LapidaryError(
    'ERR_INVALID_ARGUMENT',
    `Program.capture: expected a function that returns tensors, got ${describeValue(outputs)}`,
  )
}
