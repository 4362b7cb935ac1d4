/** The command as users run it: a process of its own, from dist/. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { join } from 'node:path'
import { packageRoot } from '../support/child.ts'

export interface CliResult {
  /** Null where a signal ended it. */
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export interface CliOptions {
  /** Written to standard input, which is then closed. Default: nothing. */
  readonly input?: string
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
}

export const bundledModel: string = join(packageRoot, 'models/tiny-q4_0.gguf')
export const tinyModel: string = join(packageRoot, 'test/fixtures/tiny-model/hf')
export const evalText: string = join(packageRoot, 'test/fixtures/tiny-model/eval.txt')

/** Starts the command; standard input stays open. */
export function startCli(args: readonly string[], { cwd, env }: CliOptions = {}): ChildProcessWithoutNullStreams {
  const child = spawn(process.execPath, [join(packageRoot, 'dist/cli/main.js'), ...args], {
    cwd,
    env: { ...process.env, ...env },
  })
  child.stdout.setEncoding('utf8')
  child.stderr.setEncoding('utf8')
  return child
}

/** Waits for the end; one that hangs is killed and reports SIGKILL. */
export function finished(child: ChildProcessWithoutNullStreams): Promise<CliResult> {
  const output = { stdout: '', stderr: '' }
  child.stdout.on('data', (text: string) => {
    output.stdout += text
  })
  child.stderr.on('data', (text: string) => {
    output.stderr += text
  })
  const timer = setTimeout(() => child.kill('SIGKILL'), 100_000)
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      resolve({ code, signal, ...output })
    })
  })
}

/** Runs the command to its end. */
export async function runCli(args: readonly string[], options: CliOptions = {}): Promise<CliResult> {
  const child = startCli(args, options)
  // A command that ends without reading leaves a closed pipe.
  child.stdin.on('error', () => {})
  child.stdin.end(options.input ?? '')
  return await finished(child)
}

/** Every line of JSON Lines, parsed. */
export function jsonLines<T>(text: string): T[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as T)
}
