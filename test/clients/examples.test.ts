/** The examples do what they say, each in a process of its own. */

import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, test } from 'vitest'
import { parseAllDocuments } from 'yaml'
import { request } from '../../benchmarks/serve/client.ts'
import { startServer } from '../../benchmarks/serve/processes.ts'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { frameworkExamples } from '../support/examples.ts'

beforeAll(compileLibrary)

const folder = join(packageRoot, 'examples')
const servers = [
  ['fastify.mjs', ''],
  ['express.mjs', '/llm'],
  ['hono.mjs', ''],
] as const
const programs = ['ai-sdk.mjs', 'langchain.mjs']

test('each example of a framework is run here', () => {
  expect([...servers.map(([name]) => name), ...programs].sort()).toEqual(frameworkExamples)
})

test.each(servers)('%s answers a streamed chat, and ends when asked to', async (name, prefix) => {
  process.env.PORT = '0'
  const server = await startServer(name, [join(folder, name)], '/')
  const answer = await request(`${server.url}${prefix}/v1/chat/completions`, {
    model: 'gemma',
    messages: [{ role: 'user', content: 'Who came to the door?' }],
    max_tokens: 8,
    ignore_eos: true,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  })
  expect(answer).toMatchObject({ status: 200, done: true, tokens: 8, finishReason: 'length' })
  expect(answer.text).not.toBe('')
  expect(await server.stop()).toBe(0)
})

test.each(programs)('%s prints an answer', async (name) => {
  const child = spawn(process.execPath, [join(folder, name)], { stdio: ['ignore', 'pipe', 'pipe'] })
  let [output, errors] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text
  })
  const code = await new Promise((resolve) => child.once('exit', resolve))
  expect({ code, errors }).toEqual({ code: 0, errors: '' })
  expect(output.length).toBeGreaterThan(20)
})

interface Manifest {
  readonly apiVersion: string
  readonly kind: string
  readonly metadata: { readonly name: string }
  readonly spec: Record<string, never>
}

test('the manifests of Kubernetes name each other, and paths that the server has', () => {
  const text = readFileSync(join(folder, 'deploy/kubernetes.yaml'), 'utf8')
  const documents = parseAllDocuments(text)
  expect(documents.flatMap(({ errors }) => errors)).toEqual([])
  const manifests = documents.map((document) => document.toJS() as Manifest)
  expect(manifests.map(({ kind }) => kind)).toEqual(['Deployment', 'Service', 'InferencePool', 'HTTPRoute'])
  const deployment = manifests[0]!.spec as unknown as {
    selector: { matchLabels: Record<string, string> }
    template: {
      metadata: { labels: Record<string, string> }
      spec: {
        terminationGracePeriodSeconds: number
        containers: {
          args: string[]
          ports: { containerPort: number }[]
          readinessProbe: { httpGet: { path: string } }
          livenessProbe: { httpGet: { path: string } }
        }[]
      }
    }
  }
  const { labels } = deployment.template.metadata
  const container = deployment.template.spec.containers[0]!
  expect(deployment.selector.matchLabels).toEqual({ app: labels.app })
  expect(container.readinessProbe.httpGet.path).toBe('/ready')
  expect(container.livenessProbe.httpGet.path).toBe('/health')
  // The deadline of the server ends before that of Kubernetes.
  const deadline = Number(container.args[container.args.indexOf('--close-deadline') + 1])
  expect(deployment.template.spec.terminationGracePeriodSeconds).toBeGreaterThan(deadline + 5)
  const pool = manifests[2]!.spec as unknown as {
    selector: { matchLabels: Record<string, string> }
    targetPorts: { number: number }[]
  }
  expect(pool.selector.matchLabels).toEqual({ app: labels.app })
  expect(pool.targetPorts[0]?.number).toBe(container.ports[0]?.containerPort)
})
