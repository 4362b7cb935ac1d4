import { describe, expect, test } from 'vitest'
import { parseSafetensors } from '../../lib/checkpoint/safetensors.ts'
import { memorySource, type Source } from '../../lib/checkpoint/source.ts'
import { throwsCode } from '../support/errors.ts'
import { buildSafetensors, type HeaderEntry, headerOf } from './build.ts'

const parse = (bytes: Uint8Array) => parseSafetensors(memorySource('m.safetensors', bytes))
const corrupt = 'ERR_CHECKPOINT_CORRUPT'

const small = headerOf({
  'model.norm.weight': ['BF16', [32], 64],
  w: ['F32', [2, 3, 4], 96],
  none: ['F16', [0, 5], 0],
  scalar: ['I64', [], 8],
  q: ['I32', [4], 16],
  z: ['I8', [3], 3],
  b: ['U8', [5], 5],
})

describe('what a safetensors file says', () => {
  test('tensors at their bytes, and metadata', () => {
    const bytes = buildSafetensors({ __metadata__: { format: 'pt' }, ...small.header }, small.bytes)
    const dataStart = bytes.length - small.bytes
    const { tensors, metadata } = parse(bytes)
    expect(metadata).toEqual({ format: 'pt' })
    expect(
      tensors.map(({ name, storedType, dtype, shape, offset, bytes }) => [
        name,
        storedType,
        dtype,
        shape,
        offset - dataStart,
        bytes,
      ]),
    ).toEqual([
      ['model.norm.weight', 'BF16', 'bf16', [32], 0, 64],
      ['w', 'F32', 'f32', [2, 3, 4], 64, 96],
      ['none', 'F16', 'f16', [0, 5], 160, 0],
      ['scalar', 'I64', undefined, [], 160, 8],
      ['q', 'I32', 'i32', [4], 168, 16],
      ['z', 'I8', 'i8', [3], 184, 3],
      ['b', 'U8', 'u8', [5], 187, 5],
    ])
    expect(tensors.every(({ file }) => file === 'm.safetensors')).toBe(true)
  })

  test('a header padded with spaces, an empty header, any order of tensors', () => {
    expect(parse(buildSafetensors(`${JSON.stringify(small.header)}      `, small.bytes)).tensors).toHaveLength(7)
    expect(parse(buildSafetensors({}, 0)).tensors).toEqual([])
    const reversed = Object.fromEntries(Object.entries(small.header).toReversed())
    expect(parse(buildSafetensors(reversed, small.bytes)).tensors.map(({ name }) => name)).toEqual(
      Object.keys(small.header).toReversed(),
    )
  })

  test('types of less than a byte, and types newer than the table', () => {
    const { header, bytes } = headerOf({ four: ['F4', [3, 4], 6], six: ['F6_E2M3', [8], 6], later: ['F99_X', [7], 3] })
    expect(
      parse(buildSafetensors(header, bytes)).tensors.map(({ storedType, dtype, bytes }) => [storedType, dtype, bytes]),
    ).toEqual([
      ['F4', undefined, 6],
      ['F6_E2M3', undefined, 6],
      ['F99_X', undefined, 3],
    ])
  })

  test('names that mean something to JavaScript', () => {
    const text =
      '{"__proto__":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"constructor":{"dtype":"I8","shape":[1],"data_offsets":[1,2]}}'
    expect(parse(buildSafetensors(text, 2)).tensors.map(({ name }) => name)).toEqual(['__proto__', 'constructor'])
  })
})

describe('damaged files', () => {
  const one = (entry: unknown) => ({ w: entry })
  const entry: HeaderEntry = { dtype: 'I8', shape: [8], data_offsets: [0, 8] }
  const cases: [string, Uint8Array, RegExp][] = [
    ['empty', new Uint8Array(0), /^m\.safetensors: byte 0: expected a safetensors file, of 8 bytes at least, got 0/],
    [
      'a header longer than the file',
      buildSafetensors({}, 0, 1000),
      /byte 0: expected a header of at most 2 bytes \(the file has 10\), got 1000/,
    ],
    [
      'a header length beyond 2^53',
      buildSafetensors({}, 0, 2n ** 64n - 1n),
      /byte 0: expected a header of at most 2 bytes/,
    ],
    ['a header length of 0', buildSafetensors({}, 0, 0), /byte 8: the header: expected JSON/],
    ['a header cut short', buildSafetensors(one(entry), 8, 20), /byte \d+: the header: expected JSON/],
    ['no JSON', buildSafetensors('{"w": 1 2}', 0), /byte 16: the header: expected JSON/],
    ['a list', buildSafetensors('[1]', 0), /byte 8: the header: expected a JSON object/],
    ['null', buildSafetensors('null', 0), /expected a JSON object, got null/],
    ['no UTF-8', buildSafetensors('{"abcdef"}', 0).fill(0xff, 12, 13), /byte 12: the header: expected UTF-8/],
    [
      'one tensor twice',
      buildSafetensors(`{"w":${JSON.stringify(entry)},"w":${JSON.stringify(entry)}}`, 8),
      /byte 61: the header: expected key "w" once, got it again/,
    ],
    [
      'one tensor twice, spelled differently',
      buildSafetensors(`{"w":${JSON.stringify(entry)},"\\u0077" : ${JSON.stringify(entry)}}`, 8),
      /expected key "w" once/,
    ],
    ['an entry that is no object', buildSafetensors(one(7), 8), /tensor "w": expected an object, got 7/],
    ['metadata that is no object', buildSafetensors({ __metadata__: [] }, 0), /__metadata__: expected an object/],
    [
      'no dtype',
      buildSafetensors(one({ ...entry, dtype: undefined }), 8),
      /tensor "w": dtype: expected the name of an element type, got undefined/,
    ],
    ['a dtype that is no name', buildSafetensors(one({ ...entry, dtype: 'I8\n' }), 8), /dtype: expected the name/],
    [
      'a negative dimension',
      buildSafetensors(one({ ...entry, shape: [-8] }), 8),
      /shape: expected a list of non-negative integers, got \[-8\]/,
    ],
    ['a broken dimension', buildSafetensors(one({ ...entry, shape: [8.5] }), 8), /shape: expected a list/],
    ['a dimension that is no number', buildSafetensors(one({ ...entry, shape: ['8'] }), 8), /shape: expected a list/],
    [
      'a dimension beyond 2^53',
      buildSafetensors(`{"w":{"dtype":"I8","shape":[99999999999999999999],"data_offsets":[0,8]}}`, 8),
      /shape: expected a list/,
    ],
    [
      'dimensions whose product overflows',
      buildSafetensors(one({ ...entry, shape: [2 ** 40, 2 ** 40] }), 8),
      /shape: expected fewer than 2\^50 elements/,
    ],
    [
      'dimensions that overflow behind a 0',
      buildSafetensors(one({ dtype: 'I8', shape: [0, 2 ** 40, 2 ** 40], data_offsets: [0, 0] }), 0),
      /shape: expected fewer than/,
    ],
    [
      'one offset',
      buildSafetensors(one({ ...entry, data_offsets: [0] }), 8),
      /data_offsets: expected two non-negative integers/,
    ],
    [
      'offsets in the wrong order',
      buildSafetensors(one({ ...entry, data_offsets: [8, 0] }), 8),
      /data_offsets: expected a range within the 8 bytes/,
    ],
    [
      'offsets behind the file',
      buildSafetensors(one({ ...entry, shape: [9], data_offsets: [0, 9] }), 8),
      /within the 8 bytes of data that the file has, got 0 to 9/,
    ],
    [
      'another size than the shape',
      buildSafetensors(one({ ...entry, shape: [7] }), 8),
      /tensor "w": expected 7 bytes \(I8 7\), got 8 at byte 61/,
    ],
    [
      'overlapping tensors',
      buildSafetensors({ v: entry, w: { ...entry, data_offsets: [4, 12] } }, 12),
      /byte \d+: tensor "w": expected it apart from tensor "v"/,
    ],
    [
      'tensors at one place',
      buildSafetensors({ v: entry, w: entry }, 8),
      /tensor "w": expected it apart from tensor "v"/,
    ],
    [
      'a hole',
      buildSafetensors({ v: entry, w: { ...entry, data_offsets: [9, 17] } }, 17),
      /byte \d+: tensor "w": expected it directly after tensor "v"/,
    ],
    [
      'more bytes than tensors',
      buildSafetensors({ v: entry }, 12),
      /tensor "v": expected the file to end after it, got 4 more bytes/,
    ],
  ]
  test.each(cases)('%s', (_, bytes, message) => throwsCode(() => parse(bytes), corrupt, message))

  test('cut anywhere', () => {
    const bytes = buildSafetensors(small.header, small.bytes)
    for (let length = 0; length < bytes.length; length++)
      throwsCode(() => parse(bytes.subarray(0, length)), corrupt, /^m\.safetensors: /)
  })

  test('no UTF-8 after many good characters, at any distance from the end', () => {
    for (const good of ['', 'é', '€', '𝄞', 'aé€𝄞'.repeat(100)]) {
      for (const bad of [[0xff], [0xc3], [0xe2, 0x82], [0xf0, 0x9d, 0x84], [0x80]]) {
        const text = Buffer.concat([Buffer.from(`{"${good}`), Buffer.from(bad), Buffer.from('"}')])
        const file = Buffer.concat([Buffer.alloc(8), text])
        file.writeUInt32LE(text.length)
        const at = 8 + 2 + Buffer.byteLength(good)
        throwsCode(() => parse(file), corrupt, /byte \d+: the header: expected UTF-8/)
        try {
          parse(file)
        } catch (error) {
          const said = Number(/byte (\d+)/.exec((error as Error).message)?.[1])
          // At the broken character: its first byte, or the byte where it breaks off.
          expect(said).toBeGreaterThanOrEqual(at)
          expect(said).toBeLessThanOrEqual(at + bad.length)
        }
      }
    }
  })

  test('JSON nested a million deep', () => {
    throwsCode(() => parse(buildSafetensors('['.repeat(1 << 20), 0)), corrupt, /expected JSON/)
    const closed = `${'['.repeat(1 << 20)}${']'.repeat(1 << 20)}`
    throwsCode(() => parse(buildSafetensors(`{"w":${closed}}`, 0)), corrupt, /tensor "w": expected an object/)
    throwsCode(() => parse(buildSafetensors(`{"w":{"dtype":${closed}}}`, 0)), corrupt, /dtype: expected the name/)
  })

  test('a header that a large file could hold is refused before memory is taken', () => {
    const prefix = Buffer.alloc(8)
    prefix.writeBigUInt64LE(2n ** 36n)
    const source: Source = {
      path: 'm.safetensors',
      size: 2 ** 40,
      read: (_, into) => into.set(prefix.subarray(0, into.length)),
    }
    throwsCode(() => parseSafetensors(source), corrupt, /expected a header of at most 16777216 bytes/)
  })
})
