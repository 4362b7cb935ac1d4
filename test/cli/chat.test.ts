/** `lapidary chat`, from a script's lines. The editor at a terminal: line-reader.test.ts. */
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { compileLibrary } from '../support/child.ts'
import { finished, jsonLines, runCli, startCli } from './cli.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-cli-'))
beforeAll(compileLibrary)
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

interface Line {
  type: 'piece' | 'result'
  text: string
  promptTokens: number
  cachedTokens: number
}

const short = ['--temperature', '0', '-n', '12'] as const

async function results(input: string, ...args: string[]): Promise<Line[]> {
  const { code, stdout } = await runCli(['chat', ...short, '--json', ...args], { input })
  expect(code).toBe(0)
  return jsonLines<Line>(stdout).filter(({ type }) => type === 'result')
}

test('every line is a message, answered in the light of those before', async () => {
  const [first, second, ...more] = await results(`${'Good morning, my dear. '.repeat(8)}\n\nWho are you?\n`)
  expect(more).toEqual([])
  expect(second?.promptTokens).toBeGreaterThan((first?.promptTokens as number) + 12)
  // The first turn is in the cache, in whole pages.
  expect(second?.cachedTokens).toBeGreaterThan(0)
})

test('/reset forgets, /system changes the prompt, /quit leaves', async () => {
  const [first, reset, system, ...more] = await results(
    'Good morning.\n/reset\nGood morning.\n/system Be kind.\nGood morning.\n/quit\nNever asked.\n',
  )
  expect(more).toEqual([])
  expect(reset?.text).toBe(first?.text)
  expect(reset?.promptTokens).toBe(first?.promptTokens)
  expect(system?.promptTokens).toBeGreaterThan(first?.promptTokens as number)
})

test('--system is what /system sets', async () => {
  const [given] = await results('Good morning.\n', '--system', 'Be kind.')
  const [set] = await results('/system Be kind.\nGood morning.\n')
  expect(given).toMatchObject({ text: set?.text, promptTokens: set?.promptTokens })
})

test('standard output has the answers only; commands answer on standard error', async () => {
  const { code, stdout, stderr } = await runCli(['chat', ...short], {
    input: '/stats\nGood morning.\n/stats\n/help\n/nonsense\n',
  })
  expect(code).toBe(0)
  const [{ text }] = (await results('Good morning.\n')) as [Line]
  expect(stdout).toBe(`${text}\n`)
  expect(stderr).toMatch(/^no answer yet\n/)
  expect(stderr).toMatch(/context +\d+ of [\d,]+ tokens/)
  expect(stderr).toMatch(/\/save <file> +write/)
  expect(stderr).toMatch(/no command \/nonsense: \/help/)
})

test('/save writes the conversation, and replaces no file', async () => {
  const file = join(scratch, 'chat.json')
  const input = `/system Be kind.\nGood morning.\n/save ${file}\n/save ${file}\n/save\n`
  const { stdout, stderr } = await runCli(['chat', ...short], { input })
  expect(stderr).toContain(`saved to ${file}\n${file} exists and is left as it is\nexpected a file`)
  const saved = JSON.parse(readFileSync(file, 'utf8')) as { messages: unknown[] }
  expect(saved.messages).toEqual([
    { role: 'system', content: 'Be kind.' },
    { role: 'user', content: 'Good morning.' },
    { role: 'assistant', content: stdout.replace(/\n$/, '') },
  ])
})

test('markers in a message stay text', async () => {
  const [plain] = await results('a<end_of_turn>b\n')
  const [control] = await results('a<end_of_turn>b\n', '--allow-markers')
  expect(plain?.promptTokens).toBeGreaterThan(control?.promptTokens as number)
})

test('Ctrl-C ends a script with status 130', async () => {
  const child = startCli(['chat', '--seed', '3', '--stop-tokens', '0'])
  const end = finished(child)
  child.stdin.end('Tell me a long story.\nAnd another.\n')
  await once(child.stdout, 'data')
  child.kill('SIGINT')
  const { code, stdout } = await end
  expect(code).toBe(130)
  expect(stdout).toMatch(/\S\n$/)
})
