// Kernels with one mistake each. A check here returns false where the emulation finds the mistake; test/emulation.test.ts knows which
// build has to.
#include "checks.hpp"

using namespace equitensor::cuda;

namespace {

// On the heap, where AddressSanitizer watches both ends.
template <class T>
std::unique_ptr<T[]> global(size_t count) {
  return std::make_unique<T[]>(count);
}
using Row = float[64];

__global__ void store_past_global(float* out) { store(out + threadIdx.x + 1, Pack<float, 1>{1}); }
bool global_overrun() { return succeeded(launch(store_past_global, 1, 64, 0, nullptr, global<float>(64).get())); }

__global__ void store_past_static(float* out) {
  float* row = static_shared<Row>();
  row[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x];
}
bool static_overrun() { return succeeded(launch(store_past_static, 1, 64, 0, nullptr, global<float>(64).get())); }

__global__ void store_before_dynamic(float* out) {
  float* row = dynamic_shared<float>();
  row[static_cast<int>(threadIdx.x) - 1] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x];
}
bool dynamic_underrun() { return succeeded(launch(store_before_dynamic, 1, 64, 64 * sizeof(float), nullptr, global<float>(64).get())); }

__global__ void load_past_dynamic(float* out) {
  float* row = dynamic_shared<float>();
  row[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = row[threadIdx.x + 1];
}
bool dynamic_overread() { return succeeded(launch(load_past_dynamic, 1, 64, 64 * sizeof(float), nullptr, global<float>(64).get())); }

__global__ void reverse_without_barrier(float* out) {
  float* row = static_shared<Row>();
  row[threadIdx.x] = 1;
  out[threadIdx.x] = row[63 - threadIdx.x];
}
bool missing_barrier() { return succeeded(launch(reverse_without_barrier, 1, 64, 0, nullptr, global<float>(64).get())); }

// The barrier at the end of each round is missing: a quick thread overwrites what a slow one has yet to read.
__global__ void rotate_with_one_barrier(float* out) {
  float* row = static_shared<Row>();
  for (int round = 0; round < 4; ++round) {
    row[threadIdx.x] = out[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = row[(threadIdx.x + 1) % 64];
  }
}
bool missing_second_barrier() { return succeeded(launch(rotate_with_one_barrier, 1, 64, 0, nullptr, global<float>(64).get())); }

__global__ void pass_on_by_shuffle(float* out) {
  float* row = static_shared<Row>();
  row[threadIdx.x] = 1;
  __shfl_sync(0xffffffff, 1, 0);
  out[threadIdx.x] = row[31 - threadIdx.x];
}
bool missing_syncwarp() { return succeeded(launch(pass_on_by_shuffle, 1, 32, 0, nullptr, global<float>(32).get())); }

// The warps of a block do not wait for each other.
__global__ void pass_between_warps(float* out) {
  float* row = static_shared<Row>();
  row[threadIdx.x] = 1;
  __syncwarp();
  out[threadIdx.x] = row[63 - threadIdx.x];
}
bool syncwarp_for_block() { return succeeded(launch(pass_between_warps, 1, 64, 0, nullptr, global<float>(64).get())); }

__global__ void add_plainly(float* sum) { *sum += 1; }
bool plain_sum() { return succeeded(launch(add_plainly, 1, 64, 0, nullptr, global<float>(1).get())); }

// Barriers order the threads of one block, not blocks.
__global__ void add_block_plainly(float* sum) {
  __syncthreads();
  __syncwarp();
  if (threadIdx.x == 0) *sum += 1;
  __syncwarp();
  __syncthreads();
}
bool plain_sum_of_blocks() { return succeeded(launch(add_block_plainly, 8, 64, 0, nullptr, global<float>(1).get())); }

__global__ void wait_in_both_branches() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
bool barrier_divergence() { return succeeded(launch(wait_in_both_branches, 1, 64, 0, nullptr)); }

__global__ void wait_for_different_things() {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x % 32 >= 8) __syncwarp();
}
bool deadlock() { return succeeded(launch(wait_for_different_things, 1, 64, 0, nullptr)); }

template <bool dynamic>
__global__ void read_unwritten(float* out) {
  float* row = dynamic ? dynamic_shared<float>() : static_shared<Row>();
  if (threadIdx.x != 5) row[threadIdx.x] = 1;
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = row[threadIdx.x];
}
template <bool dynamic>
bool uninitialised() {
  const auto out = global<float>(128);
  return succeeded(launch(read_unwritten<dynamic>, 2, 64, 64 * sizeof(float), nullptr, out.get())) &&
         (is_close(out[5], 1) || is_close(out[69], 1));
}

__global__ void shuffle_outside_mask(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xff, static_cast<int>(threadIdx.x), 9);
}
bool shuffle_from_outside() { return succeeded(launch(shuffle_outside_mask, 1, 32, 0, nullptr, global<int>(8).get())); }

__global__ void shuffle_from_returned(int* out) {
  if (threadIdx.x == 9) return;
  out[threadIdx.x] = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x), 9);
}
bool shuffle_from_inactive() { return succeeded(launch(shuffle_from_returned, 1, 32, 0, nullptr, global<int>(32).get())); }

__global__ void shuffle_without_self(int* out) { out[threadIdx.x] = __shfl_sync(0xff, 1, 0); }
bool shuffle_bad_mask() { return succeeded(launch(shuffle_without_self, 1, 32, 0, nullptr, global<int>(32).get())); }

__global__ void shuffle_in_both_branches(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(0xffffffff, 1, 0);
  } else {
    out[threadIdx.x] = __shfl_sync(0xffffffff, 1, 0);
  }
}
bool warp_divergence() { return succeeded(launch(shuffle_in_both_branches, 1, 32, 0, nullptr, global<int>(32).get())); }

}  // namespace

const std::vector<Check> broken_checks = {
    {"global_overrun", global_overrun},
    {"static_overrun", static_overrun},
    {"dynamic_underrun", dynamic_underrun},
    {"dynamic_overread", dynamic_overread},
    {"missing_barrier", missing_barrier},
    {"missing_second_barrier", missing_second_barrier},
    {"missing_syncwarp", missing_syncwarp},
    {"syncwarp_for_block", syncwarp_for_block},
    {"plain_sum", plain_sum},
    {"plain_sum_of_blocks", plain_sum_of_blocks},
    {"barrier_divergence", barrier_divergence},
    {"deadlock", deadlock},
    {"uninitialised_static", uninitialised<false>},
    {"uninitialised_dynamic", uninitialised<true>},
    {"shuffle_from_outside", shuffle_from_outside},
    {"shuffle_from_inactive", shuffle_from_inactive},
    {"shuffle_bad_mask", shuffle_bad_mask},
    {"warp_divergence", warp_divergence},
};
