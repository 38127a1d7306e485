// What a kernel and its launch see of the block that runs (block.cpp).
#pragma once
#include "test/emulation/counters.hpp"
#include "test/emulation/device.hpp"
#include "test/emulation/vectors.hpp"
#include <source_location>

// CUDA's own variables, those of the thread that runs now.
inline thread_local constinit uint3 threadIdx = {}, blockIdx = {};
inline thread_local constinit dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulated {

// What a launch executes, without its types: `call(closure)` is one thread's run of the kernel.
struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  size_t shared_limit = 0;  // that static and dynamic shared memory may take together
  void (*call)(const void* closure) = nullptr;
  const void* closure = nullptr;
};

// Runs all blocks. False: one did what would be undefined on a device; stderr says what.
bool run_grid(const Launch& launch);

// The rest is for the thread that runs. Out of line: a kernel calls these in so many places that it would be longer than the emulator.
void wait_at_barrier(std::source_location where);
void wait_for_warp(unsigned mask, std::source_location where);
enum class Shuffle { index, up, down, exclusive_or };
// The value of another lane. As in CUDA, a shuffle orders no memory accesses: for those there is __syncwarp.
uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int argument, int width, std::source_location where);
unsigned vote(unsigned mask, bool predicate, std::source_location where);
void* static_memory(const void* key, size_t bytes);
[[noreturn]] void fail(std::source_location where, const char* format, ...) __attribute__((format(printf, 2, 3)));

namespace detail {
inline thread_local constinit void* dynamic_memory = nullptr;
template <class T, int id>
inline char static_shared_key;
}  // namespace detail

EQUITENSOR_NO_TSAN inline void* dynamic_shared() { return detail::dynamic_memory; }
template <class T, int id>
T& static_shared() {
  static_assert(alignof(T) <= 128);
  return *static_cast<T*>(static_memory(&detail::static_shared_key<T, id>, sizeof(T)));
}

}  // namespace emulated
