/** What only a terminal shows: progress, colours, the chat's prompt and its keys. util-linux's `script` plays the terminal. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { afterEach, beforeAll, describe, expect, test } from 'vitest'
import { compileLibrary, packageRoot } from '../support/child.ts'
import { bundledModel, evalText } from './cli.ts'

beforeAll(compileLibrary)

/** The command at a terminal; everything it shows, and keys for it. */
class Terminal {
  #shown = ''
  readonly #child: ChildProcessWithoutNullStreams
  readonly #closed: Promise<number | null>

  constructor(args: string, env: NodeJS.ProcessEnv = {}) {
    // Without `exec` a shell may stay between: dash then reports the Ctrl-C that its child took well as its own end.
    const command = `exec "${process.execPath}" dist/cli/main.js ${args}`
    this.#child = spawn('script', ['--quiet', '--return', '--flush', '--command', command, '/dev/null'], {
      cwd: packageRoot,
      // Node takes the terminal of an unknown CI for one without colours.
      env: { ...process.env, TERM: 'xterm-256color', NO_COLOR: undefined, CI: undefined, ...env },
    })
    this.#child.stdout.setEncoding('utf8').on('data', (text: string) => {
      // Escape, made visible.
      this.#shown += text.replaceAll('\x1b', '␛')
    })
    this.#closed = new Promise((resolve, reject) => {
      this.#child.on('error', reject)
      this.#child.on('close', (code) => resolve(code))
    })
  }

  /** What is shown after the place that `pattern` matches, once it does; what was shown before is gone. */
  async until(pattern: RegExp): Promise<string> {
    const deadline = performance.now() + 20_000
    for (;;) {
      const match = pattern.exec(this.#shown)
      if (match) {
        const end = match.index + match[0].length
        const shown = this.#shown.slice(0, end)
        this.#shown = this.#shown.slice(end)
        return shown
      }
      if (performance.now() > deadline) throw new Error(`expected ${pattern}, saw ${JSON.stringify(this.#shown)}`)
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }

  type(keys: string): void {
    this.#child.stdin.write(keys)
  }

  /** Everything not yet taken, and the status, at the end. */
  async end(): Promise<{ shown: string; status: number | null }> {
    const status = await this.#closed
    return { shown: this.#shown, status }
  }

  kill(): void {
    this.#child.kill('SIGKILL')
  }
}

const open: Terminal[] = []
afterEach(() => {
  for (const terminal of open.splice(0)) terminal.kill()
})

function start(args: string, env: NodeJS.ProcessEnv = {}): Terminal {
  const terminal = new Terminal(args, env)
  open.push(terminal)
  return terminal
}

// Elsewhere `script` has other options.
describe.runIf(process.platform === 'linux')('at a terminal', () => {
  const prompt = /␛\[1m␛\[36m> ␛\[39m␛\[22m\S*/

  test('loading shows progress and takes it back; the text begins with the prompt', async () => {
    const terminal = start('generate "Once upon a time" --temperature 0 -n 8')
    const { shown, status } = await terminal.end()
    expect(status).toBe(0)
    expect(shown).toMatch(/\rloading the bundled model {2}[█░]{24} {2}\d+ %.*␛\[K\r␛\[K/)
    expect(shown).toMatch(/␛\[1mOnce upon a time␛\[22m[\s\S]*␛\[2mprompt \d+ tokens/)
  })

  test('NO_COLOR leaves the colours out', async () => {
    const { shown } = await start(`inspect ${bundledModel}`, { NO_COLOR: '1' }).end()
    expect(shown).toContain('Configuration')
    expect(shown).not.toContain('␛[1m')
    expect((await start(`inspect ${bundledModel}`).end()).shown).toContain('␛[1mConfiguration␛[22m')
  })

  test('a prompt that is missing is not waited for', async () => {
    const { shown, status } = await start('generate').end()
    expect(status).toBe(2)
    expect(shown).toMatch(/expected a prompt[\s\S]*--file/)
  })

  test.each([
    ['perplexity', `perplexity ${evalText} --stride 4`, /reading .*%/],
    ['bench', 'bench --threads 1 --prefill 512 --decode 512 --repeat 1000', /measuring .*%/],
  ])('Ctrl-C ends %s with status 130 and no result', async (_command, args, started) => {
    const terminal = start(args)
    await terminal.until(started)
    terminal.type('\x03')
    const { shown, status } = await terminal.end()
    expect(status).toBe(130)
    expect(shown).not.toMatch(/perplexity \d|tokens\/s +best|error/)
  })

  test('chat: Tab completes, Ctrl-C stops an answer and clears a line, Ctrl-D leaves', async () => {
    const terminal = start('chat --seed 3 --stop-tokens 0')
    await terminal.until(prompt)
    terminal.type('/st\t')
    await terminal.until(/\/stats/)
    terminal.type('\r')
    await terminal.until(/no answer yet/)
    await terminal.until(prompt)
    terminal.type('Tell me a long story.\r')
    // The first words of the answer, after the line's echo and what leaves the editor.
    await terminal.until(/story\.[\s\S]*␛\[\?2004l[\s\S]*[a-z]{2} /)
    terminal.type('\x03')
    await terminal.until(/ended: abort/)
    await terminal.until(prompt)
    terminal.type('half a line\x03')
    await terminal.until(/Ctrl-C again, or Ctrl-D, leaves/)
    await terminal.until(prompt)
    terminal.type('\x04')
    expect((await terminal.end()).status).toBe(0)
  })
})
