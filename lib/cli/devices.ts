/**
 * `lapidary devices`: what this machine offers.
 * @module
 */
import { Device, type DeviceInfo, type GpuListing } from '../index.ts'
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

function formatGpu({ kind, name, driver, computeCapability, memory, reason }: GpuListing): string {
  const facts = name
    ? `${name}, compute capability ${computeCapability}, ${formatBytes(memory)}, driver for ${driver}`
    : 'none'
  return `${kind}  ${facts}\n${reason ? `  ${reason}\n` : ''}`
}

/** Runs the command: a table, or with `json` everything `device.info()` knows of the processor, and `Device.list()` of GPUs. */
export async function devices(options: { json?: boolean }): Promise<void> {
  using device = await Device.open()
  const info = device.info()
  const gpus = Device.list().filter((listing): listing is GpuListing => listing.kind !== 'cpu')
  if (options.json) printJson([info, ...gpus])
  else print([formatDevice(info), ...gpus.map(formatGpu)].join(''))
}
