// Whole models on the CUDA device (emulated, or the GPU of an acceptance run): the oracles step by step, and the engine, whose steps
// are captured programs and so graphs.
import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { Gemma } from '../../lib/index.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { compare } from '../support/compare.ts'
import { anyDevice, cuda, cudaFor, openDevice } from '../support/devices.ts'
import { oracleExpected, oracleFolder, oracles, tinyFolder } from './fixtures.ts'
import { equalSteps, greedy, run } from './run.ts'

/** Of logits and hidden states in f32, as on the processor (golden.test.ts). */
const tolerance = 2e-4

// biome-ignore format: a list
const ops = ['embedding', 'rms_norm', 'add_rms_norm', 'geglu', 'softcap', 'pack_weights', 'stack_weights', 'matmul',
  'qk_norm_rope', 'flash_attention', 'sample', 'log_probs']
const family = cudaFor(ops)

describe.skipIf(!family)(`models on ${family ?? `CUDA (${cuda.missing ?? 'kernels are missing'})`}`, () => {
  test.each(oracles)('%s: logits and the input of every layer', { timeout: 300_000 }, async (name) => {
    const expected = oracleExpected(name)
    const device = await openDevice(family!)
    using model = await GemmaModel.load(device, await openCheckpoint(oracleFolder(name)), { packedCache: false })
    const within = (got: ArrayLike<number>, wanted: ArrayLike<number>, what: string) =>
      expect(compare(got, wanted, new Float64Array(wanted.length).fill(tolerance)).failures, what).toBe(0)
    for (const steps of [[expected.ids.length], equalSteps(expected.ids.length, 5)]) {
      const got = await run(model, expected.ids, { steps, pageTokens: 4, watch: true })
      for (const [layer, values] of got.hidden.entries()) within(values, expected.hidden[layer]!, `layer ${layer}`)
      within(got.logits, expected.logits, 'logits')
    }
  })

  test('gemma3-text-tiny: greedy ids, token by token', { timeout: 300_000 }, async () => {
    const expected = oracleExpected('gemma3-text-tiny')
    const device = await openDevice(family!)
    using model = await GemmaModel.load(device, await openCheckpoint(oracleFolder('gemma3-text-tiny')), {
      packedCache: false,
    })
    expect(await greedy(model, [...expected.ids], expected.greedy.length)).toEqual([...expected.greedy])
  })

  test('the engine: captured steps say what the processor says', { timeout: 300_000 }, async () => {
    const device = await openDevice(family!)
    const graphs = () => Number.parseInt(device.info().notes.graphs!, 10)
    const options = {
      activations: 'f32',
      head: 'stored',
      kv: 'f32',
      contextLength: 128,
      maxSequences: 2,
      packedCache: false,
    } as const
    const prompt = 'Once upon a time'
    const before = graphs()
    await using gpu = await Gemma.load(tinyFolder, { ...options, device })
    await using cpu = await Gemma.load(tinyFolder, { ...options, device: await anyDevice() })
    const [ours, theirs] = await Promise.all([gpu, cpu].map((gemma) => gemma.logits(prompt)))
    const bound = new Float64Array(theirs!.data.length).fill(2 * tolerance)
    expect(compare(ours!.data, theirs!.data, bound).failures).toBe(0)
    const generate = (gemma: Gemma) => gemma.generate(prompt, { maxTokens: 12, temperature: 0 })
    const [text, expected] = await Promise.all([gpu, cpu].map(generate))
    expect(text!.text).toBe(expected!.text)
    expect(graphs()).toBeGreaterThan(before)
    expect(graphs() - before).toBeLessThan(12)
  })
})
