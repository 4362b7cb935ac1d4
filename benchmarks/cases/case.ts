/** What a benchmark case is, and our side of it. */
import { type Device, Program, type Tensor, type TensorSpec } from 'lapidary'
import type { Goal } from '../goals.ts'
import type { Limits } from '../limits.ts'
import type { OnnxPeer } from '../peers/onnxruntime.ts'
import type { Contender } from '../race.ts'

export interface BenchmarkCase {
  readonly name: string
  /** Work of one unit: multiplications and additions counted each, and bytes that must come from (or go to) memory. */
  readonly operations: number
  readonly bytes: number
  /** The limit that binds on a device with these limits. */
  limit(limits: Limits): keyof Limits
  ours(device: Device): Promise<Ours>
  /** The peer's side; undefined where it has no such operator. */
  peer?(threads: number): Promise<OnnxPeer | undefined>
  /** The peer's output and ours agree to this root mean square error relative to the output's: the formats' own rounding. */
  readonly agreement?: number
  /** What it has to reach; numbers and peers are those of the machine with AMX that benchmarks/README.md describes. */
  readonly goals?: readonly Goal[]
}

/** Outputs in flight: a queue of replays has as many, and beyond the cache they would be measured, not the op. */
const queuedBytes = 16 * 2 ** 20

/** A captured program, replayed back to back. */
export class Ours implements Contender {
  readonly name = 'lapidary'
  readonly unitsPerRun: number
  readonly #device: Device
  readonly #program: Program
  readonly #inputs: Tensor[]
  readonly #owned: Tensor[]
  readonly #depth: number

  /**
   * @param inputs Bound at each replay.
   * @param owned Freed with the case: weights and caches that the body uses.
   * @param unitsPerRun How many units of work the body does.
   */
  constructor(
    device: Device,
    inputs: Tensor[],
    body: (...inputs: Tensor[]) => Tensor,
    owned: Tensor[] = [],
    unitsPerRun = 1,
  ) {
    const specs: TensorSpec[] = inputs.map(({ shape, dtype }) => ({ shape, dtype }))
    this.#device = device
    this.#inputs = inputs
    this.#owned = owned
    this.unitsPerRun = unitsPerRun
    this.#program = Program.capture(device, specs, body)
    const output = this.#program.run(...inputs)
    this.#depth = Math.max(1, Math.min(64, Math.floor(queuedBytes / (4 * output.size))))
    output.dispose()
  }

  async run(runs: number): Promise<void> {
    for (let i = 1; i <= runs; i++) {
      this.#program.run(...this.#inputs).dispose()
      if (i % this.#depth === 0 || i === runs) await this.#device.stream.synchronize()
    }
  }

  async output(): Promise<Float32Array> {
    using result = this.#program.run(...this.#inputs)
    return await result.readF32()
  }

  dispose(): void {
    this.#program.dispose()
    for (const tensor of [...this.#inputs, ...this.#owned]) tensor.dispose()
  }
}

/** The fastest byte or bf16 multiply-add of the device: what bounds quantised matmul. */
export function fastestDot(limits: Limits): keyof Limits {
  if (limits.tile_bf16 > 0) return 'tile_bf16'
  return limits.dot_i8 > limits.dot_bf16 ? 'dot_i8' : 'dot_bf16'
}

/** The fastest multiply-add for attention, which keeps more than eight bits. */
export function fastestAttentionDot(limits: Limits): keyof Limits {
  if (limits.tile_bf16 > 0) return 'tile_bf16'
  return limits.dot_bf16 > limits.fma_f32 ? 'dot_bf16' : 'fma_f32'
}

/** A seeded uniform generator on [−1, 1): the same data in every run and for every contender. */
export function generator(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return (state >>> 8) / 8388608 - 1
  }
}

export function uniform(count: number, scale: number, seed: number): Float32Array {
  const next = generator(seed)
  return Float32Array.from({ length: count }, () => scale * next())
}
