import { beforeAll, describe, expect, test } from 'vitest'
import { type GrammarSource, Grammars } from '../../lib/engine/grammar.ts'
import { type Expression, readRules } from '../../lib/engine/grammar-rules.ts'
import { GrammarStates, type State } from '../../lib/engine/grammar-states.ts'
import { Tokenizer } from '../../lib/tokenizer/tokenizer.ts'
import {
  ByteAcceptor,
  beyondAscii,
  byte,
  choice,
  digit,
  jsonInteger,
  jsonString,
  type Language,
  later,
  many,
  optional,
  sequence,
  text,
  times,
  unescaped,
} from '../support/byte-acceptor.ts'
import { throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { tokenizerJson } from '../tokenizer/support/gemma.ts'

/** Of the text-only sizes: one token fewer than the tokenizer has. */
const vocabularySize = 262_144

describe('masks over Gemma 3’s vocabulary', () => {
  let tokenizer: Tokenizer
  let grammars: Grammars
  /** What each token adds to a text, found by the way of a reader: decoding it. */
  let texts: (Uint8Array | undefined)[]
  let stops: ReadonlySet<number>

  beforeAll(() => {
    tokenizer = Tokenizer.fromJson(tokenizerJson('gemma3'))
    stops = new Set([tokenizer.eos, tokenizer.endOfTurn as number])
    grammars = new Grammars(tokenizer, vocabularySize, stops)
    const decoder = tokenizer.decoder()
    texts = Array.from({ length: vocabularySize }, (_, id) => {
      const piece = tokenizer.pieceOf(id)
      if (/^<0x[0-9A-F]{2}>$/.test(piece)) return Buffer.from(piece.slice(3, 5), 'hex')
      const decoded = decoder.push(id)
      return decoded === '' ? undefined : Buffer.from(decoded)
    })
  })

  /** At every token of a document, every token is allowed that the acceptor takes, and no other. */
  async function compare(source: GrammarSource, language: Language, document: string): Promise<number> {
    const constraint = (await grammars.compile(source)).begin(tokenizer)
    let acceptor = ByteAcceptor.of(language)
    let compared = 0
    const check = (): void => {
      const wrong: string[] = []
      for (let id = 0; id < vocabularySize; id++) {
        const bytes = texts[id]
        const expected = bytes === undefined ? acceptor.complete && stops.has(id) : acceptor.after(bytes) !== null
        const allowed = ((constraint.mask[id >> 5]! >>> (id & 31)) & 1) === 1
        if (expected !== allowed) wrong.push(`${JSON.stringify(tokenizer.pieceOf(id))} ${allowed}`)
      }
      expect(wrong.slice(0, 10), `after ${compared} tokens of ${document}`).toEqual([])
      compared++
    }
    check()
    for (const id of tokenizer.encode(document, { markers: false })) {
      const over = constraint.accept(id)
      acceptor = acceptor.after(texts[id]!)!
      if (over) break
      check()
    }
    return compared
  }

  const schema = {
    type: 'object',
    properties: {
      name: { type: 'string' },
      age: { type: 'integer', minimum: 0, maximum: 120 },
      tags: { type: 'array', items: { enum: ['a', 'é', '東京'] }, minItems: 1, maxItems: 3 },
      ok: { type: 'boolean' },
    },
    required: ['name', 'age', 'tags'],
  }
  const notB = choice(byte(0, 0x61), byte(0x63, 0x7f), beyondAscii)
  const tag = choice(text('"a"'), text('"é"'), text('"東京"'))
  const age = choice(
    digit,
    sequence(byte(0x31, 0x39), digit),
    sequence(text('1'), choice(text('0'), text('1')), digit),
    text('120'),
  )
  const person = sequence(
    text('{"name": '),
    jsonString,
    text(', "age": '),
    age,
    text(', "tags": ['),
    tag,
    times(sequence(text(', '), tag), 0, 2),
    text(']'),
    optional(sequence(text(', "ok": '), choice(text('true'), text('false')))),
    text('}'),
  )

  test('of a schema', async () => {
    const compared = await compare({ schema }, person, '{"name": "ó\\n", "age": 12, "tags": ["東京"], "ok": true}')
    expect(compared).toBeGreaterThan(20)
  })

  test('merged tokens are among them', async () => {
    const constraint = (await grammars.compile({ schema })).begin(tokenizer)
    const allows = (piece: string): boolean => {
      const id = tokenizer.idOf(piece)!
      return ((constraint.mask[id >> 5]! >>> (id & 31)) & 1) === 1
    }
    expect(['{', '{"', '{}', '"'].map(allows)).toEqual([true, true, false, false])
    constraint.accept(tokenizer.idOf('{"')!)
    constraint.accept(tokenizer.idOf('name')!)
    expect(['"', '":', '",', '"}', 's'].map(allows)).toEqual([true, true, false, false, false])
    constraint.accept(tokenizer.idOf('":')!)
    expect(['▁"', '▁', '▁1', '"'].map(allows)).toEqual([true, true, false, false])
    constraint.accept(tokenizer.idOf('▁"')!)
    expect(['",', '"', 'x', '\\', '"}', '":'].map(allows)).toEqual([true, true, true, true, false, false])
  })

  test('of bounded strings, patterns and nested objects', async () => {
    const bounded = {
      type: 'object',
      properties: { s: { type: 'string', maxLength: 6 }, p: { type: 'string', pattern: '^[a-c]{2,4}-\\d$' } },
      required: ['s', 'p'],
    }
    const language = sequence(
      text('{"s": "'),
      times(unescaped, 0, 6),
      text('", "p": "'),
      times(byte(0x61, 0x63), 2, 4),
      text('-'),
      digit,
      text('"}'),
    )
    await compare({ schema: bounded }, language, '{"s": "né", "p": "abc-7"}')
    const node: object = {
      $defs: { node: { type: 'object', properties: { v: { type: 'integer' }, next: { $ref: '#/$defs/node' } } } },
      $ref: '#/$defs/node',
    }
    const next = (): Language =>
      sequence(
        text('"next": '),
        later(() => tree),
      )
    const tree: Language = choice(
      text('{}'),
      sequence(text('{"v": '), jsonInteger, optional(sequence(text(', '), later(next))), text('}')),
      sequence(text('{'), later(next), text('}')),
    )
    await compare({ schema: node }, tree, '{"v": -10, "next": {"next": {}}}')
  })

  test('of EBNF in which several rules begin alike', async () => {
    const ebnf =
      'root ::= item ("," item)*\nitem ::= word | name | "(" word ")"\nword ::= [a-z]+\nname ::= "x" "é"? | "ab" [^b]{2,3}'
    const word = sequence(byte(0x61, 0x7a), many(byte(0x61, 0x7a)))
    const name = choice(sequence(text('x'), optional(text('é'))), sequence(text('ab'), times(notB, 2, 3)))
    const item = choice(word, name, sequence(text('('), word, text(')')))
    const root = sequence(item, many(sequence(text(','), item)))
    await compare({ ebnf }, root, 'xé,(ab),ab"é')
  })
})

/** Where texts that fit may end, from each place: by trying everything. */
class Trial {
  readonly #rules: ReadonlyMap<string, Expression>
  readonly #bytes: Uint8Array
  readonly #known = new Map<Expression, Map<number, ReadonlySet<number>>>()

  constructor(rules: ReadonlyMap<string, Expression>, bytes: Uint8Array) {
    this.#rules = rules
    this.#bytes = bytes
  }

  ends(from: Expression, start: number): ReadonlySet<number> {
    const known = this.#known.get(from) ?? new Map<number, ReadonlySet<number>>()
    this.#known.set(from, known)
    const ends = known.get(start) ?? this.#find(from, start)
    known.set(start, ends)
    return ends
  }

  #find(from: Expression, start: number): ReadonlySet<number> {
    const value = this.#bytes[start] ?? -1
    switch (from.kind) {
      case 'literal': {
        const fits = from.bytes.every((one, index) => this.#bytes[start + index] === one)
        return new Set(fits ? [start + from.bytes.length] : [])
      }
      case 'class':
        return new Set(from.ranges.some(([low, high]) => value >= low && value <= high) ? [start + 1] : [])
      case 'rule':
        return this.ends(this.#rules.get(from.name)!, start)
      case 'sequence':
        return from.parts.reduce<ReadonlySet<number>>((places, part) => this.#each(places, part), new Set([start]))
      case 'choice':
        return new Set(from.options.flatMap((option) => [...this.ends(option, start)]))
      case 'repeat': {
        const all = new Set<number>(from.least === 0 ? [start] : [])
        let places: ReadonlySet<number> = new Set([start])
        // Nothing is gained by repeating more often than there are bytes.
        for (let count = 1; count <= Math.min(from.most, from.least + this.#bytes.length + 1); count++) {
          places = this.#each(places, from.part)
          if (count >= from.least) for (const place of places) all.add(place)
        }
        return all
      }
    }
  }

  #each(places: ReadonlySet<number>, part: Expression): ReadonlySet<number> {
    return new Set([...places].flatMap((place) => [...this.ends(part, place)]))
  }
}

function randomExpression(random: Random, rules: number, rule: number, depth: number): string {
  const inner = (): string => randomExpression(random, rules, rule, depth - 1)
  switch (depth === 0 ? random.integer(0, 3) : random.integer(0, 7)) {
    case 0:
      return `"${random.pick(['a', 'b', 'ab', 'c', ''])}"`
    case 1:
      return random.pick(['[a-b]', '[bc]', '[^a]'])
    case 2:
      // Any rule after a byte, later ones anywhere: none begins with itself.
      return rule + 1 < rules && random.bits() % 2 === 0
        ? `r${random.integer(rule + 1, rules)}`
        : `("${random.pick(['a', 'b', 'c'])}" ${random.pick(['root', `r${rules - 1}`])})`
    case 3:
      return `(${inner()} ${inner()})`
    case 4:
      return `(${inner()} | ${inner()})`
    case 5:
      return `(${inner()} | "")`
    default:
      return `(${inner()})${random.pick(['*', '+', '?', '{0, 2}', '{2, 3}', '{1,}'])}`
  }
}

test('states are those of the grammar: random ones against trying everything', () => {
  const random = Random.named('grammar states')
  const all = [''].concat(...Array.from({ length: 4 }, (_, index) => stringsOf(index + 1)))
  let accepted = 0
  let grammars = 0
  for (let round = 0; round < 150; round++) {
    const count = random.integer(1, 5)
    const heads = Array.from({ length: count }, (_, index) => (index === 0 ? 'root' : `r${index}`))
    const ebnf = heads.map((head, index) => `${head} ::= ${randomExpression(random, count, index, 3)}`).join('\n')
    const rules = rulesOrNothing(count === 1 ? ebnf.replaceAll('r0', 'root') : ebnf)
    if (!rules) continue
    grammars++
    const states = new GrammarStates(rules)
    for (const one of all) {
      const bytes = Buffer.from(one)
      let state: State | null = states.start
      for (const value of bytes) state = state && states.step(state, value)
      const fits = new Trial(rules.byName, bytes).ends({ kind: 'rule', name: 'root' }, 0).has(bytes.length)
      expect(state?.accepting ?? false, `${JSON.stringify(one)} of\n${ebnf}`).toBe(fits)
      if (fits) accepted++
    }
  }
  expect(grammars).toBeGreaterThan(100)
  expect(accepted).toBeGreaterThan(1000)
})

/** Undefined if no text fits. */
function rulesOrNothing(ebnf: string): ReturnType<typeof readRules> | undefined {
  try {
    return readRules(ebnf)
  } catch (error) {
    expect((error as Error).message).toMatch(/no text fits it/)
    return undefined
  }
}

function stringsOf(length: number): string[] {
  const shorter = length === 1 ? [''] : stringsOf(length - 1)
  return shorter.flatMap((one) => [...'abc'].map((letter) => one + letter))
}

test('grammars that are none', () => {
  throwsCode(() => readRules('root ::= root "a" | "b"'), 'ERR_INVALID_ARGUMENT', /begin with themselves, got root/)
  throwsCode(() => readRules('root ::= x? y\nx ::= "a"\ny ::= x* root'), 'ERR_INVALID_ARGUMENT', /no text fits it/)
  throwsCode(
    () => readRules('root ::= x? y\nx ::= "a"\ny ::= x* root | "b"'),
    'ERR_INVALID_ARGUMENT',
    /begin with themselves/,
  )
  throwsCode(() => readRules('root ::= "a" x\nx ::= x'), 'ERR_INVALID_ARGUMENT', /no text fits it/)
  throwsCode(() => readRules('root ::= TagDispatch(("a", x))\nx ::= "b"'), 'ERR_INVALID_ARGUMENT', /TagDispatch/)
  throwsCode(() => readRules(`root ::= ${'('.repeat(200)}"a"${')'.repeat(200)}`), 'ERR_INVALID_ARGUMENT', /nested/)
  const huge = 'root ::= a{1000}\na ::= "abcdefghij"{100}'
  expect(new GrammarStates(readRules(huge)).start.accepting).toBe(false)
  const larger = 'root ::= ("abcdefghij"{1000}){100}'
  throwsCode(() => new GrammarStates(readRules(larger)), 'ERR_INVALID_ARGUMENT', /at most 131072 places/)
})

test('a grammar with very many ways to read a text costs one request its answer, not everybody a minute', () => {
  // The states after a text know which of its last letters were a: there are as many as subsets.
  const states = new GrammarStates(readRules('root ::= [a-d]* "a" [a-d]{200} "!"'))
  let state: State | null = states.start
  for (let count = 0; count < 200; count++) state = states.step(state!, 'aabacd'.charCodeAt(count % 6))
  expect(state).not.toBeNull()
  throwsCode(
    () => {
      const wide = new GrammarStates(
        readRules(`root ::= ${Array.from({ length: 33_000 }, () => '("x" [a-z] "y")').join(' | ')}`),
      )
      wide.step(wide.start, 0x78)
    },
    'ERR_INVALID_ARGUMENT',
    /ways to read/,
  )
})
