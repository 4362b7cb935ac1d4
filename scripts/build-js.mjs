// Compiles lib/ into dist/, where lib/ is newer: `npm run build:js`. Tests of child processes run it too, and so it leaves a dist/
// that is what lib/ says as it is: others may be loading it.
//
//   node scripts/build-js.mjs
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { packageRoot } from './native-variants.mjs'

const self = fileURLToPath(import.meta.url)
const compiled = path.join(packageRoot, 'dist', 'index.js')

/** When the newest of these files and folders was written. */
function newest(...sources) {
  const times = sources.flatMap((source) => {
    const stat = statSync(source)
    return stat.isDirectory() ? newest(...readdirSync(source).map((name) => path.join(source, name))) : stat.mtimeMs
  })
  return Math.max(...times)
}

function compile() {
  const sources = ['lib', 'tsconfig.json', 'package-lock.json'].map((name) => path.join(packageRoot, name))
  if (existsSync(compiled) && statSync(compiled).mtimeMs > newest(...sources)) return 0
  const tsc = path.join(packageRoot, 'node_modules', 'typescript', 'bin', 'tsc')
  const { status } = spawnSync(process.execPath, [tsc, '-p', packageRoot], { stdio: 'inherit' })
  if (status !== 0) rmSync(compiled, { force: true }) // written nonetheless, and newer
  return status ?? 1
}

// Two at once queue where util-linux is, before they look: half of a dist/ looks new.
mkdirSync(path.join(packageRoot, 'build'), { recursive: true })
const lock = path.join(packageRoot, 'build', 'dist.lock')
const locked = process.argv.includes('--locked')
const queued = locked ? undefined : spawnSync('flock', [lock, process.execPath, self, '--locked'], { stdio: 'inherit' })
process.exitCode = !queued || queued.error ? compile() : (queued.status ?? 1)
