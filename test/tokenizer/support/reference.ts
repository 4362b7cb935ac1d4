/**
 * SentencePiece's encoding as the specification states it (section 7.1), with strings and plain loops: what the library is compared
 * with. Shares nothing with it.
 * @module
 */

export interface ReferencePiece {
  readonly piece: string
  readonly score: number
  readonly kind: 'normal' | 'frozen' | 'other'
}

export interface ReferenceVocabulary {
  readonly ids: ReadonlyMap<string, number>
  readonly pieces: readonly ReferencePiece[]
  /** Longest first. */
  readonly frozen: readonly string[]
}

export function referenceVocabulary(pieces: readonly ReferencePiece[]): ReferenceVocabulary {
  const frozen = pieces.filter(({ kind }) => kind === 'frozen').map(({ piece }) => piece)
  frozen.sort((a, b) => b.length - a.length)
  return { ids: new Map(pieces.map(({ piece }, id) => [piece, id])), pieces, frozen }
}

interface ReferenceSymbol {
  readonly text: string
  readonly frozen: boolean
}

/** Ids of a text: every pair is looked at in every round. */
export function referenceEncode({ ids, pieces, frozen }: ReferenceVocabulary, text: string): number[] {
  const escaped = text.replace(/\p{Surrogate}/gu, '\ufffd').replaceAll(' ', '\u2581')
  const symbols: ReferenceSymbol[] = []
  for (let at = 0; at < escaped.length; ) {
    const found = frozen.find((piece) => escaped.startsWith(piece, at))
    const text = found ?? String.fromCodePoint(escaped.codePointAt(at)!)
    symbols.push({ text, frozen: found !== undefined })
    at += text.length
  }
  for (;;) {
    let best = -1
    let bestScore = Number.NEGATIVE_INFINITY
    for (let i = 0; i + 1 < symbols.length; i++) {
      const left = symbols[i]!
      const right = symbols[i + 1]!
      if (left.frozen || right.frozen) continue
      const id = ids.get(left.text + right.text)
      if (id === undefined || pieces[id]!.kind !== 'normal' || pieces[id]!.score <= bestScore) continue
      best = i
      bestScore = pieces[id]!.score
    }
    if (best < 0) break
    symbols.splice(best, 2, { text: symbols[best]!.text + symbols[best + 1]!.text, frozen: false })
  }
  return symbols.flatMap(({ text }) => {
    const id = ids.get(text)
    if (id !== undefined && pieces[id]!.kind !== 'other') return [id]
    return [...Buffer.from(text, 'utf8')].map((byte) => {
      const hex = byte.toString(16).toUpperCase().padStart(2, '0')
      return ids.get(`<0x${hex}>`)!
    })
  })
}

/** Byte-pair encoding with a list of merges, the first of the list first; every character of the text has a piece. */
export function referenceMerge(merges: readonly (readonly [string, string])[], text: string): string[] {
  const ranks = new Map(merges.map((pair, rank) => [pair.join('\0'), rank]))
  const symbols = [...text]
  for (;;) {
    let best = -1
    let bestRank = Number.POSITIVE_INFINITY
    for (let i = 0; i + 1 < symbols.length; i++) {
      const rank = ranks.get(`${symbols[i]}\0${symbols[i + 1]}`)
      if (rank === undefined || rank >= bestRank) continue
      best = i
      bestRank = rank
    }
    if (best < 0) return symbols
    symbols.splice(best, 2, symbols[best]! + symbols[best + 1]!)
  }
}
