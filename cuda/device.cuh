// What every kernel is written with: global memory, shared memory, launches. The same sources compile as host C++ with the emulation
// header force-included (it defines EQUITENSOR_EMULATED and CUDA's own names), so that kernels are tested where no GPU is.
#pragma once
#ifndef EQUITENSOR_EMULATED
#include <cuda_runtime.h>
#endif
#include <cstddef>
#include <cstdint>

namespace equitensor::cuda {

// `lanes` neighbouring numbers, as one access of up to 16 bytes.
template <class T, int lanes>
struct alignas(lanes == 1 ? alignof(T) : sizeof(T) * lanes) Pack {
  T value[lanes];
};

// All traffic with operands in global memory goes through these two: here widths are decided, and the emulation counts bytes here.
template <int lanes = 1, class T>
__device__ __forceinline__ Pack<T, lanes> load(const T* p) {
#ifdef EQUITENSOR_EMULATED
  emulated::count_load(p, sizeof(T) * lanes);
#endif
  return *reinterpret_cast<const Pack<T, lanes>*>(p);
}
template <int lanes = 1, class T>
__device__ __forceinline__ void store(T* p, Pack<T, lanes> v) {
#ifdef EQUITENSOR_EMULATED
  emulated::count_store(p, sizeof(T) * lanes);
#endif
  *reinterpret_cast<Pack<T, lanes>*>(p) = v;
}
// Coefficients and indices of a plan, the same for all items: re-read from cache, so counted apart from operands.
template <int lanes = 1, class T>
__device__ __forceinline__ Pack<T, lanes> load_table(const T* p) {
#ifdef EQUITENSOR_EMULATED
  emulated::count_table(p, sizeof(T) * lanes);
#endif
  return *reinterpret_cast<const Pack<T, lanes>*>(p);
}

// The launch's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef EQUITENSOR_EMULATED
  return static_cast<T*>(emulated::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char equitensor_dynamic_shared[];
  return reinterpret_cast<T*>(equitensor_dynamic_shared);
#endif
}
// Shared memory of a size that is known at compile time; `id` tells two of one type apart.
template <class T, int id = 0>
__device__ __forceinline__ T& static_shared() {
#ifdef EQUITENSOR_EMULATED
  return emulated::static_shared<T, id>();
#else
  __shared__ T memory;
  return memory;
#endif
}

// Enqueues kernel<<<grid, block, shared_bytes, stream>>>(arguments...).
template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                          Arguments&&... arguments) {
#ifdef EQUITENSOR_EMULATED
  return emulated::launch(kernel, grid, block, shared_bytes, stream, static_cast<Parameters>(arguments)...);
#else
  return [&](Parameters... values) {
    void* pointers[] = {static_cast<void*>(&values)..., nullptr};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes, stream);
  }(static_cast<Parameters>(arguments)...);
#endif
}

}  // namespace equitensor::cuda
