/** The peer's process. */
import { loadLlama, type Sequence } from '../peers/llama.ts'
import { serve } from './contestant.ts'

const sequences: Sequence[] = []
/** The tokens that a sequence's cache holds. */
let held: number[] = []
const only = (): Sequence => sequences[0] as Sequence

/** Generates `count` + 1 tokens; the time per token from the first to the last. */
async function generate(sequence: Sequence, last: number, count: number): Promise<{ ms: number; ids: number[] }> {
  const ids: number[] = []
  let start = 0
  for await (const id of sequence.evaluate([last], { temperature: 0, yieldEogToken: true })) {
    ids.push(id)
    if (ids.length === 1) start = performance.now()
    if (ids.length > count) break
  }
  return { ms: (performance.now() - start) / count, ids }
}

serve({
  async load({ path, threads, contextLength, options: { sequences: wanted = 1 } }) {
    const start = performance.now()
    const loaded = await loadLlama({ path, threads, contextLength, sequences: Number(wanted) })
    sequences.push(...loaded.sequences)
    const prompt = Array.from({ length: 16 }, (_, i) => 1000 + i)
    for await (const _ of only().evaluate(prompt, { temperature: 0, yieldEogToken: true })) break
    return { firstTokenMs: performance.now() - start }
  },

  async prefill({ ids }) {
    await only().clearHistory()
    held = []
    const start = performance.now()
    await only().evaluateWithoutGeneratingNewTokens(ids)
    const ms = performance.now() - start
    held = ids
    return { ms }
  },

  async decode({ ids, count }) {
    if (held.length < ids.length - 1) {
      await only().clearHistory()
      await only().evaluateWithoutGeneratingNewTokens(ids.slice(0, -1))
    }
    const { ms, ids: generated } = await generate(only(), ids.at(-1) as number, count)
    held = [...ids, ...generated]
    return { ms }
  },

  async batch({ prompts, count }) {
    await Promise.all(
      prompts.map(async (ids, index) => {
        await (sequences[index] as Sequence).clearHistory()
        await (sequences[index] as Sequence).evaluateWithoutGeneratingNewTokens(ids.slice(0, -1))
      }),
    )
    held = []
    const times = await Promise.all(
      prompts.map((ids, index) => generate(sequences[index] as Sequence, ids.at(-1) as number, count)),
    )
    return { ms: Math.max(...times.map(({ ms }) => ms)) / prompts.length }
  },
})
