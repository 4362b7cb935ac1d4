/** The command line as a whole: help, version, statuses; and the small commands. */
import { spawnSync } from 'node:child_process'
import { beforeAll, describe, expect, test } from 'vitest'
import { packageManifest } from '../../lib/cli/build.ts'
import { describeFailure, UsageError } from '../../lib/cli/failure.ts'
import { tokenCounts } from '../../lib/cli/options.ts'
import { LapidaryError } from '../../lib/errors.ts'
import { Device } from '../../lib/index.ts'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { runCli } from './cli.ts'

beforeAll(compileLibrary)

const commands = ['generate', 'chat', 'bench', 'inspect', 'devices', 'quantize', 'perplexity', 'build']

describe('help', () => {
  test('lists every command, shows examples and where models come from', async () => {
    const { code, stdout, stderr } = await runCli(['--help'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    for (const command of commands) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'))
    expect(stdout).toMatch(/Examples:[\s\S]*huggingface\.co\/google/)
  })

  test.each(commands)('of %s names its options, --json among them', async (command) => {
    const { code, stdout } = await runCli([command, '--help'])
    expect(code).toBe(0)
    expect(stdout).toMatch(new RegExp(`^Usage: lapidary ${command} `))
    expect(stdout).toMatch(/^ {2}--json /m)
  })

  test('stands for a command that is missing', async () => {
    const { code, stdout, stderr } = await runCli([])
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain('Usage: lapidary')
  })
})

test('--version is the package’s', async () => {
  expect(await runCli(['--version'])).toMatchObject({ code: 0, stdout: `${packageManifest().version}\n` })
})

test.runIf(process.platform === 'linux')('output on a full disk is one line and status 1', async () => {
  const cli = `"${process.execPath}" dist/cli/main.js`
  const shell = spawnSync('sh', ['-c', `${cli} devices > /dev/full`], { cwd: packageRoot, encoding: 'utf8' })
  expect(shell.status).toBe(1)
  expect(shell.stderr).toMatch(/^error: standard output: ENOSPC[^\n]*\n$/)
})

test('an unknown command is a usage error that suggests one', async () => {
  const { code, stderr } = await runCli(['genrate'])
  expect(code).toBe(2)
  expect(stderr).toContain('Did you mean generate?')
})

describe('devices', () => {
  test('for people', async () => {
    const { code, stdout, stderr } = await runCli(['devices'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^cpu {2}.* \d+ threads, .* GiB\n/)
    expect(stdout).toMatch(/^ {2}scalar +active$/m)
  })

  test('as JSON is what the API says', async () => {
    using device = await Device.open()
    const { stdout } = await runCli(['devices', '--json'])
    const [info] = JSON.parse(stdout) as [{ name: string; isa: string; threads: number }]
    expect(info).toMatchObject({ name: device.info().name, isa: device.info().isa, threads: device.info().threads })
  })
})

describe('a failure', () => {
  test.each([
    [new LapidaryError('ERR_FILE', 'x: absent'), 1, /^error ERR_FILE: x: absent\nhint: .+\n$/],
    [new LapidaryError('ERR_SHAPE_MISMATCH', 'y'), 1, /^error ERR_SHAPE_MISMATCH: y\n$/],
    [new LapidaryError('ERR_ABORTED', 'z'), 130, /^$/],
    [new UsageError('wrong', 'so'), 2, /^error: wrong\nhint: so\n$/],
    [new TypeError('odd'), 1, /^error: odd\n$/],
    ['thrown', 1, /^error: thrown\n$/],
  ])('%s has its text and status', (error, status, text) => {
    const failure = describeFailure(error)
    expect(failure.status).toBe(status)
    expect(failure.text).toMatch(text)
  })
})

describe('token counts', () => {
  test.each([
    ['512', [512]],
    ['128, 2K,3k', [128, 2048, 3072]],
  ])('%s', (text, counts) => {
    expect(tokenCounts(text)).toEqual(counts)
  })

  test.each(['', '0', '1,', '-3', '1.5', '2M', '9'.repeat(20)])('%j is refused', (text) => {
    expect(() => tokenCounts(text)).toThrow(/token counts/)
  })
})
