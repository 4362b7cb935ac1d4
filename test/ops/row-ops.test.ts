import { describe, expect, test } from 'vitest'
import {
  add,
  addRmsNorm,
  cast,
  type Device,
  geglu,
  gelu,
  layerNorm,
  rmsNorm,
  softcap,
  Tensor,
} from '../../lib/index.ts'
import type { Expected } from '../support/compare.ts'
import { type Cut, cutTensor, cutValues } from '../support/cuts.ts'
import { download, forEachIsa, openDevice, presentIsas, upload, valuesOf } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { type FloatDType, gamma, outputBound, round, roundingError, unitRoundoff } from '../support/numbers.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'

const u = unitRoundoff('f32')

interface Case {
  readonly name: string
  readonly dtype: FloatDType
  readonly outputDtype: FloatDType
  /** Of x before `cuts`. */
  readonly shape: readonly number[]
  readonly cuts?: readonly Cut[]
  readonly weighted: boolean
  readonly weightBias: number
  readonly scale: number
  readonly eps?: number
}

const floats = ['f32', 'bf16', 'f16'] as const
const dtypePairs = floats.flatMap((dtype) => floats.map((outputDtype) => ({ dtype, outputDtype })))
const base: Case = { name: '', ...dtypePairs[0]!, shape: [], weighted: true, weightBias: 1, scale: 1 }

// One vector, ± 1, of every ISA; the same with four vectors at a time; and the stretches of 1024; models' sizes; primes.
const columnCounts = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 1023, 1024, 1025, 1152]
const cases: readonly Case[] = [
  { ...base, name: 'hidden size 2560', shape: [3, 2560] },
  ...columnCounts.map((n, i) => {
    const dtypes = dtypePairs[i % dtypePairs.length]!
    const name = `${n} columns, ${dtypes.dtype} to ${dtypes.outputDtype}`
    return { ...base, ...dtypes, name, shape: [1 + (i % 4), n], weighted: i % 3 !== 1, weightBias: i % 2 }
  }),
  ...dtypePairs.map(({ dtype, outputDtype }) => {
    const name = `prime size 2053, ${dtype} to ${outputDtype}`
    return { ...base, dtype, outputDtype, name, shape: [5, 2053], weightBias: 0 }
  }),
  { ...base, name: 'hidden size 5376, large values', shape: [2, 5376], scale: 1000 },
  { ...base, name: 'small values', shape: [4, 640], scale: 1e-5, weightBias: 0 },
  { ...base, name: 'eps 0.01', shape: [4, 640], eps: 0.01 },
  { ...base, name: 'one dimension', shape: [640] },
  { ...base, name: 'three dimensions', shape: [2, 3, 65] },
  { ...base, name: 'no rows', shape: [0, 64] },
  { ...base, name: 'no columns', shape: [3, 0], weighted: false },
  { ...base, name: 'many short rows', shape: [301, 12] },
  { ...base, name: 'columns of a wider tensor', shape: [7, 100], cuts: [[1, 3, 77]] },
  { ...base, name: 'bf16 columns of a wider tensor', dtype: 'bf16', shape: [7, 100], cuts: [[1, 3, 77]] },
  { ...base, name: 'rows of a batch', shape: [3, 5, 33], cuts: [[1, 1, 4]] },
  {
    ...base,
    name: 'rows of heads of a batch',
    shape: [3, 4, 5, 33],
    cuts: [
      [1, 1, 3],
      [2, 2, 5],
      [3, 1, 30],
    ],
  },
  { ...base, name: 'one head of a batch', dtype: 'f16', shape: [3, 4, 5, 33], cuts: [[1, 2, 3]] },
]

const columnsOf = (c: Case) =>
  c.cuts?.reduce((n, [axis, start, end]) => (axis === c.shape.length - 1 ? end - start : n), c.shape.at(-1)!) ??
  c.shape.at(-1)!
const weightOf = (c: Case, random: Random) => (c.weighted ? random.normal('f32', [columnsOf(c)], 0.5) : undefined)

/** A sum of n terms in at least 16 partial sums: the relative error that native/ops/row_ops.h promises. */
const sumError = (n: number) => gamma(Math.ceil(n / 16) + 8)

/** Rows of an array. */
function* rows(values: Float64Array, n: number): Generator<[row: Float64Array, offset: number]> {
  for (let offset = 0; n > 0 && offset < values.length; offset += n) yield [values.subarray(offset, offset + n), offset]
}

/** |1/√(a + e) − 1/√a| for |e| ≤ error: the error that an inverse root inherits, plus that of its own three roundings. */
function inverseRootError(a: number, error: number): number {
  return 1 / Math.sqrt(a - error) - 1 / Math.sqrt(a) + gamma(3) / Math.sqrt(a - error)
}

interface Computed {
  readonly value: Float64Array
  /** How far a correct kernel may be from `value`, before it rounds to the output's dtype. */
  readonly error: Float64Array
}

/** RMSNorm of values that are themselves known to within `inputError`. */
function rmsNormReference(
  x: Float64Array,
  n: number,
  options: { weight?: HostTensor | undefined; weightBias: number; eps?: number | undefined },
  inputError = new Float64Array(x.length),
): Computed {
  const eps = Math.fround(options.eps ?? 1e-6)
  const value = new Float64Array(x.length)
  const error = new Float64Array(x.length)
  for (const [row, offset] of rows(x, n)) {
    let squares = 0
    let squaresError = 0
    for (let k = 0; k < n; k++) {
      const e = inputError[offset + k]!
      squares += row[k]! ** 2
      squaresError += 2 * Math.abs(row[k]!) * e + e ** 2
    }
    const mean = squares / n + eps
    const meanError = (squaresError + sumError(n) * (squares + squaresError)) / n + gamma(3) * mean
    const factor = 1 / Math.sqrt(mean)
    const factorError = inverseRootError(mean, meanError)
    for (let k = 0; k < n; k++) {
      const scale = options.weight ? options.weightBias + options.weight.values[k]! : 1
      const e = inputError[offset + k]!
      value[offset + k] = row[k]! * factor * scale
      error[offset + k] =
        ((Math.abs(row[k]!) + e) * (factor + factorError) * (1 + gamma(3)) - Math.abs(row[k]!) * factor) *
        Math.abs(scale)
    }
  }
  return { value, error }
}

const rounded = (dtype: FloatDType, { value, error }: Computed): Expected => ({
  value,
  bound: outputBound(dtype, value, error),
})

opSuite('rmsNorm', {
  ops: ['rms_norm'],
  cases,
  inputs: (c, random) => ({ x: random.normal(c.dtype, c.shape, c.scale), weight: weightOf(c, random) }),
  run: (c, t) => rmsNorm(cutTensor(t.x, c.cuts), t.weight, c),
  reference: (c, h) => [
    rounded(c.outputDtype, rmsNormReference(cutValues(h.x, c.cuts).values, columnsOf(c), { ...c, weight: h.weight })),
  ],
})

interface SandwichCase extends Case {
  readonly residualDtype: FloatDType
  readonly postNorm: boolean
  readonly nextNorm: boolean
  readonly outScale: number
}
const sandwichCases: readonly SandwichCase[] = cases.map((c, i) => ({
  ...c,
  residualDtype: i < 9 ? 'f32' : floats[i % 3]!,
  postNorm: i % 5 !== 3,
  nextNorm: i % 7 !== 5,
  outScale: i % 4 === 2 ? 0.75 : 1,
}))

opSuite('addRmsNorm', {
  ops: ['add_rms_norm'],
  cases: sandwichCases,
  inputs: (c, random) => ({
    x: random.normal(c.dtype, c.shape, c.scale),
    residual: random.normal(c.residualDtype, c.shape, 3 * c.scale),
    postWeight: c.postNorm ? weightOf(c, random) : undefined,
    preWeight: c.nextNorm ? weightOf(c, random) : undefined,
  }),
  run: (c, t) => {
    const { postWeight, preWeight } = t
    const out = addRmsNorm(cutTensor(t.x, c.cuts), cutTensor(t.residual, c.cuts), { ...c, postWeight, preWeight })
    expect(out.normed === undefined).toBe(!c.nextNorm)
    return out.normed ? [out.residual, out.normed] : [out.residual]
  },
  reference: (c, h) => {
    const n = columnsOf(c)
    const x = cutValues(h.x, c.cuts).values
    const residual = cutValues(h.residual, c.cuts).values
    const exact = { value: x, error: new Float64Array(x.length) }
    const branch = c.postNorm ? rmsNormReference(x, n, { ...c, weight: h.postWeight }) : exact
    const value = branch.value.map((v, i) => c.outScale * (residual[i]! + v))
    const error = branch.error.map((e, i) => c.outScale * e + gamma(2) * (Math.abs(value[i]!) + c.outScale * e))
    const sum = rounded(c.residualDtype, { value, error })
    if (!c.nextNorm) return [sum]
    const stored = error.map((e, i) => e + roundingError(c.residualDtype, Math.abs(value[i]!) + e))
    return [sum, rounded(c.outputDtype, rmsNormReference(value, n, { ...c, weight: h.preWeight }, stored))]
  },
})

opSuite('layerNorm', {
  ops: ['layer_norm'],
  cases: cases.map((c, i) => ({ ...c, biased: c.weighted && i % 4 !== 1, shift: i % 3 })),
  inputs: (c, random) => ({
    x: random.tensor(c.dtype, c.shape, () => c.scale * (random.gaussian() + c.shift)),
    weight: weightOf(c, random),
    bias: c.biased ? random.normal('f32', [columnsOf(c)]) : undefined,
  }),
  run: (c, t) => layerNorm(cutTensor(t.x, c.cuts), t.weight, t.bias, c),
  reference: (c, h) => {
    const n = columnsOf(c)
    const eps = Math.fround(c.eps ?? 1e-6)
    const x = cutValues(h.x, c.cuts).values
    const value = new Float64Array(x.length)
    const error = new Float64Array(x.length)
    for (const [row, offset] of rows(x, n)) {
      const mean = row.reduce((sum, v) => sum + v, 0) / n
      const magnitude = row.reduce((sum, v) => sum + Math.abs(v), 0) / n
      const meanError = sumError(n) * magnitude + u * (Math.abs(mean) + sumError(n) * magnitude)
      const off = (v: number) => meanError + u * (Math.abs(v - mean) + meanError)
      const variance = row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / n + eps
      const perturbed = row.reduce((sum, v) => sum + (Math.abs(v - mean) + off(v)) ** 2, 0) / n
      const varianceError = perturbed * (1 + sumError(n)) - (variance - eps) + gamma(3) * (perturbed + eps)
      const factor = 1 / Math.sqrt(variance)
      const factorError = inverseRootError(variance, varianceError)
      for (let k = 0; k < n; k++) {
        const scale = h.weight?.values[k] ?? 1
        const bias = h.bias?.values[k] ?? 0
        const difference = Math.abs(row[k]! - mean)
        const product =
          ((difference + off(row[k]!)) * (factor + factorError) * (1 + gamma(2)) - difference * factor) *
          Math.abs(scale)
        value[offset + k] = (row[k]! - mean) * factor * scale + bias
        error[offset + k] = product + u * (Math.abs(value[offset + k]!) + product)
      }
    }
    return [rounded(c.outputDtype, { value, error })]
  },
})

// ── elementwise ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** GELU and its error: 1.92 units in the last place (at most 2u each) for x ≥ 0, 5·(1 + |v|)·u below, and a floor where f32 ends. */
function geluReference(x: number): [value: number, error: number] {
  const v = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)
  // ½·x·(1 + tanh v), written without the cancellation.
  const value = x === 0 ? x : x / (1 + Math.exp(-2 * v))
  return [value, (x < 0 ? 5 * (1 + Math.abs(v)) : 2 * 1.92) * u * Math.abs(value) + 2 ** -124]
}

/** A reference from a function of one element, or of two, that gives value and error. */
function mapped(dtype: FloatDType, count: number, element: (i: number) => [value: number, error: number]): Expected {
  const value = new Float64Array(count)
  const error = new Float64Array(count)
  for (let i = 0; i < count; i++) [value[i], error[i]] = element(i) as [number, number]
  return rounded(dtype, { value, error })
}

// Spread so that the tails of the functions are visited too.
const spread = (c: Case, random: Random) => random.normal(c.dtype, c.shape, 3 * c.scale)
const longRow: Case = { ...base, name: 'one long row', shape: [1, 20000], dtype: 'bf16', outputDtype: 'f32' }
const elementwiseCases = [...cases, longRow]

opSuite('gelu', {
  ops: ['gelu'],
  cases: elementwiseCases,
  inputs: (c, random) => ({ x: spread(c, random) }),
  run: (c, t) => gelu(cutTensor(t.x, c.cuts), c),
  reference: (c, h) => {
    const x = cutValues(h.x, c.cuts).values
    return [mapped(c.outputDtype, x.length, (i) => geluReference(x[i]!))]
  },
})

function gegluReference(dtype: FloatDType, gate: ArrayLike<number>, up: ArrayLike<number>): Expected {
  return mapped(dtype, gate.length, (i) => {
    const [value, error] = geluReference(gate[i]!)
    const product = error * Math.abs(up[i]!)
    return [value * up[i]!, product + u * (Math.abs(value * up[i]!) + product)]
  })
}

opSuite('geglu of two tensors', {
  ops: ['geglu'],
  cases: elementwiseCases,
  inputs: (c, random) => ({ gate: spread(c, random), up: random.normal(c.dtype, c.shape, 1) }),
  run: (c, t) => geglu(cutTensor(t.gate, c.cuts), cutTensor(t.up, c.cuts), c),
  reference: (c, h) => [
    gegluReference(c.outputDtype, cutValues(h.gate, c.cuts).values, cutValues(h.up, c.cuts).values),
  ],
})

opSuite('geglu of one tensor', {
  ops: ['geglu'],
  cases: elementwiseCases
    .filter((c) => !c.cuts)
    .map((c) => ({ ...c, shape: [...c.shape.slice(0, -1), 2 * c.shape.at(-1)!] })),
  inputs: (c, random) => ({ x: spread(c, random) }),
  run: (c, t) => geglu(t.x, undefined, c),
  reference: (c, h) => {
    const n = c.shape.at(-1)! / 2
    const halves = (first: number) => h.x.values.filter((_, i) => Math.floor(i / n) % 2 === first)
    return [gegluReference(c.outputDtype, n === 0 ? [] : halves(0), n === 0 ? [] : halves(1))]
  },
})

opSuite('add', {
  ops: ['add'],
  cases: elementwiseCases.map((c, i) => ({
    ...c,
    otherDtype: i % 2 ? c.dtype : ('f32' as const),
    oneRow: i % 3 === 1,
  })),
  inputs: (c, random) => ({
    a: random.normal(c.dtype, c.shape, c.scale),
    b: random.normal(c.otherDtype, c.oneRow ? [columnsOf(c)] : c.shape),
  }),
  run: (c, t) => add(cutTensor(t.a, c.cuts), c.oneRow ? t.b : cutTensor(t.b, c.cuts), c),
  reference: (c, h) => {
    const a = cutValues(h.a, c.cuts).values
    const b = cutValues(h.b, c.oneRow ? [] : c.cuts).values
    return [
      mapped(c.outputDtype, a.length, (i) => {
        const sum = a[i]! + b[i % b.length]!
        return [sum, u * Math.abs(sum)]
      }),
    ]
  },
})

opSuite('softcap', {
  ops: ['softcap'],
  cases: elementwiseCases.map((c, i) => ({ ...c, cap: [30, 50, 0.5][i % 3]! })),
  inputs: (c, random) => ({ x: random.normal(c.dtype, c.shape, 40 * c.scale) }),
  run: (c, t) => softcap(cutTensor(t.x, c.cuts), c.cap, c),
  reference: (c, h) => {
    const x = cutValues(h.x, c.cuts).values
    // A rounding of the quotient, 2.61 units in the last place (at most 2u each) of tanh, a rounding of the product.
    return [
      mapped(c.outputDtype, x.length, (i) => {
        const value = c.cap * Math.tanh(x[i]! / c.cap)
        return [value, gamma(1 + 2 * 2.61 + 1) * Math.abs(value) + 2 ** -149]
      }),
    ]
  },
})

opSuite('cast', {
  ops: ['cast'],
  cases: elementwiseCases,
  inputs: (c, random) => ({
    // Every magnitude that f32 has, so that the other dtypes' subnormals and infinities are met.
    x: random.tensor(c.dtype, c.shape, () => random.gaussian() * 2 ** random.integer(-148, 127)),
  }),
  run: (c, t) => cast(cutTensor(t.x, c.cuts), c.outputDtype),
  reference: (c, h) => [{ exact: cutValues(h.x, c.cuts).values.map((x) => round(c.outputDtype, x)) }],
})

describe('row ops', () => {
  const random = () => Random.named('row ops')

  test('the fused residual op has the bits of its parts', () =>
    forEachIsa(async (device) => {
      for (const dtype of floats) {
        const x = upload(device, random().normal('f32', [5, 1300]))
        const residual = upload(device, random().normal(dtype, [5, 1300], 4))
        const [postWeight, preWeight] = [1, 2].map((i) => upload(device, Random.named(`w${i}`).normal('f32', [1300])))
        const fused = addRmsNorm(x, residual, { postWeight, preWeight, weightBias: 1, outputDtype: 'bf16' })
        const sum = add(residual, rmsNorm(x, postWeight, { weightBias: 1 }))
        const normed = rmsNorm(sum, preWeight, { weightBias: 1, outputDtype: 'bf16' })
        expect(await valuesOf(fused.residual)).toEqual(await valuesOf(sum))
        expect(await valuesOf(fused.normed)).toEqual(await valuesOf(normed))
      }
    }))

  test('permuted rows give permuted results', () =>
    forEachIsa(async (device) => {
      const [count, n] = [13, 77]
      const host = random().normal('f32', [count, n])
      const order = random().permutation(count)
      const shuffled = hostTensor(
        'f32',
        [count, n],
        order.flatMap((row) => [...host.values.subarray(row * n, (row + 1) * n)]),
      )
      for (const op of [rmsNorm, layerNorm, gelu]) {
        const plain = await valuesOf(op(upload(device, host)))
        const permuted = await valuesOf(op(upload(device, shuffled)))
        for (const [i, row] of order.entries()) {
          expect(permuted.subarray(i * n, (i + 1) * n)).toEqual(plain.subarray(row * n, (row + 1) * n))
        }
      }
    }))

  test('NaN stays in its row, and in its element', () =>
    forEachIsa(async (device) => {
      const n = 21
      const host = hostTensor(
        'f32',
        [3, n],
        Float64Array.from({ length: 3 * n }, (_, i) => (i === n + 2 ? Number.NaN : i % 5)),
      )
      const x = () => upload(device, host)
      const nanRows = async (t: Tensor) =>
        [0, 1, 2].map(async (r) => (await valuesOf(t)).subarray(r * n, (r + 1) * n).filter(Number.isNaN).length)
      for (const out of [rmsNorm(x()), layerNorm(x()), addRmsNorm(x(), x()).normed]) {
        expect(await Promise.all(await nanRows(out))).toEqual([0, n, 0])
      }
      for (const out of [gelu(x()), geglu(x(), x()), add(x(), x()), softcap(x(), 30), cast(x(), 'bf16')]) {
        expect(await Promise.all(await nanRows(out))).toEqual([0, 1, 0])
      }
    }))

  test('zeros, infinities and extremes', () =>
    forEachIsa(async (device) => {
      const values = [0, -0, Infinity, -Infinity, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e20, -1e20]
      const x = () => Tensor.from(device, Float32Array.from(values))
      const close = (got: Float64Array, expected: number[]) => {
        for (const [i, value] of expected.entries()) expect(got[i], `element ${i}`).toBeCloseTo(value, 30)
      }
      expect([...(await valuesOf(rmsNorm(Tensor.zeros(device, [2, 5]))))]).toEqual(new Array(10).fill(0))
      expect([...(await valuesOf(layerNorm(Tensor.from(device, new Float32Array(7).fill(3)))))]).toEqual(
        new Array(7).fill(0),
      )
      expect([...(await valuesOf(softcap(x(), 30))).slice(2, 6)]).toEqual([30, -30, 30, -30])
      const got = await valuesOf(gelu(Tensor.from(device, Float32Array.of(0, 3.4e38, -3.4e38, 1e20, -1e20, -20))))
      close(got, [0, Math.fround(3.4e38), 0, Math.fround(1e20), 0, 0])
      expect([...(await valuesOf(cast(x(), 'f16')))].slice(2, 6)).toEqual([Infinity, -Infinity, Infinity, -Infinity])
    }))

  test('a row does not depend on the rows beside it or on the number of threads', async () => {
    const host = random().normal('f32', [64, 300])
    for (const isa of presentIsas) {
      const [one, two] = [await openDevice(isa, 1), await openDevice(isa, 2)]
      const run = async (device: Device, from: number, to: number) =>
        (await download(rmsNorm(upload(device, host).slice(from, to)))).bytes
      const whole = await run(one, 0, 64)
      expect(await run(two, 0, 64)).toEqual(whole)
      expect(await run(two, 17, 18)).toEqual(whole.subarray(17 * 1200, 18 * 1200))
    }
  })

  test('arguments that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const x = Tensor.zeros(device, [2, 8])
      const row = (n: number, dtype: 'f32' | 'bf16' = 'f32') => Tensor.zeros(device, [n], dtype)
      throwsCode(() => rmsNorm(x, row(7)), 'ERR_SHAPE_MISMATCH', /weight/)
      throwsCode(() => rmsNorm(x, row(8, 'bf16')), 'ERR_DTYPE_UNSUPPORTED', /weight/)
      throwsCode(() => rmsNorm(x, x), 'ERR_SHAPE_MISMATCH', /weight/)
      throwsCode(() => rmsNorm(Tensor.zeros(device, [2, 8], 'i32')), 'ERR_DTYPE_UNSUPPORTED', /x/)
      throwsCode(() => rmsNorm(Tensor.zeros(device, [])), 'ERR_SHAPE_MISMATCH', /x/)
      throwsCode(() => rmsNorm(x, undefined, { eps: -1 }), 'ERR_INVALID_ARGUMENT', /eps/)
      throwsCode(() => rmsNorm(x, undefined, { weightBias: Infinity }), 'ERR_INVALID_ARGUMENT', /weightBias/)
      throwsCode(() => addRmsNorm(x, Tensor.zeros(device, [8, 2])), 'ERR_SHAPE_MISMATCH', /residual/)
      throwsCode(() => addRmsNorm(x, x, { postNorm: false, postWeight: row(8) }), 'ERR_INVALID_ARGUMENT', /postWeight/)
      throwsCode(() => addRmsNorm(x, x, { nextNorm: false, preWeight: row(8) }), 'ERR_INVALID_ARGUMENT', /preWeight/)
      throwsCode(() => layerNorm(x, undefined, row(9)), 'ERR_SHAPE_MISMATCH', /bias/)
      throwsCode(() => geglu(Tensor.zeros(device, [2, 7])), 'ERR_SHAPE_MISMATCH', /even/)
      throwsCode(() => geglu(x, Tensor.zeros(device, [2, 8], 'bf16')), 'ERR_DTYPE_UNSUPPORTED', /up/)
      throwsCode(() => add(x, row(7)), 'ERR_SHAPE_MISMATCH', /b/)
      throwsCode(() => add(x, Tensor.zeros(device, [1, 8])), 'ERR_SHAPE_MISMATCH', /b/)
      throwsCode(() => add(x, row(8, 'bf16')), 'ERR_DTYPE_UNSUPPORTED', /b/)
      throwsCode(() => softcap(x, 0), 'ERR_INVALID_ARGUMENT', /cap/)
      throwsCode(() => softcap(x, Number.NaN), 'ERR_INVALID_ARGUMENT', /cap/)
      throwsCode(() => cast(x, 'i8'), 'ERR_INVALID_ARGUMENT', /dtype/)
    }))
})
