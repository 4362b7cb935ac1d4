/** Continuous batching, paging and prefix reuse, over a model that checks every key it reads. */

import { expect, test, vi } from 'vitest'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { Random } from '../support/random.ts'
import { continuation, fakeEngine, heldPages, vocabulary } from './fake-model.ts'

const randomPrompt = (random: Random, length: number): number[] =>
  Array.from({ length }, () => random.integer(0, vocabulary))

/** Answers to all prompts, submitted at random moments, and the engine they came from. */
async function answerAll(
  random: Random,
  prompts: readonly number[][],
  counts: readonly number[],
  options: Parameters<typeof fakeEngine>[0],
): Promise<{ answers: number[][]; cached: number[]; host: ReturnType<typeof fakeEngine> }> {
  const host = fakeEngine(options)
  const pending = []
  for (const [index, prompt] of prompts.entries()) {
    pending.push(host.submit({ prompt, maxTokens: counts[index]! }).answer)
    for (let wait = random.integer(0, 5); wait > 0; wait--) await new Promise((resolve) => setImmediate(resolve))
  }
  const answers = await Promise.all(pending)
  return { answers: answers.map(({ ids }) => ids), cached: answers.map(({ cached }) => cached), host }
}

const shapes = [
  { name: 'rings of several pages', options: { pageTokens: 4, window: 10, stepTokens: 16 } },
  { name: 'pages of one token', options: { pageTokens: 1, window: 3, stepTokens: 5 } },
  { name: 'a window shorter than a page', options: { pageTokens: 8, window: 3, stepTokens: 7 } },
  { name: 'a window of one key', options: { pageTokens: 4, window: 1, stepTokens: 16 } },
  { name: 'a window as long as the context', options: { pageTokens: 4, window: 200, stepTokens: 32 } },
  { name: 'global layers only', options: { pageTokens: 4, window: 0, stepTokens: 16 } },
  { name: 'one token per step', options: { pageTokens: 4, window: 10, stepTokens: 1 } },
  { name: 'one sequence at a time', options: { maxSequences: 1 } },
  { name: 'no prefix cache', options: { prefixCache: false } },
]

test.each(shapes)('sequences that come and go get the answers of each alone: $name', async ({ name, options }) => {
  const random = Random.named(`batching ${name}`)
  const prompts = Array.from({ length: 24 }, () => randomPrompt(random, random.integer(1, 60)))
  // Some begin as others do.
  for (let i = 8; i < 24; i++) {
    const other = prompts[random.integer(0, i)]!
    prompts[i]!.unshift(...other.slice(0, random.integer(0, other.length + 1)))
  }
  const counts = prompts.map(() => random.integer(1, 40))
  const { answers, cached, host } = await answerAll(random, prompts, counts, options)
  expect(answers).toEqual(prompts.map((prompt, i) => continuation(prompt, counts[i]!, options.window ?? 10)))
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
  if (options.prefixCache === false) expect(Math.max(...cached)).toBe(0)
  else expect(Math.max(...cached)).toBeGreaterThan(0)
  host.pages.prefixes?.clear()
  expect(host.pages.globalPool.free).toBe(host.pages.globalPool.count)
  expect(host.pages.localPool.free).toBe(host.pages.localPool.count)
})

test.each([1, 2, 3])('answers survive preemption under a tiny page budget, seed %i', async (seed) => {
  const random = Random.named(`preemption ${seed}`)
  const prompts = Array.from({ length: 12 }, () => randomPrompt(random, random.integer(1, 50)))
  const counts = prompts.map(() => random.integer(10, 60))
  // The least there may be: one sequence of the context's length.
  const { answers, host } = await answerAll(random, prompts, counts, {
    contextLength: 120,
    maxSequences: 6,
    globalPages: 30,
    localPages: 8,
  })
  expect(answers).toEqual(prompts.map((prompt, i) => continuation(prompt, counts[i]!, 10)))
  expect(host.engine.info().preemptions).toBeGreaterThan(0)
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
})

test('the executor may rest once no sequence is left, not between two that overlap', async () => {
  const host = fakeEngine({ stepTokens: 16, restAfterMs: 20 })
  const first = host.submit({ prompt: [1, 2, 3], maxTokens: 4 })
  const second = host.submit({ prompt: [4, 5], maxTokens: 9 })
  await Promise.all([first.answer, second.answer])
  // Not between two that follow closely either.
  await host.submit({ prompt: [6], maxTokens: 2 }).answer
  expect(host.model.rests).toEqual([])
  await vi.waitFor(() => expect(host.model.rests).toEqual([host.model.steps.length]))
  const after = host.model.steps.length
  await host.submit({ prompt: [7], maxTokens: 2 }).answer
  await host.engine[Symbol.asyncDispose]()
  await new Promise((resolve) => setTimeout(resolve, 40))
  expect(host.model.rests).toEqual([after])
})

test('an executor that cannot rest closes the engine, not the process', async () => {
  const host = fakeEngine({ stepTokens: 16, restAfterMs: 1 })
  const failure = new Error('the fake device cannot rest')
  host.model.rest = vi.fn(() => {
    throw failure
  })
  await host.submit({ prompt: [1, 2, 3], maxTokens: 2 }).answer
  await vi.waitFor(() => expect(host.model.rest).toHaveBeenCalled())
  await expect(host.submit({ prompt: [4], maxTokens: 1 }).answer).rejects.toBe(failure)
})

test.each([
  { name: 'rings of several pages', options: { pageTokens: 4, window: 10, stepTokens: 16 } },
  {
    name: 'images longer than a step',
    options: { pageTokens: 4, window: 10, stepTokens: 5, chunk: 8, localPages: 300 },
  },
  { name: 'pages of one token', options: { pageTokens: 1, window: 8, stepTokens: 9 } },
  { name: 'global layers only', options: { pageTokens: 4, window: 0, stepTokens: 16 } },
  {
    name: 'a tiny page budget',
    options: { contextLength: 120, maxSequences: 6, globalPages: 30, localPages: 9, chunk: 16 },
  },
])('sequences with images get the answers of each alone, and no image is split: $name', async ({ name, options }) => {
  const random = Random.named(`images ${name}`)
  const requests = Array.from({ length: 16 }, () => {
    const prompt = randomPrompt(random, random.integer(1, 12))
    const images: [number, number][] = []
    for (let count = random.integer(0, 4); count > 0; count--) {
      const content = -1 - random.integer(1, 4)
      images.push([prompt.length, prompt.length + 7])
      prompt.push(...Array.from({ length: 7 }, () => content), ...randomPrompt(random, random.integer(1, 6)))
    }
    return { prompt, images }
  })
  // Later turns of the same conversations.
  for (const { prompt, images } of requests.slice(0, 8)) {
    requests.push({ prompt: [...prompt, ...randomPrompt(random, random.integer(1, 20))], images })
  }
  const counts = requests.map(() => random.integer(1, 20))
  const host = fakeEngine(options)
  const pending = []
  for (const [index, request] of requests.entries()) {
    pending.push(host.submit({ ...request, maxTokens: counts[index]! }).answer)
    for (let wait = random.integer(0, 5); wait > 0; wait--) await new Promise((resolve) => setImmediate(resolve))
  }
  const answers = await Promise.all(pending)
  const expected = requests.map(({ prompt }, i) => continuation(prompt, counts[i]!, options.window ?? 10))
  expect(answers.map(({ ids }) => ids)).toEqual(expected)
  if (name === 'a tiny page budget') expect(host.engine.info().preemptions).toBeGreaterThan(0)
  else expect(Math.max(...answers.map(({ cached }) => cached))).toBeGreaterThan(0)
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
})

test('an unfinished prompt samples nothing, and all decoding sequences take part in every step', async () => {
  const random = Random.named('steps')
  const host = fakeEngine({ stepTokens: 16, maxSequences: 4 })
  const long = host.submit({ prompt: randomPrompt(random, 100), maxTokens: 3 })
  await long.answer
  // 100 tokens in steps of 16: seven steps, of which the last samples; then two tokens.
  expect(host.model.steps.map(({ tokens }) => tokens)).toEqual([16, 16, 16, 16, 16, 16, 4, 1, 1])
  expect(host.model.steps.map(({ sampled }) => sampled)).toEqual([0, 0, 0, 0, 0, 0, 1, 1, 1])
})

test('a long prompt holds up neither decoding sequences nor short prompts', async () => {
  const random = Random.named('fairness')
  const host = fakeEngine({ stepTokens: 16, maxSequences: 4 })
  const decoding = host.submit({ prompt: randomPrompt(random, 3), maxTokens: 30 })
  await new Promise((resolve) => setImmediate(resolve))
  const long = host.submit({ prompt: randomPrompt(random, 150), maxTokens: 1 })
  const short = host.submit({ prompt: randomPrompt(random, 6), maxTokens: 2 })
  const order: string[] = []
  await Promise.all([
    decoding.answer.then(() => order.push('decoding')),
    long.answer.then(() => order.push('long')),
    short.answer.then(() => order.push('short')),
  ])
  expect(order[0]).toBe('short')
  const mixed = host.model.steps.filter(({ sequences }) => sequences === 3)
  expect(mixed.length).toBeGreaterThan(0)
  for (const { tokens } of host.model.steps) expect(tokens).toBeLessThanOrEqual(16)
})

test('the queue is bounded, and what is in it is answered', async () => {
  const host = fakeEngine({ maxSequences: 2, maxQueue: 3 })
  const accepted = Array.from({ length: 5 }, (_, i) => host.submit({ prompt: [i], maxTokens: 4 }))
  throwsCode(() => host.engine.submit({ ...accepted[0]!.sequence.request }), 'ERR_BUSY', /3 waiting/)
  const answers = await Promise.all(accepted.map(({ answer }) => answer))
  expect(answers.map(({ ids }) => ids)).toEqual([0, 1, 2, 3, 4].map((token) => continuation([token], 4, 10)))
  // There is room again.
  expect((await host.submit({ prompt: [5], maxTokens: 1 }).answer).ids).toEqual(continuation([5], 1, 10))
})

test('lower priorities are admitted first, equal ones in the order they came', async () => {
  const host = fakeEngine({ maxSequences: 1 })
  const order: number[] = []
  const priorities = [5, 5, -1, 0, 5, 0, -1]
  const answers = priorities.map((priority, token) => {
    const { answer } = host.submit({ prompt: [token], maxTokens: 2, priority })
    void answer.then(() => order.push(token))
    return answer
  })
  const given = await Promise.all(answers)
  expect(order).toEqual([2, 6, 3, 5, 0, 1, 4])
  expect(given.map(({ ids }) => ids)).toEqual(priorities.map((_, token) => continuation([token], 2, 10)))
})

test('where pages are short the last rank is put back, also if it came first', async () => {
  const host = fakeEngine({ contextLength: 40, maxSequences: 2, globalPages: 12, localPages: 20, prefixCache: false })
  const low = host.submit({ prompt: [1, 2, 3], maxTokens: 30, priority: 1 })
  const high = host.submit({ prompt: [4, 5, 6], maxTokens: 30 })
  const order: string[] = []
  void low.answer.then(() => order.push('low'))
  void high.answer.then(() => order.push('high'))
  const [first, second] = await Promise.all([low.answer, high.answer])
  expect(host.engine.info().preemptions).toBeGreaterThan(0)
  expect(order).toEqual(['high', 'low'])
  expect(first.ids).toEqual(continuation([1, 2, 3], 30, 10))
  expect(second.ids).toEqual(continuation([4, 5, 6], 30, 10))
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
})

test('a sequence ends at a stop token, at maxTokens, at the end of the context, or when told', async () => {
  const host = fakeEngine({ contextLength: 20 })
  const prompt = [1, 2, 3]
  const expected = continuation(prompt, 17, 10)
  expect(await host.submit({ prompt, maxTokens: 5 }).answer).toMatchObject({
    ids: expected.slice(0, 5),
    reason: 'length',
  })
  const stop = expected[7]!
  expect(await host.submit({ prompt, stopTokens: [stop] }).answer).toMatchObject({
    ids: expected.slice(0, expected.indexOf(stop)),
    reason: 'stop',
  })
  expect(await host.submit({ prompt }).answer).toMatchObject({ ids: expected, reason: 'context' })
  let seen = 0
  expect(await host.submit({ prompt, onToken: () => ++seen === 4 }).answer).toMatchObject({
    ids: expected.slice(0, 4),
    reason: 'stop',
  })
})

test('the second turn of a conversation begins where the first ended, also after the ring has wrapped', async () => {
  const random = Random.named('turns')
  for (const window of [0, 3, 10, 64]) {
    const host = fakeEngine({ window, localPages: 200 })
    const history = randomPrompt(random, 30)
    for (let turn = 0; turn < 4; turn++) {
      const { ids, cached } = await host.submit({ prompt: history, maxTokens: 15 }).answer
      expect(ids).toEqual(continuation(history, 15, window))
      // All but the last token of an answer is computed; whole pages of it are kept.
      if (turn > 0) expect(cached).toBe(Math.floor((history.length - 8 - 1) / 4) * 4)
      history.push(...ids, ...randomPrompt(random, 8))
    }
  }
})

test('where prompts part, the first to part pays and the next does not', async () => {
  const random = Random.named('branches')
  const host = fakeEngine({ window: 10, localPages: 400 })
  const system = randomPrompt(random, 50)
  const ask = async (length: number): Promise<number> => {
    const prompt = [...system, ...randomPrompt(random, length)]
    const { ids, cached } = await host.submit({ prompt, maxTokens: 3 }).answer
    expect(ids).toEqual(continuation(prompt, 3, 10))
    return cached
  }
  expect(await ask(40)).toBe(0)
  // The ring of the first has left the branch point behind: its window was not kept.
  expect(await ask(30)).toBe(0)
  expect(await ask(60)).toBe(48)
  expect(await ask(1)).toBe(48)
})

test('an edited history reuses what is before the edit', async () => {
  const random = Random.named('edits')
  // Shorter than the window: every page's keys are still there.
  const host = fakeEngine({ window: 100, localPages: 400 })
  const prompt = randomPrompt(random, 60)
  await host.submit({ prompt, maxTokens: 10 }).answer
  const edited = [...prompt]
  edited[42] = (edited[42]! + 1) % vocabulary
  const { ids, cached } = await host.submit({ prompt: edited, maxTokens: 10 }).answer
  expect(cached).toBe(40)
  expect(ids).toEqual(continuation(edited, 10, 100))
})

test('a prompt that is known as a whole still computes its last token', async () => {
  const host = fakeEngine()
  const prompt = Array.from({ length: 32 }, (_, i) => i)
  const first = await host.submit({ prompt, maxTokens: 6 }).answer
  const second = await host.submit({ prompt, maxTokens: 6 }).answer
  expect(second).toEqual({ ...first, cached: 28 })
})

test('pages that nobody uses are given up for those who need them', async () => {
  const random = Random.named('eviction')
  const host = fakeEngine({ contextLength: 80, maxSequences: 2, globalPages: 24, localPages: 16 })
  for (let round = 0; round < 30; round++) {
    const prompt = randomPrompt(random, random.integer(1, 60))
    const { ids } = await host.submit({ prompt, maxTokens: 8 }).answer
    expect(ids).toEqual(continuation(prompt, 8, 10))
  }
  expect(host.engine.info().preemptions).toBe(0)
  expect(host.pages.prefixes!.size.global).toBeGreaterThan(12)
})

test.each(['waiting', 'prefill', 'decode'])('an abort takes effect within one step: %s', async (when) => {
  const random = Random.named(`abort ${when}`)
  const host = fakeEngine({ maxSequences: when === 'waiting' ? 1 : 4 })
  const other = host.submit({ prompt: randomPrompt(random, 20), maxTokens: 40 })
  const prompt = randomPrompt(random, 60)
  const victim = host.submit({ prompt })
  const wanted = { waiting: 2, prefill: 3, decode: 12 }[when]!
  host.model.during = () => {
    if (host.model.steps.length === wanted) host.engine.abort(victim.sequence)
  }
  const { ids, reason } = await victim.answer
  expect(reason).toBe('abort')
  expect(host.model.steps.length).toBe(wanted)
  expect(ids).toEqual(continuation(prompt, ids.length, 10))
  if (when !== 'decode') expect(ids.length).toBe(0)
  else expect(ids.length).toBeGreaterThan(0)
  const steps = host.model.steps.length
  await other.answer
  // It took part in no further step.
  for (const { sequences } of host.model.steps.slice(steps)) expect(sequences).toBe(1)
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
  host.engine.abort(victim.sequence)
})

test.each([1, 2, 3, 4])('aborts among sequences that come and go disturb nobody, seed %i', async (seed) => {
  const random = Random.named(`aborts ${seed}`)
  const host = fakeEngine({ contextLength: 120, maxSequences: 5, globalPages: 45, localPages: 30 })
  const base = randomPrompt(random, 40)
  const all = []
  for (let i = 0; i < 40; i++) {
    const prompt = [...base.slice(0, random.integer(0, 41)), ...randomPrompt(random, random.integer(1, 20))]
    const count = random.integer(1, 50)
    const { sequence, answer } = host.submit({ prompt, maxTokens: count })
    const doomed = random.integer(0, 2) === 0
    all.push(answer.then(({ ids, reason }) => ({ ids, reason, prompt, count, doomed })))
    for (let wait = random.integer(0, 8); wait > 0; wait--) await new Promise((resolve) => setImmediate(resolve))
    if (doomed) host.engine.abort(sequence)
  }
  let aborted = 0
  for (const { ids, reason, prompt, count, doomed } of await Promise.all(all)) {
    if (reason === 'abort') aborted++
    else expect(ids.length).toBe(count)
    expect(doomed || reason === 'length').toBe(true)
    expect(ids).toEqual(continuation(prompt, ids.length, 10))
  }
  expect(aborted).toBeGreaterThan(3)
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
})

test('a step that fails takes its own sequences along, and nobody else', async () => {
  const host = fakeEngine({ maxSequences: 2 })
  host.model.failAt = 3
  const lost = [1, 2].map((token) => host.submit({ prompt: [token], maxTokens: 20 }))
  const waiting = host.submit({ prompt: [3], maxTokens: 20 })
  for (const { answer } of lost) await expect(answer).rejects.toThrow('the fake device failed')
  expect((await waiting.answer).ids).toEqual(continuation([3], 20, 10))
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
  expect(host.model.forgotten.length).toBe(3)
})

test('a callback that throws fails its own sequence only', async () => {
  const host = fakeEngine()
  const broken = host.submit({
    prompt: [1],
    onToken: () => {
      throw new Error('in the callback')
    },
  })
  const other = host.submit({ prompt: [2], maxTokens: 9 })
  await expect(broken.answer).rejects.toThrow('in the callback')
  expect((await other.answer).ids).toEqual(continuation([2], 9, 10))
})

test('dispose in flight: everything fails with ERR_DISPOSED, and the step in progress is awaited', async () => {
  const host = fakeEngine({ maxSequences: 2 })
  const all = [1, 2, 3].map((token) => host.submit({ prompt: [token] }))
  while (host.model.inFlight === 0) await new Promise((resolve) => setImmediate(resolve))
  const disposal = host.engine[Symbol.asyncDispose]()
  for (const { answer } of all) await rejectsCode(answer, 'ERR_DISPOSED')
  expect(host.model.inFlight).toBe(1)
  await disposal
  expect(host.model.inFlight).toBe(0)
  await host.engine[Symbol.asyncDispose]()
  throwsCode(() => host.engine.submit(all[0]!.sequence.request), 'ERR_DISPOSED')
  expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
})

test('the fake model notices a wrong page: a negative control', async () => {
  const host = fakeEngine({ window: 10 })
  const { sequence, answer } = host.submit({ prompt: Array.from({ length: 20 }, (_, i) => i) })
  host.model.during = () => {
    const { pages } = sequence
    if (!pages || host.model.steps.length !== 4) return
    // The two newest pages change places: the keys of the older one are in the window.
    const { local } = pages
    const newest = Math.floor((sequence.length - 1) / 4) % local.length
    const older = (newest + local.length - 1) % local.length
    ;[local[newest], local[older]] = [local[older]!, local[newest]!]
  }
  await expect(answer).rejects.toThrow(/key \d+ of query/)
})

/** What is asked for under a steady load of others: when it is answered, by how many of these were. */
async function answeredAfter(priority: number, agingSteps: number): Promise<number> {
  const host = fakeEngine({ maxSequences: 1, agingSteps })
  let others = 0
  let over = false
  const load = (token: number): void => {
    const { answer } = host.submit({ prompt: [token], maxTokens: 2 })
    void answer.then(() => {
      others++
      if (!over && others < 500) load(token)
    })
  }
  // There is always one more that waits.
  for (const token of [1, 2, 3]) load(token)
  await host.submit({ prompt: [4], maxTokens: 2, priority }).answer
  over = true
  return others
}

test('whoever waits long enough is served under a steady load of higher priority', async () => {
  // A new one comes every two steps: those of the first 20 steps for a level go first, three times as many for three.
  expect(await answeredAfter(0, 20)).toBe(3)
  expect(await answeredAfter(1, 20)).toBe(12)
  expect(await answeredAfter(7, 20)).toBe(32)
  expect(await answeredAfter(1, 100)).toBe(52)
  // And never, if age did not count.
  expect(await answeredAfter(1, 1e9)).toBeGreaterThan(490)
})

test('what prompts share is computed once, also if they come at once', async () => {
  const random = Random.named('shared')
  const options = { maxSequences: 4, stepTokens: 16, window: 100 }
  const computed = async (prefixCache: boolean, prompts: readonly number[][]): Promise<number> => {
    const host = fakeEngine({ ...options, prefixCache })
    const answers = await Promise.all(prompts.map((prompt) => host.submit({ prompt, maxTokens: 5 }).answer))
    expect(answers.map(({ ids }) => ids)).toEqual(prompts.map((prompt) => continuation(prompt, 5, 100)))
    expect(heldPages(host.pages)).toEqual({ global: 0, local: 0 })
    return host.model.steps.reduce((sum, { tokens }) => sum + tokens, 0)
  }
  const prompt = randomPrompt(random, 62)
  // Four choices of one prompt: 60 tokens are whole pages, and stay. Each computes its last two, and four of its five answers' tokens.
  const choices = [prompt, prompt, prompt, prompt]
  expect(await computed(true, choices)).toBe(60 + 4 * 2 + 4 * 4)
  expect(await computed(false, choices)).toBe(4 * 62 + 4 * 4)
  // Different questions after the same beginning of 40 tokens.
  const questions = Array.from({ length: 4 }, () => [...prompt.slice(0, 40), ...randomPrompt(random, 10)])
  expect(await computed(true, questions)).toBe(40 + 4 * 10 + 4 * 4)
})

test('nobody waits for what saves little, and a place in the batch is kept for those that wait', async () => {
  const random = Random.named('waiting')
  const host = fakeEngine({ maxSequences: 2, stepTokens: 16, window: 100 })
  const long = randomPrompt(random, 150)
  const order: string[] = []
  const ask = (name: string, prompt: number[], maxTokens: number): Promise<unknown> => {
    const { answer } = host.submit({ prompt, maxTokens })
    return answer.then(() => order.push(name))
  }
  // Eight tokens of 150 are alike: it goes its own way, and is done first.
  await Promise.all([ask('long', long, 2), ask('short', [...long.slice(0, 8), 1, 2, 3], 2)])
  expect(order.splice(0)).toEqual(['short', 'long'])
  // The twin waits for the long one's prompt; a third one that has come later does not take its place.
  const other = randomPrompt(random, 120)
  await Promise.all([ask('first', other, 40), ask('twin', other, 2), ask('third', [5, 6, 7], 2)])
  expect(order).toEqual(['twin', 'third', 'first'])
})
