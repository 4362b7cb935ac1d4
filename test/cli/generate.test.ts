/** `lapidary generate`, with the bundled model. */
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Interrupt } from '../../lib/cli/interrupt.ts'
import { compileLibrary } from '../support/child.ts'
import { finished, jsonLines, runCli, startCli } from './cli.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-cli-'))
beforeAll(compileLibrary)
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

interface Line {
  type: 'piece' | 'result'
  text: string
  ids: number[]
  finishReason?: string
  promptTokens?: number
  tokens?: number
  logprobs?: { id: number; logprob: number; top: { id: number; logprob: number }[] }[]
}

const greedy = ['--temperature', '0', '-n', '24'] as const
const prompt = 'It was a dark night, and the captain'

describe('text', () => {
  test('comes on standard output, speed on standard error', async () => {
    const { code, stdout, stderr } = await runCli(['generate', prompt, ...greedy])
    expect({ code, colours: stdout.includes('\x1b') || stderr.includes('\x1b') }).toEqual({ code: 0, colours: false })
    expect(stdout).toMatch(/^[^\n]*[a-z]{3}[\s\S]*\n$/)
    expect(stderr).toMatch(
      /^prompt \d+ tokens, .* tokens\/s · answer 24 tokens, .* tokens\/s · .* s · ended: length\n$/,
    )
  })

  test('is the same from an argument, a file and standard input, without their last line break', async () => {
    const file = join(scratch, 'prompt.txt')
    writeFileSync(file, `${prompt}\n`)
    const runs = await Promise.all([
      runCli(['generate', prompt, ...greedy, '--quiet']),
      runCli(['generate', '--file', file, ...greedy, '--quiet']),
      runCli(['generate', ...greedy, '--quiet'], { input: `${prompt}\n` }),
      runCli(['generate', '-', ...greedy, '--quiet'], { input: prompt }),
    ])
    const [first] = runs
    for (const run of runs) expect(run).toEqual({ code: 0, signal: null, stdout: first?.stdout, stderr: '' })
  })

  test('depends on the seed', async () => {
    const [one, again, other] = await Promise.all(
      ['1', '1', '2'].map((seed) => runCli(['generate', prompt, '--seed', seed, '-n', '24', '--quiet'])),
    )
    expect(one?.stdout).toBe(again?.stdout)
    expect(one?.stdout).not.toBe(other?.stdout)
  })

  test('ends before a stop string', async () => {
    const whole = await runCli(['generate', prompt, ...greedy, '--quiet'])
    const word = /\w+ (\w{3,})/.exec(whole.stdout)?.[1] as string
    const { stdout } = await runCli(['generate', prompt, ...greedy, '--quiet', '--stop', word, '--stop', 'never this'])
    expect(stdout.trimEnd()).toBe(whole.stdout.slice(0, whole.stdout.indexOf(word)).trimEnd())
  })
})

describe('--json', () => {
  test('is pieces, then the result that they make', async () => {
    const { code, stdout, stderr } = await runCli(['generate', prompt, ...greedy, '--json', '--logprobs', '3'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const lines = jsonLines<Line>(stdout)
    const pieces = lines.slice(0, -1)
    const result = lines.at(-1) as Line
    expect(new Set(pieces.map(({ type }) => type))).toEqual(new Set(['piece']))
    expect(result).toMatchObject({ type: 'result', finishReason: 'length', tokens: 24 })
    expect(pieces.map(({ text }) => text).join('')).toBe(result.text)
    expect(pieces.flatMap(({ ids }) => ids)).toEqual(result.ids)
    const logprobs = pieces.flatMap((piece) => piece.logprobs ?? [])
    expect(logprobs).toHaveLength(24)
    for (const { id, logprob, top } of logprobs) {
      expect(top).toHaveLength(3)
      // Greedy: the token is the likeliest.
      expect(top[0]).toEqual({ id, logprob })
    }
    const plain = await runCli(['generate', prompt, ...greedy, '--quiet'])
    expect(plain.stdout.replace(/\n$/, '')).toBe(result.text.replace(/\n$/, ''))
  })

  test('of an error is nothing on standard output', async () => {
    const { code, stdout, stderr } = await runCli(['generate', 'x', '--json', '-m', join(scratch, 'absent.gguf')])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain('ERR_FILE')
  })
})

describe('what is wrong', () => {
  test('with a model is one line with its code, and a hint', async () => {
    const { code, stdout, stderr } = await runCli(['generate', 'x', '-m', join(scratch, 'absent.gguf')])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(/^error ERR_FILE: .*absent\.gguf.*\nhint: .*\n$/)
  })

  test.each([
    ['a number beyond its range', ['x', '--top-p', '1.5'], /--top-p.*Expected a number from 0 to 1/],
    ['no number', ['x', '--temperature', 'hot'], /--temperature.*Expected a number/],
    ['half a token', ['x', '-n', '1.5'], /--max-tokens.*Expected an integer of at least 1/],
    ['an empty number', ['x', '--seed', ''], /--seed.*Expected an integer/],
    ['a bias without a token', ['x', '--logit-bias', '3'], /--logit-bias.*42=-1\.5/],
    ['an unknown choice', ['x', '--kv', 'f8'], /--kv.*bf16, f32, i8/],
    ['an unknown option', ['x', '--temprature', '1'], /unknown option '--temprature'[\s\S]*--temperature/],
    ['two prompts', ['x', '--file', 'y'], /both a prompt and --file/],
    ['too many arguments', ['x', 'y'], /too many arguments/],
  ])('%s is a usage error', async (_what, args, message) => {
    const { code, stdout, stderr } = await runCli(['generate', ...args])
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toMatch(message)
  })

  test('with a prompt file names the file', async () => {
    const { code, stderr } = await runCli(['generate', '--file', join(scratch, 'absent.txt')])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error ERR_FILE: .*absent\.txt/)
  })
})

describe('ends early', () => {
  test('by Ctrl-C: what there is, a line break, status 130', async () => {
    const child = startCli(['generate', prompt, '--seed', '3', '--stop-tokens', '0'])
    const end = finished(child)
    await once(child.stdout, 'data')
    child.kill('SIGINT')
    const { code, signal, stdout, stderr } = await end
    expect({ code, signal }).toEqual({ code: 130, signal: null })
    expect(stdout).toMatch(/\S[\s\S]*\n$/)
    expect(stderr).toContain('ended: abort')
  })

  test('when nobody reads any more: quietly', async () => {
    const child = startCli(['generate', prompt, '--seed', '3', '--stop-tokens', '0', '--json'])
    const end = finished(child)
    await once(child.stdout, 'data')
    child.stdout.destroy()
    const { code, signal, stderr } = await end
    expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' })
  })

  test('an interrupt aborts once; the next one has its default effect', () => {
    const before = process.listenerCount('SIGINT')
    using interrupt = new Interrupt()
    expect(process.listenerCount('SIGINT')).toBe(before + 1)
    process.emit('SIGINT')
    expect(interrupt.signal.aborted).toBe(true)
    expect(process.listenerCount('SIGINT')).toBe(before)
  })
})
