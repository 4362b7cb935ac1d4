#!/usr/bin/env node
/**
 * The `lapidary` command: parses, calls, prints. Commands that need the addon import it when they run, so that `build` works
 * where it is missing.
 * @module
 */
import { Command } from 'commander'
import { buildFromSource, packageManifest } from './build.ts'

const program = new Command('lapidary').description('Gemma models in Node.js').version(packageManifest().version)

program
  .command('build')
  .description('compile the native addon from source (needs a C++20 compiler and CMake)')
  .action(() => {
    process.exitCode = buildFromSource()
  })

program
  .command('devices')
  .description('list the devices of this machine and their instruction sets')
  .option('--json', 'print JSON')
  .action(async (options: { json?: boolean }) => {
    const { describeDevices } = await import('./devices.ts')
    process.stdout.write(await describeDevices(options.json === true))
  })

try {
  await program.parseAsync()
} catch (error) {
  process.stderr.write(`lapidary: ${error instanceof Error ? error.message : String(error)}\n`)
  process.exitCode = 1
}
