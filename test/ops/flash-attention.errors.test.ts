import { describe, expect, test } from 'vitest'
import { type FlashAttentionOptions, flashAttention, Tensor } from '../../lib/index.ts'
import { anyDevice, forEachDevice, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'

type DType = 'f32' | 'bf16' | 'f16' | 'i32' | 'i8'

async function setUp() {
  const device = await anyDevice()
  const zeros = (shape: readonly number[], dtype: DType = 'f32') => Tensor.zeros(device, shape, dtype)
  return { zeros, q: zeros([3, 4, 16]), k: zeros([5, 2, 16]), pages: zeros([6, 2, 4, 16]) }
}

describe('flashAttention rejects', () => {
  test('shapes that do not fit', async () => {
    const { zeros, q, k, pages } = await setUp()
    const rejects = (body: () => unknown, message: RegExp) => throwsCode(body, 'ERR_SHAPE_MISMATCH', message)
    rejects(() => flashAttention(zeros([3, 64]), k, k), /q: expected 3 dimensions/)
    rejects(() => flashAttention(zeros([3, 4, 12]), k, k), /headDim to be a multiple of 8/)
    rejects(() => flashAttention(zeros([3, 4, 520]), k, k), /headDim to be a multiple of 8 from 8 to 512/)
    rejects(() => flashAttention(q, zeros([5, 32]), k), /k: expected \[keys, kvHeads, headDim\] or/)
    rejects(() => flashAttention(q, k, zeros([4, 2, 16])), /v: .*as k/)
    rejects(() => flashAttention(q, k, zeros([5, 2, 8])), /v: .*headDim of q/)
    rejects(() => flashAttention(q, zeros([5, 2, 8]), k), /k: .*headDim of q/)
    rejects(() => flashAttention(q, zeros([5, 3, 16]), zeros([5, 3, 16])), /queryHeads to be a multiple of kvHeads/)
    rejects(
      () => flashAttention(q, k, k, { keyLow: zeros([2], 'i32'), keyHigh: zeros([3], 'i32') }),
      /keyLow: .*tokens/,
    )
    rejects(
      () => flashAttention(q, k, k, { queryStarts: zeros([3], 'i32'), keyStarts: zeros([2], 'i32') }),
      /keyStarts/,
    )
    const keyLengths = zeros([1], 'i32')
    rejects(
      () => flashAttention(q, pages, pages, { keyLengths, pageTable: zeros([2, 3], 'i32') }),
      /pageTable: .*sequences/,
    )
    rejects(
      () => flashAttention(q, pages, pages, { keyLengths: zeros([2], 'i32'), pageTable: zeros([1, 3], 'i32') }),
      /keyLengths: .*sequences/,
    )
    const bytes = zeros([5, 2, 16], 'i8')
    rejects(
      () => flashAttention(q, bytes, bytes, { kScales: zeros([5, 1]), vScales: zeros([5, 2]) }),
      /kScales: .*one scale/,
    )
  })

  test('q without heads, whatever k has', async () => {
    const { zeros } = await setUp()
    for (const kvHeads of [0, 1, 2]) {
      const [q, k] = [zeros([3, 0, 16]), zeros([5, kvHeads, 16])]
      throwsCode(() => flashAttention(q, k, k), 'ERR_SHAPE_MISMATCH', /queryHeads/)
    }
  })

  test('dtypes it does not take', async () => {
    const { zeros, q, k } = await setUp()
    const rejects = (body: () => unknown, message: RegExp) => throwsCode(body, 'ERR_DTYPE_UNSUPPORTED', message)
    rejects(() => flashAttention(zeros([3, 4, 16], 'f16'), k, k), /q: expected f32 or bf16/)
    rejects(() => flashAttention(q, zeros([5, 2, 16], 'i32'), k), /k: expected f32 or bf16 or f16 or i8/)
    rejects(() => flashAttention(q, k, zeros([5, 2, 16], 'bf16')), /v: expected f32/)
    rejects(() => flashAttention(q, k, k, { queryStarts: zeros([2]) }), /queryStarts: expected i32/)
    rejects(() => flashAttention(q, k, k, { keyLengths: zeros([1]) }), /keyLengths: expected i32/)
  })

  test('tensors that do not go together', async () => {
    const { zeros, q, k, pages } = await setUp()
    const rejects = (body: () => unknown, message: RegExp) => throwsCode(body, 'ERR_INVALID_ARGUMENT', message)
    const [pageTable, keyLengths] = [zeros([1, 3], 'i32'), zeros([1], 'i32')]
    rejects(() => flashAttention(q, pages, pages, { keyLengths }), /pageTable: expected a tensor/)
    rejects(() => flashAttention(q, pages, pages, { pageTable }), /keyLengths: expected a tensor/)
    rejects(() => flashAttention(q, k, k, { pageTable, keyLengths }), /pageTable: expected none/)
    rejects(
      () => flashAttention(q, pages, pages, { pageTable, keyLengths, keyStarts: zeros([2], 'i32') }),
      /keyStarts: expected none/,
    )
    rejects(() => flashAttention(q, k, k, { queryStarts: zeros([3], 'i32') }), /keyStarts: expected a tensor/)
    rejects(() => flashAttention(q, k, k, { keyLow: zeros([3], 'i32') }), /keyHigh: expected a tensor/)
    rejects(() => flashAttention(q, k, k, { keyHigh: zeros([3], 'i32') }), /keyHigh: expected none/)
    rejects(() => flashAttention(q, k, k, { kScales: zeros([5, 2]), vScales: zeros([5, 2]) }), /kScales: expected none/)
    const bytes = zeros([5, 2, 16], 'i8')
    rejects(() => flashAttention(q, bytes, bytes), /kScales: expected a tensor/)
    rejects(() => flashAttention(q, bytes, bytes, { kScales: zeros([5, 2]) }), /vScales: expected a tensor/)
  })

  test('attributes outside their ranges', async () => {
    const { q, k } = await setUp()
    const rejects = (options: FlashAttentionOptions, message: RegExp) =>
      throwsCode(() => flashAttention(q, k, k, options), 'ERR_INVALID_ARGUMENT', message)
    rejects({ scale: Number.POSITIVE_INFINITY }, /scale/)
    rejects({ scale: 1e300 }, /scale/)
    rejects({ softcap: -1 }, /softcap/)
    rejects({ softcap: Number.POSITIVE_INFINITY }, /softcap/)
    rejects({ window: -1 }, /window/)
    rejects({ window: 1.5 }, /window/)
    rejects({ window: 4, causal: false }, /window: .*causal/)
    rejects({ outputDtype: 'f16' as 'f32' }, /outputDtype/)
  })
})

describe('flashAttention finds bad device data', () => {
  const [queryHeads, kvHeads, headDim] = [2, 1, 16]

  /** Runs on every ISA; the call must fail with this message, and the stream must work afterwards. */
  async function fails(
    tokens: number,
    keys: number,
    make: (integers: (values: readonly number[], shape?: readonly number[]) => Tensor) => FlashAttentionOptions,
    message: RegExp,
    pageTokens = 0,
  ) {
    await forEachDevice(['flash_attention'], async (device) => {
      const integers = (values: readonly number[], shape: readonly number[] = [values.length]) =>
        Tensor.from(device, Int32Array.from(values), shape)
      const q = Tensor.zeros(device, [tokens, queryHeads, headDim])
      const k = Tensor.zeros(device, pageTokens ? [keys, kvHeads, pageTokens, headDim] : [keys, kvHeads, headDim])
      await rejectsCode(flashAttention(q, k, k, make(integers)).read(), 'ERR_INDEX_OUT_OF_RANGE', message)
      await device.stream.synchronize().catch(() => {})
      const good = Tensor.zeros(device, [4, kvHeads, headDim])
      const after = await valuesOf(flashAttention(Tensor.zeros(device, [4, queryHeads, headDim]), good, good))
      expect(after.every((value) => value === 0)).toBe(true)
    })
  }

  test('starts', async () => {
    for (const starts of [
      [0, 3, 2, 6],
      [-1, 3, 4, 6],
      [0, 3, 4, 7],
      [0, 1 << 30, -5, 6],
    ]) {
      await fails(6, 9, (i) => ({ queryStarts: i(starts), keyStarts: i([0, 3, 6, 9]) }), /queryStarts\[\d\]/)
    }
    await fails(6, 9, (i) => ({ queryStarts: i([0, 3, 6]), keyStarts: i([0, 5, 4]) }), /keyStarts\[2\]/)
  })

  test('lengths', async () => {
    await fails(3, 9, (i) => ({ keyLengths: i([10]) }), /keyLengths\[0\]/)
    await fails(3, 9, (i) => ({ keyLengths: i([-1]) }), /keyLengths\[0\]/)
    const starts = { queries: [0, 1, 3], keys: [0, 4, 9] }
    await fails(
      3,
      9,
      (i) => ({ queryStarts: i(starts.queries), keyStarts: i(starts.keys), keyLengths: i([4, 6]) }),
      /keyLengths\[1\]/,
    )
  })

  test('intervals', async () => {
    for (const [low, high] of [
      [-1, 3],
      [0, 10],
      [10, 10],
      [1 << 30, 3],
      [0, -(2 ** 31)],
    ] as const) {
      for (const tokens of [1, 30]) {
        const repeated = (value: number) => Array.from({ length: tokens }, (_, t) => (t === tokens - 1 ? value : 0))
        await fails(tokens, 9, (i) => ({ keyLow: i(repeated(low)), keyHigh: i(repeated(high)) }), /keyLow, keyHigh/)
      }
    }
  })

  test('pages', async () => {
    for (const page of [-1, 6, 1 << 30]) {
      for (const tokens of [1, 30]) {
        await fails(
          tokens,
          6,
          (i) => ({ pageTable: i([0, page, 2], [1, 3]), keyLengths: i([12]) }),
          /sequence 0 names page/,
          4,
        )
      }
    }
  })

  test('keys that a ring no longer holds', async () => {
    for (const tokens of [1, 30]) {
      await fails(
        tokens,
        6,
        (i) => ({ pageTable: i([0, 1], [1, 2]), keyLengths: i([9]) }),
        /its ring holds keys from 1/,
        4,
      )
    }
  })

  test('but not in table entries that no visible key needs', () =>
    forEachDevice(['flash_attention'], async (device) => {
      const q = Tensor.zeros(device, [1, queryHeads, headDim])
      const k = Tensor.from(device, new Float32Array(6 * 4 * headDim).fill(1), [6, kvHeads, 4, headDim])
      const pageTable = Tensor.from(device, Int32Array.of(-7, 99, 3, 2, -1), [1, 5])
      const keyLengths = Tensor.from(device, Int32Array.of(15), [1])
      const out = await valuesOf(flashAttention(q, k, k, { pageTable, keyLengths, window: 7 }))
      expect(out.every((value) => Math.abs(value - 1) < 1e-6)).toBe(true)
    }))
})
