// Builds and runs the executables of test/native.
//
//   node scripts/test-native.mjs [--arch=arm64] [--sanitize=address,undefined|thread] [name …]
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { build, emulator, requireTools, variant } from './native-variants.mjs'

const lacksWhatItNeeds = 77 // exit status, native/cmake/tests.cmake

const { values, positionals } = parseArgs({
  options: { arch: { type: 'string' }, sanitize: { type: 'string' } },
  allowPositionals: true,
})
const chosen = variant(values)
if (chosen.arch !== process.arch) {
  requireTools({ 'aarch64-linux-gnu-g++': 'g++-aarch64-linux-gnu', 'qemu-aarch64-static': 'qemu-user-static' })
}
build(chosen, { tests: true })

const folder = path.join(chosen.cmake, 'tests')
const names = existsSync(folder) ? readdirSync(folder) : []
const wanted = (name) => positionals.length === 0 || positionals.some((part) => name.includes(part))
const totals = { passed: 0, failed: 0, skipped: 0 }

for (const name of names.filter(wanted).sort()) {
  const [program, ...args] = [...emulator(chosen.arch), path.join(folder, name)]
  const started = performance.now()
  const result = spawnSync(program, args, {
    encoding: 'utf8',
    timeout: 600_000,
    env: { UBSAN_OPTIONS: 'print_stacktrace=1', TSAN_OPTIONS: 'halt_on_error=1', ...process.env },
  })
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  const verdict = result.status === 0 ? 'passed' : result.status === lacksWhatItNeeds ? 'skipped' : 'failed'
  totals[verdict] += 1
  console.log(
    `${verdict.toUpperCase().padEnd(8)} ${name}  ${seconds} s  ${result.stdout?.trim().split('\n').at(-1) ?? ''}`,
  )
  if (verdict === 'failed') {
    console.log(result.stdout, result.stderr, result.error ?? result.signal ?? `exit ${result.status}`)
  }
}

const label = [values.arch, values.sanitize].filter(Boolean).join(', ')
const { passed, failed, skipped } = totals
console.log(`native tests${label ? ` (${label})` : ''}: ${passed} passed, ${failed} failed, ${skipped} skipped`)
if (failed > 0 || passed === 0) process.exit(1)
