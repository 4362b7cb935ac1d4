// The GPU benchmarks without a GPU: tiny cases on the emulated device against a peer in another process, good and bad ones; the data that
// Python makes; the Python files' protocol.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { mix, uniformAt, uniformBf16 } from '../../benchmarks/gpu/case.ts'
import { gpuCases, tinyCases, tinyLimitWork } from '../../benchmarks/gpu/cases.ts'
import { PeerProcess, type PeerProgram } from '../../benchmarks/gpu/peers.ts'
import { type GpuReport, runGpuBenchmarks } from '../../benchmarks/gpu/run.ts'
import { formatRow } from '../../benchmarks/report.ts'
import { Device } from '../../dist/index.js'
import type { Device as SourceDevice } from '../../lib/device.ts'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { cuda } from '../support/devices.ts'

// The benchmarks import the package: this file, and the peer, take its compiled form.
beforeAll(() => {
  compileLibrary()
  const tsc = join(packageRoot, 'node_modules/typescript/bin/tsc')
  const result = spawnSync(process.execPath, [tsc, '-p', join(packageRoot, 'tsconfig.bench.json')], {
    encoding: 'utf8',
  })
  if (result.status !== 0) throw new Error(result.stdout)
  process.env.LAPIDARY_CUDA_TIMING = '1'
})

const peers = ['copy', 'sdpa_flash', 'flex_attention', 'cublas', 'compile', 'tinygemm']
const fake = (how: string): PeerProgram => ({
  command: [process.execPath, join(packageRoot, 'test/benchmarks/gpu-peer.mjs'), how],
  peers,
})

/** Compiled and uncompiled devices differ in private names alone. */
async function open(): Promise<SourceDevice> {
  return (await Device.open('cuda', { isa: 'sm80_emulated', unverified: true })) as unknown as SourceDevice
}

async function run(programs: readonly PeerProgram[], only = '', budgetMs = 60_000): Promise<GpuReport> {
  using device = await open()
  return await runGpuBenchmarks({
    device,
    cases: tinyCases.filter(({ name }) => name.includes(only)),
    limitWork: tinyLimitWork,
    programs,
    footprint: 0,
    rounds: 2,
    sampleMs: 1,
    budgetMs,
    peerTimeoutMs: 10_000,
    log: () => {},
  })
}

describe.skipIf(cuda.family !== 'sm80_emulated')(`on the emulated device (${cuda.missing ?? cuda.family})`, () => {
  test('every kind of case is compared with a peer, raced, and judged', async () => {
    const report = await run([fake('good')])
    expect(report.problems).toEqual([])
    expect(report.notRun).toEqual({})
    expect(report.rows.map((row) => row.case)).toEqual(tinyCases.map(({ name }) => name))
    expect(report.limits).toEqual({ copy: 'copy', matmul: 'cublas' })
    for (const row of report.rows) {
      const benchmark = tinyCases.find(({ name }) => name === row.case)!
      const missing = benchmark.peers.filter((name) => ['sdpa_cudnn', 'jax_cudnn', 'tinygemm'].includes(name))
      expect(Object.keys(row.absent).sort(), row.case).toEqual([...missing].sort())
      expect(row.checkedWith.length, row.case).toBe(benchmark.peers.length - missing.length)
      expect(Object.keys(row.peers)).toEqual(row.checkedWith)
      // Two units of half a millisecond a run.
      for (const peer of Object.values(row.peers)) expect(peer.ms).toBeCloseTo(0.25)
      expect(row.ms).toBeGreaterThan(0)
      expect(row.percentOfLimit).toBeGreaterThan(0)
      expect(row.verdicts.length).toBeGreaterThan(0)
      expect(formatRow(row).join()).toContain(row.limit)
    }
    expect(report.rows[3]!.absent).toEqual({ tinygemm: 'left at home' })
  })

  test.each([
    ['dies', /ended with 3/],
    ['nonsense', /ms -1/],
    ['babbles', /not JSON/],
    ['wrong', /differs from ours/],
    ['raises', /TypeError: planted/],
  ])('a peer that %s is a problem of its own; the others are timed', async (how, message) => {
    const report = await run([fake(how)], 'window')
    const [row] = report.rows
    expect(row!.ms).toBeGreaterThan(0)
    expect(row!.failed.flex_attention).toMatch(message)
    expect(report.problems.join()).toMatch(message)
    expect(row!.peers).toEqual({})
    // cublas behaves, and is the limit here: it survives that its process does not.
    expect(report.limits.matmul).toBe('cublas')
    expect(row!.percentOfLimit).toBeGreaterThan(0)
  })

  test('a peer that hangs is given up', async () => {
    using device = await open()
    const report = await runGpuBenchmarks({
      device,
      cases: tinyCases.filter(({ name }) => name.includes('window')),
      limitWork: tinyLimitWork,
      programs: [fake('hangs')],
      footprint: 0,
      rounds: 1,
      sampleMs: 1,
      budgetMs: 60_000,
      peerTimeoutMs: 2000,
      log: () => {},
    })
    expect(report.rows[0]!.failed.flex_attention).toMatch(/no answer in 2 s/)
  })

  test('a peer that cannot do a shape, a program that is not there, and no time left are named', async () => {
    const refused = await run([fake('refuses')], 'GeGLU')
    expect(refused.rows[0]!.absent).toEqual({ compile: 'no compiler' })
    expect(refused.problems).toEqual([])
    const alone = await run([{ command: ['no-such-program-anywhere'], peers }], 'GeGLU')
    expect(alone.rows[0]!.absent.compile).toBe('no-such-program-anywhere is not installed')
    expect(alone.rows[0]!.checkedWith).toEqual([])
    expect(alone.peers.compile).toMatch(/^absent/)
    expect(alone.limits.copy).toBe('lapidary copy')
    expect(alone.rows[0]!.percentOfLimit).toBeGreaterThan(0)
    const late = await run([], 'GeGLU', -1)
    expect(late.rows).toEqual([])
    expect(Object.values(late.notRun)).toEqual(['no time left of -0.001 s'])
  })
})

describe('the cases', () => {
  test('have goals, which speak of peers and cases that there are', () => {
    const goals = gpuCases.flatMap((benchmark) => benchmark.goals)
    expect(goals).toHaveLength(13)
    for (const { name, goals: own, peers: has } of gpuCases) {
      expect(own.length, name).toBeGreaterThan(0)
      for (const goal of own) {
        if ('peer' in goal) expect(has).toContain(goal.peer)
        if ('than' in goal) expect(gpuCases.map((other) => other.name)).toContain(goal.than)
      }
    }
    expect(new Set(gpuCases.map(({ name }) => name)).size).toBe(gpuCases.length)
  })
})

describe('the Python side', () => {
  const folder = join(packageRoot, 'benchmarks/gpu/peers')
  const python = process.env.LAPIDARY_PYTHON ?? 'python3'
  const present = spawnSync(python, ['--version']).status === 0
  const env = { ...process.env, PYTHONDONTWRITEBYTECODE: '1' }

  test.skipIf(!present)('is Python, as far as its compiler can tell', () => {
    for (const file of readdirSync(folder).filter((name) => name.endsWith('.py'))) {
      const check = 'import sys; compile(open(sys.argv[1]).read(), sys.argv[1], "exec")'
      expect(spawnSync(python, ['-c', check, join(folder, file)], { encoding: 'utf8' }).stderr).toBe('')
    }
  })

  test.skipIf(!present)('makes the same data', () => {
    const script =
      'import json, protocol; print(json.dumps([[protocol.mix(i, s), protocol.uniform_at(i, s)] for s in (1, 6) for i in (0, 1, 77, 2**26 + 5)]))'
    const result = spawnSync(python, ['-c', script], { cwd: folder, encoding: 'utf8', env })
    const expected = [1, 6].flatMap((seed) =>
      [0, 1, 77, 2 ** 26 + 5].map((index) => [mix(index, seed), uniformAt(index, seed)]),
    )
    expect(JSON.parse(result.stdout)).toEqual(expected)
    const bits = uniformBf16(4096, 9)
    const mean = bits.reduce((sum, word) => sum + new Float32Array(Uint32Array.of(word << 16).buffer)[0]!, 0) / 4096
    expect(Math.abs(mean)).toBeLessThan(0.05)
  })

  test.skipIf(!present).each(['torch_peers.py', 'jax_peers.py'])('%s says who is there, and why not', async (file) => {
    const names = file === 'jax_peers.py' ? ['jax_cudnn'] : ['copy', 'sdpa_flash', 'cublas']
    const process = new PeerProcess({ command: [python, '-B', join(folder, file)], peers: names }, 60_000)
    const { peers: here, absent, failed } = await process.hello()
    expect(failed).toEqual({})
    for (const name of names) expect(here[name] ?? absent[name]).toMatch(/PyTorch|JAX/)
    await expect(process.ask({ do: 'no such thing' })).rejects.toThrow(/no such request/)
    // The process is well all the same.
    expect(await process.hello()).toMatchObject({ peers: here })
    process.stop()
  })
})
