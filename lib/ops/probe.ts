/**
 * probe: measures a device's limits. For benchmarks, not for models.
 * @module
 */
import type { Device } from '../device.ts'
import { choiceIndex, defineOp, type Op } from '../op.ts'
import { Tensor } from '../tensor.ts'

/** What {@link probe} measures: a plain read, or one kind of arithmetic. */
export const probeKinds = ['read', 'fma_f32', 'dot_i8', 'dot_bf16', 'tile_i8', 'tile_bf16'] as const
/** One of {@link probeKinds}. */
export type ProbeKind = (typeof probeKinds)[number]

/** @internal The op behind `probe`. */
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

/**
 * Memory for `read`: written once, since the untouched pages of a tensor of zeros may all be one page, which is read from cache.
 * @returns u8 [bytes]
 * @throws the signal's reason, between two pieces of 64 MiB
 * @example
 * using buffer = await probeMemory(device, 2 ** 30)
 * const bytes = await probe(buffer, 'read', 1).read()
 */
export async function probeMemory(device: Device, bytes: number, signal?: AbortSignal): Promise<Tensor> {
  const buffer = Tensor.zeros(device, [bytes], 'u8')
  const ones = new Uint8Array(64 * 2 ** 20).fill(1)
  for (let start = 0; start < bytes; start += ones.length) {
    // On a virtual machine a fresh page can cost 30 µs: all of them, a quarter of a minute.
    if (signal?.aborted) {
      buffer.dispose()
      throw signal.reason
    }
    const end = Math.min(start + ones.length, bytes)
    using part = buffer.slice(start, end)
    part.write(ones.subarray(0, end - start))
    // What is written is copied first: one piece at a time is in memory twice.
    await device.currentStream.synchronize()
  }
  return buffer
}
