// Makes prebuilds/<platform>-<arch>/ with prebuildify, and checks them (scripts/check-prebuilds.mjs): the binaries that a
// release carries. Linux is linked against Debian 11's C library (scripts/sysroot.mjs), Windows is compiled with MinGW-w64.
//
//   node scripts/prebuild.mjs [linux-x64] [linux-arm64] [win32-x64]     default: all three
//   node scripts/prebuild.mjs … --cuda                               linux-x64 gets the CUDA library, for every architecture of GPUs
//   node scripts/prebuild.mjs --host                                    this machine, as `npm run build:native` compiled it
//
// --host links against this machine's C library: for tests of the package, and for the systems that the release workflow
// compiles on themselves (macOS, musl).
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { promisify } from 'node:util'
import { buildCuda, cudaLibrary } from './build-cuda.mjs'
import { checkPrebuild } from './check-prebuilds.mjs'
import { buildEnvironment, packageRoot, requireTools, toolPrefix, variant } from './native-variants.mjs'
import { sysroot } from './sysroot.mjs'

const prebuildify = promisify(createRequire(import.meta.url)('prebuildify'))
const shim = path.join(packageRoot, 'scripts', 'node-gyp-shim.cjs')

const compilers = {
  'linux-x64': { 'g++': 'g++' },
  'linux-arm64': { 'aarch64-linux-gnu-g++': 'g++-aarch64-linux-gnu' },
  'win32-x64': { 'x86_64-w64-mingw32-g++-posix': 'g++-mingw-w64-x86-64-posix' },
}

async function prebuild(target, host) {
  const [platform, arch] = target.split('-')
  if (!host) requireTools(compilers[target])
  const chosen = variant({ platform, arch, sysroot: !host && platform === 'linux' ? sysroot(arch) : undefined })
  // prebuildify strips and moves what it finds in build/Release: it gets copies, in a folder of its own.
  const staging = path.join(packageRoot, 'build', 'prebuild', target)
  rmSync(staging, { recursive: true, force: true })
  mkdirSync(staging, { recursive: true })
  Object.assign(process.env, buildEnvironment(chosen), {
    LAPIDARY_COPY_TO: path.join(staging, 'build', 'Release'),
  })
  if (!chosen.sysroot) delete process.env.LAPIDARY_SYSROOT
  const musl = platform === 'linux' && existsSync('/etc/alpine-release')
  const folder = path.join(packageRoot, 'prebuilds', target)
  rmSync(folder, { recursive: true, force: true })
  await prebuildify({
    name: 'lapidary',
    cwd: staging,
    out: packageRoot,
    platform,
    arch,
    napi: true,
    strip: true,
    stripBin: `${toolPrefix(chosen)}strip`,
    tagLibc: platform === 'linux',
    libc: musl ? 'musl' : 'glibc',
    nodeGyp: shim,
    targets: [],
  })
  if (target === 'linux-x64' && cuda) addCudaLibrary(folder)
  return folder
}

/** GPUs: a library beside the addon. Without nvcc the package is complete but for them. */
function addCudaLibrary(folder) {
  if (spawnSync('nvcc', ['--version']).status !== 0) {
    console.log('liblapidary_cuda.so is left out: nvcc 13.0 or newer is not installed')
    return
  }
  if (!buildCuda('all')) throw new Error('liblapidary_cuda.so could not be built')
  copyFileSync(cudaLibrary, path.join(folder, path.basename(cudaLibrary)))
}

const requested = process.argv.slice(2).filter((argument) => !argument.startsWith('--'))
const host = process.argv.includes('--host')
const cuda = process.argv.includes('--cuda')
const targets = host ? [`${process.platform}-${process.arch}`] : requested
const unknown = targets.filter((target) => !host && !compilers[target])
if (unknown.length > 0) {
  console.error(
    `unknown target ${unknown.join(', ')}: expected --host, or some of ${Object.keys(compilers).join(', ')}`,
  )
  process.exit(1)
}
for (const target of targets.length > 0 ? targets : Object.keys(compilers)) {
  checkPrebuild(await prebuild(target, host), { anyGlibc: host })
}
