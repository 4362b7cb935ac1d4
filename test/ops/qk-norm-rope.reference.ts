/** What qkNormRope must give: naive loops in double precision from the formula, and how far f32 may be from them. */

import type { HostTensor } from '../support/host-tensor.ts'
import { type FloatDType, gamma, outputBound, smallestNormal, unitRoundoff } from '../support/numbers.ts'
import { type Case, type Inputs, outputDtypeOf, pageTokensOf, theta } from './qk-norm-rope.cases.ts'

/** A row and how far a computation in f32 may be from it, before the result is rounded to its dtype. */
interface Row {
  readonly value: Float64Array
  readonly error: Float64Array
}

const u = unitRoundoff('f32')
/** Of the sine and cosine that the contract promises. */
export const tableError = 2 ** -25 + 2 ** -27
/** Products below the smallest normal number may be flushed to zero; a result is the sum of few. */
const underflow = 8 * smallestNormal('f32')

function normalise(c: Case, x: Float64Array, weight: Float64Array | undefined): Row {
  let sum = 0
  for (const element of x) sum += element * element
  const scale = 1 / Math.sqrt(sum / x.length + Math.fround(c.eps ?? 1e-6))
  const value = x.map((element, i) => element * scale * (weight ? (c.weightBias ?? 0) + weight[i]! : 1))
  // Half of the error of the sum, division and eps; root, reciprocal, bias and two products.
  const relative = gamma(x.length + 2) / 2 + gamma(5)
  return { value, error: value.map((y) => Math.abs(y) * relative + underflow) }
}

function rotate(c: Case, y: Row, position: number): Row {
  const value = y.value.slice()
  const error = y.error.slice()
  const half = c.headDim / 2
  const pairs = c.rotate === false ? 0 : (c.rotaryDims || c.headDim) / 2
  for (let i = 0; i < pairs; i++) {
    const angle = position * (c.positionScale ?? 1) * theta(c) ** ((-2 * i) / c.headDim)
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)]
    const [low, high] = [y.value[i]!, y.value[i + half]!]
    value[i] = low * cos - high * sin
    value[i + half] = high * cos + low * sin
    const rounding = (error: number) => error * (1 + 2 ** -10) + underflow
    const table = (Math.abs(low) + Math.abs(high)) * tableError
    const [e0, e1] = [y.error[i]!, y.error[i + half]!]
    error[i] = rounding(
      e0 * Math.abs(cos) + e1 * Math.abs(sin) + table + u * (Math.abs(low * cos) + Math.abs(value[i]!)),
    )
    error[i + half] = rounding(
      e1 * Math.abs(cos) + e0 * Math.abs(sin) + table + u * (Math.abs(high * cos) + Math.abs(value[i + half]!)),
    )
  }
  return { value, error }
}

export interface Expectation {
  readonly value: Float64Array
  readonly bound: Float64Array
}

function zerosLike(shape: readonly number[]): Expectation {
  const size = shape.reduce((product, dim) => product * dim, 1)
  return { value: new Float64Array(size), bound: new Float64Array(size) }
}

/** What a cache must hold: what it held, exactly, until rows are put. */
function unchanged(tensor: HostTensor): Expectation {
  return { value: tensor.values.slice(), bound: new Float64Array(tensor.values.length) }
}

function put(to: Expectation, row: number, dtype: FloatDType, z: Row): void {
  to.value.set(z.value, row * z.value.length)
  to.bound.set(outputBound(dtype, z.value, z.error), row * z.value.length)
}

function putQuantised(bytes: Expectation, scales: Expectation, row: number, z: Row): void {
  const n = z.value.length
  const largest = z.value.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
  if (largest === 0) {
    bytes.value.fill(0, row * n, (row + 1) * n)
    bytes.bound.fill(0, row * n, (row + 1) * n)
    scales.value[row] = 0
    scales.bound[row] = 0
    return
  }
  const largestError = z.error.reduce((most, e) => Math.max(most, e), 0)
  scales.value[row] = largest / 127
  scales.bound[row] = (largestError + 2 * u * largest) / 127
  for (let i = 0; i < n; i++) {
    const exact = (z.value[i]! * 127) / largest
    bytes.value[row * n + i] = exact
    // Half a step of rounding, the row's error and that of its largest element, three roundings of z · (127 / largest).
    const relative = (largestError / largest + gamma(3)) * (1 + 2 ** -10)
    bytes.bound[row * n + i] = 0.5 + (z.error[i]! * 127) / largest + Math.abs(exact) * relative
  }
}

export function reference(c: Case, h: Inputs): Expectation[] {
  const count = c.queryHeads + 2 * c.kvHeads
  const q = zerosLike([c.tokens, c.queryHeads, c.headDim])
  const k = zerosLike([c.tokens, c.kvHeads, c.headDim])
  const v = zerosLike([c.tokens, c.kvHeads, c.headDim])
  const caches = [h.kCache, h.vCache, h.kScales, h.vScales].map((tensor) => tensor && unchanged(tensor))
  for (let t = 0; t < c.tokens; t++) {
    for (let head = 0; head < count; head++) {
      const start = (t * count + head) * c.headDim
      const x = h.heads.values.slice(start, start + c.headDim)
      const exact: Row = { value: x, error: new Float64Array(c.headDim) }
      const isQuery = head < c.queryHeads
      const isKey = !isQuery && head < c.queryHeads + c.kvHeads
      const norm = isQuery ? h.qNorm : isKey ? h.kNorm : undefined
      const y = norm || (!isQuery && !isKey && c.valueNorm) ? normalise(c, x, norm?.values) : exact
      const z = isQuery || isKey ? rotate(c, y, h.positions.values[t]!) : y
      const kvHead = head - c.queryHeads - (isKey ? 0 : c.kvHeads)
      if (isQuery) put(q, t * c.queryHeads + head, outputDtypeOf(c), z)
      else if (!c.cache) put(isKey ? k : v, t * c.kvHeads + kvHead, outputDtypeOf(c), z)
      else {
        const slot = h.slots!.values[t]!
        if (slot < 0) continue
        const [page, offset] = [Math.floor(slot / pageTokensOf(c)), slot % pageTokensOf(c)]
        const row = (page * c.kvHeads + kvHead) * pageTokensOf(c) + offset
        const to = caches[isKey ? 0 : 1]!
        if (c.cache === 'i8') putQuantised(to, caches[isKey ? 2 : 3]!, row, z)
        else put(to, row, c.cache, z)
      }
    }
  }
  const outputs = c.kvHeads > 0 && !c.cache ? [q, k, v] : [q]
  return [...outputs, ...caches.filter((expectation) => expectation !== undefined)]
}
