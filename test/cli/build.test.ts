/** `lapidary build` where something is missing; that it builds is in test/package/install.test.ts. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { missingForBuild, missingHeaders } from '../../lib/cli/build-tools.ts'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { runCli } from './cli.ts'

const scratch = mkdtempSync(join(tmpdir(), 'lapidary-build-'))

beforeAll(compileLibrary)
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

/** A folder of programs that say and do what is given: the whole PATH of a build. */
function programs(name: string, scripts: Record<string, string>): string {
  const folder = join(scratch, name)
  mkdirSync(folder)
  for (const [program, script] of Object.entries(scripts)) {
    writeFileSync(join(folder, program), `#!/bin/sh\n${script}\n`)
    chmodSync(join(folder, program), 0o755)
  }
  return folder
}

describe('lapidary build names what is missing', () => {
  test('all of it at once, and how to get it', async () => {
    const env = { PATH: programs('none', {}), CXX: '' }
    const { code, stdout, stderr } = await runCli(['build'], { env })
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(/^lapidary: the addon cannot be compiled here, missing:\n/)
    expect(stderr).toMatch(/ {2}- a C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\)\n/)
    expect(stderr).toMatch(/ {2}- CMake 3\.20 or later \(cmake\)\n/)
    expect(stderr).toMatch(/ {2}- make or ninja\n/)
    if (process.platform === 'linux') expect(stderr).toMatch(/apt-get install g\+\+ make cmake/)
  })

  test('a compiler that is named and absent', async () => {
    const { code, stderr } = await runCli(['build', '--json'], { env: { CXX: 'no-such-compiler -O2' } })
    expect(code).toBe(1)
    expect(stderr).toContain('CXX names no-such-compiler, which cannot be started')
    expect(stderr).not.toContain('CMake 3.20')
  })

  test('tools that are too old, and what they said', async () => {
    const old = programs('old', {
      'c++': '[ "$1" = --version ] || { echo "error: unrecognized option -std=c++20" >&2; exit 1; }',
      cmake: 'echo "cmake version 3.16.3"',
      make: 'exit 0',
    })
    const { code, stderr } = await runCli(['build'], { env: { PATH: old, CXX: '' } })
    expect(code).toBe(1)
    expect(stderr).toContain('a compiler of C++20')
    expect(stderr).toContain('c++ says: error: unrecognized option -std=c++20')
    expect(stderr).toContain('CMake 3.20 or later: cmake is 3.16')
    expect(stderr).not.toContain('make or ninja')
  })
})

test('this machine, which compiled the addon, lacks nothing', () => {
  expect(missingForBuild(packageRoot)).toEqual([])
  const cmakeJs = createRequire(createRequire(import.meta.url).resolve('cmake-js/package.json'))
  expect(missingHeaders(cmakeJs.resolve)).toEqual([])
})

test('sources that were removed, headers that are not installed', () => {
  expect(missingForBuild(scratch)).toEqual([
    "the package's native/CMakeLists.txt",
    "the package's scripts/build-native.cjs",
  ])
  const elsewhere = createRequire(join(scratch, 'package.json'))
  expect(missingHeaders(elsewhere.resolve)).toEqual([
    'Node headers (the npm package node-api-headers)',
    'Node headers (the npm package node-addon-api)',
  ])
})
