/**
 * probe: measures a device's limits. For benchmarks, not for models.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

export const probeKinds = ['read', 'fma_f32', 'dot_i8', 'dot_bf16', 'tile_i8', 'tile_bf16'] as const
export type ProbeKind = (typeof probeKinds)[number]

export const probeOp: Op = defineOp('probe', {
  inputs: ['buffer'],
  attributes: ['kind', 'repetitions'],
  outputs: ['operations'],
})

/**
 * Keeps every thread of the device busy with one kind of work.
 * @param buffer u8 [bytes]. What `read` reads, each thread its share; other kinds ignore it.
 * @returns f32 [threads]: bytes (`read`) or operations (a multiplication and an addition are two) of one repetition on each
 *   thread; 0 where the device lacks the instruction.
 */
export function probe(buffer: Tensor, kind: ProbeKind, repetitions: number): Tensor {
  return probeOp.one([buffer], [choiceIndex(probeKinds, kind, 'kind'), repetitions])
}
