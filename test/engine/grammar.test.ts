import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Gemma, type GrammarSource } from '../../lib/engine/gemma.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { loadBundled, logSoftmax, outcome } from './models.ts'

let gemma: Gemma
beforeAll(async () => {
  gemma = await loadBundled()
})
afterAll(async () => {
  await gemma[Symbol.asyncDispose]()
})

const person = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    tags: { type: 'array', items: { enum: ['a', 'é', '東京'] }, minItems: 1, maxItems: 3 },
  },
  required: ['name', 'age', 'tags'],
}

function nested(levels: number): object {
  let schema: object = { type: 'integer' }
  for (let level = 0; level < levels; level++) schema = { anyOf: [schema] }
  return schema
}

function checkPerson(text: string): void {
  const value = JSON.parse(text) as { name: string; age: number; tags: string[] }
  expect(Object.keys(value)).toEqual(['name', 'age', 'tags'])
  expect([...value.name].length).toBeLessThanOrEqual(12)
  expect(Number.isInteger(value.age) && value.age >= 0 && value.age <= 120).toBe(true)
  expect(value.tags.length).toBeGreaterThanOrEqual(1)
  expect(value.tags.length).toBeLessThanOrEqual(3)
  for (const tag of value.tags) expect(['a', 'é', '東京']).toContain(tag)
}

describe('a grammar', () => {
  test('bounds what is drawn, and leaves those who share the steps alone', async () => {
    const grammar = await gemma.compileGrammar({ schema: person })
    const free = { seed: 77, maxTokens: 40, stopTokens: [] }
    const alone = outcome(await gemma.generate('The king', free))
    const seeds = Array.from({ length: 12 }, (_, seed) => seed)
    const [beside, ...bound] = await Promise.all([
      gemma.generate('The king', free),
      ...seeds.map((seed) => gemma.generate(`It was ${seed}`, { grammar, seed, maxTokens: 300 })),
      gemma.generate('Greedy', { grammar, temperature: 0, maxTokens: 300 }),
      gemma.generate('Hot', { grammar, temperature: 5, topK: 0, topP: 1, maxTokens: 300, repetitionPenalty: 1.5 }),
    ])
    expect(outcome(beside)).toEqual(alone)
    for (const { text, finishReason } of bound) {
      expect(finishReason).toBe('stop')
      checkPerson(text)
    }
    expect(new Set(bound.map(({ text }) => text)).size).toBeGreaterThan(8)
    // Every place in the batch is given back.
    expect(gemma.info().engine).toMatchObject({ running: 0, waiting: 0 })
  })

  test('the greedy token is the best of those allowed', async () => {
    // One of three words, each of several tokens: the answer is found by scoring what may come.
    const words = ['wonderful', 'terrible', 'ordinary']
    const grammar = await gemma.compileGrammar({ ebnf: `root ::= ${words.map((word) => `"${word}"`).join(' | ')}` })
    const prompt = gemma.tokenize('The weather that day was ', { bos: true })
    const { text, ids } = await gemma.generate(prompt, { grammar, temperature: 0 })
    expect(words).toContain(text)
    const { data } = await gemma.logits(prompt, { rows: 1 })
    const logprobs = logSoftmax(data)
    const starts = [...logprobs.keys()].filter((id) => {
      const piece = gemma.tokenizer.decode([id])
      return piece !== '' && words.some((word) => word.startsWith(piece))
    })
    const best = starts.sort((a, b) => logprobs[b]! - logprobs[a]!)[0]
    expect(ids[0]).toBe(best)
  })

  test('preemption and abort leave its state whole', async () => {
    const small = await loadBundled({ contextLength: 192, maxSequences: 4, cacheTokens: 192, prefixCache: false })
    try {
      const grammar = await small.compileGrammar({ schema: person })
      const controller = new AbortController()
      const gone = small.generate('gone', { grammar, signal: controller.signal })
      const all = Array.from({ length: 4 }, (_, seed) =>
        small.generate('Once upon a time there was a king '.repeat(6), { grammar, seed, maxTokens: 120 }),
      )
      controller.abort()
      expect((await gone).finishReason).toBe('abort')
      for (const { text, finishReason } of await Promise.all(all)) {
        if (finishReason === 'stop') checkPerson(text)
        else expect(finishReason).toBe('length')
      }
      expect(small.info().engine.preemptions).toBeGreaterThan(0)
    } finally {
      await small[Symbol.asyncDispose]()
    }
  })

  test.each<[string, GrammarSource, (value: unknown) => boolean]>([
    ['a boolean', { schema: { type: 'boolean' } }, (value) => typeof value === 'boolean'],
    [
      'a constant',
      { schema: { const: { a: [1, null, 'x'] } } },
      (value) => JSON.stringify(value) === '{"a":[1,null,"x"]}',
    ],
    [
      'a pattern',
      { schema: { type: 'string', pattern: '^[0-9]{3}-[a-f]$' } },
      (value) => /^\d{3}-[a-f]$/.test(String(value)),
    ],
    [
      'a pattern that any character fits',
      {
        schema: {
          type: 'object',
          properties: { a: { type: 'string', pattern: '^.{3}[^x]{3}[ -~]{3}$' } },
          required: ['a'],
        },
      },
      (value) => /^.{3}[^x]{3}[ -~]{3}$/.test((value as { a: string }).a),
    ],
    [
      'text of bounded length',
      { schema: { type: 'string', minLength: 30, maxLength: 40 } },
      (value) => String(value).length >= 30,
    ],
    [
      'a reference',
      {
        schema: {
          $defs: {
            leaf: { type: 'object', properties: { v: { type: 'integer', minimum: 1, maximum: 9 } }, required: ['v'] },
          },
          type: 'object',
          properties: { left: { $ref: '#/$defs/leaf' }, right: { $ref: '#/$defs/leaf' } },
          required: ['left', 'right'],
        },
      },
      (value) => Object.values(value as Record<string, { v: number }>).every(({ v }) => v >= 1 && v <= 9),
    ],
  ])('of %s', async (_, source, holds) => {
    const grammar = await gemma.compileGrammar(source)
    for (const seed of [1, 2, 3, 4]) {
      // All tokens, as if they were equally likely.
      const wild = { grammar, seed, maxTokens: 200, temperature: 100, topK: 0, topP: 1 }
      const { text, finishReason } = await gemma.generate('The answer: ', wild)
      expect(finishReason).toBe('stop')
      expect(holds(JSON.parse(text)), text).toBe(true)
    }
  })

  test.each<[string, unknown, RegExp]>([
    ['an unknown type', { schema: { type: 'nonsense' } }, /Unsupported type "nonsense"/],
    ['a reference to nothing', { schema: { $ref: '#/nowhere' } }, /nowhere/],
    ['a pattern that is none', { schema: { type: 'string', pattern: '(' } }, /parenthesis/],
    ['a pattern that needs escapes', { schema: { type: 'string', pattern: '^"x"$' } }, /quotation marks/],
    ['EBNF that is none', { ebnf: 'root ::= (' }, /EBNF parser error/],
    ['no root', { ebnf: 'leaf ::= "a"' }, /root/],
    ['too long', { ebnf: `root ::= "${'a'.repeat(70_000)}"` }, /at most 65536 characters/],
    ['deep', { schema: nested(1000) }, /at most 200 levels/],
    ['deep parentheses', { ebnf: `root ::= ${'('.repeat(30_000)}"a"${')'.repeat(30_000)}` }, /nested too deeply/],
    ['large', { schema: { type: 'string', maxLength: 1e9 } }, /at most 131072 places/],
    ['nothing', {}, /expected/],
    ['null', null, /expected/],
  ])('that cannot be: %s', async (_, source, message) => {
    await rejectsCode(gemma.compileGrammar(source as GrammarSource), 'ERR_INVALID_ARGUMENT', message)
    // The library gave up, and is there again.
    const grammar = await gemma.compileGrammar({ schema: { const: `after ${String(message)}`.replace(/\W/g, '') } })
    expect((await gemma.generate('x', { grammar, maxTokens: 100 })).finishReason).toBe('stop')
  })

  test('that no text fits is refused, also where only a part leads nowhere', async () => {
    for (const source of [
      { schema: { $ref: '#' } },
      { ebnf: 'root ::= x\nx ::= x' },
      { ebnf: 'root ::= "a" x\nx ::= x' },
    ]) {
      await rejectsCode(gemma.compileGrammar(source as GrammarSource), 'ERR_INVALID_ARGUMENT', /no text fits it/)
    }
    // What leads nowhere is not begun.
    const grammar = await gemma.compileGrammar({ ebnf: 'root ::= "a" x | "b"\nx ::= "c" x' })
    expect((await gemma.generate('x', { grammar, maxTokens: 8 })).text).toBe('b')
  })

  test('others generate while one is compiled, and equal ones are compiled once', async () => {
    const properties = Object.fromEntries(
      Array.from({ length: 400 }, (_, at) => [`property ${at}`, { type: 'string' }]),
    )
    const schema = { type: 'object', properties, required: Object.keys(properties) }
    const alone = await gemma.generate('The king', { maxTokens: 8, seed: 1 })
    let compiling = true
    const compiled = Promise.all([1, 2, 3].map(() => gemma.compileGrammar({ schema: { ...schema } })))
    void compiled.finally(() => {
      compiling = false
    })
    const beside = gemma.generate('The king', { maxTokens: 8, seed: 1 })
    // Steps begin on this thread. Were it busy with the schema, it would turn a few times in all, and not hundreds.
    let turns = 0
    while (compiling) {
      await new Promise((resolve) => setImmediate(resolve))
      turns++
    }
    expect(turns).toBeGreaterThan(100)
    expect(outcome(await beside)).toEqual(outcome(alone))
    const [first, ...others] = await compiled
    for (const other of others) expect(other).toBe(first)
    const { text, finishReason } = await gemma.generate('x', { grammar: first, maxTokens: 8, temperature: 0 })
    expect(text).toMatch(/^\{"prop/)
    expect(finishReason).toBe('length')
  })

  test('may list thousands of values', async () => {
    const values = Array.from({ length: 5000 }, (_, at) => `value ${at}`)
    const grammar = await gemma.compileGrammar({ schema: { enum: values } })
    const { text } = await gemma.generate('x', { grammar, temperature: 100, topK: 0, topP: 1, seed: 5, maxTokens: 40 })
    expect(values).toContain(JSON.parse(text))
  })

  test('a wrong one among many fails alone', async () => {
    const sources: GrammarSource[] = Array.from({ length: 9 }, (_, at) =>
      at % 3 === 1 ? { ebnf: `root ::= (${at}` } : { ebnf: `root ::= "${at}"` },
    )
    const settled = await Promise.allSettled(sources.map((source) => gemma.compileGrammar(source)))
    expect(settled.map(({ status }) => status === 'fulfilled')).toEqual(sources.map((_, at) => at % 3 !== 1))
    // Nothing that failed is kept.
    await rejectsCode(gemma.compileGrammar(sources[1]!), 'ERR_INVALID_ARGUMENT', /EBNF parser error/)
  })

  test('of another model is refused', async () => {
    const other = await Gemma.load()
    try {
      const grammar = await other.compileGrammar({ json: true })
      throwsCode(() => gemma.stream('x', { grammar }), 'ERR_INVALID_ARGUMENT', /another/)
      throwsCode(() => gemma.stream('x', { grammar: {} as never }), 'ERR_INVALID_ARGUMENT', /compileGrammar/)
    } finally {
      await other[Symbol.asyncDispose]()
    }
  })
})
