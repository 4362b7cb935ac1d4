// What a package's manifest promises, against what the tarball holds: publint (fields and files) and arethetypeswrong (whether every entry
// resolves to code and types under each of TypeScript's rules). Both come from the registry, one version each.
//
//   node scripts/lint-package.mjs        after `npm run build:js`
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { packageRoot } from './native-variants.mjs'
import { bin, userEnvironment } from './package-tools.mjs'

const scratch = mkdtempSync(path.join(tmpdir(), 'lapidary-lint-'))
const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', scratch]
const [packed] = JSON.parse(execFileSync('npm', args, { cwd: packageRoot, encoding: 'utf8', env: userEnvironment }))
const tarball = path.join(scratch, packed.filename)

const checks = {
  publint: [bin('publint', '0.3.25'), 'run', tarball, '--strict'],
  // require() of a module is on by default in every Node that `engines` allows, so "CommonJS resolves to a module" is no fault.
  attw: [bin('@arethetypeswrong/cli', '0.18.5', 'attw'), tarball, '--profile', 'esm-only', '--format', 'table-flipped'],
}
const failed = Object.entries(checks).filter(([name, command]) => {
  console.log(`── ${name}`)
  return spawnSync(process.execPath, command, { stdio: 'inherit', env: userEnvironment }).status !== 0
})
rmSync(scratch, { recursive: true, force: true })
console.log(`package lint: ${Object.keys(checks).length - failed.length} passed, ${failed.length} failed, 0 skipped`)
if (failed.length > 0) process.exit(1)
