/** Memory of keys and values: the published table, and what an engine sets aside. */

import { describe, expect, test } from 'vitest'
import { kvBytesPerToken, kvMemory } from '../../lib/engine/kv-cache.ts'
import { KvPages, tableWidths } from '../../lib/engine/kv-pages.ts'
import { PagePool } from '../../lib/engine/page-pool.ts'
import type { LayerType } from '../../lib/models/gemma/config.ts'
import { type GemmaSizeName, gemmaSizes } from '../../lib/models/gemma/sizes.ts'
import { throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { loadBundled } from './models.ts'

const configOf = (name: GemmaSizeName) => {
  const { layers, period, kvHeads, headDim, window } = gemmaSizes[name]
  const layerTypes = Array.from({ length: layers }, (_, i): LayerType => ((i + 1) % period === 0 ? 'global' : 'local'))
  return { layerTypes, kvHeads, headDim, window }
}

// KiB per token were all layers global, then MiB at contexts of 8K, 32K and 128K: all global, and with windows.
const table: [GemmaSizeName, number, ...([number, number] | undefined)[]][] = [
  ['gemma-2-2b', 104, [832, 624], [3328, 1872]],
  ['gemma-2-9b', 336, [2688, 2016], [10752, 6048]],
  ['gemma-2-27b', 368, [2944, 2208], [11776, 6624]],
  ['gemma-3-270m', 18, [144, 32], [576, 104]],
  ['gemma-3-1b', 26, [208, 43], [832, 139]],
  ['gemma-3-4b', 136, [1088, 276], [4352, 756], [17408, 2676]],
  ['gemma-3-12b', 384, [3072, 832], [12288, 2368], [49152, 8512]],
  ['gemma-3-27b', 496, [3968, 1056], [15872, 2976], [63488, 10656]],
]

test.each(table)('%s', (name, perToken, ...columns) => {
  const config = configOf(name)
  for (const [index, expected] of columns.entries()) {
    if (!expected) continue
    const memory = kvMemory(config, 8192 * 4 ** index, 'bf16')
    expect(memory.bytesPerToken).toBe(perToken * 2 ** 10)
    // The table is in whole MiB.
    expect([memory.allGlobal, memory.windowed].map((bytes) => Math.round(bytes / 2 ** 20))).toEqual(expected)
  }
})

test('formats: f32 is twice bf16, i8 half of it and a scale per row', () => {
  const shape = { kvHeads: 4, headDim: 256 }
  expect(kvBytesPerToken(shape, 'bf16')).toBe(2 * 4 * 256 * 2)
  expect(kvBytesPerToken(shape, 'f32')).toBe(2 * 4 * 256 * 4)
  expect(kvBytesPerToken(shape, 'i8')).toBe(2 * 4 * (256 + 4))
})

test('a ring is wide enough wherever a step begins, and no wider than it must be', () => {
  for (const pageTokens of [1, 2, 3, 8]) {
    for (const window of [1, 2, 7, 8, 9]) {
      for (const chunk of [1, 5, 8, 16]) {
        const { local } = tableWidths({ pageTokens, window, chunk, contextLength: 1000 })
        const step = Math.max(chunk, pageTokens)
        let most = 0
        for (let start = 0; start < 100; start++) {
          const kept = Math.floor(start / pageTokens) * pageTokens
          const first = Math.floor(Math.max(0, kept - window + 1) / pageTokens)
          most = Math.max(most, Math.floor((start + step - 1) / pageTokens) - first + 1)
        }
        expect(local).toBeGreaterThanOrEqual(most)
        expect(local).toBeLessThanOrEqual(most + 1)
      }
    }
  }
})

test('a context shorter than a ring needs no ring', () => {
  expect(tableWidths({ pageTokens: 8, window: 512, chunk: 512, contextLength: 60 })).toEqual({ global: 8, local: 8 })
  expect(tableWidths({ pageTokens: 8, window: 0, chunk: 512, contextLength: 60 })).toEqual({ global: 8, local: 0 })
})

test('memory in use grows with what is computed, and the window bounds it', async () => {
  await using gemma = await loadBundled({ pageTokens: 32, prefixCache: false })
  const { used, reserved } = gemma.info().cache
  expect(used).toBe(0)
  expect(reserved).toBeGreaterThan(gemma.info().kvMemory.windowed)
  const measured: number[] = []
  for (const tokens of [100, 1000, 2000]) {
    const generation = gemma.stream(new Int32Array(tokens).fill(300), { temperature: 0, stopTokens: [] })
    await generation[Symbol.asyncIterator]().next()
    measured.push(gemma.info().cache.used)
    generation.cancel()
    await generation.result
    expect(gemma.info().cache.used).toBe(0)
  }
  // Seven local layers and a global one: beyond the window and the chunk only the global layer grows.
  const token = kvBytesPerToken(gemma.config, 'bf16')
  expect(measured[2]! - measured[1]!).toBeLessThanOrEqual(token * (1000 + 32) + 7 * 32 * token)
  expect(measured[2]!).toBeLessThan(gemma.info().kvMemory.allGlobal / 2)
})

describe('pages', () => {
  test('of a pool are shared, counted, and given out lowest first', () => {
    const pool = new PagePool(3)
    expect([pool.take(), pool.take()]).toEqual([0, 1])
    pool.retain(0)
    pool.release(0)
    expect([pool.references(0), pool.free]).toEqual([1, 1])
    pool.release(0)
    expect([pool.take(), pool.take(), pool.take()]).toEqual([0, 2, -1])
    throwsCode(() => new PagePool(1).release(0), 'ERR_INTERNAL')
    throwsCode(() => new PagePool(1).retain(5), 'ERR_INTERNAL')
  })

  test.each([1, 2, 3, 4])('of random sequences, adopted, published and let go, always add up: seed %i', (seed) => {
    const random = Random.named(`pages ${seed}`)
    const pageTokens = random.pick([1, 2, 4])
    const window = random.pick([0, 1, 5, 12])
    const options = { pageTokens, window, contextLength: 64, chunk: 8, prefixCache: true }
    const pages = new KvPages({
      ...options,
      globalPages: Math.ceil(150 / pageTokens),
      localPages: Math.ceil(120 / pageTokens),
    })
    interface Live {
      tokens: Int32Array
      computed: number
      pages: ReturnType<KvPages['open']>
    }
    const live: Live[] = []
    for (let round = 0; round < 400; round++) {
      const pick = random.integer(0, live.length + 2)
      const one = live[pick]
      if (!one) {
        // Few tokens, so that histories meet.
        const tokens = Int32Array.from({ length: random.integer(1, 60) }, () => random.integer(0, 2))
        const table = pages.open()
        live.push({ tokens, computed: table.adopt(tokens), pages: table })
      } else if (one.computed < one.tokens.length && random.integer(0, 6) > 0) {
        const count = random.integer(1, Math.min(8, one.tokens.length - one.computed) + 1)
        if (one.pages.reserve(one.computed, count)) {
          one.computed += count
          one.pages.passed(one.tokens, one.computed)
        } else {
          one.pages.release()
          live.splice(pick, 1)
        }
      } else {
        one.pages.publish(one.tokens, one.computed)
        one.pages.release()
        live.splice(pick, 1)
      }
      // Every page is held by exactly those who know it.
      const counts = new Map<number, number>()
      for (const { pages: table, computed } of live) {
        for (let page = 0; page < Math.ceil(computed / pageTokens); page++) {
          counts.set(table.global[page]!, (counts.get(table.global[page]!) ?? 0) + 1)
        }
      }
      for (const [page, holders] of counts) expect(pages.globalPool.references(page)).toBeGreaterThanOrEqual(holders)
    }
    for (const { pages: table } of live) table.release()
    const { global, local } = pages.prefixes!.size
    expect([pages.globalPool.free + global, pages.localPool.free + local]).toEqual([
      pages.globalPool.count,
      pages.localPool.count,
    ])
    pages.prefixes!.clear()
    expect([pages.globalPool.free, pages.localPool.free]).toEqual([pages.globalPool.count, pages.localPool.count])
  })
})
