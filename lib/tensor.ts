/**
 * Tensors: typed, shaped memory of a device.
 * @module
 */
import { type Device, deviceHandleOf } from './device.ts'
import {
  type DType,
  type DTypeArray,
  type DTypeInfo,
  dtypeIndex,
  dtypes,
  type Layout,
  layouts,
  toTypedArray,
} from './dtype.ts'
import { describeValue, fromNative, LapidaryError } from './errors.ts'
import { type NativePackedForm, type NativeTensor, native } from './native.ts'
import { enterScope } from './scope.ts'

/** @internal The native handle of a tensor; throws where the argument is no tensor, or a disposed one. */
export let handleOf: (tensor: Tensor, what: string) => number
/** @internal Wraps a handle that native code made. */
export let wrapTensor: (
  device: Device,
  handle: number,
  dtype: number,
  layout: number,
  shape: readonly number[],
) => Tensor

/** Casting is an op (lib/ops/row-ops.ts), which stands above this file: index.ts hands it down. */
let cast: (x: Tensor, dtype: DType) => Tensor
/** @internal */
export function setCast(op: typeof cast): void {
  cast = op
}

/**
 * What it takes to read a packed tensor's bytes again: plain data, for JSON. The bytes are as wide as the kernels that made them
 * (`panelRows`), and of one version of the layout.
 */
export interface PackedForm {
  /** Of the layout, whatever the dtype. Another version's bytes are not read. */
  readonly layoutVersion: number
  readonly dtype: DType
  /** [rows, columns] of the matrix. */
  readonly shape: readonly number[]
  /** Rows that lie interleaved. */
  readonly panelRows: number
  /** Columns that share a scale, of i4 groups; 0: the whole row, or as the dtype has it. */
  readonly groupSize: number
  readonly scaleDtype: DType
  /** Panels of gate and up alternate. */
  readonly gateUp: boolean
  /** i4 groups without zero points. */
  readonly symmetric: boolean
  /** Bytes of storage. */
  readonly bytes: number
}

/** PanelFlags of native/ops/weight_panels.h. */
const panelFlags = { gateUp: 1, symmetric: 2 }

const collected = new FinalizationRegistry<number>((handle) => native.releaseTensor(handle))

/**
 * Memory of a device with a dtype and a shape of at most four dimensions. Its contents are computed in the device's stream: making
 * a tensor and passing it to ops never waits; `read()` does.
 *
 * Release it with `dispose()`, `using`, or `scope()`; the garbage collector is the safety net. Work in flight keeps what it needs.
 */
export class Tensor implements Disposable {
  readonly device: Device
  readonly dtype: DType
  readonly layout: Layout
  readonly shape: readonly number[]
  #handle: number

  static {
    handleOf = (tensor, what) => {
      if (typeof tensor !== 'object' || tensor === null || !(#handle in tensor)) {
        throw new LapidaryError(
          'ERR_FOREIGN_HANDLE',
          `${what}: expected a Tensor of this environment, got ${describeValue(tensor)}`,
        )
      }
      if (tensor.#handle === 0) throw new LapidaryError('ERR_DISPOSED', `${what}: the tensor has been disposed`)
      return tensor.#handle
    }
    wrapTensor = (device, handle, dtype, layout, shape) => new Tensor(device, handle, dtype, layout, shape)
  }

  private constructor(device: Device, handle: number, dtype: number, layout: number, shape: readonly number[]) {
    this.device = device
    this.dtype = (dtypes[dtype] as DTypeInfo).name
    this.layout = layouts[layout] as Layout
    this.shape = shape
    this.#handle = handle
    collected.register(this, handle, this)
    enterScope(this)
  }

  /**
   * Copies data into a new tensor.
   * @param data A typed array. Its type must be the dtype's (`Float32Array` f32, `Int32Array` i32, `Int8Array` i8, `Uint16Array` bits
   *   of f16 or bf16, `Uint8Array` bytes of u8 and block types); a `Float32Array` is also rounded to f16 or bf16.
   * @param shape Default: one dimension.
   * @param dtype Default: by the type of `data`.
   * @throws ERR_SHAPE_MISMATCH if the data does not have as many elements as the shape.
   */
  static from(device: Device, data: ArrayBufferView, shape?: readonly number[], dtype?: DType): Tensor {
    const given = dtypeOfArray(data, 'Tensor.from: data')
    const wanted = dtype ?? given
    const dims = checkShape(shape ?? [ArrayBuffer.isView(data) ? (data as Uint8Array).length : 0])
    if (wanted !== given && given === 'f32' && (wanted === 'f16' || wanted === 'bf16')) {
      using exact = Tensor.from(device, data, dims, 'f32')
      return cast(exact, wanted)
    }
    checkArray(data, wanted, 'Tensor.from: data')
    return Tensor.#create(device, wanted, dims, data)
  }

  /** A tensor of zeros. */
  static zeros(device: Device, shape: readonly number[], dtype: DType = 'f32'): Tensor {
    return Tensor.#create(device, dtype, checkShape(shape))
  }

  /**
   * A region of a file as a tensor, without copying it: pages are read when an op first uses them.
   * The tensor is read-only. The file must not become shorter while it is mapped.
   * @throws ERR_FILE if the file is absent or shorter than offset plus the tensor's bytes.
   */
  static map(
    device: Device,
    path: string,
    options: { shape: readonly number[]; dtype: DType; offset?: number },
  ): Tensor {
    const { shape, dtype, offset = 0 } = options
    const dims = checkShape(shape)
    const file = checkPath(path, 'Tensor.map')
    const handle = native.mapTensor(deviceHandleOf(device, 'Tensor.map: device'), file, offset, dtypeIndex(dtype), dims)
    return new Tensor(device, handle, dtypeIndex(dtype), 0, dims)
  }

  /**
   * Reads a region of a file into a new tensor's own memory, in stream order and by all threads of the device; this returns at once.
   * The file may be replaced or removed afterwards; it must not become shorter before it was read.
   * @param options.offset Of the first byte. Default 0.
   * @param options.form Of packed weights, as `packedForm()` gave it; shape and dtype must be its own.
   * @throws ERR_FILE if the file is absent or shorter than offset plus the tensor's bytes; ERR_LAYOUT_UNSUPPORTED if kernels of this
   *   device do not read that form; ERR_SHAPE_MISMATCH if its bytes are not those of the shape; ERR_OUT_OF_MEMORY. A file that
   *   cannot be read when the stream comes to it is the stream's sticky error.
   * @example
   * await packed.save('weights.bin')
   * const form = packed.packedForm()
   * const again = Tensor.load(device, 'weights.bin', { shape: form.shape, dtype: form.dtype, form })
   */
  static load(
    device: Device,
    path: string,
    options: { shape: readonly number[]; dtype: DType; offset?: number; form?: PackedForm | undefined },
  ): Tensor {
    const { shape, dtype, offset = 0, form } = options
    const dims = checkShape(shape)
    deviceHandleOf(device, 'Tensor.load: device')
    const packed = form && packedNumbers(form, dims, dtype)
    const file = checkPath(path, 'Tensor.load')
    const handle = native.loadTensor(device.currentStream.handle, file, offset, dtypeIndex(dtype), dims, packed)
    return new Tensor(device, handle, dtypeIndex(dtype), layouts.indexOf(form ? 'panels' : 'strided'), dims)
  }

  static #create(device: Device, dtype: DType, shape: readonly number[], data?: ArrayBufferView): Tensor {
    const handle = native.createTensor(deviceHandleOf(device, 'Tensor: device'), dtypeIndex(dtype), shape, data)
    return new Tensor(device, handle, dtypeIndex(dtype), 0, shape)
  }

  /** The number of elements. */
  get size(): number {
    return this.shape.reduce((product, dim) => product * dim, 1)
  }

  get disposed(): boolean {
    return this.#handle === 0
  }

  /**
   * The tensor's elements, once everything queued before is done: the typed array of its dtype (f16 and bf16 as their bits, block
   * types and packed weights as bytes).
   * @throws The stream's sticky error, if a call before failed.
   */
  async read(): Promise<DTypeArray> {
    const handle = handleOf(this, 'read')
    return toTypedArray(this.dtype, await fromNative(native.readTensor(this.device.currentStream.handle, handle)))
  }

  /** The elements of an f32, f16 or bf16 tensor as 32-bit floats. */
  async readF32(): Promise<Float32Array> {
    if (this.dtype === 'f32') return (await this.read()) as Float32Array
    using wide = cast(this, 'f32')
    return (await wide.read()) as Float32Array
  }

  /**
   * Writes the tensor's bytes, packed or contiguous, into a file once everything queued before is done. The file is created where it
   * is absent and extended where it is shorter; what lies around the bytes stays. Flushing and renaming are the caller's.
   * @param offset Of the first byte. Default 0.
   * @returns The bytes written.
   * @throws (rejects) ERR_FILE with what the system says (no such folder, no space): the file may then hold a part;
   *   ERR_LAYOUT_UNSUPPORTED for a tensor with gaps; the stream's sticky error.
   */
  async save(path: string, offset = 0): Promise<number> {
    const handle = handleOf(this, 'Tensor.save')
    const file = checkPath(path, 'Tensor.save')
    return fromNative(native.saveTensor(this.device.currentStream.handle, handle, file, offset))
  }

  /**
   * Lets go of the pages of a mapped file that have been read, so that they do not count as memory of this process. They stay in the
   * system's file cache while it has room, and come back when an op next reads them. Of other tensors: does nothing.
   * Work in flight is not disturbed.
   */
  releasePages(): void {
    native.releasePages(handleOf(this, 'releasePages'))
  }

  /**
   * How packed weights lie in memory: what `Tensor.load` needs to read saved bytes.
   * @throws ERR_LAYOUT_UNSUPPORTED for a tensor that is not packed.
   */
  packedForm(): PackedForm {
    const [layoutVersion, panelRows, groupSize, scaleDtype, flags, bytes] = native.packedForm(
      handleOf(this, 'packedForm'),
    )
    return {
      layoutVersion,
      dtype: this.dtype,
      shape: [...this.shape],
      panelRows,
      groupSize,
      scaleDtype: (dtypes[scaleDtype] as DTypeInfo).name,
      gateUp: (flags & panelFlags.gateUp) !== 0,
      symmetric: (flags & panelFlags.symmetric) !== 0,
      bytes,
    }
  }

  /** Overwrites a contiguous tensor in stream order. `data` is copied before this returns. */
  write(data: ArrayBufferView): void {
    native.writeTensor(this.device.currentStream.handle, handleOf(this, 'write'), data)
  }

  /** Elements `start` to `end` (excluded) along `axis`, sharing memory. Default axis 0, end: the dimension. */
  slice(start: number, end?: number, axis = 0): Tensor {
    const handle = handleOf(this, 'slice')
    const stop = end ?? this.shape[axis] ?? 0
    const view = native.sliceTensor(handle, axis, start, stop)
    const shape = this.shape.map((dim, index) => (index === axis ? stop - start : dim))
    return new Tensor(this.device, view, dtypeIndex(this.dtype), layouts.indexOf(this.layout), shape)
  }

  /** The same elements under another shape, sharing memory. The tensor must be contiguous. */
  reshape(shape: readonly number[]): Tensor {
    const dims = checkShape(shape)
    const view = native.reshapeTensor(handleOf(this, 'reshape'), dims)
    return new Tensor(this.device, view, dtypeIndex(this.dtype), layouts.indexOf(this.layout), dims)
  }

  /** Lets go of the memory; views of it and work in flight keep it. Safe at any moment, also twice. */
  dispose(): void {
    if (this.#handle === 0) return
    collected.unregister(this)
    native.releaseTensor(this.#handle)
    this.#handle = 0
  }

  /** {@link Tensor.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** @internal The tensors that native code describes. */
export function wrapTensors(device: Device, described: readonly NativeTensor[]): Tensor[] {
  return described.map(([handle, dtype, layout, ...shape]) => wrapTensor(device, handle, dtype, layout, shape))
}

function checkShape(shape: readonly number[]): readonly number[] {
  if (Array.isArray(shape) && shape.length <= 4 && shape.every((dim) => Number.isSafeInteger(dim) && dim >= 0))
    return [...shape]
  throw new LapidaryError(
    'ERR_INVALID_ARGUMENT',
    `shape: expected at most 4 non-negative integers, got ${JSON.stringify(shape)}`,
  )
}

function checkPath(path: unknown, what: string): string {
  if (typeof path === 'string' && path !== '' && !path.includes('\0')) return path
  throw new LapidaryError('ERR_INVALID_ARGUMENT', `${what}: path: expected a file's path, got ${JSON.stringify(path)}`)
}

/** A form as it crosses, after the parts of it that cross by themselves were found to agree. */
function packedNumbers(form: PackedForm, shape: readonly number[], dtype: DType): NativePackedForm {
  if (form.dtype !== dtype || String(form.shape) !== String(shape)) {
    throw new LapidaryError(
      'ERR_SHAPE_MISMATCH',
      `Tensor.load: form: expected that of ${dtype} [${shape.join(', ')}], got ${form.dtype} [${String(form.shape)}]`,
    )
  }
  const flags = (form.gateUp ? panelFlags.gateUp : 0) | (form.symmetric ? panelFlags.symmetric : 0)
  return [form.layoutVersion, form.panelRows, form.groupSize, dtypeIndex(form.scaleDtype), flags, form.bytes]
}

/** dtypes that have a typed array of their own; the others travel as bytes. */
const plainArrays = new Set<DType>(['f32', 'f16', 'bf16', 'i32', 'i8'])

/** @internal Throws where `data` is not the typed array of `dtype`. */
export function checkArray(data: ArrayBufferView, dtype: DType, what: string): void {
  const given = dtypeOfArray(data, what)
  const isBytes = given === 'u8' && !plainArrays.has(dtype)
  if (given === dtype || isBytes || (given === 'bf16' && dtype === 'f16')) return
  throw new LapidaryError(
    'ERR_DTYPE_UNSUPPORTED',
    `${what}: expected an array for ${dtype}, got ${describeValue(data)}`,
  )
}

function dtypeOfArray(data: unknown, what: string): DType {
  if (data instanceof Float32Array) return 'f32'
  if (data instanceof Int32Array) return 'i32'
  if (data instanceof Int8Array) return 'i8'
  if (data instanceof Uint16Array) return 'bf16'
  if (data instanceof Uint8Array || data instanceof Uint8ClampedArray) return 'u8'
  throw new LapidaryError(
    'ERR_DTYPE_UNSUPPORTED',
    `${what}: expected a typed array of f32, i32, i8, u8 or 16-bit floats, got ${describeValue(data)}`,
  )
}
