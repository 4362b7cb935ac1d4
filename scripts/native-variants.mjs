// The builds that the test scripts make beside the ordinary one.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const packageRoot = fileURLToPath(new URL('..', import.meta.url))

/** Where a variant lives: its cmake folder, its addon, and the value of LAPIDARY_PREBUILD that loads it. */
export function variant({ arch = process.arch, sanitize } = {}) {
  const name = [arch === process.arch ? '' : arch, sanitize?.replaceAll(',', '-') ?? ''].filter(Boolean).join('-')
  const root = name ? path.join(packageRoot, 'build', name) : packageRoot
  const cmake = path.join(root, 'build', name ? `cmake-${name}` : 'cmake')
  return { arch, sanitize, root, cmake, addon: path.join(root, 'build', 'Release', 'lapidary.node') }
}

export function build(chosen, { tests = false } = {}) {
  const args = [path.join(packageRoot, 'scripts', 'build-native.cjs')]
  if (chosen.arch !== process.arch) args.push(`--arch=${chosen.arch}`)
  if (chosen.sanitize) args.push(`--sanitize=${chosen.sanitize}`)
  if (tests) args.push('--tests')
  const env = { ...process.env, LAPIDARY_BUILD_ROOT: chosen.root }
  // What races is above the kernels: one set of them is enough, and compiles in a quarter of the time.
  if (chosen.sanitize === 'thread') env.LAPIDARY_BUILD_ISAS ??= 'scalar'
  const { status } = spawnSync(process.execPath, args, { stdio: 'inherit', env })
  if (status !== 0) process.exit(status ?? 1)
}

/** The command that runs a program of `arch` here: [] where it runs as it is. `cpu` is qemu's model. */
export function emulator(arch, cpu = 'max') {
  if (arch === process.arch) return []
  if (arch !== 'arm64') throw new Error(`no emulator is set up for ${arch}`)
  return ['qemu-aarch64-static', '-L', '/usr/aarch64-linux-gnu', '-cpu', cpu]
}

export function requireTools(tools) {
  const missing = Object.entries(tools).filter(([tool]) => spawnSync('which', [tool]).status !== 0)
  for (const [tool, debianPackage] of missing) console.error(`${tool} is missing: apt-get install ${debianPackage}`)
  if (missing.length > 0) process.exit(1)
}
