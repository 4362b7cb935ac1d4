import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { add, Device, embedding, gelu, matmul, Program, rmsNorm, sample, softcap, Tensor } from '../lib/index.ts'
import { bestIsa, forEachIsa, openDevice, presentIsas } from './support/devices.ts'
import { rejectsCode, throwsCode } from './support/errors.ts'
import { Random } from './support/random.ts'

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)

let device: Device
beforeEach(async () => {
  device = await Device.open('cpu', { isa: bestIsa, threads: 2, guard: true })
})
afterEach(async () => {
  device.dispose()
})

/** A small residual network: enough calls, shapes and lifetimes to give the arena something to plan. */
function network(x: Tensor, weights: readonly Tensor[]): Tensor {
  let h = x
  for (const weight of weights) h = add(h, gelu(matmul(rmsNorm(h), weight)))
  return softcap(h, 30)
}

function makeWeights(on: Device, layers: number, width: number): Tensor[] {
  const random = new Random(21)
  return Array.from({ length: layers }, () => {
    const weight = random.normal('f32', [width, width], width ** -0.5)
    return Tensor.from(on, weight.data, weight.shape)
  })
}

describe('replay', () => {
  test('gives the bits of eager calls, for new inputs, on every instruction set', () =>
    forEachIsa(async (on) => {
      const random = new Random(22)
      const weights = makeWeights(on, 5, 96)
      const shape = [7, 96]
      const make = () => Tensor.from(on, random.normal('f32', shape).data, shape)
      using example = make()
      using program = Program.capture(on, [example], (x) => network(x, weights))
      for (let i = 0; i < 4; i++) {
        using x = make()
        using eager = network(x, weights)
        using replayed = program.run(x)
        expect(replayed.shape).toEqual(shape)
        expect(await replayed.read()).toEqual(await eager.read())
      }
      for (const weight of weights) weight.dispose()
    }))

  test('replays queue up, and each has outputs of its own', async () => {
    using x = Tensor.from(device, ramp(64), [64])
    using program = Program.capture(device, [x], (input) => add(add(input, input), input))
    const inputs = Array.from({ length: 20 }, (_, i) => Tensor.from(device, new Float32Array(64).fill(i), [64]))
    const outputs = inputs.map((input) => program.run(input))
    for (const input of inputs) input.dispose()
    const results = await Promise.all(outputs.map((output) => output.read()))
    for (const [i, result] of results.entries()) expect(result).toEqual(new Float32Array(64).fill(3 * i))
    for (const output of outputs) output.dispose()
  })

  test('an output can be the next input', async () => {
    using one = Tensor.from(device, new Float32Array(8).fill(1), [8])
    using program = Program.capture(device, [one], (x) => add(x, one))
    let value = one
    for (let i = 0; i < 50; i++) {
      const next = program.run(value)
      if (value !== one) value.dispose()
      value = next
    }
    expect(await value.read()).toEqual(new Float32Array(8).fill(51))
    value.dispose()
  })

  test('several inputs, several outputs', async () => {
    using a = Tensor.from(device, ramp(6), [2, 3])
    using b = Tensor.from(device, new Float32Array(6).fill(10), [2, 3])
    using program = Program.capture(device, [a, b], (x, y) => {
      const sum = add(x, y)
      return [sum, add(sum, y)]
    })
    const [sum, more] = program.run(b, a)
    expect([...(await sum!.read())]).toEqual([10, 11, 12, 13, 14, 15])
    expect([...(await more!.read())]).toEqual([10, 12, 14, 16, 18, 20])
  })

  test('outputs by name', async () => {
    using x = Tensor.from(device, ramp(3), [3])
    using program = Program.capture(device, [{ shape: [3], dtype: 'f32' }], (input) => {
      const double = add(input, input)
      return { double, triple: add(double, input) }
    })
    const { double, triple } = program.run(x)
    expect([...(await double.read())]).toEqual([0, 2, 4])
    expect([...(await triple.read())]).toEqual([0, 3, 6])
  })

  test('an input, a constant, a view and the same tensor twice as outputs', async () => {
    using x = Tensor.from(device, ramp(6), [2, 3])
    using constant = Tensor.from(device, ramp(2), [2])
    using program = Program.capture(device, [x], (input) => {
      const sum = add(input, input)
      return [input, constant, sum.slice(1, 2), sum, sum.reshape([6]), input.slice(0, 1)]
    })
    using other = Tensor.from(device, new Float32Array(6).fill(4), [2, 3])
    const outputs = program.run(other)
    const results = await Promise.all(outputs.map(async (output) => [...(await output.read())]))
    expect(results).toEqual([
      [4, 4, 4, 4, 4, 4],
      [0, 1],
      [8, 8, 8],
      [8, 8, 8, 8, 8, 8],
      [8, 8, 8, 8, 8, 8],
      [4, 4, 4],
    ])
    expect(outputs.map((output) => output.shape)).toEqual([[2, 3], [2], [1, 3], [2, 3], [6], [1, 3]])
  })

  test('views of inputs and intermediates inside', async () => {
    using x = Tensor.from(device, ramp(12), [3, 4])
    using program = Program.capture(device, [x], (input) => {
      const doubled = add(input, input)
      return add(doubled.slice(2, 3), input.slice(0, 1))
    })
    using result = program.run(x)
    expect([...(await result.read())]).toEqual([16, 19, 22, 25])
  })

  test('a contiguous view as input', async () => {
    using x = Tensor.from(device, ramp(12), [3, 4])
    using row = x.slice(1, 2)
    using program = Program.capture(device, [row], (input) => add(input, input))
    using last = x.slice(2, 3)
    using result = program.run(last)
    expect([...(await result.read())]).toEqual([16, 18, 20, 22])
  })

  test('on the stream that was current when it was captured', async () => {
    using second = device.createStream()
    using x = Tensor.from(device, ramp(4), [4])
    using program = second.use(() => Program.capture(device, [x], (input) => add(input, input)))
    using result = program.run(x)
    device.stream.wait(second)
    expect([...(await result.read())]).toEqual([0, 2, 4, 6])
    second.dispose()
    throwsCode(() => program.run(x), 'ERR_DISPOSED')
  })

  test('nothing inside', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    using program = Program.capture(device, [x], (input) => input)
    expect(program.info().calls).toBe(0)
    using result = program.run(x)
    expect([...(await result.read())]).toEqual([0, 1, 2, 3])
  })

  test('zero elements', async () => {
    using x = Tensor.from(device, new Float32Array(0), [0, 4])
    using program = Program.capture(device, [x], (input) => add(input, input))
    using result = program.run(x)
    expect(await result.read()).toHaveLength(0)
  })

  test('weights may be disposed: the program holds them', async () => {
    using x = Tensor.from(device, new Random(3).normal('f32', [4, 32]).data, [4, 32])
    const weights = makeWeights(device, 2, 32)
    using eager = network(x, weights)
    using program = Program.capture(device, [x], (input) => network(input, weights))
    for (const weight of weights) weight.dispose()
    using result = program.run(x)
    expect(await result.read()).toEqual(await eager.read())
  })

  test('intermediates share an arena that is smaller than their sum', () => {
    using x = Tensor.from(device, new Float32Array(64 * 96), [64, 96])
    const weights = makeWeights(device, 8, 96)
    using program = Program.capture(device, [x], (input) => network(input, weights))
    const info = program.info()
    expect(info.calls).toBe(8 * 4 + 1)
    expect(info.intermediateBytes).toBe(8 * 4 * 64 * 96 * 4)
    // At most three of them are alive at once.
    expect(info.arenaBytes).toBeLessThanOrEqual(4 * 64 * 96 * 4)
    for (const weight of weights) weight.dispose()
  })

  test('an error of device data sticks as in eager mode, and the program works again', async () => {
    using table = Tensor.from(device, ramp(32), [4, 8])
    using tokens = Tensor.from(device, Int32Array.of(3, 1), [2])
    using program = Program.capture(device, [tokens], (ids) => embedding(ids, table))
    using bad = Tensor.from(device, Int32Array.of(3, 4), [2])
    using failed = program.run(bad)
    await rejectsCode(failed.read(), 'ERR_INDEX_OUT_OF_RANGE')
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
    using fine = program.run(tokens)
    expect([...(await fine.read())]).toEqual([...ramp(32).subarray(24), ...ramp(32).subarray(8, 16)])
  })
})

describe('hazards of capture', () => {
  test('nested', () => {
    using x = Tensor.from(device, ramp(4), [4])
    throwsCode(
      () =>
        Program.capture(device, [x], (input) => {
          Program.capture(device, [x], (inner) => add(inner, inner))
          return input
        }),
      'ERR_CAPTURE',
    )
    expectUsable()
  })

  test('of a replay, a write, a read', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    using program = Program.capture(device, [x], (input) => add(input, input))
    const inside = (body: (input: Tensor) => unknown) => () =>
      Program.capture(device, [x], (input) => {
        const sum = add(input, input)
        body(sum)
        return sum
      })
    throwsCode(
      inside(() => program.run(x)),
      'ERR_CAPTURE',
    )
    throwsCode(
      inside((sum) => sum.write(ramp(4))),
      'ERR_CAPTURE',
    )
    // read() is asynchronous and so is its error. What it would wait for never happens.
    let pending: Promise<unknown> | undefined
    inside((sum) => {
      pending = sum.read()
    })().dispose()
    await rejectsCode(pending!, 'ERR_CAPTURE')
    expectUsable()
  })

  test('a body that throws: its error comes out, and nothing stays captured', () => {
    using x = Tensor.from(device, ramp(4), [4])
    expect(() =>
      Program.capture(device, [x], (input) => {
        add(input, input)
        throw new TypeError('on purpose')
      }),
    ).toThrow(new TypeError('on purpose'))
    expectUsable()
  })

  test('a body that is asynchronous', () => {
    using x = Tensor.from(device, ramp(4), [4])
    throwsCode(
      () =>
        Program.capture(device, [x], (async (input: Tensor) => add(input, input)) as unknown as (
          input: Tensor,
        ) => Tensor),
      ['ERR_CAPTURE', 'ERR_INVALID_ARGUMENT'],
    )
    expectUsable()
  })

  test('a body that returns no tensor', () => {
    using x = Tensor.from(device, ramp(4), [4])
    for (const none of [undefined, null, 3, [undefined], { sum: 3 }]) {
      throwsCode(
        () => Program.capture(device, [x], () => none as unknown as Tensor),
        ['ERR_INVALID_ARGUMENT', 'ERR_FOREIGN_HANDLE'],
      )
    }
    expectUsable()
  })

  test('an intermediate that gets out', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    let escaped: Tensor | undefined
    let input: Tensor | undefined
    using program = Program.capture(device, [x], (given) => {
      input = given
      escaped = add(given, given)
      return add(escaped, given)
    })
    for (const placeholder of [escaped!, input!]) {
      throwsCode(() => add(placeholder, x), ['ERR_CAPTURE', 'ERR_DISPOSED'])
      throwsCode(() => program.run(placeholder), ['ERR_CAPTURE', 'ERR_DISPOSED'])
      await rejectsCode((async () => placeholder.read())(), ['ERR_CAPTURE', 'ERR_DISPOSED'])
    }
    // Not even into the next capture.
    throwsCode(() => Program.capture(device, [x], (given) => add(given, escaped!)), ['ERR_CAPTURE', 'ERR_DISPOSED'])
    expectUsable()
  })

  test('a shape error inside', () => {
    using x = Tensor.from(device, ramp(4), [4])
    using y = Tensor.from(device, ramp(3), [3])
    throwsCode(() => Program.capture(device, [x], (input) => add(input, y)), 'ERR_SHAPE_MISMATCH')
    expectUsable()
  })

  function expectUsable(): void {
    using x = Tensor.from(device, ramp(4), [4])
    using program = Program.capture(device, [x], (input) => add(input, input))
    program.run(x).dispose()
    add(x, x).dispose()
  }
})

describe('hazards of replay', () => {
  test('another shape, dtype, count or device than captured', async () => {
    using x = Tensor.from(device, ramp(6), [2, 3])
    using program = Program.capture(device, [x], (input) => add(input, input))
    using turned = Tensor.from(device, ramp(6), [3, 2])
    using flat = Tensor.from(device, ramp(6), [6])
    using narrow = Tensor.from(device, ramp(6), [2, 3], 'bf16')
    throwsCode(() => program.run(turned), 'ERR_SHAPE_MISMATCH', /\[2, 3\].*\[3, 2\]/)
    throwsCode(() => program.run(flat), 'ERR_SHAPE_MISMATCH')
    throwsCode(() => program.run(narrow), ['ERR_SHAPE_MISMATCH', 'ERR_DTYPE_UNSUPPORTED'])
    throwsCode(() => (program.run as () => unknown)(), 'ERR_INVALID_ARGUMENT')
    throwsCode(() => (program.run as (...inputs: Tensor[]) => unknown)(x, x), 'ERR_INVALID_ARGUMENT')
    throwsCode(() => program.run(undefined as unknown as Tensor), ['ERR_INVALID_ARGUMENT', 'ERR_FOREIGN_HANDLE'])
    const other = await openDevice(presentIsas[0]!, 1)
    using elsewhere = Tensor.from(other, ramp(6), [2, 3])
    throwsCode(() => program.run(elsewhere), 'ERR_DEVICE_MISMATCH')
    using wide = Tensor.from(device, ramp(12), [2, 6])
    using strided = wide.slice(0, 3, 1)
    throwsCode(() => program.run(strided), ['ERR_SHAPE_MISMATCH', 'ERR_LAYOUT_UNSUPPORTED'])
    using fine = program.run(x)
    expect([...(await fine.read())]).toEqual([0, 2, 4, 6, 8, 10])
  })

  test('a mapped file as an input that the program writes into', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lapidary-'))
    const path = join(folder, 'state.bin')
    writeFileSync(path, Buffer.alloc(1024))
    using state = Tensor.zeros(device, [1, 2], 'i32')
    using logits = Tensor.from(device, ramp(5), [1, 5])
    const take = (s: Tensor) => sample(logits, s)
    using program = Program.capture(device, [state], take)
    using mapped = Tensor.map(device, path, { shape: state.shape, dtype: state.dtype })
    throwsCode(() => take(mapped), 'ERR_INVALID_ARGUMENT', /read-only/)
    throwsCode(() => program.run(mapped), 'ERR_INVALID_ARGUMENT', /read-only/)
    rmSync(folder, { recursive: true })
  })

  test('a mapped file that was cut: as constant and as input', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lapidary-'))
    const path = join(folder, 'weights.bin')
    const map = () => {
      writeFileSync(path, Buffer.alloc(1 << 20))
      return Tensor.map(device, path, { offset: 0, shape: [512, 512], dtype: 'f32' })
    }
    using x = Tensor.zeros(device, [512, 512], 'f32')
    {
      using constant = map()
      using program = Program.capture(device, [x], (input) => add(input, constant))
      program.run(x).dispose()
      await device.stream.synchronize()
      truncateSync(path, 4096)
      program.run(x).dispose()
      await rejectsCode(device.stream.synchronize(), 'ERR_FILE')
    }
    {
      using input = map()
      using program = Program.capture(device, [x], (given) => add(given, given))
      program.run(input).dispose()
      await device.stream.synchronize()
      truncateSync(path, 4096)
      program.run(input).dispose()
      await rejectsCode(device.stream.synchronize(), 'ERR_FILE')
    }
    rmSync(folder, { recursive: true })
  })
})
