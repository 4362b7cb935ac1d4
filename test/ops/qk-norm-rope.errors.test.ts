import { describe, expect, test } from 'vitest'
import { qkNormRope, Tensor } from '../../lib/index.ts'
import { anyDevice, forEachDevice, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'

describe('qkNormRope rejects', () => {
  async function setUp() {
    const device = await anyDevice()
    const zeros = (shape: readonly number[], dtype: 'f32' | 'bf16' | 'f16' | 'i32' | 'i8' = 'f32') =>
      Tensor.zeros(device, shape, dtype)
    const positions = zeros([3], 'i32')
    return {
      device,
      zeros,
      positions,
      q: zeros([3, 2, 8]),
      k: zeros([3, 1, 8]),
      options: { positions, ropeTheta: 10_000 },
    }
  }

  test('shapes that do not fit', async () => {
    const { zeros, q, k, options, positions } = await setUp()
    throwsCode(
      () => qkNormRope(zeros([3, 8]), undefined, undefined, options),
      'ERR_SHAPE_MISMATCH',
      /q: expected 3 dimensions/,
    )
    throwsCode(() => qkNormRope(zeros([3, 2, 7]), undefined, undefined, options), 'ERR_SHAPE_MISMATCH', /even headDim/)
    throwsCode(() => qkNormRope(zeros([3, 2, 0]), undefined, undefined, options), 'ERR_SHAPE_MISMATCH', /headDim/)
    throwsCode(() => qkNormRope(zeros([3, 1, 4098]), undefined, undefined, options), 'ERR_SHAPE_MISMATCH', /4096/)
    throwsCode(() => qkNormRope(q, zeros([2, 1, 8]), k, options), 'ERR_SHAPE_MISMATCH', /k: .*tokens/)
    throwsCode(() => qkNormRope(q, k, zeros([3, 2, 8]), options), 'ERR_SHAPE_MISMATCH', /v: .*kvHeads/)
    throwsCode(() => qkNormRope(q, k, zeros([3, 1, 6]), options), 'ERR_SHAPE_MISMATCH', /v: .*headDim/)
    throwsCode(
      () => qkNormRope(q, undefined, undefined, { ...options, qNorm: zeros([7]) }),
      'ERR_SHAPE_MISMATCH',
      /qNorm/,
    )
    throwsCode(
      () => qkNormRope(q, undefined, undefined, { ...options, positions: zeros([2], 'i32') }),
      'ERR_SHAPE_MISMATCH',
      /positions/,
    )
    const cache = { kCache: zeros([2, 1, 4, 8]), vCache: zeros([2, 1, 4, 8]), slots: positions }
    throwsCode(
      () => qkNormRope(q, k, k, { ...options, cache: { ...cache, vCache: zeros([1, 1, 4, 8]) } }),
      'ERR_SHAPE_MISMATCH',
      /vCache: .*pages/,
    )
    throwsCode(
      () => qkNormRope(q, k, k, { ...options, cache: { ...cache, kCache: zeros([2, 2, 4, 8]) } }),
      'ERR_SHAPE_MISMATCH',
      /kCache: .*kvHeads/,
    )
    throwsCode(
      () => qkNormRope(q, k, k, { ...options, cache: { ...cache, slots: zeros([4], 'i32') } }),
      'ERR_SHAPE_MISMATCH',
      /slots/,
    )
  })

  test('dtypes it does not take', async () => {
    const { zeros, q, k, options } = await setUp()
    throwsCode(
      () => qkNormRope(zeros([3, 2, 8], 'f16'), undefined, undefined, options),
      'ERR_DTYPE_UNSUPPORTED',
      /q: expected f32 or bf16/,
    )
    throwsCode(() => qkNormRope(q, k, zeros([3, 1, 8], 'bf16'), options), 'ERR_DTYPE_UNSUPPORTED', /v: expected f32/)
    throwsCode(
      () => qkNormRope(q, undefined, undefined, { ...options, positions: zeros([3]) }),
      'ERR_DTYPE_UNSUPPORTED',
      /positions/,
    )
    const cache = { kCache: zeros([2, 1, 4, 8]), vCache: zeros([2, 1, 4, 8], 'bf16'), slots: options.positions }
    throwsCode(() => qkNormRope(q, k, k, { ...options, cache }), 'ERR_DTYPE_UNSUPPORTED', /vCache: expected f32/)
  })

  test('arguments that belong together', async () => {
    const { zeros, q, k, options } = await setUp()
    throwsCode(() => qkNormRope(q, k, undefined, options), 'ERR_INVALID_ARGUMENT', /v: expected a tensor/)
    throwsCode(
      () => qkNormRope(q, undefined, undefined, { ...options, kNorm: zeros([8]) }),
      'ERR_INVALID_ARGUMENT',
      /kNorm: expected none/,
    )
    const i8 = { kCache: zeros([2, 1, 4, 8], 'i8'), vCache: zeros([2, 1, 4, 8], 'i8'), slots: options.positions }
    throwsCode(
      () => qkNormRope(q, k, k, { ...options, cache: i8 }),
      'ERR_INVALID_ARGUMENT',
      /kScales: expected a tensor/,
    )
    throwsCode(
      () =>
        qkNormRope(q, undefined, undefined, {
          ...options,
          cache: { ...i8, kScales: zeros([2, 1, 4]), vScales: zeros([2, 1, 4]) },
        }),
      'ERR_INVALID_ARGUMENT',
      /k: expected a tensor/,
    )
    const f32 = { kCache: zeros([2, 1, 4, 8]), vCache: zeros([2, 1, 4, 8]), slots: options.positions }
    throwsCode(
      () => qkNormRope(q, k, k, { ...options, cache: { ...f32, kScales: zeros([2, 1, 4]) } }),
      'ERR_INVALID_ARGUMENT',
      /kScales: expected none/,
    )
  })

  test('attributes outside their range', async () => {
    const { q, options } = await setUp()
    const call = (more: object) => () => qkNormRope(q, undefined, undefined, { ...options, ...more })
    throwsCode(call({ ropeTheta: undefined }), 'ERR_INVALID_ARGUMENT', /ropeTheta/)
    throwsCode(call({ ropeTheta: 0 }), 'ERR_INVALID_ARGUMENT', /ropeTheta/)
    throwsCode(call({ positionScale: -1 }), 'ERR_INVALID_ARGUMENT', /positionScale/)
    throwsCode(call({ rotaryDims: 3 }), 'ERR_INVALID_ARGUMENT', /rotaryDims/)
    throwsCode(call({ rotaryDims: 10 }), 'ERR_INVALID_ARGUMENT', /rotaryDims/)
    throwsCode(call({ eps: 0 }), 'ERR_INVALID_ARGUMENT', /eps/)
    throwsCode(call({ weightBias: Number.POSITIVE_INFINITY }), 'ERR_INVALID_ARGUMENT', /weightBias/)
    throwsCode(call({ outputDtype: 'f16' }), 'ERR_INVALID_ARGUMENT', /outputDtype/)
  })

  test('a negative position: results are zeros and the cache is left alone', () =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const x = upload(device, Random.named('negative').normal('f32', [3, 2, 8]))
      const cache = {
        kCache: Tensor.zeros(device, [1, 2, 4, 8], 'f32'),
        vCache: Tensor.zeros(device, [1, 2, 4, 8], 'f32'),
        slots: Tensor.from(device, Int32Array.of(0, 1, 2), [3]),
      }
      const positions = Tensor.from(device, Int32Array.of(5, -1, 6), [3])
      const { q } = qkNormRope(x, x, x, { positions, ropeTheta: 10_000, cache })
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /positions: .*-1 at token 1/)
      const blank = (values: Float64Array) => values.every((value) => value === 0)
      expect(blank((await valuesOf(q)).subarray(16, 32))).toBe(true)
      expect(blank((await valuesOf(q)).subarray(32))).toBe(false)
      // Slot 1 of each head: rows 1 and 5.
      for (const tensor of [cache.kCache, cache.vCache]) {
        const values = await valuesOf(tensor)
        expect([0, 1, 2, 3, 4, 5, 6, 7].map((row) => blank(values.subarray(row * 8, row * 8 + 8)))).toEqual([
          false,
          true,
          false,
          true,
          false,
          true,
          false,
          true,
        ])
      }
    }))

  test.each([[8], [-2], [2 ** 31 - 1]])('slot %i of 8: nothing is written', (slot) =>
    forEachDevice(['qk_norm_rope'], async (device) => {
      const x = upload(device, Random.named('slot').normal('bf16', [1, 1, 8]))
      const cache = {
        kCache: Tensor.zeros(device, [2, 1, 4, 8], 'bf16'),
        vCache: Tensor.zeros(device, [2, 1, 4, 8], 'bf16'),
        slots: Tensor.from(device, Int32Array.of(slot), [1]),
      }
      const { q } = qkNormRope(x, x, x, { positions: Tensor.zeros(device, [1], 'i32'), ropeTheta: 10_000, cache })
      await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE', /slots/)
      expect(await valuesOf(q)).toEqual(await valuesOf(x))
      for (const tensor of [cache.kCache, cache.vCache])
        expect((await valuesOf(tensor)).every((value) => value === 0)).toBe(true)
    }),
  )
})
