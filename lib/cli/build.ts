/**
 * `lapidary build`: compiles the addon from the sources in the package. The tools for it, cmake-js and node-addon-api, are
 * development dependencies: installed packages fetch them here, once, so that everyone else installs none of it.
 * @module
 */
import { type StdioOptions, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describeMissing, missingForBuild, missingHeaders } from './build-tools.ts'

const packageRoot = fileURLToPath(new URL('../..', import.meta.url))
const tools = ['cmake-js', 'node-addon-api'] as const

/** The parts of this package's package.json that the command line needs. */
export interface Manifest {
  version: string
  devDependencies: Record<string, string>
}

export function packageManifest(): Manifest {
  return JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as Manifest
}

function resolves(tool: string, from: string): boolean {
  try {
    createRequire(join(from, 'package.json')).resolve(`${tool}/package.json`)
    return true
  } catch {
    return false
  }
}

/** The folder whose node_modules has the tools, after fetching them where need be. Undefined: npm failed, and has said why. */
function toolFolder(stdio: StdioOptions): string | undefined {
  if (tools.every((tool) => resolves(tool, packageRoot))) return packageRoot
  const folder = join(packageRoot, 'build', 'tools')
  if (tools.every((tool) => resolves(tool, folder))) return folder
  const { devDependencies } = packageManifest()
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'package.json'), '{ "private": true }\n')
  const packages = tools.map((tool) => `${tool}@${devDependencies[tool]}`)
  process.stderr.write(`fetching ${packages.join(' and ')}\n`)
  const npm = spawnSync('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', ...packages], {
    cwd: folder,
    stdio,
    shell: process.platform === 'win32',
  })
  return npm.status === 0 ? folder : undefined
}

function refuse(text: string): number {
  process.stderr.write(`lapidary: ${text}`)
  return 1
}

/**
 * Builds build/Release/lapidary.node inside the package; the compiler's output goes to the terminal, with `json` to standard error.
 * Where something is missing that it needs, it says what, and begins nothing. Returns an exit status.
 */
export function buildFromSource(json = false): number {
  const stdio: StdioOptions = json ? ['inherit', 2, 'inherit'] : 'inherit'
  const missing = missingForBuild(packageRoot)
  if (missing.length > 0) return refuse(describeMissing(missing))
  const folder = toolFolder(stdio)
  if (folder === undefined) {
    return refuse(`${tools.join(' and ')} could not be fetched; install them and run this again\n`)
  }
  // cmake-js brings Node's headers as a dependency of its own, which may lie inside it.
  const cmakeJs = createRequire(createRequire(join(folder, 'package.json')).resolve('cmake-js/package.json'))
  const headers = missingHeaders(cmakeJs.resolve)
  if (headers.length > 0) return refuse(describeMissing(headers))
  const build = spawnSync(process.execPath, [join(packageRoot, 'scripts', 'build-native.cjs')], {
    cwd: packageRoot,
    stdio,
    env: { ...process.env, NODE_PATH: join(folder, 'node_modules') },
  })
  const built = join(packageRoot, 'build', 'Release', 'lapidary.node')
  if (build.status === 0) process.stdout.write(json ? `${JSON.stringify({ built })}\n` : `built ${built}\n`)
  return build.status ?? 1
}
