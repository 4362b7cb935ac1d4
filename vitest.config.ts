import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { defineConfig } from 'vitest/config'

// Test files run in forked processes. LAPIDARY_TEST_NODE replaces the program they run in, so that a suite can run on another
// Node, also an emulated one (scripts/test-arm64.mjs), while Vitest itself stays here.
if (process.env.LAPIDARY_TEST_NODE) process.execPath = process.env.LAPIDARY_TEST_NODE

export default defineConfig({
  // Runs against several builds may go on side by side, and each remembers how long its files take.
  cacheDir: join(process.env.LAPIDARY_PREBUILD ?? 'node_modules', '.vite'),
  test: {
    include: ['test/**/*.test.ts'],
    setupFiles: ['test/support/setup.ts'],
    pool: 'forks',
    // References are plain loops on one thread, and much else waits for child processes: one file at a time would leave cores idle.
    // More than four files at once would only take each other's: the devices under test have threads of their own.
    maxWorkers: Math.min(availableParallelism(), 4),
    // For what hangs, not for what is slow: .ci/run builds and tests other things at the same time.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
})
