/**
 * Device memory of sequences whose logits are adjusted: how often each token occurred, and biases.
 * @module
 */
import type { Device } from '../device.ts'
import { Tensor } from '../tensor.ts'
import { hasPenalties } from './sampler.ts'
import type { Sequence } from './sequence.ts'

/** Marks a token of the prompt in a row of counts: repetition penalties see it, presence and frequency do not. */
export const promptBit: number = 1 << 30

/** Rows of `counts` i32 and `bias` f32 [maxSequences, vocabulary], made when a sequence first needs one. */
export class AdjustRows implements Disposable {
  readonly #device: Device
  readonly #vocabularySize: number
  readonly #maxSequences: number
  readonly #rows = new Map<Sequence, number>()
  readonly #free: number[]
  #counts: Tensor | undefined
  #bias: Tensor | undefined

  constructor(device: Device, vocabularySize: number, maxSequences: number) {
    this.#device = device
    this.#vocabularySize = vocabularySize
    this.#maxSequences = maxSequences
    this.#free = Array.from({ length: maxSequences }, (_, index) => maxSequences - 1 - index)
  }

  /** The tensors that a step needs. */
  tensors(penalties: boolean, bias: boolean): { counts: Tensor | undefined; bias: Tensor | undefined } {
    if (penalties) this.#counts ??= this.#zeros('i32')
    if (bias) this.#bias ??= this.#zeros('f32')
    return { counts: penalties ? this.#counts : undefined, bias: bias ? this.#bias : undefined }
  }

  /** The row of a running sequence, written when it is first asked for, after its step's tensors. −1 for sequences that adjust nothing. */
  rowOf(sequence: Sequence): number {
    const known = this.#rows.get(sequence)
    if (known !== undefined) return known
    const { sampling } = sequence.request
    const penalised = hasPenalties(sampling)
    if (!penalised && sampling.bias.size === 0) return -1
    const row = this.#free.pop() as number
    this.#rows.set(sequence, row)
    if (this.#counts) this.#write(this.#counts, row, this.#countsOf(sequence))
    // Rows are reused: one without a bias must not inherit another's.
    if (this.#bias) {
      const values = new Float32Array(this.#vocabularySize)
      for (const [id, value] of sampling.bias) values[id] = value
      this.#write(this.#bias, row, values)
    }
    return row
  }

  release(sequence: Sequence): void {
    const row = this.#rows.get(sequence)
    if (row === undefined) return
    this.#rows.delete(sequence)
    this.#free.push(row)
  }

  dispose(): void {
    this.#counts?.dispose()
    this.#bias?.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #countsOf(sequence: Sequence): Int32Array {
    const counts = new Int32Array(this.#vocabularySize)
    for (let index = 0; index < sequence.length; index++) {
      const id = sequence.token(index)
      // A soft token of an image is none of the vocabulary.
      if (id < 0) continue
      counts[id] = index < sequence.promptLength ? (counts[id] as number) | promptBit : (counts[id] as number) + 1
    }
    return counts
  }

  #write(tensor: Tensor, row: number, values: ArrayBufferView): void {
    const view = tensor.slice(row, row + 1)
    view.write(values)
    view.dispose()
  }

  #zeros(dtype: 'i32' | 'f32'): Tensor {
    return Tensor.zeros(this.#device, [this.#maxSequences, this.#vocabularySize], dtype)
  }
}
