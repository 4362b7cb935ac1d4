import { cpSync, linkSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Checkpoint, openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { type Device, dequantize, Tensor } from '../../lib/index.ts'
import { gemmaConfig } from '../../lib/models/gemma/config.ts'
import { quantizeCheckpoint } from '../../lib/models/gemma/quantize.ts'
import { anyDevice } from '../support/devices.ts'
import { rejectsCode } from '../support/errors.ts'

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url))
const tiny = join(fixtures, 'tiny-model/hf')
const bundled = fileURLToPath(new URL('../../models/tiny-q4_0.gguf', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'lapidary-quantize-'))
const output = join(folder, 'out.gguf')
let device: Device
beforeAll(async () => {
  device = await anyDevice()
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function stored(checkpoint: Checkpoint, name: string): Buffer {
  const { file, offset, bytes } = checkpoint.tensors.get(name)!
  return readFileSync(file).subarray(offset, offset + bytes)
}

async function values(checkpoint: Checkpoint, name: string): Promise<Float32Array> {
  const { file, offset, shape, dtype } = checkpoint.tensors.get(name)!
  using tensor = Tensor.map(device, file, { shape, dtype: dtype!, offset })
  if (dtype === 'q4_0' || dtype === 'q8_0') return dequantize(tensor).readF32()
  return tensor.readF32()
}

function lists({ config }: Checkpoint) {
  return {
    tokens: config['tokenizer.ggml.tokens'] as string[],
    scores: config['tokenizer.ggml.scores'] as Float32Array,
    types: config['tokenizer.ggml.token_type'] as Int32Array,
  }
}

describe('the tiny model', () => {
  test('Q4_0: every tensor byte for byte as the reference converter and quantiser made it', async () => {
    const progress: [number, number][] = []
    const size = await quantizeCheckpoint(device, tiny, output, {
      type: 'q4_0',
      onProgress: (done, total) => progress.push([done, total]),
    })
    const [ours, reference] = [await openCheckpoint(output), await openCheckpoint(bundled)]
    expect(readFileSync(output)).toHaveLength(size)
    expect([...ours.tensors.keys()]).toEqual([...reference.tensors.keys()])
    for (const [name, { storedType, shape }] of reference.tensors) {
      expect(ours.tensors.get(name)).toMatchObject({ storedType, shape })
      expect(stored(ours, name).equals(stored(reference, name)), name).toBe(true)
    }
    const total = [...ours.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0)
    expect(progress.at(-1)).toEqual([total, total])
    for (const [key, value] of Object.entries(reference.config)) {
      if (key !== 'general.name') expect({ [key]: ours.config[key] }).toEqual({ [key]: value })
    }
    expect(gemmaConfig(ours)).toEqual(gemmaConfig(reference))
  })

  test('from tokenizer.json: the same pieces, and scores in the same order', async () => {
    const copy = join(folder, 'json-only')
    cpSync(tiny, copy, { recursive: true })
    rmSync(join(copy, 'tokenizer.model'))
    const path = join(folder, 'json.gguf')
    await quantizeCheckpoint(device, copy, path, { type: 'q8_0', headType: 'bf16' })
    const ours = await openCheckpoint(path)
    const [got, expected] = [lists(ours), lists(await openCheckpoint(bundled))]
    expect(got.tokens).toEqual(expected.tokens)
    // Runs of spaces are not among the added tokens: they are made by the first merges.
    const types = expected.types.map((type, id) => (/^▁▁+$/.test(expected.tokens[id]!) ? 1 : type))
    expect(got.types).toEqual(types)
    const merged = expected.tokens.flatMap((piece, id) =>
      expected.types[id] === 1 && [...piece].length > 1 ? [id] : [],
    )
    expect(merged.length).toBeGreaterThan(3000)
    for (const [i, id] of merged.entries()) if (i > 0) expect(got.scores[id]!).toBeLessThan(got.scores[merged[i - 1]!]!)
    // The head as it was, matrices in 8 bits.
    const input = await openCheckpoint(tiny)
    expect(stored(ours, 'token_embd.weight').equals(stored(input, 'model.embed_tokens.weight'))).toBe(true)
    expect(ours.tensors.get('blk.0.attn_q.weight')!.dtype).toBe('q8_0')
    expect(ours.config['general.file_type']).toBe(7)
  })

  test('added tokens of tokenizer_config.json rule; the chat template comes along', async () => {
    const copy = join(folder, 'configured')
    cpSync(tiny, copy, { recursive: true })
    const settings = {
      chat_template: '{{ bos_token }}',
      added_tokens_decoder: {
        5: { content: '<start_of_turn>', special: true },
        9: { content: '<renamed>', special: false },
      },
    }
    writeFileSync(join(copy, 'tokenizer_config.json'), JSON.stringify(settings))
    const path = join(folder, 'configured.gguf')
    await quantizeCheckpoint(device, copy, path, { type: 'q4_0', headType: 'q4_0' })
    const ours = await openCheckpoint(path)
    const { tokens, types } = lists(ours)
    expect([tokens[9], types[9], types[5], types[6]]).toEqual(['<renamed>', 4, 3, 4])
    expect(ours.chatTemplate).toBe('{{ bos_token }}')
    expect(ours.tensors.get('token_embd.weight')!.dtype).toBe('q4_0')
  })
})

describe('other models', () => {
  /** A tokenizer.json of these many pieces. */
  function writeTokenizer(path: string, pieces: number): void {
    const vocab = Object.fromEntries(
      ['<pad>', '<eos>', '<bos>', '<unk>', ...Array.from({ length: pieces - 4 }, (_, i) => `p${i}`)].map(
        (piece, id) => [piece, id],
      ),
    )
    const added = ['<pad>', '<eos>', '<bos>'].map((content, id) => ({ id, content, special: true }))
    writeFileSync(
      path,
      JSON.stringify({ added_tokens: added, model: { type: 'BPE', unk_token: '<unk>', vocab, merges: [] } }),
    )
  }

  test('Gemma 1: norms have the 1 added, padded rows of the embedding are cut', async () => {
    const copy = join(folder, 'gemma1')
    cpSync(join(fixtures, 'oracle/gemma1-tiny'), copy, { recursive: true })
    writeTokenizer(join(copy, 'tokenizer.json'), 90)
    await quantizeCheckpoint(device, copy, output, { type: 'q8_0', headType: 'f16' })
    const [input, ours] = [await openCheckpoint(copy), await openCheckpoint(output)]
    expect(ours.tensors.get('token_embd.weight')).toMatchObject({ shape: [90, 32], dtype: 'f16' })
    const embedding = (await values(input, 'model.embed_tokens.weight')).subarray(0, 90 * 32)
    for (const [i, value] of (await values(ours, 'token_embd.weight')).entries()) {
      expect(Math.abs(value - embedding[i]!)).toBeLessThanOrEqual(2 ** -11 * Math.abs(embedding[i]!) + 2 ** -25)
    }
    const names = [
      ['model.layers.1.input_layernorm.weight', 'blk.1.attn_norm.weight'],
      ['model.layers.1.post_attention_layernorm.weight', 'blk.1.ffn_norm.weight'],
      ['model.norm.weight', 'output_norm.weight'],
    ] as const
    for (const [from, to] of names) {
      expect(await values(ours, to)).toEqual((await values(input, from)).map((weight) => weight + 1))
    }
    const { normBias, vocabularySize, normEps, embeddingScale, ...rest } = gemmaConfig(ours)
    expect(normBias).toBe(0)
    expect(vocabularySize).toBe(90)
    expect(gemmaConfig(input)).toMatchObject(rest)
    expect(Math.fround(gemmaConfig(input).normEps)).toBe(normEps)
    // √32 as the head's type has it: f16 here, f32 in the input.
    expect(embeddingScale).toBeCloseTo(Math.sqrt(32), 2)
  })

  test('added pieces beyond the rows of the embedding are left out: the image marker of Gemma 3 1B', async () => {
    const copy = join(folder, 'beyond')
    cpSync(join(fixtures, 'oracle/gemma1-tiny'), copy, { recursive: true })
    writeTokenizer(join(copy, 'tokenizer.json'), 96)
    const json = JSON.parse(readFileSync(join(copy, 'tokenizer.json'), 'utf8')) as { added_tokens: object[] }
    json.added_tokens.push({ id: 96, content: '<image_soft_token>', special: true })
    writeFileSync(join(copy, 'tokenizer.json'), JSON.stringify(json))
    await quantizeCheckpoint(device, copy, output, { type: 'q8_0' })
    const ours = await openCheckpoint(output)
    expect(ours.tensors.get('token_embd.weight')!.shape).toEqual([96, 32])
    const { tokens, scores, types } = lists(ours)
    expect([tokens.length, scores.length, types.length]).toEqual([96, 96, 96])
    expect(tokens.at(-1)).toBe('p91')
  })

  test('a GGUF file of floats: its metadata is copied, its norms are left alone', async () => {
    const first = join(folder, 'half.gguf')
    const copy = join(folder, 'gemma1')
    await quantizeCheckpoint(device, copy, first, { type: 'q8_0', headType: 'f16' })
    await rejectsCode(
      quantizeCheckpoint(device, first, output, { type: 'q4_0' }),
      'ERR_CHECKPOINT_UNSUPPORTED',
      /half\.gguf: tensor blk\.0\.attn_q\.weight: expected f32, f16 or bf16 weights, got Q8_0/,
    )
  })

  test.each<[string, number | undefined, 'ERR_CHECKPOINT_UNSUPPORTED' | 'ERR_CHECKPOINT_CORRUPT' | 'ERR_FILE', RegExp]>(
    [
      [
        'gemma2-tiny',
        90,
        'ERR_CHECKPOINT_UNSUPPORTED',
        /tensor model\.embed_tokens\.weight: expected rows of a multiple of 32 weights \(q8_0\), got 48/,
      ],
      ['gemma1-tiny', 97, 'ERR_CHECKPOINT_CORRUPT', /expected a row for each of the tokenizer's 97 pieces, got 96/],
      ['gemma1-tiny', undefined, 'ERR_FILE', /expected tokenizer\.model or tokenizer\.json beside the weights/],
    ],
  )('%s with %s pieces is refused', async (name, pieces, code, message) => {
    const copy = mkdtempSync(join(folder, 'refused-'))
    cpSync(join(fixtures, 'oracle', name), copy, { recursive: true })
    // The oracles' odd query scale is another reason to refuse them.
    writeFileSync(
      join(copy, 'config.json'),
      JSON.stringify({ ...(await openCheckpoint(copy)).config, query_pre_attn_scalar: 16 }),
    )
    if (pieces !== undefined) writeTokenizer(join(copy, 'tokenizer.json'), pieces)
    await rejectsCode(quantizeCheckpoint(device, copy, join(copy, 'out.gguf'), { type: 'q4_0' }), code, message)
    expect(readdirSync(copy)).not.toContain('out.gguf')
  })

  test.each<[string, Record<string, unknown>, RegExp]>([
    [
      'a query scale of its own',
      { query_pre_attn_scalar: 50 },
      /queryScale: expected 0\.125, as readers of GGUF assume, got 0\.1414\d+: GGUF has no key/,
    ],
  ])('%s is refused', async (_, change, message) => {
    const copy = mkdtempSync(join(folder, 'own-'))
    cpSync(tiny, copy, { recursive: true })
    writeFileSync(join(copy, 'config.json'), JSON.stringify({ ...(await openCheckpoint(tiny)).config, ...change }))
    await rejectsCode(
      quantizeCheckpoint(device, copy, join(copy, 'o.gguf'), { type: 'q4_0' }),
      'ERR_CHECKPOINT_UNSUPPORTED',
      message,
    )
  })

  test('a layer pattern, a window and rotary bases that are not the usual ones', async () => {
    const copy = mkdtempSync(join(folder, 'pattern-'))
    cpSync(tiny, copy, { recursive: true })
    const [local, global] = ['sliding_attention', 'full_attention']
    const change = {
      layer_types: [global, local, local, global, global, local, local, global],
      sliding_window: 77,
      rope_parameters: {
        full_attention: { rope_type: 'linear', factor: 3, rope_theta: 500 },
        sliding_attention: { rope_type: 'default', rope_theta: 500 },
      },
    }
    writeFileSync(join(copy, 'config.json'), JSON.stringify({ ...(await openCheckpoint(tiny)).config, ...change }))
    const path = join(copy, 'out.gguf')
    await quantizeCheckpoint(device, copy, path, { type: 'q4_0' })
    const config = gemmaConfig(await openCheckpoint(path))
    expect(config.layerTypes).toEqual(['global', 'local', 'local', 'global', 'global', 'local', 'local', 'global'])
    expect(config).toMatchObject({ window: 77, ropeTheta: { local: 500, global: 500 } })
    expect(config.positionScale.local).toBe(1)
    expect(config.positionScale.global).toBeCloseTo(1 / 3, 6)
  })

  test.each<[string, string | Uint8Array, RegExp]>([
    ['tokenizer.model', Uint8Array.of(0x0a, 0xff, 0xff, 0xff), /tokenizer\.model: byte \d+: expected a protobuf/],
    [
      'tokenizer.model',
      Uint8Array.of(0x0a, 0x7f, 0x00),
      /tokenizer\.model: byte 0: expected a protobuf field, got one that does not fit/,
    ],
    ['tokenizer.model', '', /tokenizer\.model: byte 0: expected a SentencePiece model, got no pieces/],
    ['tokenizer.model', Uint8Array.of(0x0a, 5, 0x15, 0, 0, 0xc0, 0x7f), /piece "": expected a finite score, got NaN/],
    ['tokenizer.model', Uint8Array.of(0x0a, 2, 0x18, 9), /piece "": expected a type from 1 to 6, got 9/],
    ['tokenizer.json', '{}', /tokenizer\.json: model: expected an object/],
    ['tokenizer.json', '{"model":{"type":"WordPiece"}}', /model\.type: expected "BPE"/],
    ['tokenizer.json', '{"model":{"vocab":[]}}', /model\.vocab: expected an object/],
    ['tokenizer.json', '{"model":{"vocab":{"a":-1},"merges":[]}}', /model\.vocab: "a": expected an id, got -1/],
    ['tokenizer.json', '{"model":{"vocab":{"a":1e9},"merges":[]}}', /expected an id, got 1000000000/],
    [
      'tokenizer.json',
      '{"model":{"vocab":{"a":0},"merges":["a"]}}',
      /model\.merges: expected pairs of pieces, got "a"/,
    ],
    ['tokenizer.json', '{"model":{"vocab":{"a":0},"merges":[]}}', /expected a piece "<bos>"/],
    [
      'tokenizer.json',
      '{"model":{"vocab":{"a":0},"merges":[]},"added_tokens":[{"id":7,"content":"x"}]}',
      /added token "x": expected an id up to 1, got 7/,
    ],
  ])('a damaged %s: %s', async (name, content, message) => {
    const copy = mkdtempSync(join(folder, 'tokenizer-'))
    cpSync(join(fixtures, 'oracle/gemma1-tiny'), copy, { recursive: true })
    writeFileSync(join(copy, name), content)
    await rejectsCode(
      quantizeCheckpoint(device, copy, join(copy, 'out.gguf'), { type: 'q4_0' }),
      'ERR_CHECKPOINT_CORRUPT',
      message,
    )
  })

  test('the original is never written over, under any of its names', async () => {
    const copy = mkdtempSync(join(folder, 'original-'))
    cpSync(tiny, copy, { recursive: true })
    const file = join(copy, 'model.safetensors')
    const before = readFileSync(file)
    symlinkSync(file, join(copy, 'link.gguf'))
    linkSync(file, join(copy, 'same.gguf'))
    for (const name of ['model.safetensors', 'link.gguf', 'same.gguf']) {
      const written = quantizeCheckpoint(device, copy, join(copy, name), { type: 'q4_0' })
      await rejectsCode(written, 'ERR_INVALID_ARGUMENT', /output: expected another file than the input's own/)
    }
    expect(readFileSync(file).equals(before)).toBe(true)
  })

  test('what is no file is not replaced, and a folder that is missing is named', async () => {
    const refused: [string, RegExp][] = [
      [folder, /expected a file to write, got a folder/],
      [join(folder, 'absent', 'q.gguf'), /q\.gguf: there is no such folder as .*absent/],
    ]
    if (process.platform !== 'win32')
      refused.push(['/dev/null', /expected a file to write, got a device, pipe or socket/])
    for (const [path, message] of refused)
      await rejectsCode(quantizeCheckpoint(device, tiny, path, { type: 'q4_0' }), 'ERR_FILE', message)
  })

  test('arguments and signals', async () => {
    const path = join(folder, 'none.gguf')
    await rejectsCode(
      quantizeCheckpoint(device, tiny, path, { type: 'q2_k' as 'q4_0' }),
      'ERR_INVALID_ARGUMENT',
      /type: expected one of q4_0, q8_0, got q2_k/,
    )
    await rejectsCode(
      quantizeCheckpoint(device, tiny, path, { type: 'q4_0', headType: 'i4' as 'q4_0' }),
      'ERR_INVALID_ARGUMENT',
      /headType/,
    )
    await rejectsCode(
      quantizeCheckpoint(device, tiny, path, { type: 'q4_0', signal: AbortSignal.abort() }),
      'ERR_ABORTED',
    )
    const controller = new AbortController()
    const onProgress = () => controller.abort()
    await rejectsCode(
      quantizeCheckpoint(device, tiny, path, { type: 'q4_0', onProgress, signal: controller.signal }),
      'ERR_ABORTED',
    )
    expect(readdirSync(folder).filter((name) => name.includes('partial') || name === 'none.gguf')).toEqual([])
  })
})
