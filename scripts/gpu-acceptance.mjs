// The acceptance run of the CUDA kernels on a GPU (docs/gpu-acceptance.md), and the bundle that carries it to a host without network.
//
//   node scripts/gpu-acceptance.mjs                    on a GPU host, in a checkout or in the unpacked bundle: runs it
//   node scripts/gpu-acceptance.mjs --pack=<file.tar>  anywhere with nvcc: builds everything and packs it, this Node included.
//                                                      On the GPU host: tar -xf <file.tar> && lapidary-acceptance/run
//
// Steps: the GPU and its driver; every op's cases, the backend's tests and whole models on the GPU against references in double precision,
// with poisoned fresh memory and guard regions; memcheck and racecheck of compute-sanitizer on small shapes, where it is found. Writes
// acceptance.json and prints the row for the table. A step that cannot run is named and makes the run incomplete, never green.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values } = parseArgs({ options: { pack: { type: 'string' } } })
const limitMs = 10 * 60_000

function pack(file) {
  const run = (program, ...args) => execFileSync(program, args, { cwd: root, stdio: 'inherit' })
  run('npm', 'run', '--silent', 'build')
  run(process.execPath, 'scripts/build-cuda.mjs', '--into=build/Release')
  const folder = path.join(root, 'build', 'lapidary-acceptance')
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(path.join(folder, 'build'), { recursive: true })
  // What only benchmarks, linting and building need stays here.
  const left = /node_modules\/(onnxruntime|@biomejs|cmake-js|vega|canvas|prebuildify|\.cache)/
  for (const part of [
    'package.json',
    'vitest.config.ts',
    'dist',
    'lib',
    'models',
    'native',
    'scripts',
    'test',
    'node_modules',
  ]) {
    cpSync(path.join(root, part), path.join(folder, part), {
      recursive: true,
      verbatimSymlinks: true,
      filter: (source) => !left.test(source),
    })
  }
  cpSync(path.join(root, 'build', 'Release'), path.join(folder, 'build', 'Release'), { recursive: true })
  copyFileSync(process.execPath, path.join(folder, 'node'))
  const commit = execFileSync('git', ['rev-parse', 'HEAD'], { cwd: root, encoding: 'utf8' }).trim()
  const changed = execFileSync('git', ['status', '--porcelain'], { cwd: root, encoding: 'utf8' }).trim() !== ''
  writeFileSync(path.join(folder, 'commit'), `${commit}${changed ? ' and changes' : ''}\n`)
  writeFileSync(
    path.join(folder, 'run'),
    '#!/bin/sh\ncd "$(dirname "$0")" && exec ./node scripts/gpu-acceptance.mjs "$@"\n',
    {
      mode: 0o755,
    },
  )
  run('tar', '-cf', path.resolve(file), '-C', path.dirname(folder), path.basename(folder))
  console.log(`${file}: unpack it on the GPU host and start lapidary-acceptance/run`)
}

function gpu() {
  const fields = ['name', 'compute_cap', 'driver_version', 'memory.total']
  const result = spawnSync('nvidia-smi', [`--query-gpu=${fields.join(',')}`, '--format=csv,noheader'], {
    encoding: 'utf8',
  })
  if (result.status !== 0) {
    console.error('gpu-acceptance: nvidia-smi finds no GPU: nothing was run')
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
const steps = []

/** Runs a program as a step; what it prints goes to the terminal, and its end is remembered. */
function step(name, program, args, env = {}) {
  const left = limitMs - (performance.now() - began)
  const start = performance.now()
  const result =
    left > 0
      ? spawnSync(program, args, {
          cwd: root,
          encoding: 'utf8',
          timeout: left,
          maxBuffer: 2 ** 28,
          env: { ...process.env, NO_COLOR: '1', ...env },
        })
      : { status: null, stdout: '', stderr: 'no time left' }
  const text = `${result.stdout ?? ''}${result.stderr ?? ''}`
  const missing = result.error?.code === 'ENOENT'
  const outcome = missing ? 'not run: not installed' : result.status === 0 ? 'passed' : 'failed'
  const summary =
    text
      .split('\n')
      .findLast((line) => /Tests +\d|ERROR SUMMARY|RACECHECK SUMMARY/.test(line))
      ?.trim() ?? ''
  steps.push({ name, outcome, seconds: Math.round((performance.now() - start) / 1000), summary })
  console.log(`${outcome.toUpperCase().padEnd(8)} ${name}  ${summary}`)
  if (outcome === 'failed') console.log(text.slice(-20_000))
}

function accept() {
  const found = gpu()
  console.log(`${found.name}, compute capability ${found.computeCapability}, driver ${found.driver}, ${found.memory}`)
  const vitest = path.join(root, 'node_modules', 'vitest', 'vitest.mjs')
  const suites = ['run', 'test/ops', 'test/models/cuda.test.ts', 'test/cuda.test.ts', '-t', '[ (]sm80\\b(?!_)']
  step('ops, backend and models against double precision', process.execPath, [vitest, ...suites, '--fileParallelism'], {
    LAPIDARY_TEST_CUDA: 'real',
  })
  const small = path.join(root, 'scripts', 'gpu-small-shapes.mjs')
  step('small shapes', process.execPath, [small])
  for (const tool of ['memcheck', 'racecheck']) {
    step(`compute-sanitizer ${tool}`, 'compute-sanitizer', [
      `--tool=${tool}`,
      '--error-exitcode=1',
      process.execPath,
      small,
    ])
  }
  const green = steps.every(({ outcome }) => outcome === 'passed')
  const date = new Date().toISOString().slice(0, 10)
  writeFileSync(
    path.join(root, 'acceptance.json'),
    `${JSON.stringify({ date, commit: commit(), ...found, green, steps }, null, 2)}\n`,
  )
  console.log(
    `| ${date} | ${found.name} | ${found.computeCapability} | ${found.driver} | ${commit()} | ${green ? 'green' : 'not green'} |`,
  )
  process.exit(green ? 0 : 1)
}

if (values.pack) pack(values.pack)
else accept()
