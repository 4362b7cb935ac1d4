import { defineConfig } from 'vitest/config'

// Test files run in forked processes. LAPIDARY_TEST_NODE replaces the program they run in, so that a suite can run on another
// Node, also an emulated one (scripts/test-arm64.mjs), while Vitest itself stays here.
if (process.env.LAPIDARY_TEST_NODE) process.execPath = process.env.LAPIDARY_TEST_NODE

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    pool: 'forks',
    // One file at a time: an op's cases run on a pool of threads that expects the cores for itself.
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
