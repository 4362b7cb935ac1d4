// What an engine's step needs of programs: typed arrays in and out in one crossing, one plan tensor that everything is sliced out
// of, and arenas that programs share.

import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  add,
  argmax,
  Device,
  type DTypeArray,
  embedding,
  flashAttention,
  gelu,
  matmul,
  Program,
  qkNormRope,
  rmsNorm,
  sample,
  softcap,
  Tensor,
} from '../lib/index.ts'
import { bestIsa, forEachIsa } from './support/devices.ts'
import { rejectsCode, throwsCode } from './support/errors.ts'
import { Random } from './support/random.ts'

const ramp = (count: number) => Float32Array.from({ length: count }, (_, i) => i)

let device: Device
beforeEach(async () => {
  device = await Device.open('cpu', { isa: bestIsa, threads: 2, guard: true })
})
afterEach(() => {
  device.dispose()
})

describe('typed arrays as inputs', () => {
  test('mixed with tensors, copied before run returns', async () => {
    using program = Program.capture(
      device,
      [
        { shape: [4], dtype: 'f32' },
        { shape: [4], dtype: 'f32' },
      ],
      (x, y) => add(x, y),
    )
    using tensor = Tensor.from(device, ramp(4), [4])
    const data = Float32Array.of(10, 20, 30, 40)
    const outputs = [program.run(data, tensor), program.run(tensor, data), program.run(data, data)]
    data.fill(0)
    const results = await Promise.all(outputs.map(async (output) => [...(await output.read())]))
    expect(results).toEqual([
      [10, 21, 32, 43],
      [10, 21, 32, 43],
      [20, 40, 60, 80],
    ])
    for (const output of outputs) output.dispose()
  })

  test('of every plain dtype, parts of larger arrays too', async () => {
    const bytes = new Random(1).bytes(64)
    for (const [dtype, array] of [
      ['f32', new Float32Array(bytes.buffer as ArrayBuffer, 4, 6)],
      ['i32', new Int32Array(bytes.buffer as ArrayBuffer, 8, 6)],
      ['i8', new Int8Array(bytes.buffer as ArrayBuffer, 3, 6)],
      ['u8', new Uint8Array(bytes.buffer as ArrayBuffer, 5, 6)],
      ['f16', new Uint16Array(bytes.buffer as ArrayBuffer, 2, 6)],
      ['bf16', new Uint16Array(bytes.buffer as ArrayBuffer, 6, 6)],
    ] as const) {
      using program = Program.capture(device, [{ shape: [2, 3], dtype }], (x) => [x, x.slice(1, 2)])
      const [whole, row] = await program.execute(array)
      expect(whole).toEqual(array.slice())
      expect(row).toEqual(array.slice(3))
    }
  })

  test('hazards: another length, another type, too many, none', async () => {
    using program = Program.capture(device, [{ shape: [2, 3], dtype: 'f32' }], (x) => add(x, x))
    throwsCode(() => program.run(ramp(5)), 'ERR_SHAPE_MISMATCH', /input 0: expected 24 bytes for f32 \[2, 3\], got 20/)
    throwsCode(() => program.run(new Int32Array(6)), 'ERR_DTYPE_UNSUPPORTED', /input 0/)
    throwsCode(() => program.run(new DataView(new ArrayBuffer(24))), 'ERR_DTYPE_UNSUPPORTED')
    throwsCode(() => program.run(ramp(6), ramp(6)), 'ERR_INVALID_ARGUMENT')
    throwsCode(() => program.run([1, 2, 3, 4, 5, 6] as unknown as Float32Array), 'ERR_FOREIGN_HANDLE')
    await rejectsCode(program.execute(ramp(5)), 'ERR_SHAPE_MISMATCH')
    await rejectsCode(program.execute(), 'ERR_INVALID_ARGUMENT')
    expect([...(await program.execute(ramp(6)))]).toEqual([0, 2, 4, 6, 8, 10])
  })
})

describe('execute', () => {
  test('gives the bits of run and read, in the structure captured', async () => {
    const shape = [3, 40]
    const x = new Random(2).normal('f32', shape).data as Float32Array
    const body = (input: Tensor) => softcap(gelu(rmsNorm(input)), 30)
    using one = Program.capture(device, [{ shape, dtype: 'f32' }], body)
    using list = Program.capture(device, [{ shape, dtype: 'f32' }], (input) => [body(input), argmax(input)] as const)
    using named = Program.capture(device, [{ shape, dtype: 'f32' }], (input) => ({
      soft: body(input),
      columns: body(input).slice(3, 17, 1),
      input,
    }))
    using eager = body(Tensor.from(device, x, shape))
    const soft = await eager.read()
    expect(await one.execute(x)).toEqual(soft)
    const [first, tokens] = await list.execute(x)
    expect(first).toEqual(soft)
    expect(tokens).toBeInstanceOf(Int32Array)
    const results: { soft: DTypeArray; columns: DTypeArray; input: DTypeArray } = await named.execute(x)
    expect(results.soft).toEqual(soft)
    expect(results.input).toEqual(x)
    const columns = [0, 1, 2].flatMap((row) => [...soft.subarray(40 * row + 3, 40 * row + 17)])
    expect([...results.columns]).toEqual(columns)
  })

  test('many in flight come back in order, each with arrays of its own', async () => {
    using program = Program.capture(device, [{ shape: [64], dtype: 'f32' }], (x) => add(add(x, x), x))
    await program.execute(ramp(64)) // makes the device's scratch
    const before = device.memory()
    const pending = Array.from({ length: 30 }, (_, i) => program.execute(new Float32Array(64).fill(i)))
    const results = await Promise.all(pending)
    for (const [i, result] of results.entries()) expect(result).toEqual(new Float32Array(64).fill(3 * i))
    expect(new Set(results.map((result) => result.buffer)).size).toBe(30)
    expect(device.memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
  })

  test('outputs that are empty, and no outputs at all', async () => {
    using empty = Program.capture(device, [{ shape: [0, 4], dtype: 'f32' }], (x) => add(x, x))
    expect(await empty.execute(new Float32Array(0))).toEqual(new Float32Array(0))
    using state = Tensor.zeros(device, [1, 2], 'i32')
    using none = Program.capture(device, [{ shape: [1, 5], dtype: 'f32' }], (x) => {
      sample(x, state)
      return []
    })
    expect(await none.execute(ramp(5))).toEqual([])
    expect([...(await state.read())]).toEqual([0, 1])
  })

  test('an error of device data rejects, and the program works again', async () => {
    using table = Tensor.from(device, ramp(32), [4, 8])
    using program = Program.capture(device, [{ shape: [2], dtype: 'i32' }], (ids) => embedding(ids, table))
    await rejectsCode(program.execute(Int32Array.of(3, 4)), 'ERR_INDEX_OUT_OF_RANGE')
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
    expect([...(await program.execute(Int32Array.of(0, 0))).subarray(0, 3)]).toEqual([0, 1, 2])
  })

  test('hazard: disposed before, or while it is in flight', async () => {
    const program = Program.capture(device, [{ shape: [4], dtype: 'f32' }], (x) => add(x, x))
    const pending = program.execute(ramp(4))
    program.dispose()
    expect([...(await pending)]).toEqual([0, 2, 4, 6])
    await rejectsCode(program.execute(ramp(4)), 'ERR_DISPOSED')
    using other = Program.capture(device, [{ shape: [4], dtype: 'f32' }], (x) => add(x, x))
    const last = other.execute(ramp(4))
    device.dispose()
    await last.catch((error: unknown) => rejectsCode(Promise.reject(error), 'ERR_DISPOSED'))
  })
})

describe('one plan tensor', () => {
  // A step's integers in one array, as an engine packs them: whatever precedes them, slices begin at any multiple of 4 bytes.
  const [tokens, sequences, width, pages, pageTokens, kvHeads, queryHeads, headDim] = [5, 2, 3, 6, 4, 1, 2, 16]
  const parts = {
    ids: [7, 3, 0, 9, 2],
    positions: [4, 5, 6, 1, 2],
    slots: [4 * 4, 4 * 4 + 1, 4 * 4 + 2, 2 * 4 + 1, 2 * 4 + 2],
    queryStarts: [0, 3, 5],
    keyLengths: [7, 3],
    pages: [1, 4, 5, 2, 3, 0],
    seeds: [11, 0, 12, 5],
  }
  type Part = keyof typeof parts
  const settings = [0, 0, 1, 0, 0.7, 5, 0.9, 0.01]

  function step(take: (part: Part) => Tensor, floats: Tensor, table: Tensor, cache: Tensor) {
    using x = embedding(take('ids'), table)
    using heads = x.reshape([tokens, queryHeads + 2 * kvHeads, headDim])
    const [kCache, vCache] = [cache.slice(0, pages), cache.slice(pages)]
    const { q } = qkNormRope(
      heads.slice(0, queryHeads, 1),
      heads.slice(queryHeads, queryHeads + kvHeads, 1),
      heads.slice(queryHeads + kvHeads, queryHeads + 2 * kvHeads, 1),
      { positions: take('positions'), ropeTheta: 10_000, cache: { kCache, vCache, slots: take('slots') } },
    )
    const out = flashAttention(q, kCache, vCache, {
      queryStarts: take('queryStarts'),
      keyLengths: take('keyLengths'),
      pageTable: take('pages').reshape([sequences, width]),
    })
    const rows = out.reshape([tokens, queryHeads * headDim]).slice(0, sequences)
    const state = take('seeds').reshape([sequences, 2])
    return { out, state, tokens: sample(rows, state, { settings: floats.reshape([sequences, 4]) }) }
  }

  function constants(on: Device) {
    const random = new Random(31)
    const table = random.normal('f32', [10, (queryHeads + 2 * kvHeads) * headDim])
    const cache = random.normal('f32', [2 * pages, kvHeads, pageTokens, headDim])
    return [Tensor.from(on, table.data, table.shape), Tensor.from(on, cache.data, cache.shape)] as const
  }

  test.each([0, 1, 2, 3, 5, 16, 31])('sliced inside a program, behind %d other integers', (before) =>
    forEachIsa(async (on) => {
      const flat = [...new Array<number>(before).fill(-99), ...Object.values(parts).flat(), -99]
      const [table, cache] = constants(on)
      const eager = step(
        (part) => Tensor.from(on, Int32Array.from(parts[part]), [parts[part].length]),
        Tensor.from(on, Float32Array.from(settings), [settings.length]),
        table,
        cache,
      )
      const expected = [await eager.out.read(), await eager.tokens.read()]
      const [, fresh] = constants(on)
      using program = Program.capture(
        on,
        [
          { shape: [flat.length], dtype: 'i32' },
          { shape: [settings.length + before], dtype: 'f32' },
        ],
        (plan, floats) => {
          const at = new Map<Part, number>()
          let next = before
          for (const part of Object.keys(parts) as Part[]) {
            at.set(part, next)
            next += parts[part].length
          }
          const take = (part: Part) => plan.slice(at.get(part)!, at.get(part)! + parts[part].length)
          const { out, tokens, state } = step(take, floats.slice(before), table, fresh)
          return [out, tokens, state]
        },
      )
      const floats = Float32Array.from([...new Array<number>(before).fill(Number.NaN), ...settings])
      const [out, drawn, state] = await program.execute(Int32Array.from(flat), floats)
      expect(out).toEqual(expected[0])
      expect(drawn).toEqual(expected[1])
      // The sampler's counters are written in the copy of the plan, and come back as an output.
      expect([...state!]).toEqual([11, 1, 12, 6])
      expect(await fresh.read()).toEqual(await cache.read())
    }),
  )
})

describe('programs that share an arena', () => {
  const shape = [7, 96]
  const body = (weights: readonly Tensor[]) => (x: Tensor) => {
    let h = x
    for (const weight of weights) h = add(h, gelu(matmul(rmsNorm(h), weight)))
    return softcap(h, 30)
  }
  const makeWeights = (on: Device, layers: number) => {
    const random = new Random(41)
    return Array.from({ length: layers }, () => {
      const weight = random.normal('f32', [96, 96], 96 ** -0.5)
      return Tensor.from(on, weight.data, weight.shape)
    })
  }

  test('alternating, in flight together: each gives the bits of eager calls', () =>
    forEachIsa(async (on) => {
      const random = new Random(42)
      const weights = makeWeights(on, 4)
      const [deep, shallow] = [body(weights), body(weights.slice(1, 3))]
      const spec = { shape, dtype: 'f32' } as const
      using first = Program.capture(on, [spec], deep)
      using second = Program.capture(on, [spec], shallow, { arena: first })
      using third = Program.capture(on, [{ shape: [1, 96], dtype: 'f32' }], deep, { arena: second })
      expect([first, second, third].map((program) => program.info().sharesArena)).toEqual([false, true, true])
      const pending: Promise<DTypeArray>[] = []
      const expected: DTypeArray[] = []
      for (let i = 0; i < 12; i++) {
        const x = random.normal('f32', i % 3 === 2 ? [1, 96] : shape)
        const program = [first, second, third][i % 3]!
        pending.push(program.execute(x.data))
        using eager = (i % 3 === 1 ? shallow : deep)(Tensor.from(on, x.data, x.shape))
        expected.push(await eager.read())
      }
      expect(await Promise.all(pending)).toEqual(expected)
    }))

  test('take no memory for it, and keep it when the first is disposed', async () => {
    const weights = makeWeights(device, 3)
    const spec = { shape, dtype: 'f32' } as const
    const first = Program.capture(device, [spec], body(weights))
    const before = device.memory()
    using second = Program.capture(device, [spec], body(weights), { arena: first })
    expect(device.memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
    const x = new Random(43).normal('f32', shape)
    const expected = await first.execute(x.data)
    first.dispose()
    expect(await second.execute(x.data)).toEqual(expected)
    throwsCode(() => Program.capture(device, [spec], body(weights), { arena: first }), 'ERR_DISPOSED', /arena/)
    throwsCode(
      () => Program.capture(device, [spec], body(weights), { arena: {} as unknown as Program }),
      'ERR_FOREIGN_HANDLE',
    )
    using again = Program.capture(device, [spec], body(weights), { arena: second })
    expect(again.info().sharesArena).toBe(true)
  })

  test('a program that needs more, or is of another stream, has its own', async () => {
    const weights = makeWeights(device, 3)
    using small = Program.capture(device, [{ shape: [1, 96], dtype: 'f32' }], body(weights))
    using large = Program.capture(device, [{ shape, dtype: 'f32' }], body(weights), { arena: small })
    expect(large.info().sharesArena).toBe(false)
    using stream = device.createStream()
    using other = stream.use(() =>
      Program.capture(device, [{ shape: [1, 96], dtype: 'f32' }], body(weights), { arena: large }),
    )
    expect(other.info().sharesArena).toBe(false)
    const [x, y] = [new Random(44).normal('f32', [1, 96]), new Random(45).normal('f32', shape)]
    const results = await Promise.all([small.execute(x.data), large.execute(y.data), other.execute(x.data)])
    expect(results[2]).toEqual(results[0])
  })
})
