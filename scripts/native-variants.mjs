// The builds that the test scripts make beside the ordinary one.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const packageRoot = fileURLToPath(new URL('..', import.meta.url))

/**
 * Where a variant lives: its cmake folder, its addon, and the value of LAPIDARY_PREBUILD that loads it. `sysroot` is the folder of a
 * C library to link against (scripts/sysroot.mjs).
 */
export function variant({ platform = process.platform, arch = process.arch, sanitize, sysroot } = {}) {
  const cross = platform !== process.platform ? `${platform}-${arch}` : arch !== process.arch ? arch : ''
  const name = [cross, sanitize?.replaceAll(',', '-') ?? ''].filter(Boolean).join('-')
  const folder = [name, sysroot ? 'sysroot' : ''].filter(Boolean).join('-')
  const root = folder ? path.join(packageRoot, 'build', folder) : packageRoot
  const cmake = path.join(root, 'build', name ? `cmake-${name}` : 'cmake')
  return { platform, arch, sanitize, sysroot, root, cmake, addon: path.join(root, 'build', 'Release', 'lapidary.node') }
}

/** The environment of a build of this variant; prebuildify starts one too. */
export function buildEnvironment(chosen) {
  return {
    LAPIDARY_BUILD_ROOT: chosen.root,
    ...(chosen.sysroot ? { LAPIDARY_SYSROOT: chosen.sysroot } : {}),
  }
}

/** What tells scripts/build-native.cjs which variant it builds. */
export function buildArguments(chosen) {
  const args = [`--arch=${chosen.arch}`, `--platform=${chosen.platform}`]
  if (chosen.sanitize) args.push(`--sanitize=${chosen.sanitize}`)
  return args
}

/** What the names of a target's compiler and binary tools begin with. */
export function toolPrefix({ platform, arch }) {
  if (platform === 'win32') return 'x86_64-w64-mingw32-'
  return arch === process.arch ? '' : 'aarch64-linux-gnu-'
}

export function build(chosen, { tests = false } = {}) {
  const args = [path.join(packageRoot, 'scripts', 'build-native.cjs'), ...buildArguments(chosen)]
  if (tests) args.push('--tests')
  const env = { ...process.env, ...buildEnvironment(chosen) }
  if (chosen.sanitize === 'thread') {
    // What races is above the kernels: those that test/native/stream_stress.cc runs are enough.
    env.LAPIDARY_BUILD_ISAS ??= 'scalar'
    env.LAPIDARY_BUILD_STEMS ??= 'row_ops,embedding'
  } else if (chosen.sanitize) {
    // Loads and stores of tiles are instructions that no sanitizer sees; amx_emulated runs the same sources over memory.
    env.LAPIDARY_BUILD_ISAS ??= 'avx2,avx512,avx512_bf16,amx_emulated,neon,i8mm'
  }
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
