/** Servers in processes of their own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request } from './client.ts'

export interface ServerProcess {
  readonly name: string
  /** `http://127.0.0.1:…`, without a slash at its end. */
  readonly url: string
  readonly pid: number
  /** Asks it to end, and waits: its exit code, or the signal that ended it. */
  stop(): Promise<number | NodeJS.Signals | null>
}

const readyWithinMs = 600_000

/**
 * Starts a server, and waits until it answers 200 at `probe`.
 * @param args Of Node. It prints its address, as `http://host:port`.
 * @param probe A path that answers 200 once a model is loaded.
 */
export async function startServer(name: string, args: readonly string[], probe: string): Promise<ServerProcess> {
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  // It does not outlive whoever started it, however that ends.
  process.once('exit', () => child.kill('SIGKILL'))
  try {
    const url = await printedAddress(name, child)
    for (const start = performance.now(); ; ) {
      const { status } = await request(url + probe, undefined)
      if (status === 200) break
      if (performance.now() - start > readyWithinMs) throw new Error(`${name}: not ready: ${probe} answers ${status}`)
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    return { name, url, pid: child.pid as number, stop: () => stop(child) }
  } catch (error) {
    child.kill('SIGKILL')
    throw error
  }
}

function printedAddress(name: string, child: ChildProcess): Promise<string> {
  let output = ''
  return new Promise((resolve, reject) => {
    const take = (text: string): void => {
      // What is printed later is read, so that the server can go on printing, and forgotten but for its end.
      output = (output + text).slice(-4000)
      const address = /http:\/\/[\w.[\]:]+:\d+/.exec(output)?.[0]
      if (address !== undefined) resolve(address)
    }
    for (const stream of [child.stdout, child.stderr]) stream?.setEncoding('utf8').on('data', take)
    child.once('error', reject)
    child.once('exit', (code, signal) => reject(new Error(`${name} ended (${signal ?? code}):\n${output}`)))
  })
}

async function stop(child: ChildProcess): Promise<number | NodeJS.Signals | null> {
  if (child.exitCode === null && child.signalCode === null) {
    child.kill('SIGTERM')
    const late = setTimeout(() => child.kill('SIGKILL'), 30_000)
    await once(child, 'exit')
    clearTimeout(late)
  }
  return child.signalCode ?? child.exitCode
}

/** Resident memory of a process in bytes, as Linux counts it. */
export function residentBytes(pid: number): number {
  const kib = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kib) * 1024
}
