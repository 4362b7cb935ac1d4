/** The programs of examples/, as users run them: every one, with the bundled model. */
import { execFile, spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { beforeAll, expect, test } from 'vitest'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { frameworkExamples } from '../support/examples.ts'

/** What each prints, and what is typed into it. */
const examples: Record<string, { prints: RegExp; typed?: string }> = {
  'generate.mjs': { prints: /^It was a dark and stormy night[\s\S]+ … \((length|stop)\)\n$/ },
  'streaming.mjs': { prints: /\w+ \w+[\s\S]*\n64 tokens, \d+ tokens\/s, ended: length\n$/ },
  'chat.mjs': { prints: /^> [\s\S]*\w+[\s\S]*\n> [\s\S]*\w+[\s\S]*\n> /, typed: 'Good morning\nAnd then?\n' },
  'batching.mjs': { prints: /^The captain[\s\S]*8 answers, \d+ tokens\/s together\nthe fourth alone: the same\n$/ },
  'ranking.mjs': { prints: /^ +[\d.]+ {2}She looked out of the window and saw her brother\.\n[\s\S]*\n$/ },
  'kernels.mjs': { prints: / threads\nfirst values: (-?\d+\.\d+ ?){3}\nreplayed: the same bits\n$/ },
}

beforeAll(compileLibrary)

test('every example has its test', () => {
  const files = readdirSync(join(packageRoot, 'examples')).filter((name) => /\.(mjs|js|ts)$/.test(name))
  expect(files.sort()).toEqual([...Object.keys(examples), ...frameworkExamples].sort())
})

test.each(Object.entries(examples))('%s', async (name, { prints, typed = '' }) => {
  const running = promisify(execFile)(process.execPath, [join(packageRoot, 'examples', name)], { timeout: 60_000 })
  running.child.stdin?.end(typed)
  const { stdout, stderr } = await running
  expect(stderr).toBe('')
  expect(stdout).toMatch(prints)
})

test('a model that is not there is an error with a code', () => {
  const example = join(packageRoot, 'examples/generate.mjs')
  const { status, stderr } = spawnSync(process.execPath, [example, 'absent.gguf'], { encoding: 'utf8' })
  expect(status).not.toBe(0)
  expect(stderr).toMatch(/ERR_FILE/)
})
