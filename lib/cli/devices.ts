/**
 * `lapidary devices`: what this machine offers.
 * @module
 */
import { Device } from '../index.ts'

/** The text that the command prints: a table, or with `json` everything `device.info()` knows. */
export async function describeDevices(json: boolean): Promise<string> {
  using device = await Device.open()
  const info = device.info()
  if (json) return `${JSON.stringify([info], null, 2)}\n`
  const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`
  const lines = [
    `${info.kind}  ${info.name}, ${info.threads} threads, ${gib(info.memoryLimit)}`,
    ...info.isas
      .filter((isa) => isa.compiled)
      .map(
        (isa) => `  ${isa.name.padEnd(14)}${isa.active ? 'active' : isa.supported ? 'supported' : (isa.reason ?? '')}`,
      ),
    ...Object.entries(info.notes).map(([name, note]) => `  ${name}: ${note}`),
  ]
  return `${lines.join('\n')}\n`
}
