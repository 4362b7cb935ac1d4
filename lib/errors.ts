/**
 * Errors: one class, one table of codes (its native twin is native/core/error_codes.def).
 * @module
 */

/** Every error code and what it means. */
export const errorCodes = {
  ERR_INVALID_ARGUMENT: 'an argument or attribute has a value outside its range',
  ERR_SHAPE_MISMATCH: "a tensor's shape does not fit the other arguments",
  ERR_DTYPE_UNSUPPORTED: "an argument's dtype is not one the op takes",
  ERR_LAYOUT_UNSUPPORTED: "an argument's strides or packed layout are not ones the op takes",
  ERR_DEVICE_MISMATCH: 'tensors of different devices meet in one call',
  ERR_DEVICE_UNAVAILABLE: 'the device or instruction set asked for is not present',
  ERR_DISPOSED: 'a disposed tensor, stream, program or device was used',
  ERR_FOREIGN_HANDLE: 'a handle that this environment did not create was used',
  ERR_OUT_OF_MEMORY: 'the memory asked for could not be had',
  ERR_INDEX_OUT_OF_RANGE: 'device data holds an index outside the tensor it points into',
  ERR_DATA_CORRUPT: 'stored or packed data contradicts itself',
  ERR_CHECKPOINT_CORRUPT: 'a checkpoint file contradicts itself or the architecture it names',
  ERR_CHECKPOINT_UNSUPPORTED: 'a checkpoint is of a kind that this version does not run',
  ERR_FILE: 'a file could not be opened, mapped or read',
  ERR_ABORTED: 'an AbortSignal ended the work',
  ERR_BUSY: 'too much work is waiting already',
  ERR_CAPTURE: 'an operation is not possible while a program is captured',
  ERR_NATIVE_MISSING: 'the native addon could not be loaded',
  ERR_INTERNAL: 'a defect in Lapidary itself',
} as const

/** One of the keys of {@link errorCodes}. */
export type ErrorCode = keyof typeof errorCodes

/**
 * What every function of the package throws or rejects with. `code` is stable and meant for programs; `message` says what was
 * expected, what came, and for which argument, tensor, file or byte offset.
 */
export class LapidaryError extends Error {
  readonly code: ErrorCode
  /**
   * Where images of a prompt are to blame: the name of the one and what is wrong with it; without a name all of them together, which are
   * more tokens than the context has room for.
   */
  readonly images: { readonly name?: string; readonly problem: string } | undefined

  constructor(
    code: ErrorCode,
    message: string,
    options?: ErrorOptions & { readonly images?: LapidaryError['images'] },
  ) {
    super(message, options)
    this.name = 'LapidaryError'
    this.code = code
    this.images = options?.images
  }
}

/**
 * Awaits a promise that native code settles. Errors made on a native thread have no JavaScript stack: this one's names the caller.
 */
export async function fromNative<T>(promise: Promise<T>): Promise<T> {
  try {
    return await promise
  } catch (error) {
    if (error instanceof LapidaryError) throw new LapidaryError(error.code, error.message, { cause: error })
    throw error
  }
}

/** @internal How an argument of the wrong type is named in messages. */
export function describeValue(value: unknown): string {
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return String(value)
  return value.constructor?.name || 'an object'
}
