/**
 * Child processes and workers, for hazards that end one. They cannot run TypeScript on every Node version that we support, so they
 * import dist/, compiled here when lib/ is newer.
 */

import { execFile, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of package.json. */
export const packageRoot: string = fileURLToPath(new URL('../../', import.meta.url))

function newest(folder: string): number {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .reduce((latest, entry) => Math.max(latest, statSync(join(entry.parentPath, entry.name)).mtimeMs), 0)
}

/** Makes dist/ what lib/ says. */
export function compileLibrary(): void {
  const compiled = join(packageRoot, 'dist/index.js')
  if (existsSync(compiled) && statSync(compiled).mtimeMs > newest(join(packageRoot, 'lib'))) return
  const tsc = join(packageRoot, 'node_modules/typescript/bin/tsc')
  const result = spawnSync(process.execPath, [tsc, '-p', join(packageRoot, 'tsconfig.json')], { encoding: 'utf8' })
  if (result.status !== 0) throw new Error(`tsc failed:\n${result.stdout}${result.stderr}`)
}

export interface ChildResult {
  /** Null where a signal ended it. */
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
  readonly milliseconds: number
}

export function childPath(name: string): string {
  return join(packageRoot, 'test/lifecycle/children', name)
}

/** Runs a script of lifecycle/children; a child that hangs is killed after `timeout` and reports SIGKILL. */
export function runChild(
  script: string,
  args: readonly string[] = [],
  { nodeArgs = [] as readonly string[], timeout = 30_000, env = {} as Readonly<Record<string, string>> } = {},
): Promise<ChildResult> {
  const start = performance.now()
  return new Promise((resolve) => {
    const child = execFile(
      process.execPath,
      [...nodeArgs, childPath(script), ...args],
      { timeout, killSignal: 'SIGKILL', env: { ...process.env, ...env } },
      (_error, stdout, stderr) => {
        resolve({
          code: child.exitCode,
          signal: child.signalCode,
          stdout,
          stderr,
          milliseconds: performance.now() - start,
        })
      },
    )
  })
}
