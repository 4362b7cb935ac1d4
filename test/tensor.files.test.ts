// Tensors from files and to files: Tensor.load, tensor.save, packedForm.

import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  add,
  type Device,
  type DType,
  embedding,
  matmul,
  type PackedForm,
  Program,
  packWeights,
  stackWeights,
  Tensor,
} from '../lib/index.ts'
import { anyDevice, forEachIsa, openDevice, presentIsas } from './support/devices.ts'
import { rejectsCode, throwsCode } from './support/errors.ts'
import { Random } from './support/random.ts'
import { makeWork } from './support/work.ts'

const folder = mkdtempSync(join(tmpdir(), 'lapidary-'))
const file = (name: string) => join(folder, name)
afterAll(() => rmSync(folder, { recursive: true }))

let device: Device
beforeAll(async () => {
  device = await anyDevice()
})

const bytesOf = async (tensor: Tensor) => {
  const data = await tensor.read()
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength)
}

describe('releasePages', () => {
  const bytes = new Random(9).bytes(32 << 20)
  const path = file('mapped.bin')
  beforeAll(() => writeFileSync(path, bytes))
  const mapping = () => Tensor.map(device, path, { shape: [bytes.length], dtype: 'u8' })

  test.runIf(process.platform === 'linux')(
    'pages that were read no longer count as memory of the process',
    async () => {
      const mappedKib = () => Number(/^RssFile:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1])
      using tensor = mapping()
      const before = mappedKib()
      await tensor.read()
      expect(mappedKib() - before).toBeGreaterThan(30 << 10)
      tensor.releasePages()
      expect(mappedKib() - before).toBeLessThan(2 << 10)
    },
  )

  test('the bytes are the same before, after and while they are read', async () => {
    using tensor = mapping()
    for (let round = 0; round < 8; round++) {
      const reading = bytesOf(tensor)
      tensor.releasePages()
      expect(Buffer.compare(await reading, bytes)).toBe(0)
    }
  })

  test('of memory that does not come back it does nothing', async () => {
    using tensor = Tensor.from(device, Float32Array.of(1, 2, 3), [3])
    tensor.releasePages()
    expect([...(await tensor.read())]).toEqual([1, 2, 3])
    tensor.dispose()
    throwsCode(() => tensor.releasePages(), 'ERR_DISPOSED')
  })
})

describe('load', () => {
  const bytes = new Random(1).bytes((5 << 20) + 12_345)
  const path = file('weights.bin')
  beforeAll(() => writeFileSync(path, bytes))

  test.each([
    [0, [5 << 20]],
    [1, [5 << 20]],
    [4097, [1_000_003]],
    [bytes.length - 7, [7]],
    [bytes.length, [0]],
    [3, [0, 8]],
  ])('u8 from byte %d, %j', async (offset, shape) => {
    const count = shape.reduce((a, b) => a * b, 1)
    for (const threads of [1, 2, 5]) {
      const on = await openDevice(presentIsas[0]!, threads)
      using tensor = Tensor.load(on, path, { shape, dtype: 'u8', offset })
      expect(tensor.shape).toEqual(shape)
      expect((await bytesOf(tensor)).equals(bytes.subarray(offset, offset + count))).toBe(true)
    }
  })

  test('every dtype that files hold, whatever the alignment', async () => {
    for (const [dtype, size] of [
      ['f32', 4 * 96],
      ['bf16', 2 * 96],
      ['i32', 4 * 96],
      ['q4_0', 3 * 18],
      ['q8_0', 3 * 34],
    ] as const) {
      using tensor = Tensor.load(device, path, { shape: [2, 48 * (dtype[0] === 'q' ? 2 : 1)], dtype, offset: 13 })
      const count = dtype[0] === 'q' ? 2 * size : size
      expect((await bytesOf(tensor)).equals(bytes.subarray(13, 13 + count)), dtype).toBe(true)
    }
  })

  test('is in order with the calls around it, memory of the tensor’s own', async () => {
    const work = makeWork(device)
    using before = work.enqueue(2)
    const data = new Random(2).normal('f32', [64]).data as Float32Array
    writeFileSync(file('own.bin'), Buffer.from(data.buffer))
    using loaded = Tensor.load(device, file('own.bin'), { shape: [64], dtype: 'f32' })
    using twice = add(loaded, loaded)
    loaded.write(new Float32Array(64).fill(1))
    expect([...(await twice.read())]).toEqual([...data.map((x) => 2 * x)])
    expect([...(await loaded.read())]).toEqual(new Array(64).fill(1))
    expect(readFileSync(file('own.bin')).equals(Buffer.from(data.buffer))).toBe(true)
    expect(before.disposed).toBe(false)
    work.dispose()
  })

  test('gives programs their constants', async () => {
    writeFileSync(file('table.bin'), Buffer.from(Float32Array.from({ length: 32 }, (_, i) => i).buffer))
    using program = Program.capture(device, [{ shape: [2], dtype: 'i32' }], (ids) =>
      embedding(ids, Tensor.load(device, file('table.bin'), { shape: [4, 8], dtype: 'f32' })),
    )
    expect([...(await program.execute(Int32Array.of(3, 1))).subarray(6, 10)]).toEqual([30, 31, 8, 9])
  })

  test('a file that was replaced or unlinked after the call is the one that was there', async () => {
    const name = file('replaced.bin')
    const load = () => Tensor.load(device, name, { shape: [4], dtype: 'u8' })
    writeFileSync(name, 'old!')
    const work = makeWork(device)
    work.enqueue(4).dispose()
    using old = load()
    writeFileSync(file('next.bin'), 'new!')
    renameSync(file('next.bin'), name)
    using fresh = load()
    rmSync(name)
    expect((await bytesOf(old)).toString()).toBe('old!')
    expect((await bytesOf(fresh)).toString()).toBe('new!')
    throwsCode(load, 'ERR_FILE', /replaced\.bin/)
    work.dispose()
  })

  test('many tensors of a file take one descriptor', async () => {
    const open = () => readdirSync('/proc/self/fd').length
    const before = open()
    const tensors = Array.from({ length: 500 }, (_, i) =>
      i % 2
        ? Tensor.load(device, path, { shape: [16], dtype: 'u8', offset: 16 * i })
        : Tensor.map(device, path, { shape: [16], dtype: 'u8', offset: 16 * i }),
    )
    expect(open() - before).toBeLessThanOrEqual(1)
    for (const [i, tensor] of tensors.entries()) {
      expect((await bytesOf(tensor)).equals(bytes.subarray(16 * i, 16 * i + 16))).toBe(true)
      tensor.dispose()
    }
    await device.stream.synchronize()
    expect(open()).toBe(before)
  })

  test('hazard: the file is missing, a folder, too short, or the offset no offset', () => {
    const load = (where: string, offset: number, shape: number[]) => () =>
      Tensor.load(device, where, { offset, shape, dtype: 'f32' })
    const before = device.memory()
    throwsCode(load(file('absent.bin'), 0, [1]), 'ERR_FILE', /absent\.bin/)
    throwsCode(load(folder, 0, [1]), 'ERR_FILE', /regular file/)
    throwsCode(load('/dev/zero', 0, [1]), 'ERR_FILE', /regular file/)
    throwsCode(
      load(path, bytes.length - 3, [1]),
      'ERR_FILE',
      new RegExp(`weights\\.bin has ${bytes.length} bytes, expected at least ${bytes.length + 1} \\(offset`),
    )
    throwsCode(load(path, 2 ** 52, [1]), 'ERR_FILE')
    for (const offset of [-4, 1.5, Number.NaN, 2 ** 60]) throwsCode(load(path, offset, [1]), 'ERR_INVALID_ARGUMENT')
    for (const name of ['', `${path}\0`, 3 as unknown as string]) throwsCode(load(name, 0, [1]), 'ERR_INVALID_ARGUMENT')
    throwsCode(() => Tensor.load({} as Device, path, { shape: [1], dtype: 'f32' }), 'ERR_FOREIGN_HANDLE')
    const long = file('x'.repeat(3000))
    throwsCode(load(long, 0, [1]), 'ERR_FILE', /x{3000}: File name too long/)
    expect(device.memory()).toMatchObject({ bytes: before.bytes, buffers: before.buffers })
  })

  test('hazard: the file is cut between the call and the reading', async () => {
    const name = file('cut.bin')
    const work = makeWork(device)
    // More and more work before the reading, until cutting the file comes first.
    let error: unknown
    for (let calls = 8; error === undefined && calls <= 4096; calls *= 4) {
      writeFileSync(name, Buffer.alloc(3 << 20))
      work.enqueue(calls).dispose()
      using tensor = Tensor.load(device, name, { shape: [3 << 20], dtype: 'u8' })
      truncateSync(name, (2 << 20) + 5)
      await tensor.read().catch((reason: unknown) => {
        error = reason
      })
    }
    await rejectsCode(
      Promise.reject(error),
      'ERR_FILE',
      /cut\.bin: expected 3145728 bytes at offset 0, got 2097157 \(it has become shorter\)/,
    )
    await rejectsCode(device.stream.synchronize(), 'ERR_FILE')
    work.dispose()
  })

  test('hazard: disposed, or the device closed, while it is queued', async () => {
    const on = await openDevice(presentIsas[0]!, 3)
    for (let i = 0; i < 20; i++) Tensor.load(on, path, { shape: [1 << 20], dtype: 'u8', offset: i }).dispose()
    await on.stream.synchronize()
    const stream = on.createStream()
    const last = stream.use(() =>
      Array.from({ length: 20 }, (_, i) => Tensor.load(on, path, { shape: [5 << 20], dtype: 'u8', offset: i })),
    )
    stream.dispose()
    for (const tensor of last) tensor.dispose()
  })
})

describe('save', () => {
  test('and load, at an offset, around what is there', async () => {
    const name = file('saved.bin')
    const data = new Random(3).normal('f32', [33, 7]).data as Float32Array
    using tensor = Tensor.from(device, data, [33, 7])
    expect(await tensor.save(name)).toBe(4 * 33 * 7)
    expect(readFileSync(name).equals(Buffer.from(data.buffer))).toBe(true)
    appendFileSync(name, 'the end')
    using row = tensor.slice(2, 3)
    expect(await row.save(name, 4 * 7)).toBe(28)
    expect(await row.save(name, 4 * 33 * 7 + 20)).toBe(28)
    const expected = Buffer.concat([Buffer.from(data.buffer), Buffer.from('the end'), Buffer.alloc(13)])
    Buffer.from(data.buffer).copy(expected, 28, 56, 84)
    const saved = readFileSync(name)
    expect(saved.subarray(0, -28).equals(expected)).toBe(true)
    using again = Tensor.load(device, name, { shape: [7], dtype: 'f32', offset: saved.length - 28 })
    expect(await again.read()).toEqual(data.subarray(14, 21))
  })

  test('is in order with the calls around it', async () => {
    const x = Tensor.from(device, Float32Array.of(1, 2), [2])
    using sum = add(x, x)
    const saved = sum.save(file('sum.bin'))
    sum.write(Float32Array.of(7, 8))
    x.dispose()
    using last = Tensor.load(device, file('weights.bin'), { shape: [4], dtype: 'u8' })
    await Promise.all([saved, last.read()])
    expect(readFileSync(file('sum.bin')).equals(Buffer.from(Float32Array.of(2, 4).buffer))).toBe(true)
  })

  test('nothing, and a mapped file', async () => {
    using none = Tensor.from(device, new Float32Array(0), [0, 3])
    expect(await none.save(file('none.bin'))).toBe(0)
    expect(statSync(file('none.bin')).size).toBe(0)
    using mapped = Tensor.map(device, file('weights.bin'), { shape: [1000], dtype: 'u8', offset: 99 })
    await mapped.save(file('part.bin'))
    expect(readFileSync(file('part.bin')).equals(readFileSync(file('weights.bin')).subarray(99, 1099))).toBe(true)
  })

  test('hazard: no such folder, a folder, a full disk, gaps, no offset: one rejection, and the stream goes on', async () => {
    using tensor = Tensor.from(device, new Float32Array(6), [2, 3])
    await rejectsCode(tensor.save(file('absent/x.bin')), 'ERR_FILE', /absent\/x\.bin: No such file or directory/)
    await rejectsCode(tensor.save(folder), 'ERR_FILE', /directory/)
    await rejectsCode(
      tensor.save('/dev/full', 8),
      'ERR_FILE',
      /full: expected to write 24 bytes at offset 8, wrote 0: No space/,
    )
    using columns = tensor.slice(0, 2, 1)
    await rejectsCode(columns.save(file('columns.bin')), 'ERR_LAYOUT_UNSUPPORTED')
    expect(existsSync(file('columns.bin'))).toBe(false)
    for (const offset of [-1, 0.5, Number.NaN])
      await rejectsCode(tensor.save(file('x.bin'), offset), 'ERR_INVALID_ARGUMENT')
    await rejectsCode(tensor.save(''), 'ERR_INVALID_ARGUMENT')
    await device.stream.synchronize()
    tensor.dispose()
    await rejectsCode(tensor.save(file('x.bin')), 'ERR_DISPOSED')
  })

  test('hazard: after a failed call it rejects with the sticky error, and writes nothing', async () => {
    using table = Tensor.from(device, new Float32Array(8), [2, 4])
    using bad = embedding(Tensor.from(device, Int32Array.of(5), [1]), table)
    await rejectsCode(bad.save(file('bad.bin')), 'ERR_INDEX_OUT_OF_RANGE')
    expect(existsSync(file('bad.bin'))).toBe(false)
    await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
  })

  test('hazard: while a program is captured', async () => {
    let pending: Promise<number> | undefined
    Program.capture(device, [{ shape: [2], dtype: 'f32' }], (x) => {
      const sum = add(x, x)
      pending = sum.save(file('captured.bin'))
      return sum
    }).dispose()
    await rejectsCode(pending!, 'ERR_CAPTURE')
    expect(existsSync(file('captured.bin'))).toBe(false)
  })

  test('hazard: the stream is closed before', async () => {
    const on = await openDevice(presentIsas[0]!, 3)
    const stream = on.createStream()
    using tensor = Tensor.zeros(on, [1 << 20])
    const pending = stream.use(() => Array.from({ length: 8 }, (_, i) => tensor.save(file(`closed-${i}.bin`))))
    stream.dispose()
    const results = await Promise.allSettled(pending)
    for (const result of results) {
      if (result.status === 'rejected') await rejectsCode(Promise.reject(result.reason), 'ERR_DISPOSED')
      else expect(result.value).toBe(4 << 20)
    }
  })
})

describe('packed weights', () => {
  const matrices: [name: string, make: (on: Device) => Tensor][] = [
    ['f32', (on) => packed(on, 'f32', 33, 70)],
    ['bf16', (on) => packed(on, 'bf16', 33, 70)],
    ['q4_0', (on) => blocks(on, 'q4_0', 18, 40, 96)],
    ['q8_0', (on) => blocks(on, 'q8_0', 34, 17, 32)],
    ['q6_k', (on) => blocks(on, 'q6_k', 210, 17, 256)],
    ['q3_k', (on) => blocks(on, 'q3_k', 110, 17, 256)],
    ['iq4_nl', (on) => blocks(on, 'iq4_nl', 18, 17, 96)],
    ['i4 groups of 32, symmetric', (on) => groups(on, 32, false)],
    ['i4 groups of 64 with zeros', (on) => groups(on, 64, true)],
    [
      'gate and up',
      (on) => stackWeights([packed(on, 'f32', 32, 40), packed(on, 'f32', 32, 40)], { interleave: 'gate_up' }),
    ],
  ]
  function packed(on: Device, dtype: 'f32' | 'bf16', rows: number, columns: number): Tensor {
    const weight = new Random(rows).normal(dtype, [rows, columns])
    return packWeights(Tensor.from(on, weight.data, weight.shape, dtype))
  }
  function blocks(on: Device, dtype: DType, bytes: number, rows: number, columns: number): Tensor {
    const data = new Random(rows).bytes((rows * columns * bytes) / (dtype.endsWith('_k') ? 256 : 32))
    return packWeights(Tensor.from(on, data, [rows, columns], dtype))
  }
  function groups(on: Device, groupSize: 32 | 64, zeros: boolean): Tensor {
    const [rows, columns] = [24, 128]
    const random = new Random(groupSize)
    const words = (...shape: [number, number]) =>
      Tensor.from(on, new Int32Array(random.bytes(4 * shape[0] * shape[1]).buffer as ArrayBuffer), shape)
    const scales = random.normal('f16', [columns / groupSize, rows])
    return packWeights(words(columns / 8, rows), {
      format: 'gptq',
      groupSize,
      scales: Tensor.from(on, scales.data, scales.shape, 'f16'),
      ...(zeros && { zeros: words(columns / groupSize, rows / 8) }),
    })
  }

  test.each(matrices)(
    '%s: saved and loaded, the same bytes and the same products, on every instruction set',
    (name, make) =>
      forEachIsa(async (on, isa) => {
        using weights = make(on)
        const path = file(`${name}-${isa}.bin`)
        const form = JSON.parse(JSON.stringify(weights.packedForm())) as PackedForm
        expect(form).toMatchObject({
          dtype: weights.dtype,
          shape: weights.shape,
          bytes: (await weights.read()).byteLength,
        })
        expect(await weights.save(path, 100)).toBe(form.bytes)
        using again = Tensor.load(on, path, { shape: weights.shape, dtype: weights.dtype, offset: 100, form })
        expect(again.layout).toBe('panels')
        expect(again.packedForm()).toEqual(form)
        expect(await again.read()).toEqual(await weights.read())
        const x = new Random(9).normal('f32', [3, weights.shape[1]!])
        using input = Tensor.from(on, x.data, x.shape)
        expect(await matmul(input, again).read()).toEqual(await matmul(input, weights).read())
      }),
  )

  test('hazard: a form that contradicts itself, the file, or what the kernels read', async () => {
    using weights = packed(device, 'bf16', 42, 64) // half of 42 rows fills no panel of any height
    const name = file('form.bin')
    await weights.save(name)
    const form = weights.packedForm()
    const load = (changed: Partial<Record<keyof PackedForm, unknown>>, shape = form.shape) => {
      const given = { ...form, ...changed } as PackedForm
      return () => Tensor.load(device, name, { shape, dtype: given.dtype, form: given })
    }
    load({})().dispose()
    throwsCode(load({ bytes: form.bytes - 1 }), 'ERR_SHAPE_MISMATCH', /bytes: expected \d+ for bf16 panels/)
    throwsCode(load({}, [64, 42]), 'ERR_SHAPE_MISMATCH', /\[64, 42\], got bf16 \[42,64\]/)
    throwsCode(load({ shape: [64, 42] }), 'ERR_SHAPE_MISMATCH')
    throwsCode(load({ layoutVersion: 0 }), 'ERR_LAYOUT_UNSUPPORTED', /layoutVersion/)
    throwsCode(load({ panelRows: form.panelRows / 2 }), 'ERR_LAYOUT_UNSUPPORTED', /panelRows: expected/)
    throwsCode(load({ groupSize: 32 }), 'ERR_LAYOUT_UNSUPPORTED', /groupSize/)
    throwsCode(load({ groupSize: 1e9 }), 'ERR_LAYOUT_UNSUPPORTED')
    throwsCode(load({ panelRows: undefined }), 'ERR_LAYOUT_UNSUPPORTED')
    throwsCode(load({ scaleDtype: 'f16' }), 'ERR_LAYOUT_UNSUPPORTED', /scaleDtype/)
    throwsCode(load({ scaleDtype: 'f17' }), 'ERR_INVALID_ARGUMENT')
    throwsCode(load({ symmetric: true }), 'ERR_LAYOUT_UNSUPPORTED', /symmetric/)
    throwsCode(load({ gateUp: true }), 'ERR_LAYOUT_UNSUPPORTED', /gateUp/)
    for (const dtype of ['i32', 'u8'] as const) throwsCode(load({ dtype }), 'ERR_LAYOUT_UNSUPPORTED')
    throwsCode(load({ shape: [42] }, [42]), 'ERR_LAYOUT_UNSUPPORTED')
    truncateSync(name, form.bytes - 1)
    throwsCode(load({}), 'ERR_FILE')
    using strided = Tensor.zeros(device, [4, 4])
    throwsCode(() => strided.packedForm(), 'ERR_LAYOUT_UNSUPPORTED', /expected packed weights/)
  })

  test('hazard: weights that wider kernels packed', async () => {
    const [scalar, widest] = [await openDevice('scalar'), await anyDevice()]
    using weights = packed(scalar, 'f32', 16, 16)
    const form = weights.packedForm()
    if (form.panelRows === packed(widest, 'f32', 16, 16).packedForm().panelRows) return
    await weights.save(file('narrow.bin'))
    const load = (on: Device) => Tensor.load(on, file('narrow.bin'), { shape: [16, 16], dtype: 'f32', form })
    throwsCode(() => load(widest), 'ERR_LAYOUT_UNSUPPORTED', /panelRows/)
    load(scalar).dispose()
  })
})
