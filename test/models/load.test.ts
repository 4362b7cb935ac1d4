/** Loading: files that do not fit their configuration, the packed cache in all its states, progress, abort, memory. */

import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Checkpoint, openCheckpoint, type StoredTensor } from '../../lib/checkpoint/checkpoint.ts'
import { dequantize, quantize, Tensor } from '../../lib/index.ts'
import { logits } from '../../lib/models/gemma/forward.ts'
import { type GemmaLoadOptions, GemmaModel } from '../../lib/models/gemma/load.ts'
import { headBlocks, joinBlocks, mapStored } from '../../lib/models/gemma/packing.ts'
import { anyDevice, forEachIsa } from '../support/devices.ts'
import { bundledModel, isFast, oracleFolder, tinyExpected, tinyFolder } from './fixtures.ts'
import { deviation } from './rounding.ts'
import { run } from './run.ts'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lapidary-load-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

const ids = tinyExpected().ids.subarray(0, 12)

async function load(checkpoint: Checkpoint, options: GemmaLoadOptions = {}): Promise<GemmaModel> {
  return GemmaModel.load(await anyDevice(), checkpoint, { packedCache: false, ...options })
}

describe('a checkpoint that does not fit is one error that names file, tensor and offset', () => {
  const open = () => openCheckpoint(oracleFolder('gemma3-text-tiny'))
  const withTensors = (checkpoint: Checkpoint, change: (tensors: Map<string, StoredTensor>) => void): Checkpoint => {
    const tensors = new Map(checkpoint.tensors)
    change(tensors)
    return { ...checkpoint, tensors }
  }
  const name = 'model.layers.2.self_attn.k_norm.weight'
  const matrix = 'model.layers.7.mlp.up_proj.weight'

  test.each([name, matrix, 'model.norm.weight', 'model.embed_tokens.weight'])('without %s', async (missing) => {
    const checkpoint = withTensors(await open(), (tensors) => tensors.delete(missing))
    const message = expect.stringContaining(missing.replace(/\.weight$/, ''))
    await expect(load(checkpoint)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_CORRUPT', message })
  })

  test.each([
    [name, [17]],
    [name, [4, 4]],
    [matrix, [48, 96]],
    ['model.embed_tokens.weight', [95, 48]],
  ])('%s of shape %j', async (wrong, shape) => {
    const checkpoint = withTensors(await open(), (tensors) => {
      tensors.set(wrong, { ...(tensors.get(wrong) as StoredTensor), shape })
    })
    const { offset } = checkpoint.tensors.get(wrong) as StoredTensor
    await expect(load(checkpoint)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_CORRUPT',
      message: expect.stringMatching(
        new RegExp(`model\\.safetensors.*${wrong}.*byte ${offset}: expected .*, got .*${shape.join(', ')}`),
      ),
    })
  })

  test.each([
    'model.layers.8.mlp.up_proj.weight',
    'model.layers.0.mlp.extra.weight',
    'model.layers.0.self_attn.q_proj.bias',
  ])('with %s', async (extra) => {
    const checkpoint = withTensors(await open(), (tensors) => {
      tensors.set(extra, { ...(tensors.get(name) as StoredTensor), name: extra })
    })
    await expect(load(checkpoint)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_CORRUPT',
      message: expect.stringMatching(new RegExp(`model\\.safetensors.*${extra}.*not part of`)),
    })
  })

  test('parts of other models and tied copies are passed over', async () => {
    const checkpoint = withTensors(await open(), (tensors) => {
      for (const other of ['lm_head.weight', 'vision_tower.x', 'model.layers.0.self_attn.rotary_emb.inv_freq']) {
        tensors.set(other, { ...(tensors.get(name) as StoredTensor), name: other })
      }
    })
    using model = await load(checkpoint)
    expect(model.layers.length).toBe(8)
  })

  test('a head of its own is used where the configuration says that it is not tied', async () => {
    const open4 = await open()
    const embedding = open4.tensors.get('model.embed_tokens.weight') as StoredTensor
    const other = open4.tensors.get('model.layers.0.mlp.up_proj.weight') as StoredTensor
    const untied = { ...open4.config, tie_word_embeddings: false }
    const headed = (config: Checkpoint['config'], head?: StoredTensor): Checkpoint => ({
      ...withTensors(open4, (tensors) => head && tensors.set('lm_head.weight', { ...head, name: 'lm_head.weight' })),
      config,
    })
    const last = async (checkpoint: Checkpoint) => {
      using model = await load(checkpoint)
      return (
        await run(
          model,
          ids.map((id) => id % 96),
        )
      ).logits
    }
    const tied = await last(open4)
    expect(await last(headed(untied, embedding))).toEqual(tied)
    expect(await last(headed(open4.config, { ...other, shape: embedding.shape }))).toEqual(tied)
    // The same bytes from a row further on.
    const shifted = { ...embedding, offset: other.offset }
    expect(await last(headed(untied, shifted))).not.toEqual(tied)
    // Nor does the packed cache of one serve the other.
    const packedCache = mkdtempSync(join(folder, 'untied-'))
    for (const config of [open4.config, untied]) (await load(headed(config, embedding), { packedCache })).dispose()
    expect(readdirSync(packedCache).length).toBe(2)
    const text = { ...open4.config, text_config: { tie_word_embeddings: false } }
    expect(await last(headed(text, shifted))).not.toEqual(tied)
    await expect(load(headed(untied))).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_CORRUPT',
      message: expect.stringMatching(/expected a tensor lm_head\.weight \[96, 48\]/),
    })
  })

  test('a vision tower inside a GGUF model is passed over', async () => {
    const checkpoint = withTensors(await openCheckpoint(bundledModel), (tensors) => {
      const any = tensors.get('output_norm.weight') as StoredTensor
      for (const other of ['v.patch_embedding.weight', 'mm.mm_soft_emb_norm.weight']) {
        tensors.set(other, { ...any, name: other })
      }
    })
    using model = await load(checkpoint)
    expect(model.layers.length).toBe(8)
  })

  test.each([name, matrix])('%s of a type that no kernel reads', async (wrong) => {
    const checkpoint = withTensors(await open(), (tensors) => {
      tensors.set(wrong, { ...(tensors.get(wrong) as StoredTensor), storedType: 'F8_E4M3', dtype: undefined })
    })
    await expect(load(checkpoint)).rejects.toMatchObject({
      code: 'ERR_CHECKPOINT_UNSUPPORTED',
      message: expect.stringMatching(new RegExp(`model\\.safetensors.*${wrong}.*F8_E4M3`)),
    })
  })

  test('norm weights of integers', async () => {
    const checkpoint = withTensors(await open(), (tensors) => {
      tensors.set(name, { ...(tensors.get(name) as StoredTensor), storedType: 'I32', dtype: 'i32' })
    })
    await expect(load(checkpoint)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_UNSUPPORTED' })
  })

  test('a file that became shorter after it was opened', async () => {
    const place = mkdtempSync(join(folder, 'short-'))
    cpSync(oracleFolder('gemma3-text-tiny'), place, { recursive: true })
    const checkpoint = await openCheckpoint(place)
    truncateSync(join(place, 'model.safetensors'), 100_000)
    await expect(load(checkpoint)).rejects.toMatchObject({ code: 'ERR_FILE' })
    const device = await anyDevice()
    await device.stream.synchronize().catch(() => {})
  })

  test('a failed load leaves nothing on the device', async () => {
    const device = await anyDevice()
    const before = device.memory()
    const checkpoint = withTensors(await open(), (tensors) => {
      const stored = tensors.get(matrix) as StoredTensor
      tensors.set(matrix, { ...stored, file: `${stored.file}.gone` })
    })
    await expect(load(checkpoint)).rejects.toMatchObject({ code: 'ERR_FILE' })
    // The call in flight keeps its tensors.
    await device.stream.synchronize()
    expect(device.memory()).toMatchObject({ buffers: before.buffers, bytes: before.bytes })
  })
})

describe('the packed cache', () => {
  /** A copy of the bundled model in a folder of its own. */
  function copy(): { path: string; place: string; files: () => string[] } {
    const place = mkdtempSync(join(folder, 'cache-'))
    const path = join(place, 'model.gguf')
    cpSync(bundledModel, path)
    return { path, place, files: () => readdirSync(place).filter((file) => file !== 'model.gguf') }
  }
  const cached = async (path: string, options: GemmaLoadOptions = {}) =>
    load(await openCheckpoint(path), { packedCache: true, ...options })
  const scores = async (model: GemmaModel) => (await run(model, ids, { kv: 'bf16' })).logits

  test.each(['stored', 'q4_0'] as const)('the second load reads what the first has written, head %s', (head) =>
    forEachIsa(async (device) => {
      const { path, files } = copy()
      const options = { packedCache: true, head }
      using plain = await GemmaModel.load(device, await openCheckpoint(path), { ...options, packedCache: false })
      const expected = await scores(plain)
      expect(plain).toMatchObject({ fromCache: false, cacheFile: undefined })
      expect(files()).toEqual([])
      for (const fromCache of [false, true, true]) {
        using model = await GemmaModel.load(device, await openCheckpoint(path), options)
        expect(model.fromCache).toBe(fromCache)
        expect(model.weightBytes).toBe(plain.weightBytes)
        expect(await scores(model)).toEqual(expected)
        expect(files().length).toBe(1)
        expect(basename(model.cacheFile ?? '')).toBe(files()[0])
      }
    }),
  )

  test('a small model is not cached by default, and none without being asked for', async () => {
    const { path, files } = copy()
    using model = await GemmaModel.load(await anyDevice(), await openCheckpoint(path))
    expect(model.fromCache).toBe(false)
    expect(files()).toEqual([])
  })

  test('in a folder of its own, models of one name do not meet', async () => {
    const [a, b] = [copy(), copy()]
    const caches = mkdtempSync(join(folder, 'caches-'))
    for (const { path } of [a, b]) (await cached(path, { packedCache: caches })).dispose()
    expect(readdirSync(caches).length).toBe(2)
    expect([...a.files(), ...b.files()]).toEqual([])
    for (const { path } of [a, b]) {
      using model = await cached(path, { packedCache: caches })
      expect(model.fromCache).toBe(true)
    }
  })

  test('heads of different formats have files of their own', async () => {
    const { path, files } = copy()
    for (const head of ['stored', 'q4_0', 'q8_0'] as const) (await cached(path, { head })).dispose()
    expect(files().length).toBe(3)
  })

  const damage: Record<string, (cache: string, model: string) => void> = {
    'the model has another time': (_, model) => utimesSync(model, 1_000_000_000, 1_000_000_000),
    'it is empty': (cache) => truncateSync(cache, 0),
    'it lacks its last byte': (cache) => truncateSync(cache, statSync(cache).size - 1),
    'it has a byte too many': (cache) => writeFileSync(cache, Buffer.concat([readFileSync(cache), Buffer.alloc(1)])),
    'it is cut in the middle': (cache) => truncateSync(cache, statSync(cache).size >> 1),
    'it is another file': (cache) => writeFileSync(cache, Buffer.alloc(100_000, 'x')),
    'its index is changed': (cache) => {
      const bytes = readFileSync(cache)
      bytes[bytes.length - 20]! ^= 1
      writeFileSync(cache, bytes)
    },
    'its checksum is changed': (cache) => {
      const bytes = readFileSync(cache)
      bytes[45]! ^= 1
      writeFileSync(cache, bytes)
    },
    'it is of another version': (cache) => {
      const bytes = readFileSync(cache)
      bytes[16]!++
      writeFileSync(cache, bytes)
    },
    'its index is said to be huge': (cache) => {
      const bytes = readFileSync(cache)
      bytes.writeBigUInt64LE(2n ** 63n, 32)
      writeFileSync(cache, bytes)
    },
    'it is a folder': (cache) => {
      rmSync(cache)
      mkdirSync(cache)
    },
  }
  test.each(Object.keys(damage))('is built anew where %s', async (what) => {
    const { path, files, place } = copy()
    const built = await cached(path)
    const expected = await scores(built)
    built.dispose()
    damage[what]!(join(place, files()[0]!), path)
    using model = await cached(path)
    expect(model.fromCache).toBe(false)
    expect(await scores(model)).toEqual(expected)
    expect(files().length).toBe(1)
    if (what === 'it is a folder') return
    using again = await cached(path)
    expect(again.fromCache).toBe(true)
    expect(await scores(again)).toEqual(expected)
  })

  // Root may write anywhere: there the folder is a file.
  test('where it cannot be written, the model loads without it', async () => {
    const { path, place, files } = copy()
    const nowhere = join(place, 'model.gguf', 'caches')
    using model = await cached(path, { packedCache: nowhere })
    expect(model).toMatchObject({ fromCache: false, cacheFile: undefined })
    chmodSync(place, 0o500)
    using second = await cached(path)
    chmodSync(place, 0o700)
    expect(await scores(second)).toEqual(await scores(model))
    expect(files().filter((file) => file.endsWith('.partial'))).toEqual([])
  })

  test('what a killed process left is removed in time', async () => {
    const { path, place, files } = copy()
    ;(await cached(path)).dispose()
    const [cache] = files() as [string]
    rmSync(join(place, cache))
    const [old, fresh] = [`${cache}.1-x.partial`, `${cache}.2-x.partial`]
    for (const partial of [old, fresh]) writeFileSync(join(place, partial), 'x')
    utimesSync(join(place, old), 1_000_000_000, 1_000_000_000)
    ;(await cached(path)).dispose()
    expect(files().sort()).toEqual([cache, fresh])
    // A start that finds a cache writes none, and may be the last one.
    writeFileSync(join(place, old), 'x')
    utimesSync(join(place, old), 1_000_000_000, 1_000_000_000)
    using found = await cached(path)
    expect(found.fromCache).toBe(true)
    expect(files().sort()).toEqual([cache, fresh])
  })

  test('a folder that is named and missing is made', async () => {
    const { path, place } = copy()
    const packedCache = join(place, 'new', 'caches')
    ;(await cached(path, { packedCache })).dispose()
    using model = await cached(path, { packedCache })
    expect(model.fromCache).toBe(true)
  })

  test('an abort ends the load and leaves no file', async () => {
    const { path, files } = copy()
    const controller = new AbortController()
    const device = await anyDevice()
    const before = device.memory()
    const onProgress = (done: number, total: number) => {
      if (done > total / 2) controller.abort('enough')
    }
    const loading = cached(path, { onProgress, signal: controller.signal })
    await expect(loading).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' })
    expect(files()).toEqual([])
    await device.stream.synchronize()
    expect(device.memory()).toMatchObject({ buffers: before.buffers, bytes: before.bytes })
    await expect(cached(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
    ;(await cached(path)).dispose()
    await expect(cached(path, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_ABORTED' })
  })

  test('progress rises to the whole, packed or read', async () => {
    const { path } = copy()
    for (const fromCache of [false, true]) {
      const seen: [number, number][] = []
      using model = await cached(path, { onProgress: (done, total) => seen.push([done, total]) })
      expect(model.fromCache).toBe(fromCache)
      expect(seen.length).toBeGreaterThan(30)
      for (const [index, [done, total]] of seen.entries()) {
        expect(done).toBeGreaterThan(seen[index - 1]?.[0] ?? 0)
        expect(total).toBe(seen[0]![1])
      }
      expect(seen.at(-1)![0]).toBe(seen[0]![1])
    }
  })
})

describe('the head', () => {
  const bytes = (values: Float32Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength)

  test.each(['stored', 'q8_0', 'q4_0', 'f32'] as const)('in %s, made of blocks as it would be whole', (format) =>
    forEachIsa(async (device) => {
      const { tensors } = await openCheckpoint(tinyFolder)
      const stored = tensors.get('model.embed_tokens.weight') as StoredTensor
      using mapped = mapStored(device, stored)
      using rounded = format === 'q8_0' || format === 'q4_0' ? quantize(mapped, { format }) : mapped
      const expected = await dequantize(rounded).readF32()
      // 4096 rows: one block, an even number, one that leaves a single row of blocks over, and an uneven end.
      for (const rows of isFast ? [1360] : [8192, 1024, 448, 1360]) {
        using head = joinBlocks(headBlocks(device, stored, format, rows))
        expect(head).toMatchObject({ shape: [4096, 256], layout: 'panels' })
        expect(Buffer.compare(bytes(await dequantize(head).readF32()), bytes(expected))).toBe(0)
      }
    }),
  )

  test('refinement takes the largest logits from the stored matrix', async () => {
    const device = await anyDevice()
    using exact = await load(await openCheckpoint(tinyFolder), { weights: 'f32' })
    const hidden = async (model: GemmaModel, refine: number) => {
      using rounded = await load(await openCheckpoint(tinyFolder), { head: 'q4_0', refine })
      expect(rounded.refinement?.top).toBe(refine || undefined)
      const rows = (await run(model, ids, { watch: true })).hidden.at(-1)!
      using x = Tensor.from(device, Float32Array.from(rows), [ids.length, 256])
      return [await logits(rounded, x).readF32(), await logits(exact, x).readF32()] as const
    }
    const [refined, expected] = await hidden(exact, 64)
    const [coarse] = await hidden(exact, 0)
    for (let row = 0; row < ids.length; row++) {
      const of = (values: Float32Array) => values.subarray(row * 4096, (row + 1) * 4096)
      const best = [...of(expected).keys()].sort((a, b) => of(expected)[b]! - of(expected)[a]!).slice(0, 8)
      const pick = (values: Float32Array) => best.map((id) => of(values)[id]!)
      expect(deviation(pick(refined), pick(expected)).max).toBeLessThan(1e-4)
      expect(deviation(pick(coarse), pick(expected)).max).toBeGreaterThan(1e-3)
    }
  })

  test.each([
    [{ head: 'q5_0' as 'q4_0' }, /head: expected stored, q8_0, q4_0, got q5_0/],
    [{ head: 'q4_0' } as const, /hidden size that is no multiple of 32 \(48\)/],
    [{ refine: -1 }, /refine/],
    [{ activations: 'f16' as 'bf16' }, /activations/],
    [{ weights: 'bf16' as 'f32' }, /weights/],
  ])('options %j are refused', async (options, message) => {
    const loading = load(await openCheckpoint(oracleFolder('gemma2-tiny')), options)
    await expect(loading).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    })
  })
})

test.skipIf(isFast)('a disposed model releases its memory', async () => {
  const device = await anyDevice()
  const before = device.memory()
  const model = await load(await openCheckpoint(bundledModel))
  expect(device.memory().bytes).toBeGreaterThan(model.weightBytes)
  model.dispose()
  model.dispose()
  await device.stream.synchronize()
  expect(device.memory()).toMatchObject({ buffers: before.buffers, bytes: before.bytes })
})
