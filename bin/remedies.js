'use strict'

/** Everything that helps when the native addon is not there or does not load. */
module.exports = `What helps:
  - Build the addon in place:  npx equitensor build
  - The package manager blocked install scripts (npm 12, pnpm, --ignore-scripts). The line above is enough, or allow them:
      npm:   npm approve-scripts equitensor && npm rebuild equitensor
      pnpm:  pnpm approve-builds   (choose equitensor)
  - The build needs a C++20 compiler (g++ 12 or clang 15, or newer), make and Python 3:
      Debian, Ubuntu:  apt-get install g++ make python3
      Fedora:          dnf install gcc-c++ make python3
      Alpine:          apk add g++ make python3
      macOS:           xcode-select --install
      Windows:         not supported natively; use WSL
  - Where a CUDA toolkit is found (nvcc on PATH or in CUDA_HOME), its kernels are built too, which needs the toolkit 12.0 or newer
    and CMake 3.22 or newer. Without them:  npx equitensor build --cpu
  - The addon was built for another Node (20.17 or newer is needed), processor architecture or C library, as happens when
    node_modules is copied between machines or containers. Build it again where it runs:  npx equitensor build
  - The environment variable EQUITENSOR_BINARY (cpu, cuda or emulated) asks for a binary that is not there: unset it, or build that one.
  - See what was built and what this machine can run:  npx equitensor doctor`
