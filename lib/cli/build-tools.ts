/**
 * What compiling the addon needs of the machine, and what of it is missing: found out before anything is fetched or compiled, and
 * all at once, because a build that stops at the third missing tool has been started three times.
 * @module
 */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'

/** What native/CMakeLists.txt asks for. */
const oldestCmake = [3, 20] as const

/** The features of C++20 that the sources use and older compilers lack: `atomic::wait`, `erase_if`, designated initializers. */
const probe = `
#include <atomic>
#include <concepts>
#include <vector>
struct Pair { int first, second; };
int main() {
  std::atomic<unsigned> turn{1};
  turn.wait(0);
  std::vector<int> values(2, 1);
  std::erase_if(values, [](std::integral auto value) { return value > 1; });
  return Pair{.first = 0, .second = 1}.first;
}
`

const installation: Partial<Record<NodeJS.Platform, string>> = {
  linux:
    'Debian, Ubuntu: apt-get install g++ make cmake. Fedora, RHEL: dnf install gcc-c++ make cmake. Alpine: apk add g++ make cmake linux-headers',
  darwin: 'macOS: xcode-select --install, and CMake from cmake.org or Homebrew',
  win32: 'Windows: MinGW-w64 (for example in MSYS2: pacman -S mingw-w64-x86_64-gcc mingw-w64-x86_64-cmake ninja)',
}

function run(
  program: string,
  args: readonly string[],
  input?: string,
): { ok: boolean; found: boolean; output: string } {
  const { error, status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8', input, timeout: 60_000 })
  return { ok: status === 0, found: error === undefined, output: `${stdout ?? ''}${stderr ?? ''}` }
}

function missingCompiler(): string[] {
  // CMake's order; CXX may carry flags.
  const [chosen, ...flags] = (process.env.CXX ?? '').split(' ').filter(Boolean)
  const candidates = chosen ? [chosen] : ['c++', 'g++', 'clang++']
  const compiler = candidates.find((candidate) => run(candidate, ['--version']).found)
  if (compiler === undefined) {
    return [
      chosen
        ? `a C++ compiler: CXX names ${chosen}, which cannot be started`
        : `a C++ compiler (${candidates.join(', ')})`,
    ]
  }
  const { ok, output } = run(compiler, [...flags, '-std=c++20', '-fsyntax-only', '-x', 'c++', '-'], probe)
  if (ok) return []
  const reason = output.split('\n').find((line) => line.includes('error')) ?? output.split('\n')[0]
  return [`a compiler of C++20 with its standard library (GCC 11, Clang 14 or later): ${compiler} says: ${reason}`]
}

function missingCmake(): string[] {
  const { found, output } = run('cmake', ['--version'])
  const wanted = `CMake ${oldestCmake.join('.')} or later`
  if (!found) return [`${wanted} (cmake)`]
  const [, major, minor] = /version (\d+)\.(\d+)/.exec(output) ?? []
  const [oldestMajor, oldestMinor] = oldestCmake
  const enough = Number(major) > oldestMajor || (Number(major) === oldestMajor && Number(minor) >= oldestMinor)
  return enough ? [] : [`${wanted}: cmake is ${major}.${minor}`]
}

function missingBuilder(): string[] {
  return ['ninja', 'make', 'mingw32-make'].some((program) => run(program, ['--version']).found) ? [] : ['make or ninja']
}

/** What is missing of the package's own files: someone may have removed sources to save space. */
function missingSources(packageRoot: string): string[] {
  const files = ['native/CMakeLists.txt', 'scripts/build-native.cjs']
  return files.filter((file) => !existsSync(join(packageRoot, file))).map((file) => `the package's ${file}`)
}

/** Node-API's headers and their C++ wrapper, as seen from the folder whose node_modules has them. */
export function missingHeaders(resolve: (file: string) => string): string[] {
  const headers = { 'node-api-headers': 'include/node_api.h', 'node-addon-api': 'napi.h' }
  return Object.entries(headers).flatMap(([name, file]) => {
    try {
      return existsSync(join(resolve(`${name}/package.json`), '..', file))
        ? []
        : [`Node headers: ${name} has no ${file}`]
    } catch {
      return [`Node headers (the npm package ${name})`]
    }
  })
}

/** Everything that a build would stop at for want of; empty: it can begin. */
export function missingForBuild(packageRoot: string): string[] {
  return [...missingSources(packageRoot), ...missingCompiler(), ...missingCmake(), ...missingBuilder()]
}

/** For people: what is missing, and how to get it on this system. */
export function describeMissing(missing: readonly string[]): string {
  const how = installation[process.platform]
  return `the addon cannot be compiled here, missing:\n${missing.map((item) => `  - ${item}\n`).join('')}${how ? `${how}\n` : ''}`
}
