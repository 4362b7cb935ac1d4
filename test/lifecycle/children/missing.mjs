// Imports a copy of the package that has no addon. argv[2]: its dist/.
import { pathToFileURL } from 'node:url'

// A run against another build of the addon names it here: this copy must look in its own folder alone.
delete process.env.LAPIDARY_PREBUILD

try {
  await import(pathToFileURL(`${process.argv[2]}/index.js`).href)
} catch (error) {
  console.log(error.name, error.code, error.message)
}
