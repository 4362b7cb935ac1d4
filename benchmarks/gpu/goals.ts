/** Goals as data: what a row has to reach, and whether it does. */
import type { Row } from '../report.ts'

/** Numbers to reach, from the issue of the CUDA room and its anchors; on an H200 (copy 4.3 TB/s, bf16 matmul about 780 TFLOP/s). */
export type Goal =
  /** TFLOP/s, at least. */
  | { readonly tflops: number }
  /** GB/s, at least. */
  | { readonly gbps: number }
  /** Per cent of the copy bandwidth of the same run, at least. */
  | { readonly percentOfCopy: number }
  /** Times as fast as a peer in the same run, at least. */
  | { readonly times: number; readonly peer: string }
  /** Longer than another case by so many per cent at most. */
  | { readonly percentSlower: number; readonly than: string }

export interface Verdict {
  readonly goal: string
  /** Null: what it needs was not measured. */
  readonly value: number | null
  readonly outcome: 'met' | 'missed' | 'unmeasured'
}

const number = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))

function judgeOne(goal: Goal, row: Row, rows: readonly Row[]): Verdict {
  const atLeast = (text: string, value: number | undefined, wanted: number): Verdict => ({
    goal: text,
    value: value ?? null,
    outcome: value === undefined ? 'unmeasured' : value >= wanted ? 'met' : 'missed',
  })
  if ('tflops' in goal) return atLeast(`≥ ${goal.tflops} TFLOP/s`, row.gflops / 1e3, goal.tflops)
  if ('gbps' in goal) return atLeast(`≥ ${goal.gbps} GB/s`, row.gbps, goal.gbps)
  if ('percentOfCopy' in goal) {
    const measured = row.limit === 'copy' ? row.percentOfLimit : undefined
    return atLeast(`≥ ${goal.percentOfCopy} % of copy`, measured, goal.percentOfCopy)
  }
  if ('times' in goal) return atLeast(`≥ ${goal.times}x ${goal.peer}`, row.peers[goal.peer]?.ratio, goal.times)
  const other = rows.find((candidate) => candidate.case === goal.than)
  const value = other ? 100 * (row.ms / other.ms - 1) : null
  return {
    goal: `≤ ${goal.percentSlower} % slower than ${goal.than}`,
    value,
    outcome: value === null ? 'unmeasured' : value <= goal.percentSlower ? 'met' : 'missed',
  }
}

/** @param rows All rows of the run: a goal may speak of another case. */
export function judge(goals: readonly Goal[], row: Row, rows: readonly Row[]): Verdict[] {
  return goals.map((goal) => judgeOne(goal, row, rows))
}

/** `≥ 300 TFLOP/s: missed (281)`. */
export function formatVerdict({ goal, value, outcome }: Verdict): string {
  return `${goal}: ${outcome}${value === null ? '' : ` (${number(value)})`}`
}
