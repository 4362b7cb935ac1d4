// Builds liblapidary_cuda.so for every architecture that ships (native/cmake/cuda.cmake), or for some.
//
//   node scripts/build-cuda.mjs [--architectures=80,90a] [--into=<folder>]
//
// --into gets a copy: beside an addon it is found there. Needs nvcc 13.0 or newer; all six architectures take a while.
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { packageRoot } from './native-variants.mjs'

/** The CUDA library has a build folder of its own, so that a plain build stays quick. */
export const cudaRoot = path.join(packageRoot, 'build', 'cuda')
export const cudaLibrary = path.join(cudaRoot, 'build', 'Release', 'liblapidary_cuda.so')
/** Where the compiler's reports are: one per object. */
export const cudaObjects = path.join(cudaRoot, 'build', 'cmake', 'cuda')

/** The objects that the library is linked of: those of kernels/cuda/*.cu as cmake finds them, and the generated list. */
export function cudaObjectNames() {
  const sources = readdirSync(path.join(packageRoot, 'native', 'kernels', 'cuda')).filter((name) =>
    name.endsWith('.cu'),
  )
  return new Set([...sources.map((name) => name.replace(/\.cu$/, '.o')), 'kernel_sets.o'])
}

export function buildCuda(architectures = 'all') {
  const env = {
    ...process.env,
    LAPIDARY_BUILD_ROOT: cudaRoot,
    LAPIDARY_CUDA: 'on',
    LAPIDARY_CUDA_ARCHITECTURES: architectures,
    LAPIDARY_COPY_TO: '',
  }
  const script = path.join(packageRoot, 'scripts', 'build-native.cjs')
  return spawnSync(process.execPath, [script, '--cmake-target=lapidary_cuda'], { stdio: 'inherit', env }).status === 0
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({ options: { architectures: { type: 'string' }, into: { type: 'string' } } })
  if (!buildCuda(values.architectures)) process.exit(1)
  if (values.into) {
    mkdirSync(values.into, { recursive: true })
    copyFileSync(cudaLibrary, path.join(values.into, path.basename(cudaLibrary)))
  }
}
