import { describe, expect, test } from 'vitest'
import { dequantize, packWeights, quantize, Tensor } from '../../lib/index.ts'
import { download, forEachIsa, upload, valuesOf } from '../support/devices.ts'
import { throwsCode } from '../support/errors.ts'
import { blockOf, randomStored, type StoredDType } from '../support/formats.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { fromBits, round, toBits } from '../support/numbers.ts'
import { opSuite } from '../support/op-suite.ts'
import { Random } from '../support/random.ts'

const f32 = Math.fround

/**
 * The quantisers' definitions, with every operation rounded to f32 as the contract says: results are compared byte for byte.
 * 1/d where it is finite; else the block counts as zero.
 */
function reciprocal(d: number): number {
  const inverse = d === 0 ? 0 : f32(1 / d)
  return Number.isFinite(inverse) ? inverse : 0
}

function q4Block(x: Float64Array): Uint8Array {
  const out = new Uint8Array(18)
  let extreme = 0
  for (const value of x) if (Math.abs(value) > Math.abs(extreme)) extreme = value
  const finite = x.every(Number.isFinite)
  const d = finite ? f32(extreme / -8) : Number.NaN
  const inverse = finite ? reciprocal(d) : 0
  const bits = toBits('f16', d)
  out[0] = bits & 255
  out[1] = bits >> 8
  const code = (j: number) => (inverse === 0 ? 8 : Math.min(15, Math.trunc(f32(f32(x[j]! * inverse) + 8.5))))
  for (let j = 0; j < 16; j++) out[2 + j] = code(j) | (code(j + 16) << 4)
  return out
}

function q8Block(x: Float64Array): Uint8Array {
  const out = new Uint8Array(34)
  const finite = x.every(Number.isFinite)
  const d = finite ? f32(x.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127) : Number.NaN
  const inverse = finite ? reciprocal(d) : 0
  const bits = toBits('f16', d)
  out[0] = bits & 255
  out[1] = bits >> 8
  for (let j = 0; j < 32; j++) {
    const scaled = inverse === 0 ? 0 : f32(x[j]! * inverse)
    out[2 + j] = Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5)
  }
  return out
}

function quantizedBlocks(x: HostTensor, block: (x: Float64Array) => Uint8Array): Uint8Array {
  const blocks: number[] = []
  for (let at = 0; at < x.values.length; at += 32) blocks.push(...block(x.values.subarray(at, at + 32)))
  return Uint8Array.from(blocks)
}

function halfEven(value: number): number {
  const below = Math.floor(value)
  const rest = value - below
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1
}

function quantizedGroups(
  x: HostTensor,
  group: number,
  scaleDtype: 'f16' | 'bf16',
): { packed: Float64Array; scales: Float64Array } {
  const scales = new Float64Array(x.values.length / group)
  const packed = new Int32Array(x.values.length / 8)
  for (const [g] of scales.entries()) {
    const values = x.values.subarray(g * group, (g + 1) * group)
    const finite = values.every(Number.isFinite)
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
    const s = finite ? round(scaleDtype, f32(largest / 7)) : Number.NaN
    scales[g] = s
    for (const [i, value] of values.entries()) {
      const q = finite && s > 0 ? halfEven(Math.max(-8, Math.min(7, f32(value / s)))) : 0
      packed[(g * group + i) >> 3]! |= (q + 8) << (4 * (i & 7))
    }
  }
  return { packed: Float64Array.from(packed), scales }
}

interface Case {
  readonly name: string
  readonly dtype: 'f32' | 'f16' | 'bf16'
  readonly rows: number
  readonly columns: number
  readonly make?: (i: number) => number
}

/** Values that end in ties, a negative extreme, equal extremes of both signs, subnormals, infinities. */
const awkward = [0.5, -0.5, 1.5, -8, 8, 7.5, -7.5, 0, -0, 127, -127, 63.5, -63.5, 1e-30, 2 ** -149, 1e30]
const cases: readonly Case[] = [
  { name: 'one block', dtype: 'f32', rows: 1, columns: 128 },
  { name: '[3, 640] bf16', dtype: 'bf16', rows: 3, columns: 640 },
  { name: '[17, 1152] f16', dtype: 'f16', rows: 17, columns: 1152 },
  { name: '[5, 2560]', dtype: 'f32', rows: 5, columns: 2560 },
  { name: 'zeros', dtype: 'f32', rows: 2, columns: 128, make: () => 0 },
  { name: 'negative zeros', dtype: 'f32', rows: 1, columns: 128, make: () => -0 },
  { name: 'ties', dtype: 'f32', rows: 1, columns: 128, make: (i) => (i % 32 === 31 ? -8 : (i % 16) - 7.5) },
  { name: 'ties of q8_0', dtype: 'f32', rows: 1, columns: 128, make: (i) => (i % 32 === 0 ? 127 : (i % 16) - 7.5) },
  // Adding a half to the number just below a half gives 1 in f32: rounding must not.
  {
    name: 'just below a tie',
    dtype: 'f32',
    rows: 1,
    columns: 128,
    make: (i) => (i % 32 === 0 ? 127 : (i % 2 ? -1 : 1) * (0.5 - 2 ** -25)),
  },
  { name: 'equal extremes of both signs', dtype: 'f32', rows: 1, columns: 128, make: (i) => (i % 2 ? 3 : -3) },
  { name: 'awkward', dtype: 'f32', rows: 2, columns: 256, make: (i) => awkward[(i * 7 + (i >> 5)) % awkward.length]! },
  { name: 'smaller than any scale', dtype: 'f32', rows: 1, columns: 128, make: (i) => i * 2 ** -149 },
  { name: 'scale overflows f16', dtype: 'f32', rows: 1, columns: 128, make: (i) => (i - 64) * 1e35 },
  {
    name: 'NaN and infinity',
    dtype: 'f32',
    rows: 1,
    columns: 256,
    make: (i) => (i === 5 ? NaN : i === 140 ? -Infinity : i),
  },
]
const make = (c: Case, random: Random) =>
  c.make ? random.tensor(c.dtype, [c.rows, c.columns], c.make) : random.normal(c.dtype, [c.rows, c.columns])

for (const [format, block] of [
  ['q4_0', q4Block],
  ['q8_0', q8Block],
] as const) {
  opSuite(`quantize ${format}`, {
    ops: ['quantize'],
    cases,
    inputs: (c, random) => ({ x: make(c, random) }),
    run: (_, t) => quantize(t.x, { format }),
    reference: (_, h) => [{ bytes: quantizedBlocks(h.x, block) }],
  })
}

for (const [groupSize, scaleDtype] of [
  [32, 'bf16'],
  [64, 'f16'],
  [128, 'bf16'],
] as const) {
  opSuite(`quantize i4, groups of ${groupSize}, ${scaleDtype}`, {
    ops: ['quantize'],
    cases,
    inputs: (c, random) => ({ x: make(c, random) }),
    run: (_, t) => {
      const { packed, scales } = quantize(t.x, { format: 'i4', groupSize, scaleDtype })
      return [packed, scales]
    },
    reference: (_, h) => {
      const { packed, scales } = quantizedGroups(h.x, groupSize, scaleDtype)
      return [{ exact: packed }, { exact: scales }]
    },
  })
}

const storedDtypes: readonly StoredDType[] = [
  'f32',
  'f16',
  'bf16',
  'sfp8',
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q8_0',
  'q3_k',
  'q4_k',
  'q5_k',
  'q6_k',
  'iq4_nl',
  'iq4_xs',
]
const shapes = [
  [1, 1],
  [3, 3],
  [7, 10],
  [2, 5],
] as const

opSuite('dequantize', {
  ops: ['dequantize'],
  cases: storedDtypes.flatMap((dtype) =>
    shapes.flatMap(([rows, blocks]) =>
      (['f32', 'bf16'] as const).map((outputDtype) => {
        const columns = blocks * (blockOf(dtype) === 1 ? 23 : blockOf(dtype))
        return { name: `${dtype} [${rows}, ${columns}] to ${outputDtype}`, dtype, rows, columns, outputDtype }
      }),
    ),
  ),
  inputs: (c, random) => ({ w: randomStored(random, c.dtype, [c.rows, c.columns]) }),
  run: (c, t) => dequantize(t.w, { outputDtype: c.outputDtype, ...(c.dtype === 'sfp8' && { scale: 0.7 }) }),
  reference: (c, h) => {
    const scale = c.dtype === 'sfp8' ? f32(0.7) : 1
    return [
      {
        exact: h.w.values.map((value) =>
          c.outputDtype === 'bf16' ? round('bf16', f32(value * scale)) : f32(value * scale),
        ),
      },
    ]
  },
})

describe('quantize and dequantize', () => {
  test('every byte of sfp8 that an encoder writes', () =>
    forEachIsa(async (device) => {
      const bytes = Uint8Array.from({ length: 255 }, (_, i) => (i < 128 ? i : i + 1))
      const values = await valuesOf(dequantize(Tensor.from(device, bytes, [1, 255], 'sfp8')))
      // The definition in bf16 bits, spec of gemma.cpp: high byte 0x34 + v/8 below 64, 0x38 + v/16 above.
      const expected = Float64Array.from(bytes, (byte) => {
        const v = byte & 127
        const bits =
          v === 0
            ? 0
            : v < 64
              ? ((0x34 + (v >> 3)) << 8) | ((v << 5) & 255)
              : ((0x38 + (v >> 4)) << 8) | ((v << 4) & 255)
        return fromBits('bf16', bits | ((byte & 128) << 8))
      })
      expect(values).toEqual(expected)
    }))

  test('i4 goes straight into packWeights, with errors below s/2', () =>
    forEachIsa(async (device) => {
      const host = Random.named('i4').normal('f32', [33, 256])
      const { packed, scales } = quantize(upload(device, host), { format: 'i4', groupSize: 64 })
      const values = await valuesOf(dequantize(packWeights(packed, { format: 'compressed_tensors', scales })))
      const s = await valuesOf(scales)
      for (const [i, x] of host.values.entries()) {
        // The largest magnitudes are 7·s before s is rounded to bf16, by up to 2^-8 of it.
        expect(Math.abs(values[i]! - x)).not.toBeGreaterThan(s[i >> 6]! * (0.5 + 7 * 2 ** -8))
      }
    }))

  test('quantizing what was dequantized changes nothing', () =>
    forEachIsa(async (device) => {
      const x = upload(device, Random.named('again').normal('f32', [9, 320]))
      for (const format of ['q4_0', 'q8_0'] as const) {
        const once = quantize(x, { format })
        const twice = quantize(dequantize(once), { format })
        const [a, b] = [await valuesOf(dequantize(once)), await valuesOf(dequantize(twice))]
        expect(b).toEqual(a)
        expect((await download(once)).bytes.length).toBe(((9 * 320) / 32) * (format === 'q4_0' ? 18 : 34))
      }
    }))

  test('rows of a slice', () =>
    forEachIsa(async (device) => {
      const host = Random.named('slice').normal('bf16', [6, 128])
      const slice = upload(device, host).slice(64, 128, 1)
      const copy = Float64Array.from({ length: 6 * 64 }, (_, i) => host.values[(i >> 6) * 128 + 64 + (i & 63)]!)
      expect(await valuesOf(dequantize(slice))).toEqual(copy)
      const { bytes } = await download(quantize(slice, { format: 'q8_0' }))
      expect(bytes).toEqual(quantizedBlocks(hostTensor('bf16', [6, 64], copy), q8Block))
    }))

  test('arguments that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const x = Tensor.zeros(device, [2, 96])
      throwsCode(() => quantize(Tensor.zeros(device, [2, 33]), { format: 'q4_0' }), 'ERR_SHAPE_MISMATCH', /x/)
      throwsCode(() => quantize(x, { format: 'i4', groupSize: 64 }), 'ERR_SHAPE_MISMATCH', /x/)
      throwsCode(() => quantize(x, { format: 'i4', groupSize: 48 as 64 }), 'ERR_INVALID_ARGUMENT', /groupSize/)
      throwsCode(() => quantize(Tensor.zeros(device, [2, 32], 'i32'), { format: 'q4_0' }), 'ERR_DTYPE_UNSUPPORTED', /x/)
      throwsCode(() => quantize(x, { format: 'q2_k' as 'q4_0' }), 'ERR_INVALID_ARGUMENT', /format/)
      throwsCode(() => dequantize(Tensor.zeros(device, [2, 32], 'i8')), 'ERR_DTYPE_UNSUPPORTED', /w/)
      throwsCode(() => dequantize(x, { scale: 2 }), 'ERR_INVALID_ARGUMENT', /scale/)
      throwsCode(() => dequantize(Tensor.zeros(device, [32])), 'ERR_SHAPE_MISMATCH', /w/)
    }))
})
