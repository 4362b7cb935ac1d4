/**
 * XGrammar (Dong et al. 2024, arXiv:2411.15100): which tokens may follow, by a pushdown automaton over the vocabulary. The library is
 * WebAssembly; this is the only file that knows how it is loaded.
 * @module
 */
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { compileFunction } from 'node:vm'
import type * as Library from '@mlc-ai/web-xgrammar'
import { LapidaryError } from '../errors.ts'

/** A matcher: the state of one text. */
export interface Matcher {
  /** A bit per token, in memory of WebAssembly: valid until the next call of the library. */
  mask(): Int32Array
  acceptToken(id: number): boolean
  isTerminated(): boolean
  dispose(): void
}

/** An instance of the library: a memory of its own. */
export interface XGrammar {
  readonly Grammar: typeof Library.Grammar
  readonly TokenizerInfo: typeof Library.TokenizerInfo
  readonly GrammarCompiler: typeof Library.GrammarCompiler
  /** Begins a text, at once: what the library offers is a promise, although it never waits. */
  matcher(compiled: Library.CompiledGrammar): Matcher
  /** What it has complained of since it was last asked. */
  takeComplaints(): string
}

// The file says it is an ES module but is CommonJS, which Node can neither import nor require. It is compiled here, with changes: what it
// needs of Node is required rather than imported; complaints are kept rather than printed; and two functions are added, since its own are
// asynchronous where a step of the engine cannot wait.
const changes: readonly (readonly [from: string, to: string])[] = [
  ["await import('module')", "require('module')"],
  ['binding = await Module();', 'binding = await Module({ print: complain, printErr: complain });'],
  [
    'exports.CompiledGrammar = CompiledGrammar;',
    `exports.matcher = (compiled) => {
      const vocabularySize = compiled.tokenizerInfo().getVocabSize()
      const handle = new binding.GrammarMatcher(compiled.handle, undefined, false, -1)
      let vector
      return {
        mask() {
          vector?.delete()
          vector = handle.GetNextTokenBitmask(vocabularySize)
          return binding.vecIntToView(vector)
        },
        acceptToken: (id) => handle.AcceptToken(id, false),
        isTerminated: () => handle.IsTerminated(),
        dispose() {
          vector?.delete()
          handle.delete()
        },
      }
    }
    exports.CompiledGrammar = CompiledGrammar;`,
  ],
]
const parameters = ['exports', 'module', 'require', '__filename', '__dirname', 'complain']

let compiled: Promise<(complain: (text: string) => void) => object> | undefined

/** A new instance. @throws ERR_INTERNAL if the installed version is not the one this was made for. */
export async function openXGrammar(): Promise<XGrammar> {
  compiled ??= compile()
  const complaints: string[] = []
  const exported = (await compiled)((text) => complaints.push(text))
  return Object.assign(exported as Omit<XGrammar, 'takeComplaints'>, {
    takeComplaints: () => complaints.splice(0).join(' '),
  })
}

async function compile(): Promise<(complain: (text: string) => void) => object> {
  const require = createRequire(import.meta.url)
  const file = require.resolve('@mlc-ai/web-xgrammar')
  let source = await readFile(file, 'utf8')
  for (const [from, to] of changes) {
    if (!source.includes(from)) {
      throw new LapidaryError('ERR_INTERNAL', `${file}: expected version 0.1.27 of @mlc-ai/web-xgrammar`)
    }
    source = source.replace(from, () => to)
  }
  const run = compileFunction(source, parameters, { filename: file })
  return (complain) => {
    const exported = {}
    run(exported, { exports: exported }, createRequire(file), file, dirname(file), complain)
    return exported
  }
}
