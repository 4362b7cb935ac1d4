/**
 * Which instruction set's kernel must run: read from the kernel sources, so that neither the build's list of files nor the
 * dispatcher's table is taken at its word.
 *
 * `kernels/cpu/<stem>.inl.h` is compiled for every generic instruction set; `<stem>_<isa>.inl.h` takes its place where a
 * machine has more (matrix units, other dot products). A device uses the highest one not above its own instruction set.
 */

import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const native = fileURLToPath(new URL('../../native/', import.meta.url))

const generic = ['scalar', 'avx2', 'avx512', 'neon']
/** Generic sources that an instruction set compiles once more because its vocabulary is better at them. */
const recompiles: Record<string, readonly string[]> = { i8mm: ['matmul'] }
/** Test back ends run the sources of the instruction set that they stand for. */
const emulates: Record<string, string> = { amx_emulated: 'amx' }

function table(path: string, pattern: RegExp): string[][] {
  const text = readFileSync(native + path, 'utf8').replace(/\/\/.*$/gm, '')
  return [...text.matchAll(pattern)].map((match) => match.slice(1).map((field) => field.trim()))
}

const stems = new Map(table('ops/ops.def', /LAPIDARY_OP\(([^,]+),([^)]+)\)/g) as [string, string][])
const isas = table('kernels/cpu/isa.def', /LAPIDARY_ISA\(([^,]+),[^,]+,[^,]+,([^)]+)\)/g).map(([name, hidden]) => ({
  name: name!,
  hidden: hidden === 'true',
}))

function provides(op: string, isa: string): boolean {
  const stem = stems.get(op)
  if (!stem) throw new Error(`${op} is not in native/ops/ops.def`)
  const own = `${native}kernels/cpu/${stem}_${emulates[isa] ?? isa}.inl.h`
  const compilesGeneric = generic.includes(isa) || (recompiles[isa]?.includes(stem) ?? false)
  const path = existsSync(own) || !compilesGeneric ? own : `${native}kernels/cpu/${stem}.inl.h`
  return existsSync(path) && new RegExp(`\\{\\s*OpId::${op}\\b`).test(readFileSync(path, 'utf8'))
}

/** The instruction set whose kernel runs `op` on a device that was opened with `isa`, on a machine with the `supported` ones. */
export function expectedKernel(op: string, isa: string, supported: readonly string[]): string {
  const top = isas.find((entry) => entry.name === isa)
  if (!top) throw new Error(`${isa} is not in native/kernels/cpu/isa.def`)
  const overlay = isas
    .slice(0, isas.indexOf(top) + 1)
    .filter((entry) => supported.includes(entry.name) && (entry === top || !entry.hidden))
  const found = overlay.findLast((entry) => provides(op, entry.name))
  if (!found) throw new Error(`no kernel source provides ${op} for ${isa}`)
  return found.name
}

/** Whether a source of native/kernels/cuda provides `op`. */
export function providedByCuda(op: string): boolean {
  const path = `${native}kernels/cuda/${stems.get(op)}.cu`
  return existsSync(path) && new RegExp(`\\{\\s*OpId::${op}\\b`).test(readFileSync(path, 'utf8'))
}
