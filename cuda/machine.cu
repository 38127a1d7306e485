#include "cuda/device.cuh"
#include "cuda/machine.hpp"
#include <algorithm>

namespace equitensor::cuda {
namespace {

constexpr int threads = 256;

// Four loads of 16 bytes in flight a thread are 96 KiB an SM at 75 % occupancy; 3.35 TB/s on 132 SMs at 0.7 us of latency need 18.
constexpr int in_flight = 4;
constexpr long long most_copy_blocks = 1 << 16;

__global__ __launch_bounds__(threads) void copy(const float* from, float* to, long long packs, const unsigned char* rest,
                                                unsigned char* rest_to, int rest_bytes) {
  const long long first = (long long)blockIdx.x * threads + threadIdx.x, stride = (long long)gridDim.x * threads;
  long long i = first;
  for (; i + (in_flight - 1) * stride < packs; i += in_flight * stride) {
    Pack<float, 4> value[in_flight];
#pragma unroll
    for (int n = 0; n < in_flight; ++n) value[n] = load<4>(from + 4 * (i + n * stride));
#pragma unroll
    for (int n = 0; n < in_flight; ++n) store(to + 4 * (i + n * stride), value[n]);
  }
  for (; i < packs; i += stride) store(to + 4 * i, load<4>(from + 4 * i));
  if (first < rest_bytes) store(rest_to + first, load(rest + first));
}

// A multiply-add has a latency of 4 cycles (8 in double), so that 8 chains alone keep a scheduler busy. The loop's own three
// instructions are 2 % of the 128 multiply-adds between them.
constexpr int chains = 8, steps = 16;
// Eight blocks fill a multiprocessor: sixteen whole rounds.
constexpr int fma_blocks_per_multiprocessor = 128;

template <class T>
__global__ __launch_bounds__(threads) void fma_chain(long long iterations, T* out) {
  const T factor = T(0.999), term = T(0.001);
  T sum[chains];
#pragma unroll
  for (int c = 0; c < chains; ++c) sum[c] = T(threadIdx.x + c);
  for (long long i = 0; i < iterations; ++i) {
#pragma unroll
    for (int s = 0; s < steps; ++s) {
#pragma unroll
      for (int c = 0; c < chains; ++c) sum[c] = sum[c] * factor + term;
    }
  }
  T total = 0;
#pragma unroll
  for (int c = 0; c < chains; ++c) total += sum[c] / chains;
  // No sum is negative, which the compiler cannot know: every thread's chains have to be computed.
  if (total < 0 || (blockIdx.x == 0 && threadIdx.x == 0)) store(out, Pack<T, 1>{total});
}

}  // namespace

cudaError_t enqueue_copy(const void* from, void* to, long long bytes, cudaStream_t stream) {
  if (bytes <= 0) return cudaSuccess;
  const long long packs = bytes / 16;
  const long long blocks = std::clamp<long long>((packs + in_flight * threads - 1) / (in_flight * threads), 1, most_copy_blocks);
  return launch(copy, dim3(unsigned(blocks)), dim3(threads), 0, stream, static_cast<const float*>(from), static_cast<float*>(to), packs,
                static_cast<const unsigned char*>(from) + 16 * packs, static_cast<unsigned char*>(to) + 16 * packs, int(bytes % 16));
}

cudaError_t enqueue_fma_chain(bool is_double, int multiprocessors, long long iterations, void* out, cudaStream_t stream) {
  const dim3 blocks = dim3(unsigned(fma_blocks_per_multiprocessor * multiprocessors));
  return is_double ? launch(fma_chain<double>, blocks, dim3(threads), 0, stream, iterations, static_cast<double*>(out))
                   : launch(fma_chain<float>, blocks, dim3(threads), 0, stream, iterations, static_cast<float*>(out));
}

long long fma_chain_operations(int multiprocessors, long long iterations) {
  return iterations * chains * steps * threads * fma_blocks_per_multiprocessor * multiprocessors;
}

}  // namespace equitensor::cuda
