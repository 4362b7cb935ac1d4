// Makes prebuilds/linux-<arch>/lapidary.glibc.node with prebuildify, and refuses a binary that would not load elsewhere.
//
//   node scripts/prebuild.mjs [x64] [arm64] [--cuda]       default: this machine's architecture
//
// --cuda puts liblapidary_cuda.so, for every architecture of GPUs, beside the addon for x64, where nvcc is installed.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { promisify } from 'node:util'
import { buildCuda, cudaLibrary } from './build-cuda.mjs'
import { packageRoot, requireTools, variant } from './native-variants.mjs'

const prebuildify = promisify(createRequire(import.meta.url)('prebuildify'))

// The newest glibc a prebuild may ask for: Debian 12, Ubuntu 22.04 and RHEL 9 have 2.34 or later.
const glibcLimit = [2, 34]
const shim = path.join(packageRoot, 'scripts', 'node-gyp-shim.cjs')

function checkBinary(file, prefix) {
  const undefinedSymbols = execFileSync(`${prefix}nm`, ['-D', '--undefined-only', file], { encoding: 'utf8' })
  const unresolved = undefinedSymbols
    .split('\n')
    .filter((line) => line.trim() && !/@|\bnapi_|\bnode_api_| w /.test(line))
  if (unresolved.length > 0) throw new Error(`${file} has symbols that nothing provides:\n${unresolved.join('\n')}`)
  const versions = execFileSync(`${prefix}readelf`, ['-V', file], { encoding: 'utf8' })
  const needed = [...versions.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map((match) => [Number(match[1]), Number(match[2])])
  const newest = needed.reduce((a, b) => (a[0] * 1000 + a[1] >= b[0] * 1000 + b[1] ? a : b), [0, 0])
  if (newest[0] * 1000 + newest[1] > glibcLimit[0] * 1000 + glibcLimit[1]) {
    throw new Error(`${file} needs glibc ${newest.join('.')}; the limit is ${glibcLimit.join('.')}`)
  }
  return newest.join('.')
}

const requested = process.argv.slice(2).filter((argument) => !argument.startsWith('--'))
const cuda = process.argv.includes('--cuda')
for (const arch of requested.length > 0 ? requested : [process.arch]) {
  const crosses = arch !== process.arch
  if (crosses) requireTools({ 'aarch64-linux-gnu-g++': 'g++-aarch64-linux-gnu' })
  const prefix = crosses ? 'aarch64-linux-gnu-' : ''
  const chosen = variant({ arch })
  // prebuildify strips and moves the addon of build/Release: it gets a copy, in a folder of its own.
  const staging = path.join(packageRoot, 'build', 'prebuild')
  mkdirSync(staging, { recursive: true })
  process.env.LAPIDARY_BUILD_ROOT = chosen.root
  process.env.LAPIDARY_COPY_TO = path.join(staging, 'build', 'Release')
  await prebuildify({
    name: 'lapidary',
    cwd: staging,
    out: packageRoot,
    platform: 'linux',
    arch,
    napi: true,
    strip: true,
    stripBin: `${prefix}strip`,
    tagLibc: true,
    libc: 'glibc',
    nodeGyp: shim,
    targets: [],
  })
  const file = path.join(packageRoot, 'prebuilds', `linux-${arch}`, 'lapidary.glibc.node')
  console.log(`${path.relative(packageRoot, file)}: needs glibc ${checkBinary(file, prefix)}`)
  if (arch !== 'x64' || !cuda) continue
  if (spawnSync('nvcc', ['--version']).status !== 0) {
    console.log('liblapidary_cuda.so is left out: nvcc 13.0 or newer is not installed')
    continue
  }
  const library = path.join(path.dirname(file), path.basename(cudaLibrary))
  if (!buildCuda('all')) throw new Error('liblapidary_cuda.so could not be built')
  copyFileSync(cudaLibrary, library)
  console.log(`${path.relative(packageRoot, library)}: needs glibc ${checkBinary(library, prefix)}`)
}
