// The API reference in docs/api, from the doc comments: `npm run docs`. Every entry of the export map is a page tree of its own. Fails
// on a public name without a comment and on a link that leads nowhere, so the reference is as checked as the code.
//
//   node scripts/docs/build.mjs [--check]        --check: finds what is wrong, writes nothing
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const packageRoot = path.resolve(here, '../..')
const checkOnly = process.argv.includes('--check')

function run(program, args, cwd) {
  const { error, status } = spawnSync(program, args, { cwd, stdio: 'inherit' })
  if (error || status !== 0) {
    if (error) console.error(error.message)
    process.exit(status || 1)
  }
}

if (!existsSync(path.join(here, 'node_modules', 'typedoc')))
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], here)

const { exports } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8'))
const entryPoints = Object.values(exports)
  .map((entry) => (typeof entry === 'string' ? entry : entry.default))
  .filter((file) => file.startsWith('./dist/'))
  .map((file) => path.join(packageRoot, file.replace('./dist/', 'lib/').replace(/\.js$/, '.ts')))

const options = {
  plugin: 'typedoc-plugin-markdown',
  tsconfig: path.join(here, 'tsconfig.json'),
  out: path.join(packageRoot, 'docs', 'api'),
  basePath: packageRoot,
  name: 'Lapidary',
  readme: 'none',
  gitRevision: 'main',
  disableSources: true, // line numbers change with every commit
  excludePrivate: true,
  excludeInternal: true,
  excludeExternals: true, // members that a class inherits from another package
  // What a public name mentions and nobody can import: a page would promise that it can be.
  'validation.notExported': true,
  'validation.invalidLink': true,
  'validation.notDocumented': true,
  treatWarningsAsErrors: true,
  hidePageHeader: true,
  useCodeBlocks: true,
}
const args = Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)])
for (const kind of ['Class', 'Enum', 'Function', 'Interface', 'TypeAlias', 'Variable'])
  args.push('--requiredToBeDocumented', kind)
// Their members are shown where they are inherited or listed.
for (const name of ['NativeIsa', 'kvDtypes', 'GenerateResult', 'StreamResult', 'CallOptions'])
  args.push('--intentionallyNotExported', name)
if (checkOnly) args.push('--emit', 'none')
run(process.execPath, [path.join(here, 'node_modules/typedoc/bin/typedoc'), ...args, ...entryPoints], packageRoot)
if (!checkOnly) console.log('docs/api is the reference')
