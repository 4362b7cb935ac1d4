/**
 * Stop strings: where generated text ends, also across the borders of tokens.
 * @module
 */

/**
 * Looks for stop strings in text that comes in pieces. Text that may be the beginning of one is held back until it is known.
 * The earliest match wins; of matches that end together the one that starts first.
 *
 * @example
 * const stops = new StopStrings(['\n\n'])
 * stops.push('one\n')   // { text: 'one', stopped: false }
 * stops.push('\ntwo')   // { text: '', stopped: true }
 */
export class StopStrings {
  readonly #stops: readonly string[]
  #held = ''

  constructor(stops: readonly string[]) {
    this.#stops = stops
  }

  /** Takes text; returns what may be shown of it and of what was held back. Nothing follows `stopped`. */
  push(text: string): { text: string; stopped: boolean } {
    const all = this.#held + text
    let at = -1
    let end = Number.POSITIVE_INFINITY
    for (const stop of this.#stops) {
      const found = all.indexOf(stop)
      if (found < 0) continue
      // The match that is complete first ends the text, as if it had come character by character.
      const foundEnd = found + stop.length
      if (foundEnd < end || (foundEnd === end && found < at)) {
        at = found
        end = foundEnd
      }
    }
    if (at >= 0) {
      this.#held = ''
      return { text: all.slice(0, at), stopped: true }
    }
    const held = this.#stops.reduce((most, stop) => Math.max(most, overlap(all, stop)), 0)
    this.#held = all.slice(all.length - held)
    return { text: all.slice(0, all.length - held), stopped: false }
  }

  /** The text is over: what was held back was no stop string. */
  end(): string {
    const held = this.#held
    this.#held = ''
    return held
  }
}

/** The length of the longest end of `text` that `stop` begins with, short of the whole of `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length
  }
  return 0
}
