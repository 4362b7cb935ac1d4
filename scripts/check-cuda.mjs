// What can be known of the CUDA library without a GPU: it compiles, each kernel keeps within its written budget, the library is as small as
// it may be, exports one symbol, holds the architectures it should, and says clearly what is missing where there is no GPU.
//
//   node scripts/check-cuda.mjs [--architectures=80,90a] [--write]     all: what ships
//
// The budget is native/kernels/cuda/budget.json: of each kernel the registers per thread, bytes of stack and of spills that it may use on 80
// and 90a, and what it may use beyond that on another architecture, under its name; fixed shared memory is none, as blocks get theirs at
// launch. --write notes what the compiler says now, for review.
import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { buildCuda, cudaLibrary, cudaObjectNames, cudaObjects, cudaRoot } from './build-cuda.mjs'
import { packageRoot } from './native-variants.mjs'

const { values } = parseArgs({
  options: { architectures: { type: 'string', default: '80,90a' }, write: { type: 'boolean', default: false } },
})
const budgetFile = path.join(packageRoot, 'native/kernels/cuda/budget.json')
const sizeLimit = 15 * 2 ** 20

if (spawnSync('nvcc', ['--version']).status !== 0) {
  console.log('CUDA library: 1 skipped: nvcc is not installed, so nothing of it was checked')
  process.exit(0)
}
if (!buildCuda(values.architectures)) process.exit(1)

const problems = []
let checks = 0
const check = (holds, text) => {
  checks += 1
  if (!holds) problems.push(text)
}

// ── compiler reports ──────────────────────────────────────────────────────────────────────────────────────────────
const builtObjects = cudaObjectNames()
const stale = []
/** Mangled name → { architecture → what ptxas said }. */
const reports = new Map()
for (const file of readdirSync(cudaObjects).filter((name) => name.endsWith('.o.txt'))) {
  // A report outlives its object where a stem is renamed or removed: those of the library are the ones that its build still has.
  if (!builtObjects.has(file.slice(0, -'.txt'.length))) {
    stale.push(file)
    continue
  }
  const text = readFileSync(path.join(cudaObjects, file), 'utf8')
  check(!/C7508|setmaxnreg ignored/.test(text), `${file}: the compiler ignored setmaxnreg (C7508)`)
  const entries = text.split(/Compiling entry function /).slice(1)
  for (const entry of entries) {
    const [, name, architecture] = /^'(\w+)' for 'sm_(\w+)'/.exec(entry) ?? []
    const number = (pattern) => Number(pattern.exec(entry)?.[1] ?? 0)
    if (!reports.has(name)) reports.set(name, new Map())
    reports.get(name).set(architecture, {
      registers: number(/Used (\d+) registers/),
      stack: number(/(\d+) bytes stack frame/),
      spills: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
      shared: number(/(\d+) bytes smem/),
    })
  }
}
check(reports.size > 0, 'no reports of the compiler: was the library built without -Xptxas -v?')

/** "RmsNorm<RowTeam<32, 4>>" of a mangled entry<…>. */
function readableNames(mangled) {
  const text = execFileSync('c++filt', { input: mangled.join('\n'), encoding: 'utf8' })
  return text
    .trim()
    .split('\n')
    .map((line) =>
      line
        .replaceAll(/lapidary::(cuda::)?|\(anonymous namespace\)::/g, '')
        .replace(/^void entry<(.*?) ?>\(.*$/, '$1')
        .replaceAll(/> >/g, '>>'),
    )
}

/** Compiled by every check; a kernel's budget is for them, with what others need beyond it under their names. */
const everyBuild = ['80', '90a']
const otherBuilds = ['86', '89', '100f', '120f']

function raise(most, report) {
  for (const key of Object.keys(most)) most[key] = Math.max(most[key], report[key])
}

/** Registers are given out in eights; what is none is not written. */
function limitsOf({ registers, stack, spills }) {
  const limits = { registers: Math.ceil(registers / 8) * 8 }
  if (stack) limits.stack = stack
  if (spills) limits.spills = spills
  return limits
}

function beyond(limits, base) {
  return Object.fromEntries(Object.entries(limits).filter(([key, limit]) => limit > (base[key] ?? 0)))
}

const mangled = [...reports.keys()]
const names = readableNames(mangled)
const budget = existsSync(budgetFile) ? JSON.parse(readFileSync(budgetFile, 'utf8')) : {}
const measured = {}
for (const [i, name] of names.entries()) {
  const most = { registers: 0, stack: 0, spills: 0 }
  for (const [architecture, report] of reports.get(mangled[i])) {
    check(report.shared === 0, `${name} on ${architecture}: ${report.shared} bytes of fixed shared memory`)
    if (everyBuild.includes(architecture)) raise(most, report)
    const allowed = budget[name]
    if (values.write || !allowed) continue
    for (const [key, limit] of Object.entries({ stack: 0, spills: 0, ...allowed, ...allowed[`sm_${architecture}`] })) {
      if (typeof limit === 'object') continue
      check(report[key] <= limit, `${name} on ${architecture}: ${report[key]} ${key}; its budget is ${limit}`)
    }
  }
  const rounded = limitsOf(most)
  for (const architecture of otherBuilds) {
    const report = reports.get(mangled[i]).get(architecture)
    // Of an architecture that was not compiled now, what is written stays.
    const more = report ? beyond(limitsOf(report), rounded) : budget[name]?.[`sm_${architecture}`]
    if (more && Object.keys(more).length > 0) rounded[`sm_${architecture}`] = more
  }
  measured[name] = rounded
  if (!values.write) check(budget[name], `${name} has no budget: --write notes ${JSON.stringify(rounded)}`)
}
if (values.write) {
  const sorted = Object.fromEntries(Object.entries(measured).sort(([a], [b]) => (a < b ? -1 : 1)))
  const lines = Object.entries(sorted).map(([name, limits]) => `${JSON.stringify(name)}:${JSON.stringify(limits)}`)
  writeFileSync(budgetFile, `{\n${lines.join(',\n')}\n}\n`)
  execFileSync('npx', ['biome', 'format', '--write', budgetFile], { cwd: packageRoot, stdio: 'ignore' })
} else {
  for (const name of Object.keys(budget)) check(measured[name], `${name} is in budget.json but not in the library`)
}

// ── the library ───────────────────────────────────────────────────────────────────────────────────────────────────
/** Entries of all fat binaries: "sm_80" or "compute_80" → { count, bytes }. */
function fatbinEntries(file) {
  const data = readFileSync(file)
  const found = new Map()
  let at = 0
  while (true) {
    at = data.indexOf(Buffer.from([0x50, 0xed, 0x55, 0xba]), at)
    if (at < 0) return found
    if (data.readUInt16LE(at + 4) !== 1 || data.readUInt16LE(at + 6) !== 16) {
      at += 4
      continue
    }
    const end = at + 16 + Number(data.readBigUInt64LE(at + 8))
    for (at += 16; at < end; ) {
      const kind = data.readUInt16LE(at)
      const headerBytes = data.readUInt32LE(at + 4)
      const bytes = Number(data.readBigUInt64LE(at + 8))
      const name = `${kind === 1 ? 'compute' : 'sm'}_${data.readUInt32LE(at + 28)}`
      const entry = found.get(name) ?? { count: 0, bytes: 0 }
      found.set(name, { count: entry.count + 1, bytes: entry.bytes + bytes })
      at += headerBytes + bytes
    }
  }
}

const { size } = statSync(cudaLibrary)
check(size <= sizeLimit, `the library has ${size} bytes; the limit is ${sizeLimit}`)
const entries = fatbinEntries(cudaLibrary)
const wanted = values.architectures === 'all' ? ['80', '86', '89', '90', '100', '120'] : values.architectures.split(',')
for (const architecture of wanted) {
  const name = `sm_${architecture.replace(/\D/g, '')}`
  check(entries.has(name), `the library has no code for ${name}`)
}
if (values.architectures === 'all') check(entries.has('compute_80'), 'the library has no PTX for later GPUs')
const exported = execFileSync('nm', ['-D', '--defined-only', '--format=posix', cudaLibrary], { encoding: 'utf8' })
const symbols = exported
  .trim()
  .split('\n')
  .map((line) => line.split(' ')[0])
check(
  symbols.join() === 'lapidary_cuda_api',
  `the library exports ${symbols.join(', ')}; expected lapidary_cuda_api alone`,
)

// ── what it says where there is no GPU ────────────────────────────────────────────────────────────────────────────
const addon = path.join(packageRoot, 'build/Release/lapidary.node')
check(existsSync(addon) && existsSync(path.join(packageRoot, 'dist/index.js')), 'no addon: npm run build first')
if (existsSync(addon)) {
  copyFileSync(addon, path.join(path.dirname(cudaLibrary), 'lapidary.node'))
  const script = `const { Device } = await import('${path.join(packageRoot, 'dist/index.js')}')
    console.log(JSON.stringify(Device.list().slice(1)))
    try { await Device.open('cuda'); console.log('opened') } catch (error) { console.log(error.code + ' ' + error.message) }`
  const child = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
    env: { ...process.env, LAPIDARY_PREBUILD: cudaRoot },
  })
  const [listed = '', answer = ''] = child.stdout.trim().split('\n')
  check(child.status === 0, `opening ended with ${child.status ?? child.signal}: ${child.stderr}`)
  if (spawnSync('nvidia-smi').status === 0) {
    check(!/library/.test(answer), `with a GPU: ${answer}`)
  } else {
    check(/^ERR_DEVICE_UNAVAILABLE .*NVIDIA driver.*CUDA error 35/.test(answer), `without a GPU: ${answer}`)
    check(/NVIDIA driver/.test(listed), `Device.list() without a GPU: ${listed}`)
  }
  console.log(`Device.open('cuda'): ${answer}`)
}

for (const [name, { count, bytes }] of [...entries].sort()) {
  console.log(`  ${name.padEnd(12)} ${String(count).padStart(3)} entries  ${(bytes / 2 ** 20).toFixed(2)} MiB`)
}
if (stale.length > 0) console.log(`reports of objects that are no longer built, left out: ${stale.join(', ')}`)
for (const problem of problems) console.error(problem)
console.log(
  `CUDA library: ${names.length} kernels for ${values.architectures}, ${(size / 2 ** 20).toFixed(2)} MiB; ` +
    `${checks} checks, ${problems.length} problems`,
)
if (problems.length > 0) process.exit(1)
