/** `lapidary inspect`: what it finds in the bundled model and in other files. */
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { ggufValue, writeGguf } from '../../lib/checkpoint/gguf-writer.ts'
import type { Inspection } from '../../lib/cli/inspect.ts'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { bundledModel, runCli, tinyModel } from './cli.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-cli-'))
beforeAll(compileLibrary)
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

async function inspected(...args: string[]): Promise<Inspection> {
  const { code, stdout, stderr } = await runCli(['inspect', '--json', ...args])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return JSON.parse(stdout) as Inspection
}

/** 8 layers of hidden size 256, feed-forward 768, 4 query and 2 key-value heads of 64, and 4,096 pieces. */
const layerMatrices = 256 * 64 * (4 + 2 + 2 + 4) + 3 * 256 * 768
const norms = 8 * (4 * 256 + 2 * 64) + 256
const parameters = 4096 * 256 + 8 * layerMatrices + norms

describe('the bundled model', () => {
  test('as JSON', async () => {
    const found = await inspected()
    expect(found).toMatchObject({
      format: 'gguf',
      files: [{ bytes: statSync(bundledModel).size }],
      parameters,
      config: { architecture: 'gemma3', layers: 8, hiddenSize: 256, window: 128, contextLength: 2048 },
      tokenizer: { pieces: 4096, bos: 2, eos: 1 },
    })
    expect(found.unsupported).toBeUndefined()
    expect(found.tensors).toBeUndefined()
    expect(found.weights.reduce((sum, group) => sum + group.parameters, 0)).toBe(parameters)
    expect(found.weights.find(({ part }) => part === 'attention')).toEqual({
      part: 'attention',
      type: 'Q4_0',
      tensors: 32,
      parameters: 8 * 256 * 64 * 12,
      bytes: (8 * 256 * 64 * 12 * 18) / 32,
    })
    expect(found.weights.find(({ part }) => part === 'norms')).toMatchObject({ type: 'F32', bytes: 4 * norms })
  })

  test('memory: packed weights, and keys and values by context', async () => {
    const { packed, kv } = await inspected(bundledModel)
    const matrices = (8 * layerMatrices * 18) / 32 + 4 * norms
    expect(packed).toEqual({
      stored: matrices + (4096 * 256 * 34) / 32,
      q8_0: matrices + (4096 * 256 * 34) / 32,
      q4_0: matrices + (4096 * 256 * 18) / 32,
    })
    // 2 × 2 heads × 64 dimensions × 2 bytes; seven of the eight layers keep 128 tokens.
    const row = kv?.find(({ contextLength, dtype }) => contextLength === 2048 && dtype === 'bf16')
    expect(row).toMatchObject({ bytesPerToken: 4096, allGlobal: 4096 * 2048, windowed: 512 * (2048 + 7 * 128) })
    expect(kv?.map(({ contextLength }) => contextLength)).toEqual([2048, 2048, 2048])
  })

  test('for people', async () => {
    const { code, stdout, stderr } = await runCli(['inspect', bundledModel])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/gguf, gemma3, 7\.35M parameters, 4\.57 MiB\n/)
    expect(stdout).toMatch(/^ {2}layers +8: 7 local, 1 global$/m)
    expect(stdout).toMatch(/^ {2}attention +Q4_0 +32 +1,572,864 +864 KiB +4\.50$/m)
    expect(stdout).toMatch(/^ {2}embedding +Q8_0 +1 +1,048,576 +1\.06 MiB +8\.50$/m)
    expect(stdout).toMatch(/^ +2K +1\.44 /m)
    expect(stdout).toMatch(/tokenizer +4,096 pieces, <bos> 2, <eos> 1/)
    expect(stdout).not.toContain('\x1b')
  })

  test('--tensors lists every tensor', async () => {
    const { tensors } = await inspected('--tensors')
    expect(tensors).toHaveLength(8 * 13 + 2)
    expect(tensors?.find(({ name }) => name === 'blk.7.ffn_down.weight')).toMatchObject({
      storedType: 'Q4_0',
      shape: [256, 768],
      bytes: (256 * 768 * 18) / 32,
    })
    const { stdout } = await runCli(['inspect', '--tensors'])
    expect(stdout).toMatch(/^ {2}blk\.7\.ffn_down\.weight +Q4_0 +\[256, 768\] +108 KiB +[\d,]+$/m)
  })
})

test('a Hugging Face folder has the same model in bf16', async () => {
  const found = await inspected(tinyModel)
  expect(found).toMatchObject({ format: 'safetensors', parameters, config: { architecture: 'gemma3', layers: 8 } })
  expect(new Set(found.weights.map(({ type }) => type))).toEqual(new Set(['BF16']))
  expect(found.packed?.stored).toBe(2 * (parameters - norms) + 4 * norms)
})

test.each(['gemma1-tiny', 'gemma2-tiny'])('%s, which has no tokenizer, is shown without', async (name) => {
  const found = await inspected(join(packageRoot, 'test/fixtures/oracle', name))
  expect(found.config?.architecture).toBe(name.replace(/1?-tiny/, ''))
  expect(found.tokenizer).toBeUndefined()
  expect(found.tokenizerProblem).toContain('tokenizer')
  const { stdout } = await runCli(['inspect', join(packageRoot, 'test/fixtures/oracle', name)])
  expect(stdout).toMatch(/tokenizer +none: /)
})

test('a model of another kind is shown, with what keeps it from running', async () => {
  const path = join(scratch, 'llama.gguf')
  await writeGguf(
    path,
    [['general.architecture', ggufValue('string', 'llama')]],
    [{ name: 'token_embd.weight', dtype: 'f32', shape: [4, 8], data: () => [new Uint8Array(128)] }],
  )
  const found = await inspected(path)
  expect(found.unsupported).toMatch(/general\.architecture.*llama/)
  expect(found.weights).toEqual([{ part: 'tensors', type: 'F32', tensors: 1, parameters: 32, bytes: 128 }])
  const { code, stdout } = await runCli(['inspect', path])
  expect(code).toBe(0)
  expect(stdout).toMatch(/does not run here: .*llama/)
})

test('a truncated file is an error that names it', async () => {
  const path = join(scratch, 'truncated.gguf')
  writeFileSync(path, readFileSync(bundledModel))
  const file = openSync(path, 'r+')
  ftruncateSync(file, 2_000_000)
  closeSync(file)
  const { code, stdout, stderr } = await runCli(['inspect', '--json', path])
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
  expect(stderr).toMatch(/^error ERR_CHECKPOINT_CORRUPT: .*truncated\.gguf.*\nhint: .*\n$/)
})

test('a folder without a model is an error that names it', async () => {
  const { code, stderr } = await runCli(['inspect', scratch.concat('/none')])
  expect(code).toBe(1)
  expect(stderr).toMatch(/^error ERR_FILE: .*none/)
})
