/** Work that keeps a stream busy for a while, for tests of what happens meanwhile. */

import { type Device, matmul, Tensor } from '../../lib/index.ts'
import { Random } from './random.ts'

const kSize = 512

export interface Work {
  readonly x: Tensor
  readonly weight: Tensor
  /** Enqueues a chain of `calls` matrix products (a quarter of a GFLOP each) and returns the last result. */
  enqueue(calls: number): Tensor
  dispose(): void
}

export function makeWork(device: Device): Work {
  const random = new Random(11)
  const x = Tensor.from(device, random.normal('f32', [kSize, kSize]).data, [kSize, kSize])
  // Orthogonal up to rounding error would be dear to make; this keeps the chain's numbers from growing instead.
  const weight = Tensor.from(device, random.normal('f32', [kSize, kSize], kSize ** -0.5).data, [kSize, kSize])
  return {
    x,
    weight,
    enqueue(calls) {
      let result = matmul(x, weight)
      for (let i = 1; i < calls; i++) {
        const next = matmul(result, weight)
        result.dispose()
        result = next
      }
      return result
    },
    dispose() {
      x.dispose()
      weight.dispose()
    },
  }
}
