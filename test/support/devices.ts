/**
 * The devices of this machine, as tests visit them: one per instruction set and thread count, opened when first asked for and closed
 * when the test file is done. All are opened with guard regions: fresh memory holds NaN, and a write outside a buffer is an error.
 */

import { Device, type GpuFamily, type Isa, Tensor } from '../../lib/index.ts'
import { afterFile } from './after-file.ts'
import { decode, type HostTensor } from './host-tensor.ts'
import { expectedKernel, providedByCuda } from './kernels.ts'
import { isPlain } from './numbers.ts'

const probe = await Device.open('cpu', { threads: 1 })
const { isas: all, isa: best } = probe.info()
probe.dispose()

/** LAPIDARY_ISA=avx2 (or avx2,avx512) restricts every suite to these instruction sets. */
const asked = process.env.LAPIDARY_ISA?.split(',') as Isa[] | undefined
for (const name of asked ?? []) {
  if (!all.some((isa) => isa.name === name)) {
    throw new Error(`LAPIDARY_ISA: ${name} is not one of ${all.map((isa) => isa.name).join(', ')}`)
  }
}

/** Compiled into this build: those of another processor architecture are not of interest. */
const ofThisBuild = all.filter((isa) => isa.compiled)

/** What this machine and build can run, in overlay order. */
export const supportedIsas = ofThisBuild.filter((isa) => isa.supported).map((isa) => isa.name as Isa)

/**
 * LAPIDARY_TEST_CUDA: `emulated` (the default: the CUDA kernels on the host, where `npm run build:cuda-emulated` has built them), `real` (on
 * the first GPU, for the acceptance run), or `off`.
 */
const cudaMode = process.env.LAPIDARY_TEST_CUDA ?? 'emulated'

/** What the tests run on: all of them, or those of LAPIDARY_ISA. A run that is about a GPU visits the processor's best alone. */
export const presentIsas: readonly Isa[] = supportedIsas.filter(
  (isa) => asked?.includes(isa) ?? (cudaMode !== 'real' || isa === best),
)

/** The one for tests that are not about kernels: what Device.open() takes by itself. */
export const bestIsa: Isa = presentIsas.find((isa) => isa === best) ?? presentIsas.at(-1) ?? 'scalar'

/** What they leave out, and why. */
export const missingIsas: readonly { readonly name: string; readonly reason: string }[] = ofThisBuild
  .filter((isa) => !presentIsas.some((present) => present === isa.name))
  .map(({ name, supported, reason }) => ({
    name,
    reason: supported ? (asked ? 'not in LAPIDARY_ISA' : 'the run is about a GPU') : (reason ?? 'not supported here'),
  }))

/** LAPIDARY_TEST_FAST=1, for emulated and instrumented builds (scripts/test-addon.mjs): suites leave cases out, and say which. */
export const fast = process.env.LAPIDARY_TEST_FAST === '1'

/**
 * The instruction sets to visit with these ops: all that are present, in fast runs those that have a kernel of their own. On
 * the others the same machine code would run again under another name.
 */
export function isasFor(ops: readonly string[]): readonly Isa[] {
  if (!fast) return presentIsas
  const own = (isa: Isa) => ops.some((op) => expectedKernel(op, isa, supportedIsas) === isa)
  return presentIsas.filter((isa, i) => i === 0 || own(isa))
}

const cudaFamily: GpuFamily = cudaMode === 'real' ? 'sm80' : 'sm80_emulated'

/** What of CUDA the suites visit, and why not. */
export const cuda: { readonly family?: GpuFamily; readonly missing?: string } =
  cudaMode === 'off' || asked
    ? { missing: cudaMode === 'off' ? 'LAPIDARY_TEST_CUDA=off' : 'not in LAPIDARY_ISA' }
    : await openCuda().then(
        (device) => {
          device.dispose()
          return { family: cudaFamily }
        },
        (error: Error) => {
          // An acceptance run without its GPU is no run.
          if (cudaMode === 'real') throw error
          return { missing: `${error.message} (for tests: npm run build:cuda-emulated)` }
        },
      )

function openCuda(): Promise<Device> {
  return Device.open('cuda', { isa: cudaFamily, guard: true, unverified: true })
}

/**
 * LAPIDARY_CUDA_EXHAUSTIVE=1: the emulation runs all cases of the suites and all tests of properties, which takes some ten minutes more. A
 * GPU always does.
 */
export const cudaExhaustive = cudaMode === 'real' || process.env.LAPIDARY_CUDA_EXHAUSTIVE === '1'

/** The family of CUDA kernels to visit with these ops, where it has all of them. */
export function cudaFor(ops: readonly string[]): GpuFamily | undefined {
  return ops.every(providedByCuda) ? cuda.family : undefined
}

const open = new Map<string, Promise<Device>>()

export function openDevice(isa: Isa | GpuFamily, threads = 2): Promise<Device> {
  const key = `${isa} ${threads}`
  let device = open.get(key)
  if (!device) {
    device = isa === 'sm80' || isa === 'sm80_emulated' ? openCuda() : Device.open('cpu', { isa, threads, guard: true })
    open.set(key, device)
  }
  return device
}

afterFile(async () => {
  const devices = await Promise.all(open.values())
  open.clear()
  for (const device of devices) device.dispose()
})

/**
 * Calls `body` with a device of each instruction set in turn, or of those `isasFor` some ops, inside a test:
 *
 *     test('a permuted batch gives a permuted result', () => forEachIsa(async (device) => { … }))
 */
export async function forEachIsa(
  body: (device: Device, isa: Isa) => unknown,
  { threads = 2, isas = presentIsas }: { threads?: number; isas?: readonly Isa[] } = {},
): Promise<void> {
  await forEachOf(body, isas, threads)
}

/**
 * The same, and the CUDA device after them where it has all of these ops: for tests of what a contract says of bits, errors and what may
 * not be touched. Their shapes are small: a thread of the GPU costs a fibre where it is emulated. `long`: there only in exhaustive runs.
 */
export async function forEachDevice(
  ops: readonly string[],
  body: (device: Device) => unknown,
  { isas = presentIsas, long = false }: { isas?: readonly Isa[]; long?: boolean } = {},
): Promise<void> {
  const family = long && !cudaExhaustive ? undefined : cudaFor(ops)
  await forEachOf<Isa | GpuFamily>(body, family ? [...isas, family] : isas, 2)
}

async function forEachOf<Name extends Isa | GpuFamily>(
  body: (device: Device, isa: Name) => unknown,
  isas: readonly Name[],
  threads: number,
): Promise<void> {
  for (const isa of isas) {
    const device = await openDevice(isa, threads)
    try {
      await body(device, isa)
      // Surfaces errors and guard violations of work that nobody read.
      await device.stream.synchronize()
    } catch (error) {
      await device.stream.synchronize().catch(() => {})
      if (error instanceof Error) error.message = `${isa}: ${error.message}`
      throw error
    }
  }
}

/** The device that tests of everything but kernels use: the best instruction set, two threads, guards. */
export function anyDevice(): Promise<Device> {
  return openDevice(bestIsa)
}

export function upload(device: Device, host: HostTensor): Tensor {
  return Tensor.from(device, host.data, host.shape, host.dtype)
}

export interface Downloaded {
  readonly bytes: Uint8Array
  /** Elements of plain dtypes; the bytes of other formats and of packed layouts. */
  readonly values: Float64Array
}

export async function download(tensor: Tensor): Promise<Downloaded> {
  const data = await tensor.read()
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  const plain = tensor.layout === 'strided' && isPlain(tensor.dtype)
  return { bytes, values: plain ? decode(tensor.dtype, data) : new Float64Array(bytes) }
}

/** The elements of a tensor as numbers. */
export async function valuesOf(tensor: Tensor): Promise<Float64Array> {
  return (await download(tensor)).values
}
