/** Gemma 1, 2 and 3 against the oracles: logits, the input of every layer, greedy text, on every instruction set. */

import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import type { Device } from '../../lib/index.ts'
import type { GemmaConfig } from '../../lib/models/gemma/config.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { compare } from '../support/compare.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { oracleExpected, oracleFolder, oracles } from './fixtures.ts'
import { changed, equalSteps, greedy, type RunOptions, type RunResult, run } from './run.ts'

/** Of logits and hidden states in f32. */
const tolerance = 2e-4

async function load(device: Device, name: (typeof oracles)[number]): Promise<GemmaModel> {
  return GemmaModel.load(device, await openCheckpoint(oracleFolder(name)), { packedCache: false })
}

function failures(got: RunResult, expected: ReturnType<typeof oracleExpected>): number {
  const within = (a: ArrayLike<number>, b: ArrayLike<number>) =>
    compare(a, b, new Float64Array(b.length).fill(tolerance)).failures
  return got.hidden.reduce(
    (sum, values, layer) => sum + within(values, expected.hidden[layer]!),
    within(got.logits, expected.logits),
  )
}

const windowed = ['gemma2-tiny', 'gemma3-text-tiny']

/** One mistake each, of the oracles that it matters to. */
const wrongConfigurations: readonly {
  readonly what: string
  readonly of: readonly string[]
  readonly change: (config: GemmaConfig) => Partial<GemmaConfig>
}[] = [
  { what: 'a window one longer', of: windowed, change: ({ window }) => ({ window: window + 1 }) },
  { what: 'a window one shorter', of: windowed, change: ({ window }) => ({ window: window - 1 }) },
  {
    what: 'local and global layers exchanged',
    of: windowed,
    change: ({ layerTypes }) => ({ layerTypes: layerTypes.map((type) => (type === 'local' ? 'global' : 'local')) }),
  },
  { what: 'norm weights without 1', of: oracles, change: () => ({ normBias: 0 }) },
  {
    what: 'rotary bases exchanged',
    of: ['gemma3-text-tiny'],
    change: ({ ropeTheta: { local, global } }) => ({ ropeTheta: { local: global, global: local } }),
  },
  {
    what: 'the rotary base of Gemma 3',
    of: ['gemma1-tiny', 'gemma2-tiny'],
    change: () => ({ ropeTheta: { local: 1e6, global: 1e6 } }),
  },
  {
    what: 'unscaled positions',
    of: ['gemma3-text-tiny'],
    change: () => ({ positionScale: { local: 1, global: 1 } }),
  },
  { what: 'uncapped scores', of: ['gemma2-tiny'], change: () => ({ attentionSoftcap: 0 }) },
  { what: 'uncapped logits', of: ['gemma2-tiny'], change: () => ({ finalSoftcap: 0 }) },
  {
    what: 'the query scale of the head dimension',
    of: windowed,
    change: ({ headDim }) => ({ queryScale: headDim ** -0.5 }),
  },
  {
    what: 'another embedding scale',
    of: oracles,
    change: ({ embeddingScale }) => ({ embeddingScale: embeddingScale * 1.003 }),
  },
  { what: 'another epsilon', of: oracles, change: () => ({ normEps: 1e-3 }) },
]

describe.each(oracles)('%s', (name) => {
  const expected = oracleExpected(name)
  const cuts: Record<string, RunOptions> = {
    'in one step': {},
    // The window is 6: rings of 2, 3 and 4 pages wrap several times in 20 tokens and more.
    'token by token': { steps: equalSteps(expected.ids.length, 1), pageTokens: 4 },
    'in steps of 5': { steps: equalSteps(expected.ids.length, 5), pageTokens: 4 },
    'in uneven steps': { steps: [1, 7, 2, expected.ids.length - 10], pageTokens: 3 },
  }

  test.each(Object.keys(cuts))('%s', (cut) =>
    forEachIsa(async (device) => {
      using model = await load(device, name)
      expect(model.activations).toBe('f32')
      const got = await run(model, expected.ids, { ...cuts[cut], watch: true })
      expect(got.hidden.length).toBe(expected.hidden.length)
      expect(failures(got, expected)).toBe(0)
    }),
  )

  test('greedy ids', () =>
    forEachIsa(async (device) => {
      using model = await load(device, name)
      expect(await greedy(model, [...expected.ids], expected.greedy.length)).toEqual([...expected.greedy])
    }))

  test.each(wrongConfigurations.filter(({ of }) => of.includes(name)))('fails with $what', async ({ change }) => {
    using model = await load(await anyDevice(), name)
    const wrong = changed(model, change(model.config))
    expect(failures(await run(wrong, expected.ids, { watch: true }), expected)).toBeGreaterThan(0)
  })
})
