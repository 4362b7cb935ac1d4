// The acceptance run of the CUDA kernels on a GPU (docs/gpu-acceptance.md), and the bundle that carries it to a host without network.
//
//   node scripts/gpu-acceptance.mjs                    on a GPU host, in a checkout or in the unpacked bundle: runs it
//   node scripts/gpu-acceptance.mjs --pack=<file>      anywhere with nvcc: builds everything and packs it, this Node included; the
//                                                      file ends with .tar.gz, .tar.xz or .tar.zst. On the GPU host:
//                                                      tar -xf <file> && lapidary-acceptance/run
//   … --python=<program>                               the Python that has the peers of the benchmarks; default python3
//
// Steps: the GPU and its driver; every op's cases, the backend's tests and whole models on the GPU against references in double precision,
// with poisoned fresh memory and guard regions; memcheck and racecheck of compute-sanitizer on small shapes, where it is found; the benchmarks
// with the peers of the host. Writes acceptance.json, benchmarks.json and benchmarks.svg, and prints the row for the table. A step that
// cannot run is named and makes the run incomplete, never green. --emulated, for tests of this script, runs the same flow on the emulated device
// with tiny sizes; --only-copy packs what is built already.
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values } = parseArgs({
  options: {
    pack: { type: 'string' },
    python: { type: 'string', default: process.env.LAPIDARY_PYTHON ?? 'python3' },
    emulated: { type: 'boolean', default: false },
    'only-copy': { type: 'boolean', default: false },
  },
})
const { emulated } = values
const limitMs = 10 * 60_000

// ── the bundle ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Folders of node_modules that these packages need, found as Node finds them. */
function packagesOf(names) {
  const found = new Set()
  const visit = (name, from) => {
    // Vite loads it for style sheets alone: 10 MB.
    if (name.startsWith('lightningcss')) return
    for (let folder = from; ; folder = path.dirname(folder)) {
      const candidate = path.join(folder, 'node_modules', name)
      if (existsSync(path.join(candidate, 'package.json'))) {
        if (found.has(candidate)) return
        found.add(candidate)
        const { dependencies, optionalDependencies } = JSON.parse(
          readFileSync(path.join(candidate, 'package.json'), 'utf8'),
        )
        for (const next of Object.keys({ ...dependencies, ...optionalDependencies })) visit(next, candidate)
        return
      }
      // Optional ones of other systems are not installed.
      if (path.dirname(folder) === folder || folder === root) return
    }
  }
  for (const name of names) visit(name, root)
  return [...found]
}

function pack(file) {
  if (!/\.tar\.(gz|xz|zst)$/.test(file))
    throw new Error(`${file}: expected a name that ends with .tar.gz, .tar.xz or .tar.zst`)
  const run = (program, ...args) => execFileSync(program, args, { cwd: root, stdio: 'inherit' })
  if (!values['only-copy']) {
    run('npm', 'run', '--silent', 'build')
    run('npx', 'tsc', '-p', 'tsconfig.bench.json')
    run('npm', 'run', '--silent', 'build:cuda-emulated')
    run(process.execPath, 'scripts/build-cuda.mjs', '--into=build/Release')
  }
  const folder = path.join(root, 'build', 'lapidary-acceptance')
  rmSync(folder, { recursive: true, force: true })
  const { dependencies } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  const packages = packagesOf([...Object.keys(dependencies), 'vitest', 'vega', 'vega-lite', '@ai-sdk/provider'])
  const parts = [
    'package.json',
    'vitest.config.ts',
    'dist',
    'lib',
    'models',
    'native',
    'scripts',
    'benchmarks/gpu/peers',
  ]
  const tests = ['ops', 'models', 'support', 'lifecycle', 'cuda.test.ts', 'fixtures/oracle', 'fixtures/tiny-model']
  const built = ['build/Release', 'build/benchmarks']
  for (const part of [...parts, ...tests.map((name) => `test/${name}`), ...built]) {
    // Times stay: a dist that seems older than lib would be compiled again.
    cpSync(path.join(root, part), path.join(folder, part), { recursive: true, preserveTimestamps: true })
  }
  for (const source of packages) {
    // A package inside another comes by itself; source maps and declarations are for people.
    const own = source.split(`${path.sep}node_modules${path.sep}`).length
    cpSync(source, path.join(folder, path.relative(root, source)), {
      recursive: true,
      filter: (file) =>
        !/\.(map|d\.[cm]?ts|md)$/.test(file) &&
        file.split(`${path.sep}node_modules${path.sep}`).length === own &&
        path.basename(file) !== 'node_modules',
    })
  }
  cpSync(process.execPath, path.join(folder, 'node'))
  run('strip', path.join(folder, 'node'))
  const commit = execFileSync('git', ['rev-parse', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim()
  const changed = execFileSync('git', ['status', '--porcelain'], { cwd: root, encoding: 'utf8' }).trim() !== ''
  writeFileSync(path.join(folder, 'commit'), `${commit}${changed ? ' and changes' : ''}\n`)
  const script = '#!/bin/sh\ncd "$(dirname "$0")" && exec ./node scripts/gpu-acceptance.mjs "$@"\n'
  writeFileSync(path.join(folder, 'run'), script, { mode: 0o755 })
  run('tar', '-caf', path.resolve(file), '-C', path.dirname(folder), path.basename(folder))
  const mib = (bytes) => (bytes / 2 ** 20).toFixed(1)
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  const unpacked = files.reduce(
    (sum, entry) => sum + statSync(path.join(entry.parentPath ?? entry.path, entry.name)).size,
    0,
  )
  console.log(
    `${file}: ${mib(statSync(file).size)} MiB, unpacked ${mib(unpacked)} MiB in ${files.length} files, ${packages.length} packages. ` +
      'Unpack it on the GPU host and start lapidary-acceptance/run',
  )
}

// ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────────

function gpu() {
  if (emulated) return { name: 'host emulation', computeCapability: '8.0', driver: 'none', memory: '3 GiB' }
  const fields = ['name', 'compute_cap', 'driver_version', 'memory.total']
  const result = spawnSync('nvidia-smi', [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader'], {
    encoding: 'utf8',
  })
  if (result.status !== 0) {
    const why =
      result.error?.code === 'ENOENT' ? 'nvidia-smi is not there: no NVIDIA driver' : 'nvidia-smi finds no GPU'
    console.error(
      `gpu-acceptance: ${why}: nothing was run. It needs an NVIDIA GPU of Ampere or newer and driver 580 or newer`,
    )
    process.exit(1)
  }
  const [name, computeCapability, driver, memory] = result.stdout
    .split('\n')[0]
    .split(',')
    .map((text) => text.trim())
  return { name, computeCapability, driver, memory }
}

function commit() {
  const file = path.join(root, 'commit')
  if (existsSync(file)) return readFileSync(file, 'utf8').trim()
  return execFileSync('git', ['rev-parse', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim()
}

const began = performance.now()
const left = () => limitMs - (performance.now() - began)
const steps = []

/** Runs a program as a step, for so many seconds at most; its end is remembered, and what it printed shown where it failed (or `show`). */
function step(name, seconds, program, args, { env = {}, show = false } = {}) {
  const start = performance.now()
  const timeout = Math.min(1000 * seconds, left())
  const result =
    timeout > 0
      ? spawnSync(program, args, {
          cwd: root,
          encoding: 'utf8',
          timeout,
          maxBuffer: 2 ** 28,
          env: { ...process.env, NO_COLOR: '1', ...env },
        })
      : { status: null, stdout: '', stderr: 'no time left' }
  const text = `${result.stdout ?? ''}${result.stderr ?? ''}`
  const missing = result.error?.code === 'ENOENT'
  const late = result.error?.code === 'ETIMEDOUT' ? `not done in ${Math.round(timeout / 1000)} s; ` : ''
  const outcome = missing ? 'not run: not installed' : result.status === 0 ? 'passed' : 'failed'
  const summary = `${late}${
    text
      .split('\n')
      .findLast((line) => /Tests +\d|ERROR SUMMARY|RACECHECK SUMMARY|^goals:|small shapes:/.test(line))
      ?.trim() ?? ''
  }`
  steps.push({ name, outcome, seconds: Math.round((performance.now() - start) / 1000), summary })
  console.log(`${outcome.toUpperCase().padEnd(8)} ${name}  ${summary}`)
  if (show) console.log(result.stdout)
  if (outcome === 'failed') console.log(show ? (result.stderr ?? '').slice(-20_000) : text.slice(-20_000))
}

function accept() {
  const found = gpu()
  console.log(`${found.name}, compute capability ${found.computeCapability}, driver ${found.driver}, ${found.memory}`)
  const vitest = [path.join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run']
  const suites = emulated
    ? ['test/ops/embedding.test.ts', 'test/ops/row-ops.test.ts', 'test/models/cuda.test.ts', '-t', 'sm80_emulated']
    : ['test/ops', 'test/models/cuda.test.ts', 'test/models/vision.test.ts', 'test/cuda.test.ts', '--fileParallelism']
  step('ops, backend and models against double precision', 240, process.execPath, [...vitest, ...suites], {
    env: { LAPIDARY_TEST_CUDA: emulated ? 'emulated' : 'real' },
  })
  const small = path.join(root, 'scripts', 'gpu-small-shapes.mjs')
  const env = emulated ? { LAPIDARY_SMALL_SHAPES_ISA: 'sm80_emulated' } : {}
  step('small shapes', 60, process.execPath, [small], { env })
  for (const tool of ['memcheck', 'racecheck']) {
    const args = [`--tool=${tool}`, '--error-exitcode=1', process.execPath, small]
    step(`compute-sanitizer ${tool}`, 90, emulated ? 'compute-sanitizer-is-for-gpus' : 'compute-sanitizer', args)
  }
  // The last step has what the others leave; it stops by itself some time before it would be stopped.
  const seconds = Math.floor(left() / 1000) - 15
  const benchmarks = [
    path.join(root, 'build', 'benchmarks', 'gpu', 'main.js'),
    `--python=${values.python}`,
    '--rounds=5',
    `--budget=${Math.max(0, seconds - 90)}`,
    '--peer-timeout=90',
    '--json=benchmarks.json',
    '--svg=benchmarks.svg',
    ...(emulated ? ['--emulated'] : []),
  ]
  step('benchmarks', seconds, process.execPath, benchmarks, { show: true })
  const green = steps.every(({ outcome }) => outcome === 'passed')
  const date = new Date().toISOString().slice(0, 10)
  writeFileSync(
    path.join(root, 'acceptance.json'),
    `${JSON.stringify({ date, commit: commit(), ...found, green, steps }, null, 2)}\n`,
  )
  if (emulated) {
    const flowed = steps.every(({ name, outcome }) => outcome === 'passed' || name.startsWith('compute-sanitizer'))
    console.log(`emulated: the flow ${flowed ? 'works' : 'fails'}; nothing of a GPU was shown`)
    process.exit(flowed ? 0 : 1)
  }
  console.log(
    `| ${date} | ${found.name} | ${found.computeCapability} | ${found.driver} | ${commit()} | ${green ? 'green' : 'not green'} |`,
  )
  process.exit(green ? 0 : 1)
}

if (values.pack) pack(values.pack)
else accept()
