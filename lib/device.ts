/**
 * Devices: where tensors live and ops run.
 * @module
 */
import { describeValue, fromNative, LapidaryError } from './errors.ts'
import { type NativeDeviceInfo, type NativeIsa, native } from './native.ts'
import { Stream } from './stream.ts'

/** Instruction sets, least first: the names of native/kernels/cpu/isa.def. */
export type Isa = 'scalar' | 'avx2' | 'avx512' | 'avx512_bf16' | 'amx' | 'amx_emulated' | 'neon' | 'i8mm'

/** Settings of {@link Device.open}. */
export interface DeviceOptions {
  /** Threads that compute, the stream's own included. Default: the physical cores this process may use. */
  threads?: number
  /** The highest instruction set to use. Default: the best this machine supports. Forcing one that is absent is an error. */
  isa?: Isa
  /** For tests: surrounds every buffer with guard regions, fills fresh memory with NaN, and reports what writes outside. Default false. */
  guard?: boolean
}

/** What a device is: its name, threads, memory, and which instruction set serves each op. */
export interface DeviceInfo extends NativeDeviceInfo {}

/** One entry of `Device.list()`. */
export interface DeviceListing {
  /** What `Device.open` takes. */
  kind: 'cpu'
  isas: NativeIsa[]
}

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
   * @param kind `'cpu'`. Default: the best there is.
   * @throws ERR_DEVICE_UNAVAILABLE if it, or the instruction set asked for, is not present: there is no silent fall-back.
   */
  static async open(kind: 'cpu' | 'cuda' | `cuda:${number}` = 'cpu', options: DeviceOptions = {}): Promise<Device> {
    if (kind !== 'cpu') {
      throw new LapidaryError(
        'ERR_DEVICE_UNAVAILABLE',
        `Device.open: expected 'cpu', got '${kind}': this build has no CUDA backend`,
      )
    }
    const { threads, isa = '', guard = false } = options
    if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
      throw new LapidaryError(
        'ERR_INVALID_ARGUMENT',
        `Device.open: threads: expected a positive integer, got ${threads}`,
      )
    }
    return new Device(await fromNative(native.openDevice(threads ?? 0, isa, guard)))
  }

  /** What could be opened, without opening it. */
  static list(): DeviceListing[] {
    return [{ kind: 'cpu', isas: native.listIsas() }]
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
