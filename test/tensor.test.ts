import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { add, type Device, Tensor } from '../lib/index.ts'
import { anyDevice, openDevice, presentIsas, valuesOf } from './support/devices.ts'
import { rejectsCode, throwsCode } from './support/errors.ts'
import { decode, encode } from './support/host-tensor.ts'
import { fromBits, toBits } from './support/numbers.ts'
import { Random } from './support/random.ts'

let device: Device
beforeAll(async () => {
  device = await anyDevice()
})

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)

describe('from and read', () => {
  test.each([
    ['f32', Float32Array],
    ['i32', Int32Array],
    ['i8', Int8Array],
    ['u8', Uint8Array],
    ['f16', Uint16Array],
    ['bf16', Uint16Array],
  ] as const)('%s comes back as it went, as %o', async (dtype, type) => {
    const bytes = new Random(1).bytes(3 * 5 * type.BYTES_PER_ELEMENT)
    const data = new type(bytes.buffer as ArrayBuffer, 0, 15)
    using tensor = Tensor.from(device, data, [3, 5], dtype)
    expect(tensor.shape).toEqual([3, 5])
    expect(tensor.dtype).toBe(dtype)
    expect(tensor.layout).toBe('strided')
    expect(tensor.device).toBe(device)
    expect(tensor.size).toBe(15)
    const read = await tensor.read()
    expect(read).toBeInstanceOf(type)
    expect(Buffer.from(read.buffer, read.byteOffset, read.byteLength).equals(bytes)).toBe(true)
  })

  test('the dtype follows from the array', () => {
    using f32 = Tensor.from(device, new Float32Array(4), [4])
    using i32 = Tensor.from(device, new Int32Array(4), [2, 2])
    using u8 = Tensor.from(device, new Uint8Array(4), [4])
    expect([f32.dtype, i32.dtype, u8.dtype]).toEqual(['f32', 'i32', 'u8'])
  })

  test('the array is copied, both ways', async () => {
    const data = ramp(4)
    using tensor = Tensor.from(device, data, [4])
    data.fill(9)
    const first = await tensor.read()
    expect([...first]).toEqual([0, 1, 2, 3])
    first.fill(7)
    expect([...(await tensor.read())]).toEqual([0, 1, 2, 3])
  })

  test('a part of a larger array', async () => {
    using tensor = Tensor.from(device, ramp(10).subarray(3, 7), [2, 2])
    expect([...(await tensor.read())]).toEqual([3, 4, 5, 6])
  })

  test.each(['f16', 'bf16'] as const)(
    'f32 converts to %s: nearest, ties to even, overflow to infinity',
    async (dtype) => {
      const random = new Random(2)
      const values: number[] = [
        0,
        -0,
        Infinity,
        -Infinity,
        65504,
        65519,
        65520,
        3.4e38,
        -3.4e38,
        1e-40,
        2 ** -24,
        2 ** -25,
        2 ** -133,
      ]
      // Every representable number, the middle to its neighbour, and a little to both sides of the middle.
      for (let bits = 0; bits + 1 < toBits(dtype, Infinity); bits += 7) {
        const low = fromBits(dtype, bits)
        const middle = (low + fromBits(dtype, bits + 1)) / 2
        values.push(low, -middle, middle, Math.fround(middle * (1 + 2 ** -22)), Math.fround(middle * (1 - 2 ** -22)))
      }
      for (let i = 0; i < 4000; i++) values.push(random.gaussian() * 2 ** random.integer(-30, 20))
      const data = Float32Array.from(values)
      using tensor = Tensor.from(device, data, [data.length], dtype)
      const got = (await tensor.read()) as Uint16Array
      const expected = encode(dtype, data)
      const wrong = Array.from(data.keys()).filter((i) => got[i] !== expected[i])
      expect(wrong.slice(0, 5).map((i) => `${data[i]}: got ${got[i]}, expected ${expected[i]}`)).toEqual([])
      using nan = Tensor.from(device, Float32Array.of(Number.NaN), [1], dtype)
      expect(decode(dtype, await nan.read())[0]).toBeNaN()
    },
  )

  test.each(['f16', 'bf16', 'f32'] as const)('readF32 widens %s exactly', async (dtype) => {
    const patterns = Uint16Array.from({ length: 65536 }, (_, i) => i)
    if (dtype === 'f32') {
      using tensor = Tensor.from(device, ramp(9), [9])
      expect(await tensor.readF32()).toEqual(ramp(9))
      return
    }
    using tensor = Tensor.from(device, patterns, [65536], dtype)
    const got = await tensor.readF32()
    const expected = decode(dtype, patterns)
    const wrong = Array.from(patterns).filter((i) => !Object.is(got[i], expected[i]))
    expect(wrong).toEqual([])
  })

  test('block formats are raw bytes', async () => {
    const bytes = new Random(3).bytes(2 * 3 * 18)
    using tensor = Tensor.from(device, bytes, [2, 96], 'q4_0')
    expect(await tensor.read()).toEqual(bytes)
    throwsCode(() => Tensor.from(device, bytes, [2, 64], 'q4_0'), ['ERR_SHAPE_MISMATCH', 'ERR_INVALID_ARGUMENT'])
    throwsCode(() => Tensor.from(device, bytes, [2, 95], 'q4_0'), ['ERR_SHAPE_MISMATCH', 'ERR_INVALID_ARGUMENT'])
  })

  test('zeros', async () => {
    using zeros = Tensor.zeros(device, [3, 2], 'bf16')
    expect([...(await zeros.read())]).toEqual([0, 0, 0, 0, 0, 0])
  })
})

describe('shapes', () => {
  test.each([[[0]], [[0, 5]], [[5, 0]], [[2, 0, 3]]])('zero elements: %j', async (shape) => {
    using tensor = Tensor.from(device, new Float32Array(0), shape)
    expect(tensor.size).toBe(0)
    expect(await tensor.read()).toHaveLength(0)
    tensor.write(new Float32Array(0))
    using sum = add(tensor, tensor)
    expect(sum.shape).toEqual(shape)
    expect(await sum.read()).toHaveLength(0)
  })

  test('data that do not fit the shape', () => {
    throwsCode(() => Tensor.from(device, ramp(6), [2, 2]), ['ERR_SHAPE_MISMATCH', 'ERR_INVALID_ARGUMENT'], /4|6/)
    throwsCode(() => Tensor.from(device, ramp(3), [2, 2]), ['ERR_SHAPE_MISMATCH', 'ERR_INVALID_ARGUMENT'], /4|3/)
  })

  test.each([[[-1, 4]], [[1.5, 2]], [[Number.NaN]], [[Infinity]], [[1, 1, 1, 1, 1]], [['4']]])(
    'a shape that is none: %j',
    (shape) => {
      throwsCode(() => Tensor.zeros(device, shape as number[], 'f32'), ['ERR_INVALID_ARGUMENT', 'ERR_SHAPE_MISMATCH'])
    },
  )

  test('a dtype that is none, an array that is none', () => {
    throwsCode(
      () => Tensor.zeros(device, [1], 'f33' as 'f32'),
      ['ERR_DTYPE_UNSUPPORTED', 'ERR_INVALID_ARGUMENT'],
      /f33/,
    )
    throwsCode(
      () => Tensor.from(device, [1, 2] as unknown as Float32Array, [2]),
      ['ERR_INVALID_ARGUMENT', 'ERR_DTYPE_UNSUPPORTED'],
    )
    throwsCode(
      () => Tensor.from(device, new Float64Array(2) as unknown as Float32Array, [2]),
      ['ERR_INVALID_ARGUMENT', 'ERR_DTYPE_UNSUPPORTED'],
    )
  })

  test('an array of another type than the dtype', () => {
    throwsCode(
      () => Tensor.from(device, new Int32Array(2), [2], 'f32'),
      ['ERR_DTYPE_UNSUPPORTED', 'ERR_INVALID_ARGUMENT'],
    )
  })
})

describe('views', () => {
  test('slice along the first axis and along the second', async () => {
    using tensor = Tensor.from(device, ramp(12), [3, 4])
    using rows = tensor.slice(1, 3)
    expect(rows.shape).toEqual([2, 4])
    expect([...(await rows.read())]).toEqual([4, 5, 6, 7, 8, 9, 10, 11])
    using columns = tensor.slice(1, 3, 1)
    expect(columns.shape).toEqual([3, 2])
    expect([...(await columns.read())]).toEqual([1, 2, 5, 6, 9, 10])
    using both = columns.slice(2, 3)
    expect([...(await both.read())]).toEqual([9, 10])
    using none = tensor.slice(2, 2)
    expect(none.shape).toEqual([0, 4])
    expect(await none.read()).toHaveLength(0)
  })

  test('slices of random shapes read what the formula says', async () => {
    const random = new Random(5)
    for (let i = 0; i < 60; i++) {
      const shape = Array.from({ length: random.integer(1, 5) }, () => random.integer(1, 6))
      const axis = random.integer(0, shape.length)
      const start = random.integer(0, shape[axis]! + 1)
      const end = random.integer(start, shape[axis]! + 1)
      const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1)
      const count = shape.reduce((a, b) => a * b, 1)
      const expected = [...ramp(count)].filter((value) => {
        const index = Math.floor(value / inner) % shape[axis]!
        return index >= start && index < end
      })
      using tensor = Tensor.from(device, ramp(count), shape)
      using part = tensor.slice(start, end, axis)
      expect([...(await part.read())], `[${shape}] ${start}…${end} of axis ${axis}`).toEqual(expected)
    }
  })

  test('a slice outlives its tensor, and takes no memory of its own', async () => {
    const before = device.memory()
    const tensor = Tensor.from(device, ramp(12), [3, 4])
    const row = tensor.slice(1, 2)
    expect(device.memory().buffers - before.buffers).toBe(1)
    tensor.dispose()
    expect([...(await row.read())]).toEqual([4, 5, 6, 7])
    row.dispose()
    await device.stream.synchronize()
    expect(device.memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
  })

  test('slices of block formats keep whole blocks', async () => {
    const bytes = new Random(6).bytes(4 * 2 * 18)
    using tensor = Tensor.from(device, bytes, [4, 64], 'q4_0')
    using rows = tensor.slice(1, 3)
    expect(await rows.read()).toEqual(bytes.subarray(36, 108))
    throwsCode(() => tensor.slice(1, 33, 1), ['ERR_INVALID_ARGUMENT', 'ERR_LAYOUT_UNSUPPORTED', 'ERR_SHAPE_MISMATCH'])
  })

  test.each([
    [-1, 2, 0],
    [0, 4, 0],
    [2, 1, 0],
    [0, 1, 2],
    [0, 1, -1],
    [0.5, 1, 0],
    [Number.NaN, 1, 0],
  ])('slice(%d, %d, %d) of [3, 4] is an error', (start, end, axis) => {
    using tensor = Tensor.from(device, ramp(12), [3, 4])
    throwsCode(
      () => tensor.slice(start, end, axis),
      ['ERR_INVALID_ARGUMENT', 'ERR_SHAPE_MISMATCH', 'ERR_INDEX_OUT_OF_RANGE'],
    )
  })

  test('reshape', async () => {
    using tensor = Tensor.from(device, ramp(12), [3, 4])
    using flat = tensor.reshape([12])
    using cube = tensor.reshape([2, 3, 2])
    expect(cube.shape).toEqual([2, 3, 2])
    expect([...(await flat.read())]).toEqual([...ramp(12)])
    expect([...(await cube.read())]).toEqual([...ramp(12)])
    using row = tensor.slice(1, 2)
    using square = row.reshape([2, 2])
    expect([...(await square.read())]).toEqual([4, 5, 6, 7])
    throwsCode(() => tensor.reshape([5]), ['ERR_SHAPE_MISMATCH', 'ERR_INVALID_ARGUMENT'])
    using columns = tensor.slice(1, 3, 1)
    throwsCode(() => columns.reshape([6]), ['ERR_LAYOUT_UNSUPPORTED', 'ERR_INVALID_ARGUMENT'])
  })

  test('ops read through views', async () => {
    using tensor = Tensor.from(device, ramp(12), [3, 4])
    using first = tensor.slice(0, 1)
    using last = tensor.slice(2, 3)
    using sum = add(first, last)
    expect([...(await sum.read())]).toEqual([8, 10, 12, 14])
  })
})

describe('write', () => {
  test('happens in order with the calls around it, and copies at once', async () => {
    using x = Tensor.from(device, ramp(4), [4])
    using before = add(x, x)
    const data = Float32Array.of(10, 20, 30, 40)
    x.write(data)
    data.fill(0)
    using after = add(x, x)
    expect([...(await before.read())]).toEqual([0, 2, 4, 6])
    expect([...(await after.read())]).toEqual([20, 40, 60, 80])
  })

  test('of rows of a larger tensor', async () => {
    using x = Tensor.zeros(device, [3, 2])
    using row = x.slice(1, 2)
    row.write(Float32Array.of(7, 8))
    expect([...(await x.read())]).toEqual([0, 0, 7, 8, 0, 0])
  })

  test('of what does not fit is an error', () => {
    using x = Tensor.zeros(device, [3, 2])
    using column = x.slice(0, 1, 1)
    throwsCode(() => x.write(ramp(5)), 'ERR_SHAPE_MISMATCH')
    throwsCode(
      () => x.write([1, 2, 3, 4, 5, 6] as unknown as Float32Array),
      ['ERR_SHAPE_MISMATCH', 'ERR_INVALID_ARGUMENT'],
    )
    throwsCode(() => column.write(ramp(3)), 'ERR_LAYOUT_UNSUPPORTED')
  })
})

describe('mapped files', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lapidary-'))
  const path = join(folder, 'weights.bin')
  const data = new Random(7).normal('f32', [64, 64]).data as Float32Array
  beforeAll(() => writeFileSync(path, Buffer.concat([Buffer.alloc(256), Buffer.from(data.buffer)])))
  afterAll(() => rmSync(folder, { recursive: true }))

  test('are tensors', async () => {
    using mapped = Tensor.map(device, path, { offset: 256, shape: [64, 64], dtype: 'f32' })
    expect(mapped.shape).toEqual([64, 64])
    expect(await mapped.read()).toEqual(data)
    using twice = add(mapped, mapped)
    expect(await valuesOf(twice)).toEqual(Float64Array.from(data, (value) => value * 2))
  })

  test('offsets that no page starts at', async () => {
    using mapped = Tensor.map(device, path, { offset: 256 + 4 * 70, shape: [2, 5], dtype: 'f32' })
    expect(await mapped.read()).toEqual(data.subarray(70, 80))
  })

  test('take no memory of the device', () => {
    const before = device.memory().bytes
    using mapped = Tensor.map(device, path, { offset: 256, shape: [64, 64], dtype: 'f32' })
    expect(mapped.size).toBe(4096)
    expect(device.memory().bytes - before).toBe(0)
  })

  test('outlive their name in the folder', async () => {
    const other = join(folder, 'unlinked.bin')
    writeFileSync(other, Buffer.from(data.buffer))
    using mapped = Tensor.map(device, other, { offset: 0, shape: [64, 64], dtype: 'f32' })
    rmSync(other)
    expect(await mapped.read()).toEqual(data)
  })

  test('hazard: the file is missing, a folder, too short, or the offset beyond its end', () => {
    const map = (where: string, offset: number, shape: number[]) => () =>
      Tensor.map(device, where, { offset, shape, dtype: 'f32' })
    throwsCode(map(join(folder, 'absent.bin'), 0, [1]), 'ERR_FILE', /absent\.bin/)
    throwsCode(map(folder, 0, [1]), 'ERR_FILE')
    throwsCode(map(path, 256, [64, 65]), ['ERR_FILE', 'ERR_SHAPE_MISMATCH'], /weights\.bin/)
    throwsCode(map(path, 1e15, [1]), ['ERR_FILE', 'ERR_INVALID_ARGUMENT'])
    throwsCode(map(path, -4, [1]), 'ERR_INVALID_ARGUMENT')
    throwsCode(map(path, 1.5, [1]), 'ERR_INVALID_ARGUMENT')
  })

  test('hazard: the file is cut while it is mapped', async () => {
    const other = join(folder, 'cut.bin')
    writeFileSync(other, Buffer.alloc(1 << 20))
    using mapped = Tensor.map(device, other, { offset: 0, shape: [512, 512], dtype: 'f32' })
    truncateSync(other, 8192)
    await rejectsCode(mapped.read(), 'ERR_FILE')
    await device.stream.synchronize().catch(() => {})
    using sum = add(mapped, mapped)
    await rejectsCode(sum.read(), 'ERR_FILE')
    await rejectsCode(device.stream.synchronize(), 'ERR_FILE')
    using fine = Tensor.from(device, ramp(2), [2])
    expect([...(await fine.read())]).toEqual([0, 1])
  })

  test('hazard: writing into one', () => {
    using mapped = Tensor.map(device, path, { offset: 256, shape: [64, 64], dtype: 'f32' })
    throwsCode(() => mapped.write(data), 'ERR_INVALID_ARGUMENT', /read-only/)
  })

  test('hazard: an unaligned offset for the dtype', async () => {
    // Either the data are copied to where they may lie, or the call says no; the elements are never torn.
    try {
      using mapped = Tensor.map(device, path, { offset: 257, shape: [4], dtype: 'f32' })
      const bytes = Buffer.concat([Buffer.alloc(256), Buffer.from(data.buffer)])
      expect(Buffer.from((await mapped.read()).buffer).equals(bytes.subarray(257, 273))).toBe(true)
    } catch (error) {
      throwsCode(() => {
        throw error
      }, 'ERR_INVALID_ARGUMENT')
    }
  })
})

test('tensors of two devices do not meet in one call', async () => {
  const other = await openDevice(presentIsas[0]!, 1)
  using here = Tensor.from(device, ramp(2), [2])
  using there = Tensor.from(other, ramp(2), [2])
  throwsCode(() => add(here, there), 'ERR_DEVICE_MISMATCH')
})
