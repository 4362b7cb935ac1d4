#!/usr/bin/env node
// What prebuildify runs in place of node-gyp (scripts/prebuild.mjs): no Node headers and no Python needed.
require('./build-native.cjs')
