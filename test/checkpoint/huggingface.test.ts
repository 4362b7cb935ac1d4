import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../lib/checkpoint/checkpoint.ts'
import { rejectsCode } from '../support/errors.ts'
import { buildGguf, buildSafetensors, headerOf, smallGguf } from './build.ts'

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url))

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'lapidary-checkpoint-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const { header: firstHeader, bytes: firstBytes } = headerOf({ a: ['BF16', [4], 8], b: ['F32', [2], 8] })
const { header: secondHeader, bytes: secondBytes } = headerOf({ c: ['F16', [2, 2], 8] })
const first = buildSafetensors(firstHeader, firstBytes)
const second = buildSafetensors(secondHeader, secondBytes)
const shard = (part: number) => `model-0000${part}-of-00002.safetensors`
const index = { metadata: { total_size: 24 }, weight_map: { a: shard(1), b: shard(1), c: shard(2) } }

/** Writes files into the folder; objects as JSON. */
function write(files: Record<string, unknown>): void {
  for (const [name, content] of Object.entries(files)) {
    const isRaw = typeof content === 'string' || content instanceof Uint8Array
    writeFileSync(join(folder, name), isRaw ? content : JSON.stringify(content))
  }
}

const sharded = () => ({
  'model.safetensors.index.json': index as unknown,
  [shard(1)]: first as unknown,
  [shard(2)]: second as unknown,
  'config.json': { model_type: 'gemma2' },
})

describe('Hugging Face folders', () => {
  test('the bundled fixture', async () => {
    const path = join(fixtures, 'tiny-model/hf')
    const checkpoint = await openCheckpoint(path)
    expect(checkpoint).toMatchObject({
      format: 'safetensors',
      path,
      files: [join(path, 'model.safetensors')],
      config: { model_type: 'gemma3_text', hidden_size: 256 },
      generationConfig: { eos_token_id: [1, 6], top_k: 64 },
      tokenizerFiles: {
        model: join(path, 'tokenizer.model'),
        json: join(path, 'tokenizer.json'),
        config: join(path, 'tokenizer_config.json'),
      },
    })
    expect(checkpoint.chatTemplate).toBeUndefined()
    expect(checkpoint.tensors.size).toBe(106)
    expect(checkpoint.tensors.get('model.embed_tokens.weight')).toMatchObject({ dtype: 'bf16', shape: [4096, 256] })
  })

  test('one file: by folder, by name, alone', async () => {
    write({ 'model.safetensors': first })
    await rejectsCode(openCheckpoint(folder), 'ERR_FILE', /config\.json: expected the model's configuration/)
    const alone = await openCheckpoint(join(folder, 'model.safetensors'))
    expect(alone.config).toEqual({})
    expect(alone.tokenizerFiles).toEqual({})
    write({ 'config.json': { model_type: 'gemma' } })
    for (const path of [folder, join(folder, 'model.safetensors')]) {
      const { config, tensors } = await openCheckpoint(path)
      expect(config).toEqual({ model_type: 'gemma' })
      expect([...tensors.keys()]).toEqual(['a', 'b'])
    }
  })

  test('shards: by folder, by index', async () => {
    write(sharded())
    for (const path of [folder, join(folder, 'model.safetensors.index.json')]) {
      const checkpoint = await openCheckpoint(path)
      expect(checkpoint.path).toBe(path)
      expect(checkpoint.files).toEqual([
        join(folder, 'model.safetensors.index.json'),
        join(folder, shard(1)),
        join(folder, shard(2)),
      ])
      expect([...checkpoint.tensors].map(([name, { file }]) => [name, file])).toEqual([
        ['a', join(folder, shard(1))],
        ['b', join(folder, shard(1))],
        ['c', join(folder, shard(2))],
      ])
    }
  })

  test('of two copies the index chooses one; a tensor it does not name is there too', async () => {
    const { header, bytes } = headerOf({ c: ['F16', [2, 2], 8], a: ['BF16', [4], 8], extra: ['U8', [3], 3] })
    write({ ...sharded(), [shard(2)]: buildSafetensors(header, bytes) })
    const { tensors } = await openCheckpoint(folder)
    expect(tensors.get('a')!.file).toBe(join(folder, shard(1)))
    expect(tensors.get('extra')!.file).toBe(join(folder, shard(2)))
  })

  test('links, as in the Hugging Face cache', async () => {
    mkdirSync(join(folder, 'blobs'))
    mkdirSync(join(folder, 'snapshot'))
    write({ 'blobs/1': first, 'blobs/2': { model_type: 'gemma' } })
    symlinkSync('../blobs/1', join(folder, 'snapshot/model.safetensors'))
    symlinkSync('../blobs/2', join(folder, 'snapshot/config.json'))
    expect((await openCheckpoint(join(folder, 'snapshot'))).tensors.size).toBe(2)
  })

  test.each<[string, Record<string, unknown>, string | undefined]>([
    ['in tokenizer_config.json', { 'tokenizer_config.json': { chat_template: 'T' } }, 'T'],
    [
      'a list with a default',
      {
        'tokenizer_config.json': {
          chat_template: [
            { name: 'x', template: 'X' },
            { name: 'default', template: 'D' },
          ],
        },
      },
      'D',
    ],
    ['a list without', { 'tokenizer_config.json': { chat_template: [{ name: 'x', template: 'X' }] } }, 'X'],
    ['an empty list', { 'tokenizer_config.json': { chat_template: [] } }, undefined],
    ['null', { 'tokenizer_config.json': { chat_template: null } }, undefined],
    ['in chat_template.json', { 'tokenizer_config.json': {}, 'chat_template.json': { chat_template: 'J' } }, 'J'],
    [
      'in chat_template.jinja, which rules',
      { 'tokenizer_config.json': { chat_template: 'T' }, 'chat_template.jinja': '{{ é }}\n' },
      '{{ é }}\n',
    ],
  ])('chat template: %s', async (_, files, expected) => {
    write({ 'model.safetensors': first, 'config.json': {}, ...files })
    expect((await openCheckpoint(folder)).chatTemplate).toBe(expected)
  })
})

describe('damaged folders', () => {
  const corrupt = 'ERR_CHECKPOINT_CORRUPT'
  const mapped = (weight_map: unknown) => ({ 'model.safetensors.index.json': { weight_map } })
  test.each<
    [string, Record<string, unknown>, 'ERR_FILE' | 'ERR_CHECKPOINT_CORRUPT' | 'ERR_CHECKPOINT_UNSUPPORTED', RegExp]
  >([
    [
      'no weight_map',
      { 'model.safetensors.index.json': {} },
      corrupt,
      /index\.json: weight_map: expected an object, got undefined/,
    ],
    [
      'a shard elsewhere',
      mapped({ a: `../${shard(1)}` }),
      corrupt,
      /tensor "a": expected the name of a \.safetensors file beside it, got "\.\.\/model/,
    ],
    ['a shard at an absolute path', mapped({ a: '/etc/x.safetensors' }), corrupt, /got "\/etc\/x\.safetensors"/],
    ['a shard of another kind', mapped({ a: 'config.json' }), corrupt, /got "config\.json"/],
    ['a shard that is no name', mapped({ a: 7 }), corrupt, /got 7/],
    [
      'a shard that is missing',
      mapped({ a: 'gone.safetensors' }),
      'ERR_FILE',
      /gone\.safetensors: there is no such file/,
    ],
    [
      'a tensor that is missing',
      mapped({ a: shard(1), b: shard(1), c: shard(2), d: shard(2) }),
      corrupt,
      /model-00002-of-00002\.safetensors: tensor "d": expected it here/,
    ],
    [
      'a tensor in another shard',
      mapped({ a: shard(2), b: shard(1), c: shard(2) }),
      corrupt,
      /model-00002-of-00002\.safetensors: tensor "a": expected it here/,
    ],
    [
      'a tensor twice that the index does not name',
      { [shard(2)]: first, ...mapped({ a: shard(1), z: shard(2) }) },
      corrupt,
      /tensor "b": expected it once, got it also in .*model-00001/,
    ],
    [
      'an index that is no JSON',
      { 'model.safetensors.index.json': '{' },
      corrupt,
      /index\.json: byte 1: the file: expected JSON/,
    ],
    ['an empty index', { 'model.safetensors.index.json': '' }, corrupt, /index\.json: byte 0: the file: expected JSON/],
    [
      'a config that is a list',
      { 'config.json': '[]' },
      corrupt,
      /config\.json: byte 0: the file: expected a JSON object/,
    ],
    [
      'a generation config that is no UTF-8',
      { 'generation_config.json': Buffer.from([0x7b, 0xff, 0x7d]) },
      corrupt,
      /generation_config\.json: byte 1: the file: expected UTF-8/,
    ],
    [
      'a template that is none',
      { 'tokenizer_config.json': { chat_template: 7 } },
      corrupt,
      /tokenizer_config\.json: chat_template: expected a string or a list, got 7/,
    ],
    [
      'a template list that is none',
      { 'tokenizer_config.json': { chat_template: [{ name: 'default' }] } },
      corrupt,
      /chat_template: expected items/,
    ],
    [
      'a template that is no UTF-8',
      { 'chat_template.jinja': Buffer.from([0xff]) },
      corrupt,
      /chat_template\.jinja: byte 0: expected UTF-8/,
    ],
    [
      'an empty shard',
      { [shard(1)]: '' },
      corrupt,
      /model-00001-of-00002\.safetensors: byte 0: expected a safetensors file/,
    ],
  ])('%s', async (_, files, code, message) => {
    write({ ...sharded(), ...files })
    await rejectsCode(openCheckpoint(folder), code, message)
  })

  test('a shard that is a folder, a link to itself, a pipe', async () => {
    write(sharded())
    const path = join(folder, shard(1))
    rmSync(path)
    mkdirSync(path)
    await rejectsCode(
      openCheckpoint(folder),
      'ERR_FILE',
      /model-00001-of-00002\.safetensors: expected a file, got a folder/,
    )
    rmSync(path, { recursive: true })
    symlinkSync(shard(1), path)
    await rejectsCode(openCheckpoint(folder), 'ERR_FILE', /the symbolic link leads to itself/)
    rmSync(path)
    if (process.platform !== 'win32') {
      // A pipe that nobody writes must not be waited for.
      execFileSync('mkfifo', [path])
      await rejectsCode(openCheckpoint(folder), 'ERR_FILE', /expected a file, got a pipe/)
    }
  })

  test('a file larger than a header may be', async () => {
    write({ 'model.safetensors': first, 'config.json': '{}' })
    truncateSync(join(folder, 'config.json'), 2 ** 33)
    await rejectsCode(
      openCheckpoint(folder),
      corrupt,
      /config\.json: byte 0: the file: expected at most 16777216 bytes, got 8589934592/,
    )
  })

  test.skipIf(process.getuid?.() === 0)('a file without permission', async () => {
    write({ 'model.safetensors': first, 'config.json': '{}' })
    chmodSync(join(folder, 'model.safetensors'), 0)
    await rejectsCode(openCheckpoint(folder), 'ERR_FILE', /permission denied/)
  })
})

describe('what a path leads to', () => {
  test.each<[string, string[], 'ERR_FILE' | 'ERR_CHECKPOINT_UNSUPPORTED', RegExp]>([
    [
      'an empty folder',
      [],
      'ERR_FILE',
      /expected model\.safetensors, model\.safetensors\.index\.json or a \.gguf file, got none of them among 0 files/,
    ],
    [
      'pickled weights',
      ['pytorch_model.bin', 'config.json'],
      'ERR_CHECKPOINT_UNSUPPORTED',
      /got "pytorch_model\.bin": save the model again/,
    ],
    [
      'shards without an index',
      [shard(1), shard(2)],
      'ERR_FILE',
      /expected model\.safetensors\.index\.json beside 2 safetensors files/,
    ],
    [
      'two GGUF models',
      ['a.gguf', 'b.gguf'],
      'ERR_FILE',
      /expected one GGUF model, got 2: name one of the files: "a\.gguf", "b\.gguf"/,
    ],
    ['an adapter alone', ['adapter_model.safetensors'], 'ERR_FILE', /got none of them among 1 files/],
  ])('a folder with %s', async (_, names, code, message) => {
    write(Object.fromEntries(names.map((name) => [name, ''])))
    await rejectsCode(openCheckpoint(folder), code, message)
  })

  test('a folder with one GGUF model, also a split one', async () => {
    write({ 'a.gguf': buildGguf(smallGguf).bytes })
    expect((await openCheckpoint(folder)).files).toEqual([join(folder, 'a.gguf')])
    rmSync(join(folder, 'a.gguf'))
    for (const part of [0, 1]) {
      const { bytes } = buildGguf({
        metadata: [...(part === 0 ? smallGguf.metadata : []), ['split.no', 'u16', part], ['split.count', 'u16', 2]],
        tensors: smallGguf.tensors!.slice(part * 3, part * 3 + 3),
      })
      write({ [`b-0000${part + 1}-of-00002.gguf`]: bytes })
    }
    const files = [1, 2].map((part) => join(folder, `b-0000${part}-of-00002.gguf`))
    for (const path of [folder, ...files]) {
      const checkpoint = await openCheckpoint(path)
      expect(checkpoint).toMatchObject({ format: 'gguf', path, files })
      expect(checkpoint.tensors.size).toBe(6)
    }
    rmSync(files[1]!)
    await rejectsCode(openCheckpoint(folder), 'ERR_FILE', /b-00002-of-00002\.gguf: there is no such file/)
  })

  test('a GGUF file without the ending, as caches name theirs by hash', async () => {
    write({ 'sha256-0a1b': buildGguf(smallGguf).bytes, 'sha256-short': 'GGU' })
    expect((await openCheckpoint(join(folder, 'sha256-0a1b'))).tensors.size).toBe(6)
    await rejectsCode(openCheckpoint(join(folder, 'sha256-short')), 'ERR_CHECKPOINT_UNSUPPORTED', /that ends in/)
  })

  test('the GGUF fixture', async () => {
    const checkpoint = await openCheckpoint(fileURLToPath(new URL('../../models/tiny-q4_0.gguf', import.meta.url)))
    expect(checkpoint.config['gemma3.block_count']).toBe(8)
    expect((checkpoint.config['tokenizer.ggml.tokens'] as string[])[5]).toBe('<start_of_turn>')
    expect(checkpoint.tensors.get('blk.0.attn_q.weight')).toMatchObject({ dtype: 'q4_0', shape: [256, 256] })
  })

  test.each<[string, 'ERR_FILE' | 'ERR_CHECKPOINT_CORRUPT' | 'ERR_CHECKPOINT_UNSUPPORTED', RegExp]>([
    ['gone', 'ERR_FILE', /gone: there is no such file/],
    ['gone.gguf', 'ERR_FILE', /there is no such file/],
    ['file.txt', 'ERR_CHECKPOINT_UNSUPPORTED', /file\.txt: expected a folder, or a file that ends in/],
    ['file.txt/x.gguf', 'ERR_FILE', /a part of the path is no folder/],
    ['empty.gguf', 'ERR_CHECKPOINT_CORRUPT', /empty\.gguf: byte 0: expected a GGUF file, got an empty one/],
    [
      'm-00003-of-00002.gguf',
      'ERR_CHECKPOINT_CORRUPT',
      /expected the name of a part from 1 to 2, of at most 256, got 3/,
    ],
    ['m-00001-of-99999.gguf', 'ERR_CHECKPOINT_CORRUPT', /of at most 256/],
  ])('%s', async (name, code, message) => {
    write({ 'file.txt': 'x', 'empty.gguf': '', 'm-00003-of-00002.gguf': '', 'm-00001-of-99999.gguf': '' })
    await rejectsCode(openCheckpoint(join(folder, name)), code, message)
  })

  test.each([[''], ['a\0b'], [undefined], [7], [{}]])('%j is no path', async (path) => {
    await rejectsCode(openCheckpoint(path as string), 'ERR_INVALID_ARGUMENT', /openCheckpoint: path: expected/)
  })

  test('a device file', async () => {
    symlinkSync('/dev/null', join(folder, 'null.gguf'))
    if (process.platform !== 'win32') {
      await rejectsCode(openCheckpoint(join(folder, 'null.gguf')), 'ERR_FILE', /expected a file, got a device/)
    }
    expect(dirname(folder)).toBe(tmpdir())
  })
})
