/** What a run produces: rows, and their forms for people and machines. */
import { execFileSync } from 'node:child_process'
import os from 'node:os'
import type { Verdict } from './goals.ts'
import type { Limits } from './limits.ts'
import type { ModelRow } from './models/race.ts'
import type { Overhead } from './overhead.ts'

export interface Row {
  readonly case: string
  readonly device: string
  readonly isa: string
  readonly threads: number
  readonly ms: number
  readonly gflops: number
  readonly gbps: number
  /**
   * The limit that binds the case, its rate (GB/s, GFLOP/s) in the rounds of this case, and how much of it is reached: the median of
   * the rounds' ratios.
   */
  readonly limit: string
  readonly limitRate: number
  readonly percentOfLimit: number
  readonly spread: number
  readonly peers: Record<string, { ms: number; ratio: number }>
}

export interface Report {
  readonly machine: Record<string, string | number>
  /** By instruction set and thread count: `avx512/2`. */
  readonly limits: Record<string, Limits>
  readonly overhead: Overhead[]
  readonly rows: (Row & { readonly verdicts: readonly Verdict[] })[]
  /** Whole models. */
  readonly models: ModelRow[]
}

export function describeMachine(processor: string, memoryLimit: number): Report['machine'] {
  let commit = 'unknown'
  try {
    commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim()
  } catch {
    // A packed copy has no repository.
  }
  return {
    processor,
    cores: os.availableParallelism(),
    memoryGiB: Math.round(memoryLimit / 2 ** 30),
    system: `${os.type()} ${os.release()}`,
    node: process.version,
    commit,
    date: new Date().toISOString().slice(0, 10),
  }
}

const number = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toPrecision(3)

export function formatRow(row: Row): string[] {
  const peers = Object.entries(row.peers).map(
    ([name, peer]) => `${number(peer.ratio)}x ${name} (${number(peer.ms)} ms)`,
  )
  const speed = row.gflops >= row.gbps * 4 ? `${number(row.gflops)} GFLOP/s` : `${number(row.gbps)} GB/s`
  return [
    row.case,
    row.isa,
    String(row.threads),
    number(row.ms),
    speed,
    `${row.percentOfLimit.toFixed(0)} % of ${row.limit} (${number(row.limitRate)})`,
    peers.join(', '),
  ]
}

export const header = ['case', 'isa', 'threads', 'ms', 'speed', 'limit', 'peer']

export function formatTable(rows: readonly string[][]): string {
  const widths = (rows[0] as string[]).map((_, column) =>
    Math.max(...rows.map((row) => (row[column] as string).length)),
  )
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] as number))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** Per cent of the limit as bars, one group per case. */
export async function drawSvg(report: {
  readonly machine: Report['machine']
  readonly rows: readonly Row[]
}): Promise<string> {
  const { compile } = await import('vega-lite')
  const { parse, View } = await import('vega')
  const values = report.rows.map((row) => ({
    case: row.case,
    device: `${row.isa}, ${row.threads} thread${row.threads > 1 ? 's' : ''}`,
    percent: row.percentOfLimit,
    limit: row.limit,
  }))
  const { spec } = compile({
    title: `Per cent of this machine's limit: ${report.machine.processor}`,
    data: { values },
    mark: 'bar',
    encoding: {
      y: { field: 'case', type: 'nominal', sort: null, title: null },
      yOffset: { field: 'device', type: 'nominal' },
      x: {
        field: 'percent',
        type: 'quantitative',
        title: '% of the limit that binds the case',
        scale: { domain: [0, 100] },
      },
      color: { field: 'device', type: 'nominal', title: null },
    },
  })
  return await new View(parse(spec), { renderer: 'none' }).toSVG()
}
