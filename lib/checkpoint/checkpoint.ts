/**
 * Checkpoints: model files as named tensor descriptions. Opening one reads headers only.
 * @module
 */
import { statSync } from 'node:fs'
import type { DType } from '../dtype.ts'
import { describeValue, LapidaryError } from '../errors.ts'
import { openGguf } from './gguf-files.ts'
import { findInFolder, openSafetensors, openSafetensorsIndex } from './huggingface.ts'
import { fileError, unsupported, withFile } from './source.ts'

/** Where a tensor lies and what it is. `Tensor.map(device, file, { shape, dtype, offset })` takes one whose dtype is defined. */
export interface StoredTensor {
  readonly name: string
  /** The element type as the file names it: `BF16`, `Q4_0`, `F8_E4M3` … */
  readonly storedType: string
  /** The dtype, or undefined where no kernel reads the stored type. */
  readonly dtype: DType | undefined
  /** Row-major, outermost dimension first, also for GGUF. */
  readonly shape: readonly number[]
  readonly file: string
  /** Of the first byte, from the beginning of the file. */
  readonly offset: number
  readonly bytes: number
}

/** A model's files, described. */
export interface Checkpoint {
  readonly format: 'safetensors' | 'gguf'
  /** As given to {@link openCheckpoint}. */
  readonly path: string
  /** Every file that makes it. */
  readonly files: readonly string[]
  /** By name, as the files name them. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
  /**
   * Hugging Face: config.json (`{}` beside a lone .safetensors file). GGUF: the metadata; numeric arrays are typed arrays, 64-bit
   * integers beyond 2^53 are bigints.
   */
  readonly config: Readonly<Record<string, unknown>>
  /** Hugging Face: generation_config.json. */
  readonly generationConfig?: Readonly<Record<string, unknown>>
  /** Hugging Face: tokenizer.model, tokenizer.json and tokenizer_config.json, where they exist. GGUF: none, its metadata holds it. */
  readonly tokenizerFiles: { readonly model?: string; readonly json?: string; readonly config?: string }
  /** Jinja. Of several the one named `default`. */
  readonly chatTemplate?: string
}

/**
 * Opens a checkpoint: a Hugging Face folder, a `.safetensors` file, a `.safetensors.index.json`, or a `.gguf` file (of a split one
 * any part; without the ending too, as caches keep them). A folder that holds one GGUF model is taken for it. Reads headers, checks them against the files' sizes, and closes the files.
 *
 * @throws ERR_FILE if a file is absent or cannot be read, ERR_CHECKPOINT_CORRUPT if files contradict themselves,
 *   ERR_CHECKPOINT_UNSUPPORTED if they are of a kind that cannot be run. The message names file, tensor or key, and byte offset.
 * @example
 * const checkpoint = await openCheckpoint('gemma-3-4b-it-q4_0.gguf')
 * console.log(checkpoint.config['general.architecture'], checkpoint.tensors.size)
 */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  if (typeof path !== 'string' || path === '' || path.includes('\0')) {
    const got = typeof path === 'string' ? JSON.stringify(path) : describeValue(path)
    throw new LapidaryError(
      'ERR_INVALID_ARGUMENT',
      `openCheckpoint: path: expected the path of a checkpoint, got ${got}`,
    )
  }
  let file = path
  if (isFolder(path)) file = findInFolder(path)
  if (file.endsWith('.safetensors.index.json')) return openSafetensorsIndex(path, file)
  if (file.endsWith('.safetensors')) return openSafetensors(path, file)
  if (file.endsWith('.gguf') || isGguf(file)) return openGguf(path, file)
  throw unsupported(
    path,
    undefined,
    'expected a folder, or a file that ends in .safetensors, .safetensors.index.json or .gguf',
  )
}

/** Caches name files by their hash: what a file is stands in its first bytes. */
function isGguf(file: string): boolean {
  return withFile(file, (source) => {
    const magic = Buffer.alloc(4)
    if (source.size >= magic.length) source.read(0, magic)
    return magic.toString('latin1') === 'GGUF'
  })
}

function isFolder(path: string): boolean {
  try {
    return statSync(path).isDirectory()
  } catch (error) {
    throw fileError(path, error)
  }
}
