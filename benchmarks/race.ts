/** Timing contenders in turn, so that what disturbs the machine disturbs all of them. */

/** Something to be timed. `run` resolves when `runs` runs are done, each of them `unitsPerRun` units of work. */
export interface Contender {
  readonly name: string
  readonly unitsPerRun: number
  /** How long a sample lasts, in milliseconds; default: the race's own. */
  readonly sampleMs?: number
  /** Resolves when it is done: to the milliseconds by a clock of the contender's own (a GPU's), or to nothing: then the caller's counts. */
  run(runs: number): Promise<number | undefined> | Promise<void>
}

export interface Timing {
  /** Milliseconds per unit: the median of the samples, the best, and (worst − best) / median. */
  readonly median: number
  readonly best: number
  readonly spread: number
  /** One per round, in order: samples of the same number were taken within a fraction of a second. */
  readonly samples: readonly number[]
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Milliseconds of a sample. */
async function timed(contender: Contender, runs: number): Promise<number> {
  const start = performance.now()
  const own = await contender.run(runs)
  return own ?? performance.now() - start
}

/**
 * Each round takes one sample of every contender; a sample repeats the work until it lasts about `sampleMs`. Thread pools of a
 * contender that just ran may still spin: a pause lets them fall asleep.
 */
export async function race(contenders: readonly Contender[], rounds = 7, sampleMs = 120): Promise<Map<string, Timing>> {
  const runs = new Map<string, number>()
  const samples = new Map<string, number[]>(contenders.map(({ name }) => [name, []]))
  for (const contender of contenders) {
    await contender.run(1)
    const wanted = contender.sampleMs ?? sampleMs
    runs.set(contender.name, Math.max(1, Math.round(wanted / Math.max(await timed(contender, 1), 1e-3))))
  }
  for (let round = 0; round < rounds; round++) {
    for (const contender of contenders) {
      await pause(10)
      const count = runs.get(contender.name) as number
      samples.get(contender.name)?.push((await timed(contender, count)) / (count * contender.unitsPerRun))
    }
  }
  return new Map([...samples].map(([name, values]) => [name, summarize(values)]))
}

export function summarize(values: readonly number[]): Timing {
  const sorted = [...values].sort((a, b) => a - b)
  const best = sorted[0] as number
  const median = sorted[sorted.length >> 1] as number
  return { median, best, spread: ((sorted.at(-1) as number) - best) / median, samples: values }
}

/** The median over rounds of a / b: what disturbs the machine for longer than a round cancels out. */
export function medianRatio(a: Timing, b: Timing): number {
  return summarize(a.samples.map((value, round) => value / (b.samples[round] as number))).median
}
