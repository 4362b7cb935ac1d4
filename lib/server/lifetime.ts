/**
 * The life of a request: it ends when it is answered, when its client is gone, when its time is up, or when the server closes.
 * @module
 */
import { ApiError } from './api-error.ts'

/** Why a request ended before its answer: its client left, its time was up, the server closes. */
export type Ending = 'gone' | 'timeout' | 'closing'

/** One signal for all that may end a request early, and why it did. */
export class Lifetime implements Disposable {
  readonly #controller = new AbortController()
  readonly #client: AbortSignal
  readonly #timer: NodeJS.Timeout | undefined
  readonly #milliseconds: number
  readonly #onGone = (): void => this.end('gone')
  #ending: Ending | undefined

  /**
   * @param client Aborted when the client is gone.
   * @param milliseconds The time it may take; 0: any.
   */
  constructor(client: AbortSignal, milliseconds: number) {
    this.#client = client
    this.#milliseconds = milliseconds
    if (client.aborted) this.end('gone')
    else client.addEventListener('abort', this.#onGone, { once: true })
    if (milliseconds > 0) this.#timer = setTimeout(() => this.end('timeout'), milliseconds).unref()
  }

  /** Aborted at an early end. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  get ending(): Ending | undefined {
    return this.#ending
  }

  /** Ends it early; the first reason counts. */
  end(ending: Ending): void {
    if (this.#ending !== undefined) return
    this.#ending = ending
    this.#controller.abort()
  }

  /** @throws ApiError if it has ended early. */
  check(): void {
    if (this.#ending === 'timeout') {
      throw new ApiError(504, `the answer took longer than ${this.#milliseconds / 1000} s`, { code: 'request_timeout' })
    }
    if (this.#ending === 'closing') {
      throw new ApiError(503, 'the server is shutting down', { code: 'shutting_down', headers: { 'retry-after': '1' } })
    }
    if (this.#ending === 'gone') throw new ApiError(499, 'the client closed the connection', { code: 'client_gone' })
  }

  /** Waits for work that cannot be stopped no longer than the request lives. @throws (rejects) what the work does; ApiError as {@link check}. */
  async until<T>(work: Promise<T>): Promise<T> {
    let stop = (): void => {}
    const ended = new Promise<never>((_, reject) => {
      stop = () => {
        try {
          this.check()
        } catch (error) {
          reject(error)
        }
      }
      this.signal.addEventListener('abort', stop)
      stop()
    })
    try {
      return await Promise.race([work, ended])
    } finally {
      this.signal.removeEventListener('abort', stop)
    }
  }

  /** It is answered. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    this.#client.removeEventListener('abort', this.#onGone)
  }
}
