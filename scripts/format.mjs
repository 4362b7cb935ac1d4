// Formats everything: Biome for TypeScript, JavaScript and JSON, clang-format for C++. --check changes nothing and reports
// what clang-format would change (Biome's part is in `npm run lint`).
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { packageRoot, requireTools } from './native-variants.mjs'

requireTools({ 'clang-format': 'clang-format' })
const check = process.argv.includes('--check')
const cpp = ['native', 'test/native'].flatMap((folder) =>
  readdirSync(path.join(packageRoot, folder), { recursive: true })
    .filter((file) => /\.(h|cc|cu|cuh)$/.test(file))
    .map((file) => path.join(folder, file)),
)
const commands = check
  ? [['clang-format', '--dry-run', '--Werror', ...cpp]]
  : [
      ['npx', 'biome', 'check', '--write', '.'],
      ['clang-format', '-i', ...cpp],
    ]
const failed = commands.filter(
  ([program, ...args]) => spawnSync(program, args, { cwd: packageRoot, stdio: 'inherit' }).status !== 0,
)
if (failed.length > 0) process.exit(1)
