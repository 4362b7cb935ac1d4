/** Goals as data: what a row has to reach, and whether it does. */

/** What goals speak of: of a row of ops, of a whole model, or of an image. */
export interface Measured {
  readonly case: string
  readonly isa?: string
  readonly threads?: number
  readonly gflops?: number
  readonly gbps?: number
  /** Longer is worse: what `percentSlower` compares. */
  readonly ms?: number
  /** Tokens per second, mebibytes or seconds, as the case says. */
  readonly value?: number
  readonly limit?: string
  readonly percentOfLimit?: number
  readonly peers: Record<string, { readonly ratio: number }>
}

/** `isa`: the goal stands for this instruction set alone. */
export type Goal = { readonly isa?: string } & (
  | /** TFLOP/s, at least. */ { readonly tflops: number }
  | /** GB/s, at least. */ { readonly gbps: number }
  | /** Per cent of a limit in the same rounds, at least; unmeasured where another limit binds the row. */ {
      readonly percent: number
      readonly of: string
    }
  | /** Times as fast as a peer in the same run, at least. */ { readonly times: number; readonly peer: string }
  | /** Longer than another case by so many per cent at most. */ {
      readonly percentSlower: number
      readonly than: string
    }
  | /** The row's value, at least. */ { readonly atLeast: number }
  | /** The row's value, at most. */ { readonly atMost: number }
  | /** The row's value by that of another case, at least. */ { readonly times: number; readonly than: string }
)

export interface Verdict {
  readonly goal: string
  /** Null: what it needs was not measured. */
  readonly value: number | null
  readonly outcome: 'met' | 'missed' | 'unmeasured'
}

const number = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))

function judgeOne(goal: Goal, row: Measured, rows: readonly Measured[]): Verdict {
  const verdict = (text: string, value: number | undefined, met: (value: number) => boolean): Verdict => ({
    goal: text,
    value: value ?? null,
    outcome: value === undefined ? 'unmeasured' : met(value) ? 'met' : 'missed',
  })
  const atLeast = (text: string, value: number | undefined, wanted: number): Verdict =>
    verdict(`≥ ${wanted}${text}`, value, (reached) => reached >= wanted)
  if ('tflops' in goal) return atLeast(' TFLOP/s', row.gflops && row.gflops / 1e3, goal.tflops)
  if ('gbps' in goal) return atLeast(' GB/s', row.gbps, goal.gbps)
  if ('of' in goal)
    return atLeast(` % of ${goal.of}`, row.limit === goal.of ? row.percentOfLimit : undefined, goal.percent)
  if ('atLeast' in goal) return atLeast('', row.value, goal.atLeast)
  if ('atMost' in goal) return verdict(`≤ ${goal.atMost}`, row.value, (value) => value <= goal.atMost)
  if ('peer' in goal) return atLeast(`x ${goal.peer}`, row.peers[goal.peer]?.ratio, goal.times)
  const other = rows.find(
    ({ case: name, isa, threads }) => name === goal.than && isa === row.isa && threads === row.threads,
  )
  if ('times' in goal) {
    const ratio = row.value !== undefined && other?.value !== undefined ? row.value / other.value : undefined
    return atLeast(`x ${goal.than}`, ratio, goal.times)
  }
  const slower = row.ms !== undefined && other?.ms !== undefined ? 100 * (row.ms / other.ms - 1) : undefined
  return verdict(`≤ ${goal.percentSlower} % slower than ${goal.than}`, slower, (value) => value <= goal.percentSlower)
}

/** Of the goals that stand for a row's instruction set. @param rows All rows of the run: a goal may speak of another case. */
export function judge(goals: readonly Goal[], row: Measured, rows: readonly Measured[]): Verdict[] {
  return goals.filter(({ isa }) => isa === undefined || isa === row.isa).map((goal) => judgeOne(goal, row, rows))
}

/** `≥ 300 TFLOP/s: missed (281)`. */
export function formatVerdict({ goal, value, outcome }: Verdict): string {
  return `${goal}: ${outcome}${value === null ? '' : ` (${number(value)})`}`
}

/** `7 met, 2 missed, 0 unmeasured`. */
export function countVerdicts(verdicts: readonly Verdict[]): string {
  const count = (outcome: Verdict['outcome']) => verdicts.filter((verdict) => verdict.outcome === outcome).length
  return (['met', 'missed', 'unmeasured'] as const).map((outcome) => `${count(outcome)} ${outcome}`).join(', ')
}
