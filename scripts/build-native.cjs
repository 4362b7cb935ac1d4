#!/usr/bin/env node
// Builds lapidary.node with cmake-js. Run by `npm run build:native`, `npx lapidary build`, binding.gyp's action and, through
// scripts/node-gyp-shim.cjs, prebuildify: of the arguments that those pass for node-gyp only --arch matters.
//
//   node scripts/build-native.cjs [--arch=arm64 | --platform=win32] [--tests] [--sanitize=address,undefined|thread]
//                                [--cmake-target=lapidary_cuda_emulated]
//
// LAPIDARY_BUILD_ROOT  the folder whose build/Release gets the addon; default: the package. With LAPIDARY_PREBUILD set to the
//                      same folder the library loads it from there.
// LAPIDARY_BUILD_JOBS  compilers at a time; default: the processors there are.
// LAPIDARY_BUILD_ISAS  instruction sets to compile, separated by commas; default: all of native/kernels/cpu/isa.def.
// LAPIDARY_BUILD_STEMS the same of kernels, by the stems of native/ops/ops.def: for tests that run few of them.
// LAPIDARY_CUDA        the CUDA library: off (the default), auto (where nvcc 13.0 or newer is found) or on.
// LAPIDARY_CUDA_ARCHITECTURES  what it is compiled for, separated by commas; default: 80,90a. all: what ships.
// LAPIDARY_COPY_TO     a folder that gets a copy of the addon, and of libraries beside it.
// LAPIDARY_SYSROOT     a folder with the C library to link against (scripts/sysroot.mjs); default: the machine's.
'use strict'
const { spawnSync } = require('node:child_process')
const { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } = require('node:fs')
const os = require('node:os')
const path = require('node:path')

const packageRoot = path.resolve(__dirname, '..')
const toolchains = { 'linux-arm64': 'aarch64-linux-gnu', 'win32-x64': 'x86_64-w64-mingw32' }

function option(name) {
  const prefix = `--${name}=`
  return process.argv.find((argument) => argument.startsWith(prefix))?.slice(prefix.length)
}

function fail(message) {
  console.error(message)
  process.exit(1)
}

const arch = option('arch') ?? process.arch
const platform = option('platform') ?? process.platform
const target = `${platform}-${arch}`
const crosses = arch !== process.arch || platform !== process.platform
if (crosses && !toolchains[target]) fail(`no toolchain file for ${target} in native/cmake`)

let cmakeJs
try {
  cmakeJs = require.resolve('cmake-js/bin/cmake-js')
} catch {
  fail('cmake-js is not installed: in a checkout run `npm install`, elsewhere `npx lapidary build`')
}

const root = path.resolve(process.env.LAPIDARY_BUILD_ROOT ?? packageRoot)
const sanitize = option('sanitize')
const crossName = platform !== process.platform ? target : arch !== process.arch ? arch : ''
const variant = ['cmake', crossName, sanitize?.replaceAll(',', '-')].filter(Boolean).join('-')
const folder = path.join(root, 'build', variant)

const variables = {
  LAPIDARY_OUTPUT_DIRECTORY: path.join(root, 'build', 'Release'),
  LAPIDARY_SANITIZE: sanitize,
  LAPIDARY_ISAS: process.env.LAPIDARY_BUILD_ISAS?.replaceAll(',', ';') || 'all',
  LAPIDARY_STEMS: process.env.LAPIDARY_BUILD_STEMS?.replaceAll(',', ';') || 'all',
  LAPIDARY_CUDA: process.env.LAPIDARY_CUDA || 'off',
  LAPIDARY_CUDA_ARCHITECTURES: process.env.LAPIDARY_CUDA_ARCHITECTURES?.replaceAll(',', ';') || '80;90a',
  LAPIDARY_NODE_LIBRARY: crosses && platform === 'win32' && path.join(folder, 'libnode.a'),
  CMAKE_TOOLCHAIN_FILE: crosses && path.join(packageRoot, 'native', 'cmake', `${toolchains[target]}.cmake`),
  CMAKE_SYSROOT: process.env.LAPIDARY_SYSROOT && path.resolve(process.env.LAPIDARY_SYSROOT),
}

// `configure` takes two seconds, so it runs only where the options changed; cmake itself notices changed lists.
const stampFile = path.join(folder, 'lapidary-options.json')
const stamp = JSON.stringify(variables)
const configured =
  existsSync(path.join(folder, 'CMakeCache.txt')) && existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stamp

function cmake(command, ...extra) {
  const args = [
    cmakeJs,
    command,
    '--log-level=warn',
    `--directory=${path.join(packageRoot, 'native')}`,
    `--out=${folder}`,
    `--parallel=${process.env.LAPIDARY_BUILD_JOBS ?? os.availableParallelism()}`,
    ...Object.entries(variables)
      .filter(([, value]) => value)
      .map(([name, value]) => `--CD${name}=${value}`),
    ...extra,
  ]
  // MAKEFLAGS: node-gyp runs this under make, whose job server cmake's own make would wait for.
  const env = { ...process.env, MAKEFLAGS: '' }
  const lock = path.join(root, 'build', `${variant}.lock`)
  // Two builds of one folder at once (an editor's and a test's) would corrupt it; where util-linux is, they queue.
  const queued = process.platform === 'linux' ? ['flock', lock, process.execPath, ...args] : [process.execPath, ...args]
  let result = spawnSync(queued[0], queued.slice(1), { stdio: 'inherit', env })
  if (result.error?.code === 'ENOENT') result = spawnSync(process.execPath, args, { stdio: 'inherit', env })
  if (result.error) fail(result.error.message)
  if (result.status !== 0) process.exit(result.status ?? 1)
}

// Windows links against a list of what Node exports; Node's headers bring the list, binutils make a library of it.
function makeNodeLibrary(file) {
  const headers = require(require.resolve('node-api-headers', { paths: [path.dirname(cmakeJs)] }))
  const program = `${toolchains[target]}-dlltool`
  const made = spawnSync(program, ['-d', headers.def_paths.node_api_def, '-l', file], { stdio: 'inherit' })
  if (made.error || made.status !== 0)
    fail(`${program} is missing or failed: apt-get install binutils-mingw-w64-x86-64`)
}

mkdirSync(folder, { recursive: true })
if (variables.LAPIDARY_NODE_LIBRARY && !existsSync(variables.LAPIDARY_NODE_LIBRARY)) {
  makeNodeLibrary(variables.LAPIDARY_NODE_LIBRARY)
}
if (!configured) {
  cmake('configure')
  writeFileSync(stampFile, stamp)
}
const only = option('cmake-target') ?? (process.argv.includes('--tests') ? 'native_tests' : undefined)
cmake('build', ...(only ? [`--target=${only}`] : []))
if (process.env.LAPIDARY_COPY_TO) {
  mkdirSync(process.env.LAPIDARY_COPY_TO, { recursive: true })
  for (const name of readdirSync(variables.LAPIDARY_OUTPUT_DIRECTORY)) {
    // The emulation is for tests.
    if (!/\.(node|so|dylib|dll)$/.test(name) || name.includes('emulated')) continue
    copyFileSync(path.join(variables.LAPIDARY_OUTPUT_DIRECTORY, name), path.join(process.env.LAPIDARY_COPY_TO, name))
  }
}
