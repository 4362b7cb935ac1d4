/**
 * `lapidary devices`: what this machine offers.
 * @module
 */
import { Device, type DeviceInfo } from '../index.ts'
import { formatBytes } from './format.ts'
import { print, printJson } from './terminal.ts'

function formatDevice(info: DeviceInfo): string {
  const lines = [
    `${info.kind}  ${info.name}, ${info.threads} threads, ${formatBytes(info.memoryLimit)}`,
    ...info.isas
      .filter((isa) => isa.compiled)
      .map(
        (isa) => `  ${isa.name.padEnd(14)}${isa.active ? 'active' : isa.supported ? 'supported' : (isa.reason ?? '')}`,
      ),
    ...Object.entries(info.notes).map(([name, note]) => `  ${name}: ${note}`),
  ]
  return `${lines.join('\n')}\n`
}

/** Runs the command: a table, or with `json` everything `device.info()` knows, of every device. */
export async function devices(options: { json?: boolean }): Promise<void> {
  using device = await Device.open()
  const info = device.info()
  if (options.json) printJson([info])
  else print(formatDevice(info))
}
