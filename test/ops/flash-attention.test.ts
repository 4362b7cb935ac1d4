import { describe, expect, test } from 'vitest'
import { flashAttention, Program, Tensor } from '../../lib/index.ts'
import { compare } from '../support/compare.ts'
import { bestIsa, download, fast, forEachDevice, isasFor, openDevice, upload, valuesOf } from '../support/devices.ts'
import type { HostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'
import { type Case, cases, type Inputs, makeInputs, type OnDevice, run } from './flash-attention.cases.ts'
import { type Expectation, reference } from './flash-attention.reference.ts'

opSuite<Case, Inputs>('flashAttention', {
  ops: ['flash_attention'],
  cases,
  inputs: makeInputs,
  run: (c, t) => run(c, t),
  reference: (c, h) => reference(c, h),
  cudaReference: (c, h) => reference(c, h, 'cuda'),
  control: { case: 'heads 3/1' },
  emulated: { cases: 80, elements: 150_000 },
})

type Device = Parameters<typeof upload>[0]

const forEachKernel = (body: (device: Device) => unknown) =>
  forEachDevice(['flash_attention'], body, { isas: isasFor(['flash_attention']) })

function uploadAll(device: Device, h: Inputs): OnDevice {
  return Object.fromEntries(
    Object.entries(h).map(([key, host]) => [key, host && upload(device, host)]),
  ) as unknown as OnDevice
}

async function bytesOf(tensor: Tensor): Promise<Buffer> {
  return Buffer.from((await download(tensor)).bytes)
}

/** Two results that are each within the bounds of one reference. */
function expectAlike(a: Float64Array, b: Float64Array, { bound }: Expectation): void {
  const result = compare(
    a,
    b,
    bound.map((limit) => 2 * limit),
  )
  expect(result.failures, JSON.stringify(result.worst)).toBe(0)
}

const base = { queryHeads: 4, kvHeads: 2, headDim: 64 } as const

describe('flashAttention', () => {
  test('kernels that multiply in f32 are as accurate as f32 allows with bf16 and i8 keys too', () =>
    forEachKernel(async (device) => {
      const provider = device.info().kernels.flash_attention!
      if (!['scalar', 'avx2', 'avx512', 'neon'].includes(provider)) return
      for (const kvDtype of ['bf16', 'i8'] as const) {
        for (const queries of [[1], [33]]) {
          const c: Case = { name: '', ...base, queries, keys: [200], kvDtype }
          const h = makeInputs(c, Random.named('f32 kind'))
          const [{ value, bound }] = reference(c, h, 'f32') as [Expectation]
          const result = compare(await valuesOf(run(c, uploadAll(device, h))), value, bound)
          expect(result.failures, JSON.stringify(result.worst)).toBe(0)
        }
      }
    }))

  test('a window is full attention over the keys inside it', () =>
    forEachKernel(async (device) => {
      for (const kvDtype of ['f32', 'bf16'] as const) {
        const c: Case = { name: '', ...base, queries: [1], keys: [150], window: 60, kvDtype }
        const h = makeInputs(c, Random.named('window'))
        const { q, k, v } = uploadAll(device, h)
        const windowed = await valuesOf(flashAttention(q, k, v, { window: 60 }))
        const sliced = await valuesOf(flashAttention(q, k.slice(90, 150), v.slice(90, 150)))
        expectAlike(windowed, sliced, reference(c, h)[0]!)
      }
    }))

  test('chunks of a prefill give what one call gives', () =>
    forEachKernel(async (device) => {
      for (const window of [0, 37]) {
        const c: Case = { name: '', ...base, queries: [140], keys: [140], window, dtype: 'bf16', kvDtype: 'bf16' }
        const h = makeInputs(c, Random.named('chunks'))
        const { q, k, v } = uploadAll(device, h)
        const whole = await valuesOf(flashAttention(q, k, v, { window }))
        const parts: number[] = []
        for (const [from, to] of [
          [0, 33],
          [33, 34],
          [34, 140],
        ] as const) {
          parts.push(...(await valuesOf(flashAttention(q.slice(from, to), k.slice(0, to), v.slice(0, to), { window }))))
        }
        expectAlike(Float64Array.from(parts), whole, reference(c, h)[0]!)
      }
    }))

  test('pages give the bits of plain keys, and a ring those of a long table', () =>
    forEachKernel(async (device) => {
      const { headDim, kvHeads } = base
      const [keys, pageTokens, window] = [200, 16, 50]
      for (const [dtype, tokens] of [
        ['f32', 40],
        ['bf16', 40],
        ['bf16', 1],
      ] as const) {
        const random = Random.named('pages')
        const q = upload(device, random.normal(dtype, [tokens, base.queryHeads, headDim]))
        const plain = [
          random.normal(dtype, [keys, kvHeads, headDim]),
          random.normal(dtype, [keys, kvHeads, headDim]),
        ] as const
        const expected = await bytesOf(
          flashAttention(q, upload(device, plain[0]), upload(device, plain[1]), { window }),
        )
        for (const width of [13, 7]) {
          const table = random.permutation(width + 3).slice(0, width)
          const [k, v] = plain.map((host) => upload(device, inPages(host, table, width + 3, pageTokens, random))) as [
            Tensor,
            Tensor,
          ]
          const pageTable = Tensor.from(device, Int32Array.from(table), [1, width])
          const keyLengths = Tensor.from(device, Int32Array.of(keys), [1])
          const got = await bytesOf(flashAttention(q, k, v, { window, pageTable, keyLengths }))
          expect(got.equals(expected), `${dtype}, ${tokens} tokens, ${width} pages`).toBe(true)
        }
      }
    }))

  test('a permuted batch gives permuted rows, and a sequence alone the same bits', () =>
    forEachKernel(async (device) => {
      const c: Case = {
        name: '',
        ...base,
        queries: [1, 30, 3, 70, 1],
        keys: [300, 30, 90, 120, 9],
        pageTokens: 16,
        kvDtype: 'bf16',
      }
      const h = makeInputs(c, Random.named('permuted'))
      const t = uploadAll(device, h)
      const starts = [...h.queryStarts!.values]
      const whole = run(c, t)
      const rows = (s: number) => [starts[s]!, starts[s + 1]!] as const
      const width = h.pageTable!.shape[1]!
      const part = async (order: readonly number[]) => {
        const lengths = order.map((s) => c.queries[s]!)
        const q = Buffer.concat(await Promise.all(order.map((s) => bytesOf(t.q.slice(...rows(s))))))
        const queryStarts = [0]
        for (const length of lengths) queryStarts.push(queryStarts.at(-1)! + length)
        return bytesOf(
          flashAttention(
            Tensor.from(device, new Float32Array(q.buffer, q.byteOffset, q.length / 4), [
              queryStarts.at(-1)!,
              base.queryHeads,
              base.headDim,
            ]),
            t.k,
            t.v,
            {
              queryStarts: Tensor.from(device, Int32Array.from(queryStarts), [queryStarts.length]),
              pageTable: Tensor.from(
                device,
                Int32Array.from(order.flatMap((s) => [...h.pageTable!.values.subarray(s * width, (s + 1) * width)])),
                [order.length, width],
              ),
              keyLengths: Tensor.from(
                device,
                Int32Array.from(order, (s) => c.keys[s]!),
                [order.length],
              ),
            },
          ),
        )
      }
      for (const order of [[3, 0, 4, 2, 1], [0], [2], [3]]) {
        const expected = Buffer.concat(await Promise.all(order.map((s) => bytesOf(whole.slice(...rows(s))))))
        expect((await part(order)).equals(expected), `${order}`).toBe(true)
      }
    }))

  test('any number of threads gives the same bits', async () => {
    const many: Case[] = [
      {
        name: '',
        ...base,
        queries: [1, 50, 1, 9],
        keys: [700, 60, 1200, 2300],
        pageTokens: 32,
        dtype: 'bf16',
        kvDtype: 'bf16',
      },
      { name: '', ...base, queries: [130], keys: [130], softcap: 20 },
    ]
    for (const c of many) {
      const h = makeInputs(c, Random.named('threads'))
      const results: Buffer[] = []
      for (const threads of fast ? [1, 5] : [1, 2, 5, 16]) {
        results.push(await bytesOf(run(c, uploadAll(await openDevice(bestIsa, threads), h))))
      }
      for (const result of results) expect(result.equals(results[0]!)).toBe(true)
    }
  })

  test('slices of one projection are read where they lie', () =>
    forEachKernel(async (device) => {
      const [tokens, queryHeads, kvHeads, headDim] = [21, 4, 2, 32]
      const random = Random.named('slices')
      const all = random.normal('bf16', [tokens, queryHeads + 2 * kvHeads, headDim])
      const qkv = upload(device, all)
      const parts = [
        [0, queryHeads],
        [queryHeads, queryHeads + kvHeads],
        [queryHeads + kvHeads, queryHeads + 2 * kvHeads],
      ] as const
      const slices = parts.map(([from, to]) => qkv.slice(from, to, 1)) as [Tensor, Tensor, Tensor]
      const copies = (await Promise.all(
        slices.map(async (slice) => {
          const bytes = await bytesOf(slice)
          return Tensor.from(
            device,
            new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2),
            slice.shape,
            'bf16',
          )
        }),
      )) as [Tensor, Tensor, Tensor]
      const got = await bytesOf(flashAttention(...slices))
      expect(got.equals(await bytesOf(flashAttention(...copies)))).toBe(true)
    }))

  test('a captured call gives the bits of an eager one, with other lengths too', () =>
    forEachKernel(async (device) => {
      const c: Case = {
        name: '',
        ...base,
        queries: [1, 1],
        keys: [600, 33],
        pageTokens: 16,
        dtype: 'bf16',
        kvDtype: 'bf16',
      }
      const h = makeInputs(c, Random.named('captured'))
      const { q, k, v, queryStarts, pageTable, keyLengths } = uploadAll(device, h)
      const call = (lengths: Tensor) =>
        flashAttention(q, k, v, { queryStarts: queryStarts!, pageTable: pageTable!, keyLengths: lengths })
      using program = Program.capture(device, [{ shape: [2], dtype: 'i32' }], (lengths) => call(lengths!))
      for (const lengths of [keyLengths!, Tensor.from(device, Int32Array.of(599, 1), [2])]) {
        const expected = await bytesOf(call(lengths))
        expect((await bytesOf(program.run(lengths) as Tensor)).equals(expected)).toBe(true)
      }
    }))

  test('equal keys average the values, whatever the scores', () =>
    forEachKernel(async (device) => {
      const [tokens, headDim] = [40, 16]
      const random = Random.named('average')
      const q = upload(device, random.normal('f32', [tokens, 1, headDim], 3))
      const k = Tensor.from(device, new Float32Array(tokens * headDim).fill(1), [tokens, 1, headDim])
      const v = Tensor.from(
        device,
        Float32Array.from({ length: tokens * headDim }, (_, i) => Math.floor(i / headDim)),
        [tokens, 1, headDim],
      )
      const out = await valuesOf(flashAttention(q, k, v))
      for (let t = 0; t < tokens; t++)
        expect(Math.abs(out[t * headDim]! - t / 2)).toBeLessThanOrEqual(tokens * 2 ** -20)
    }))

  test('a NaN that a row sees makes the row NaN', () =>
    forEachKernel(async (device) => {
      for (const tokens of [1, 20]) {
        const c: Case = { name: '', ...base, queries: [tokens], keys: [20] }
        const h = makeInputs(c, Random.named('nan'))
        const { q, k, v } = uploadAll(device, { ...h, k: withNaN(h.k, 3 * base.kvHeads * base.headDim) })
        const out = await valuesOf(flashAttention(q, k, v))
        const last = out.subarray((tokens - 1) * base.queryHeads * base.headDim)
        // Key 3 of kv head 0: query heads 0 and 1.
        expect(last.subarray(0, 2 * base.headDim).every(Number.isNaN)).toBe(true)
        expect(last.subarray(2 * base.headDim).some(Number.isNaN)).toBe(false)
        if (tokens === 20) expect(out.subarray(0, 3 * base.queryHeads * base.headDim).some(Number.isNaN)).toBe(false)
      }
    }))
})

function withNaN(host: HostTensor, index: number): HostTensor {
  const data = Float32Array.from(host.values)
  data[index] = Number.NaN
  return { ...host, data, values: Float64Array.from(data) }
}

/** The rows of plain keys in pages, later ones over earlier ones where the table is a ring. Unused slots hold noise. */
function inPages(
  plain: HostTensor,
  table: readonly number[],
  pages: number,
  pageTokens: number,
  random: Random,
): HostTensor {
  const [keys, kvHeads, headDim] = plain.shape as [number, number, number]
  const host = random.normal(plain.dtype as 'f32' | 'bf16', [pages, kvHeads, pageTokens, headDim])
  const { data, values } = host
  for (let j = 0; j < keys; j++) {
    const page = table[Math.floor(j / pageTokens) % table.length]!
    for (let head = 0; head < kvHeads; head++) {
      const to = ((page * kvHeads + head) * pageTokens + (j % pageTokens)) * headDim
      const from = (j * kvHeads + head) * headDim
      data.set(plain.data.subarray(from, from + headDim), to)
      values.set(plain.values.subarray(from, from + headDim), to)
    }
  }
  return host
}
