// The CUDA backend, on the emulated device: memory, streams, files, programs as graphs, errors, and ends in flight. Kernels have
// their suites in test/ops.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { add, addRmsNorm, Device, gelu, meanRows, Program, rmsNorm, Tensor } from '../lib/index.ts'
import { childPath, compileLibrary, runChild } from './support/child.ts'
import { cuda } from './support/devices.ts'
import { rejectsCode, throwsCode } from './support/errors.ts'
import { Random } from './support/random.ts'

const open = () => Device.open('cuda', { isa: cuda.family!, guard: true, unverified: true })
const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)
const graphs = (device: Device) => Number.parseInt(device.info().notes.graphs!, 10)

describe('a machine without what a GPU needs', () => {
  test('is told what is missing', async () => {
    const gpus = Device.list().filter((listing) => listing.kind !== 'cpu')
    expect(gpus.length).toBeGreaterThan(0)
    for (const { kind, reason } of gpus) {
      if (!reason) continue // A machine of those that have it.
      expect(reason).toMatch(
        /library could not be opened|no NVIDIA driver|too old|no GPU|acceptance run|compute capability/,
      )
      await rejectsCode(Device.open(kind), 'ERR_DEVICE_UNAVAILABLE', /Device\.open: cuda/)
    }
  })

  test.each(['cuda:', 'cuda:x', 'cuda:-1', 'CUDA', ''])('no kind of device: %j', async (kind) => {
    await rejectsCode(Device.open(kind as 'cuda'), 'ERR_INVALID_ARGUMENT', /cuda/)
  })

  test('a number beyond the GPUs there are', async () => {
    await rejectsCode(Device.open('cuda:99999'), 'ERR_DEVICE_UNAVAILABLE')
  })

  test('an instruction set of processors is none of GPUs', async () => {
    await rejectsCode(Device.open('cuda', { isa: 'avx2' }), 'ERR_DEVICE_UNAVAILABLE', /sm80.*avx2/)
    await rejectsCode(Device.open('cpu', { isa: 'sm80' }), 'ERR_DEVICE_UNAVAILABLE')
  })
})

describe.skipIf(!cuda.family)(`the CUDA device (${cuda.missing ?? cuda.family})`, () => {
  let device: Device
  beforeAll(async () => {
    device = await open()
  })
  afterAll(() => device.dispose())

  test('says what it is', async () => {
    const { kind, isa, kernels, notes, memoryLimit } = device.info()
    expect(kind).toBe('cuda:0')
    expect(isa).toBe(cuda.family)
    expect(kernels.rms_norm).toBe(cuda.family)
    expect(notes.driver).toMatch(/CUDA \d+\.\d/)
    expect(memoryLimit).toBeGreaterThan(2 ** 30)
    await rejectsCode(Device.open('cuda:63', { isa: cuda.family! }), 'ERR_DEVICE_UNAVAILABLE', /from 0 to/)
  })

  describe('memory', () => {
    test('comes back and is counted', async () => {
      using on = await open()
      const before = on.memory()
      const x = Tensor.from(on, ramp(1000), [1000])
      expect(on.memory().bytes - before.bytes).toBe(4000)
      x.dispose()
      await on.stream.synchronize()
      expect(on.memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
      expect(on.memory().cached).toBeGreaterThan(0)
    })

    test('what there is not is an error, and the device works on', async () => {
      throwsCode(() => Tensor.zeros(device, [2 ** 20, 2 ** 22], 'f32'), 'ERR_OUT_OF_MEMORY', /GPU has no \d+ bytes/)
      using x = Tensor.from(device, ramp(8), [8])
      using sum = add(x, x)
      expect([...(await sum.read())]).toEqual([...ramp(8)].map((value) => 2 * value))
    })

    test('transfers larger than the staging buffer, of odd sizes', async () => {
      const data = Int8Array.from({ length: 9_437_191 }, (_, i) => i * 7)
      using x = Tensor.from(device, data, [data.length], 'i8')
      expect(Buffer.compare(Buffer.from((await x.read()).buffer), Buffer.from(data.buffer))).toBe(0)
    })

    test('writes and strided reads in order with calls', async () => {
      using x = Tensor.from(device, ramp(6 * 8), [6, 8])
      using before = add(x, x)
      x.slice(2, 4).write(new Float32Array(16).fill(-1))
      using after = add(x, x)
      using block = after.slice(1, 5).slice(2, 5, 1)
      expect((await before.read())[2 * 8]).toBe(32)
      expect([...(await block.read())]).toEqual([20, 22, 24, -2, -2, -2, -2, -2, -2, 68, 70, 72])
    })
  })

  describe('streams', () => {
    test('one waits for another', async () => {
      const stream = device.createStream()
      using x = Tensor.from(device, ramp(64), [64])
      const first = Array.from({ length: 20 }, () => gelu(x))
      stream.wait(device.stream)
      const sum = stream.use(() => add(first.at(-1)!, first[0]!))
      device.stream.wait(stream)
      using expected = add(first[0]!, first[0]!)
      expect(await sum.read()).toEqual(await expected.read())
      stream.dispose()
      for (const tensor of [...first, sum]) tensor.dispose()
    })

    test('bad device data is the sticky error, of eager calls and of replays', async () => {
      using x = Tensor.from(device, ramp(24), [6, 4])
      using good = Tensor.from(device, Int32Array.of(0, 3, 6))
      using bad = Tensor.from(device, Int32Array.of(0, 7, 6))
      using eager = meanRows(x, bad)
      await rejectsCode(
        device.stream.synchronize(),
        'ERR_INDEX_OUT_OF_RANGE',
        /mean_rows: starts: .*got (0, then 7|7, then 6)/,
      )
      expect([...(await eager.read())]).toEqual([0, 0, 0, 0, 0, 0, 0, 0])
      using program = Program.capture(device, [good], (starts) => meanRows(gelu(x), starts))
      using right = program.run(good)
      const expected = await right.read()
      program.run(bad).dispose()
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /mean_rows/)
      using again = program.run(good)
      expect(await again.read()).toEqual(expected)
    })
  })

  describe('files', () => {
    const folder = mkdtempSync(join(tmpdir(), 'lapidary-cuda-'))
    afterAll(() => rmSync(folder, { recursive: true }))

    test('load, save and map', async () => {
      const path = join(folder, 'numbers')
      writeFileSync(path, ramp(300))
      const shape = [299]
      using loaded = Tensor.load(device, path, { shape, dtype: 'f32', offset: 4 })
      using mapped = Tensor.map(device, path, { shape, dtype: 'f32', offset: 4 })
      using sum = add(loaded, mapped)
      expect([...(await sum.read())]).toEqual([...ramp(300)].slice(1).map((value) => 2 * value))
      const copy = join(folder, 'copy')
      await mapped.save(copy)
      expect(readFileSync(copy)).toEqual(readFileSync(path).subarray(4))
      throwsCode(() => mapped.write(ramp(299)), 'ERR_INVALID_ARGUMENT')
    })
  })

  describe('programs', () => {
    const random = Random.named('cuda programs')
    const shape = [5, 96]
    const make = () => Tensor.from(device, random.normal('f32', shape).data, shape)

    function block(x: Tensor, weight: Tensor): Tensor {
      let h = x
      for (let i = 0; i < 4; i++) {
        const { residual, normed } = addRmsNorm(gelu(h), x, { postWeight: weight, preWeight: weight })
        h = add(residual, normed)
      }
      return rmsNorm(h)
    }

    test('captured and eager calls give the same bits, for inputs wherever they lie', async () => {
      using weight = Tensor.from(device, random.normal('f32', [96]).data, [96])
      using example = make()
      using program = Program.capture(device, [example], (x) => block(x, weight))
      const kept: Tensor[] = []
      for (let i = 0; i < 12; i++) {
        const x = make()
        using eager = block(x, weight)
        using replayed = program.run(x)
        expect(await replayed.read()).toEqual(await eager.read())
        kept.push(x) // so that the next one lies elsewhere
      }
      for (const x of kept) x.dispose()
    })

    test('a loop captures one graph, and queues ahead', async () => {
      using weight = Tensor.from(device, random.normal('f32', [96]).data, [96])
      using program = Program.capture(device, [{ shape, dtype: 'f32' }], (x) => block(x, weight))
      const data = random.normal('f32', shape).data as Float32Array
      const expected = await program.execute(data)
      const step = async () => {
        const results = await Promise.all([program.execute(data), program.execute(data)])
        for (const result of results) expect(result).toEqual(expected)
      }
      const before = graphs(device)
      for (let i = 0; i < 10; i++) await step()
      expect(graphs(device)).toBe(before)
    })

    test('a tensor that is written in place, or large, is used where it lies', async () => {
      const large = (fill: number) => Tensor.from(device, new Float32Array(1100 * 1024).fill(fill), [1100 * 1024])
      using example = large(0)
      using program = Program.capture(device, [example], (x) => add(x, x))
      const before = graphs(device)
      for (let i = 0; i < 3; i++) {
        using x = large(i)
        using sum = program.run(x)
        expect((await sum.slice(5, 7).read())[1]).toBe(2 * i)
      }
      expect(graphs(device)).toBeGreaterThan(before)
    })
  })

  describe('ends in flight', () => {
    beforeAll(compileLibrary)

    test('dispose: reads reject, memory comes back', async () => {
      const on = await open()
      const x = Tensor.from(on, ramp(4096), [16, 256])
      let value = x
      for (let i = 0; i < 60; i++) value = gelu(value)
      const read = value.read()
      on.dispose()
      await rejectsCode(read, 'ERR_DISPOSED')
    })

    test.each([
      ['exit', { code: 0, signal: null, stderr: '' }],
      ['throw', { code: 1, signal: null }],
      ['end', { code: 0, signal: null, stderr: '', stdout: 'read 4096\n' }],
    ])('the process: %s', async (how, expected) => {
      expect(await runChild('cuda-in-flight.mjs', [how, cuda.family!])).toMatchObject(expected)
    })

    test.skipIf(cuda.family === 'sm80').each(['eager', 'replay'])(
      'a launch that fails, %s: the sticky error, and the process lives on',
      async (how) => {
        const result = await runChild('cuda-fault.mjs', [how, cuda.family!], {
          env: { LAPIDARY_CUDA_EMULATION_FAULT: '3' },
        })
        expect(result).toMatchObject({ code: 0, signal: null, stderr: '' })
        const { outcome, value } = JSON.parse(result.stdout)
        expect(outcome).toMatch(/^ERR_INTERNAL add: CUDA error 719: a fault that a test asked for/)
        expect(value).toBeCloseTo(1.672755, 5) // gelu(gelu(1)) + 1
      },
    )

    test('a worker that is terminated; the main thread works on', async () => {
      for (let round = 0; round < 4; round++) {
        const worker = new Worker(childPath('cuda-in-flight.mjs'), { argv: ['endless', cuda.family!] })
        const exit = new Promise((resolve) => worker.once('exit', resolve))
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
        await new Promise((resolve) => setTimeout(resolve, 7 * round))
        await worker.terminate()
        expect(await exit).toBe(1)
        using x = Tensor.from(device, Float32Array.of(1, 2), [2])
        using sum = add(x, x)
        expect([...(await sum.read())]).toEqual([2, 4])
      }
    })
  })
})
