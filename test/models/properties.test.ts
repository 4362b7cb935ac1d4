/** What must hold whatever the weights: cuts of the prompt, batches and captured programs do not change a sequence's result. */

import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { type Device, Program, Tensor } from '../../lib/index.ts'
import { decoder, logits } from '../../lib/models/gemma/forward.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { Random } from '../support/random.ts'
import { isFast, oracleFolder, readReference } from './fixtures.ts'
import { reference } from './reference.ts'
import { boundFrom, type Deviation, deviation, disturbance, exceeds } from './rounding.ts'
import { equalSteps, Runner, run, runBatch } from './run.ts'

const folder = oracleFolder('gemma3-text-tiny')
const { config, weights } = readReference(folder)

async function load(device: Device): Promise<GemmaModel> {
  return GemmaModel.load(device, await openCheckpoint(folder), { packedCache: false })
}

const text = (name: string, length: number) => Random.named(name).i32([length], 0, config.vocabulary).data

/** Of logits in f32. */
function f32Bound(ids: ArrayLike<number>): Deviation {
  const exact = reference(config, weights, ids)
  return boundFrom(
    [1, 2, 3].map((seed) => {
      const disturb = disturbance({ activations: 'f32', kv: 'f32', products: 'f32' }, seed)
      return deviation(reference(config, weights, ids, { disturb }).logits, exact.logits)
    }),
  )
}

describe('any chunking of the prompt gives the result of one step', () => {
  // 10 windows of 6 keys: rings of 2 to 6 pages come round many times.
  const ids = text('long prompt', isFast ? 40 : 64)
  const bound = f32Bound(ids)
  const random = Random.named('uneven steps')
  const uneven: number[] = []
  for (let left = ids.length; left > 0; left -= uneven.at(-1)!) uneven.push(Math.min(left, random.integer(1, 20)))

  test.each([
    ['token by token, pages of 1', 1, 1],
    ['token by token, pages of 16', 1, 16],
    ['steps of 6, a window', 6, 3],
    ['steps of 7', 7, 4],
    ['steps of 64', 64, 16],
    ['uneven steps', uneven, 5],
  ])('%s', (_, size, pageTokens) =>
    forEachIsa(async (device) => {
      using model = await load(device)
      const steps = typeof size === 'number' ? equalSteps(ids.length, size) : size
      const whole = await run(model, ids)
      const parts = await run(model, ids, { steps, pageTokens })
      expect(exceeds(parts.logits, whole.logits, bound)).toBeUndefined()
    }),
  )

  test('a ring too narrow for its step is an error', async () => {
    using model = await load(await anyDevice())
    // Made for steps of 1 token, it is given 7: the first of them see keys that the last have overwritten.
    const runner = new Runner(
      model.device,
      model,
      { sequences: 1, tokens: ids.length, largestStep: 1 },
      { pageTokens: 6 },
    )
    await runner.step([ids.subarray(0, 6)]).logits
    const code = { code: 'ERR_INDEX_OUT_OF_RANGE' }
    await expect(runner.step([ids.subarray(6, 13)]).logits).rejects.toMatchObject(code)
    await expect(model.device.stream.synchronize()).rejects.toMatchObject(code)
    runner.dispose()
  })
})

test('each sequence of a batch has the result that it has alone, bit for bit', () =>
  forEachIsa(async (device) => {
    using model = await load(device)
    const lengths = [1, 24, 7, 13, 6]
    const sequences = lengths.map((length, s) => text(`sequence ${s}`, length))
    for (const size of [24, 5, 1]) {
      const together = await runBatch(model, sequences, { steps: equalSteps(24, size) })
      for (const [s, ids] of sequences.entries()) {
        const alone = await run(model, ids, { steps: equalSteps(ids.length, size) })
        expect(together[s]!.logits).toEqual(alone.logits)
      }
    }
  }))

test('with rows, the results are those rows of all', () =>
  forEachIsa(async (device) => {
    using model = await load(device)
    const sequences = [text('a', 9), text('b', 1), text('c', 4)]
    const sizes = { sequences: 3, tokens: 9, largestStep: 9 }
    const all = new Runner(device, model, sizes)
    const some = new Runner(device, model, sizes)
    const everything = await all.step(sequences).logits
    const last = await some.step(sequences, { lastRows: true }).logits
    const v = config.vocabulary
    const rows = [8, 9, 13].map((row) => [...everything.subarray(row * v, (row + 1) * v)])
    expect([...last]).toEqual(rows.flat())
    // Keys and values of the other tokens are kept all the same.
    for (const [layer, cache] of some.caches.entries()) {
      expect(await cache.kCache.read()).toEqual(await all.caches[layer]!.kCache.read())
    }
    all.dispose()
    some.dispose()
  }))

test('a captured step gives the bits of an eager one', () =>
  forEachIsa(async (device) => {
    using model = await load(device)
    const ids = text('captured', 12)
    const eager = await run(model, ids, { steps: equalSteps(12, 1), pageTokens: 4 })
    // One sequence, pages in order, rings of 3 pages of 4 where 6 keys are seen.
    const cache = (pages: number) => {
      const make = () => Tensor.zeros(device, [pages, config.kvHeads, 4, config.headDim])
      return { kCache: make(), vCache: make() }
    }
    const caches = config.kinds.map(() => cache(3))
    const i32 = (shape: number[]) => ({ shape, dtype: 'i32' as const })
    using program = Program.capture(
      device,
      [i32([1]), i32([1]), i32([2]), i32([1]), i32([1]), i32([1, 3])],
      (token, position, queryStarts, keyLengths, slots, pages) => {
        const paged = { slots, pages }
        const step = { ids: token, positions: position, queryStarts, keyLengths, local: paged, global: paged }
        return logits(model, decoder(model, step, caches))
      },
    )
    for (let position = 0; position < 12; position++) {
      const inputs = [[ids[position]!], [position], [0, 1], [position + 1], [position]]
      const tensors = inputs.map((values) => Tensor.from(device, Int32Array.from(values)))
      const got = await program.run(...tensors, Tensor.from(device, Int32Array.of(0, 1, 2), [1, 3])).read()
      const from = position * config.vocabulary
      expect([...got]).toEqual([...eager.logits.subarray(from, from + config.vocabulary)])
    }
  }))
