import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { parseGguf } from '../../lib/checkpoint/gguf.ts'
import type { GgufEntry } from '../../lib/checkpoint/gguf-types.ts'
import { type GgufTensor, ggufArray, ggufValue, storedBytes, writeGguf } from '../../lib/checkpoint/gguf-writer.ts'
import { withFile } from '../../lib/checkpoint/source.ts'
import { rejectsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { buildGguf, smallGguf } from './build.ts'

let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'lapidary-writer-'))
  path = join(folder, 'out.gguf')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const architecture: [string, GgufEntry] = ['general.architecture', ggufValue('string', 'gemma3')]
const bytesOf = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 31 + length) & 0xff)
const tensor = (name: string, shape: number[], data?: GgufTensor['data']): GgufTensor => ({
  name,
  dtype: 'f32',
  shape,
  data: data ?? (() => [bytesOf(storedBytes('f32', shape)!)]),
})

test('values of every type come back', async () => {
  const entries: [string, GgufEntry][] = [
    architecture,
    ['u8', ggufValue('u8', 255)],
    ['i8', ggufValue('i8', -128)],
    ['u16', ggufValue('u16', 65535)],
    ['i16', ggufValue('i16', -32768)],
    ['u32', ggufValue('u32', 2 ** 32 - 1)],
    ['i32', ggufValue('i32', -(2 ** 31))],
    ['f32', ggufValue('f32', 1e-6)],
    ['bool', ggufValue('bool', true)],
    ['string', ggufValue('string', 'é▁𝄞')],
    ['u64', ggufValue('u64', 2n ** 64n - 1n)],
    ['i64', ggufValue('i64', -5)],
    ['f64', ggufValue('f64', 0.1)],
    ['bools', ggufArray('bool', [true, false])],
    ['strings', ggufArray('string', ['', 'a', 'x'.repeat(70000)])],
    ['f32s', ggufArray('f32', Float32Array.of(1.5, -2))],
    ['f32s of numbers', ggufArray('f32', [1.5, -2])],
    ['i32s', ggufArray('i32', Int32Array.of(-7))],
    ['u64s', ggufArray('u64', [1, 2n ** 60n])],
    ['none', ggufArray('u16', [])],
  ]
  await writeGguf(path, entries, [])
  const { metadata, version } = withFile(path, parseGguf)
  expect(version).toBe(3)
  expect(metadata.get('f32s of numbers')).toEqual({ type: 'array', items: 'f32', value: Float32Array.of(1.5, -2) })
  for (const [key, entry] of entries) {
    if (key === 'f32') expect(metadata.get(key)).toEqual({ type: 'f32', value: Math.fround(1e-6) })
    else if (key === 'none') expect(metadata.get(key)).toEqual({ ...entry, value: new Uint16Array(0) })
    else if (key !== 'f32s of numbers') expect(metadata.get(key)).toEqual(entry)
  }
})

test('the bytes are those of the format', async () => {
  const { bytes } = buildGguf({
    metadata: [
      ['general.architecture', 'string', 'gemma3'],
      ['k', 'array', 'string', ['a', 'bc']],
    ],
    tensors: [
      { name: 'w', dims: [32, 3], type: 2, bytes: 54 },
      { name: 'v', dims: [5], type: 0, bytes: 20 },
    ],
  })
  const start = bytes.length - 96
  const size = await writeGguf(
    path,
    [architecture, ['k', ggufArray('string', ['a', 'bc'])]],
    [
      { name: 'w', dtype: 'q4_0', shape: [3, 32], data: () => [bytes.subarray(start, start + 54)] },
      { name: 'v', dtype: 'f32', shape: [5], data: () => [bytes.subarray(start + 64, start + 84)] },
    ],
  )
  const written = readFileSync(path)
  expect(size).toBe(written.length)
  // The builder's filling goes on where the file has padding.
  const expected = Buffer.from(bytes)
  expected.fill(0, start + 54, start + 64)
  expected.fill(0, start + 84)
  expect(written.equals(expected)).toBe(true)
})

test('tensors from pieces of any size, also from asynchronous sources', async () => {
  const random = Random.named('gguf writer pieces')
  const shapes = [[7], [0, 4], [33, 3], [], [2, 3, 4, 5], [1000]]
  const tensors = shapes.map((shape, i) =>
    tensor(`t${i}`, shape, async function* () {
      const all = bytesOf(storedBytes('f32', shape)!)
      for (let at = 0; at < all.length; ) {
        const length = random.integer(0, 700)
        yield all.subarray(at, at + length)
        at += length
        await new Promise((resolve) => setImmediate(resolve))
      }
    }),
  )
  const seen: number[] = []
  const total = shapes.reduce((sum, shape) => sum + storedBytes('f32', shape)!, 0)
  await writeGguf(path, [architecture], tensors, {
    onProgress: (done, all) => {
      expect(all).toBe(total)
      seen.push(done)
    },
  })
  expect(seen.at(-1)).toBe(total)
  expect(seen).toEqual(seen.toSorted((a, b) => a - b))
  const checkpoint = await openCheckpoint(path)
  const file = readFileSync(path)
  for (const [i, shape] of shapes.entries()) {
    const { offset, bytes, shape: got } = checkpoint.tensors.get(`t${i}`)!
    expect(got).toEqual(shape)
    expect(new Uint8Array(file.subarray(offset, offset + bytes))).toEqual(bytesOf(bytes))
  }
})

test('what goes wrong leaves the file that was there, and nothing else', async () => {
  writeFileSync(path, 'before')
  const controller = new AbortController()
  const pieces = (count: number) => () => Array.from({ length: count }, () => bytesOf(16))
  const failing: GgufTensor['data'] = async function* () {
    yield bytesOf(16)
    throw new Error('the source failed')
  }
  const aborting: GgufTensor['data'] = async function* () {
    yield bytesOf(16)
    controller.abort()
    yield bytesOf(16)
  }
  await rejectsCode(
    writeGguf(path, [architecture], [tensor('w', [8], pieces(1))]),
    'ERR_INVALID_ARGUMENT',
    /tensor "w": expected pieces of 32 bytes in all, got 16/,
  )
  await rejectsCode(
    writeGguf(path, [architecture], [tensor('w', [8], pieces(3))]),
    'ERR_INVALID_ARGUMENT',
    /got 48 or more/,
  )
  await expect(writeGguf(path, [architecture], [tensor('w', [8], failing)])).rejects.toThrow('the source failed')
  await rejectsCode(
    writeGguf(path, [architecture], [tensor('w', [8], aborting)], { signal: controller.signal }),
    'ERR_ABORTED',
  )
  await rejectsCode(writeGguf(path, [architecture], [], { signal: controller.signal }), 'ERR_ABORTED')
  expect(readFileSync(path, 'utf8')).toBe('before')
  expect(readdirSync(folder)).toEqual(['out.gguf'])
  await rejectsCode(
    writeGguf(join(folder, 'none', 'out.gguf'), [architecture], []),
    'ERR_FILE',
    /there is no such folder as/,
  )
  await rejectsCode(writeGguf(folder, [architecture], []), 'ERR_FILE')
  expect(readdirSync(folder)).toEqual(['out.gguf'])
})

test.each<[string, [string, GgufEntry][], GgufTensor[], RegExp]>([
  ['no architecture', [], [], /expected general\.architecture/],
  ['a key twice', [architecture, architecture], [], /expected keys that differ/],
  ['a tensor twice', [architecture], [tensor('w', [8]), tensor('w', [8])], /expected names that differ, got "w" again/],
  ['a tensor without a name', [architecture], [tensor('', [8])], /expected names that differ/],
  [
    'a dtype that GGUF lacks',
    [architecture],
    [{ ...tensor('w', [8]), dtype: 'sfp8' }],
    /tensor "w": dtype: expected one that GGUF has, got sfp8/,
  ],
  [
    'a row that ends within a block',
    [architecture],
    [{ ...tensor('w', [8]), dtype: 'q4_0' }],
    /expected a shape that fits q4_0, got \[8\]/,
  ],
  ['five dimensions', [architecture], [tensor('w', [1, 1, 1, 1, 8])], /expected a shape that fits f32/],
  [
    'a number beyond its type',
    [architecture, ['k', ggufValue('u8', 256)]],
    [],
    /metadata: "k": expected values of type u8/,
  ],
  ['a broken integer', [architecture, ['k', ggufValue('u32', 0.5)]], [], /expected values of type u32: got 0\.5/],
  ['a negative u64', [architecture, ['k', ggufValue('u64', -1)]], [], /expected values of type u64/],
  ['a string for a number', [architecture, ['k', ggufArray('f32', ['x'])]], [], /expected values of type f32: got "x"/],
  ['a number for a string', [architecture, ['k', ggufValue('string', 7)]], [], /expected values of type string: got 7/],
])('%s is refused', async (_, metadata, tensors, message) => {
  await rejectsCode(writeGguf(path, metadata, tensors), 'ERR_INVALID_ARGUMENT', message)
  expect(readdirSync(folder)).toEqual([])
})

test('a file written by hand and copied by the writer says the same', async () => {
  const source = join(folder, 'in.gguf')
  writeFileSync(source, buildGguf({ metadata: smallGguf.metadata.filter(([key]) => key !== 'other.nested') }).bytes)
  const { metadata } = withFile(source, parseGguf)
  await writeGguf(path, metadata, [])
  expect(withFile(path, parseGguf).metadata).toEqual(metadata)
})
