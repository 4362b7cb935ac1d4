/** What the library says where its addon is absent, is for another system, or does not load: LAPIDARY_PREBUILD names such folders. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { runCli } from '../cli/cli.ts'
import { compileLibrary } from '../support/child.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-loader-'))
const target = `${process.platform}-${process.arch}`

beforeAll(compileLibrary)
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** What `lapidary devices` says with an addon folder that holds these files. */
async function failureWith(name: string, files: readonly string[]): Promise<string> {
  const folder = join(scratch, name)
  mkdirSync(folder)
  for (const file of files) {
    mkdirSync(dirname(join(folder, file)), { recursive: true })
    writeFileSync(join(folder, file), 'no binary')
  }
  const { code, stdout, stderr } = await runCli(['devices'], { env: { LAPIDARY_PREBUILD: folder } })
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
  expect(stderr).toContain('npx lapidary build')
  return stderr
}

test('nothing there: the files that were looked for, and where', async () => {
  const text = await failureWith('empty', [])
  expect(text).toContain(`build/Release/lapidary.node or prebuilds/${target}/lapidary.`)
  expect(text).toContain(join(scratch, 'empty'))
  expect(text).toContain('it has no prebuilds')
})

test('binaries for other systems: which', async () => {
  const others = ['haiku-x64/lapidary.node', 'haiku-arm64/lapidary.node']
  const text = await failureWith(
    'others',
    others.map((file) => `prebuilds/${file}`),
  )
  expect(text).toContain(`it has prebuilds ${[...others].sort().join(', ')}`)
})

test('a binary that does not load: which, and what the system says', async () => {
  const file = `prebuilds/${target}/lapidary.node`
  const text = await failureWith('corrupt', [file])
  expect(text).toContain(`${join(scratch, 'corrupt', file)} does not load: `)
  expect(text).toMatch(/does not load: .*(too short|invalid|ELF|not valid|file)/)
})
