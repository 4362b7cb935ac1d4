/** `npm run soak`: 20,000 requests against `lapidary serve` with the bundled model, on the loopback interface. */
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Command } from 'commander'
import { Device } from 'lapidary'
import { grewTooMuch, soak } from './soak.ts'

const options = new Command('soak')
  .description('Fails unless every healthy request is answered, memory stays flat, and nothing is left behind.')
  .option('--requests <count>', 'requests in all', '20000')
  .option('--concurrency <count>', 'requests at once', '24')
  .option('--seed <number>', 'of what is sent', '1')
  .option('--threads <count>', 'of the server (default: physical cores)')
  .option('--json <file>', 'write the report as JSON')
  .parse()
  .opts<{ requests: string; concurrency: string; seed: string; threads?: string; json?: string }>()

// With AMX a row of quantised weights depends on how many rows a step has: answers would not be alike.
using device = await Device.open('cpu', { threads: 1 })
const isa = device.info().isas.findLast(({ name, active }) => active && !name.startsWith('amx'))?.name
const server = [fileURLToPath(new URL('../../../dist/cli/main.js', import.meta.url)), 'serve', '--port', '0']
if (isa !== undefined) server.push('--isa', isa)
if (options.threads !== undefined) server.push('--threads', options.threads)

const report = await soak({
  requests: Number(options.requests),
  concurrency: Number(options.concurrency),
  seed: Number(options.seed),
  server,
  onProgress: (done, resident) => console.error(`${done} requests, ${resident.toFixed(1)} MiB resident`),
})
if (options.json) writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`)

const { requests, seconds, kinds, residentMiB, growthPercent, violations, violationCount } = report
const counts = Object.entries(kinds).map(([kind, count]) => `${count} ${kind}`)
console.log(`${requests} requests in ${seconds.toFixed(0)} s: ${counts.join(', ')}`)
console.log(
  `resident memory ${residentMiB.map((mib) => mib.toFixed(0)).join(' ')} MiB: ${growthPercent.toFixed(2)} % growth`,
)
for (const violation of violations) console.log(`violation: ${violation}`)
const failed = violationCount > 0 || grewTooMuch(report)
console.log(failed ? `failed: ${violationCount} violations` : 'passed')
if (failed) process.exitCode = 1
