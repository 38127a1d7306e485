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
// Adds to numbers that other threads add to as well, in no particular order. 16 bytes of float32 are one access from sm_90 on. Not atomicAdd, from which nvcc
// makes PTX that reads the number, though the machine code does not.
template <int lanes = 1, class T>
__device__ __forceinline__ void add_atomically(T* p, Pack<T, lanes> v) {
#ifdef EQUITENSOR_EMULATED
  for (int i = 0; i < lanes; ++i) atomicAdd(p + i, v.value[i]);
#else
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool is_one_access = sizeof(T) == 4 && lanes == 4;
#else
  constexpr bool is_one_access = false;
#endif
  if constexpr (is_one_access) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.value[0]), "f"(v.value[1]), "f"(v.value[2]), "f"(v.value[3]));
  } else {
#pragma unroll
    for (int i = 0; i < lanes; ++i)
      if constexpr (sizeof(T) == 4)
        asm volatile("red.global.add.f32 [%0], %1;" ::"l"(p + i), "f"(v.value[i]));
      else
        asm volatile("red.global.add.f64 [%0], %1;" ::"l"(p + i), "d"(v.value[i]));
  }
#endif
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
// The same by its address of 32 bits, in bytes. Through a pointer, which has 64, nvcc forms an address in five instructions instead of two.
__device__ __forceinline__ unsigned dynamic_shared_begin() {
#ifdef EQUITENSOR_EMULATED
  return 0;
#else
  return unsigned(__cvta_generic_to_shared(dynamic_shared<char>()));
#endif
}
template <class T>
__device__ __forceinline__ T& shared_at(unsigned address) {
#ifdef EQUITENSOR_EMULATED
  return *reinterpret_cast<T*>(static_cast<char*>(emulated::dynamic_shared()) + address);
#else
  return *static_cast<T*>(__cvta_shared_to_generic(address));
#endif
}
// One number of it. In assembler, because nvcc 13.0 never ends with a loop that moves numbers between global memory and shared_at.
__device__ __forceinline__ void store_shared(unsigned address, float v) {
#ifdef EQUITENSOR_EMULATED
  shared_at<float>(address) = v;
#else
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
#endif
}
__device__ __forceinline__ void store_shared(unsigned address, double v) {
#ifdef EQUITENSOR_EMULATED
  shared_at<double>(address) = v;
#else
  asm volatile("st.shared.f64 [%0], %1;" ::"r"(address), "d"(v) : "memory");
#endif
}
template <class T>
__device__ __forceinline__ T load_shared(unsigned address) {
#ifdef EQUITENSOR_EMULATED
  return shared_at<T>(address);
#else
  T v;
  if constexpr (sizeof(T) == 4)
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  else
    asm volatile("ld.shared.f64 %0, [%1];" : "=d"(v) : "r"(address) : "memory");
  return v;
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
