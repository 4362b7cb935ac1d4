/**
 * From stored matrices to packed ones: mapped, packed, stacked, and released as they go.
 * @module
 */
import type { StoredTensor } from '../../checkpoint/checkpoint.ts'
import type { LinearWeight } from '../../checkpoint/linear.ts'
import type { Device } from '../../device.ts'
import type { DType } from '../../dtype.ts'
import { LapidaryError } from '../../errors.ts'
import { packWeights, stackWeights } from '../../ops/pack-weights.ts'
import { dequantize, quantize } from '../../ops/quantize.ts'
import { scope } from '../../scope.ts'
import { Tensor } from '../../tensor.ts'

/** A matrix that the model multiplies by: one of the file's, or two or three of one format, one above the other. */
export interface MatrixPlan {
  readonly name: string
  readonly shape: readonly [n: number, k: number]
  readonly parts: readonly LinearWeight[]
  readonly interleave: 'rows' | 'gate_up'
}

/** Panels are 4, 8 or 16 rows high: a part of so many rows ends with a whole one on every instruction set. */
const panelGranule = 16

/** Sources that are read block by block are cut into blocks of about this many f32 bytes. */
const blockBytes = 2 ** 23

/** A region of a checkpoint file. */
export function mapStored(device: Device, stored: StoredTensor): Tensor {
  return Tensor.map(device, stored.file, { shape: stored.shape, dtype: stored.dtype as DType, offset: stored.offset })
}

/** Bytes that packing a matrix reads. */
export function storedBytes(plan: MatrixPlan): number {
  return plan.parts
    .flatMap(({ weight, scales, zeros }) => [weight, scales, zeros])
    .reduce((sum, stored) => sum + (stored?.bytes ?? 0), 0)
}

/** Cuts neighbours into runs that `stackWeights` can join: one format and order of columns, and whole panels but for the last. */
export function stackable(parts: readonly LinearWeight[], widen: boolean): LinearWeight[][] {
  const runs: LinearWeight[][] = []
  for (const part of parts) {
    const last = runs.at(-1)?.at(-1)
    const joins =
      last && last.shape[0] % panelGranule === 0 && sameOrder(last, part) && (widen || sameFormat(last, part))
    if (joins) runs.at(-1)?.push(part)
    else runs.push([part])
  }
  return runs
}

function sameOrder({ columnOrder: a }: LinearWeight, { columnOrder: b }: LinearWeight): boolean {
  return a === undefined || b === undefined ? a === b : a.every((column, place) => column === b[place])
}

function sameFormat(a: LinearWeight, b: LinearWeight): boolean {
  const key = ({ format, weight, scales, zeros, groupSize }: LinearWeight) =>
    JSON.stringify([format, weight.dtype, scales?.dtype, zeros?.dtype, groupSize])
  return key(a) === key(b)
}

/** Queues packing a matrix. With `widen` its weights become f32. */
export function packMatrix(device: Device, plan: MatrixPlan, widen: boolean): Tensor {
  return scope(() => {
    const packed = plan.parts.map((part) => packLinear(device, part, widen))
    const [first, second, third] = packed as [Tensor, Tensor?, Tensor?]
    if (second === undefined) return first
    return stackWeights(third ? [first, second, third] : [first, second], { interleave: plan.interleave })
  })
}

function packLinear(device: Device, linear: LinearWeight, widen: boolean): Tensor {
  const map = (stored: StoredTensor | undefined) => stored && mapStored(device, stored)
  const weight = mapStored(device, linear.weight)
  if (linear.format === 'stored') {
    return packWeights(widen && weight.dtype !== 'f32' ? dequantize(weight) : weight)
  }
  const options = { scales: map(linear.scales), zeros: map(linear.zeros) }
  const packed = packWeights(weight, {
    format: linear.format,
    ...(linear.groupSize !== undefined && { groupSize: linear.groupSize }),
    ...(options.scales && { scales: options.scales }),
    ...(options.zeros && { zeros: options.zeros }),
    ...(linear.columnOrder && { columnOrder: Tensor.from(device, linear.columnOrder) }),
  })
  return widen ? packWeights(dequantize(packed)) : packed
}

/**
 * The head in packed blocks of rows, each made when it is asked for: no block's source outlives it.
 * @param format `stored`, or what to round the weights to.
 * @param blockRows A multiple of 16.
 */
export function* headBlocks(
  device: Device,
  stored: StoredTensor,
  format: 'stored' | 'q8_0' | 'q4_0' | 'f32',
  blockRows: number = rowsOfBlock(stored.shape[1] as number),
): Generator<Tensor> {
  const [rows, columns] = stored.shape as [number, number]
  const rowBytes = stored.bytes / rows
  for (let row = 0; row < rows; row += blockRows) {
    const count = Math.min(blockRows, rows - row)
    yield scope(() => {
      const block = mapStored(device, {
        ...stored,
        shape: [count, columns],
        offset: stored.offset + row * rowBytes,
        bytes: count * rowBytes,
      })
      return packWeights(convert(block, format))
    })
  }
}

function rowsOfBlock(columns: number): number {
  return Math.max(1, Math.floor(blockBytes / 4 / columns / panelGranule)) * panelGranule
}

function convert(block: Tensor, format: 'stored' | 'q8_0' | 'q4_0' | 'f32'): Tensor {
  if (format === 'stored' || format === block.dtype) return block
  if (format === 'f32') return dequantize(block)
  const isFloat = block.dtype === 'f32' || block.dtype === 'f16' || block.dtype === 'bf16'
  return quantize(isFloat ? block : dequantize(block), { format })
}

/** Joins blocks in memory. All but the last have whole panels. */
export function joinBlocks(blocks: Iterable<Tensor>): Tensor {
  let level = [...blocks]
  while (level.length > 1) {
    const next: Tensor[] = []
    for (let i = 0; i < level.length; i += 3) {
      const [a, b, c] = level.slice(i, i + 3) as [Tensor, Tensor?, Tensor?]
      if (b === undefined) {
        next.push(a)
        continue
      }
      next.push(stackWeights(c ? [a, b, c] : [a, b]))
      for (const part of [a, b, c]) part?.dispose()
    }
    level = next
  }
  return level[0] as Tensor
}

/** An error of the stream while a matrix was packed, as one that names the file's tensors. */
export function packingError(error: unknown, stored: readonly StoredTensor[]): unknown {
  if (!(error instanceof LapidaryError) || error.code === 'ERR_ABORTED') return error
  const where = stored.map(({ file, name, offset }) => `${file}: tensor ${name} at byte ${offset}`).join('; ')
  const code =
    error.code === 'ERR_DATA_CORRUPT'
      ? 'ERR_CHECKPOINT_CORRUPT'
      : error.code === 'ERR_LAYOUT_UNSUPPORTED' || error.code === 'ERR_DTYPE_UNSUPPORTED'
        ? 'ERR_CHECKPOINT_UNSUPPORTED'
        : error.code
  return new LapidaryError(code, `${where}: ${error.message}`, { cause: error })
}
