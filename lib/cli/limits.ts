/**
 * What the machine can do at most, measured on the threads that run the kernels.
 * @module
 */
import type { Device } from '../device.ts'
import { type ProbeKind, probe, probeMemory } from '../ops/probe.ts'
import { Tensor } from '../tensor.ts'

export interface Limits {
  /** Bytes per second that all threads together read from memory, in GB/s (10⁹). */
  readonly read: number
  /** The fastest multiply-add there is, in 10⁹ operations per second, and which. */
  readonly compute: { readonly kind: ProbeKind; readonly gops: number }
}

const gib = 2 ** 30
const computeKinds = ['fma_f32', 'dot_bf16', 'tile_bf16', 'dot_i8', 'tile_i8'] as const

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] as number
}

/** Work per second in 10⁹; 0 where the device lacks the instruction. */
async function measure(
  buffer: Tensor,
  kind: ProbeKind,
  repetitions: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  const rates: number[] = []
  for (let i = 0; i < 5; i++) {
    signal?.throwIfAborted()
    const start = performance.now()
    using counted = probe(buffer, kind, repetitions)
    const work = ((await counted.read()) as Float32Array).reduce((sum, value) => sum + value, 0)
    if (work === 0) return 0
    rates.push((work * repetitions) / (performance.now() - start) / 1e6)
  }
  return median(rates)
}

/** The memory is given back before anything else is measured. */
async function readLimit(device: Device, bytes: number, signal: AbortSignal | undefined): Promise<number> {
  using large = await probeMemory(device, bytes, signal)
  return await measure(large, 'read', 1, signal)
}

/**
 * Takes about a second, many on a busy machine, and for that time 1 GiB per thread or an eighth of the memory, whichever is less.
 * @throws the signal's reason, between two measurements
 */
export async function measureLimits(device: Device, signal?: AbortSignal): Promise<Limits> {
  const { threads, memoryLimit } = device.info()
  const bytes = Math.floor(Math.min(threads * gib, memoryLimit / 8))
  const read = await readLimit(device, bytes, signal)
  using small = Tensor.zeros(device, [64], 'u8')
  let compute: Limits['compute'] = { kind: 'fma_f32', gops: 0 }
  for (const kind of computeKinds) {
    const gops = await measure(small, kind, 1_000_000, signal)
    if (gops > compute.gops) compute = { kind, gops }
  }
  return { read, compute }
}
