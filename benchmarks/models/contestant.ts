/** A whole-model contestant: a process of its own, so that memory is its own and neither disturbs the other's heap. */
import { type ChildProcess, fork } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** What a contestant can be asked. Token ids are those of the synthetic vocabulary; times are milliseconds. */
export interface Requests {
  /** Loads the checkpoint; to the end of the first token of a 16-token prompt. */
  load(options: { path: string; threads: number; contextLength: number; options: Readonly<Record<string, unknown>> }): {
    firstTokenMs: number
  }
  /** Evaluates a prompt of which nothing is cached. */
  prefill(options: { ids: number[] }): { ms: number }
  /** Generates `count` tokens after `ids` (which a call before may have left in the cache): the time per token. */
  decode(options: { ids: number[]; count: number }): { ms: number }
  /** Generates `count` tokens of `prompts.length` sequences at once: the time per token of all of them together. */
  batch(options: { prompts: number[][]; count: number }): { ms: number }
  /** Memory of the process: now and at its peak, in bytes. */
  memory(options: Record<string, never>): { resident: number; peak: number }
}

export type Handlers = {
  [K in keyof Requests]: (options: Parameters<Requests[K]>[0]) => Promise<ReturnType<Requests[K]>>
}

interface Message {
  readonly request: keyof Requests
  readonly options: never
}

/** The contestant's side: answers requests until the parent goes. */
export function serve(handlers: Omit<Handlers, 'memory'>): void {
  const all: Handlers = { ...handlers, memory: async () => processMemory() }
  process.on('message', async ({ request, options }: Message) => {
    try {
      process.send?.({ result: await all[request](options) })
    } catch (error) {
      process.send?.({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) })
    }
  })
  process.on('disconnect', () => process.exit(0))
}

function processMemory(): { resident: number; peak: number } {
  const status = readFileSync('/proc/self/status', 'utf8')
  const kib = (field: string): number =>
    Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? Number.NaN)
  return { resident: kib('VmRSS') * 1024, peak: kib('VmHWM') * 1024 }
}

/** The benchmark's side. Requests are answered one at a time. */
export class Contestant {
  readonly name: string
  readonly #child: ChildProcess

  constructor(name: string, script: string) {
    this.name = name
    this.#child = fork(fileURLToPath(new URL(script, import.meta.url)), {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
  }

  async ask<K extends keyof Requests>(
    request: K,
    options: Parameters<Requests[K]>[0],
  ): Promise<ReturnType<Requests[K]>> {
    const answer = await new Promise<{ result?: ReturnType<Requests[K]>; error?: string }>((resolve, reject) => {
      const gone = (code: number | null, signal: string | null): void =>
        reject(new Error(`${this.name} ended during ${request}: ${signal ?? code}`))
      this.#child.once('exit', gone)
      this.#child.once('message', (message) => {
        this.#child.off('exit', gone)
        resolve(message as { result?: ReturnType<Requests[K]>; error?: string })
      })
      this.#child.send({ request, options })
    })
    if (answer.error !== undefined) throw new Error(`${this.name}: ${request}: ${answer.error}`)
    return answer.result as ReturnType<Requests[K]>
  }

  close(): void {
    this.#child.kill()
  }
}
