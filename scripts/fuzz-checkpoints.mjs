// Fuzzes the checkpoint readers: node scripts/fuzz-checkpoints.mjs [--iterations N] [--seed S] [--first I]
// The fuzzer is TypeScript (test/checkpoint/fuzzer.ts) over lib/; both are compiled to build/fuzz first.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { packageRoot } from './native-variants.mjs'

const { values } = parseArgs({
  options: {
    iterations: { type: 'string', default: '100000' },
    seed: { type: 'string', default: '1' },
    first: { type: 'string', default: '0' },
  },
})
const numbers = Object.entries(values).map(([name, text]) => [name, Number(text)])
const { iterations, seed, first } = Object.fromEntries(numbers)
for (const [name, number] of numbers) {
  if (Number.isSafeInteger(number) && number >= 0) continue
  console.error(`--${name}: expected a non-negative integer, got ${values[name]}`)
  process.exit(2)
}

const output = path.join(packageRoot, 'build', 'fuzz')
const flags = '--target es2023 --lib es2023,esnext.disposable --module nodenext --types node --strict --skipLibCheck'
const { status } = spawnSync(
  path.join(packageRoot, 'node_modules', '.bin', 'tsc'),
  [
    ...flags.split(' '),
    ...['--rewriteRelativeImportExtensions', '--ignoreConfig'],
    ...['--rootDir', packageRoot, '--outDir', output, path.join(packageRoot, 'test/checkpoint/fuzzer.ts')],
  ],
  { stdio: 'inherit' },
)
if (status !== 0) process.exit(1)

const { fuzz } = await import(pathToFileURL(path.join(output, 'test/checkpoint/fuzzer.js')).href)
const began = performance.now()
const report = (tally) => {
  const seconds = (performance.now() - began) / 1000
  const refused = Object.entries(tally.refused)
    .map(([code, count]) => `${count} ${code}`)
    .join(', ')
  const { number, milliseconds } = tally.slowest
  const slowest = `slowest ${number}: ${milliseconds.toFixed(1)} ms`
  const speed = Math.round(tally.iterations / seconds)
  console.log(
    `${tally.iterations} inputs, ${tally.accepted} accepted; errors: ${refused}; ${slowest}; ${speed} a second`,
  )
}
try {
  report(await fuzz({ seed, iterations, first, onProgress: report }))
} catch (error) {
  console.error(error)
  process.exit(1)
}
