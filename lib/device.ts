/**
 * Devices: where tensors live and ops run.
 * @module
 */
import { describeValue, fromNative, LapidaryError } from './errors.ts'
import { type NativeDeviceInfo, type NativeIsa, native } from './native.ts'
import { Stream } from './stream.ts'

/** Instruction sets, least first: the names of native/kernels/cpu/isa.def. */
export type Isa = 'scalar' | 'avx2' | 'avx512' | 'avx512_bf16' | 'amx' | 'amx_emulated' | 'neon' | 'i8mm'

/** Families of GPU kernels; `sm80_emulated` runs them on the host, in tests alone. */
export type GpuFamily = 'sm80' | 'sm80_emulated'

/** What `Device.open` takes: the processor, the first GPU, or one by its number. */
export type DeviceKind = 'cpu' | 'cuda' | `cuda:${number}`

/** Settings of {@link Device.open}. */
export interface DeviceOptions {
  /** Threads that compute, the stream's own included. Default: the physical cores this process may use. A GPU has its own. */
  threads?: number
  /**
   * The highest instruction set, or the family of GPU kernels, to use. Default: the best this machine supports. Forcing one that is absent
   * is an error.
   */
  isa?: Isa | GpuFamily
  /** For tests: surrounds every buffer with guard regions, fills fresh memory with NaN, and reports what writes outside. Default false. */
  guard?: boolean
  /**
   * Opens a GPU although no acceptance run of the kernels is recorded for its architecture (docs/gpu-acceptance.md). Default false: it is
   * refused, and the error says so.
   */
  unverified?: boolean
}

/** What a device is: its name, threads, memory, and which instruction set serves each op. */
export interface DeviceInfo extends NativeDeviceInfo {}

/** A GPU as `Device.list()` tells of it. */
export interface GpuListing {
  /** What `Device.open` takes; `cuda` alone where there is no GPU to be had. */
  kind: Exclude<DeviceKind, 'cpu'>
  /** The GPU's own name. Empty, as `driver` and `computeCapability`, where it cannot be asked. */
  name: string
  /** The newest CUDA that the driver supports. */
  driver: string
  computeCapability: string
  /** Bytes. */
  memory: number
  /** Why it does not open as it is, and what to do. */
  reason?: string
}

/** One entry of `Device.list()`. */
export type DeviceListing = { kind: 'cpu'; isas: NativeIsa[] } | GpuListing

/** @internal The native handle of a device; throws where the argument is none. */
export let deviceHandleOf: (device: Device, what: string) => number

/** What a device holds natively; shared with the registry, which outlives it. */
interface Holdings {
  readonly device: number
  /** Streams keep their device open: they go first. */
  readonly streams: Set<number>
}

function release({ device, streams }: Holdings): void {
  for (const stream of streams) native.releaseStream(stream)
  native.releaseDevice(device)
}

const opened = new FinalizationRegistry<Holdings>(release)

/**
 * A processor with its memory, its kernels and its team of threads. Every device is independent: two can be open at once, also in
 * worker threads; tensors of one are not taken by another.
 *
 * @example
 * const device = await Device.open()
 * console.log(device.info().isa, device.info().threads)
 */
export class Device implements Disposable {
  /** The default stream. */
  readonly stream: Stream
  /** The stream that ops are queued on: the default one, or inside `stream.use()` that one. */
  currentStream: Stream
  readonly #handle: number
  readonly #holdings: Holdings
  #disposed = false

  static {
    deviceHandleOf = (device, what) => {
      if (typeof device === 'object' && device !== null && #handle in device) return device.#handle
      throw new LapidaryError(
        'ERR_FOREIGN_HANDLE',
        `${what}: expected a Device of this environment, got ${describeValue(device)}`,
      )
    }
  }

  private constructor(handle: number) {
    this.#handle = handle
    this.#holdings = { device: handle, streams: new Set() }
    this.stream = this.createStream()
    this.currentStream = this.stream
    opened.register(this, this.#holdings, this)
  }

  /**
   * Opens a device: the best there is, or the one asked for.
   * @param kind `'cpu'`, `'cuda'` (the first GPU) or `'cuda:1'`. Default: the processor.
   * @throws ERR_INVALID_ARGUMENT for a kind or a number of threads that is none; ERR_DEVICE_UNAVAILABLE if the device, or the instruction
   * set asked for, is not present: there is no silent fall-back. For a GPU the message says what is missing: the CUDA library, the driver,
   * a newer driver, the GPU, or its verification.
   */
  static async open(kind: DeviceKind = 'cpu', options: DeviceOptions = {}): Promise<Device> {
    if (typeof kind !== 'string' || !/^(cpu|cuda(:\d+)?)$/.test(kind)) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `device: expected 'cpu', 'cuda' or 'cuda:' and a number, got ${describeValue(kind)}`,
      )
    }
    const { threads, isa = '', guard = false, unverified = false } = options
    if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `Device.open: threads: expected a positive integer, got ${threads}`,
      )
    }
    return new Device(await fromNative(native.openDevice(kind, threads ?? 0, isa, guard, unverified)))
  }

  /**
   * What could be opened, without opening it: the processor, then every GPU, or one entry that says why there are none. Asking the
   * driver takes some hundred milliseconds the first time.
   */
  static list(): DeviceListing[] {
    return [{ kind: 'cpu', isas: native.listIsas() }, ...(native.listGpus() as GpuListing[])]
  }

  /** @internal */
  get handle(): number {
    return this.#handle
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** What this device is: processor, instruction sets (compiled, supported, active), the ISA that serves each op, threads. */
  info(): DeviceInfo {
    return native.deviceInfo(this.#handle)
  }

  /** Memory in live buffers, their number, and memory kept for reuse, in bytes. */
  memory(): { bytes: number; buffers: number; cached: number } {
    return native.deviceMemory(this.#handle)
  }

  /** Another queue on this device, with a thread of its own. It lasts until it, or the device, is disposed. */
  createStream(): Stream {
    return new Stream(this, this.#handle, this.#holdings.streams)
  }

  /**
   * Stops the device's streams (each finishes the call in progress; what is queued after it is dropped and its reads reject with
   * ERR_DISPOSED) and frees the device. Memory of its tensors is freed with them.
   */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    opened.unregister(this)
    release(this.#holdings)
  }

  /** {@link Device.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}
