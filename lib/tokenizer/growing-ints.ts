/** @internal A list of integers whose length is not known beforehand. */
export class GrowingInts {
  values: Int32Array = new Int32Array(1024)
  #length = 0

  push(value: number): void {
    if (this.#length === this.values.length) {
      const grown = new Int32Array(this.#length * 2)
      grown.set(this.values)
      this.values = grown
    }
    this.values[this.#length++] = value
  }

  /** The list in an array of its length. */
  trimmed(): Int32Array {
    return this.values.slice(0, this.#length)
  }
}
