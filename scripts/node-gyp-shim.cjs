#!/usr/bin/env node
// What prebuildify runs in place of node-gyp (scripts/prebuild.mjs): no Node headers and no Python needed.
process.argv.push(`--platform=${process.env.PREBUILD_PLATFORM ?? process.platform}`)
require('./build-native.cjs')
