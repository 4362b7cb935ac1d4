/** EmbeddingGemma, of random weights: there is no oracle of it but the reference. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { Program, Tensor } from '../../lib/index.ts'
import { encoder, encoderArrays, encoderInput } from '../../lib/models/gemma/encoder.ts'
import { logits } from '../../lib/models/gemma/forward.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { Random } from '../support/random.ts'
import { oracleFolder } from './fixtures.ts'
import { RandomModel } from './random-model.ts'
import { referenceEmbedding } from './reference.ts'
import { boundFrom, deviation, disturbance, exceeds, type Rounding } from './rounding.ts'
import { changed } from './run.ts'

const kinds = ['local', 'local', 'global', 'local'] as const
const model = new RandomModel('embedding', { family: 'gemma-embedding', kinds })
const { config, weights } = model

// Shorter than half a window of 8, just half, one more, longer than it, and much longer.
const texts = [1, 4, 5, 9, 40].map((length) => Random.named(`text ${length}`).i32([length], 0, config.vocabulary).data)

let folder: string
const path = { hf: '', gguf: '' }
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'lapidary-encoder-'))
  path.hf = folder
  path.gguf = join(folder, 'model.gguf')
  model.writeHf(path.hf)
  await model.writeGguf(path.gguf)
})
afterAll(() => rmSync(folder, { recursive: true }))

function derive(ids: ArrayLike<number>, rounding: Rounding) {
  const exact = referenceEmbedding(config, weights, ids)
  const samples = [1, 2, 3].map((seed) => {
    return deviation(referenceEmbedding(config, weights, ids, disturbance(rounding, seed)), exact)
  })
  return { exact, bound: boundFrom(samples) }
}

const roundings: Record<'f32' | 'bf16', Rounding> = {
  f32: { activations: 'f32', kv: 'f32', products: 'f32' },
  bf16: { activations: 'bf16', kv: 'bf16', products: 'bf16' },
}

describe.each(['hf', 'gguf'] as const)('from %s', (file) => {
  test.each(['f32', 'bf16'] as const)('%s: each text of a batch', (precision) => {
    const expected = texts.map((ids) => derive(ids, roundings[precision]))
    return forEachIsa(async (device) => {
      const options = { packedCache: false, weights: precision === 'f32' ? ('f32' as const) : ('stored' as const) }
      using loaded = await GemmaModel.load(device, await openCheckpoint(path[file]), options)
      expect(loaded.head).toBeUndefined()
      const vectors = await encoder(loaded, encoderInput(device, loaded.config, texts)).readF32()
      for (const [s, { exact, bound }] of expected.entries()) {
        const vector = vectors.subarray(s * config.hiddenSize, (s + 1) * config.hiddenSize)
        expect(exceeds(vector, exact, bound)).toBeUndefined()
        const length = vector.reduce((sum, value) => sum + value * value, 0)
        expect(Math.abs(length - 1)).toBeLessThan(config.hiddenSize * 2 ** -23)
      }
    })
  })

  test('the window, the layers after pooling and the direction matter', async () => {
    const device = await anyDevice()
    using loaded = await GemmaModel.load(device, await openCheckpoint(path[file]), { packedCache: false })
    const ids = texts.at(-1)!
    const { exact, bound } = derive(ids, roundings.bf16)
    const vector = (of = changed(loaded, {})) => encoder(of, encoderInput(device, of.config, [ids])).readF32()
    expect(exceeds(await vector(), exact, bound)).toBeUndefined()
    for (const window of [config.window + 2, config.window - 1]) {
      expect(exceeds(await vector(changed(loaded, { window })), exact, bound)).toBeDefined()
    }
    expect(
      exceeds(await vector({ ...changed(loaded, {}), dense: loaded.dense.slice(0, 0) }), exact, bound),
    ).toBeDefined()
    const all = kinds.map(() => 'global' as const)
    expect(exceeds(await vector(changed(loaded, { layerTypes: all })), exact, bound)).toBeDefined()
  })
})

test('the two files load as one model', async () => {
  const device = await anyDevice()
  const vectors: Float32Array[] = []
  for (const file of [path.hf, path.gguf]) {
    using loaded = await GemmaModel.load(device, await openCheckpoint(file), { packedCache: false, weights: 'f32' })
    vectors.push(await encoder(loaded, encoderInput(device, loaded.config, texts)).readF32())
  }
  // 1 + w is added in f32 by the file's writer or by the norm: once each.
  expect(deviation(vectors[0]!, vectors[1]!).max).toBeLessThan(1e-5)
})

test('a text has its vector alone and in a batch, eager and captured', () =>
  forEachIsa(async (device) => {
    using loaded = await GemmaModel.load(device, await openCheckpoint(path.hf), { packedCache: false, weights: 'f32' })
    const together = await encoder(loaded, encoderInput(device, loaded.config, texts)).readF32()
    for (const [s, ids] of texts.entries()) {
      const alone = await encoder(loaded, encoderInput(device, loaded.config, [ids])).readF32()
      expect([...alone]).toEqual([...together.subarray(s * config.hiddenSize, (s + 1) * config.hiddenSize)])
    }
    const arrays = encoderArrays(loaded.config, texts)
    const names = ['ids', 'positions', 'starts', 'keyLow', 'keyHigh'] as const
    const specs = names.map((name) => ({ shape: [arrays[name].length], dtype: 'i32' as const }))
    using program = Program.capture(device, specs, (ids, positions, starts, keyLow, keyHigh) =>
      encoder(loaded, { ids, positions, starts, keyLow, keyHigh } as Parameters<typeof encoder>[1]),
    )
    const captured = program.run(...names.map((name) => Tensor.from(device, arrays[name])))
    expect(await captured.readF32()).toEqual(together)
  }))

test('a model of one kind is refused where the other is expected', async () => {
  const device = await anyDevice()
  const code = expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' })
  using generator = await GemmaModel.load(device, await openCheckpoint(oracleFolder('gemma1-tiny')), {
    packedCache: false,
  })
  using embedder = await GemmaModel.load(device, await openCheckpoint(path.gguf), { packedCache: false })
  expect(() => encoder(generator, encoderInput(device, generator.config, [[1]]))).toThrow(code)
  expect(() => logits(embedder, Tensor.zeros(device, [1, config.hiddenSize]))).toThrow(code)
})

test('layers after pooling that are not plain matrices are refused', async () => {
  const place = mkdtempSync(join(folder, 'broken-'))
  const device = await anyDevice()
  model.writeHf(place)
  const settings = `${place}/3_Dense/config.json`
  writeFileSync(settings, JSON.stringify({ bias: true }))
  const load = async () => GemmaModel.load(device, await openCheckpoint(place), { packedCache: false })
  await expect(load()).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_UNSUPPORTED',
    message: expect.stringContaining('3_Dense'),
  })
})
