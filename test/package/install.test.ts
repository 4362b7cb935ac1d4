/**
 * The package as users get it: packed, and installed into an empty folder with no install script and no network.
 */

import { execFileSync } from 'node:child_process'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { compileLibrary } from '../support/child.ts'

const root = fileURLToPath(new URL('../../', import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), 'lapidary-package-'))
const user = join(scratch, 'user')
const installed = join(user, 'node_modules', 'lapidary')

// npm hands its settings down in npm_* variables, ours in LAPIDARY_*; a user's shell has neither.
const environment = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(npm_|LAPIDARY_|NODE_)/i.test(name)),
)

function run(program: string, args: readonly string[], cwd = user, env: NodeJS.ProcessEnv = {}): string {
  return execFileSync(program, args, {
    cwd,
    encoding: 'utf8',
    env: { ...environment, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
}

function pack(folder: string): string {
  const [packed] = JSON.parse(
    run('npm', ['pack', folder, '--json', '--ignore-scripts', '--pack-destination', scratch], root),
  ) as [{ filename: string }]
  return join(scratch, packed.filename)
}

beforeAll(() => {
  compileLibrary()
  run(process.execPath, [join(root, 'scripts/prebuild.mjs'), '--host'], root)
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>
  }
  // The registry's part: the dependencies as tarballs of their own.
  const tarballs = [root, ...Object.keys(dependencies).map((name) => join(root, 'node_modules', name))].map(pack)
  mkdirSync(user)
  writeFileSync(join(user, 'package.json'), JSON.stringify({ name: 'user', private: true, type: 'module' }))
  run('npm', ['install', '--offline', '--ignore-scripts', '--no-audit', '--no-fund', ...tarballs])
}, 600_000)

afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const geluOfOne = 0.5 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * 1.044715))
const program = `
  const device = await Device.open()
  const out = await gelu(Tensor.from(device, new Float32Array([0, 1]), [2])).read()
  console.log(JSON.stringify(Array.from(out)))`

describe('the installed package', () => {
  test('has what it needs, and nothing that npm would run', () => {
    const manifest = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as {
      gypfile: boolean
      scripts: object
    }
    expect(manifest.gypfile).toBe(false)
    expect(Object.keys(manifest.scripts)).not.toEqual(expect.arrayContaining(['install']))
    expect(Object.keys(manifest.scripts).filter((name) => /^(pre|post)?(install|prepare|publish)$/.test(name))).toEqual(
      [],
    )
    expect(readdirSync(join(installed, 'prebuilds', `${process.platform}-${process.arch}`))).toContain(
      'lapidary.glibc.node',
    )
    for (const file of [
      'dist/index.js',
      'dist/index.d.ts',
      'models/tiny-q4_0.gguf',
      'native/CMakeLists.txt',
      'scripts/build-native.cjs',
      'LICENSE',
      'README.md',
    ]) {
      expect(existsSync(join(installed, file)), file).toBe(true)
    }
    for (const file of ['binding.gyp', 'test', 'benchmarks', 'build', 'node_modules']) {
      expect(existsSync(join(installed, file)), file).toBe(false)
    }
  })

  test('can be imported', () => {
    writeFileSync(join(user, 'import.mjs'), `import { Device, Tensor, gelu } from 'lapidary'\n${program}`)
    const [zero, one] = JSON.parse(run(process.execPath, ['import.mjs'])) as number[]
    expect(zero).toBe(0)
    expect(one).toBeCloseTo(geluOfOne, 6)
  })

  test('can be required', () => {
    writeFileSync(
      join(user, 'require.cjs'),
      `const { Device, Tensor, gelu } = require('lapidary')\n;(async () => {${program}\n})()`,
    )
    expect(JSON.parse(run(process.execPath, ['--no-warnings', 'require.cjs']))[1]).toBeCloseTo(geluOfOne, 6)
  })

  test('has types', () => {
    writeFileSync(join(user, 'types.ts'), `import { Device, Tensor, gelu } from 'lapidary'\n${program}`)
    const options = {
      target: 'es2023',
      lib: ['es2023', 'esnext.disposable'],
      module: 'nodenext',
      strict: true,
      noEmit: true,
      types: ['node'],
    }
    writeFileSync(join(user, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files: ['types.ts'] }))
    mkdirSync(join(user, 'node_modules/@types'), { recursive: true })
    for (const name of ['@types/node', 'undici-types']) {
      cpSync(join(root, 'node_modules', name), join(user, 'node_modules', name), { recursive: true })
    }
    run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', '.'])
  })

  test('has a command', () => {
    expect(run('npx', ['--offline', 'lapidary', 'devices'])).toMatch(/^cpu /)
    expect(run('npx', ['--offline', 'lapidary', '--version'])).toMatch(/^\d+\.\d+\.\d+\n$/)
  })

  test('generates text with the model that it brings', () => {
    const args = ['--offline', 'lapidary', 'generate', 'Once upon a time', '--temperature', '0', '-n', '20', '--json']
    const lines = run('npx', args).trimEnd().split('\n')
    const result = JSON.parse(lines.at(-1) as string) as { type: string; text: string; tokens: number }
    expect(result).toMatchObject({ type: 'result', tokens: 20 })
    expect(result.text).toMatch(/\w+ \w+/)
    writeFileSync(
      join(user, 'generate.mjs'),
      `import { Gemma } from 'lapidary'
      const gemma = await Gemma.load()
      const { text } = await gemma.generate('Once upon a time', { temperature: 0, maxTokens: 20 })
      console.log(JSON.stringify(text))
      await gemma[Symbol.asyncDispose]()`,
    )
    expect(JSON.parse(run(process.execPath, ['generate.mjs']))).toBe(result.text)
  })

  test('says what to do where its binary is missing, and does it', () => {
    rmSync(join(installed, 'prebuilds'), { recursive: true })
    expect(() => run(process.execPath, ['import.mjs'])).toThrow(/ERR_NATIVE_MISSING[\s\S]*npx lapidary build/)
    // What `build` would fetch from the registry; one instruction set is enough to see that it compiles.
    mkdirSync(join(installed, 'build/tools'), { recursive: true })
    symlinkSync(join(root, 'node_modules'), join(installed, 'build/tools/node_modules'))
    // Where a cache compiles (CMAKE_CXX_COMPILER_LAUNCHER), it may know these sources from another folder.
    run('npx', ['--offline', 'lapidary', 'build'], user, { LAPIDARY_BUILD_ISAS: 'scalar', CCACHE_BASEDIR: installed })
    expect(JSON.parse(run(process.execPath, ['import.mjs']))[1]).toBeCloseTo(geluOfOne, 6)
  }, 600_000)
})
