/**
 * `npm run demo`: the three kernel families on shapes of Gemma 3, each checked against plain double-precision loops and timed beside
 * this machine's limits. Exits with 1 if a result is off.
 */
import { Device, flashAttention, geglu, matmul, packWeights, rmsNorm, Tensor } from 'lapidary'
import { fastestAttentionDot, fastestDot, generator, Ours, uniform } from './cases/case.ts'
import { quantizedMatrix } from './cases/matmul.ts'
import { type Limits, measureLimits } from './limits.ts'
import { race, type Timing } from './race.ts'
import { formatTable } from './report.ts'

interface Demonstration {
  name: string
  operations: number
  bytes: number
  limit: keyof Limits
  ours: Ours
  /** Element `index` of the output in double precision. */
  reference(index: number): number
  outputs: number
  /** Largest allowed error relative to the output's root mean square: what the formats round away. */
  tolerance: number
}

const checkedElements = 400

function matmulDemonstration(device: Device, limits: Limits, batch: number): Demonstration {
  const [columns, rows] = [2560, 10240]
  const { q4_0, scales } = quantizedMatrix(rows, columns, 7)
  const x = uniform(batch * columns, 1, 3)
  const layers = batch === 1 ? 48 : 1
  const stored = Tensor.from(device, q4_0, [rows, columns], 'q4_0')
  const packed = Array.from({ length: layers }, () => packWeights(stored))
  const body = (input: Tensor): Tensor => packed.map((weight) => matmul(input, weight)).at(-1) as Tensor
  const weight = (row: number, column: number): number => {
    const block = (row * columns + column) >> 5
    const j = column & 31
    const byte = q4_0[block * 18 + 2 + (j & 15)] as number
    return (scales[block] as number) * ((j < 16 ? byte & 15 : byte >> 4) - 8)
  }
  return {
    name: `int4 matmul, ${batch} x ${columns} by ${rows}`,
    operations: 2 * batch * columns * rows,
    bytes: (rows * columns * 18) / 32,
    limit: batch === 1 ? 'read' : fastestDot(limits),
    ours: new Ours(device, [Tensor.from(device, x, [batch, columns])], body, [stored, ...packed], layers),
    outputs: batch * rows,
    tolerance: 0.05,
    reference(index) {
      const [token, row] = [Math.floor(index / rows), index % rows]
      let sum = 0
      for (let k = 0; k < columns; k++) sum += (x[token * columns + k] as number) * weight(row, k)
      return sum
    },
  }
}

function attentionDemonstration(device: Device, limits: Limits): Demonstration {
  const [tokens, heads, headDim, window, softcap] = [2048, 4, 256, 512, 50]
  const q = uniform(tokens * heads * headDim, 1, 11)
  const k = uniform(tokens * headDim, 1, 12)
  const v = uniform(tokens * headDim, 1, 13)
  let pairs = 0
  for (let i = 0; i < tokens; i++) pairs += Math.min(i + 1, window)
  return {
    name: `flash attention, ${tokens} tokens, ${heads} heads of ${headDim}, window ${window}, soft cap ${softcap}`,
    operations: 4 * pairs * headDim * heads,
    bytes: 0,
    limit: fastestAttentionDot(limits),
    ours: new Ours(
      device,
      [
        Tensor.from(device, q, [tokens, heads, headDim]),
        Tensor.from(device, k, [tokens, 1, headDim], 'bf16'),
        Tensor.from(device, v, [tokens, 1, headDim], 'bf16'),
      ],
      (a, b, c) => flashAttention(a, b, c, { window, softcap }),
    ),
    outputs: tokens * heads * headDim,
    tolerance: 0.08,
    reference(index) {
      const row = Math.floor(index / headDim)
      const token = Math.floor(row / heads)
      let [numerator, denominator] = [0, 0]
      for (let j = Math.max(0, token + 1 - window); j <= token; j++) {
        let score = 0
        for (let d = 0; d < headDim; d++) score += (q[row * headDim + d] as number) * (k[j * headDim + d] as number)
        const p = Math.exp(softcap * Math.tanh(score / Math.sqrt(headDim) / softcap))
        numerator += p * (v[j * headDim + (index % headDim)] as number)
        denominator += p
      }
      return numerator / denominator
    },
  }
}

function normDemonstration(device: Device): Demonstration {
  const [tokens, hidden] = [512, 2560]
  const x = uniform(tokens * hidden, 1, 31)
  const w = uniform(hidden, 1, 32)
  return {
    name: `RMSNorm, ${tokens} x ${hidden}`,
    operations: 0,
    bytes: 8 * tokens * hidden,
    limit: 'read',
    ours: new Ours(device, [Tensor.from(device, x, [tokens, hidden]), Tensor.from(device, w)], (a, b) =>
      rmsNorm(a, b, { weightBias: 1 }),
    ),
    outputs: tokens * hidden,
    tolerance: 1e-5,
    reference(index) {
      const token = Math.floor(index / hidden)
      let squares = 0
      for (let i = 0; i < hidden; i++) squares += (x[token * hidden + i] as number) ** 2
      return ((x[index] as number) / Math.sqrt(squares / hidden + 1e-6)) * (1 + (w[index % hidden] as number))
    },
  }
}

function gegluDemonstration(device: Device): Demonstration {
  const [tokens, ffn] = [512, 10240]
  const x = uniform(tokens * 2 * ffn, 2, 41)
  return {
    name: `GeGLU, ${tokens} x 2·${ffn}`,
    operations: 0,
    bytes: 12 * tokens * ffn,
    limit: 'read',
    ours: new Ours(device, [Tensor.from(device, x, [tokens, 2 * ffn])], (a) => geglu(a)),
    outputs: tokens * ffn,
    tolerance: 1e-5,
    reference(index) {
      const at = Math.floor(index / ffn) * 2 * ffn + (index % ffn)
      const gate = x[at] as number
      const gelu = 0.5 * gate * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (gate + 0.044715 * gate ** 3)))
      return gelu * (x[at + ffn] as number)
    },
  }
}

/** The largest error at random elements, relative to the root mean square of the output there. */
async function check({ ours, outputs, reference }: Demonstration): Promise<number> {
  const got = await ours.output()
  const next = generator(99)
  let [worst, squares] = [0, 0]
  for (let i = 0; i < checkedElements; i++) {
    const index = Math.floor((next() * 0.5 + 0.5) * outputs)
    const expected = reference(index)
    const error = Math.abs((got[index] as number) - expected)
    if (!(error <= worst)) worst = error
    squares += expected ** 2
  }
  return worst / Math.sqrt(squares / checkedElements)
}

using device = await Device.open()
const { name, isa, threads } = device.info()
console.log(`${name}: ${isa}, ${threads} thread${threads > 1 ? 's' : ''}. Measuring its limits …`)
const limits = await measureLimits(device)
const lines = [['', 'ms', 'speed', 'of this machine’s limit', 'error, checked against double precision']]
let failures = 0
for (const make of [
  () => matmulDemonstration(device, limits, 1),
  () => matmulDemonstration(device, limits, 512),
  () => attentionDemonstration(device, limits),
  () => normDemonstration(device),
  () => gegluDemonstration(device),
]) {
  const demonstration = make()
  const error = await check(demonstration)
  const passed = error <= demonstration.tolerance
  if (!passed) failures++
  const { median } = (await race([demonstration.ours], 5)).get('lapidary') as Timing
  demonstration.ours.dispose()
  const memoryBound = demonstration.limit === 'read'
  const speed = (memoryBound ? demonstration.bytes : demonstration.operations) / median / 1e6
  lines.push([
    demonstration.name,
    median.toPrecision(3),
    memoryBound ? `${speed.toFixed(1)} GB/s` : `${speed.toFixed(0)} GFLOP/s`,
    `${((100 * speed) / limits[demonstration.limit]).toFixed(0)} % of ${demonstration.limit} (${limits[demonstration.limit].toFixed(0)})`,
    `${error.toExponential(1)} ${passed ? 'ok' : `WRONG: more than ${demonstration.tolerance}`}`,
  ])
}
console.log(formatTable(lines))
process.exitCode = failures ? 1 : 0
