// Hazards of letting go: too early, twice, in the wrong order, or of something that was never ours.

import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { add, Device, matmul, Program, scope, Tensor } from '../../lib/index.ts'
import { native } from '../../lib/native.ts'
import { bestIsa } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { makeWork } from '../support/work.ts'

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)

let device: Device
beforeEach(async () => {
  device = await Device.open('cpu', { isa: bestIsa, threads: 2, guard: true })
})
afterEach(async () => {
  device.dispose()
})

describe('dispose in flight', () => {
  test('inputs, intermediates and outputs of queued calls', async () => {
    const work = makeWork(device)
    using expected = work.enqueue(6)
    const reference = await expected.read()
    const result = work.enqueue(6)
    work.dispose()
    const pending = result.read()
    result.dispose()
    expect(await pending).toEqual(reference)
  })

  test('all memory comes back', async () => {
    const before = device.memory()
    const work = makeWork(device)
    work.enqueue(8).dispose()
    work.dispose()
    await device.stream.synchronize()
    const after = device.memory()
    // One buffer of scratch may stay with the device.
    expect(after.buffers - before.buffers).toBeLessThanOrEqual(1)
  })

  test('a program, while its replay is queued', async () => {
    const work = makeWork(device)
    const program = Program.capture(device, [work.x], (x) => add(add(x, work.x), x))
    using output = program.run(work.x)
    program.dispose()
    work.enqueue(2).dispose()
    const data = await output.read()
    const x = await work.x.read()
    expect(data).toEqual((x as Float32Array).map((value) => Math.fround(Math.fround(value + value) + value)))
    work.dispose()
  })

  test('the device, with work and a read in flight: the read settles', async () => {
    const work = makeWork(device)
    const pending = work.enqueue(30).read()
    device.dispose()
    // Either it was computed in time, or it says that the device is gone. It never stays pending.
    await pending.then(
      (data) => expect(data).toHaveLength(512 * 512),
      (error) => throwsCode(() => rethrow(error), 'ERR_DISPOSED'),
    )
  })

  test('a stream, with work and a read in flight: the read settles', async () => {
    const work = makeWork(device)
    const stream = device.createStream()
    const pending = stream.synchronize()
    work.enqueue(4).dispose()
    stream.dispose()
    await pending.catch((error) => throwsCode(() => rethrow(error), 'ERR_DISPOSED'))
    expect((await work.x.read()).length).toBe(512 * 512)
  })
})

describe('double dispose', () => {
  test('is nothing', async () => {
    const other = await Device.open('cpu', { threads: 1 })
    const x = Tensor.from(other, ramp(4), [4])
    const program = Program.capture(other, [x], (input) => add(input, input))
    const stream = other.createStream()
    for (const thing of [program, stream, x]) {
      thing.dispose()
      thing.dispose()
    }
    expect(x.disposed).toBe(true)
    other.dispose()
    other.dispose()
  })

  test('does not hit the tensor that got the slot', async () => {
    const first = Tensor.from(device, ramp(4), [4])
    first.dispose()
    using second = Tensor.from(device, ramp(4), [4])
    first.dispose()
    expect([...(await second.read())]).toEqual([0, 1, 2, 3])
  })

  test('`using` after dispose()', () => {
    using x = Tensor.from(device, ramp(4), [4])
    x.dispose()
  })
})

describe('use after dispose', () => {
  test('of a tensor', async () => {
    const x = Tensor.from(device, ramp(4), [4])
    using y = Tensor.from(device, ramp(4), [4])
    x.dispose()
    throwsCode(() => add(x, y), 'ERR_DISPOSED')
    throwsCode(() => add(y, x), 'ERR_DISPOSED')
    throwsCode(() => x.slice(0, 1), 'ERR_DISPOSED')
    throwsCode(() => x.reshape([2, 2]), 'ERR_DISPOSED')
    await rejectsCode(
      attempt(() => x.read()),
      'ERR_DISPOSED',
    )
    await rejectsCode(
      attempt(() => x.readF32()),
      'ERR_DISPOSED',
    )
    // What it was is still known.
    expect(x.shape).toEqual([4])
    expect(x.dtype).toBe('f32')
  })

  test('of a stream', async () => {
    const stream = device.createStream()
    stream.dispose()
    await rejectsCode(
      attempt(() => stream.synchronize()),
      'ERR_DISPOSED',
    )
  })

  test('of a program', () => {
    using x = Tensor.from(device, ramp(4), [4])
    const program = Program.capture(device, [x], (input) => add(input, input))
    program.dispose()
    throwsCode(() => program.run(x), 'ERR_DISPOSED')
    throwsCode(() => program.info(), 'ERR_DISPOSED')
  })

  test('of a device, with tensors alive', async () => {
    const other = await Device.open('cpu', { threads: 2, guard: true })
    const x = Tensor.from(other, ramp(4), [4])
    const program = Program.capture(other, [x], (input) => add(input, input))
    other.dispose()
    throwsCode(() => add(x, x), 'ERR_DISPOSED')
    throwsCode(() => Tensor.from(other, ramp(4), [4]), 'ERR_DISPOSED')
    throwsCode(() => program.run(x), 'ERR_DISPOSED')
    throwsCode(() => other.createStream(), 'ERR_DISPOSED')
    throwsCode(() => other.memory(), 'ERR_DISPOSED')
    throwsCode(() => Program.capture(other, [x], (input) => input), 'ERR_DISPOSED')
    await rejectsCode(
      attempt(() => x.read()),
      'ERR_DISPOSED',
    )
    x.dispose()
    program.dispose()
  })
})

describe('foreign handle', () => {
  test('objects that are no tensors', () => {
    using x = Tensor.from(device, ramp(4), [4])
    const copies = [Object.create(Tensor.prototype), Object.create(x), { ...x }, structuredClone({ ...x, device: 0 })]
    for (const none of [{}, null, 'tensor', 3, ramp(4), device, device.stream, ...copies]) {
      throwsCode(() => add(x, none as Tensor), 'ERR_FOREIGN_HANDLE')
      throwsCode(() => add(none as Tensor, x), 'ERR_FOREIGN_HANDLE')
    }
  })

  test('a tensor in place of a device', () => {
    using x = Tensor.from(device, ramp(4), [4])
    for (const none of [x, {}, null, undefined, 7]) {
      throwsCode(
        () => Tensor.from(none as unknown as Device, ramp(4), [4]),
        ['ERR_INVALID_ARGUMENT', 'ERR_FOREIGN_HANDLE'],
      )
    }
  })

  test('numbers that no table gave out, at the native door', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    const stream = device.stream.handle
    const random = new Random(9)
    const guesses = [1, -1, 0.5, Number.NaN, Infinity, -Infinity, 2 ** 52 - 1, 2 ** 53, 1e300, device.handle, stream]
    // Right type and slot, any generation: the table starts at a random one.
    for (let i = 0; i < 100; i++) guesses.push(random.integer(0, 2 ** 25) * 2 ** 27 + 2 ** 24 + random.integer(0, 4))
    for (const guess of guesses) {
      const codes = ['ERR_FOREIGN_HANDLE', 'ERR_DISPOSED'] as const
      throwsCode(() => native.readTensor(stream, guess), codes)
      throwsCode(() => native.sliceTensor(guess, 0, 0, 1), codes)
      throwsCode(() => native.runProgram(guess, []), codes)
      if (guess !== stream) throwsCode(() => native.synchronize(guess), codes)
      if (guess !== device.handle) throwsCode(() => native.deviceInfo(guess), codes)
      native.releaseTensor(guess)
      native.releaseProgram(guess)
    }
    expect([...(await x.read())]).toEqual([0, 1, 2, 3])
  })
})

describe('scope', () => {
  test('disposes what is made inside, except what it returns', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    let inner: Tensor | undefined
    using result = scope(() => {
      inner = add(x, x)
      return add(inner, x)
    })
    expect(inner!.disposed).toBe(true)
    expect(result.disposed).toBe(false)
    expect(x.disposed).toBe(false)
    expect([...(await result.read())]).toEqual([0, 3, 6, 9])
  })

  test('keeps tensors inside arrays and objects that it returns', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    const { sums, last } = scope(() => {
      const first = add(x, x)
      const second = add(first, x)
      add(second, x)
      return { sums: [first, second], last: second }
    })
    expect(sums.map((tensor) => tensor.disposed)).toEqual([false, false])
    expect([...(await last.read())]).toEqual([0, 3, 6, 9])
    for (const tensor of sums) tensor.dispose()
  })

  test('an inner scope gives what it returns to the outer one', () => {
    using x = Tensor.from(device, ramp(4), [4])
    let middle: Tensor | undefined
    scope(() => {
      middle = scope(() => add(x, x))
      expect(middle?.disposed).toBe(false)
    })
    expect(middle!.disposed).toBe(true)
  })

  test('disposes when its body throws', () => {
    using x = Tensor.from(device, ramp(4), [4])
    let inner: Tensor | undefined
    expect(() =>
      scope(() => {
        inner = add(x, x)
        throw new Error('on purpose')
      }),
    ).toThrow('on purpose')
    expect(inner!.disposed).toBe(true)
  })
})

describe('out of memory', () => {
  test.each([[[2 ** 40]], [[2 ** 20, 2 ** 20, 2 ** 20]], [[2 ** 31, 2 ** 31, 2 ** 31, 2 ** 31]], [[2 ** 53, 2]]])(
    'Tensor.zeros(%j) is an error, and the process lives',
    async (shape) => {
      throwsCode(() => Tensor.zeros(device, shape, 'f32'), ['ERR_OUT_OF_MEMORY', 'ERR_INVALID_ARGUMENT'])
      using x = Tensor.from(device, ramp(4), [4])
      expect([...(await x.read())]).toEqual([0, 1, 2, 3])
    },
  )

  test('an output that is too large is an error of the call', async () => {
    // A tall column times a wide row: 2^30 × 2^30 elements from two inputs of nothing.
    using column = Tensor.zeros(device, [2 ** 22, 1], 'f32')
    using row = Tensor.zeros(device, [2 ** 22, 1], 'f32')
    throwsCode(() => matmul(column, row), ['ERR_OUT_OF_MEMORY', 'ERR_INVALID_ARGUMENT'])
  })

  test('memory that is freed can be had again, many times over', async () => {
    const count = 2 ** 26
    const rounds = Math.min(64, Math.ceil((2 * device.info().memoryLimit) / (4 * count)))
    for (let i = 0; i < rounds; i++) Tensor.zeros(device, [count], 'f32').dispose()
    // Sizes that are each a little different: freed blocks of one size must not starve another.
    for (let i = 0; i < 64; i++) Tensor.zeros(device, [2 ** 24 + i * 2 ** 16], 'f32').dispose()
    expect(device.memory().buffers).toBeLessThanOrEqual(1)
  })
})

function rethrow(error: unknown): never {
  throw error
}

/** A function may throw at once or return a promise that rejects: for these tests it is the same. */
async function attempt<T>(body: () => T | PromiseLike<T>): Promise<T> {
  return await body()
}
