/** `lapidary perplexity`, `quantize` and `bench`: work that takes a while, on the bundled model. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { BenchReport } from '../../lib/cli/bench.ts'
import { operationsPerToken } from '../../lib/cli/bench.ts'
import { measureLimits } from '../../lib/cli/limits.ts'
import { gemmaSizes } from '../../lib/models/gemma/sizes.ts'
import { compileLibrary } from '../support/child.ts'
import { anyDevice } from '../support/devices.ts'
import { bundledModel, evalText, runCli, tinyModel } from './cli.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-cli-'))
beforeAll(compileLibrary)
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

test('the limits of the machine are not measured to their end where nobody waits for them', async () => {
  const device = await anyDevice()
  await device.stream.synchronize()
  const { buffers, bytes } = device.memory()
  await expect(measureLimits(device, AbortSignal.abort('enough'))).rejects.toBe('enough')
  await device.stream.synchronize()
  expect(device.memory()).toMatchObject({ buffers, bytes })
})

describe('perplexity', () => {
  const text = join(scratch, 'text.txt')
  beforeAll(() => writeFileSync(text, readFileSync(evalText, 'utf8').slice(0, 6000)))

  test('as JSON', async () => {
    const { code, stdout, stderr } = await runCli(['perplexity', text, '--json'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const result = JSON.parse(stdout) as { perplexity: number; tokens: number; nll: number; tokensPerSecond: number }
    expect(result.tokens).toBeGreaterThan(1000)
    expect(result.perplexity).toBeCloseTo(Math.exp(result.nll), 6)
    // The whole of the text has 40 in float32; nothing would be 4,096.
    expect(result.perplexity).toBeGreaterThan(20)
    expect(result.perplexity).toBeLessThan(80)
    expect(result.tokensPerSecond).toBeGreaterThan(0)
  })

  test('for people, from standard input, with windows of its own', async () => {
    const options = ['--context-length', '64', '--quiet']
    const { code, stdout, stderr } = await runCli(['perplexity', '-', ...options], {
      input: readFileSync(text, 'utf8'),
    })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const [, short] = /^perplexity ([\d.]+) over [\d,]+ tokens\n$/.exec(stdout) ?? []
    const whole = await runCli(['perplexity', text, '--quiet'])
    const [, long] = /^perplexity ([\d.]+)/.exec(whole.stdout) ?? []
    // Less context, worse predictions.
    expect(Number(short)).toBeGreaterThan(Number(long))
    const strided = await runCli(['perplexity', text, ...options, '--stride', '16'])
    expect(Number(/^perplexity ([\d.]+)/.exec(strided.stdout)?.[1])).toBeLessThan(Number(short))
  })

  test('of nothing is an error', async () => {
    const { code, stderr } = await runCli(['perplexity', '-'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error ERR_INVALID_ARGUMENT: .*at least one token/)
  })
})

describe('quantize', () => {
  const output = join(scratch, 'small.gguf')

  test('writes a model that runs, and says how small it is', async () => {
    const { code, stdout, stderr } = await runCli(['quantize', tinyModel, output, '--type', 'q4_0', '--head', 'q8_0'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/small\.gguf: .* MiB/)
    const [made, shipped] = await Promise.all(
      [output, bundledModel].map((model) =>
        runCli(['generate', 'Once upon a time', '-m', model, '--temperature', '0', '-n', '24', '--quiet']),
      ),
    )
    // The bundled model is the same weights by the same rules.
    expect(made).toEqual(shipped)
    expect(readdirSync(scratch).filter((name) => name.includes('partial'))).toEqual([])
  })

  test('leaves an existing file alone, unless forced', async () => {
    writeFileSync(output, 'mine')
    const refused = await runCli(['quantize', tinyModel, output])
    expect(refused.code).toBe(1)
    expect(refused.stderr).toMatch(/^error ERR_FILE: .*small\.gguf.*--force/)
    expect(readFileSync(output, 'utf8')).toBe('mine')
    const forced = await runCli(['quantize', tinyModel, output, '--type', 'q8_0', '--force', '--json'])
    expect(forced.code).toBe(0)
    expect(JSON.parse(forced.stdout)).toMatchObject({ output, bytes: statSync(output).size, type: 'q8_0' })
  })

  test('of what is no checkpoint leaves nothing behind', async () => {
    const nothing = join(scratch, 'nothing.gguf')
    const { code, stderr } = await runCli(['quantize', evalText, nothing])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error ERR_CHECKPOINT_UNSUPPORTED: .*eval\.txt/)
    expect(existsSync(nothing)).toBe(false)
  })
})

describe('bench', () => {
  const quick = ['--prefill', '16,64', '--decode', '32', '--generate', '4', '--repeat', '1', '--threads', '1'] as const

  test('as JSON', async () => {
    const { code, stdout, stderr } = await runCli(['bench', ...quick, '--json'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const report = JSON.parse(stdout) as BenchReport
    expect(report.rows.map(({ kind, tokens }) => [kind, tokens])).toEqual([
      ['prefill', 16],
      ['prefill', 64],
      ['decode', 32],
    ])
    for (const row of report.rows) {
      expect(row.tokensPerSecond).toBeGreaterThan(0)
      expect(row.best).toBeGreaterThanOrEqual(row.tokensPerSecond)
      expect(row.percentOfLimit).toBeGreaterThan(0)
    }
    expect(report.limits.read).toBeGreaterThan(0)
    expect(report.limits.compute.gops).toBeGreaterThan(0)
    expect(report.device.threads).toBe(1)
    expect(report.weightBytes).toBeGreaterThan(4_000_000)
  })

  test('of a synthetic model, which is kept if asked for', async () => {
    const path = join(scratch, 'synthetic.gguf')
    const synthetic = ['--synthetic', 'gemma-3-270m', '--layers', '1', '--head-type', 'q4_0'] as const
    const args = [
      'bench',
      ...synthetic,
      '--prefill',
      '16',
      '--decode',
      '16',
      '--generate',
      '2',
      '--repeat',
      '1',
    ] as const
    const { code, stdout, stderr } = await runCli([...args, '--keep', path, '--no-packed-cache', '--json'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const report = JSON.parse(stdout) as BenchReport
    expect(report.model).toBe('gemma-3-270m')
    // The head alone: 262,144 rows of 640 in 4.5 bits.
    expect(report.weightBytes).toBeGreaterThan((262_144 * 640 * 4.5) / 8)
    expect(readdirSync(scratch).filter((name) => name.startsWith('synthetic'))).toEqual(['synthetic.gguf'])
  })

  test('for people, of what was kept before', async () => {
    const args = ['bench', '--synthetic', 'gemma-3-270m', '--keep', bundledModel, ...quick] as const
    const { code, stdout } = await runCli([...args, '--decode', '32,2046,4K'])
    expect(code).toBe(0)
    // For people; lengths beyond the context are named.
    expect(stdout).toMatch(/reads [\d.]+ GB\/s/)
    // 6.3 million weights of the layers and a million of the head, 4.5 bits each.
    expect(stdout).toMatch(/3\.9\d MiB of weights per token/)
    expect(stdout).toMatch(/^prefill +16 .* % of /m)
    expect(stdout).toMatch(/^decode +32 .* % of DRAM read$/m)
    expect(stdout).toMatch(/^left out, beyond the context: 2046, 4096 tokens$/m)
  })

  test.each([
    ['an unknown size', ['--synthetic', 'gemma-9'], /gemma-3-1b/],
    ['a model and a synthetic one', [bundledModel, '--synthetic', 'gemma-3-1b'], /both a model and --synthetic/],
    ['--layers alone', ['--layers', '1'], /--layers is for --synthetic/],
    ['--keep alone', ['--keep', 'x.gguf'], /--keep is for --synthetic/],
    ['no token counts', ['--decode', 'many'], /token counts/],
  ])('%s is a usage error', async (_what, args, message) => {
    const { code, stdout, stderr } = await runCli(['bench', ...args])
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toMatch(message)
  })

  test('counts the operations of a token', () => {
    // 26 layers: q and o of 4 × 256, k and v of 256 by 1152; three of 6912 by 1152; two operations each.
    const config = gemmaSizes['gemma-3-1b'] as unknown as Parameters<typeof operationsPerToken>[0]
    expect(operationsPerToken(config)).toBe(2 * 26 * 1152 * (1024 * 2 + 256 * 2 + 6912 * 3))
  })
})
