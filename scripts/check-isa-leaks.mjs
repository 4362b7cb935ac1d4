// The leak rule: an ISA's translation unit exports its one table and nothing else.
//
// A weak (W, V) or unique (u) definition in an object that was compiled with wider instructions may be the copy that the
// linker keeps for everybody, and then crashes on a machine without them. Undefined symbols are checked too: kernels do not
// allocate, lock or use the C++ library.
//
//   node scripts/check-isa-leaks.mjs [--arch=arm64]       after a build
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { variant } from './native-variants.mjs'

const { values } = parseArgs({ options: { arch: { type: 'string' } } })
const chosen = variant(values)
const nm = chosen.arch === process.arch ? 'nm' : 'aarch64-linux-gnu-nm'
const targets = path.join(chosen.cmake, 'CMakeFiles')
const isas = existsSync(targets)
  ? readdirSync(targets).flatMap((folder) => /^kernels_(.*)\.dir$/.exec(folder)?.[1] ?? [])
  : []

const forbidden = [
  [/^_ZNK?S[tsaio]|^_ZS[tsaio]/, 'the C++ library'],
  [/^_Zn[wa]|^_Zd[la]|^(malloc|calloc|realloc|free|aligned_alloc|posix_memalign)$/, 'allocation'],
  [/^pthread_/, 'locks or threads'],
  [/^__cxa_|^_Unwind_/, 'exceptions or guarded statics'],
]

let objects = 0
const problems = []
for (const isa of isas) {
  const folder = path.join(targets, `kernels_${isa}.dir`, 'kernels')
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.o'))) {
    objects += 1
    const expected = `lapidary_${file.replace(/\.cc\.o$/, '')}`
    const symbols = execFileSync(nm, ['--format=posix', path.join(folder, file)], { encoding: 'utf8' })
    const report = (text) => problems.push(`${file}: ${text}`)
    let found = false
    for (const line of symbols.split('\n').filter(Boolean)) {
      const [name, type] = line.split(' ')
      if (type === 'U' || type === 'w') {
        for (const [pattern, what] of forbidden) if (pattern.test(name)) report(`uses ${what}: ${name}`)
      } else if (name === expected) {
        found = true
      } else if (type === 'W' || type === 'V' || type === 'v' || type === 'u') {
        report(`mergeable symbol ${name} (${type}): make it static or LAPIDARY_INLINE`)
      } else if (type === type.toUpperCase()) {
        report(`exports ${name} (${type}): make it static or anonymous`)
      }
    }
    if (!found) report(`does not export ${expected}`)
  }
}

for (const problem of problems) console.error(problem)
console.log(`ISA leaks (${chosen.arch}): ${objects} objects of ${isas.join(', ')}: ${problems.length} problems`)
if (objects === 0) console.error('no objects: build first')
if (objects === 0 || problems.length > 0) process.exit(1)
