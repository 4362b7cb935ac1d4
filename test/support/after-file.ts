/**
 * What support modules do when a test file is done. `afterAll` at their top would do it for the first file alone where one process runs
 * several (--no-isolate, scripts/test-addon.mjs): modules are evaluated once there. test/support/setup.ts is evaluated for each file.
 */

const closings: (() => unknown)[] = []

/** `close` runs after each test file of this process, when its own hooks have run. */
export function afterFile(close: () => unknown): void {
  closings.push(close)
}

export async function closeFile(): Promise<void> {
  for (const close of closings) await close()
}
