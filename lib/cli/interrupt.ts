/**
 * Ctrl-C: the first ends the work in hand cleanly, the second ends the process.
 * @module
 */

/** The status that shells give a process ended by SIGINT: 128 + 2. */
export const interruptedStatus = 130

/**
 * From its making to its disposal, SIGINT aborts `signal`. Only once: with no listener left, the next SIGINT has its default
 * effect, so that work which does not end can be killed as ever.
 *
 * @example
 * using interrupt = new Interrupt()
 * await work({ signal: interrupt.signal })
 * if (interrupt.signal.aborted) process.exitCode = interruptedStatus
 */
export class Interrupt implements Disposable {
  readonly #controller = new AbortController()
  readonly #abort = (): void => this.#controller.abort()

  constructor() {
    process.once('SIGINT', this.#abort)
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#abort)
  }
}
