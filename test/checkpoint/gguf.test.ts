import { describe, expect, test } from 'vitest'
import { parseGguf } from '../../lib/checkpoint/gguf.ts'
import { assembleGguf } from '../../lib/checkpoint/gguf-files.ts'
import { memorySource, type Source } from '../../lib/checkpoint/source.ts'
import { dtypes } from '../../lib/dtype.ts'
import { throwsCode } from '../support/errors.ts'
import { buildGguf, type GgufDescription, smallGguf, type Tensor } from './build.ts'

const parse = (bytes: Uint8Array) => parseGguf(memorySource('m.gguf', bytes))
const open = (description: GgufDescription) => assembleGguf(['m.gguf'], [parse(buildGguf(description).bytes)])
const architecture = ['general.architecture', 'string', 'gemma3'] as const
const withTensors = (...tensors: Tensor[]): GgufDescription => ({ metadata: [architecture], tensors })

describe('what a GGUF file says', () => {
  test.each([2, 3])('version %i: metadata, values of every type', (version) => {
    const { config, chatTemplate, tokenizerFiles } = open({ ...smallGguf, version })
    expect(config).toEqual({
      'general.architecture': 'gemma3',
      'general.name': 'small',
      'gemma3.context_length': 64,
      'gemma3.embedding_length': 32,
      'gemma3.block_count': 1,
      'gemma3.feed_forward_length': 64,
      'gemma3.attention.head_count': 2,
      'gemma3.attention.head_count_kv': 1,
      'gemma3.attention.key_length': 16,
      'gemma3.attention.value_length': 16,
      'gemma3.attention.layer_norm_rms_epsilon': Math.fround(1e-6),
      'gemma3.attention.sliding_window': 8,
      'gemma3.attention.sliding_window_pattern': [true],
      'gemma3.rope.freq_base': 1e6,
      'tokenizer.ggml.model': 'llama',
      'tokenizer.ggml.tokens': ['<pad>', '<eos>', '<bos>', '<unk>', '▁', 'a', '▁a', '<0x00>'],
      'tokenizer.ggml.scores': Float32Array.of(0, 0, 0, 0, -1, -2, -3, 0),
      'tokenizer.ggml.token_type': Int32Array.of(3, 3, 3, 2, 1, 1, 1, 6),
      'tokenizer.chat_template': '{{ messages }}',
      'other.u8': 200,
      'other.i8': -3,
      'other.u16': 60000,
      'other.i16': -300,
      'other.i32': -70000,
      'other.bool': true,
      'other.u64': 2 ** 40,
      'other.i64': -(2 ** 40),
      'other.f64': 0.1,
      'other.longs': [1, 2],
      'other.nested': [Uint8Array.of(1, 2), ['x'], new Int16Array(0)],
    })
    expect(chatTemplate).toBe('{{ messages }}')
    expect(tokenizerFiles).toEqual({})
  })

  test('tensors, row-major, at their bytes', () => {
    const { bytes } = buildGguf(smallGguf)
    const { tensors } = open(smallGguf)
    const end = bytes.length
    const dataStart = end - (288 + 576 + 288 + 1024 + 576 + 128)
    expect([...tensors.values()]).toEqual([
      {
        name: 'token_embd.weight',
        storedType: 'Q8_0',
        dtype: 'q8_0',
        shape: [8, 32],
        file: 'm.gguf',
        offset: dataStart,
        bytes: 272,
      },
      {
        name: 'blk.0.attn_q.weight',
        storedType: 'Q4_0',
        dtype: 'q4_0',
        shape: [32, 32],
        file: 'm.gguf',
        offset: dataStart + 288,
        bytes: 576,
      },
      {
        name: 'blk.0.attn_k.weight',
        storedType: 'Q4_0',
        dtype: 'q4_0',
        shape: [16, 32],
        file: 'm.gguf',
        offset: dataStart + 864,
        bytes: 288,
      },
      {
        name: 'blk.0.attn_v.weight',
        storedType: 'BF16',
        dtype: 'bf16',
        shape: [16, 32],
        file: 'm.gguf',
        offset: dataStart + 1152,
        bytes: 1024,
      },
      {
        name: 'blk.0.attn_output.weight',
        storedType: 'IQ4_NL',
        dtype: 'iq4_nl',
        shape: [32, 32],
        file: 'm.gguf',
        offset: dataStart + 2176,
        bytes: 576,
      },
      {
        name: 'output_norm.weight',
        storedType: 'F32',
        dtype: 'f32',
        shape: [32],
        file: 'm.gguf',
        offset: dataStart + 2752,
        bytes: 128,
      },
    ])
  })

  // Ids and sizes as in ggml-common.h.
  const types: [id: number, name: string, weights: number, bytes: number][] = [
    [0, 'F32', 1, 4],
    [1, 'F16', 1, 2],
    [2, 'Q4_0', 32, 18],
    [3, 'Q4_1', 32, 20],
    [6, 'Q5_0', 32, 22],
    [7, 'Q5_1', 32, 24],
    [8, 'Q8_0', 32, 34],
    [10, 'Q2_K', 256, 84],
    [11, 'Q3_K', 256, 110],
    [12, 'Q4_K', 256, 144],
    [13, 'Q5_K', 256, 176],
    [14, 'Q6_K', 256, 210],
    [20, 'IQ4_NL', 32, 18],
    [23, 'IQ4_XS', 256, 136],
    [24, 'I8', 1, 1],
    [26, 'I32', 1, 4],
    [28, 'F64', 1, 8],
    [30, 'BF16', 1, 2],
    [39, 'MXFP4', 32, 17],
    [40, 'NVFP4', 64, 36],
  ]
  test.each(types)('type %i is %s', (type, name, weights, bytes) => {
    const { tensors } = open(withTensors({ name: 'w', dims: [weights * 3, 5], type, bytes: 15 * bytes }))
    const dtype = dtypes.find((info) => info.name === name.toLowerCase())?.name
    expect(tensors.get('w')).toMatchObject({ storedType: name, dtype, bytes: 15 * bytes, shape: [5, weights * 3] })
    if (weights === 1) return
    throwsCode(
      () => open(withTensors({ name: 'w', dims: [weights + 1], type, bytes })),
      'ERR_CHECKPOINT_CORRUPT',
      /tensor "w": expected rows of a multiple of/,
    )
  })

  test('a type newer than the table is listed as far as the next tensor', () => {
    const { tensors } = open(
      withTensors({ name: 'new', dims: [10], type: 99, bytes: 70 }, { name: 'f', dims: [2], type: 0, bytes: 8 }),
    )
    expect(tensors.get('new')).toMatchObject({ storedType: 'type 99', dtype: undefined, bytes: 96 })
  })

  test('scalars, empty tensors, four dimensions, another alignment', () => {
    const { tensors } = open({
      metadata: [architecture, ['general.alignment', 'u32', 128]],
      tensors: [
        { name: 'a', dims: [2, 3, 4, 5], type: 0, bytes: 480 },
        { name: 'none', dims: [32, 0], type: 2, bytes: 0 },
        { name: 'one', dims: [], type: 24, bytes: 1 },
      ],
      alignment: 128,
    })
    expect([...tensors.values()].map(({ shape, bytes }) => [shape, bytes])).toEqual([
      [[5, 4, 3, 2], 480],
      [[0, 32], 0],
      [[], 1],
    ])
    for (const { offset } of tensors.values()) expect(offset % 128).toBe(0)
  })

  test('integers that a number cannot hold are bigints', () => {
    const { config } = open({
      metadata: [
        architecture,
        ['a', 'u64', 2n ** 64n - 1n],
        ['b', 'i64', -(2n ** 62n)],
        ['c', 'u64', 2 ** 53 - 1],
        ['d', 'array', 'i64', [-1, 2n ** 60n]],
      ],
    })
    expect(config).toMatchObject({ a: 2n ** 64n - 1n, b: -(2n ** 62n), c: 2 ** 53 - 1, d: [-1, 2n ** 60n] })
  })

  test('a key named __proto__ is a key', () => {
    const { config } = open({ metadata: [architecture, ['__proto__', 'string', 'x']] })
    expect(Object.keys(config)).toContain('__proto__')
    expect(Object.getPrototypeOf(config)).toBe(Object.prototype)
  })

  test('a vocabulary of 262,144 pieces, and strings longer than the window that it is read through', () => {
    const tokens = Array.from({ length: 262144 }, (_, id) => `▁piece${id}`)
    const long = 'é'.repeat(3 << 19)
    const { bytes } = buildGguf({
      metadata: [
        architecture,
        ['tokenizer.ggml.tokens', 'array', 'string', tokens],
        ['long', 'string', long],
        ['tokenizer.ggml.scores', 'array', 'f32', tokens.map((_, id) => -id)],
        ['last', 'u8', 7],
      ],
      tensors: [{ name: 'w', dims: [8], type: 0, bytes: 32 }],
    })
    let largest = 0
    const memory = memorySource('m.gguf', bytes)
    const source: Source = {
      ...memory,
      read: (offset, into) => {
        largest = Math.max(largest, into.length)
        memory.read(offset, into)
      },
    }
    const { metadata, tensors } = parseGguf(source)
    const read = metadata.get('tokenizer.ggml.tokens')!.value as string[]
    expect(read).toHaveLength(tokens.length)
    expect(read.findIndex((token, id) => token !== tokens[id])).toBe(-1)
    expect(metadata.get('long')?.value).toBe(long)
    expect((metadata.get('tokenizer.ggml.scores')!.value as Float32Array)[262143]).toBe(-262143)
    expect(metadata.get('last')?.value).toBe(7)
    expect(tensors[0]).toMatchObject({ offset: bytes.length - 32, bytes: 32 })
    expect(largest).toBeLessThanOrEqual(3 << 20)
  })

  test('a U+FFFD that the file really has is kept', () => {
    expect(open({ metadata: [architecture, ['a', 'string', 'x\ufffdy']] }).config.a).toBe('x\ufffdy')
  })

  test('tensor data is never read', () => {
    const { bytes } = buildGguf({
      metadata: [architecture],
      tensors: Array.from({ length: 3 }, (_, i) => ({ name: `w${i}`, dims: [1 << 20], type: 0, bytes: 4 << 20 })),
    })
    let furthest = 0
    const memory = memorySource('m.gguf', bytes)
    parseGguf({
      ...memory,
      read: (offset, into) => {
        furthest = Math.max(furthest, offset + into.length)
        memory.read(offset, into)
      },
    })
    // One window.
    expect(furthest).toBeLessThanOrEqual(1 << 20)
  })
})

describe('split files', () => {
  const part = (no: number, count = 2, total = 4): GgufDescription => ({
    metadata: [
      ...(no === 0 ? [architecture] : []),
      ['split.no', 'u16', no],
      ['split.count', 'u16', count],
      ['split.tensors.count', 'i32', total],
    ],
    tensors: [0, 1].map((i) => ({ name: `w${no}${i}`, dims: [8], type: 0, bytes: 32 })),
  })
  const assemble = (...parts: GgufDescription[]) => {
    const files = parts.map((_, i) => `p${i}`)
    return assembleGguf(
      files,
      parts.map((description, i) => parseGguf(memorySource(files[i]!, buildGguf(description).bytes))),
    )
  }

  test('parts make one checkpoint', () => {
    const { tensors, files } = assemble(part(0), part(1))
    expect([...tensors.keys()]).toEqual(['w00', 'w01', 'w10', 'w11'])
    expect([...tensors.values()].map(({ file }) => file)).toEqual(['p0', 'p0', 'p1', 'p1'])
    expect(files).toEqual(['p0', 'p1'])
  })

  test.each<[string, GgufDescription[], RegExp]>([
    ['in the wrong order', [part(0), part(0)], /p1: metadata key "split\.no": expected 1, by the file's name, got 0/],
    [
      'of another count',
      [part(0), part(1, 3)],
      /p1: metadata key "split\.count": expected 2, by the file's name, got 3/,
    ],
    [
      'renamed',
      [part(0)],
      /p0: metadata key "split\.count": expected 1, by the file's name, got 2: the parts must keep their names/,
    ],
    ['of another number of tensors', [part(0, 2, 5), part(1)], /"split\.tensors\.count": expected 4, .* got 5/],
    [
      'with one tensor twice',
      [part(0), { ...part(1), tensors: part(0).tensors! }],
      /p1: byte \d+: tensor "w00": expected it once, got it also in p0/,
    ],
    [
      'with a count that is none',
      [{ ...part(0), metadata: [architecture, ['split.count', 'string', 'two']] }],
      /"split\.count": expected an integer, got "two" of type string/,
    ],
  ])('parts %s', (_, parts, message) => throwsCode(() => assemble(...parts), 'ERR_CHECKPOINT_CORRUPT', message))
})

describe('damaged files', () => {
  const corrupt = 'ERR_CHECKPOINT_CORRUPT'
  const unsupported = 'ERR_CHECKPOINT_UNSUPPORTED'
  const f32 = (name: string, dims: (number | bigint)[], more: Partial<Tensor> = {}): Tensor => ({
    name,
    dims,
    type: 0,
    bytes: 32,
    ...more,
  })

  const cases: [string, GgufDescription, typeof corrupt | typeof unsupported, RegExp][] = [
    [
      'another magic',
      { metadata: [], magic: 'PK\x03\x04' },
      corrupt,
      /^m\.gguf: byte 0: expected the magic "GGUF", got 0x04034b50/,
    ],
    ['a file from before GGUF', { metadata: [], magic: 'tjgg' }, unsupported, /from before GGUF/],
    ['version 1', { metadata: [], version: 1 }, unsupported, /byte 4: expected GGUF version 2 or 3, got 1/],
    ['version 4', { metadata: [], version: 4 }, unsupported, /got 4/],
    ['big-endian', { metadata: [], version: 0x03000000 }, unsupported, /byte 4: a big-endian GGUF file/],
    [
      'a number of tensors that cannot fit',
      { metadata: [architecture], tensorCount: 2 ** 40 },
      corrupt,
      /byte 8: the header: expected at most 65536 tensors, got 1099511627776/,
    ],
    [
      'a number of tensors beyond 2^53',
      { metadata: [architecture], tensorCount: 2n ** 64n - 1n },
      corrupt,
      /byte 8: the header: expected a number of tensors below 2\^53, got 18446744073709551615/,
    ],
    [
      'a number of keys that cannot fit',
      { metadata: [architecture], metadataCount: 1000 },
      corrupt,
      /byte 16: .* metadata keys/,
    ],
    [
      'one key twice',
      { metadata: [architecture, ['k', 'u8', 1], ['k', 'u8', 2]] },
      corrupt,
      /metadata key "k": expected it once/,
    ],
    ['an empty key', { metadata: [architecture, ['', 'u8', 1]] }, corrupt, /metadata key 1 of 2: expected a key/],
    [
      'a boolean that is none',
      { metadata: [architecture, ['k', 'bool', 2]] },
      corrupt,
      /metadata key "k": expected a boolean, 0 or 1, got 2/,
    ],
    [
      'no architecture',
      { metadata: [['k', 'u8', 1]] },
      corrupt,
      /^m\.gguf: metadata key "general\.architecture": expected a string, got no such key/,
    ],
    [
      'an architecture that is no string',
      { metadata: [['general.architecture', 'u8', 1]] },
      corrupt,
      /got "1" of type u8/,
    ],
    [
      'a projector',
      { metadata: [['general.architecture', 'string', 'clip']] },
      unsupported,
      /open the text model beside it/,
    ],
    [
      'an alignment that is no power of two',
      { metadata: [architecture, ['general.alignment', 'u32', 48]] },
      corrupt,
      /"general\.alignment": expected a power of two/,
    ],
    [
      'an alignment of 0',
      { metadata: [architecture, ['general.alignment', 'u32', 0]] },
      corrupt,
      /"general\.alignment"/,
    ],
    [
      'an alignment of another type',
      { metadata: [architecture, ['general.alignment', 'u64', 32]] },
      corrupt,
      /got "32" of type u64/,
    ],
    [
      'scores that are not numbers',
      {
        metadata: [
          architecture,
          ['tokenizer.ggml.tokens', 'array', 'string', ['a', 'b']],
          ['tokenizer.ggml.scores', 'array', 'f32', [0, Number.NaN]],
        ],
      },
      corrupt,
      /"tokenizer\.ggml\.scores": expected finite scores, got NaN for token 1/,
    ],
    [
      'scores for other tokens',
      {
        metadata: [
          architecture,
          ['tokenizer.ggml.tokens', 'array', 'string', ['a', 'b']],
          ['tokenizer.ggml.scores', 'array', 'f32', [0]],
        ],
      },
      corrupt,
      /expected as many items as tokens, 2, got 1/,
    ],
    [
      'scores of another type',
      { metadata: [architecture, ['tokenizer.ggml.scores', 'array', 'f64', [0]]] },
      corrupt,
      /expected an array of f32, got an array of f64/,
    ],
    [
      'tokens that are no list',
      { metadata: [architecture, ['tokenizer.ggml.tokens', 'string', 'x']] },
      corrupt,
      /"tokenizer\.ggml\.tokens": expected an array of string, got "x" of type string/,
    ],
    ['one tensor twice', withTensors(f32('w', [8]), f32('w', [8])), corrupt, /tensor "w": expected it once/],
    ['a tensor without a name', withTensors(f32('', [8])), corrupt, /tensor 0 of 1: expected a name/],
    [
      'five dimensions',
      withTensors(f32('w', [1, 1, 1, 1, 8])),
      corrupt,
      /tensor "w": expected at most 4 dimensions, got 5/,
    ],
    [
      'dimensions whose product overflows',
      withTensors(f32('w', [2 ** 30, 2 ** 30])),
      corrupt,
      /tensor "w": expected fewer than 2\^53 elements/,
    ],
    [
      'dimensions that overflow behind a 0',
      withTensors(f32('w', [0, 2 ** 40, 2 ** 40])),
      corrupt,
      /expected fewer than 2\^53/,
    ],
    [
      'a dimension beyond 2^53',
      withTensors(f32('w', [2n ** 63n])),
      corrupt,
      /tensor "w": expected a dimension below 2\^53/,
    ],
    ['bytes beyond 2^53', withTensors(f32('w', [2 ** 52])), corrupt, /tensor "w": expected less than 2\^53 bytes/],
    [
      'a tensor longer than the file',
      withTensors(f32('w', [9])),
      corrupt,
      /tensor "w": expected its 36 bytes at \d+ to end within the file, which has \d+ bytes/,
    ],
    [
      'an offset behind the file',
      withTensors(f32('w', [8], { offset: 1 << 20 })),
      corrupt,
      /tensor "w": expected its 32 bytes/,
    ],
    [
      'an offset beyond 2^53',
      withTensors(f32('w', [8], { offset: 2n ** 60n })),
      corrupt,
      /tensor "w": expected an offset below 2\^53/,
    ],
    [
      'an offset that is not aligned',
      withTensors(f32('w', [4], { offset: 4 })),
      corrupt,
      /expected an offset that is a multiple of 32, got 4/,
    ],
    [
      'tensors that overlap',
      withTensors(f32('v', [16], { bytes: 64 }), f32('w', [8], { offset: 32 })),
      corrupt,
      /tensor "w": expected it apart from tensor "v", which ends at \d+; it begins at \d+/,
    ],
    [
      'tensors at one place',
      withTensors(f32('v', [8], { offset: 0 }), f32('w', [8], { offset: 0 })),
      corrupt,
      /expected it apart from tensor "v"/,
    ],
  ]
  test.each(cases)('%s', (_, description, code, message) => throwsCode(() => open(description), code, message))

  test('cut anywhere in the header or the data', () => {
    const { bytes } = buildGguf(smallGguf)
    for (let length = 0; length < bytes.length; length++) {
      throwsCode(() => parse(bytes.subarray(0, length)), corrupt, /^m\.gguf: byte \d+: /)
    }
    expect(parse(bytes).tensors).toHaveLength(6)
  })

  test('every length, count and size replaced by absurd ones', () => {
    const { bytes, fields } = buildGguf(smallGguf)
    let refused = 0
    for (const field of fields.filter(({ kind, bytes }) => bytes === 8 && kind !== 'value' && kind !== 'text')) {
      for (const value of [2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
        const damaged = Buffer.from(bytes)
        damaged.writeBigUInt64LE(value, field.at)
        throwsCode(() => parse(damaged), corrupt, /^m\.gguf: byte \d+: /)
        refused++
      }
    }
    expect(refused).toBeGreaterThan(300)
  })

  test('text that is not UTF-8', () => {
    const bytes = Buffer.from(buildGguf({ metadata: [architecture, ['key', 'string', 'abcdef']] }).bytes)
    const at = bytes.indexOf('abcdef')
    bytes[at + 2] = 0xff
    throwsCode(() => parse(bytes), corrupt, new RegExp(`^m\\.gguf: byte ${at}: metadata key "key": expected UTF-8`))
  })

  test('a value type that there is not', () => {
    const { bytes, fields } = buildGguf({ metadata: [architecture, ['key', 'u8', 1]] })
    const type = fields.filter(({ kind }) => kind === 'type')[1]!
    bytes.writeUInt32LE(13, type.at)
    throwsCode(
      () => parse(bytes),
      corrupt,
      new RegExp(`byte ${type.at}: metadata key "key": expected a value type from 0 to 12, got 13`),
    )
  })

  test('arrays nested too deep, too many of them, too many items', () => {
    let nested: unknown = ['array', 'u8', []]
    for (let depth = 0; depth < 4; depth++) nested = ['array', 'array', [nested]]
    const [, , values] = nested as [string, string, unknown[]]
    throwsCode(
      () => open({ metadata: [architecture, ['k', 'array', 'array', values]] }),
      corrupt,
      /metadata key "k": expected arrays at most 4 deep/,
    )
    const many = Array.from({ length: 65537 }, () => ['array', 'u8', []])
    throwsCode(
      () => open({ metadata: [architecture, ['k', 'array', 'array', many]] }),
      corrupt,
      /expected at most 65536 arrays/,
    )
    // A file of booleans, made by hand: the builder would take a field for each.
    const { bytes, fields } = buildGguf({ metadata: [architecture, ['k', 'array', 'bool', []]] })
    bytes.writeBigUInt64LE(2n ** 22n + 1n, fields.at(-1)!.at)
    const file = Buffer.concat([bytes, Buffer.alloc(2 ** 22 + 1)])
    throwsCode(() => parse(file), corrupt, /expected at most 4194304 items/)
  })

  test('lengths that a large file could hold are refused before memory is taken', () => {
    const { bytes, fields } = buildGguf({ metadata: [architecture, ['k', 'string', 'x'], ['l', 'array', 'f32', [1]]] })
    // A file of 1 TB that has these bytes in front.
    const source: Source = {
      path: 'm.gguf',
      size: 2 ** 40,
      read: (offset, into) => into.set(bytes.subarray(offset, offset + into.length)),
    }
    const length = fields.filter(({ kind }) => kind === 'length')[3]!
    bytes.writeBigUInt64LE(2n ** 35n, length.at)
    throwsCode(
      () => parseGguf(source),
      corrupt,
      /metadata key "k": expected a string of at most 16777216 bytes, got 34359738368/,
    )
    bytes.writeBigUInt64LE(1n, length.at)
    const count = fields.filter(({ kind }) => kind === 'count')[2]!
    bytes.writeBigUInt64LE(2n ** 35n, count.at)
    throwsCode(() => parseGguf(source), corrupt, /metadata key "l": expected metadata that ends by byte 268435456/)
  })
})
