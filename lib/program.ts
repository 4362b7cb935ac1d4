/**
 * Programs: capture a sequence of calls once, replay it with other inputs in one crossing.
 * @module
 */
import type { Device } from './device.ts'
import { type DType, type DTypeArray, dtypeIndex, toTypedArray } from './dtype.ts'
import { describeValue, fromNative, LapidaryError } from './errors.ts'
import { native } from './native.ts'
import { scope } from './scope.ts'
import { checkArray, handleOf, Tensor, wrapTensor, wrapTensors } from './tensor.ts'

/** The form of a program's input; an existing tensor serves as well. */
export interface TensorSpec {
  readonly shape: readonly number[]
  readonly dtype: DType
}

/** What a captured function may return. */
export type ProgramOutputs = Tensor | readonly Tensor[] | Readonly<Record<string, Tensor>>

/** What `execute` resolves to: the typed array of each tensor, in the structure that the captured function returned. */
export type ProgramArrays<Outputs extends ProgramOutputs> = Outputs extends Tensor
  ? DTypeArray
  : { -readonly [K in keyof Outputs]: DTypeArray }

/** A program's input: a tensor of its device, or a typed array of the input's dtype, which is copied. */
export type ProgramInput = Tensor | ArrayBufferView

/** Settings of {@link Program.capture}. */
export interface ProgramOptions {
  /**
   * Another program of the same stream whose arena this one uses too, where it is large enough: capture the one that needs most
   * first. Replays of a stream run one after the other, so the two cannot disturb each other.
   */
  readonly arena?: Program<ProgramOutputs> | undefined
}

const collected = new FinalizationRegistry<number>((handle) => native.releaseProgram(handle))

/**
 * A captured sequence of calls. Its intermediates share one planned arena; tensors from outside that it uses (weights, caches)
 * are kept alive and used in place; inputs are bound and outputs are fresh at each run. A replay gives the same bits as
 * calling the function would.
 *
 * @example
 * using program = Program.capture(device, [{ shape: [1, 640], dtype: 'f32' }], (x) => matmul(rmsNorm(x, weight), packed))
 * const y = program.run(x)
 * const numbers = await program.execute(new Float32Array(640))
 */
export class Program<Outputs extends ProgramOutputs = Tensor> implements Disposable {
  readonly device: Device
  readonly #handle: number
  readonly #inputs: readonly DType[]
  readonly #outputs: Structure
  #disposed = false

  private constructor(device: Device, handle: number, inputs: readonly DType[], outputs: Structure) {
    this.device = device
    this.#handle = handle
    this.#inputs = inputs
    this.#outputs = outputs
    collected.register(this, handle, this)
  }

  /**
   * Runs `body` once with placeholder inputs and records its calls instead of executing them. `body` must be synchronous, and must
   * not read, write or run other programs. The program runs on the stream that is current now.
   * @throws ERR_CAPTURE if another capture is in progress; ERR_DISPOSED if the program in `arena` is.
   */
  static capture<Outputs extends ProgramOutputs>(
    device: Device,
    inputs: readonly TensorSpec[],
    body: (...inputs: Tensor[]) => Outputs,
    options: ProgramOptions = {},
  ): Program<Outputs> {
    const arena = options.arena === undefined ? 0 : Program.#handleOf(options.arena)
    native.beginCapture(device.currentStream.handle)
    let handle: number
    let outputs: Structure | undefined
    try {
      handle = scope(() => {
        const placeholders = inputs.map(({ dtype, shape }) =>
          wrapTensor(device, native.captureInput(dtypeIndex(dtype), shape), dtypeIndex(dtype), 0, [...shape]),
        )
        const [structure, tensors] = flatten(body(...placeholders))
        outputs = structure
        return native.endCapture(
          tensors.map((tensor) => handleOf(tensor, 'Program.capture: output')),
          arena,
        )
      })
    } catch (error) {
      native.abortCapture()
      throw error
    }
    const dtypes = inputs.map((input) => input.dtype)
    return new Program(device, handle, dtypes, outputs as Structure)
  }

  /**
   * Queues one replay and returns its outputs.
   * @param inputs Contiguous tensors of the shapes and dtypes captured, or typed arrays of as many elements (Uint16Array bits for f16
   *   and bf16), which are copied before this returns.
   * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_INVALID_ARGUMENT for another number of inputs, ERR_CAPTURE.
   */
  run(...inputs: ProgramInput[]): Outputs {
    const tensors = wrapTensors(this.device, native.runProgram(this.#handle, this.#bind(inputs)))
    return rebuild(this.#outputs, tensors) as Outputs
  }

  /**
   * Queues one replay and resolves to what its outputs hold, in one crossing into native code.
   * @param inputs As for `run`; typed arrays are copied before this returns.
   * @throws (rejects) What `run` throws, and the stream's sticky error.
   * @example
   * const { tokens } = await step.execute(plan)   // Int32Array in, typed arrays out
   */
  async execute(...inputs: ProgramInput[]): Promise<ProgramArrays<Outputs>> {
    const buffers = await fromNative(native.executeProgram(this.#handle, this.#bind(inputs)))
    const arrays = buffers.map((bytes, index) => toTypedArray(this.#outputs.dtypes[index] as DType, bytes))
    return rebuild(this.#outputs, arrays) as ProgramArrays<Outputs>
  }

  static #handleOf(program: Program<ProgramOutputs>): number {
    if (typeof program === 'object' && program !== null && #handle in program) return program.#handle
    throw new LapidaryError(
      'ERR_FOREIGN_HANDLE',
      `Program.capture: arena: expected a Program, got ${describeValue(program)}`,
    )
  }

  /** Inputs as they cross: handles, and views of memory. */
  #bind(inputs: readonly ProgramInput[]): (number | ArrayBufferView)[] {
    return inputs.map((input, index) => {
      if (!ArrayBuffer.isView(input)) return handleOf(input, `program.run: input ${index}`)
      const dtype = this.#inputs[index]
      if (dtype !== undefined) checkArray(input, dtype, `program.run: input ${index}`)
      return input
    })
  }

  /**
   * The number of calls; the bytes of arena that they need, whether it is another program's, and what the intermediates would take
   * without sharing memory.
   */
  info(): { calls: number; arenaBytes: number; intermediateBytes: number; sharesArena: boolean } {
    return native.programInfo(this.#handle)
  }

  /** Frees the arena and lets go of captured tensors. Replays in flight finish. Safe twice. */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    collected.unregister(this)
    native.releaseProgram(this.#handle)
  }

  /** {@link Program.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** How a captured function returned its tensors: alone, in an array (no names), or by name. */
interface Structure {
  readonly kind: 'one' | 'array' | 'record'
  readonly names: readonly string[]
  readonly dtypes: readonly DType[]
}

/** The tensors of a result in order, and what it takes to put others in their places. */
function flatten(outputs: ProgramOutputs): [structure: Structure, tensors: readonly Tensor[]] {
  const structure = (kind: Structure['kind'], tensors: readonly Tensor[], names: readonly string[] = []) =>
    [{ kind, names, dtypes: tensors.map((tensor) => tensor?.dtype) }, tensors] as [Structure, readonly Tensor[]]
  if (outputs instanceof Tensor) return structure('one', [outputs])
  if (Array.isArray(outputs)) return structure('array', [...outputs])
  if (outputs !== null && typeof outputs === 'object' && !(outputs instanceof Promise)) {
    return structure('record', Object.values(outputs as Record<string, Tensor>), Object.keys(outputs))
  }
  if (outputs instanceof Promise) outputs.catch(() => {})
  throw new LapidaryError(
    'ERR_INVALID_ARGUMENT',
    `Program.capture: expected a function that returns tensors, got ${describeValue(outputs)}`,
  )
}

function rebuild<T>({ kind, names }: Structure, items: readonly T[]): T | readonly T[] | Record<string, T> {
  if (kind === 'one') return items[0] as T
  if (kind === 'array') return items
  return Object.fromEntries(names.map((name, index) => [name, items[index] as T]))
}
