/**
 * The native addon: the only file that loads it, and the typed mirror of what it exports (native/bridge/).
 *
 * Handles are numbers (bridge/handle_table.h). Arguments are checked by the callers in lib/ for type and by native code for value.
 * @module
 */
import { existsSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { DTypeInfo } from './dtype.ts'
import { LapidaryError } from './errors.ts'

export interface NativeIsa {
  name: string
  compiled: boolean
  supported: boolean
  active: boolean
  reason?: string
}

export interface NativeGpu {
  kind: string
  name: string
  driver: string
  computeCapability: string
  memory: number
  reason?: string
}

export interface NativeDeviceInfo {
  kind: string
  name: string
  isa: string
  isas: NativeIsa[]
  threads: number
  memoryLimit: number
  kernels: Record<string, string>
  notes: Record<string, string>
}

export interface NativeOp {
  name: string
  inputs: string[]
  attributes: { name: string; kind: string; initial?: number; choices?: string }[]
  outputs: string[]
}

/** `[handle, dtype index, layout index, ...dims]` of a tensor that native code made. */
export type NativeTensor = [handle: number, dtype: number, layout: number, ...dims: number[]]

/** How packed weights lie in memory (native/ops/weight_panels.h); `scaleDtype` is a dtype index, `flags` are PanelFlags. */
export type NativePackedForm = [
  layoutVersion: number,
  panelRows: number,
  groupSize: number,
  scaleDtype: number,
  flags: number,
  bytes: number,
]

export interface NativeAddon {
  // tables
  dtypes(): DTypeInfo[]
  errors(): Record<string, string>
  ops(): NativeOp[]
  setErrorClass(errorClass: unknown): void
  // devices and streams
  listIsas(): NativeIsa[]
  listGpus(): NativeGpu[]
  openDevice(kind: string, threads: number, isa: string, guard: boolean, unverified: boolean): Promise<number>
  deviceInfo(device: number): NativeDeviceInfo
  deviceMemory(device: number): { bytes: number; buffers: number; cached: number }
  releaseDevice(device: number): void
  createStream(device: number): number
  releaseStream(stream: number): void
  synchronize(stream: number): Promise<void>
  waitStream(stream: number, other: number): void
  // tensors
  createTensor(device: number, dtype: number, dims: readonly number[], bytes?: ArrayBufferView): number
  mapTensor(device: number, path: string, offset: number, dtype: number, dims: readonly number[]): number
  /** `form` as packedForm gives it. */
  loadTensor(
    stream: number,
    path: string,
    offset: number,
    dtype: number,
    dims: readonly number[],
    form?: NativePackedForm,
  ): number
  saveTensor(stream: number, tensor: number, path: string, offset: number): Promise<number>
  releasePages(tensor: number): void
  packedForm(tensor: number): NativePackedForm
  sliceTensor(tensor: number, axis: number, start: number, end: number): number
  reshapeTensor(tensor: number, dims: readonly number[]): number
  writeTensor(stream: number, tensor: number, bytes: ArrayBufferView): void
  readTensor(stream: number, tensor: number): Promise<ArrayBuffer>
  releaseTensor(tensor: number): void
  // calls: `command` carries the call in and its outputs back, see native/bridge/calls.cc
  readonly command: Float64Array
  enqueue(): void
  // programs
  beginCapture(stream: number): void
  captureInput(dtype: number, dims: readonly number[]): number
  /** `arena` is a program's handle, or 0. */
  endCapture(outputs: readonly number[], arena: number): number
  abortCapture(): void
  /** Inputs are tensor handles, or views of memory to copy. */
  runProgram(program: number, inputs: readonly (number | ArrayBufferView)[]): NativeTensor[]
  executeProgram(program: number, inputs: readonly (number | ArrayBufferView)[]): Promise<ArrayBuffer[]>
  programInfo(program: number): {
    calls: number
    arenaBytes: number
    intermediateBytes: number
    sharesArena: boolean
  }
  releaseProgram(program: number): void
}

interface FindAddon {
  (folder: string): NativeAddon
  /** The file that it would load; throws where there is none. */
  resolve(folder: string): string
}

function filesOf(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder).sort() : []
}

/** What was looked for, and what is there instead. */
function describeAbsence(root: string): string {
  const target = `${process.platform}-${process.arch}`
  // node-gyp-build's own test for musl.
  const libc = process.platform !== 'linux' ? '' : existsSync('/etc/alpine-release') ? '.musl' : '.glibc'
  const folder = join(root, 'prebuilds')
  const others = filesOf(folder)
    .flatMap((name) => filesOf(join(folder, name)).map((file) => `${name}/${file}`))
    .filter((file) => file.endsWith('.node'))
  return (
    `no file is build/Release/lapidary.node or prebuilds/${target}/lapidary${libc}.node in ${root}; ` +
    (others.length > 0 ? `it has prebuilds ${others.join(', ')}` : 'it has no prebuilds')
  )
}

function load(): NativeAddon {
  // LAPIDARY_PREBUILD names a folder with another build/Release or prebuilds; node-gyp-build reads it too.
  const root = process.env.LAPIDARY_PREBUILD || fileURLToPath(new URL('..', import.meta.url))
  const find = createRequire(import.meta.url)('node-gyp-build') as FindAddon
  let file: string | undefined
  try {
    file = find.resolve(root)
    const addon = find(root)
    addon.setErrorClass(LapidaryError)
    return addon
  } catch (cause) {
    const reason =
      file === undefined
        ? describeAbsence(root)
        : `${file} does not load: ${(cause instanceof Error ? cause.message : String(cause)).replaceAll('\n', ' ')}`
    throw new LapidaryError(
      'ERR_NATIVE_MISSING',
      `the native addon for ${process.platform}-${process.arch}, Node ${process.versions.node}, could not be loaded: ${reason}. ` +
        'To compile it from source, run: npx lapidary build',
      { cause },
    )
  }
}

export const native: NativeAddon = load()
