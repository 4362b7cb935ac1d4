/** What whole models have to reach, by the names of their rows: on the machine with AMX that benchmarks/README.md describes. */
import type { Goal } from '../goals.ts'
import { llamaName } from '../peers/llama.ts'

const faster = (times: number): Goal => ({ times, peer: llamaName })
const onAmx = (times: number, tokensPerSecond: number): Goal[] => [
  { isa: 'amx', ...faster(times) },
  { isa: 'amx', atLeast: tokensPerSecond },
]
const batchOf = (rows: string): Record<string, Goal[]> => ({
  [`${rows}: 8 sequences at 256`]: [{ times: 5, than: `${rows}: decode at 512` }],
})
const stored1b = 'gemma-3-1b q4_0, head as stored'
const default1b = 'gemma-3-1b q4_0, default head'
const stored4b = 'gemma-3-4b q4_0, head as stored'
const default4b = 'gemma-3-4b q4_0, default head'
/** A gigabyte in MiB, nearly. */
const gigabyte = Math.round(1e9 / 2 ** 20)

export const modelGoals: Readonly<Record<string, readonly Goal[]>> = {
  [`${stored1b}: prefill 512`]: onAmx(9, 3000),
  [`${stored1b}: prefill 2048`]: onAmx(9, 3000),
  [`${stored1b}: decode at 512`]: [{ percent: 95, of: 'read' }, faster(1.2)],
  [`${default1b}: decode at 512`]: [faster(1.5)],
  ...batchOf(stored1b),
  ...batchOf(default1b),
  [`${stored1b}: resident memory`]: [{ atMost: gigabyte }],
  [`${default1b}: resident memory`]: [{ atMost: gigabyte }],
  [`${default1b}: load to first token`]: [{ atMost: 1.5 }],
  [`${stored4b}: prefill 512`]: onAmx(9, 450),
  [`${stored4b}: prefill 2048`]: onAmx(9, 450),
  [`${stored4b}: decode at 512`]: [faster(1.4)],
  [`${stored4b}: decode at 32768`]: [{ percent: 90, of: 'read' }],
  [`${default4b}: decode at 32768`]: [{ percent: 90, of: 'read' }],
}
