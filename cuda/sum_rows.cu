#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

constexpr int rows_at_once = 8;  // a warp each, over 32 neighbouring components

template <class T>
__global__ __launch_bounds__(32 * rows_at_once) void sum_of_rows(const T* rows, T* out, bool accumulate, int dim, long long batch) {
  using Partial = T[rows_at_once][32];
  Partial& partial = static_shared<Partial>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
  T sum = 0;
  if (c < dim)
    for (long long i = warp; i < batch; i += rows_at_once) sum += load(rows + i * dim + c).value[0];
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= dim) return;
  for (int w = 1; w < rows_at_once; ++w) sum += partial[w][lane];
  store(out + c, Pack<T, 1>{accumulate ? load(out + c).value[0] + sum : sum});
}

template <class T>
void enqueue(const T* rows, T* out, bool accumulate, int dim, long long batch, cudaStream_t stream) {
  check(launch(sum_of_rows<T>, (dim + 31) / 32, 32 * rows_at_once, 0, stream, rows, out, accumulate, dim, batch), "cudaLaunchKernel");
}

}  // namespace

void sum_rows(const float* rows, float* out, bool accumulate, int dim, long long batch, cudaStream_t stream) {
  enqueue(rows, out, accumulate, dim, batch, stream);
}
void sum_rows(const double* rows, double* out, bool accumulate, int dim, long long batch, cudaStream_t stream) {
  enqueue(rows, out, accumulate, dim, batch, stream);
}

}  // namespace equitensor::cuda
