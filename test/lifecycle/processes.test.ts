// Hazards that end a process or a worker while work is in flight. Whatever happens, nothing crashes and nothing hangs.

import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { add, Tensor } from '../../lib/index.ts'
import { childPath, compileLibrary, packageRoot, runChild } from '../support/child.ts'
import { anyDevice } from '../support/devices.ts'

beforeAll(compileLibrary)

const folder = mkdtempSync(join(tmpdir(), 'lapidary-'))
afterAll(() => rmSync(folder, { recursive: true }))
const saved = join(folder, 'saved')

describe('exit in flight', () => {
  test('process.exit(0)', async () => {
    const result = await runChild('exit-in-flight.mjs', ['exit', saved])
    expect(result).toMatchObject({ code: 0, signal: null, stderr: '' })
  })

  test('leaves after the call in progress, not after all that is queued', async () => {
    const result = await runChild('exit-soon.mjs')
    const now = Date.now()
    expect(result).toMatchObject({ code: 0, signal: null, stderr: '' })
    const { queued, leftAt } = JSON.parse(result.stdout)
    expect(now - leftAt).toBeLessThan(queued / 2)
  })

  test('an uncaught exception keeps its exit code', async () => {
    const result = await runChild('exit-in-flight.mjs', ['throw', saved])
    expect(result).toMatchObject({ code: 1, signal: null })
    expect(result.stderr).toMatch(/on purpose/)
  })

  test('a signal', async () => {
    const result = await runChild('exit-in-flight.mjs', ['kill', saved])
    expect(result).toMatchObject({ code: null, signal: 'SIGTERM' })
  })

  test('the script ends: a pending read keeps the process alive until it has resolved', async () => {
    const result = await runChild('exit-in-flight.mjs', ['end', saved])
    expect(result).toMatchObject({ code: 0, signal: null, stderr: '', stdout: `read ${512 * 512}\n` })
  })

  test('the script ends: queued work that nobody awaits does not', async () => {
    const result = await runChild('unread.mjs')
    expect(result).toMatchObject({ code: 0, signal: null, stderr: '', stdout: 'queued\n' })
  })
})

test('collect in flight', { timeout: 120_000 }, async () => {
  const result = await runChild('collect-in-flight.mjs', [], { nodeArgs: ['--expose-gc'], timeout: 100_000 })
  expect(result).toMatchObject({ code: 0, signal: null, stderr: '', stdout: 'collected\n' })
})

interface Started {
  readonly worker: Worker
  readonly message: Promise<unknown>
  readonly exit: Promise<number>
}

function startWorker(workerData: unknown): Started {
  const worker = new Worker(childPath('worker.mjs'), { workerData })
  const message = new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  return { worker, message, exit: new Promise((resolve) => worker.once('exit', resolve)) }
}

describe('workers', () => {
  test('several at once, each with a device of its own', async () => {
    const workers = Array.from({ length: 4 }, () => startWorker({ role: 'compute' }))
    expect(await Promise.all(workers.map((worker) => worker.message))).toEqual(Array(4).fill({ first: 31, same: true }))
    expect(await Promise.all(workers.map((worker) => worker.exit))).toEqual([0, 0, 0, 0])
  })

  test('termination in flight, again and again; the main thread works on', async () => {
    const device = await anyDevice()
    using x = Tensor.from(device, Float32Array.of(1, 2), [2])
    for (let round = 0; round < 6; round++) {
      const { worker, message, exit } = startWorker({ role: 'endless' })
      expect(await message).toBe('working')
      await new Promise((resolve) => setTimeout(resolve, 7 * round))
      await worker.terminate()
      expect(await exit).toBe(1)
      using sum = add(x, x)
      expect([...(await sum.read())]).toEqual([2, 4])
    }
  })

  test('termination amid executes, loads and saves', async () => {
    for (let round = 0; round < 6; round++) {
      const { worker, message, exit } = startWorker({ role: 'transfers', path: join(folder, 'worker.bin') })
      expect(await message).toBe('working')
      await new Promise((resolve) => setTimeout(resolve, 7 * round))
      await worker.terminate()
      expect(await exit).toBe(1)
    }
  })

  test('a tensor that was sent to a worker is a foreign handle there', async () => {
    const device = await anyDevice()
    using x = Tensor.from(device, Float32Array.of(1, 2), [2])
    let sent: unknown
    try {
      sent = structuredClone(x)
    } catch {
      return // It cannot be sent at all: as good.
    }
    const { message, exit } = startWorker({ role: 'foreign', foreign: sent })
    expect(await message).toEqual({ code: expect.stringMatching(/^ERR_(FOREIGN_HANDLE|INVALID_ARGUMENT)$/) })
    await exit
  })
})

describe('copies of the package', () => {
  /** dist/ and, if asked, the addon, in a folder of their own. */
  function copyPackage(withAddon: boolean): string {
    const folder = mkdtempSync(join(tmpdir(), 'lapidary-'))
    for (const part of ['dist', 'package.json', ...(withAddon ? ['build/Release/lapidary.node'] : [])]) {
      cpSync(join(packageRoot, part), join(folder, part), { recursive: true, dereference: true })
    }
    symlinkSync(join(packageRoot, 'node_modules'), join(folder, 'node_modules'))
    return folder
  }

  test('two in one process do not meet', async () => {
    const folder = copyPackage(true)
    const result = await runChild('copies.mjs', [join(folder, 'dist')])
    rmSync(folder, { recursive: true })
    expect(result).toMatchObject({ code: 0, stderr: '', stdout: 'ERR_FOREIGN_HANDLE ERR_FOREIGN_HANDLE\n' })
  })

  test('one without its addon says how to get it', async () => {
    const folder = copyPackage(false)
    const result = await runChild('missing.mjs', [join(folder, 'dist')])
    rmSync(folder, { recursive: true })
    expect(result).toMatchObject({ code: 0, stderr: '' })
    expect(result.stdout).toMatch(/^LapidaryError ERR_NATIVE_MISSING .*npx lapidary build/)
  })
})
