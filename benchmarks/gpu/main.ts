/** `npm run bench:gpu`: see README.md beside this folder. */
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { Command, Option } from 'commander'
import { Device } from 'lapidary'
import { countVerdicts, formatVerdict } from '../goals.ts'
import { drawSvg, formatRow, formatTable, header } from '../report.ts'
import { footprint } from './case.ts'
import { gpuCases, limitWork, tinyCases, tinyLimitWork } from './cases.ts'
import type { PeerProgram } from './peers.ts'
import { type GpuReport, type GpuRow, runGpuBenchmarks } from './run.ts'

interface Options {
  json?: string
  svg?: string
  only?: string
  python: string
  peers: boolean
  rounds: string
  sampleMs: string
  budget: string
  peerTimeout: string
  device: 'cuda' | `cuda:${number}`
  emulated?: boolean
}

const options: Options = new Command('bench:gpu')
  .description("Times our CUDA kernels and the host's peers on the same inputs, beside this GPU's limits.")
  .option('--json <file>', 'write the report as JSON')
  .option('--svg <file>', 'draw per cent of limit')
  .option('--only <words>', 'comma-separated: cases whose name contains one of them')
  .option('--python <program>', 'the Python that has the peers', process.env.LAPIDARY_PYTHON ?? 'python3')
  .option('--no-peers', 'leave the peers out')
  .option('--rounds <count>', 'samples of each contender', '7')
  .option('--sample-ms <count>', 'how long a sample lasts', '40')
  .option('--budget <seconds>', 'no case begins later', '3600')
  .option('--peer-timeout <seconds>', 'for one answer of a peer, its compiler included', '180')
  .option('--device <kind>', 'which GPU', 'cuda')
  .addOption(new Option('--emulated', 'tiny cases on the emulated device: only that it runs').hideHelp())
  .parse()
  .opts<Options>()

// Read by the CUDA library at its first replay.
process.env.LAPIDARY_CUDA_TIMING = '1'

// From build/benchmarks/gpu, where this file is run, to the sources.
const scripts = path.join(import.meta.dirname, '../../../benchmarks/gpu/peers')
const programs: PeerProgram[] = [
  {
    command: [options.python, path.join(scripts, 'torch_peers.py')],
    peers: ['copy', 'sdpa_flash', 'sdpa_cudnn', 'flex_attention', 'cublas', 'tinygemm', 'compile'],
  },
  { command: [options.python, path.join(scripts, 'jax_peers.py')], peers: ['jax_cudnn'] },
]

function formatGpuRow(row: GpuRow): string[] {
  const missing = [
    ...Object.keys(row.absent).map((name) => `${name} absent`),
    ...Object.entries(row.failed).map(([name, why]) => `${name} FAILED: ${why}`),
  ]
  const cells = formatRow(row)
  const peers = [cells.pop(), ...missing].filter(Boolean).join(', ')
  return [...cells, peers, row.verdicts.map(formatVerdict).join('; ')]
}

function printSummary(report: GpuReport): void {
  console.log(formatTable([[...header, 'goal'], ...report.rows.map(formatGpuRow)]))
  for (const [name, why] of Object.entries(report.notRun)) console.log(`NOT RUN ${name}: ${why}`)
  const described = Object.values(report.peers)
  const absent = described.filter((text) => text.startsWith('absent')).length
  const failed = described.filter((text) => text.startsWith('failed')).length
  const unchecked = report.rows.filter((row) => row.checkedWith.length === 0).length
  console.log(
    `goals: ${countVerdicts(report.rows.flatMap((row) => row.verdicts))}. Peers: ` +
      `${described.length - absent - failed} here, ${absent} absent, ${failed} failed. ${report.rows.length} cases measured, ` +
      `${unchecked} of them without a peer to compare results with; ${Object.keys(report.notRun).length} not run. ` +
      `${report.problems.length} problems`,
  )
  for (const problem of report.problems) console.error(`PROBLEM ${problem}`)
}

const { emulated } = options
const words = options.only?.split(',') ?? []
using device = await Device.open(options.device, { isa: emulated ? 'sm80_emulated' : 'sm80', unverified: true })
const report = await runGpuBenchmarks({
  device,
  cases: (emulated ? tinyCases : gpuCases).filter(
    ({ name }) => words.length === 0 || words.some((word) => name.includes(word)),
  ),
  limitWork: emulated ? tinyLimitWork : limitWork,
  programs: options.peers ? programs : [],
  footprint: emulated ? 0 : footprint,
  rounds: Number(options.rounds),
  sampleMs: Number(options.sampleMs),
  budgetMs: 1000 * Number(options.budget),
  peerTimeoutMs: 1000 * Number(options.peerTimeout),
  log: (text) => console.error(text),
})
printSummary(report)
if (options.json) writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`)
if (options.svg) writeFileSync(options.svg, await drawSvg({ machine: report.machine, rows: [...report.rows] }))
process.exitCode = report.problems.length > 0 ? 1 : 0
