/** The GPU benchmarks: every case by us and by the peers of this host in turn, beside what the GPU does at most in the same rounds. */
import type { Device } from 'lapidary'
import { relativeError } from '../agreement.ts'
import { judge, type Verdict } from '../goals.ts'
import { medianRatio, race, type Timing } from '../race.ts'
import { describeMachine, type Report, type Row } from '../report.ts'
import { type GpuCase, sampledRows, type Work } from './case.ts'
import { limitUnit } from './cases.ts'
import { OursOnGpu } from './ours.ts'
import { PeerAbsent, PeerContender, PeerFailed, PeerProcess, type PeerProgram } from './peers.ts'

export interface GpuRow extends Row {
  /** Peers whose result ours was compared with before either was timed. */
  readonly checkedWith: readonly string[]
  /** Peers without a number, and why: not here or not for this work, and what went wrong. */
  readonly absent: Readonly<Record<string, string>>
  readonly failed: Readonly<Record<string, string>>
  readonly verdicts: readonly Verdict[]
}

export interface GpuReport {
  readonly machine: Report['machine']
  /** What was there of the peers, by name: versions, or why not. */
  readonly peers: Readonly<Record<string, string>>
  /** Whose copy and whose matmul per cent refer to. */
  readonly limits: Readonly<Record<GpuCase['limit'], string>>
  readonly rows: readonly GpuRow[]
  /** Cases that were not run, and why. */
  readonly notRun: Readonly<Record<string, string>>
  /** What must not be: wrong results, peers that failed. Empty: the run is good, whatever the goals. */
  readonly problems: readonly string[]
}

export interface GpuRun {
  readonly device: Device
  readonly cases: readonly GpuCase[]
  readonly limitWork: Readonly<Record<GpuCase['limit'], Work>>
  readonly programs: readonly PeerProgram[]
  /** Bytes that a run's inputs take at least. */
  readonly footprint: number
  readonly rounds: number
  readonly sampleMs: number
  /** No case begins later than this. */
  readonly budgetMs: number
  readonly peerTimeoutMs: number
  readonly log: (text: string) => void
}

/** Which peer's work is the limit; where it is not there, ours is. */
const limitPeer: Readonly<Record<GpuCase['limit'], string>> = { copy: 'copy', matmul: 'cublas' }
const limitName = 'limit'

/** All peers of all programs: who is there, and through which process. */
class Peers {
  readonly described: Record<string, string> = {}
  readonly absent: Record<string, string> = {}
  readonly failed: Record<string, string> = {}
  readonly #processes: PeerProcess[] = []
  readonly #at = new Map<string, PeerProcess>()

  static async find({ programs, peerTimeoutMs }: GpuRun): Promise<Peers> {
    const found = new Peers()
    for (const program of programs) {
      const process = new PeerProcess(program, peerTimeoutMs)
      found.#processes.push(process)
      const { peers, absent, failed } = await process.hello()
      for (const name of Object.keys(peers)) found.#at.set(name, process)
      Object.assign(found.described, peers)
      for (const [name, why] of Object.entries(absent)) found.described[name] = `absent: ${why}`
      for (const [name, why] of Object.entries(failed)) found.described[name] = `failed: ${why}`
      Object.assign(found.absent, absent)
      Object.assign(found.failed, failed)
    }
    return found
  }

  at(name: string): PeerProcess | undefined {
    return this.#at.get(name)
  }

  stop(): void {
    for (const process of this.#processes) process.stop()
  }
}

/** One case, until every contender that is left has been timed: one that fails is left out and the race begins again. */
class CaseRun {
  readonly #run: GpuRun
  readonly #case: GpuCase
  readonly #peers: Peers
  readonly #absent: Record<string, string> = {}
  readonly #failed: Record<string, string> = {}
  readonly checkedWith: string[] = []

  constructor(run: GpuRun, benchmark: GpuCase, peers: Peers) {
    this.#run = run
    this.#case = benchmark
    this.#peers = peers
    for (const name of benchmark.peers) {
      if (peers.absent[name] !== undefined) this.#absent[name] = peers.absent[name]
      else if (peers.failed[name] !== undefined) this.#failed[name] = peers.failed[name]
      else if (!peers.at(name)) this.#absent[name] = 'no program serves it'
    }
  }

  get #left(): string[] {
    return [limitName, ...this.#case.peers].filter((name) => !(name in this.#absent) && !(name in this.#failed))
  }

  async #open(name: string): Promise<PeerContender | undefined> {
    const peer = name === limitName ? limitPeer[this.#case.limit] : name
    const work = name === limitName ? this.#run.limitWork[this.#case.limit] : this.#case.work
    const process = this.#peers.at(peer)
    if (!process) return undefined
    try {
      return await PeerContender.open(name, process, peer, work, name === limitName ? 0 : this.#run.footprint)
    } catch (error) {
      if (!(error instanceof PeerAbsent)) throw error
      this.#absent[name] = error.message
      return undefined
    }
  }

  async #check(ours: OursOnGpu, peer: PeerContender): Promise<void> {
    const { rows, values } = await ours.rows(sampledRows)
    const error = relativeError(values, await peer.rows(rows, values.length))
    if (error <= this.#case.agreement) {
      if (!this.checkedWith.includes(peer.name)) this.checkedWith.push(peer.name)
      return
    }
    const failure = new PeerFailed(
      `differs from ours by ${error.toExponential(2)}; at most ${this.#case.agreement.toExponential(2)}`,
    )
    failure.contender = peer.name
    throw failure
  }

  async #attempt(ours: OursOnGpu): Promise<{ timings: Map<string, Timing>; source: string }> {
    const opened: PeerContender[] = []
    let ownLimit: OursOnGpu | undefined
    try {
      for (const name of this.#left) {
        const contender = await this.#open(name)
        if (!contender) continue
        opened.push(contender)
        if (name !== limitName) await this.#check(ours, contender)
      }
      const work = this.#run.limitWork[this.#case.limit]
      const limit = opened.find(({ name }) => name === limitName)
      if (!limit) ownLimit = await OursOnGpu.open(this.#run.device, work, limitUnit(work), 0)
      const own = ownLimit
      const contenders = own
        ? [{ name: limitName, unitsPerRun: own.unitsPerRun, run: (runs: number) => own.run(runs) }, ours, ...opened]
        : [ours, ...opened]
      const timings = await race(contenders, this.#run.rounds, this.#run.sampleMs)
      return { timings, source: limit ? limitPeer[this.#case.limit] : `lapidary ${this.#case.limit}` }
    } finally {
      ownLimit?.dispose()
      for (const contender of opened) await contender.close()
    }
  }

  async measure(): Promise<{ row: Omit<GpuRow, 'verdicts'>; source: string }> {
    const { device, footprint } = this.#run
    const { work, bytes } = this.#case
    const ours = await OursOnGpu.open(device, work, bytes, footprint)
    try {
      for (;;) {
        try {
          const { timings, source } = await this.#attempt(ours)
          return { row: this.#row(timings), source }
        } catch (error) {
          if (!(error instanceof PeerFailed) || error.contender === '') throw error
          this.#failed[error.contender] = error.message
        }
      }
    } finally {
      ours.dispose()
    }
  }

  #row(timings: Map<string, Timing>): Omit<GpuRow, 'verdicts'> {
    const { isa, threads } = this.#run.device.info()
    const { name, operations, bytes, limit } = this.#case
    const timing = timings.get('lapidary') as Timing
    const atLimit = timings.get(limitName) as Timing
    const unit = limit === 'copy' ? bytes : operations
    const limitRate = limitUnit(this.#run.limitWork[limit]) / atLimit.median / 1e6
    const peers: Row['peers'] = {}
    for (const [peer, { median }] of timings) {
      if (peer !== 'lapidary' && peer !== limitName) peers[peer] = { ms: median, ratio: median / timing.median }
    }
    return {
      case: name,
      device: 'cuda',
      isa,
      threads,
      ms: timing.median,
      gflops: operations / timing.median / 1e6,
      gbps: bytes / timing.median / 1e6,
      limit,
      limitRate,
      percentOfLimit: (100 * medianRatio(atLimit, timing) * unit) / limitUnit(this.#run.limitWork[limit]),
      spread: timing.spread,
      peers,
      checkedWith: this.checkedWith,
      absent: this.#absent,
      failed: this.#failed,
    }
  }
}

export async function runGpuBenchmarks(run: GpuRun): Promise<GpuReport> {
  const { device, cases, budgetMs, log } = run
  const began = performance.now()
  const { name, memoryLimit, notes } = device.info()
  const peers = await Peers.find(run)
  for (const [peer, text] of Object.entries(peers.described)) log(`peer ${peer}: ${text}`)
  const measured: { benchmark: GpuCase; row: Omit<GpuRow, 'verdicts'> }[] = []
  const notRun: Record<string, string> = {}
  const limits: Record<GpuCase['limit'], string> = { copy: 'not measured', matmul: 'not measured' }
  const problems = Object.entries(peers.failed).map(([peer, why]) => `${peer}: ${why}`)
  try {
    for (const benchmark of cases) {
      if (performance.now() - began > budgetMs) {
        notRun[benchmark.name] = `no time left of ${budgetMs / 1000} s`
        continue
      }
      try {
        const { row, source } = await new CaseRun(run, benchmark, peers).measure()
        limits[benchmark.limit] = source
        measured.push({ benchmark, row })
        for (const [peer, why] of Object.entries(row.failed)) {
          if (peers.failed[peer] === undefined) problems.push(`${benchmark.name}: ${peer}: ${why}`)
        }
      } catch (error) {
        notRun[benchmark.name] = `failed: ${(error as Error).message}`
        problems.push(`${benchmark.name}: ${(error as Error).message}`)
        // The sticky error, where it was one of the stream's.
        await device.stream.synchronize().catch(() => {})
      }
      log(`${benchmark.name}: ${notRun[benchmark.name] ?? 'measured'}`)
    }
  } finally {
    peers.stop()
  }
  const rows = measured.map(({ row }) => row)
  return {
    machine: { ...describeMachine(name, memoryLimit), 'compute capability': notes['compute capability'] ?? 'unknown' },
    peers: peers.described,
    limits,
    rows: measured.map(({ benchmark, row }) => ({ ...row, verdicts: judge(benchmark.goals, row, rows) })),
    notRun,
    problems,
  }
}
