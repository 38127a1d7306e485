#include "cuda/host.hpp"
#include <cmath>

namespace equitensor::cuda {
namespace {

constexpr int rows_at_once = 8;  // a warp each, over 32 neighbouring components
// Of more rows first as many sets as the root of their number, each into its first row: one after the other, 100,000 rows of a few components are 12,500 dependent
// additions, in two launches 80.
constexpr long long most_at_once = 4096;

// out[k] = sum of rows k, k + sets, k + 2 sets, ..., or out[k] += it. out may be the rows: those of set k are nobody else's.
template <class T>
__global__ __launch_bounds__(32 * rows_at_once) void sum_of_rows(const T* rows, T* out, bool accumulate, int dim, long long batch) {
  using Partial = T[rows_at_once][32];
  Partial& partial = static_shared<Partial>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.x * 32 + lane, set = blockIdx.y, sets = gridDim.y;
  T sum = 0;
  if (c < dim)
    for (long long i = set + (long long)warp * sets; i < batch; i += rows_at_once * sets) sum += load(rows + i * dim + c).value[0];
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || c >= dim) return;
  for (int w = 1; w < rows_at_once; ++w) sum += partial[w][lane];
  out += (long long)set * dim + c;
  store(out, Pack<T, 1>{accumulate ? load(out).value[0] + sum : sum});
}

template <class T>
void enqueue(T* rows, T* out, bool accumulate, int dim, long long batch, cudaStream_t stream) {
  const auto sum = [&](T* to, bool adds, long long sets) {
    check(launch(sum_of_rows<T>, dim3((dim + 31) / 32, unsigned(sets)), 32 * rows_at_once, 0, stream, rows, to, adds, dim, batch), "cudaLaunchKernel");
    batch = sets;
  };
  if (batch > most_at_once) sum(rows, false, std::llround(std::sqrt(double(std::min<long long>(batch, 1ll << 30)))));
  sum(out, accumulate, 1);
}

}  // namespace

void sum_rows(float* rows, float* out, bool accumulate, int dim, long long batch, cudaStream_t stream) {
  enqueue(rows, out, accumulate, dim, batch, stream);
}
void sum_rows(double* rows, double* out, bool accumulate, int dim, long long batch, cudaStream_t stream) {
  enqueue(rows, out, accumulate, dim, batch, stream);
}

}  // namespace equitensor::cuda
