/** The whole-model peer: node-llama-cpp with its prebuilt CPU binary, as its users call it. */

// The package is installed beside the benchmarks' sources, not where they are compiled to.
const entry = new URL(
  '../../../benchmarks/peers/node-llama-cpp/node_modules/node-llama-cpp/dist/index.js',
  import.meta.url,
)

export const llamaName = 'node-llama-cpp'

/** The part of the package that is used here. */
export interface Sequence {
  evaluateWithoutGeneratingNewTokens(ids: number[]): Promise<void>
  evaluate(ids: number[], options: Record<string, unknown>): AsyncIterable<number>
  clearHistory(): Promise<void>
}
interface Model {
  detokenize(ids: readonly number[], special?: boolean): string
  createContext(options: Record<string, unknown>): Promise<{ getSequence(): Sequence }>
}
interface Package {
  getLlama(options: Record<string, unknown>): Promise<{ loadModel(options: Record<string, unknown>): Promise<Model> }>
}

/** Loads a model, and a context of so many sequences that its own batching shares. */
export async function loadLlama(options: {
  readonly path: string
  readonly threads: number
  readonly contextLength: number
  readonly sequences: number
}): Promise<{ model: Model; sequences: Sequence[] }> {
  const { path, threads, contextLength, sequences: count } = options
  const { getLlama } = (await import(entry.href)) as Package
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    progressLogs: false,
    maxThreads: threads,
    logLevel: 'error',
  })
  const model = await llama.loadModel({ modelPath: path })
  const context = await model.createContext({
    contextSize: contextLength,
    batchSize: 512,
    sequences: count,
    threads: { ideal: threads, min: threads },
  })
  return { model, sequences: Array.from({ length: count }, () => context.getSequence()) }
}
