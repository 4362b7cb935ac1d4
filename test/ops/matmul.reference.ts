/**
 * matmul in double precision, from its contract (native/ops/matmul.h), and how far a device may be from it.
 *
 * What is computed depends on the path: what x and W are rounded to before they are multiplied. Those roundings are done here exactly,
 * so that the bounds hold nothing but the error of summing in f32.
 */

import type { GpuFamily, Isa } from '../../lib/index.ts'
import { type Expected, mismatch } from '../support/compare.ts'
import { cutValues } from '../support/cuts.ts'
import { type BlockDType, blockFormats, type WeightForm, weightValues } from '../support/formats.ts'
import type { HostTensor } from '../support/host-tensor.ts'
import { gamma, outputBound, round, unitRoundoff } from '../support/numbers.ts'
import type { Case, Inputs } from './matmul.cases.ts'

const f32 = Math.fround
const u = unitRoundoff('f32')

/**
 * `exact`: float weights, x in f32. `int8`: integer weights, x in 8 bits per group of 32. `bf16`: both rounded to bf16, which AMX does
 * where rows are many. `mma`: x rounded to bf16, weights exact, on a GPU's tensor cores; `mma_bf16`: both rounded, there.
 */
export type Path = 'exact' | 'int8' | 'bf16' | 'mma' | 'mma_bf16'

/** What has no exact form in bf16 (native/kernels/cuda/matmul/dequantize.cuh). */
const roundedOnCuda = new Set<string>(['f16', 'q4_1', 'q5_1', 'q3_k', 'q4_k', 'q5_k', 'q6_k', 'iq4_xs'])

/**
 * The path of each instruction set, as native/kernels/cpu/matmul_amx.inl.h documents it, and of GPUs, as
 * native/kernels/cuda/matmul/tensor_core.cuh does.
 */
export function pathOn(isa: Isa | GpuFamily, form: WeightForm, rows: number, packed = true): Path {
  const integer = form.format !== 'stored' || form.dtype in blockFormats
  if ((isa === 'sm80' || isa === 'sm80_emulated') && packed && rows > 8) {
    const stored = form.format === 'stored'
    if (!stored || form.dtype !== 'f32') return stored && roundedOnCuda.has(form.dtype) ? 'mma_bf16' : 'mma'
  }
  const tiles = packed && (isa === 'amx' || isa === 'amx_emulated')
  if (integer) return tiles && rows > 48 ? 'bf16' : 'int8'
  return tiles && rows > 8 && form.dtype !== 'f32' ? 'bf16' : 'exact'
}

/** Rows of x in groups of 32 columns, each rounded to whole multiples of max|x| / 127, with the operations rounded to f32. */
export function roundToInt8(x: Float64Array, columns: number): Float64Array {
  const out = new Float64Array(x.length)
  for (let row = 0; row < x.length; row += columns) {
    for (let begin = 0; begin < columns; begin += 32) {
      const end = Math.min(begin + 32, columns)
      let largest = 0
      for (let k = begin; k < end; k++) largest = Math.max(largest, Math.abs(x[row + k]!))
      if (!(largest > 2 ** -120)) continue
      const scale = f32(largest / 127)
      const inverse = f32(127 / largest)
      for (let k = begin; k < end; k++) out[row + k] = scale * halfEven(f32(x[row + k]! * inverse))
    }
  }
  return out
}

function halfEven(value: number): number {
  const below = Math.floor(value)
  const rest = value - below
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1
}

/** A weight matrix as one path sees it, [rows, columns]. */
interface Weights {
  readonly rows: number
  readonly value: Float64Array
  /** The sizes of what is added up for a weight: s·code and the minimum where they are added separately. */
  readonly size: Float64Array
  /** How far the path's weight may be from `value`. */
  readonly uncertainty?: Float64Array
}

interface StoredTensors {
  readonly weight: HostTensor
  readonly scales?: HostTensor | undefined
  readonly zeros?: HostTensor | undefined
}

/** |s·code| + |minimum| where the two are summed separately; |s|·(|code − 8| + |z − 8|) for a zero point per row; else |w|. */
function termSizes(form: WeightForm, stored: StoredTensors, values: Float64Array, columns: number): Float64Array {
  const sizes = values.map(Math.abs)
  const format = form.format === 'stored' ? blockFormats[form.dtype as BlockDType] : undefined
  if (format?.hasMinimum) {
    const bytes = stored.weight.data as Uint8Array
    for (let block = 0; block * format.weights < values.length; block++) {
      const fields = format.decode(bytes.subarray(block * format.bytes, (block + 1) * format.bytes))
      // The minimum is the weight whose code is 0.
      const zeroed = { ...fields, q: fields.q.map(() => 0) }
      for (let j = 0; j < format.weights; j++) {
        const minimum = format.weight(zeroed, j)
        const i = block * format.weights + j
        sizes[i] = Math.abs(values[i]! - minimum) + Math.abs(minimum)
      }
    }
  }
  if (form.group === 0 && form.zeros) {
    // |code − 8| + |z − 8| ≤ |code − z| + 2·|z − 8|, and z is 0 … 16.
    for (let i = 0; i < sizes.length; i++) {
      sizes[i]! += 2 * 8 * Math.abs(stored.scales!.values[Math.floor(i / columns)]!)
    }
  }
  return sizes
}

/** Weights rounded to f32 and then to bf16. One more f32 rounding on the way may move a weight that lies next to a tie. */
function inBf16(values: Float64Array): { value: Float64Array; uncertainty: Float64Array } {
  const bf16 = (value: number) => round('bf16', f32(value))
  const value = values.map(bf16)
  const moved = (w: number, i: number, factor: number) => Math.abs(bf16(w * factor) - value[i]!)
  const uncertainty = values.map((w, i) => Math.max(moved(w, i, 1 + 2 * u), moved(w, i, 1 - 2 * u)))
  return { value, uncertainty }
}

function weightsOn(
  path: Path,
  form: WeightForm,
  stored: StoredTensors,
  values: Float64Array,
  columns: number,
): Weights {
  const rows = values.length / columns
  if (path === 'bf16' || path === 'mma_bf16') {
    const rounded = inBf16(values)
    return { rows, ...rounded, size: rounded.value.map(Math.abs) }
  }
  if (path === 'mma') return { rows, value: values, size: values.map(Math.abs) }
  return { rows, value: values, size: termSizes(form, stored, values, columns) }
}

/** Roundings that an output of K columns passes through: those of its group's term, and one addition per group, pair or lane. */
function roundings(path: Path, columns: number, rowMajor: boolean): number {
  switch (path) {
    case 'int8':
      return Math.ceil(columns / 32) + 6
    case 'bf16':
      return Math.ceil(columns / 32) + 17
    case 'mma':
    case 'mma_bf16':
      // 16 products and the sum, aligned and cut off in up to two steps; a scale per 32 columns; up to eight splits of K; the row's scale.
      return 18 * Math.ceil(columns / 16) + Math.ceil(columns / 32) + 9
    default:
      // Row-major weights: accumulators, then lanes; at least 4 of them.
      return rowMajor ? Math.ceil(columns / 8) + 6 : Math.ceil(columns / 2) + 2
  }
}

interface Product {
  readonly value: Float64Array
  readonly error: Float64Array
}

function product(x: Float64Array, weights: Weights, columns: number, n: number, bias?: Float64Array): Product {
  const rows = x.length / columns
  const value = new Float64Array(rows * weights.rows)
  const error = new Float64Array(value.length)
  const relative = gamma(n)
  for (let row = 0; row < rows; row++) {
    for (let output = 0; output < weights.rows; output++) {
      let sum = 0
      let size = 0
      let uncertain = 0
      for (let k = 0, i = row * columns, j = output * columns; k < columns; k++, i++, j++) {
        const xi = x[i]!
        sum += xi * weights.value[j]!
        size += Math.abs(xi) * weights.size[j]!
        if (weights.uncertainty) uncertain += Math.abs(xi) * weights.uncertainty[j]!
      }
      const at = row * weights.rows + output
      // Sums below the normal range lose at most 2⁻¹²⁵ at each step where they are flushed to zero.
      error[at] = relative * size + (1 + relative) * uncertain + columns * 2 ** -125
      value[at] = sum
      if (bias) {
        value[at] = sum + bias[output]!
        error[at]! += u * (Math.abs(value[at]!) + error[at]!)
      }
    }
  }
  return { value, error }
}

/** GELU in its tanh form: relative error (4 + 5·|v|)·u below zero and 1.92 ulp above, as native/kernels/cpu/simd/math.h states. */
function gelu(x: number, error: number): [value: number, error: number] {
  const v = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)
  const value = x === 0 ? x : x / (1 + Math.exp(-2 * v))
  const own = (x < 0 ? 4 + 5 * Math.abs(v) : 2 * 1.92) * u * (Math.abs(value) + 1.13 * error) + 2 ** -124
  // The derivative of GELU lies in −0.13 … 1.13.
  return [value, 1.13 * error + own]
}

function activated({ value, error }: Product): Product {
  const pairs = Array.from(value, (x, i) => gelu(x, error[i]!))
  return { value: Float64Array.from(pairs, ([y]) => y), error: Float64Array.from(pairs, ([, own]) => own) }
}

function addedTo(residual: Float64Array, { value, error }: Product): Product {
  const sum = value.map((y, i) => residual[i]! + y)
  return { value: sum, error: error.map((own, i) => own + u * (Math.abs(sum[i]!) + own)) }
}

function gatedProduct(gate: Product, up: Product): Product {
  const value = new Float64Array(gate.value.length)
  const error = new Float64Array(value.length)
  for (let i = 0; i < value.length; i++) {
    const [g, gError] = gelu(gate.value[i]!, gate.error[i]!)
    const upSize = Math.abs(up.value[i]!) + up.error[i]!
    value[i] = g * up.value[i]!
    const before = gError * upSize + Math.abs(g) * up.error[i]!
    error[i] = before + u * (Math.abs(value[i]!) + before)
  }
  return { value, error }
}

/** The instruction set that a case ran on last: what the bounds depend on. `run` writes it, the comparison reads it. */
export const ran: { isa: Isa | GpuFamily } = { isa: 'scalar' }

export function reference(c: Case, h: Inputs): readonly Expected[] {
  const made = new Map<Path, Expected>()
  const on = (path: Path): Expected => {
    let expected = made.get(path)
    if (!expected) {
      expected = expectedOn(path, c, h)
      made.set(path, expected)
    }
    return expected
  }
  return [{ check: (got) => mismatch(got, on(pathOn(ran.isa, c.form, rowsOf(c), !c.rowMajor))) }]
}

export const rowsOf = (c: Case) => c.lead.reduce((product, dim) => product * dim, 1)

export function expectedOn(path: Path, c: Case, h: Inputs): { value: Float64Array; bound: Float64Array } {
  const cut = cutValues(h.x, c.cuts).values
  const x = path === 'int8' ? roundToInt8(cut, c.columns) : path === 'exact' ? cut : cut.map((v) => round('bf16', v))
  const n = roundings(path, c.columns, c.rowMajor ?? false)
  const of = (stored: StoredTensors, bias?: Float64Array) => {
    const values = c.rowMajor ? cutValues(stored.weight, c.weightCuts).values : weightValues(c.form, stored)
    return product(x, weightsOn(path, c.form, stored, values, c.columns), c.columns, n, bias)
  }
  const bias = h.bias?.values
  const first = of(h, c.geglu ? bias?.subarray(0, c.outputs) : bias)
  const made = c.geglu
    ? gatedProduct(first, of({ weight: h.up!, scales: h.upScales, zeros: h.upZeros }, bias?.subarray(c.outputs)))
    : c.gelu
      ? activated(first)
      : first
  const { value, error } = h.residual ? addedTo(h.residual.values, made) : made
  return { value, bound: outputBound(c.outputDtype ?? 'f32', value, error) }
}
