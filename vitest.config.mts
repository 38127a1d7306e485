import os from 'node:os'
import { configDefaults, defineConfig } from 'vitest/config'

// What does not depend on the backend: mathematics and text, the package's files, and the emulation itself, of which these compile a build of their own. `npm test` runs it.
const onceOnly = ['emulation', 'expressivity', 'irreps', 'package', 'wigner'].map((name) => `test/${name}.test.ts`)

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    exclude: [...configDefaults.exclude, ...(process.env.EQUITENSOR_BACKEND === 'cuda' ? onceOnly : [])],
    testTimeout: 60_000,
    // An emulated kernel runs on one thread. By default there is a core fewer than there are: of two, one.
    ...(process.env.EQUITENSOR_BINARY === 'emulated' ? { maxWorkers: os.availableParallelism() } : {}),
  },
})
