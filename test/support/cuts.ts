/** Strided inputs: a tensor of the device and its host twin, sliced alike. */

import type { Tensor } from '../../lib/index.ts'
import type { HostTensor } from './host-tensor.ts'

/** Elements start to end (excluded) along an axis. */
export type Cut = readonly [axis: number, start: number, end: number]

export function cutTensor(tensor: Tensor, cuts: readonly Cut[] = []): Tensor {
  return cuts.reduce((view, [axis, start, end]) => view.slice(start, end, axis), tensor)
}

export interface Cutting {
  readonly shape: readonly number[]
  readonly values: Float64Array
}

/** The elements that `cutTensor` leaves, as if they were contiguous. */
export function cutValues(host: HostTensor, cuts: readonly Cut[] = []): Cutting {
  let { shape, values }: Cutting = host
  for (const [axis, start, end] of cuts) {
    const inner = shape.slice(axis + 1).reduce((product, dim) => product * dim, 1)
    const dim = shape[axis]!
    const kept = values.filter((_, i) => {
      const at = Math.floor(i / inner) % dim
      return at >= start && at < end
    })
    shape = shape.map((other, i) => (i === axis ? end - start : other))
    values = kept
  }
  return { shape, values }
}
