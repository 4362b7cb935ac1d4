/**
 * GGUF checkpoints: one file, or the parts of a split one.
 * @module
 */
import { basename, dirname, join } from 'node:path'
import type { Checkpoint, StoredTensor } from './checkpoint.ts'
import { type GgufFile, parseGguf } from './gguf.ts'
import type { GgufEntry } from './gguf-types.ts'
import { corrupt, quote, unsupported, withFile } from './source.ts'
import { addTensor } from './tensor-table.ts'

/** Parts in use have gigabytes each. */
const mostParts = 256

/** What a part's name says: `model-00002-of-00005.gguf`; undefined for another name. */
export function splitName(file: string): { stem: string; index: number; count: number } | undefined {
  const [, stem, index, count] = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s.exec(file) ?? []
  return stem === undefined ? undefined : { stem, index: Number(index), count: Number(count) }
}

/** A GGUF checkpoint, from its file or from any part. */
export function openGguf(path: string, file: string): Checkpoint {
  const files = partsOf(file)
  const parts = files.map((part) => withFile(part, parseGguf))
  return { ...assembleGguf(files, parts), path }
}

/**
 * A GGUF file that holds a vision tower beside a text model: `mmproj`, whose architecture is `clip`.
 * @throws ERR_FILE, ERR_CHECKPOINT_CORRUPT; ERR_CHECKPOINT_UNSUPPORTED for a file that is no projector.
 */
export function openProjector(file: string): Checkpoint {
  return { ...assembleGguf([file], [withFile(file, parseGguf)], 'projector'), path: file }
}

function partsOf(file: string): string[] {
  const split = splitName(basename(file))
  if (!split) return [file]
  const { stem, index, count } = split
  if (index < 1 || index > count || count > mostParts) {
    throw corrupt(
      file,
      undefined,
      `expected the name of a part from 1 to ${count}, of at most ${mostParts}, got ${index}`,
    )
  }
  const five = (value: number): string => String(value).padStart(5, '0')
  const names = Array.from({ length: count }, (_, part) => `${stem}-${five(part + 1)}-of-${five(count)}.gguf`)
  return names.map((name) => join(dirname(file), name))
}

/**
 * The checkpoint that parts make together. The first part's metadata is the checkpoint's.
 * @throws ERR_CHECKPOINT_CORRUPT if the parts do not belong together.
 */
export function assembleGguf(
  files: readonly string[],
  parts: readonly GgufFile[],
  kind: 'model' | 'projector' = 'model',
): Checkpoint {
  const first = parts[0] as GgufFile
  const path = files[0] as string
  const tensors = new Map<string, StoredTensor>()
  for (const [index, part] of parts.entries()) {
    const file = files[index] as string
    checkPart(file, part, index, parts.length)
    for (const tensor of part.tensors) {
      addTensor(tensors, tensor)
    }
  }
  const total = readInteger(path, first, 'split.tensors.count')
  if (total !== undefined && total !== tensors.size) {
    throw corrupt(
      path,
      undefined,
      `metadata key "split.tensors.count": expected ${tensors.size}, the tensors that the parts have, got ${total}`,
    )
  }
  checkArchitecture(path, first.metadata, kind)
  checkTokenizer(path, first.metadata)
  const config = Object.fromEntries([...first.metadata].map(([key, entry]) => [key, entry.value]))
  const template = first.metadata.get('tokenizer.chat_template')?.value
  return {
    format: 'gguf',
    path,
    files,
    tensors,
    config,
    tokenizerFiles: {},
    ...(typeof template === 'string' && { chatTemplate: template }),
  }
}

function checkPart(file: string, part: GgufFile, index: number, count: number): void {
  const said = readInteger(file, part, 'split.count') ?? 1
  // A file that was never split says 0 or nothing.
  if (Math.max(said, 1) !== count) {
    const names = count === 1 ? ': the parts must keep their names, <model>-00001-of-0000N.gguf' : ''
    throw corrupt(
      file,
      undefined,
      `metadata key "split.count": expected ${count}, by the file's name, got ${said}${names}`,
    )
  }
  const number = readInteger(file, part, 'split.no') ?? index
  if (number !== index) {
    throw corrupt(file, undefined, `metadata key "split.no": expected ${index}, by the file's name, got ${number}`)
  }
}

function readInteger(file: string, part: GgufFile, key: string): number | undefined {
  const entry = part.metadata.get(key)
  if (!entry) return undefined
  if (Number.isSafeInteger(entry.value)) return entry.value as number
  throw corrupt(file, undefined, `metadata key ${quote(key)}: expected an integer, got ${describeEntry(entry)}`)
}

function describeEntry({ type, items, value }: GgufEntry): string {
  return items === undefined ? `${quote(String(value))} of type ${type}` : `an array of ${items}`
}

function checkArchitecture(path: string, metadata: ReadonlyMap<string, GgufEntry>, kind: 'model' | 'projector'): void {
  const entry = metadata.get('general.architecture')
  if (typeof entry?.value === 'string' && entry.value !== '') {
    if ((entry.value === 'clip') === (kind === 'projector')) return
    if (kind === 'projector') {
      throw unsupported(path, undefined, `expected a vision projector (architecture clip), got ${quote(entry.value)}`)
    }
    throw unsupported(path, undefined, 'a vision or audio projector (architecture clip): open the text model beside it')
  }
  const got = entry ? describeEntry(entry) : 'no such key'
  throw corrupt(path, undefined, `metadata key "general.architecture": expected a string, got ${got}`)
}

/** Of each list beside the tokens: the type of its items. */
const tokenizerLists: Readonly<Record<string, readonly string[]>> = {
  'tokenizer.ggml.tokens': ['string'],
  'tokenizer.ggml.scores': ['f32'],
  'tokenizer.ggml.token_type': ['i32', 'u32'],
}

/** The vocabulary's lists belong together, and a score that is no number would order nothing. */
function checkTokenizer(path: string, metadata: ReadonlyMap<string, GgufEntry>): void {
  let tokens: number | undefined
  for (const [key, items] of Object.entries(tokenizerLists)) {
    const entry = metadata.get(key)
    if (!entry) continue
    const fail = (what: string): never => {
      throw corrupt(path, undefined, `metadata key "${key}": ${what}`)
    }
    if (entry.items === undefined || !items.includes(entry.items)) {
      fail(`expected an array of ${items.join(' or ')}, got ${describeEntry(entry)}`)
    }
    const list = entry.value as ArrayLike<unknown>
    tokens ??= list.length
    if (list.length !== tokens) fail(`expected as many items as tokens, ${tokens}, got ${list.length}`)
    if (list instanceof Float32Array) {
      const bad = list.findIndex((score) => !Number.isFinite(score))
      if (bad >= 0) fail(`expected finite scores, got ${list[bad]} for token ${bad}`)
    }
  }
}
