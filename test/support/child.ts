/**
 * Child processes and workers, for hazards that end one. They cannot run TypeScript on every Node version that we support, so they
 * import dist/, compiled here when lib/ is newer.
 */

import { execFile, spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder of package.json. */
export const packageRoot: string = fileURLToPath(new URL('../../', import.meta.url))

/** Makes dist/ what lib/ says. */
export function compileLibrary(): void {
  const script = join(packageRoot, 'scripts/build-js.mjs')
  const result = spawnSync(process.execPath, [script], { encoding: 'utf8' })
  if (result.status !== 0) throw new Error(`${script} failed:\n${result.stdout}${result.stderr}`)
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
  { nodeArgs = [] as readonly string[], timeout = 100_000, env = {} as Readonly<Record<string, string>> } = {},
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
