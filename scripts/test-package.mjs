// Installs the packed package with every package manager and loads it in every runtime, as users would: folder by folder, from the
// tarball, with the managers' own settings.
//
//   node scripts/test-package.mjs [--quick]        after `npm run prebuildify` (or `node scripts/prebuild.mjs --host`)
//
// In each runtime the package is loaded by import and by require(): every entry of its export map, and then the bundled model
// generates a few tokens, the most probable ones, which must be the same wherever the processor is, and a word by a grammar. --quick is one manager and
// two versions of Node. Needs the npm registry; nothing else.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { packageRoot } from './native-variants.mjs'
import { installers, isInstalled, runtimes, userEnvironment } from './package-tools.mjs'

const { values } = parseArgs({ options: { quick: { type: 'boolean', default: false } } })
const manifest = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8'))
const scratch = mkdtempSync(path.join(tmpdir(), 'lapidary-package-'))
const failures = []
const skips = []
let passed = 0

function fail(what, detail) {
  failures.push(`${what}: ${String(detail).trim()}`)
  return 'FAILED'
}

function pack() {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', scratch]
  const [packed] = JSON.parse(execFileSync('npm', args, { cwd: packageRoot, encoding: 'utf8', env: userEnvironment }))
  const unpacked = (packed.unpackedSize / 1e6).toFixed(1)
  console.log(
    `${packed.filename}: ${(packed.size / 1e6).toFixed(2)} MB, ${unpacked} MB unpacked, ${packed.entryCount} files`,
  )
  for (const { path: file, size } of packed.files.sort((a, b) => b.size - a.size).slice(0, 6)) {
    console.log(`  ${(size / 1e6).toFixed(2).padStart(6)} MB  ${file}`)
  }
  return path.join(scratch, packed.filename)
}

// ── what runs in every runtime ──

/** Entries of the export map that can be loaded as code. */
const entries = Object.keys(manifest.exports)
  .filter((entry) => !/\.json$|\*/.test(entry))
  .map((entry) => path.posix.join(manifest.name, entry))
const peers = Object.entries(manifest.peerDependencies ?? {})

/** Reports as JSON which entries load, or why not, and what the model says. */
const probe = (load) => `
const entries = ${JSON.stringify(entries)}
async function main() {
  const loaded = {}
  for (const entry of entries) {
    try {
      loaded[entry] = Object.keys(await ${load}(entry)).length > 0 ? 'ok' : 'it exports nothing'
    } catch (error) {
      loaded[entry] = String(error && error.message)
    }
  }
  const { Gemma } = await ${load}(entries[0])
  const gemma = await Gemma.load()
  const { text } = await gemma.generate('Once upon a time', { temperature: 0, maxTokens: 12 })
  // On a thread of its own, which must not keep the process alive.
  const grammar = await gemma.compileGrammar({ schema: { enum: ['gem', 'stone'] } })
  const chosen = JSON.parse((await gemma.generate('A', { grammar, maxTokens: 20 })).text)
  await gemma[Symbol.asyncDispose]()
  require('node:fs').writeFileSync(process.argv[2], JSON.stringify({ loaded, text, chosen, target: process.platform + '-' + process.arch }))
}
main().catch((error) => { console.error(error); process.exit(1) })
`

function writeProbes(folder) {
  const header = `import { createRequire } from 'node:module'\nconst require = createRequire(import.meta.url)\n`
  writeFileSync(path.join(folder, 'import.mjs'), header + probe('import'))
  writeFileSync(path.join(folder, 'require.cjs'), probe('require'))
}

/** A missing optional peer is why an entry may not load. */
const missingPeer = (message) => peers.map(([name]) => name).find((name) => message.includes(name))

/** By processor: another instruction set adds in another order, and may prefer another of two words that are all but equal. */
const expectedTexts = {}
function check(where, result, withPeers) {
  for (const [entry, verdict] of Object.entries(result.loaded)) {
    if (verdict === 'ok') continue
    const peer = missingPeer(verdict)
    if (peer && !withPeers) skips.push(`${where}: ${entry} needs its optional peer ${peer}`)
    else return fail(where, `${entry} does not load: ${verdict}`)
  }
  const processor = result.target.split('-')[1]
  expectedTexts[processor] ??= result.text
  const expectedText = expectedTexts[processor]
  if (!/\w+ \w+/.test(result.text)) return fail(where, `generated ${JSON.stringify(result.text)}`)
  if (result.text !== expectedText) {
    return fail(where, `generated ${JSON.stringify(result.text)}, elsewhere ${JSON.stringify(expectedText)}`)
  }
  if (result.chosen !== 'gem' && result.chosen !== 'stone') {
    return fail(where, `generated ${JSON.stringify(result.chosen)}, which its grammar does not allow`)
  }
  passed += 1
  return 'ok'
}

function tryRuntime(runtime, installer, folder, withPeers) {
  return ['import.mjs', 'require.cjs'].map((script) => {
    const where = `${installer.name}, ${runtime.name}, ${script.split('.')[0]}`
    const report = path.join(folder, 'report.json')
    rmSync(report, { force: true })
    const [command, ...args] = runtime.command()
    // A relative path: an emulated Windows knows this folder by another name.
    const result = spawnSync(command, [...args, script, 'report.json'], {
      cwd: folder,
      encoding: 'utf8',
      env: userEnvironment,
      timeout: runtime.emulates ? 300_000 : 60_000,
    })
    if (result.status !== 0 || !existsSync(report)) {
      return fail(where, `${result.error ?? `status ${result.status}`}\n${result.stderr}${result.stdout}`)
    }
    return check(where, JSON.parse(readFileSync(report, 'utf8')), withPeers)
  })
}

// ── installing ──

/** Every installed package that has a script for a manager to run, or to block. */
function packagesWithScripts(folder) {
  return readdirSync(folder, { recursive: true })
    .filter((file) => /node_modules[\\/](@[^\\/]+[\\/])?[^\\/]+[\\/]package\.json$/.test(file))
    .filter((file) => {
      const { scripts = {} } = JSON.parse(readFileSync(path.join(folder, file), 'utf8'))
      return ['preinstall', 'install', 'postinstall'].some((name) => scripts[name])
    })
}

function install(installer, packages) {
  const folder = path.join(scratch, installer.name.replaceAll(' ', '-'))
  mkdirSync(folder)
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify({ name: 'user', version: '1.0.0', private: true }))
  const [command, ...args] = installer.command(packages)
  const started = performance.now()
  const result = spawnSync(command, args, { cwd: folder, encoding: 'utf8', env: userEnvironment, timeout: 600_000 })
  const output = `${result.stdout}${result.stderr}`
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  if (result.status !== 0) {
    fail(installer.name, `${result.error ?? `status ${result.status}`}\n${output}`)
    return { folder, seconds, installed: false }
  }
  if (/blocked|ignored build scripts|install scripts|not (yet )?(reviewed|approved)/i.test(output))
    fail(installer.name, output)
  else if (packagesWithScripts(folder).length > 0)
    fail(installer.name, `install scripts: ${packagesWithScripts(folder)}`)
  else passed += 1
  const version = spawnSync(path.join(folder, 'node_modules/.bin/lapidary'), ['--version'], {
    encoding: 'utf8',
    env: userEnvironment,
  })
  if (version.stdout?.trim() !== manifest.version)
    fail(installer.name, `lapidary --version: ${version.stdout}${version.stderr}`)
  else passed += 1
  writeProbes(folder)
  return { folder, seconds, installed: true }
}

const available = runtimes.filter((runtime) => {
  if (values.quick && !runtime.quick) return false
  if (runtime.needs && !isInstalled(runtime.needs))
    return skips.push(`${runtime.name}: ${runtime.needs} is not installed`) && false
  if (!runtime.emulates || existsSync(path.join(packageRoot, 'prebuilds', runtime.emulates))) return true
  return skips.push(`${runtime.name}: no prebuilds/${runtime.emulates}`) && false
})

const tarball = pack()
const chosen = installers.filter((installer) => !values.quick || installer.quick)
const rows = chosen.map((installer) => ({ installer, packages: [tarball], withPeers: false }))
if (peers.length > 0) {
  const packages = [tarball, ...peers.map(([name, range]) => `${name}@${range}`)]
  rows.push({ installer: { ...installers[0], name: `${installers[0].name}, peers` }, packages, withPeers: true })
}
console.log(`\nentries: ${entries.join(', ')}`)
rows.forEach(({ installer, packages, withPeers }, index) => {
  const { folder, seconds, installed } = install(installer, packages)
  console.log(`\n${installer.name}: ${installed ? `installed in ${seconds} s` : 'FAILED to install'}`)
  if (!installed) return
  for (const runtime of available) {
    if (runtime.emulates && index > 0) continue // slow, and the same files
    const [byImport, byRequire] = tryRuntime(runtime, installer, folder, withPeers)
    console.log(`  ${runtime.name.padEnd(28)} import ${byImport.padEnd(8)} require ${byRequire}`)
  }
})
rmSync(scratch, { recursive: true, force: true })

for (const skip of skips) console.log(`SKIPPED  ${skip}`)
for (const failure of failures) console.error(`FAILED   ${failure}`)
console.log('not tried on this machine: musl, macOS')
console.log(`package: ${passed} passed, ${failures.length} failed, ${skips.length} skipped`)
if (failures.length > 0 || passed === 0) process.exit(1)
