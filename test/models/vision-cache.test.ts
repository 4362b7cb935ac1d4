/** The packed cache of a vision tower: written by the first load, read by the second, never where it does not fit. */

import {
  cpSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { type Device, Gemma, Tensor } from '../../lib/index.ts'
import { GemmaModel } from '../../lib/models/gemma/load.ts'
import { hfVisionConfig } from '../../lib/models/siglip/config.ts'
import { visionTower } from '../../lib/models/siglip/forward.ts'
import { type VisionLoadOptions, VisionModel } from '../../lib/models/siglip/load.ts'
import { visionWeights } from '../../lib/models/siglip/weights.ts'
import { tower, writeHf } from '../engine/vision-model.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { Random } from '../support/random.ts'
import { oracleFile } from './fixtures.ts'

const hiddenSize = 48
const suffix = /\.lapidary-r\d+v\d+-vision$/

let root: string
beforeAll(() => {
  root = mkdtempSync(path.join(tmpdir(), 'lapidary-vision-cache-'))
})
afterAll(() => rmSync(root, { recursive: true }))

function copy(): { place: string; caches: () => string[] } {
  const place = mkdtempSync(path.join(root, 'model-'))
  cpSync(oracleFile('gemma3-vl-tiny'), place, { recursive: true })
  const own = new Set(readdirSync(place))
  return { place, caches: () => readdirSync(place).filter((name) => !own.has(name)) }
}

async function load(device: Device, place: string, options: VisionLoadOptions = {}): Promise<VisionModel> {
  const checkpoint = await openCheckpoint(place)
  const config = hfVisionConfig(checkpoint, hiddenSize)!
  return VisionModel.load(device, config, visionWeights(checkpoint, config), { packedCache: true, ...options })
}

async function softTokens(device: Device, { tensors }: VisionModel): Promise<Float32Array> {
  const { patchesPerSide, patchSize } = tensors.config
  const values = Float32Array.from(
    Random.named('pixels').normal('f32', [patchesPerSide ** 2, 3 * patchSize ** 2]).values,
  )
  using patches = Tensor.from(device, values, [patchesPerSide ** 2, 3 * patchSize ** 2])
  using soft = visionTower(tensors, patches)
  return (await soft.read()) as Float32Array
}

test('the second load reads what the first has written, and computes the same', () =>
  forEachIsa(async (device) => {
    const { place, caches } = copy()
    using plain = await load(device, place, { packedCache: false })
    expect(plain).toMatchObject({ fromCache: false, cacheFile: undefined })
    expect(caches()).toEqual([])
    const expected = await softTokens(device, plain)
    for (const fromCache of [false, true, true]) {
      using tower = await load(device, place)
      expect(tower).toMatchObject({ fromCache, weightBytes: plain.weightBytes })
      expect(await softTokens(device, tower)).toEqual(expected)
      expect(caches()).toEqual([path.basename(tower.cacheFile!)])
      expect(caches()[0]).toMatch(suffix)
    }
  }))

test('the text half and widened weights have files of their own', async () => {
  const device = await anyDevice()
  const { place, caches } = copy()
  ;(await load(device, place)).dispose()
  ;(await load(device, place, { weights: 'f32' })).dispose()
  ;(await GemmaModel.load(device, await openCheckpoint(place), { packedCache: true })).dispose()
  expect(caches().length).toBe(3)
  using tower = await load(device, place, { weights: 'f32' })
  using text = await GemmaModel.load(device, await openCheckpoint(place), { packedCache: true })
  expect([tower.fromCache, text.fromCache]).toEqual([true, true])
})

test('a small tower is not cached by default', async () => {
  const { place, caches } = copy()
  using tower = await load(await anyDevice(), place, { packedCache: undefined })
  expect(tower.fromCache).toBe(false)
  expect(caches()).toEqual([])
})

const damage: Record<string, (cache: string, model: string) => void> = {
  'the tower’s file has another time': (_, model) => utimesSync(model, 1_000_000_000, 1_000_000_000),
  'it is cut': (cache) => truncateSync(cache, 5000),
  'its index is changed': (cache) => {
    const bytes = readFileSync(cache)
    bytes[bytes.length - 5]! ^= 1
    writeFileSync(cache, bytes)
  },
  'it is that of a text model': (cache) => {
    const [text] = readdirSync(path.dirname(cache)).filter((name) => /-head-|-stored$/.test(name))
    renameSync(path.join(path.dirname(cache), text!), cache)
  },
  'it lacks a matrix': (cache) => writeFileSync(cache, withoutMatrix(readFileSync(cache))),
}

/** The index with a name changed: as a version that named its matrices otherwise would have written it. */
function withoutMatrix(bytes: Buffer): Buffer {
  const at = bytes.lastIndexOf('layers.0.down')
  bytes.write('layers.0.DOWN', at)
  return bytes
}

test.each(Object.entries(damage))('it is packed anew where %s', async (_, harm) => {
  const device = await anyDevice()
  const { place, caches } = copy()
  using first = await load(device, place)
  ;(await GemmaModel.load(device, await openCheckpoint(place), { packedCache: true, head: 'stored' })).dispose()
  const expected = await softTokens(device, first)
  harm(first.cacheFile!, path.join(place, 'model.safetensors'))
  for (const fromCache of [false, true]) {
    using tower = await load(device, place)
    expect(tower.fromCache).toBe(fromCache)
    expect(await softTokens(device, tower)).toEqual(expected)
  }
  expect(caches().filter((name) => name.endsWith('.partial'))).toEqual([])
})

test('a load that is given up leaves neither a file nor memory', async () => {
  const device = await anyDevice()
  const { place, caches } = copy()
  const before = device.memory()
  for (const written of [false, true]) {
    if (written) (await load(device, place)).dispose()
    const signal = AbortSignal.abort(new Error('enough'))
    await expect(load(device, place, { signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    await device.stream.synchronize()
    expect(device.memory()).toMatchObject({ buffers: before.buffers, bytes: before.bytes })
    expect(caches().length).toBe(written ? 1 : 0)
  }
})

test('Gemma.load passes the option on, and info says where the tower came from', async () => {
  const place = writeHf(mkdtempSync(path.join(root, 'chat-')))
  const { imageSize } = tower
  const image = { data: new Uint8Array(imageSize ** 2 * 3).fill(99), width: imageSize, height: imageSize }
  for (const fromCache of [false, true]) {
    await using gemma = await Gemma.load(place, { device: await anyDevice(), contextLength: 256, packedCache: true })
    expect(gemma.info().vision).toMatchObject({ weightBytes: 0, fromCache: false })
    await gemma.encodeImage(image)
    expect(gemma.info().vision?.weightBytes).toBeGreaterThan(0)
    expect(gemma.info().vision?.fromCache).toBe(fromCache)
  }
})
