// The emulated device's limits, those of compute capability 9.0, and what a process set.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>

namespace emulated {

struct Device {
  size_t shared_limit = 227 << 10;         // static and dynamic together, a block, when a kernel has opted in
  size_t default_shared_limit = 48 << 10;  // when it has not
  unsigned threads_per_block = 1024, block_z = 64;
  unsigned grid_x = 0x7fffffff, grid_yz = 65535;
  // Only so many blocks of a launch run, the last ones; 0: all. An array of more than 2^31 elements is tested by its end.
  std::atomic<uint64_t> last_blocks = 0;
  // 0: threads and blocks run in order. Otherwise both are shuffled, the same way each time.
  uint64_t seed = std::getenv("EQUITENSOR_EMULATION_SEED") ? std::strtoull(std::getenv("EQUITENSOR_EMULATION_SEED"), nullptr, 0) : 0;
};
inline Device device;

struct Launch;
// What a kernel is called with, byte by byte.
struct Argument {
  const void* data;
  size_t bytes;
};

namespace detail {
// Runs a launch in another way than the C++ would, if it knows the kernel: whether it behaved. Null, or ptx.cpp's.
inline std::atomic<std::optional<bool> (*)(const void* kernel, const Launch&, std::span<const Argument>)> interpreter = nullptr;
inline std::mutex opted_in_mutex;
inline std::unordered_map<const void*, size_t> opted_in;
}  // namespace detail

// cudaFuncAttributeMaxDynamicSharedMemorySize. False: no block of this device can have so much.
inline bool allow_shared(const void* kernel, size_t bytes) {
  if (bytes > device.shared_limit) return false;
  const std::lock_guard lock(detail::opted_in_mutex);
  detail::opted_in[kernel] = bytes;
  return true;
}
inline size_t allowed_shared(const void* kernel) {
  const std::lock_guard lock(detail::opted_in_mutex);
  const auto found = detail::opted_in.find(kernel);
  return found == detail::opted_in.end() ? 0 : found->second;
}

}  // namespace emulated
