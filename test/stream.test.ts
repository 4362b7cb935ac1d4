import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { add, Device, embedding, Tensor } from '../lib/index.ts'
import { bestIsa } from './support/devices.ts'
import { rejectsCode, throwsCode } from './support/errors.ts'
import { makeWork } from './support/work.ts'

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)

let device: Device
beforeEach(async () => {
  device = await Device.open('cpu', { isa: bestIsa, threads: 2, guard: true })
})
afterEach(async () => {
  device.dispose()
})

/** A call that only its kernel can find wrong: token 9 of a table of 4 rows. */
function failingCall(on: Device): Tensor {
  using table = Tensor.zeros(on, [4, 8], 'f32')
  using tokens = Tensor.from(on, Int32Array.of(1, 9, 2), [3])
  return embedding(tokens, table)
}

describe('order', () => {
  test('a thousand dependent calls', async () => {
    using one = Tensor.from(device, new Float32Array(33).fill(1), [33])
    let value = add(one, one)
    for (let i = 0; i < 999; i++) {
      const next = add(value, one)
      value.dispose()
      value = next
    }
    expect(await value.read()).toEqual(new Float32Array(33).fill(1001))
    value.dispose()
  })

  test('calls return at once; only read waits', async () => {
    // Without guards, whose filling of fresh memory is on the caller's thread.
    using plain = await Device.open('cpu', { isa: bestIsa, threads: 2 })
    const work = makeWork(plain)
    work.enqueue(1).dispose()
    await plain.stream.synchronize()
    const start = performance.now()
    using result = work.enqueue(60)
    const enqueued = performance.now() - start
    await result.read()
    const done = performance.now() - start
    expect(enqueued).toBeLessThan(done / 2)
    work.dispose()
  })

  test('the event loop turns while work is done', async () => {
    using plain = await Device.open('cpu', { isa: bestIsa, threads: 2 })
    const work = makeWork(plain)
    using result = work.enqueue(60)
    let turns = 0
    let reading = true
    const pending = result.read().finally(() => {
      reading = false
    })
    while (reading) {
      await new Promise((resolve) => setImmediate(resolve))
      turns++
    }
    await pending
    expect(turns).toBeGreaterThan(5)
    work.dispose()
  })

  test('reads settle in the order in which they were asked for', async () => {
    const work = makeWork(device)
    using small = Tensor.from(device, ramp(4), [4])
    using large = work.enqueue(10)
    const settled: string[] = []
    await Promise.all([
      small.read().then(() => settled.push('small')),
      large.read().then(() => settled.push('large')),
      small.read().then(() => settled.push('small again')),
      device.stream.synchronize().then(() => settled.push('synchronize')),
    ])
    expect(settled).toEqual(['small', 'large', 'small again', 'synchronize'])
    work.dispose()
  })

  test('a thousand reads at once', async () => {
    using x = Tensor.from(device, ramp(1000), [1000])
    const slices = Array.from({ length: 1000 }, (_, i) => x.slice(i, i + 1))
    const results = await Promise.all(slices.map((slice) => slice.read()))
    expect(results.map((result) => result[0])).toEqual([...ramp(1000)])
    for (const slice of slices) slice.dispose()
  })
})

describe('several streams of a device', () => {
  test('a stream waits for another where it is told to', async () => {
    using plain = await Device.open('cpu', { isa: bestIsa, threads: 2 })
    using second = plain.createStream()
    using x = Tensor.from(plain, ramp(1024), [1024])
    for (let round = 0; round < 20; round++) {
      const made = second.use(() => {
        let value = add(x, x)
        for (let i = 0; i < 10; i++) value = add(value, x)
        return value
      })
      plain.stream.wait(second)
      using sum = add(made, x)
      expect(await sum.read()).toEqual(ramp(1024).map((value) => 13 * value))
    }
  })

  test('use() comes back to the stream before, also after an error', () => {
    using second = device.createStream()
    expect(() =>
      second.use(() => {
        expect(device.currentStream).toBe(second)
        throw new Error('on purpose')
      }),
    ).toThrow('on purpose')
    expect(device.currentStream).toBe(device.stream)
  })

  test('errors stay on their stream', async () => {
    using second = device.createStream()
    second.use(() => failingCall(device).dispose())
    using x = Tensor.from(device, ramp(4), [4])
    using sum = add(x, x)
    expect([...(await sum.read())]).toEqual([0, 2, 4, 6])
    await device.stream.synchronize()
    await rejectsCode(second.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
    await second.synchronize()
  })

  test('hazard: two that wait for each other, and for themselves', async () => {
    using second = device.createStream()
    using x = Tensor.from(device, ramp(4), [4])
    for (let i = 0; i < 50; i++) {
      add(x, x).dispose()
      second.wait(device.stream)
      second.use(() => add(x, x)).dispose()
      device.stream.wait(second)
      device.stream.wait(device.stream)
    }
    await Promise.all([device.stream.synchronize(), second.synchronize()])
  })

  test('hazard: waiting for a stream that is disposed meanwhile', async () => {
    const work = makeWork(device)
    const second = device.createStream()
    second.use(() => work.enqueue(20)).dispose()
    device.stream.wait(second)
    second.dispose()
    using result = work.enqueue(1)
    expect(await result.read()).toHaveLength(512 * 512)
    throwsCode(() => device.stream.wait(second), 'ERR_DISPOSED')
    work.dispose()
  })
})

describe('errors', () => {
  test('stick: what comes after is skipped, and reads reject, until synchronize reports it', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    using failed = failingCall(device)
    using after = add(x, x)
    await rejectsCode(failed.read(), 'ERR_INDEX_OUT_OF_RANGE', /embedding.*9/)
    await rejectsCode(after.read(), 'ERR_INDEX_OUT_OF_RANGE')
    await rejectsCode(x.read(), 'ERR_INDEX_OUT_OF_RANGE')
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
    await device.stream.synchronize()
    expect([...(await x.read())]).toEqual([0, 1, 2, 3])
    using again = add(x, x)
    expect([...(await again.read())]).toEqual([0, 2, 4, 6])
  })

  test('the first one is reported', async () => {
    using table = Tensor.zeros(device, [4, 8], 'f32')
    using first = Tensor.from(device, Int32Array.of(17), [1])
    using second = Tensor.from(device, Int32Array.of(23), [1])
    embedding(first, table).dispose()
    embedding(second, table).dispose()
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /17/)
    await device.stream.synchronize()
  })

  test('calls before the failing one are computed', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    using before = add(x, x)
    const pending = before.read()
    failingCall(device).dispose()
    expect([...(await pending)]).toEqual([0, 2, 4, 6])
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
  })

  test('a stack leads to the caller', async () => {
    using failed = failingCall(device)
    const error = await failed.read().then(
      () => undefined,
      (reason: Error) => reason,
    )
    expect(error?.stack).toMatch(/stream\.test\.ts/)
    await device.stream.synchronize().catch(() => {})
  })

  test('one that nobody awaits is no unhandled rejection, and is reported by the next await', async () => {
    failingCall(device).dispose()
    await new Promise((resolve) => setTimeout(resolve, 20))
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
  })
})
