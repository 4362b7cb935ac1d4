/**
 * Peers, in processes of their own that speak JSON lines: one request on standard input, one answer on standard output. What a process
 * prints besides belongs on standard error.
 *
 *     {"id": 1, "do": "hello"}                             → {"id": 1, "peers": {name: version}, "absent": {name: why}}
 *     {"id": 2, "do": "open", "as": 1, "peer", "work", "footprint"}
 *                                                          → {"id": 2, "units": n} | {"id": 2, "absent": why}
 *     {"id": 3, "do": "rows", "as": 1, "rows": [0, 7]}     → {"id": 3, "values": [of all rows]}
 *     {"id": 4, "do": "run", "as": 1, "runs": 5}           → {"id": 4, "ms": of all runs}
 *     {"id": 5, "do": "close", "as": 1}                    → {"id": 5}
 *
 * Any request may be answered by {"id", "error": text}.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Contender } from '../race.ts'
import type { Work } from './case.ts'

/** A program that serves peers. */
export interface PeerProgram {
  readonly command: readonly [program: string, ...args: string[]]
  /** What it serves: named as absent where the program is missing. */
  readonly peers: readonly string[]
}

/** Why a peer gave no number: it is not there, or it failed. */
export class PeerAbsent extends Error {}
export class PeerFailed extends Error {
  /** The contender's name, where it was one. */
  contender = ''
}

type Answer = Readonly<Record<string, unknown>>

const numberOf = (answer: Answer, key: string): number => {
  const value = answer[key]
  if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value
  throw new PeerFailed(`answered ${key} ${JSON.stringify(value)}; expected a number above 0`)
}

const textsOf = (answer: Answer, key: string): Record<string, string> => {
  const value = answer[key]
  const valid = typeof value === 'object' && value !== null && Object.values(value).every((v) => typeof v === 'string')
  if (valid) return value as Record<string, string>
  throw new PeerFailed(`answered ${key} ${JSON.stringify(value)}; expected names with texts`)
}

/** A running program. It is started at its first request, and again after it has failed: what it failed at is lost, no more. */
export class PeerProcess {
  readonly program: PeerProgram
  readonly #timeoutMs: number
  #child: ChildProcess | undefined
  #lines: ((answer: string | Error) => void) | undefined
  #id = 0

  /** @param timeoutMs For one answer: the first run of a compiled peer takes its compiler's time. */
  constructor(program: PeerProgram, timeoutMs: number) {
    this.program = program
    this.#timeoutMs = timeoutMs
  }

  #start(): ChildProcess {
    const [program, ...args] = this.program.command
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] })
    const end = (error: Error): void => {
      // One that was stopped has nothing to say to who waits for its successor.
      if (this.#child !== child) return
      this.#child = undefined
      this.#lines?.(error)
    }
    child.on('error', (error: NodeJS.ErrnoException) =>
      end(error.code === 'ENOENT' ? new PeerAbsent(`${program} is not installed`) : new PeerFailed(error.message)),
    )
    child.on('exit', (code, signal) => end(new PeerFailed(`ended with ${signal ?? code}`)))
    // Writing to a process that has just ended: its exit says it.
    child.stdin?.on('error', () => {})
    createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
      if (this.#child === child) this.#lines?.(line)
    })
    return child
  }

  async ask(request: Readonly<Record<string, unknown>>): Promise<Answer> {
    this.#child ??= this.#start()
    const child = this.#child
    const id = ++this.#id
    let timer: NodeJS.Timeout | undefined
    try {
      const line = await new Promise<string>((resolve, reject) => {
        this.#lines = (answer) => (answer instanceof Error ? reject(answer) : resolve(answer))
        timer = setTimeout(() => reject(new PeerFailed(`no answer in ${this.#timeoutMs / 1000} s`)), this.#timeoutMs)
        child.stdin?.write(`${JSON.stringify({ id, ...request })}\n`)
      })
      return this.#read(line, id)
    } catch (error) {
      // Who answers nonsense, late or not at all may do so again: the next request gets a new process.
      if (!(error instanceof PeerAnswered)) this.stop()
      throw error
    } finally {
      clearTimeout(timer)
      this.#lines = undefined
    }
  }

  #read(line: string, id: number): Answer {
    let answer: unknown
    try {
      answer = JSON.parse(line)
    } catch {
      throw new PeerFailed(`answered ${JSON.stringify(line.slice(0, 80))}, which is not JSON`)
    }
    if (typeof answer !== 'object' || answer === null || (answer as Answer).id !== id) {
      throw new PeerFailed(`answered ${line.slice(0, 80)}; expected an answer to request ${id}`)
    }
    const { error } = answer as Answer
    if (error !== undefined) throw new PeerAnswered(String(error))
    return answer as Answer
  }

  /** What it serves here, by version, and what not, by reason. Never throws: a program that cannot say is absent or failed. */
  async hello(): Promise<{
    peers: Record<string, string>
    absent: Record<string, string>
    failed: Record<string, string>
  }> {
    const all = (why: string) => Object.fromEntries(this.program.peers.map((name) => [name, why]))
    try {
      const answer = await this.ask({ do: 'hello' })
      const peers = textsOf(answer, 'peers')
      const absent = textsOf(answer, 'absent')
      const silent = this.program.peers.filter((name) => !(name in peers) && !(name in absent))
      return { peers, absent, failed: Object.fromEntries(silent.map((name) => [name, 'said nothing of it'])) }
    } catch (error) {
      const why = (error as Error).message
      return error instanceof PeerAbsent
        ? { peers: {}, absent: all(why), failed: {} }
        : { peers: {}, absent: {}, failed: all(why) }
    }
  }

  stop(): void {
    const child = this.#child
    this.#child = undefined
    child?.kill('SIGKILL')
  }
}

/** An error that a peer told of: its process is well. */
class PeerAnswered extends PeerFailed {}

let opened = 0

/** A peer's side of a case. Its runs are timed by its own clock. Errors of it know whose they are. */
export class PeerContender implements Contender {
  readonly name: string
  readonly #process: PeerProcess
  readonly #as: number = ++opened
  #units = 0

  private constructor(name: string, process: PeerProcess) {
    this.name = name
    this.#process = process
  }

  /** @throws PeerAbsent where the peer cannot do this work, PeerFailed. */
  static async open(
    name: string,
    process: PeerProcess,
    peer: string,
    work: Work,
    footprint: number,
  ): Promise<PeerContender> {
    const contender = new PeerContender(name, process)
    await contender.#ask({ do: 'open', peer, work, footprint }, (answer) => {
      if (typeof answer.absent === 'string') throw new PeerAbsent(answer.absent)
      contender.#units = numberOf(answer, 'units')
    })
    return contender
  }

  get unitsPerRun(): number {
    return this.#units
  }

  async #ask<T>(request: Answer, read: (answer: Answer) => T): Promise<T> {
    try {
      return read(await this.#process.ask({ ...request, as: this.#as }))
    } catch (error) {
      if (error instanceof PeerFailed) error.contender = this.name
      throw error
    }
  }

  /** Rows of the first unit's output, one after the other. */
  rows(rows: readonly number[], count: number): Promise<number[]> {
    return this.#ask({ do: 'rows', rows }, ({ values }) => {
      const valid = Array.isArray(values) && values.length === count && values.every((v) => typeof v === 'number')
      if (valid) return values as number[]
      throw new PeerFailed(`answered ${JSON.stringify(values)?.slice(0, 80)}; expected ${count} numbers`)
    })
  }

  run(runs: number): Promise<number> {
    return this.#ask({ do: 'run', runs }, (answer) => numberOf(answer, 'ms'))
  }

  async close(): Promise<void> {
    await this.#ask({ do: 'close' }, () => {}).catch(() => {})
  }
}
