/** Hazards of generations in flight: whatever happens, nothing hangs, leaks or crashes. */

import { setImmediate as nextTurn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { Gemma, type Piece } from '../../lib/engine/gemma.ts'
import { Device, embedding, type Stream, Tensor } from '../../lib/index.ts'
import { compileLibrary, runChild } from '../support/child.ts'
import { rejectsCode, throwsCode } from '../support/errors.ts'
import { evalText, exactIsa, loadBundled, outcome, plain } from './models.ts'

const prompt = 'Once upon a time'
const endless = { ...plain, maxTokens: 1500 }

/** Until nothing runs or waits. */
async function idle(gemma: Gemma): Promise<void> {
  for (;;) {
    const { running, waiting } = gemma.info().engine
    if (running + waiting === 0) return
    await nextTurn()
  }
}

/** Until the generation has given some tokens. */
async function take(pieces: AsyncIterator<Piece, undefined>, count: number): Promise<void> {
  for (let i = 0; i < count; i++) await pieces.next()
}

describe('leaving', () => {
  test('break ends the generation', async () => {
    await using gemma = await loadBundled()
    const generation = gemma.stream(prompt, endless)
    let pieces = 0
    for await (const _ of generation) if (++pieces === 5) break
    const result = await generation.result
    expect(result.finishReason).toBe('abort')
    expect(result.tokens).toBeLessThan(50)
    await idle(gemma)
  })

  test('an exception in the loop ends the generation', async () => {
    await using gemma = await loadBundled()
    const generation = gemma.stream(prompt, endless)
    const leave = async (): Promise<void> => {
      for await (const _ of generation) throw new Error('in the loop')
    }
    await expect(leave()).rejects.toThrow('in the loop')
    expect((await generation.result).finishReason).toBe('abort')
    await idle(gemma)
  })

  test.each(['prefill', 'decode', 'queue'])(
    'an AbortSignal in %s ends it within one step, with what there is',
    async (when) => {
      await using gemma = await loadBundled({ maxSequences: when === 'queue' ? 1 : 4, prefillChunk: 64 })
      const other = gemma.stream(prompt, endless)
      const controller = new AbortController()
      const long = when === 'prefill' ? evalText.slice(0, 5000) : prompt
      const generation = gemma.stream(long, { ...endless, signal: controller.signal })
      const pieces = generation[Symbol.asyncIterator]()
      if (when === 'decode') await take(pieces, 7)
      else for (let turn = 0; turn < 3; turn++) await nextTurn()
      const { steps } = gemma.info().engine
      controller.abort()
      const result = await generation.result
      expect(gemma.info().engine.steps - steps).toBeLessThanOrEqual(1)
      expect(result.finishReason).toBe('abort')
      if (when === 'decode') {
        expect(result.tokens).toBeGreaterThanOrEqual(7)
        const whole = await gemma.generate(prompt, { ...plain, maxTokens: result.tokens })
        expect(result.ids).toEqual(whole.ids)
      } else {
        expect(result).toMatchObject({ tokens: 0, text: '' })
      }
      // What was given before the abort may still be taken; then it is over.
      for (;;) if ((await pieces.next()).done) break
      other.cancel()
      await idle(gemma)
    },
  )

  test('a signal that is aborted already, and one that aborts after the end', async () => {
    await using gemma = await loadBundled()
    const early = await gemma.generate(prompt, { ...endless, signal: AbortSignal.abort() })
    expect(early).toMatchObject({ finishReason: 'abort', tokens: 0 })
    const controller = new AbortController()
    const done = await gemma.generate(prompt, { ...plain, maxTokens: 3, signal: controller.signal })
    controller.abort()
    expect(done.finishReason).toBe('length')
  })

  test('logits, perplexity and load reject with ERR_ABORTED', async () => {
    await using gemma = await loadBundled({ prefillChunk: 64 })
    const controller = new AbortController()
    const { signal } = controller
    const scoring = gemma.perplexity(evalText, { signal, onProgress: (done) => done > 1000 && controller.abort() })
    await rejectsCode(scoring, 'ERR_ABORTED')
    await rejectsCode(gemma.logits(prompt, { signal }), 'ERR_ABORTED')
    await rejectsCode(loadBundled({ signal }), 'ERR_ABORTED')
    expect((await gemma.logits(prompt)).rows).toBe(6)
  })

  test('a generation that nobody iterates or awaits runs to its end', async () => {
    await using gemma = await loadBundled()
    gemma.stream(prompt, { ...plain, maxTokens: 10 })
    await idle(gemma)
    expect(gemma.info().engine.steps).toBe(10)
  })
})

describe('sharing', () => {
  test('scoring and generating take turns', async () => {
    await using gemma = await loadBundled({ prefillChunk: 128 })
    const alone = [
      await gemma.perplexity(evalText.slice(0, 8000)),
      (await gemma.logits(prompt)).data,
      outcome(await gemma.generate(prompt, { ...plain, maxTokens: 60 })),
    ]
    const together = await Promise.all([
      gemma.perplexity(evalText.slice(0, 8000)),
      gemma.logits(prompt).then(({ data }) => data),
      gemma.generate(prompt, { ...plain, maxTokens: 60 }).then(outcome),
    ])
    expect(together).toEqual(alone)
  })

  test('two models, one device', async () => {
    using device = await Device.open('cpu', { isa: exactIsa, threads: 1 })
    const first = await Gemma.load(undefined, { device })
    const second = await Gemma.load(undefined, { device })
    const options = { ...plain, maxTokens: 30 }
    const [a, b] = await Promise.all([first.generate(prompt, options), second.generate(prompt, options)])
    expect(outcome(a)).toEqual(outcome(b))
    await first[Symbol.asyncDispose]()
    expect(outcome(await second.generate(prompt, options))).toEqual(outcome(b))
    await second[Symbol.asyncDispose]()
  })
})

describe('failing', () => {
  test('a failed step fails what took part in it; the model works on', async () => {
    using device = await Device.open('cpu', { isa: exactIsa, threads: 1 })
    // The engine's own stream, to spoil.
    let stream: Stream | undefined
    const createStream = device.createStream.bind(device)
    device.createStream = () => {
      stream = createStream()
      return stream
    }
    await using gemma = await Gemma.load(undefined, { device, maxSequences: 2 })
    const expected = outcome(await gemma.generate(prompt, { ...plain, maxTokens: 40 }))
    const running = [gemma.stream(prompt, endless), gemma.stream(prompt, endless)]
    const waiting = gemma.generate(prompt, { ...plain, maxTokens: 40 })
    const pieces = running[0]!
    await take(pieces[Symbol.asyncIterator](), 3)
    using table = Tensor.zeros(device, [2, 8])
    using ids = Tensor.from(device, Int32Array.of(7))
    stream!.use(() => embedding(ids, table).dispose())
    for (const { result } of running) await rejectsCode(result, 'ERR_INDEX_OUT_OF_RANGE')
    const iterate = async (): Promise<void> => {
      for await (const _ of pieces);
    }
    await rejectsCode(iterate(), 'ERR_INDEX_OUT_OF_RANGE')
    expect(outcome(await waiting)).toEqual(expected)
    expect(outcome(await gemma.generate(prompt, { ...plain, maxTokens: 40 }))).toEqual(expected)
  })

  test('a device that is gone fails everything, now and later', async () => {
    const device = await Device.open('cpu', { isa: exactIsa, threads: 1 })
    const gemma = await Gemma.load(undefined, { device })
    const running = gemma.stream(prompt, endless)
    await take(running[Symbol.asyncIterator](), 3)
    device.dispose()
    await rejectsCode(running.result, 'ERR_DISPOSED')
    await rejectsCode(gemma.generate(prompt), 'ERR_DISPOSED')
    await gemma[Symbol.asyncDispose]()
  })
})

describe('disposing', () => {
  test('in flight: generations and scoring reject with ERR_DISPOSED', async () => {
    const gemma = await loadBundled({ maxSequences: 2 })
    const generations = Array.from({ length: 4 }, () => gemma.stream(prompt, endless))
    const scoring = gemma.perplexity(evalText)
    scoring.catch(() => {})
    await take(generations[0]![Symbol.asyncIterator](), 3)
    const disposal = gemma[Symbol.asyncDispose]()
    for (const { result } of generations) await rejectsCode(result, 'ERR_DISPOSED')
    await rejectsCode(scoring, 'ERR_DISPOSED')
    await disposal
    await gemma[Symbol.asyncDispose]()
    throwsCode(() => gemma.stream(prompt), 'ERR_DISPOSED')
    await rejectsCode(gemma.generate(prompt), 'ERR_DISPOSED')
    await rejectsCode(gemma.logits(prompt), 'ERR_DISPOSED')
    await rejectsCode(gemma.embed([prompt]), 'ERR_DISPOSED')
  })

  test('gives back all memory, of whatever was in use', async () => {
    using device = await Device.open('cpu', { isa: exactIsa, threads: 1, guard: true })
    const memory = (): { bytes: number; buffers: number } => {
      const { bytes, buffers } = device.memory()
      return { bytes, buffers }
    }
    const after: ReturnType<typeof memory>[] = []
    for (const kv of ['i8', 'bf16', 'i8', 'bf16'] as const) {
      const gemma = await Gemma.load(undefined, { device, kv })
      const options = { repetitionPenalty: 1.1, logitBias: { 5: 1 }, logprobs: 3, maxTokens: 8 }
      await Promise.all([gemma.generate(prompt, options), gemma.generate(evalText.slice(0, 900), { maxTokens: 8 })])
      const loaded = memory()
      for (let i = 0; i < 5; i++) await gemma.generate(evalText.slice(i, i + 100), { maxTokens: 8 })
      await gemma.perplexity(evalText.slice(0, 2000))
      // Programs keep their arenas; beyond them nothing is left of a request.
      const { programs } = gemma.info()
      expect(memory().buffers - loaded.buffers).toBeLessThanOrEqual(programs.programs)
      gemma.stream(prompt, endless)
      await gemma[Symbol.asyncDispose]()
      after.push(memory())
    }
    // One buffer is the device's own: scratch, as large as kernels have asked for so far.
    for (const { buffers } of after) expect(buffers).toBeLessThanOrEqual(1)
    expect(after[3]).toEqual(after[1])
  })

  test('a load that fails gives back what it had', async () => {
    using device = await Device.open('cpu', { isa: exactIsa, threads: 1 })
    await rejectsCode(Gemma.load(undefined, { device, contextLength: 1 }), 'ERR_INVALID_ARGUMENT')
    const { bytes, buffers } = device.memory()
    await rejectsCode(Gemma.load(undefined, { device, contextLength: 1 }), 'ERR_INVALID_ARGUMENT')
    await rejectsCode(Gemma.load('/nowhere.gguf', { device }), 'ERR_FILE')
    expect(device.memory()).toMatchObject({ bytes, buffers })
  })
})

describe('ending the process in flight', () => {
  compileLibrary()

  test.each([
    ['exit', { code: 0, signal: null, stderr: '' }],
    ['kill', { code: null, signal: 'SIGTERM' }],
    ['end', { code: 0, signal: null, stderr: '', stdout: '20 length\n' }],
    ['dispose', { code: 0, signal: null, stderr: '', stdout: 'ERR_DISPOSED\n' }],
    ['worker', { code: 0, signal: null, stderr: '', stdout: 'terminated\n' }],
  ])('%s', async (how, outcome) => {
    expect(await runChild('../../engine/children/generate.mjs', [how])).toMatchObject(outcome)
  })
})
