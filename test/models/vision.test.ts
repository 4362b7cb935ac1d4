/** Gemma 3's vision tower against the oracle: states, soft tokens, on every instruction set. */

import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import type { ImageRun } from '../../lib/engine/image-runs.ts'
import { KvCache } from '../../lib/engine/kv-cache.ts'
import { StepRunner } from '../../lib/engine/step-runner.ts'
import { type Device, Program, Tensor } from '../../lib/index.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { hfVisionConfig, type VisionConfig } from '../../lib/models/siglip/config.ts'
import { patchOrder, visionTower } from '../../lib/models/siglip/forward.ts'
import { VisionModel } from '../../lib/models/siglip/load.ts'
import { imagePatches } from '../../lib/models/siglip/patches.ts'
import { visionWeights } from '../../lib/models/siglip/weights.ts'
import { compare } from '../support/compare.ts'
import { anyDevice, cuda, cudaFor, forEachDevice, forEachIsa } from '../support/devices.ts'
import { oracleFile } from './fixtures.ts'
import { readSafetensors } from './safetensors.ts'

/** Of states and soft tokens in f32. */
const tolerance = 2e-4

const folder = oracleFile('gemma3-vl-tiny')
const io = readSafetensors(`${folder}/io.safetensors`)
const hiddenSize = 48

async function load(device: Device): Promise<VisionModel> {
  const checkpoint = await openCheckpoint(folder)
  const config = hfVisionConfig(checkpoint, hiddenSize)!
  return VisionModel.load(device, config, visionWeights(checkpoint, config))
}

/** The oracle's pixel_values [images, 3, size, size] of one image, cut into patches by the formula. */
function patchesOf(config: VisionConfig, image: number): Float32Array {
  const { imageSize, patchSize, patchesPerSide } = config
  const pixels = io.get('pixel_values')!.values
  const patches: number[] = []
  for (const patch of patchOrder(config)) {
    const [row, column] = [Math.floor(patch / patchesPerSide), patch % patchesPerSide]
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < patchSize; y++) {
        for (let x = 0; x < patchSize; x++) {
          const at = ((image * 3 + c) * imageSize + row * patchSize + y) * imageSize + column * patchSize + x
          patches.push(pixels[at]!)
        }
      }
    }
  }
  return Float32Array.from(patches)
}

function upload(device: Device, config: VisionConfig, image: number): Tensor {
  const values = patchesOf(config, image)
  return Tensor.from(device, values, [config.patchesPerSide ** 2, values.length / config.patchesPerSide ** 2])
}

/** What tower and model are made of: a CUDA device with all of them is visited too. */
// biome-ignore format: a list
const ops = ['add', 'layer_norm', 'gelu', 'mean_rows', 'embedding', 'rms_norm', 'add_rms_norm', 'geglu', 'softcap', 'pack_weights',
  'stack_weights', 'matmul', 'qk_norm_rope', 'flash_attention', 'cast', 'sample', 'log_probs']

const failures = (got: ArrayLike<number>, expected: ArrayLike<number>) =>
  compare(got, expected, new Float64Array(expected.length).fill(tolerance)).failures

test.skipIf(!cuda.family)(`a CUDA device is visited too (${cuda.missing ?? cuda.family})`, () => {
  expect(cudaFor(ops)).toBe(cuda.family)
})

describe('gemma3-vl-tiny: vision', () => {
  test.each([0, 1])('states and soft tokens of image %i', (image) =>
    forEachDevice(ops, async (device) => {
      using tower = await load(device)
      const model = tower.tensors
      const { config } = model
      expect(model.activations).toBe('f32')
      let states: Promise<Float32Array> | undefined
      using soft = visionTower(model, upload(device, config, image), (layer, tensor) => {
        if (layer === config.layers) states = tensor.read() as Promise<Float32Array>
      })
      const rows = patchOrder(config)
      const ordered = await states!
      const raster = new Float64Array(ordered.length)
      for (const [at, patch] of rows.entries()) {
        raster.set(ordered.subarray(at * config.width, (at + 1) * config.width), patch * config.width)
      }
      const size = raster.length
      expect(failures(raster, io.get('vision_last_hidden')!.values.subarray(image * size, (image + 1) * size))).toBe(0)
      const features = (await soft.read()) as Float32Array
      const expected = io.get('image_features')!.values.subarray(image * features.length, (image + 1) * features.length)
      expect(failures(features, expected)).toBe(0)
    }),
  )

  test('captured as a program it gives the same bits', () =>
    forEachDevice(ops, async (device) => {
      using tower = await load(device)
      const model = tower.tensors
      using patches = upload(device, model.config, 1)
      using eager = visionTower(model, patches)
      using program = Program.capture(device, [{ shape: patches.shape, dtype: 'f32' }], (x) => visionTower(model, x))
      expect(await program.execute(patches)).toEqual(await eager.read())
    }))

  test.each([
    ['raster order in place of the order of soft tokens', { poolSize: 1 }],
    ['another norm before the projection', { softNormBias: 0 as const }],
    ['another epsilon', { normEps: 1e-2 }],
  ])('fails with %s', async (_, change) => {
    const device = await anyDevice()
    using tower = await load(device)
    const model = tower.tensors
    // A pool of 1 changes the order of patches only: the positions stay those of the right one.
    using patches = upload(device, { ...model.config, ...change }, 0)
    const wrong = { ...model, config: { ...model.config, ...change } }
    using soft = visionTower(wrong, patches)
    const features = (await soft.read()) as Float32Array
    expect(failures(features, io.get('image_features')!.values.subarray(0, features.length))).toBeGreaterThan(0)
  })

  test('pixels become normalised patches', () => {
    const config = {
      imageSize: 4,
      patchSize: 2,
      patchesPerSide: 2,
      poolSize: 1,
      mean: [0.5, 0, 0.25],
      std: [0.5, 1, 2],
    }
    const pixels = Uint8Array.from({ length: 48 }, (_, i) => (i * 37) % 256)
    const patches = imagePatches(pixels, config as unknown as VisionConfig)
    const expected = new Float64Array(48)
    for (let p = 0; p < 4; p++)
      for (let c = 0; c < 3; c++)
        for (let y = 0; y < 2; y++)
          for (let x = 0; x < 2; x++) {
            const pixel = pixels[((Math.floor(p / 2) * 2 + y) * 4 + (p % 2) * 2 + x) * 3 + c]!
            expected[((p * 3 + c) * 2 + y) * 2 + x] = (pixel / 255 - config.mean[c]!) / config.std[c]!
          }
    expect(failures(patches, expected)).toBe(0)
    expect(() => imagePatches(pixels.subarray(3), config as unknown as VisionConfig)).toThrow(/4 × 4 × 3 bytes, got 45/)
  })

  test('patches of another image size are an error', async () => {
    const device = await anyDevice()
    using model = await load(device)
    using patches = Tensor.zeros(device, [15, 588])
    expect(() => visionTower(model.tensors, patches)).toThrow(/expected \[16, 588\], got \[15, 588\]/)
  })
})

describe('gemma3-vl-tiny: text and images', () => {
  const ids = Int32Array.from(io.get('input_ids')!.values)
  const types = io.get('token_type_ids')!.values
  const runs: ImageRun[] = []
  for (let at = 0; at < ids.length; at++) {
    if (types[at] !== 1) continue
    const start = at
    while (types[at] === 1) at++
    const soft = io
      .get('image_features')!
      .values.subarray(runs.length * 4 * hiddenSize, (runs.length + 1) * 4 * hiddenSize)
    runs.push({ start, end: at, soft: Float32Array.from(soft) })
  }
  const prompt = ids.map((id, at) => (types[at] === 1 ? -7 : id))

  /** Logits of all tokens through the engine's own steps, cut at these positions. */
  async function logits(device: Device, cuts: readonly number[], images: readonly ImageRun[]): Promise<Float64Array> {
    using model = await GemmaModel.load(device, await openCheckpoint(folder), { packedCache: false })
    const sizes = { contextLength: 32, chunk: 24, maxSequences: 1, pageTokens: 4, prefixCache: false, cacheTokens: 32 }
    using cache = new KvCache(device, model.config, { ...sizes, dtype: 'f32' })
    using runner = new StepRunner(device, device.stream, model, cache, 1)
    const pages = cache.pages.open()
    const rows: number[] = []
    let start = 0
    for (const end of [...cuts, prompt.length]) {
      const part = { pages, start, count: end - start, promptLength: prompt.length, images }
      expect(pages.reserve(start, part.count)).toBe(true)
      rows.push(...(await runner.score(prompt, part, 'logits', part.count)).values)
      start = end
    }
    return Float64Array.from(rows)
  }

  test('the oracle has two images of four soft tokens', () => {
    expect(runs.map(({ start, end }) => end - start)).toEqual([4, 4])
  })

  const [first, second] = runs as [ImageRun, ImageRun]
  test.each([
    ['in one step', []],
    ['in steps that end before, between and after the images', [first.start, first.end, second.start, second.end]],
    ['in steps of about a page', [second.start].concat(20).filter((cut) => cut < prompt.length)],
  ])('logits %s', (_, cuts) =>
    forEachDevice(ops, async (device) => {
      expect(failures(await logits(device, cuts, runs), io.get('logits')!.values)).toBe(0)
    }),
  )

  test('however they are cut into steps, the bits are the same', () =>
    forEachDevice(ops, async (device) => {
      const whole = await logits(device, [], runs)
      expect(await logits(device, [first.start, first.end, second.start], runs)).toEqual(whole)
    }))

  test.each([
    ['images that see only what is before them', (run: ImageRun) => oneByOne(run)],
    [
      'soft tokens with the factor of embeddings',
      (run: ImageRun) => [{ ...run, soft: run.soft.map((x) => x * 6.928) }],
    ],
  ])('fails with %s', async (_, change) => {
    const got = await logits(await anyDevice(), [], runs.flatMap(change))
    expect(failures(got, io.get('logits')!.values)).toBeGreaterThan(0)
  })

  test('fails with images exchanged', async () => {
    const exchanged = [
      { ...first, soft: second.soft },
      { ...second, soft: first.soft },
    ]
    expect(failures(await logits(await anyDevice(), [], exchanged), io.get('logits')!.values)).toBeGreaterThan(0)
  })
})

/** Each soft token an image of its own. */
function oneByOne({ start, end, soft }: ImageRun): ImageRun[] {
  return Array.from({ length: end - start }, (_, index) => ({
    start: start + index,
    end: start + index + 1,
    soft: soft.subarray(index * hiddenSize, (index + 1) * hiddenSize),
  }))
}

test('with activations in bf16 the soft tokens differ by what rounding explains', () =>
  forEachIsa(async (device) => {
    const checkpoint = await openCheckpoint(folder)
    const config = hfVisionConfig(checkpoint, hiddenSize)!
    using tower = await VisionModel.load(device, config, visionWeights(checkpoint, config), { activations: 'bf16' })
    using patches = upload(device, config, 0)
    using soft = visionTower(tower.tensors, patches)
    const got = (await soft.read()) as Float32Array
    const expected = io.get('image_features')!.values
    let difference = 0
    let size = 0
    for (const [i, value] of got.entries()) {
      difference += (value - expected[i]!) ** 2
      size += expected[i]! ** 2
    }
    // Six tensors are rounded in each layer, by at most 2⁻⁹ of their size.
    expect(Math.sqrt(difference / size)).toBeLessThan(6 * config.layers * 2 ** -9)
    expect(difference).toBeGreaterThan(0)
  }))
