// Texts in order of how well they fit. With a model that generates text: how likely it finds each one (perplexity, lower is likelier).
// With an embedding model: how near each is in meaning to the query (cosine).
//
//   node examples/ranking.mjs                      the bundled model
//   node examples/ranking.mjs embeddinggemma-300m-q8_0.gguf
import { Gemma } from 'lapidary'

const gemma = await Gemma.load(process.argv[2])
const query = 'She looked out of the window'
const candidates = [`${query} and saw her brother.`, `${query} brother saw and her.`, `${query} window window the of.`]

const scored = gemma.info().architecture.includes('embedding') ? await byMeaning() : await byLikelihood()
for (const { text, score } of scored) console.log(`${score.toFixed(3).padStart(10)}  ${text}`)

async function byLikelihood() {
  const scores = await Promise.all(candidates.map((text) => gemma.perplexity(text)))
  return candidates.map((text, index) => ({ text, score: scores[index].perplexity })).sort((a, b) => a.score - b.score)
}

async function byMeaning() {
  const [first, ...others] = await gemma.embed([query, ...candidates])
  const cosine = (vector) => vector.reduce((sum, value, index) => sum + value * first[index], 0) // vectors have length 1
  return candidates.map((text, index) => ({ text, score: cosine(others[index]) })).sort((a, b) => b.score - a.score)
}
