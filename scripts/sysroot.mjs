// The C library that prebuilds are linked against: Debian 11's (glibc 2.31), so that they load wherever official Node binaries do
// (glibc 2.28) and not only on machines as new as the one that compiles. What a build uses of it is older still
// (scripts/check-prebuilds.mjs reads the result).
//
//   node scripts/sysroot.mjs [x64] [arm64]      prints each folder; fetched once, by apt, into build/sysroots (git ignores it)
//
// Needs apt-get and dpkg-deb, and Debian's archive key (package debian-archive-keyring). Packages come from where this machine's
// Debian packages come from; on another system LAPIDARY_DEBIAN_MIRROR says where. They are unpacked, never installed.
import { execFileSync } from 'node:child_process'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { packageRoot, requireTools } from './native-variants.mjs'

const suite = 'bullseye'
const architectures = { x64: 'amd64', arm64: 'arm64' }
const packages = ['libc6', 'libc6-dev', 'linux-libc-dev', 'libcrypt1', 'libcrypt-dev', 'libgcc-s1', 'libstdc++6']
const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'

function mirror() {
  if (process.env.LAPIDARY_DEBIAN_MIRROR) return process.env.LAPIDARY_DEBIAN_MIRROR
  const format = '$(ORIGIN)|$(CODENAME)|$(REPO_URI)'
  const targets = execFileSync('apt-get', ['indextargets', '--format', format, 'Created-By: Packages'], {
    encoding: 'utf8',
  })
  const [, , uri] =
    targets
      .split('\n')
      .map((line) => line.split('|'))
      .find(([origin, codename]) => origin === 'Debian' && /^[a-z]+$/.test(codename)) ?? []
  if (!uri) throw new Error('no Debian mirror is known here: run apt-get update, or set LAPIDARY_DEBIAN_MIRROR')
  return uri
}

/** Links to absolute paths would lead out of the sysroot: they become relative to it. */
function tameLinks(folder, root) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name)
    if (entry.isDirectory()) tameLinks(file, root)
    else if (lstatSync(file).isSymbolicLink() && path.isAbsolute(readlinkSync(file))) {
      const target = path.relative(folder, path.join(root, readlinkSync(file)))
      rmSync(file)
      symlinkSync(target, file)
    }
  }
}

function fetchSysroot(arch, folder) {
  requireTools({ 'apt-get': 'apt', 'dpkg-deb': 'dpkg' })
  if (!existsSync(keyring)) throw new Error(`${keyring} is missing: apt-get install debian-archive-keyring`)
  const apt = `${folder}.apt`
  const unpacked = `${folder}.unpacked`
  for (const made of [apt, unpacked]) rmSync(made, { recursive: true, force: true })
  for (const made of ['lists/partial', 'archives/partial', 'empty'])
    mkdirSync(path.join(apt, made), { recursive: true })
  mkdirSync(unpacked)
  writeFileSync(path.join(apt, 'sources.list'), `deb [signed-by=${keyring}] ${mirror()} ${suite} main\n`)
  writeFileSync(path.join(apt, 'status'), '')
  // An apt of its own: neither its lists nor its idea of what is installed are the machine's.
  const options = {
    'APT::Architecture': architectures[arch],
    'APT::Architectures': architectures[arch],
    'APT::Sandbox::User': 'root',
    'Acquire::Languages': 'none',
    'Dir::Etc::sourcelist': path.join(apt, 'sources.list'),
    'Dir::Etc::sourceparts': path.join(apt, 'empty'),
    'Dir::Etc::preferencesparts': path.join(apt, 'empty'),
    'Dir::State': apt,
    'Dir::State::status': path.join(apt, 'status'),
    'Dir::Cache': apt,
  }
  const flags = Object.entries(options).flatMap(([name, value]) => ['-o', `${name}=${value}`])
  const run = (...args) =>
    execFileSync('apt-get', [...flags, '-qq', ...args], { cwd: path.join(apt, 'archives'), stdio: ['ignore', 2, 2] })
  run('update')
  run('download', ...packages)
  for (const file of readdirSync(path.join(apt, 'archives')).filter((name) => name.endsWith('.deb'))) {
    execFileSync('dpkg-deb', ['--extract', path.join(apt, 'archives', file), unpacked])
  }
  tameLinks(unpacked, unpacked)
  rmSync(apt, { recursive: true })
  renameSync(unpacked, folder)
}

/** The folder of Debian 11 for `arch` ('x64' or 'arm64'), fetched where it is not here yet. */
export function sysroot(arch) {
  if (!architectures[arch]) throw new Error(`no sysroot for ${arch}: expected one of ${Object.keys(architectures)}`)
  const folder = path.join(packageRoot, 'build', 'sysroots', `${suite}-${arch}`)
  if (!existsSync(folder)) {
    mkdirSync(path.dirname(folder), { recursive: true })
    fetchSysroot(arch, folder)
  }
  return folder
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const requested = process.argv.slice(2)
  for (const arch of requested.length > 0 ? requested : [process.arch]) console.log(sysroot(arch))
}
