/** `npm run bench`: see README.md beside this file. */
import { writeFileSync } from 'node:fs'
import { Command } from 'commander'
import { Device, type GemmaSizeName, type Isa } from 'lapidary'
import { relativeError } from './agreement.ts'
import { attentionCases } from './cases/attention.ts'
import type { BenchmarkCase } from './cases/case.ts'
import { decodeChainCases } from './cases/decode-chain.ts'
import { matmulCases } from './cases/matmul.ts'
import { rowOpsCases } from './cases/row-ops.ts'
import { countVerdicts, formatVerdict, judge } from './goals.ts'
import { LimitContender, type Limits, measureLimits } from './limits.ts'
import { formatModelRow, raceModel } from './models/race.ts'
import { measureOverhead } from './overhead.ts'
import { loadOnnxRuntime, peerName } from './peers/onnxruntime.ts'
import { medianRatio, race, type Timing } from './race.ts'
import { describeMachine, drawSvg, formatRow, formatTable, header, type Report, type Row } from './report.ts'

interface Options {
  json?: string
  svg?: string
  only?: string
  threads?: string
  isa?: string
  rounds: string
  peer: boolean
  models: string
  prompts: string
  depths: string
}

const options: Options = new Command('bench')
  .description("Times our ops and a peer's on the same shapes, beside this machine's limits.")
  .option('--json <file>', 'write the report as JSON')
  .option('--svg <file>', 'draw per cent of limit')
  .option('--only <words>', 'comma-separated: cases whose name contains one of them')
  .option('--threads <counts>', 'comma-separated thread counts (default: 1 and all)')
  .option('--isa <names>', 'comma-separated instruction sets (default: the best, and each with a matmul of its own)')
  .option('--rounds <count>', 'samples of each contender', '7')
  .option('--no-peer', 'leave the peer out')
  .option('--models <sizes>', 'published sizes that race as whole models; none: no model', 'gemma-3-1b')
  .option('--prompts <lengths>', 'of whole models: prompts whose prefill is timed; none: no such row', '512,2048')
  .option('--depths <lengths>', 'of whole models: contexts at which decoding is timed', '512,4096')
  .parse()
  .opts<Options>()

/** Instruction sets worth a row of their own: the best one, and those below it that change the int4 matmul. */
async function benchmarkIsas(): Promise<Isa[]> {
  if (options.isa) return options.isa.split(',') as Isa[]
  using best = await Device.open('cpu', { threads: 1 })
  const info = best.info()
  const others = info.isas.filter(
    ({ name, active }) => active && ['avx2', 'avx512', 'neon'].includes(name) && name !== info.isa,
  )
  return [info.isa, ...others.map(({ name }) => name)] as Isa[]
}

async function runCase(benchmark: BenchmarkCase, device: Device, limits: Limits, withPeer: boolean): Promise<Row> {
  const { isa, threads } = device.info()
  const ours = await benchmark.ours(device)
  const peer = withPeer ? await benchmark.peer?.(threads) : undefined
  const limit = benchmark.limit(limits)
  const unit = limit === 'read' ? benchmark.bytes : benchmark.operations
  const atLimit = await LimitContender.open(device, limit, unit, ours.unitsPerRun)
  try {
    if (peer && benchmark.agreement !== undefined && peer.unitsPerRun === 1) {
      await peer.run(1)
      const error = relativeError(await ours.output(), peer.firstOutput())
      if (!(error <= benchmark.agreement)) throw new Error(`${benchmark.name}: differs from ${peerName} by ${error}`)
    }
    const timings = await race(peer ? [atLimit, ours, peer] : [atLimit, ours], Number(options.rounds))
    const timing = timings.get(ours.name) as Timing
    const limitTiming = timings.get(atLimit.name) as Timing
    const { median, spread } = timing
    const gflops = benchmark.operations / median / 1e6
    const gbps = benchmark.bytes / median / 1e6
    const peers: Row['peers'] = {}
    for (const [name, timing] of timings) {
      if (name === peer?.name) peers[name] = { ms: timing.median, ratio: timing.median / median }
    }
    return {
      case: benchmark.name,
      device: 'cpu',
      isa,
      threads,
      ms: median,
      gflops,
      gbps,
      limit,
      limitRate: unit / limitTiming.median / 1e6,
      percentOfLimit: 100 * medianRatio(limitTiming, timing),
      spread,
      peers,
    }
  } finally {
    ours.dispose()
    atLimit.dispose()
    await peer?.dispose()
  }
}

const words = options.only?.split(',') ?? []
const cases = [...matmulCases, ...decodeChainCases, ...attentionCases, ...rowOpsCases].filter(
  ({ name }) => words.length === 0 || words.some((word) => name.includes(word)),
)
const {
  threads: allThreads,
  name: processor,
  memoryLimit,
} = await (async () => {
  using device = await Device.open('cpu')
  return device.info()
})()
const threadCounts = options.threads?.split(',').map(Number) ?? [...new Set([1, allThreads])]
const isas = await benchmarkIsas()
const withPeer = options.peer && (await loadOnnxRuntime()) !== undefined
if (options.peer && !withPeer) console.error(`${peerName} is not installed: no peer columns`)

const report: Report = {
  machine: describeMachine(processor, memoryLimit),
  limits: {},
  overhead: [],
  rows: [],
  models: [],
}
console.log(
  Object.entries(report.machine)
    .map(([key, value]) => `${key} ${value}`)
    .join(', '),
)
for (const threads of threadCounts) {
  using device = await Device.open('cpu', { threads })
  const overhead = await measureOverhead(device)
  report.overhead.push(overhead)
  console.log(
    `overhead, ${threads} thread${threads > 1 ? 's' : ''}: enqueue ${overhead.enqueue.toFixed(2)} µs per op, replay ` +
      `${overhead.replayFixed.toFixed(1)} µs + ${overhead.replayPerCall.toFixed(2)} µs per op, awaited round trip ` +
      `${overhead.roundTrip.toFixed(1)} µs`,
  )
}
const lines = [[...header, 'goals']]
for (const isa of isas) {
  for (const threads of threadCounts) {
    using device = await Device.open('cpu', { isa, threads })
    const limits = await measureLimits(device)
    report.limits[`${isa}/${threads}`] = limits
    console.log(
      `limits ${isa}, ${threads} thread${threads > 1 ? 's' : ''}: read ${limits.read.toFixed(1)} GB/s, ` +
        Object.entries(limits)
          .filter(([kind, value]) => kind !== 'read' && value > 0)
          .map(([kind, value]) => `${kind} ${(value / 1000).toFixed(2)} Tops/s`)
          .join(', '),
    )
    for (const benchmark of cases) {
      // The peer chooses its own instructions: one race per thread count, with the best of ours.
      const measured = await runCase(benchmark, device, limits, withPeer && isa === isas[0])
      const row = { ...measured, verdicts: judge(benchmark.goals ?? [], measured, report.rows) }
      report.rows.push(row)
      lines.push([...formatRow(row), row.verdicts.map(formatVerdict).join('; ')])
      console.error(formatRow(row).join(' | '))
    }
  }
}
console.log(formatTable(lines))
const lengths = (list: string): number[] => (list === 'none' ? [] : list.split(',').map(Number))
const sizes = words.length > 0 && !words.includes('models') ? [] : options.models.split(',')
for (const size of sizes.filter((name) => name !== 'none')) {
  // Whole models take minutes: the most threads only.
  const settings = {
    threads: Math.max(...threadCounts),
    rounds: Math.min(5, Number(options.rounds)),
    peer: options.peer,
    prompts: lengths(options.prompts),
    depths: lengths(options.depths),
  }
  await raceModel(size as GemmaSizeName, settings, (row) => {
    report.models.push(row)
    console.log(formatModelRow(row))
  })
}
console.log(`goals: ${countVerdicts([...report.rows, ...report.models].flatMap(({ verdicts }) => verdicts))}`)
if (options.json) writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`)
if (options.svg) writeFileSync(options.svg, await drawSvg(report))
