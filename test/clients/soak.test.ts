/** The soak test, short; the whole one is `npm run soak`. What it finds in memory needs more requests than this. */

import { join } from 'node:path'
import { beforeAll, expect, test } from 'vitest'
import { openLoop, percentiles, summarizeLoad, uniform } from '../../benchmarks/serve/measure.ts'
import { soak } from '../../benchmarks/soak/soak.ts'
import { exactIsa } from '../engine/models.ts'
import { compileLibrary, packageRoot } from '../support/child.ts'

beforeAll(compileLibrary)

test('500 requests, among them aborted, cut, bad and slow ones, leave nothing behind', async () => {
  const report = await soak({
    requests: 500,
    concurrency: 24,
    seed: 7,
    server: [join(packageRoot, 'dist/cli/main.js'), 'serve', '--port', '0', '--threads', '1', '--isa', exactIsa],
  })
  expect(report.violations).toEqual([])
  expect(report.requests).toBe(500)
  expect(Math.min(...Object.values(report.kinds))).toBeGreaterThan(5)
  expect(report.residentMiB).toHaveLength(20)
  expect(report.residentMiB.every((mib) => mib > 10)).toBe(true)
}, 120_000)

test('a server that does what it must not is found out', async () => {
  // Answers everything with the same completion: what is wrong too, and each request alike.
  const script = `
    const http = require('node:http')
    const gauges = ['num_requests_running', 'num_requests_waiting', 'kv_cache_usage_perc']
    let asked = 0
    http.createServer((request, response) => {
      if (request.url === '/metrics') return response.end(gauges.map((name) => 'lapidary:' + name + ' 0').join('\\n'))
      request.resume().on('end', () => {
        response.setHeader('content-type', 'application/json')
        response.end(JSON.stringify({ choices: [{ text: String(asked++) }], usage: {} }))
      })
    }).listen(0, '127.0.0.1', function () { console.log('http://127.0.0.1:' + this.address().port) })
    process.on('SIGTERM', () => process.exit(3))`
  const report = await soak({ requests: 40, concurrency: 4, seed: 1, server: ['-e', script] })
  const all = report.violations.join('\n')
  expect(all).toMatch(/streamed: expected a whole answer/)
  expect(report.violationCount).toBeGreaterThan(20)
})

test('percentiles by the nearest rank; uniform numbers', () => {
  const values = Array.from({ length: 200 }, (_, index) => 200 - index)
  expect(percentiles(values)).toEqual({ p50: 100, p95: 190, p99: 198 })
  expect(percentiles([7])).toEqual({ p50: 7, p95: 7, p99: 7 })
  const random = uniform(1)
  const drawn = Array.from({ length: 10_000 }, random)
  expect(Math.min(...drawn)).toBeGreaterThanOrEqual(0)
  expect(Math.max(...drawn)).toBeLessThan(1)
  // The mean of so many has a standard deviation of 1 / √(12 · 10,000).
  expect(Math.abs(drawn.reduce((a, b) => a + b) / 10_000 - 0.5)).toBeLessThan(6 / Math.sqrt(120_000))
})

test('an open loop counts from when a request was due, and only whole answers', async () => {
  const samples = await openLoop({ url: 'http://127.0.0.1:1/none', requests: 3, body: () => ({}) }, 1000, 1)
  const summary = summarizeLoad([samples], 4)
  expect(summary).toMatchObject({ requests: 3, failed: 3, requestsPerSecond: 0 })
  const answer = { ...samples[0]!.answer, status: 200, done: true, tokens: 4, times: [130, 140, 150, 160], end: 170 }
  const [one, two] = [
    { due: 100, answer },
    { due: 120, answer },
  ]
  expect(summarizeLoad([[one!], [two!]], 4)).toMatchObject({
    failed: 0,
    requestsPerSecond: 2 / (0.07 + 0.05),
    firstToken: { p50: 10, p95: 30 },
    perToken: { p50: 10 },
    endToEnd: { p50: 50, p95: 70 },
  })
})
