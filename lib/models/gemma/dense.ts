/**
 * The layers after pooling that sentence-transformers keeps beside a model, in folders named by modules.json.
 * @module
 */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { openCheckpoint, type StoredTensor } from '../../checkpoint/checkpoint.ts'
import { parseJsonObject } from '../../checkpoint/json.ts'
import { withFile } from '../../checkpoint/source.ts'
import { LapidaryError } from '../../errors.ts'
import { Fields } from './config-fields.ts'
import { checkStored } from './weights.ts'

const folders = ['2_Dense', '3_Dense']

/**
 * The matrices of a model's dense layers, each [out, in], in the order of use; none where the model has no such folders.
 *
 * @param root The checkpoint's folder.
 * @param size Of the pooled vector.
 * @throws ERR_CHECKPOINT_UNSUPPORTED for a layer with a bias or an activation, or for a pooling other than the mean.
 */
export async function sentenceDense(root: string, size: number): Promise<StoredTensor[]> {
  const dense: StoredTensor[] = []
  const pooling = path.join(root, '1_Pooling', 'config.json')
  if (existsSync(pooling)) checkPooling(pooling)
  for (const name of folders) {
    const file = path.join(root, name, 'model.safetensors')
    if (!existsSync(file)) continue
    const { config, tensors } = await openCheckpoint(file)
    const fields = new Fields(config, path.join(root, name, 'config.json'))
    fields.only('bias', false)
    fields.only('activation_function', 'torch.nn.modules.linear.Identity')
    const weight = tensors.get('linear.weight')
    if (weight === undefined || tensors.size > 1) {
      throw new LapidaryError(
        'ERR_CHECKPOINT_UNSUPPORTED',
        `${file}: expected one tensor named linear.weight, got ${[...tensors.keys()].slice(0, 8).join(', ')}`,
      )
    }
    checkStored(weight, [weight.shape[0] ?? 0, dense.at(-1)?.shape[0] ?? size])
    dense.push(weight)
  }
  return dense
}

/** EmbeddingGemma takes the mean over all tokens, those of the prompt included. */
function checkPooling(file: string): void {
  const fields = new Fields(
    withFile(file, (source) => parseJsonObject(source, 'the file')),
    file,
  )
  fields.only('pooling_mode_mean_tokens', true)
  fields.only('include_prompt', true)
  for (const mode of ['cls_token', 'max_tokens', 'mean_sqrt_len_tokens', 'weightedmean_tokens', 'lasttoken']) {
    fields.only(`pooling_mode_${mode}`, false)
  }
}
