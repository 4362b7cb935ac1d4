/** The cases of matmul: every stored form of weights with awkward sizes, and what else a call may ask for. */

import { type Device, matmul, packWeights, stackWeights, type Tensor } from '../../lib/index.ts'
import { type Cut, cutTensor } from '../support/cuts.ts'
import { upload, valuesOf } from '../support/devices.ts'
import { blockFormats, packOptions, randomWeights, type WeightForm, weightForms } from '../support/formats.ts'
import { type HostTensor, hostTensor } from '../support/host-tensor.ts'
import type { Random } from '../support/random.ts'

export interface Case {
  readonly name: string
  readonly form: WeightForm
  /** The dimensions of x but the last. */
  readonly lead: readonly number[]
  /** Rows of the weight; with geglu, of each of gate and up. */
  readonly outputs: number
  readonly columns: number
  readonly xDtype: 'f32' | 'bf16'
  readonly bias?: boolean
  readonly geglu?: boolean
  readonly gelu?: boolean
  readonly residual?: boolean
  readonly outputDtype?: 'f32' | 'bf16'
  /** Of x, which is made larger by them; NaN lies outside. */
  readonly cuts?: readonly Cut[]
  /** The weight is not packed. */
  readonly rowMajor?: boolean
  readonly weightCuts?: readonly Cut[]
}

export type Inputs = {
  readonly x: HostTensor
  readonly weight: HostTensor
  readonly scales: HostTensor | undefined
  readonly zeros: HostTensor | undefined
  readonly up: HostTensor | undefined
  readonly upScales: HostTensor | undefined
  readonly upZeros: HostTensor | undefined
  readonly bias: HostTensor | undefined
  readonly residual: HostTensor | undefined
}
export type OnDevice = { readonly [K in keyof Inputs]: Inputs[K] extends HostTensor ? Tensor : Tensor | undefined }

/** Columns that a form can have, nearest to `columns`. */
export const near = (columns: number, granule: number) => Math.max(1, Math.round(columns / granule)) * granule

const isFloat = (form: WeightForm) => form.format === 'stored' && !(form.dtype in blockFormats)

/** Around the tiles of every instruction set (3, 6, 8, 16, 32 rows) and the borders between its paths (8, 48, 64). */
const rowCounts = [1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 100]
const outputCounts = [17, 1, 256, 15, 100, 16]
/** awq packs columns of eight rows. */
const awqOutputCounts = [24, 8, 256, 104, 16]
const columnCounts = [640, 1, 96, 2592, 64, 1152]
const floatColumnCounts = [640, 1, 97, 2592, 31, 1152, 4304, 65]

/** Weights of one case: larger ones take long to encode and add nothing. */
const kMostWeights = 200_000
const kMostProducts = 6_000_000

function sizesOf(form: WeightForm, index: number, rows: number, step: number): { outputs: number; columns: number } {
  const counts = form.format === 'awq' ? awqOutputCounts : outputCounts
  const lengths = isFloat(form) ? floatColumnCounts : columnCounts
  const columns = near(lengths[(index + step) % lengths.length]!, form.granule)
  let outputs = counts[(2 * index + step + Math.floor(step / counts.length)) % counts.length]!
  if (outputs * columns > kMostWeights || outputs * columns * rows > kMostProducts) outputs = counts[0]!
  return { outputs, columns }
}

const packedCases = weightForms.flatMap((form, index) =>
  rowCounts.map((rows, step): Case => {
    const { outputs, columns } = sizesOf(form, index, rows, step)
    const turn = index + 3 * step
    const xDtype = turn % 3 === 1 ? 'bf16' : 'f32'
    const outputDtype = turn % 5 === 2 ? 'bf16' : 'f32'
    const bias = turn % 4 === 1
    const strided = turn % 7 === 3
    const notes = [
      xDtype === 'bf16' && 'x bf16',
      bias && 'bias',
      outputDtype === 'bf16' && 'out bf16',
      strided && 'cut',
    ]
    return {
      name: [`${form.name}: ${rows} × [${outputs}, ${columns}]`, ...notes.filter(Boolean)].join(', '),
      form,
      lead: [rows],
      outputs,
      columns,
      xDtype,
      bias,
      outputDtype,
      ...(strided && { cuts: [[1, 5, 5 + columns]] as const }),
    }
  }),
)

const gegluCases = weightForms.flatMap((form, index) =>
  [1, 5, index % 2 ? 33 : 70].map((rows, step): Case => {
    const outputs = [48, 16, 32][(index + step) % 3]!
    const columns = near([352, 128, 64][(index + step) % 3]!, form.granule)
    const bias = (index + step) % 2 === 0
    const outputDtype = step === 1 ? 'bf16' : 'f32'
    const name = `${form.name}: geglu ${rows} × [2·${outputs}, ${columns}]${bias ? ', bias' : ''}`
    return { name, form, lead: [rows], outputs, columns, xDtype: 'f32', bias, geglu: true, outputDtype }
  }),
)

/** What a feed-forward layer with biases asks for: an activation, and the sum with what the layer began with. */
const fusedCases = weightForms.map((form, index): Case => {
  // Every path of every instruction set, by turns.
  const rows = [2, 66, 11, 35][index % 4]!
  const [outputs, columns] = [form.format === 'awq' ? 24 : 21, near([96, 352, 128][index % 3]!, form.granule)]
  const parts = { bias: index % 3 > 0, gelu: index % 5 > 1, residual: index % 5 < 3 }
  const outputDtype = index % 7 < 3 ? 'bf16' : 'f32'
  const xDtype = index % 2 ? 'bf16' : 'f32'
  const names = (['bias', 'gelu', 'residual'] as const).filter((part) => parts[part]).join(', ')
  const name = `${form.name}: ${names} ${rows} × [${outputs}, ${columns}]`
  return { name, form, lead: [rows], outputs, columns, xDtype, outputDtype, ...parts }
})

const plain = (dtype: 'f32' | 'f16' | 'bf16'): WeightForm => ({ name: dtype, format: 'stored', dtype, granule: 1 })

const rowMajorCases = (['f32', 'f16', 'bf16'] as const).flatMap((dtype, index) =>
  (
    [
      [1, 1, 1],
      [1, 100, 640],
      [2, 17, 97],
      [3, 3, 4304],
      [4, 5, 31],
      [7, 256, 33],
      [17, 15, 1152],
      [100, 16, 65],
    ] as const
  ).map(([rows, outputs, columns], step): Case => {
    const turn = index + step
    return {
      name: `row-major ${dtype}: ${rows} × [${outputs}, ${columns}]${turn % 2 ? ', cut' : ''}`,
      form: plain(dtype),
      lead: [rows],
      outputs,
      columns,
      xDtype: turn % 3 ? 'f32' : 'bf16',
      bias: turn % 3 === 1,
      gelu: turn % 5 === 2,
      residual: turn % 5 > 2,
      outputDtype: turn % 4 === 3 ? 'bf16' : 'f32',
      rowMajor: true,
      ...(turn % 2 && {
        cuts: [[1, 3, 3 + columns]] as const,
        weightCuts: [
          [0, 2, 2 + outputs],
          [1, 1, 1 + columns],
        ] as const,
      }),
    }
  }),
)

const formNamed = (name: string) => weightForms.find((form) => form.name === name)!

/** x of three dimensions, and a column count past any block that kernels cut K into. */
const otherCases: readonly Case[] = [
  { name: 'x [2, 3, 96]', form: formNamed('q4_0'), lead: [2, 3], outputs: 17, columns: 96, xDtype: 'f32', bias: true },
  { name: 'x [3, 1, 5, 64] bf16', form: formNamed('bf16'), lead: [3, 1, 5], outputs: 5, columns: 64, xDtype: 'bf16' },
  {
    name: 'x [2, 3, 96], residual',
    form: formNamed('q8_0'),
    lead: [2, 3],
    outputs: 35,
    columns: 96,
    xDtype: 'f32',
    residual: true,
  },
  {
    name: 'bf16: geglu, residual',
    form: formNamed('bf16'),
    lead: [13],
    outputs: 32,
    columns: 96,
    xDtype: 'bf16',
    geglu: true,
    residual: true,
  },
  {
    name: 'bf16: gelu, residual, 100 × [1152, 100] bf16',
    form: formNamed('bf16'),
    lead: [100],
    outputs: 100,
    columns: 1152,
    xDtype: 'bf16',
    bias: true,
    gelu: true,
    residual: true,
  },
  { name: 'x [96]', form: formNamed('q8_0'), lead: [], outputs: 33, columns: 96, xDtype: 'f32' },
  { name: 'q4_0: 13 × [48, 10240]', form: formNamed('q4_0'), lead: [13], outputs: 48, columns: 10240, xDtype: 'f32' },
  { name: 'q6_k: 300 × [20, 512]', form: formNamed('q6_k'), lead: [300], outputs: 20, columns: 512, xDtype: 'f32' },
  { name: 'bf16: 300 × [20, 512]', form: formNamed('bf16'), lead: [300], outputs: 20, columns: 512, xDtype: 'f32' },
  {
    name: 'i4 channel: 400 × [33, 832]',
    form: formNamed('i4 channel'),
    lead: [400],
    outputs: 33,
    columns: 832,
    xDtype: 'bf16',
  },
]

/** The negative control's: all that a call can have, in floats. */
export const controlCase: Case = {
  name: 'control',
  form: formNamed('f32'),
  lead: [3],
  outputs: 33,
  columns: 70,
  xDtype: 'f32',
  bias: true,
  gelu: true,
  residual: true,
}

export const cases: readonly Case[] = [
  ...packedCases,
  ...gegluCases,
  ...fusedCases,
  ...rowMajorCases,
  ...otherCases,
  controlCase,
]

export function makeInputs(c: Case, random: Random): Inputs {
  const [cut] = c.cuts ?? []
  const width = cut ? cut[2] + 4 : c.columns
  const inside = (i: number) => !cut || (i % width >= cut[1] && i % width < cut[2])
  // Every 11th group of 32 columns is all zeros, every 13th tiny.
  const size = (i: number) => (Math.floor(i / 32) % 11 === 3 ? 0 : Math.floor(i / 32) % 13 === 5 ? 2 ** -30 : 1)
  const x = random.tensor(c.xDtype, [...c.lead, width], (i) => (inside(i) ? size(i) * random.gaussian() : Number.NaN))
  const { bias, geglu, weightCuts, form, columns, outputs } = c
  const weights = () => {
    if (!weightCuts) return randomWeights(random, form, outputs, columns)
    const [rows, inner] = weightCuts as readonly [Cut, Cut]
    const stride = inner[2] + 3
    const within = (i: number) => i % stride >= inner[1] && i % stride < inner[2] && Math.floor(i / stride) >= rows[1]
    const element = (i: number) => (within(i) ? random.gaussian() : Number.NaN)
    const weight = random.tensor(form.dtype as 'f32', [rows[2], stride], element)
    return { weight, scales: undefined, zeros: undefined }
  }
  const [first, up] = [weights(), geglu ? weights() : undefined]
  const biasRows = geglu ? 2 * outputs : outputs
  const { residual } = c
  return {
    x,
    weight: first.weight,
    scales: first.scales,
    zeros: first.zeros,
    up: up?.weight,
    upScales: up?.scales,
    upZeros: up?.zeros,
    bias: bias
      ? hostTensor(
          'f32',
          [biasRows],
          Array.from({ length: biasRows }, () => random.gaussian()),
        )
      : undefined,
    residual: residual ? random.normal('f32', [...c.lead, outputs]) : undefined,
  }
}

export interface OnDeviceWeights {
  readonly weight: Tensor
  readonly scales?: Tensor | undefined
  readonly zeros?: Tensor | undefined
}

export const pack = (form: WeightForm, stored: OnDeviceWeights): Tensor =>
  packWeights(stored.weight, packOptions(form, { scales: stored.scales, zeros: stored.zeros }))

export function run(c: Case, t: OnDevice): Tensor {
  const x = cutTensor(t.x, c.cuts)
  const options = {
    ...(t.bias && { bias: t.bias }),
    ...(c.geglu && { epilogue: 'geglu' as const }),
    ...(c.gelu && { epilogue: 'gelu' as const }),
    ...(t.residual && { residual: t.residual }),
    ...(c.outputDtype && { outputDtype: c.outputDtype }),
  }
  if (c.rowMajor) return matmul(x, cutTensor(t.weight, c.weightCuts), options)
  using first = pack(c.form, t)
  if (!c.geglu) return matmul(x, first, options)
  using second = pack(c.form, { weight: t.up!, scales: t.upScales, zeros: t.upZeros })
  using both = stackWeights([first, second], { interleave: 'gate_up' })
  return matmul(x, both, options)
}

/**
 * Puts a NaN into row 1 of x and an infinity into row 3: the outputs [row, column] that are not NaN, not finite, and the same as before,
 * where they should be.
 */
export async function strays(
  device: Device,
  weight: Tensor,
  x: Float64Array,
  rows: number,
  dtype: 'f32' | 'bf16' = 'f32',
): Promise<number[][]> {
  const [outputs, columns] = weight.shape as [number, number]
  const product = () => valuesOf(matmul(upload(device, hostTensor(dtype, [rows, columns], x)), weight))
  const before = await product()
  x[2 * columns - 1] = Number.NaN
  x[3 * columns] = Number.NEGATIVE_INFINITY
  const after = await product()
  const right = (row: number, i: number) =>
    row === 1 ? Number.isNaN(after[i]) : row === 3 ? !Number.isFinite(after[i]!) : after[i] === before[i]
  return Array.from(after, (_, i) => [Math.floor(i / outputs), i % outputs]).filter(([row], i) => !right(row!, i))
}
