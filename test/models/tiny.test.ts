/** The trained model in f32: logits and hidden states of 384 tokens, past the window of 128, and greedy text. */

import { beforeAll, describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import type { Device } from '../../lib/index.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { round } from '../support/numbers.ts'
import { isFast, readReference, tinyExpected, tinyFolder } from './fixtures.ts'
import { type ReferenceResult, reference } from './reference.ts'
import { boundFrom, type Deviation, deviation, disturbance, exceeds } from './rounding.ts'
import { changed, equalSteps, greedy, run } from './run.ts'

const expected = tinyExpected()
const { config, weights } = readReference(tinyFolder)
const tail = 64
const from = expected.ids.length - tail
const vocabulary = config.vocabulary

async function load(device: Device): Promise<GemmaModel> {
  return GemmaModel.load(device, await openCheckpoint(tinyFolder), { packedCache: false, weights: 'f32' })
}

/** The bound of f32 arithmetic: measured on a shorter text, whose deviations are of the same size at every position. */
function roundingBound(): Record<'logits' | 'hidden', Deviation> {
  const ids = expected.ids.subarray(0, tail)
  const exact = reference(config, weights, ids)
  const samples = [1, 2].map((seed) => {
    const disturb = disturbance({ activations: 'f32', kv: 'f32', products: 'f32' }, seed)
    const { logits, hidden } = reference(config, weights, ids, { disturb })
    return { logits: deviation(logits, exact.logits), hidden: deviation(hidden.at(-1)!, exact.hidden.at(-1)!) }
  })
  return { logits: boundFrom(samples.map((s) => s.logits)), hidden: boundFrom(samples.map((s) => s.hidden)) }
}

const lastRows = (values: ArrayLike<number>) => Float64Array.from(values).subarray(from * config.hiddenSize)

describe.skipIf(isFast)('384 tokens', () => {
  let bound: Record<'logits' | 'hidden', Deviation>
  let exact: ReferenceResult

  beforeAll(() => {
    bound = roundingBound()
    exact = reference(config, weights, expected.ids, { logitsFrom: from })
  })

  // The fixture was computed after a cast of the whole module to bf16 and back, which rounded its rotary frequencies too. With that the
  // reference reproduces it; without, it differs from it as the library does.
  test('the reference reproduces the fixture', () => {
    const rounded = { ...config, roundFrequency: (frequency: number) => round('bf16', frequency) }
    const { logits, hidden } = reference(rounded, weights, expected.ids, { logitsFrom: from })
    expect(exceeds(logits, expected.logits, bound.logits)).toBeUndefined()
    expect(exceeds(lastRows(hidden[1]!), expected.firstHidden, bound.hidden)).toBeUndefined()
    expect(exceeds(lastRows(hidden.at(-1)!), expected.lastHidden, bound.hidden)).toBeUndefined()
    expect(exceeds(exact.logits, expected.logits, bound.logits)).toBeDefined()
  })

  test.each([
    ['in one step', [expected.ids.length]],
    ['in steps of 100', equalSteps(expected.ids.length, 100)],
  ])('%s', async (_, steps) => {
    // Slow instruction sets show nothing that the oracles do not.
    using model = await load(await anyDevice())
    const { logits, hidden } = await run(model, expected.ids, { steps, pageTokens: 16, watch: true })
    expect(exceeds(logits.subarray(from * vocabulary), exact.logits, bound.logits)).toBeUndefined()
    expect(exceeds(lastRows(hidden[1]!), lastRows(exact.hidden[1]!), bound.hidden)).toBeUndefined()
    expect(exceeds(lastRows(hidden.at(-1)!), lastRows(exact.hidden.at(-1)!), bound.hidden)).toBeUndefined()
  })

  test('a window one longer is seen', async () => {
    using model = await load(await anyDevice())
    const wrong = changed(model, { window: config.window + 1 })
    const { logits } = await run(wrong, expected.ids, { pageTokens: 16 })
    expect(exceeds(logits.subarray(from * vocabulary), exact.logits, bound.logits)).toBeDefined()
  })
})

// Each file of greedy ids is a prompt and 200 tokens.
test.each(expected.greedy)('greedy text after "$prompt"', async ({ ids }) => {
  const total = isFast ? 24 : ids.length
  using model = await load(await anyDevice())
  const got = await greedy(model, ids.slice(0, ids.length - 200), total)
  expect(got).toEqual(ids.slice(0, total))
})

test.skipIf(isFast)('greedy text is the same on every instruction set', () =>
  forEachIsa(async (device) => {
    using model = await load(device)
    const { ids } = expected.greedy[1]!
    expect(await greedy(model, ids.slice(0, ids.length - 200), 40)).toEqual(ids.slice(0, 40))
  }),
)
