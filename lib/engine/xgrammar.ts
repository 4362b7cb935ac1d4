/**
 * XGrammar (Dong et al. 2024, arXiv:2411.15100): JSON schemas and EBNF, checked and brought into one form. It runs on a thread of its own:
 * a large schema takes it a second, and a wrong one breaks it. This is the only file that knows how it is loaded.
 * @module
 */
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { Worker } from 'node:worker_threads'
import { LapidaryError } from '../errors.ts'

/** What XGrammar reads. */
export type XGrammarSource =
  | { readonly kind: 'json' }
  | { readonly kind: 'ebnf'; readonly text: string }
  | { readonly kind: 'schema'; readonly text: string; readonly strict: boolean }

type Answer = { readonly ebnf: string } | { readonly complaint: string } | { readonly unusable: string }

interface Job {
  readonly source: XGrammarSource
  readonly resolve: (ebnf: string) => void
  readonly reject: (error: unknown) => void
}

/** Milliseconds that a source may take. The largest that are taken need a second or two. */
const patience = 30_000

/**
 * The thread's program. The library's file says it is an ES module but is CommonJS, which Node can neither import nor require: it is compiled
 * here, with changes, so that what it needs of Node is required rather than imported, and complaints are kept rather than printed.
 */
const program = `
const { createRequire } = require('node:module')
const { dirname } = require('node:path')
const { compileFunction } = require('node:vm')
const { parentPort, workerData } = require('node:worker_threads')

const parameters = ['exports', 'module', 'require', '__filename', '__dirname', 'complain']
// Deno's threads have some of these, by which the library would take them for a browser's.
const browser = ['document', 'location', 'window', 'importScripts']
const run = compileFunction(workerData.source, [...parameters, ...browser], { filename: workerData.file })
let complaints = []
let library

async function open() {
  const module = { exports: {} }
  const { file } = workerData
  run(module.exports, module, createRequire(file), file, dirname(file), (text) => complaints.push(text))
  // It is loaded when it is first asked for something.
  const grammar = await module.exports.Grammar.builtinJSONGrammar()
  grammar.dispose()
  return module.exports
}

async function grammarOf({ kind, text, strict }) {
  const { Grammar } = library
  if (kind === 'json') return Grammar.builtinJSONGrammar()
  if (kind === 'ebnf') return Grammar.fromEBNF(text)
  // One space after a colon or comma, none elsewhere: what costs the fewest tokens. -1 is no indentation; undefined would be 2.
  return Grammar.fromJSONSchema(text, false, -1, undefined, strict)
}

parentPort.on('message', async (source) => {
  try {
    library ??= await open()
  } catch (error) {
    parentPort.postMessage({ unusable: String(error) })
    return
  }
  complaints = []
  try {
    const grammar = await grammarOf(source)
    const ebnf = grammar.toString()
    grammar.dispose()
    parentPort.postMessage({ ebnf })
  } catch {
    // Where it complains it gives up, and its instance with it.
    library = undefined
    parentPort.postMessage({ complaint: complaints.join(' ') || 'it is nested too deeply or too large' })
  }
})
`

const changes: readonly (readonly [from: string, to: string])[] = [
  ["await import('module')", "require('module')"],
  ['binding = await Module();', 'binding = await Module({ print: complain, printErr: complain });'],
]

let source: Promise<{ readonly source: string; readonly file: string }> | undefined
let worker: Worker | undefined
/** The first is in the thread's hands. */
const jobs: Job[] = []
let timer: NodeJS.Timeout | undefined

/**
 * The grammar in EBNF: simple rules, of which `root` is the first.
 * @throws (rejects) ERR_INVALID_ARGUMENT for a source that is wrong or takes too long, ERR_INTERNAL if the installed version is not the one
 *   this was made for.
 */
export async function toEbnf(from: XGrammarSource): Promise<string> {
  source ??= read()
  const workerData = await source
  return await new Promise((resolve, reject) => {
    jobs.push({ source: from, resolve, reject })
    if (jobs.length === 1) begin(workerData)
  })
}

/** Hands the first job to the thread, which is started if need be. It keeps the process alive only while it works. */
function begin(workerData: { readonly source: string; readonly file: string }): void {
  const [job] = jobs
  if (!job) {
    worker?.unref()
    return
  }
  /** The job is done with, and the next one begins. */
  const end = (settled: (job: Job) => void): void => {
    clearTimeout(timer)
    const ended = jobs.shift()
    if (ended) settled(ended)
    begin(workerData)
  }
  const lose = (lost: Worker | undefined, error: LapidaryError): void => {
    if (worker !== lost) return
    worker = undefined
    void lost?.terminate()
    end(({ reject }) => reject(error))
  }
  try {
    worker ??= open(workerData, end, lose)
  } catch (cause) {
    const problem = `grammar: a thread could not be started: ${(cause as Error).message}`
    lose(undefined, new LapidaryError('ERR_INTERNAL', problem, { cause }))
    return
  }
  const busy = worker
  busy.ref()
  timer = setTimeout(() => lose(busy, invalid(`it takes longer than ${patience / 1000} s to understand`)), patience)
  busy.postMessage(job.source)
}

function open(
  workerData: { readonly source: string; readonly file: string },
  end: (settled: (job: Job) => void) => void,
  lose: (lost: Worker, error: LapidaryError) => void,
): Worker {
  const opened = new Worker(program, { eval: true, workerData, execArgv: [] })
  opened.on('message', (answer: Answer) => end((job) => settle(job, answer)))
  // Out of memory, for one.
  opened.on('error', (cause) => lose(opened, invalid(`it cannot be understood: ${cause.message}`, cause)))
  opened.on('exit', () => lose(opened, invalid('it cannot be understood')))
  return opened
}

function settle({ resolve, reject }: Job, answer: Answer): void {
  if ('ebnf' in answer) resolve(answer.ebnf)
  else if ('unusable' in answer) reject(new LapidaryError('ERR_INTERNAL', `grammar: ${answer.unusable}`))
  else {
    // `[FATAL] file:line: what is wrong`
    const problem = answer.complaint.replace(/^\[FATAL\] \S+:\d+: (?:Check failed: .*? is false: )?/, '')
    reject(invalid(problem.replace(/\s*Aborted\(.*$/, '').slice(0, 300) || 'it cannot be understood'))
  }
}

function invalid(problem: string, cause?: unknown): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `grammar: ${problem}`, { cause })
}

async function read(): Promise<{ source: string; file: string }> {
  const file = createRequire(import.meta.url).resolve('@mlc-ai/web-xgrammar')
  let text = await readFile(file, 'utf8')
  for (const [from, to] of changes) {
    if (!text.includes(from)) {
      throw new LapidaryError('ERR_INTERNAL', `${file}: expected version 0.1.27 of @mlc-ai/web-xgrammar`)
    }
    text = text.replace(from, () => to)
  }
  return { source: text, file }
}
