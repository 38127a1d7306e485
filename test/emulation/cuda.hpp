// CUDA as plain C++20, to be force-included (-include test/emulation/cuda.hpp) when cuda/*.cu and cuda/*.cpp are compiled for a machine
// without a GPU: CUDA threads are fibers, blocks run one after another, and misuse is reported (block.cpp).
#pragma once
#define EQUITENSOR_EMULATED 1

// __shared__ is missing on purpose: kernels get shared memory from cuda/device.cuh. So is __noinline__, which libstdc++ uses itself.
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "test/emulation/vectors.hpp"
#include "test/emulation/device.hpp"
#include "test/emulation/runtime.hpp"
#include "test/emulation/intrinsics.hpp"
#include <tuple>

namespace emulated {

// What a device refuses at once, whether or not the stream is being captured.
inline cudaError_t check_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;  // each of the three is bounded below, so this cannot wrap
  const bool block_fits = block.x && block.y && block.z && block.x <= device.threads_per_block && block.y <= device.threads_per_block &&
                          block.z <= device.block_z && threads <= device.threads_per_block;
  const bool grid_fits =
      grid.x && grid.y && grid.z && grid.x <= device.grid_x && grid.y <= device.grid_yz && grid.z <= device.grid_yz;
  if (!block_fits || !grid_fits) return cudaErrorInvalidConfiguration;
  if (shared_bytes > device.default_shared_limit && shared_bytes > allowed_shared(kernel)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

// Runs a kernel now, whatever streams wait for. False: it misbehaved, stderr says how.
template <class... Parameters>
bool execute(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, const std::tuple<Parameters...>& arguments) {
  const auto call = [&] { std::apply(kernel, arguments); };
  Launch launch;
  launch.grid = grid;
  launch.block = block;
  launch.shared_bytes = shared_bytes;
  const bool opted_in = shared_bytes <= allowed_shared(reinterpret_cast<const void*>(kernel));
  launch.shared_limit = opted_in ? device.shared_limit : device.default_shared_limit;
  launch.call = [](const void* closure) { (*static_cast<decltype(call)*>(closure))(); };
  launch.closure = &call;
  if (const auto interpreter = detail::interpreter.load()) {
    const auto interpreted = std::apply([&](const auto&... values) {
      const Argument bytes[] = {{&values, sizeof values}..., {}};
      return interpreter(reinterpret_cast<const void*>(kernel), launch, std::span(bytes, sizeof...(values)));
    }, arguments);
    if (interpreted) return *interpreted;
  }
  return run_grid(launch);
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...)
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   std::type_identity_t<Parameters>... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "CUDA copies a kernel's arguments byte by byte");
  const cudaError_t error = check_launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes);
  if (error != cudaSuccess) return error;
  return enqueue(stream, [=, values = std::tuple<Parameters...>(arguments...)] {
    return execute(kernel, grid, block, shared_bytes, values) ? cudaSuccess : cudaErrorLaunchFailure;
  });
}

}  // namespace emulated
