// The gate of a release: would these binaries load on the machines that they are for?
//
//   node scripts/check-prebuilds.mjs [folder …]        default: every folder in prebuilds/
//
// A module links although symbols are missing, and glibc is asked for by version without a word: both show up on a user's
// machine only. So of each binary this reads what it wants from others (symbols, versions, libraries), what it offers
// (nothing but Node's entry points), for which processor it is, and its size.
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { packageRoot, requireTools, toolPrefix } from './native-variants.mjs'

/** The newest glibc that a prebuild may ask for: that of Node's own Linux binaries. */
const glibcLimit = [2, 28]
/** Of one binary. They are 2 to 4 MB; the CUDA library has 9.5 for six architectures. */
const sizeLimit = { '.node': 12 << 20, '.so': 15 << 20, '.dll': 15 << 20 }
/** What a binary may need of its system: what Node's own needs. */
const systemLibraries = {
  linux: /^(libc|libm|libdl|libpthread|librt|libgcc_s|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+$|^libc\.musl-/,
  win32: /^(NODE\.EXE|KERNEL32\.dll|ADVAPI32\.dll|msvcrt\.dll|ucrtbase\.dll|api-ms-win-crt-.*\.dll)$/i,
}
/** What a binary offers; a library beside the addon has entry points of its own, of this prefix. */
const ownExports = {
  '.node': /^(napi_register_module_v\d+|node_api_module_get_api_version_v\d+)$/,
  '.so': /^lapidary_/,
  '.dll': /^lapidary_/,
}
const machines = { x64: /x86-64/i, arm64: /AArch64/i }

const newer = (a, b) => a[0] - b[0] || a[1] - b[1]

function checkElf(file, { arch, prefix, anyGlibc, report }) {
  const tool = (name, ...args) =>
    execFileSync(`${prefix}${name}`, [...args, file], { encoding: 'utf8', maxBuffer: 1 << 26 })
  const names = (text) =>
    text
      .split('\n')
      .filter(Boolean)
      .map((line) => line.trim().split(/\s+/))

  const wanted = names(tool('nm', '-D', '--undefined-only'))
  const unresolved = wanted
    .filter(([type, name]) => type !== 'w' && !/@|^(napi|node_api)_/.test(name))
    .map(([, name]) => name)
  // musl's symbols have no versions: there nothing can be told from the names.
  const dynamic = tool('readelf', '-d')
  const needed = [...dynamic.matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1])
  const musl = needed.some((name) => /musl/.test(name))
  if (unresolved.length > 0 && !musl) report(`nothing provides ${unresolved.join(', ')}`)

  const versions = [...tool('readelf', '-V').matchAll(/GLIBC_(\d+)\.(\d+)/g)].map((match) => [
    Number(match[1]),
    Number(match[2]),
  ])
  const newest = versions.sort(newer).at(-1) ?? [0, 0]
  if (!anyGlibc && newer(newest, glibcLimit) > 0)
    report(`needs glibc ${newest.join('.')}; the limit is ${glibcLimit.join('.')}`)

  const foreign = needed.filter((name) => !systemLibraries.linux.test(name))
  if (foreign.length > 0) report(`needs ${foreign.join(', ')}`)
  const offered = names(tool('nm', '-D', '--defined-only')).map((fields) => fields.at(-1).replace(/@.*/, ''))
  if (!machines[arch].test(tool('readelf', '-h'))) report(`is not for ${arch}`)
  return { offered, facts: [musl ? 'musl' : `glibc ${newest.join('.')}`, `needs ${needed.join(' ')}`] }
}

function checkPe(file, { prefix, report }) {
  const dump = execFileSync(`${prefix}objdump`, ['-p', file], { encoding: 'utf8', maxBuffer: 1 << 26 })
  if (!/file format pei-x86-64/.test(dump)) report('is not for x64')
  const needed = [...dump.matchAll(/DLL Name: (\S+)/g)].map((match) => match[1])
  const foreign = needed.filter((name) => !systemLibraries.win32.test(name))
  if (foreign.length > 0) report(`imports from ${foreign.join(', ')}`)
  const table = dump.slice(dump.indexOf('[Ordinal/Name Pointer] Table'))
  const offered = [...table.matchAll(/^\s*\[\s*\d+\](?: \+base\[\s*\d+\])?\s+(?:[0-9a-f]+ )?(\S+)$/gm)].map(
    (match) => match[1],
  )
  return { offered, facts: [`imports ${needed.join(' ')}`] }
}

/**
 * Checks the binaries of one folder, prints a line for each, and returns what is wrong with them. `anyGlibc` is for binaries that never leave
 * the machine.
 */
export function prebuildProblems(folder, { anyGlibc = false } = {}) {
  const [platform, arch] = path.basename(folder).split('-')
  const problems = []
  const files = existsSync(folder) ? readdirSync(folder).sort() : []
  if (files.filter((name) => name.endsWith('.node')).length === 0) problems.push(`${folder}: no addon`)
  const prefix = platform === process.platform || platform !== 'darwin' ? toolPrefix({ platform, arch }) : ''
  if (platform !== 'darwin') requireTools({ [`${prefix}nm`]: 'binutils' })
  for (const name of files) {
    const file = path.join(folder, name)
    const kind = path.extname(name)
    const size = statSync(file).size
    const report = (text) => problems.push(`${path.relative(packageRoot, file)} ${text}`)
    if (!sizeLimit[kind]) {
      report('is no binary that a package carries')
      continue
    }
    if (size > sizeLimit[kind]) report(`has ${size} bytes; the limit is ${sizeLimit[kind]}`)
    if (platform === 'darwin') {
      console.log(`${path.relative(packageRoot, file)}: ${(size / 1e6).toFixed(2)} MB; Mach-O files are not read here`)
      continue
    }
    const { offered, facts } = (platform === 'win32' ? checkPe : checkElf)(file, { arch, prefix, anyGlibc, report })
    const extra = offered.filter((symbol) => !ownExports[kind].test(symbol))
    if (offered.length === 0) report('exports nothing')
    if (extra.length > 0)
      report(`exports ${extra.slice(0, 10).join(', ')}${extra.length > 10 ? ` and ${extra.length - 10} more` : ''}`)
    console.log(
      [
        `${path.relative(packageRoot, file)}: ${(size / 1e6).toFixed(2)} MB`,
        ...facts,
        `exports ${offered.length}`,
      ].join('; '),
    )
  }
  return problems
}

/** prebuildProblems, ending the process where there are any. */
export function checkPrebuild(folder, options) {
  const problems = prebuildProblems(folder, options)
  for (const problem of problems) console.error(problem)
  if (problems.length > 0) process.exit(1)
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const all = path.join(packageRoot, 'prebuilds')
  const folders =
    process.argv.slice(2).length > 0
      ? process.argv.slice(2)
      : existsSync(all)
        ? readdirSync(all).map((name) => path.join(all, name))
        : []
  if (folders.length === 0) {
    console.error('no prebuilds: run `npm run prebuildify`')
    process.exit(1)
  }
  for (const folder of folders) checkPrebuild(path.resolve(folder))
}
