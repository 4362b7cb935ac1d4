import { describe, expect, test } from 'vitest'
import { type Device, dequantize, packWeights, stackWeights, Tensor } from '../../lib/index.ts'
import { bitDifference } from '../support/compare.ts'
import { download, forEachIsa, presentIsas, upload, valuesOf } from '../support/devices.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import {
  blockTensor,
  columnOrder,
  encodeGroups,
  orderedForms,
  packOptions,
  randomBlock,
  randomStored,
  randomWeights,
  type StoredWeights,
  signedZeros,
  type WeightForm,
  weightForms,
  weightValues,
} from '../support/formats.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import { opSuite } from '../support/op-suite.ts'
import { firstWrong, panelRows, unpackPanels } from '../support/panels.ts'
import { Random } from '../support/random.ts'

interface Case {
  readonly name: string
  readonly form: WeightForm
  readonly rows: number
  readonly columns: number
}

/** The multiple of `granule` nearest to `columns`, at least one. */
const near = (columns: number, granule: number) => Math.max(1, Math.round(columns / granule)) * granule

function casesOf(form: WeightForm): Case[] {
  // awq packs columns of eight rows.
  const rows = form.format === 'awq' ? [8, 16, 24, 32, 104] : [1, 15, 16, 17, 100]
  const columns = [near(1, form.granule), near(97, form.granule), near(640, form.granule), near(1152, form.granule)]
  const sizes: [number, number][] = [
    [rows[0]!, columns[0]!],
    [rows[1]!, columns[2]!],
    [rows[2]!, near(2560, form.granule)],
    [rows[3]!, columns[1]!],
    [rows[4]!, columns[3]!],
  ]
  return sizes.map(([n, k]) => ({ name: `${form.name} [${n}, ${k}]`, form, rows: n, columns: k }))
}

const f32 = (values: Float64Array) => values.map((value) => Math.fround(value))

function pack(
  tensors: { weight: Tensor; scales?: Tensor | undefined; zeros?: Tensor | undefined },
  form: WeightForm,
): Tensor {
  return packWeights(tensors.weight, packOptions(form, tensors))
}

function uploadWeights(device: Device, stored: StoredWeights) {
  const { weight, scales, zeros } = stored
  return {
    weight: upload(device, weight),
    scales: scales && upload(device, scales),
    zeros: zeros && upload(device, zeros),
  }
}

// Packing loses nothing: the weights that come back are the exact ones, rounded to f32 once.
opSuite('packWeights', {
  ops: ['pack_weights', 'dequantize'],
  cases: weightForms.flatMap(casesOf),
  inputs: (c, random) => {
    const { weight, scales, zeros } = randomWeights(random, c.form, c.rows, c.columns)
    return { weight, scales, zeros }
  },
  run: (c, t) => {
    using packed = pack(t, c.form)
    return dequantize(packed)
  },
  reference: (c, h) => [{ exact: f32(weightValues(c.form, h)) }],
  emulated: { cases: 200, elements: 60_000 },
})

describe('packWeights: the layout is the one that weight_panels.h describes', () => {
  for (const form of weightForms) {
    test(form.name, () =>
      forEachIsa(async (device, isa) => {
        const R = panelRows(isa)
        const rows = form.format === 'awq' ? 24 : 19
        const columns = near(200, form.granule)
        const stored = randomWeights(Random.named(form.name), form, rows, columns)
        const { bytes } = await download(pack(uploadWeights(device, stored), form))
        const symmetric = form.group === 32 && !form.zeros
        const { format, dtype } = form
        const packedDtype = format === 'stored' ? dtype : format === 'i8_channel' ? 'i8' : 'i4'
        const half = dtype === 'bf16' ? 'bf16' : 'f16'
        const packed = { dtype: packedDtype, rows, columns, panelRows: R, group: form.group ?? 0, symmetric }
        // Block formats hold f16 scales whatever the form says.
        const unpacked = unpackPanels(bytes, { ...packed, scaleDtype: packedDtype === 'i4' ? half : 'f16' })
        // gptq's z of 16 is no code, so that a row with it has no zeros to be padded with.
        const checked = form.name === 'gptq row' ? columns : unpacked.columns
        expect(firstWrong(unpacked, stored.values, columns, checked)).toBe(-1)
      }),
    )
  }
})

describe('packWeights: sources', () => {
  for (const dtype of ['f32', 'f16', 'bf16'] as const) {
    test(`a slice of rows and columns, ${dtype}`, () =>
      forEachIsa(async (device) => {
        const host = Random.named(dtype).normal(dtype, [40, 200])
        const slice = upload(device, host).slice(3, 36).slice(16, 133, 1)
        const values = await valuesOf(dequantize(packWeights(slice)))
        const expected = Float64Array.from(
          { length: 33 * 117 },
          (_, i) => host.values[(3 + Math.floor(i / 117)) * 200 + 16 + (i % 117)]!,
        )
        expect(values).toEqual(expected)
      }))
  }

  test('a slice of rows of blocks', () =>
    forEachIsa(async (device) => {
      const host = randomStored(Random.named('blocks'), 'q5_0', [40, 96])
      const values = await valuesOf(dequantize(packWeights(upload(device, host).slice(7, 30))))
      expect(values).toEqual(f32(host.values.subarray(7 * 96, 30 * 96)))
    }))

  test('one thread and two write the same bytes', async () => {
    const bytes: Uint8Array[] = []
    for (const threads of [1, 2]) {
      await forEachIsa(
        async (device) => {
          const stored = randomStored(Random.named('threads'), 'q6_k', [1000, 512])
          bytes.push((await download(packWeights(upload(device, stored)))).bytes)
        },
        { threads },
      )
    }
    for (let i = 0; i < presentIsas.length; i++) {
      expect(bitDifference(bytes[i]!, bytes[i + presentIsas.length]!)).toBeUndefined()
    }
  })
})

describe('packWeights: corrupt and unusual data', () => {
  const extremes: readonly [string, HostTensor][] = [
    [
      'q4_0 with d NaN, ±∞, −0, the smallest',
      blockTensor(
        'q4_0',
        [1, 160],
        [Number.NaN, Infinity, -Infinity, -0, 2 ** -24].map((d) => ({ ...randomBlock('q4_0', new Random(1)), d })),
      ),
    ],
    ['q8_0 of −128', blockTensor('q8_0', [1, 32], [{ d: 0.5, q: new Array(32).fill(-128) }])],
    ['q4_1 with an infinite minimum', blockTensor('q4_1', [1, 32], [{ d: 1, m: -Infinity, q: new Array(32).fill(3) }])],
    [
      'q4_k with all scales 63',
      blockTensor(
        'q4_k',
        [1, 256],
        [{ d: 1, m: 1, sc: new Array(8).fill(63), mn: new Array(8).fill(63), q: new Array(256).fill(15) }],
      ),
    ],
    [
      'q6_k with scales −128 and d ∞',
      blockTensor(
        'q6_k',
        [2, 256],
        [1, Infinity].map((d) => ({ d, sc: new Array(16).fill(-128), q: new Array(256).fill(0) })),
      ),
    ],
    [
      'all zero bytes',
      blockTensor(
        'q5_k',
        [1, 256],
        [{ d: 0, m: 0, sc: new Array(8).fill(0), mn: new Array(8).fill(0), q: new Array(256).fill(0) }],
      ),
    ],
    ['f32 NaN and ∞', hostTensor('f32', [1, 3], [Number.NaN, -Infinity, 1])],
  ]
  for (const [name, host] of extremes) {
    test(`${name}: what is stored comes back`, () =>
      forEachIsa(async (device) => {
        const expected = f32(host.values)
        const weight = upload(device, host)
        expect(await valuesOf(dequantize(weight))).toEqual(expected)
        expect(await valuesOf(dequantize(packWeights(weight)))).toEqual(expected)
      }))
  }

  test('NaN scales of groups come back as NaN, in their group only', () =>
    forEachIsa(async (device) => {
      const q = new Uint8Array(16 * 64).fill(9)
      const s = new Float64Array(32).fill(1)
      s[3] = Number.NaN
      const stored = encodeGroups('compressed_tensors', { rows: 16, columns: 64, group: 32, q, s }, 'bf16')
      const { weight, scales } = uploadWeights(device, stored)
      const values = await valuesOf(dequantize(packWeights(weight, { format: 'compressed_tensors', scales: scales! })))
      expect(values).toEqual(stored.values)
      expect(values.filter(Number.isNaN).length).toBe(32)
    }))

  const group = {
    rows: 16,
    columns: 128,
    group: 64,
    q: new Uint8Array(16 * 128).fill(3),
    s: new Float64Array(32).fill(1),
  }

  test.each(orderedForms)('columnOrder: $name', (form) =>
    forEachIsa(async (device) => {
      const [rows, columns] = [40, 5 * form.granule]
      const stored = randomWeights(Random.named(form.name), form, rows, columns)
      const { weight, scales, zeros } = uploadWeights(device, stored)
      const order = columnOrder(form.order!, columns)
      const packed = packWeights(weight, {
        ...packOptions(form, { scales, zeros }),
        columnOrder: Tensor.from(device, Int32Array.from(order)),
      })
      const expected = Float64Array.from(stored.values, (_, i) =>
        Math.fround(stored.values[i - (i % columns) + order[i % columns]!]!),
      )
      expect(await valuesOf(dequantize(packed))).toEqual(expected)
    }),
  )

  test('columnOrder: a column that is not there is reported', () =>
    forEachIsa(async (device) => {
      const { weight, scales } = uploadWeights(device, encodeGroups('gptq', group))
      for (const bad of [-1, 128]) {
        const columnOrder = upload(
          device,
          Random.named('order').tensor('i32', [128], (k) => (k === 77 ? bad : k)),
        )
        const packed = packWeights(weight, { format: 'gptq', scales: scales!, columnOrder })
        await rejectsCode(packed.read(), 'ERR_INDEX_OUT_OF_RANGE', /columnOrder/)
        await rejectsCode(device.stream.synchronize(), 'ERR_INDEX_OUT_OF_RANGE')
      }
    }))

  test('i8 zeros outside −8 … 7 are reported', () =>
    forEachIsa(async (device) => {
      const fields = { ...group, z: new Int32Array(32).fill(8) }
      fields.z[5] = 16
      const { weight, scales } = uploadWeights(device, encodeGroups('compressed_tensors', { ...group }))
      const zeros = upload(device, signedZeros(fields))
      const packed = packWeights(weight, { format: 'compressed_tensors', scales: scales!, zeros })
      await rejectsCode(packed.read(), 'ERR_DATA_CORRUPT', /zeros/)
      await rejectsCode(device.stream.synchronize(), 'ERR_DATA_CORRUPT')
    }))

  test('arguments that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const { weight, scales } = uploadWeights(device, encodeGroups('gptq', group))
      const f32Weight = Tensor.zeros(device, [4, 64])
      throwsCode(() => packWeights(weight), 'ERR_DTYPE_UNSUPPORTED', /weight/)
      throwsCode(() => packWeights(f32Weight, { scales: scales! }), 'ERR_INVALID_ARGUMENT', /scales/)
      throwsCode(() => packWeights(f32Weight, { scale: 2 }), 'ERR_INVALID_ARGUMENT', /scale/)
      throwsCode(() => packWeights(f32Weight.reshape([256])), 'ERR_SHAPE_MISMATCH', /weight/)
      throwsCode(() => packWeights(Tensor.zeros(device, [0, 64])), 'ERR_SHAPE_MISMATCH', /weight/)
      throwsCode(() => packWeights(packWeights(f32Weight)), 'ERR_LAYOUT_UNSUPPORTED', /weight/)
      throwsCode(() => packWeights(weight, { format: 'gptq' }), 'ERR_INVALID_ARGUMENT', /scales/)
      throwsCode(
        () => packWeights(weight, { format: 'gptq', scales: scales!, groupSize: 32 }),
        'ERR_SHAPE_MISMATCH',
        /scales/,
      )
      throwsCode(() => packWeights(weight, { format: 'gptq', scales: f32Weight }), 'ERR_DTYPE_UNSUPPORTED', /scales/)
      throwsCode(() => packWeights(weight, { format: 'awq', scales: scales! }), 'ERR_SHAPE_MISMATCH')
      throwsCode(() => packWeights(weight, { format: 'nf4' as 'awq' }), 'ERR_INVALID_ARGUMENT', /format/)
    }))
})

describe('stackWeights', () => {
  const forms = weightForms.filter(({ format }) => format === 'stored' || format === 'compressed_tensors')
  for (const form of forms) {
    test(`${form.name}: stacked rows are the packed concatenation`, () =>
      forEachIsa(async (device) => {
        const columns = near(200, form.granule)
        const stored = randomWeights(Random.named(form.name), form, 90, columns)
        const whole = uploadWeights(device, stored)
        const part = (start: number, end: number) =>
          pack(
            { weight: whole.weight.slice(start, end), scales: whole.scales?.slice(start, end), zeros: undefined },
            form,
          )
        // Slices of packed zeros would cut words: forms with zeros are stacked without them.
        const packed = pack({ ...whole, zeros: undefined }, form)
        const three = stackWeights([part(0, 16), part(16, 64), part(64, 90)])
        expect(three.shape).toEqual([90, columns])
        const { bytes } = await download(packed)
        expect(bitDifference((await download(three)).bytes, bytes)).toBeUndefined()
        const two = stackWeights([part(0, 32), part(32, 90)])
        expect(bitDifference((await download(two)).bytes, bytes)).toBeUndefined()
      }))
  }

  test('gate_up alternates panels, and reads as [gate; up]', () =>
    forEachIsa(async (device, isa) => {
      const random = Random.named('gate_up')
      const [gate, up] = [randomStored(random, 'q4_0', [48, 96]), randomStored(random, 'q4_0', [48, 96])]
      const [packedGate, packedUp] = [packWeights(upload(device, gate)), packWeights(upload(device, up))]
      const both = stackWeights([packedGate, packedUp], { interleave: 'gate_up' })
      expect(both.shape).toEqual([96, 96])
      expect(await valuesOf(dequantize(both))).toEqual(Float64Array.from([...gate.values, ...up.values]))
      const [a, b, all] = [await download(packedGate), await download(packedUp), await download(both)]
      const panel = a.bytes.length / (48 / panelRows(isa))
      for (let at = 0; at < a.bytes.length; at += panel) {
        expect(all.bytes.subarray(2 * at, 2 * at + panel)).toEqual(a.bytes.subarray(at, at + panel))
        expect(all.bytes.subarray(2 * at + panel, 2 * at + 2 * panel)).toEqual(b.bytes.subarray(at, at + panel))
      }
    }))

  test('matrices that do not fit are errors at the call', () =>
    forEachIsa((device) => {
      const packed = (rows: number, columns = 64) => packWeights(Tensor.zeros(device, [rows, columns]))
      const bf16 = packWeights(Tensor.zeros(device, [16, 64], 'bf16'))
      throwsCode(() => stackWeights([packed(16), bf16]), 'ERR_LAYOUT_UNSUPPORTED', /b:/)
      throwsCode(() => stackWeights([packed(16), packed(16, 96)]), 'ERR_LAYOUT_UNSUPPORTED', /b:/)
      throwsCode(() => stackWeights([packed(18), packed(16)]), 'ERR_SHAPE_MISMATCH', /a:/)
      throwsCode(() => stackWeights([packed(16), packed(32)], { interleave: 'gate_up' }), 'ERR_SHAPE_MISMATCH', /b:/)
      throwsCode(() => stackWeights([Tensor.zeros(device, [16, 64]), packed(16)]), 'ERR_LAYOUT_UNSUPPORTED', /a:/)
      const gateUp = stackWeights([packed(16), packed(16)], { interleave: 'gate_up' })
      throwsCode(() => stackWeights([gateUp, gateUp]), 'ERR_LAYOUT_UNSUPPORTED', /a:/)
    }))
})
