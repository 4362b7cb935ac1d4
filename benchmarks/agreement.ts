/** Root mean square of the difference, relative to that of the reference. */
export function relativeError(got: ArrayLike<number>, reference: ArrayLike<number>): number {
  let difference = 0
  let size = 0
  for (let i = 0; i < reference.length; i++) {
    difference += ((got[i] as number) - (reference[i] as number)) ** 2
    size += (reference[i] as number) ** 2
  }
  return Math.sqrt(difference / size)
}
