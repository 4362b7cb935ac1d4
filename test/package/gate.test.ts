/** The gate for prebuilds finds what it is there to find: binaries with one fault each, made by the compiler of this machine. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { packageRoot } from '../support/child.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-gate-'))
const entry = '__attribute__((visibility("default"))) int napi_register_module_v1(void)'

afterAll(() => rmSync(scratch, { recursive: true, force: true }))

function gate(
  name: string,
  source: string,
  { flags = [] as string[], file = 'lapidary.glibc.node', target = 'linux-x64' } = {},
) {
  const folder = join(scratch, name, target)
  mkdirSync(folder, { recursive: true })
  const args = ['-shared', '-fPIC', '-fvisibility=hidden', '-x', 'c', '-', '-o', join(folder, file), ...flags]
  const compiled = spawnSync('gcc', args, { input: source, encoding: 'utf8' })
  expect(compiled.stderr).toBe('')
  return check(folder)
}

function check(folder: string): { status: number | null; stderr: string; stdout: string } {
  return spawnSync(process.execPath, [join(packageRoot, 'scripts/check-prebuilds.mjs'), folder], { encoding: 'utf8' })
}

const linux = process.platform === 'linux' && process.arch === 'x64'

test.runIf(linux)('a good binary passes', () => {
  const { status, stdout, stderr } = gate('good', `${entry} { return 0; }`)
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  expect(stdout).toMatch(/lapidary\.glibc\.node: 0\.0\d MB; glibc [\d.]+; needs .*; exports 1\n/)
})

test.runIf(linux).each([
  ['a symbol that nothing provides', 'int absent(void);', 'return absent();', [], /nothing provides absent/],
  // glibc 2.34 took the threads in; a machine with an older one has no such version.
  ['a newer glibc', '#include <pthread.h>', 'return pthread_join(0, 0);', [], /needs glibc 2\.34; the limit is 2\.28/],
  ['a foreign library', '', 'return 0;', ['-Wl,--no-as-needed', '-lresolv'], /needs libresolv\.so\.2/],
  ['a second export', '__attribute__((visibility("default"))) int extra;', 'return 0;', [], /exports extra/],
])('%s is refused', (name, before, body, flags, problem) => {
  const { status, stderr } = gate(name, `${before}\n${entry} { ${body} }`, { flags })
  expect(status).toBe(1)
  expect(stderr).toMatch(problem)
  expect(stderr.trimEnd().split('\n')).toHaveLength(1)
})

test.runIf(linux)('no export, no addon, and a file that is no binary are refused', () => {
  expect(gate('mute', 'int hidden;').stderr).toMatch(/exports nothing/)
  expect(gate('beside', `${entry} { return 0; }`, { file: 'beside.so' }).stderr).toMatch(/no addon/)
  const folder = join(scratch, 'stray/linux-x64')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'notes.txt'), '')
  expect(check(folder).stderr).toMatch(/notes\.txt is no binary that a package carries/)
})
