import { describe, expect, test } from 'vitest'
import { attentionCases } from '../../benchmarks/cases/attention.ts'
import { matmulCases } from '../../benchmarks/cases/matmul.ts'
import { rowOpsCases } from '../../benchmarks/cases/row-ops.ts'
import { countVerdicts, formatVerdict, type Goal, judge, type Measured } from '../../benchmarks/goals.ts'
import { modelGoals } from '../../benchmarks/models/goals.ts'

const row = (over: Partial<Measured>): Measured => ({
  case: 'a',
  isa: 'amx',
  threads: 1,
  ms: 1,
  gflops: 300_000,
  gbps: 3900,
  limit: 'copy',
  percentOfLimit: 84.9,
  value: 10,
  peers: { flex: { ratio: 2 } },
  ...over,
})
const others = [
  row({ case: 'b', ms: 0.1, value: 100, threads: 2 }),
  row({ case: 'b', ms: 0.1, value: 100, isa: 'avx2' }),
  row({ case: 'b', ms: 0.9, value: 2 }),
]
const verdicts = (goal: Goal, of = row({})) => judge([goal], of, [of, ...others])
const outcome = (goal: Goal, of = row({})) => verdicts(goal, of)[0]!.outcome

describe('goals', () => {
  test.each<[Goal, Goal]>([
    [{ tflops: 300 }, { tflops: 300.1 }],
    [{ gbps: 3900 }, { gbps: 3901 }],
    [
      { percent: 84, of: 'copy' },
      { percent: 85, of: 'copy' },
    ],
    [
      { times: 2, peer: 'flex' },
      { times: 2.01, peer: 'flex' },
    ],
    [
      { percentSlower: 12, than: 'b' },
      { percentSlower: 11, than: 'b' },
    ],
    [{ atLeast: 10 }, { atLeast: 10.1 }],
    [{ atMost: 10 }, { atMost: 9.9 }],
    [
      { times: 5, than: 'b' },
      { times: 5.1, than: 'b' },
    ],
  ])('are met at their number and missed beyond it: %j', (met, missed) => {
    expect(outcome(met)).toBe('met')
    expect(outcome(missed)).toBe('missed')
  })

  test('that need what was not measured are unmeasured', () => {
    expect(outcome({ times: 2, peer: 'absent' })).toBe('unmeasured')
    expect(outcome({ percentSlower: 8, than: 'c' })).toBe('unmeasured')
    expect(outcome({ times: 8, than: 'c' })).toBe('unmeasured')
    expect(outcome({ percent: 1, of: 'copy' }, row({ limit: 'matmul' }))).toBe('unmeasured')
    expect(judge([{ atLeast: 1 }], { case: 'a', peers: {} }, [])[0]!.outcome).toBe('unmeasured')
  })

  test('of another instruction set do not stand', () => {
    expect(outcome({ isa: 'amx', atLeast: 10 })).toBe('met')
    expect(verdicts({ isa: 'avx2', atLeast: 10 })).toEqual([])
  })

  test('are told with what was reached, and counted', () => {
    const all = [...verdicts({ tflops: 301 }), ...verdicts({ atMost: 10 }), ...verdicts({ times: 1, peer: 'none' })]
    expect(all.map(formatVerdict)).toEqual(['≥ 301 TFLOP/s: missed (300)', '≤ 10: met (10.0)', '≥ 1x none: unmeasured'])
    expect(countVerdicts(all)).toBe('1 met, 1 missed, 1 unmeasured')
  })

  test('of ops and models speak of cases that there are', () => {
    const cases = [...matmulCases, ...attentionCases, ...rowOpsCases]
    const names = cases.map(({ name }) => name)
    for (const goal of cases.flatMap(({ goals }) => goals ?? [])) {
      if ('than' in goal) expect(names).toContain(goal.than)
    }
    for (const name of ['int4 matmul M=512 5376x21504', 'GeGLU [512, 2x10240]']) {
      expect(cases.find((one) => one.name === name)!.goals!.length, name).toBeGreaterThan(0)
    }
    const rows = Object.keys(modelGoals)
    for (const goal of Object.values(modelGoals).flat()) {
      // The batch of the model with the default head is compared with a row that has a goal of its own.
      if ('than' in goal) expect(rows).toContain(goal.than)
    }
  })
})
