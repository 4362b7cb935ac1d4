/** Our process. */
import { Gemma, type GemmaOptions } from 'lapidary'
import { serve } from './contestant.ts'

let gemma: Gemma | undefined

/** Random weights generate anything: nothing but the count may end them. */
const endless = { temperature: 0, stopTokens: [] } as const

/** Generates `count` + 1 tokens; the time per token from the first to the last. */
async function generate(ids: number[], count: number): Promise<number> {
  let start = 0
  let seen = 0
  for await (const piece of (gemma as Gemma).stream(ids, { ...endless, maxTokens: count + 1 })) {
    if (seen === 0) start = performance.now()
    seen += piece.ids.length
  }
  if (seen !== count + 1) throw new Error(`expected ${count + 1} tokens, got ${seen}`)
  return (performance.now() - start) / count
}

serve({
  async load({ path, threads, contextLength, options }) {
    const start = performance.now()
    gemma = await Gemma.load(path, { threads, contextLength, ...(options as GemmaOptions) })
    const prompt = Array.from({ length: 16 }, (_, i) => 1000 + i)
    await gemma.generate(prompt, { ...endless, maxTokens: 1 })
    return { firstTokenMs: performance.now() - start }
  },

  async prefill({ ids }) {
    const start = performance.now()
    const { cachedTokens } = await (gemma as Gemma).generate(ids, { ...endless, maxTokens: 1 })
    if (cachedTokens > 0) throw new Error(`expected a prompt that nothing is cached of, ${cachedTokens} tokens were`)
    return { ms: performance.now() - start }
  },

  async decode({ ids, count }) {
    return { ms: await generate(ids, count) }
  },

  async batch({ prompts, count }) {
    // The prompts are in the cache before any time is taken.
    await Promise.all(prompts.map((ids) => (gemma as Gemma).generate(ids.slice(0, -1), { ...endless, maxTokens: 1 })))
    const times = await Promise.all(prompts.map((ids) => generate(ids, count)))
    return { ms: Math.max(...times) / prompts.length }
  },
})
