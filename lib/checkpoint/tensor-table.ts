/**
 * The tensors of a checkpoint by name, put together from its files.
 * @module
 */
import type { StoredTensor } from './checkpoint.ts'
import { corrupt, quote } from './source.ts'

/**
 * Adds a tensor of one file.
 * @throws ERR_CHECKPOINT_CORRUPT if another file has one of that name.
 */
export function addTensor(tensors: Map<string, StoredTensor>, tensor: StoredTensor): void {
  const other = tensors.get(tensor.name)
  if (other) {
    const what = `tensor ${quote(tensor.name)}: expected it once, got it also in ${other.file}`
    throw corrupt(tensor.file, tensor.offset, what)
  }
  tensors.set(tensor.name, tensor)
}
