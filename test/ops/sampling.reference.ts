/** What argmax and sample must give: Philox, the kept tokens and the draw, in double precision, from the definitions. */

import type { HostTensor } from '../support/host-tensor.ts'
import { gamma, unitRoundoff } from '../support/numbers.ts'
import type { Random } from '../support/random.ts'

/** What a row of logits holds. */
export type Kind =
  | 'normal'
  | 'peaked'
  | 'flat'
  | 'levels'
  | 'zeros'
  | 'nan'
  | 'all nan'
  | 'infinite'
  | 'forbidden'
  | 'huge'

export function makeLogits(
  dtype: 'f32' | 'bf16',
  rows: number,
  columns: number,
  kind: Kind,
  random: Random,
): HostTensor {
  const pick = (chance: number) => random.fraction() < chance
  const element = (): number => {
    switch (kind) {
      case 'normal':
        return 3 * random.gaussian()
      case 'peaked':
        return 2 * random.gaussian() + (pick(4 / columns) ? 16 : 0)
      case 'flat':
        return 0.01 * random.gaussian()
      case 'levels':
        return random.integer(-3, 2)
      case 'zeros':
        return pick(0.5) ? 0 : -0
      case 'nan':
        return pick(0.3) ? Number.NaN : random.gaussian()
      case 'all nan':
        return Number.NaN
      case 'infinite':
        return pick(2 / columns) ? Number.POSITIVE_INFINITY : random.gaussian()
      case 'forbidden':
        return pick(0.9) ? Number.NEGATIVE_INFINITY : random.gaussian()
      case 'huge':
        return random.gaussian() * 10 ** random.integer(-30, 38)
    }
  }
  return random.tensor(dtype, [rows, columns], element)
}

/** The first index of the largest element; NaN never wins, and a row of NaN alone gives 0. */
export function firstOfLargest(x: ArrayLike<number>): number {
  let best = 0
  for (let i = 1; i < x.length; i++) {
    if (x[i]! > x[best]! || (Number.isNaN(x[best]!) && !Number.isNaN(x[i]!))) best = i
  }
  return Number.isNaN(x[best]!) ? 0 : best
}

/** Philox4x32-10 from the paper's definition, on big integers. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [a, b, c, d] = counter.map(BigInt) as [bigint, bigint, bigint, bigint]
  let [k0, k1] = key.map(BigInt) as [bigint, bigint]
  const word = 0xffffffffn
  for (let round = 0; round < 10; round++) {
    const [p, q] = [0xd2511f53n * a, 0xcd9e8d57n * c]
    ;[a, b, c, d] = [(q >> 32n) ^ b ^ k0, q & word, (p >> 32n) ^ d ^ k1, p & word]
    k0 = (k0 + 0x9e3779b9n) & word
    k1 = (k1 + 0xbb67ae85n) & word
  }
  return [a, b, c, d].map(Number)
}

/** The random number in [0, 1) of a row's state. */
export function fractionOf(seed: number, counter: number): number {
  const [a, b] = philox([counter >>> 0, 0, 0, 0], [seed >>> 0, 0])
  return (a! * 2 ** 21 + Math.floor(b! / 2 ** 11)) / 2 ** 53
}

export interface Settings {
  readonly temperature?: number
  readonly topK?: number
  readonly topP?: number
  readonly minP?: number
}

/**
 * The tokens that a computation in f32 may draw: one, unless a sum lies within rounding of a boundary.
 *
 * w is known to a relative 2^-22 + 4u·|argument| (1 ulp of the exponential; difference, reciprocal and product in its
 * argument), sums to gamma(90) more (16 chunks of 256 in lanes of at least 4). Where top-p or min-p cannot be decided
 * within that, either way is allowed.
 */
export function allowedTokens(x: Float64Array, settings: Settings, fraction: number): Set<number> {
  const temperature = Math.fround(settings.temperature ?? 1)
  const [topK, topP, minP] = [settings.topK ?? 0, Math.fround(settings.topP ?? 1), Math.fround(settings.minP ?? 0)]
  const numbers = x.filter((element) => !Number.isNaN(element))
  const largest = numbers.reduce((most, element) => Math.max(most, element), Number.NEGATIVE_INFINITY)
  if (temperature < 2 ** -126 || !Number.isFinite(largest)) return new Set([firstOfLargest(x)])

  const u = unitRoundoff('f32')
  const weight = (id: number) => Math.exp((x[id]! - largest) / temperature)
  const weightError = (id: number) => {
    const argument = (x[id]! - largest) / temperature
    // Below e^-86 weights are subnormal, or flushed to zero.
    return argument < -86 ? 2 ** -120 : weight(id) * (2 ** -22 + 4 * u * Math.abs(argument))
  }
  let ids = Array.from(x.keys()).filter((id) => !Number.isNaN(x[id]!))
  ids.sort((a, b) => x[b]! - x[a]! || a - b)
  if (topK > 0) ids = ids.slice(0, topK)

  const sum = ids.reduce((total, id) => total + weight(id), 0)
  const sumError = ids.reduce((total, id) => total + weightError(id), 0) + 2 * gamma(90) * sum
  const counts: number[] = []
  if (topP < 1) {
    for (let running = 0, count = 0; count < ids.length; ) {
      // What is kept has not reached the target without this token, and has with it.
      const reachedBefore = count > 0 && running - sumError >= topP * sum
      if (reachedBefore) break
      running += weight(ids[count++]!)
      if (running + sumError >= topP * sum) counts.push(count)
    }
  } else {
    counts.push(ids.length)
  }

  const allowed = new Set<number>()
  for (const count of counts) for (const id of drawn(ids.slice(0, count))) allowed.add(id)
  return allowed

  function drawn(kept: number[]): number[] {
    kept.sort((a, b) => a - b)
    const parts = kept.map((id) => {
      const [w, e] = [weight(id), weightError(id)]
      return { id, least: w - e >= minP ? w : 0, most: w + e >= minP ? w : 0 }
    })
    const least = parts.reduce((total, part) => total + part.least, 0)
    const most = parts.reduce((total, part) => total + part.most, 0)
    const result: number[] = []
    let [leastBefore, mostBefore] = [0, 0]
    for (const part of parts) {
      if (part.most > 0) {
        const startsBefore = leastBefore - sumError <= fraction * most
        const endsAfter = mostBefore + part.most + sumError > fraction * least
        if (startsBefore && endsAfter) result.push(part.id)
      }
      leastBefore += part.least
      mostBefore += part.most
    }
    return result
  }
}

/** Probabilities by the definition, for settings that no sum decides narrowly. */
export function distribution(
  x: Float64Array,
  { temperature = 1, topK = 0, topP = 1, minP = 0 }: Settings,
): Float64Array {
  let ids = [...x.keys()].sort((a, b) => x[b]! - x[a]! || a - b)
  if (topK > 0) ids = ids.slice(0, topK)
  const weight = (id: number) => Math.exp((x[id]! - x[ids[0]!]!) / temperature)
  const sum = (kept: number[]) => kept.reduce((total, id) => total + weight(id), 0)
  const all = sum(ids)
  if (topP < 1) ids = ids.filter((_, rank) => sum(ids.slice(0, rank)) < topP * all)
  ids = ids.filter((id) => weight(id) >= minP)
  const total = sum(ids)
  return x.map((_, id) => (ids.includes(id) ? weight(id) / total : 0))
}
