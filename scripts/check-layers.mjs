// Imports point down only: reads every #include and import of native/ and lib/ and fails on one that the table of rooms
// (docs/architecture.md) does not allow.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from './native-variants.mjs'

// Room → rooms it may use besides itself. A file belongs to the longest room that is a prefix of its path.
const nativeRooms = {
  'native/core': [],
  'native/ops': ['native/core'],
  'native/kernels/cpu': ['native/core', 'native/ops'],
  'native/kernels/cuda': ['native/core', 'native/ops'],
  'native/backends': ['native/core', 'native/ops', 'native/kernels/cpu', 'native/kernels/cuda/abi.h'],
  'native/runtime': ['native/core', 'native/ops', 'native/backends'],
  'native/bridge': ['native/core', 'native/ops', 'native/backends', 'native/runtime'],
  'native/cmake': [],
}
// Of the kernels' room only the interface is for others, and the AMX tiles for the self-test at opening.
const kernelInterface = /^native\/kernels\/cpu\/(kernel\.h|isa\.def|simd\/tiles_amx\.h)$/

// `lib` alone is the top files. index.ts is the package's face and re-exports from every room.
const libRooms = {
  lib: [],
  'lib/ops': ['lib'],
  'lib/checkpoint': ['lib', 'lib/ops'],
  'lib/tokenizer': ['lib/errors.ts', 'lib/checkpoint'],
  'lib/models': ['lib', 'lib/ops', 'lib/checkpoint'],
  'lib/vision': ['lib/errors.ts'],
  'lib/engine': ['lib', 'lib/ops', 'lib/checkpoint', 'lib/models', 'lib/tokenizer', 'lib/vision'],
  'lib/server': ['lib', 'lib/tokenizer', 'lib/models', 'lib/engine', 'lib/vision'],
  'lib/clients': ['lib', 'lib/server'],
  'lib/cli': [
    'lib',
    'lib/ops',
    'lib/checkpoint',
    'lib/tokenizer',
    'lib/models',
    'lib/vision',
    'lib/engine',
    'lib/server',
  ],
}
const faces = new Set(['lib/index.ts'])

// What only one system has is behind core/system.h, so that the rest compiles everywhere. amx.cc asks Linux for tiles, isa.cc each system
// for its processor; the emulated GPU is for tests on Linux.
const systemHeaders = /^(dlfcn|sys\/(mman|syscall|auxv|sysctl|random|resource)|windows)\.h$/
const systemFiles =
  /^native\/(core\/system_\w+\.cc|backends\/cpu\/(amx|isa)\.cc|cmake\/glibc_compat\.cc|kernels\/cuda\/device\/emulation\/.*)$/

const problems = []
let files = 0

function sources(folder, extensions) {
  return readdirSync(path.join(packageRoot, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && extensions.includes(path.extname(entry.name)))
    .map((entry) => path.relative(packageRoot, path.join(entry.parentPath ?? entry.path, entry.name)))
}

function roomOf(file, rooms) {
  return Object.keys(rooms)
    .filter((room) => file.startsWith(`${room}/`))
    .sort((a, b) => b.length - a.length)[0]
}

function check(file, line, target, rooms) {
  const from = roomOf(file, rooms)
  const to = roomOf(target, rooms)
  const report = (text) => problems.push(`${file}:${line}: ${text}`)
  if (!from) return report('is in no room of scripts/check-layers.mjs')
  if (!to) return report(`includes ${target}, which is in no room`)
  if (from !== to && !faces.has(file) && !rooms[from].includes(to) && !rooms[from].includes(target)) {
    report(`${from} may not use ${to} (${target})`)
  }
  if (from !== to && to === 'native/kernels/cpu' && !kernelInterface.test(target)) {
    report(`${target} is not part of the kernels' interface (kernel.h, isa.def)`)
  }
}

for (const file of sources('native', ['.h', '.cc', '.def', '.cu', '.cuh'])) {
  files += 1
  readFileSync(path.join(packageRoot, file), 'utf8')
    .split('\n')
    .forEach((text, index) => {
      const [, quote, included] = /^\s*#\s*include\s*([<"])([^">]+)[">]/.exec(text) ?? []
      if (!included) return
      if (/^(napi|node_api|node|v8|uv)\.h$/.test(included)) {
        if (!file.startsWith('native/bridge/'))
          problems.push(`${file}:${index + 1}: only native/bridge includes ${included}`)
      } else if (systemHeaders.test(included)) {
        if (!systemFiles.test(file))
          problems.push(`${file}:${index + 1}: only native/core/system_*.cc includes ${included}`)
      } else if (quote === '"') {
        // From the include root native/, or, where that has no such file, from the file's own folder.
        const beside = path.posix.join(path.posix.dirname(file), included)
        const target = existsSync(path.join(packageRoot, beside)) ? beside : `native/${included}`
        check(file, index + 1, target, nativeRooms)
      }
    })
}

for (const file of sources('lib', ['.ts'])) {
  files += 1
  readFileSync(path.join(packageRoot, file), 'utf8')
    .split('\n')
    .forEach((text, index) => {
      const specifier = /(?:\bfrom|^\s*import|\bimport\()\s*['"]([^'"]+)['"]/.exec(text)?.[1]
      if (/node-gyp-build['"]|require\([^)]*\.node['"]/.test(text) && file !== 'lib/native.ts') {
        problems.push(`${file}:${index + 1}: only lib/native.ts loads the addon`)
      }
      if (specifier?.startsWith('.')) {
        check(file, index + 1, path.posix.join(path.posix.dirname(file), specifier), libRooms)
      }
    })
}

for (const problem of problems) console.error(problem)
console.log(`layers: ${files} files, ${problems.length} problems`)
if (problems.length > 0) process.exit(1)
