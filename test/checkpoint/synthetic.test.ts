import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Checkpoint, openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { storedBytes } from '../../lib/checkpoint/gguf-writer.ts'
import { type Device, dequantize, Tensor } from '../../lib/index.ts'
import { gemmaConfig } from '../../lib/models/gemma/config.ts'
import { type GemmaSizeName, gemmaSizes } from '../../lib/models/gemma/sizes.ts'
import { Pools, type SyntheticType, writeSynthetic } from '../../lib/models/gemma/synthetic.ts'
import { syntheticVocabulary } from '../../lib/models/gemma/synthetic-vocabulary.ts'
import { modelWeights } from '../../lib/models/gemma/weights.ts'
import { anyDevice } from '../support/devices.ts'
import { rejectsCode } from '../support/errors.ts'

const folder = mkdtempSync(join(tmpdir(), 'lapidary-synthetic-'))
let device: Device
beforeAll(async () => {
  device = await anyDevice()
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('published sizes', () => {
  // Millions of parameters: embedding, and all others. Gemma 3: the report's table 1. Gemma 2: its report's table 2. Gemma 1: its
  // report's table 2 (the tied embedding counted once).
  test.each<[GemmaSizeName, number, number]>([
    ['gemma-1-2b', 524.3, 1981.9],
    ['gemma-1-7b', 786.4, 7751.2],
    ['gemma-2-2b', 590.1, 2024.5],
    ['gemma-2-9b', 917.9, 8324.2],
    ['gemma-2-27b', 1180.2, 26047.5],
    ['gemma-3-1b', 302, 698],
    ['gemma-3-4b', 675, 3209],
    ['gemma-3-12b', 1012, 10759],
    ['gemma-3-27b', 1416, 25600],
  ])('%s has as many parameters as its report says', (name, embedding, others) => {
    const { layers, hiddenSize, ffnSize, queryHeads, kvHeads, headDim, vocabularySize, architecture } = gemmaSizes[name]
    const norms =
      architecture === 'gemma' ? 2 * hiddenSize : 4 * hiddenSize + (architecture === 'gemma3' ? 2 * headDim : 0)
    const attention = 2 * (queryHeads + kvHeads) * headDim * hiddenSize
    const parameters = layers * (attention + 3 * hiddenSize * ffnSize + norms) + hiddenSize
    // The reports count an embedding padded by some rows, and round to a million.
    expect(Math.abs((vocabularySize * hiddenSize) / 1e6 - embedding)).toBeLessThan(1 + 0.006 * embedding)
    expect(Math.abs(parameters / 1e6 - others)).toBeLessThan(1 + 0.002 * others)
  })
})

describe('a synthetic checkpoint', () => {
  const path = join(folder, '270m.gguf')
  const options = { size: 'gemma-3-270m', type: 'q4_0', headType: 'q4_0', layers: 2, seed: 5 } as const

  test('is a model of its size, and the same bytes for the same seed', async () => {
    const progress: number[] = []
    const size = await writeSynthetic(path, { ...options, onProgress: (done) => progress.push(done) })
    const bytes = readFileSync(path)
    expect(bytes).toHaveLength(size)
    expect(progress.length).toBeGreaterThan(10)
    const checkpoint = await openCheckpoint(path)
    const config = gemmaConfig(checkpoint)
    const { layers: _, positionDivisor, queryScalar, period, ...published } = gemmaSizes['gemma-3-270m']
    expect(config).toMatchObject({ ...published, layers: 2, layerTypes: ['local', 'local'], normBias: 0 })
    expect(config.queryScale).toBeCloseTo(queryScalar ** -0.5, 12)
    expect([positionDivisor, period]).toEqual([1, 6])
    expect(modelWeights(checkpoint, config).embedding.shape).toEqual([262144, 640])

    const again = join(folder, 'again.gguf')
    await writeSynthetic(again, options)
    expect(readFileSync(again).equals(bytes)).toBe(true)
    rmSync(again)
  })

  const rowsOf = async (checkpoint: Checkpoint, name: string, rows: number): Promise<Float32Array> => {
    const { file, offset, shape, dtype } = checkpoint.tensors.get(name)!
    using tensor = Tensor.map(device, file, { shape: [rows, shape[1]!], dtype: dtype!, offset })
    return dequantize(tensor).readF32()
  }

  /** Within six standard errors of what they should be: a chance of less than one in 10^8. */
  function expectSpread(values: Float32Array, k: number): void {
    const count = values.length
    const mean = values.reduce((sum, value) => sum + value, 0) / count
    const square = values.reduce((sum, value) => sum + value * value, 0) / count
    expect(Math.abs(mean)).toBeLessThan((6 * 4) / Math.sqrt(k * count))
    expect(Math.abs(square * k - 1)).toBeLessThan((6 * 8) / Math.sqrt(count))
    expect(new Set(values.subarray(0, 1000)).size).toBeGreaterThan(100)
  }

  test('weights have mean 0 and deviation 1/√k; norms are 1; no two rows are alike', async () => {
    const checkpoint = await openCheckpoint(path)
    for (const [name, rows] of [
      ['token_embd', 1000],
      ['blk.0.attn_output', 640],
      ['blk.1.ffn_down', 640],
    ] as const) {
      const k = checkpoint.tensors.get(`${name}.weight`)!.shape[1]!
      expectSpread(await rowsOf(checkpoint, `${name}.weight`, rows), k)
    }
    const { file, offset, shape } = checkpoint.tensors.get('blk.0.attn_norm.weight')!
    using norm = Tensor.map(device, file, { shape, dtype: 'f32', offset })
    expect(await norm.readF32()).toEqual(new Float32Array(640).fill(1))

    const embedding = checkpoint.tensors.get('token_embd.weight')!
    const bytes = readFileSync(path).subarray(embedding.offset, embedding.offset + embedding.bytes)
    const rowBytes = embedding.bytes / 262144
    const rows = new Set<string>()
    for (let row = 0; row < 262144; row++) rows.add(bytes.toString('latin1', row * rowBytes, row * rowBytes + 36))
    expect(rows.size).toBe(262144)
  })

  test.each<[SyntheticType]>([['q4_0'], ['q8_0'], ['bf16'], ['f16']])(
    'matrices in %s, another for every seed',
    async (type) => {
      const [n, k] = [500, 1152]
      const [first, same, other] = [1, 1, 2].map((seed) => Buffer.concat([...new Pools(seed).matrix(type, n, k)]))
      expect(first).toHaveLength(storedBytes(type, [n, k])!)
      expect(same!.equals(first!)).toBe(true)
      expect(other!.equals(first!)).toBe(false)
      const { length } = first!
      const data =
        type === 'bf16' || type === 'f16' ? new Uint16Array(new Uint8Array(first!).buffer) : new Uint8Array(first!)
      expect(length).toBe(data.byteLength)
      using tensor = Tensor.from(device, data, [n, k], type)
      expectSpread(await dequantize(tensor).readF32(), k)
    },
  )

  test('arguments and signals', async () => {
    const file = join(folder, 'none.gguf')
    await rejectsCode(
      writeSynthetic(file, { size: 'gemma-9' as 'gemma-3-1b' }),
      'ERR_INVALID_ARGUMENT',
      /size: expected one of gemma-1-2b, .* got gemma-9/,
    )
    await rejectsCode(
      writeSynthetic(file, { size: 'gemma-3-1b', type: 'q6_k' as 'q8_0' }),
      'ERR_INVALID_ARGUMENT',
      /type: expected one of/,
    )
    await rejectsCode(
      writeSynthetic(file, { size: 'gemma-3-1b', headType: '__proto__' as 'q8_0' }),
      'ERR_INVALID_ARGUMENT',
      /headType/,
    )
    await rejectsCode(
      writeSynthetic(file, { size: 'gemma-3-1b', layers: 27 }),
      'ERR_INVALID_ARGUMENT',
      /layers: expected an integer from 1 to 26, got 27/,
    )
    await rejectsCode(writeSynthetic(file, { size: 'gemma-3-1b', seed: 0.5 }), 'ERR_INVALID_ARGUMENT', /seed/)
    const controller = new AbortController()
    const onProgress = () => controller.abort()
    await rejectsCode(writeSynthetic(file, { ...options, onProgress, signal: controller.signal }), 'ERR_ABORTED')
  })
})

describe('the synthetic vocabulary', () => {
  test.each([
    ['gemma', 256000, 106],
    ['gemma2', 256000, 106],
    ['gemma3', 262144, 105],
  ] as const)(
    '%s: %i pieces that differ, markers and bytes in place, merges from earlier pieces',
    (architecture, size, turn) => {
      const { tokens, scores, types, bos, eos, pad, unk, endOfTurn } = syntheticVocabulary(architecture, size)
      expect([tokens.length, scores.length, types.length, new Set(tokens).size]).toEqual([size, size, size, size])
      expect([pad, eos, bos, unk].map((id) => tokens[id])).toEqual(['<pad>', '<eos>', '<bos>', '<unk>'])
      expect([tokens[turn], tokens[turn + 1], endOfTurn]).toEqual(['<start_of_turn>', '<end_of_turn>', turn + 1])
      for (let value = 0; value < 256; value++) {
        const id = tokens.indexOf(`<0x${value.toString(16).toUpperCase().padStart(2, '0')}>`)
        expect(types[id]).toBe(6)
      }
      const ids = new Map(tokens.map((piece, id) => [piece, id]))
      for (const [id, piece] of tokens.entries()) {
        if (types[id] !== 1 || [...piece].length < 2) continue
        const letters = [...piece]
        const left = ids.get(letters.slice(0, -1).join(''))
        const right = ids.get(letters.at(-1)!)
        if (left === undefined || right === undefined || left >= id || right >= id)
          throw new Error(`${piece} is not made of earlier pieces`)
        if (!(scores[id]! < scores[left]! && scores[id]! < 0)) throw new Error(`${piece} has a score of ${scores[id]}`)
      }
    },
  )
})
