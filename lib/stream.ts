/**
 * Streams: in-order queues of work for one device.
 * @module
 */
import type { Device } from './device.ts'
import { fromNative } from './errors.ts'
import { native } from './native.ts'

/**
 * An in-order queue of calls. An op returns at once; its work runs on the stream's own thread, after everything queued before it.
 * Only `synchronize()` and `tensor.read()` wait.
 *
 * Errors are sticky: after a call failed (an index out of range in device data, no memory) the stream skips its work, and every
 * read rejects with that first error, until `synchronize()` has rejected with it.
 */
export class Stream implements Disposable {
  readonly device: Device
  /** @internal */
  readonly handle: number
  /** Handles of the device's streams, this one's included until it is disposed. */
  readonly #siblings: Set<number>

  /** @internal Use `device.createStream()`. */
  constructor(device: Device, deviceHandle: number, siblings: Set<number>) {
    this.device = device
    this.handle = native.createStream(deviceHandle)
    this.#siblings = siblings
    siblings.add(this.handle)
  }

  /** Resolves when everything queued so far is done. Rejects with the stream's sticky error, and clears it. */
  async synchronize(): Promise<void> {
    await fromNative(native.synchronize(this.handle))
  }

  /** Makes everything queued here from now on wait for everything queued on `other` until now. */
  wait(other: Stream): void {
    native.waitStream(this.handle, other.handle)
  }

  /** Runs `body` with this stream as the one that ops of its device are queued on. `body` must be synchronous. */
  use<T>(body: () => T): T {
    const previous = this.device.currentStream
    this.device.currentStream = this
    try {
      return body()
    } finally {
      this.device.currentStream = previous
    }
  }

  /** Finishes the call in progress, drops what is queued after it (its reads reject with ERR_DISPOSED), and frees the stream. */
  dispose(): void {
    this.#siblings.delete(this.handle)
    native.releaseStream(this.handle)
    if (this.device.currentStream === this && this.device.stream !== this)
      this.device.currentStream = this.device.stream
  }

  /** {@link Stream.dispose}, for `using`. */
  [Symbol.dispose](): void {
    this.dispose()
  }
}
