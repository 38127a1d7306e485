#include "cuda/device.cuh"
#include "cuda/sum.hpp"
#include <algorithm>

namespace equitensor::cuda {
namespace {

constexpr int threads = 256;
constexpr long long most_blocks = 1 << 16;

template <class T, int lanes>
__global__ __launch_bounds__(threads) void sum(const T* a, const T* b, T* out, long long packs) {
  for (long long i = (long long)blockIdx.x * threads + threadIdx.x; i < packs; i += (long long)gridDim.x * threads) {
    Pack<T, lanes> x = load<lanes>(a + lanes * i), y = load<lanes>(b + lanes * i);
#pragma unroll
    for (int k = 0; k < lanes; ++k) x.value[k] += y.value[k];
    store(out + lanes * i, x);
  }
}

template <class T, int lanes>
cudaError_t launch_sum(const void* a, const void* b, void* out, long long count, cudaStream_t stream) {
  const long long blocks = std::min((count / lanes + threads - 1) / threads, most_blocks);
  return launch(sum<T, lanes>, dim3(unsigned(blocks)), dim3(threads), 0, stream, static_cast<const T*>(a), static_cast<const T*>(b),
                static_cast<T*>(out), count / lanes);
}

template <class T>
cudaError_t sum_of(const void* a, const void* b, void* out, long long count, cudaStream_t stream) {
  constexpr int wide = 16 / sizeof(T);
  const bool aligned = (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  return aligned && count % wide == 0 ? launch_sum<T, wide>(a, b, out, count, stream) : launch_sum<T, 1>(a, b, out, count, stream);
}

}  // namespace

cudaError_t enqueue_sum(bool is_double, const void* a, const void* b, void* out, long long count, cudaStream_t stream) {
  if (count <= 0) return cudaSuccess;
  return is_double ? sum_of<double>(a, b, out, count, stream) : sum_of<float>(a, b, out, count, stream);
}

}  // namespace equitensor::cuda
