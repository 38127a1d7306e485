// Kernels that are right, and what the emulation counts and refuses. Small: ThreadSanitizer takes 0.3 ms a thread.
#include "checks.hpp"
#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

using namespace equitensor::cuda;

namespace {

constexpr int tile = 8;

__global__ void multiply(const float* a, const float* b, float* c, int rows, int columns, int inner) {
  float* a_tile = dynamic_shared<float>();
  float* b_tile = a_tile + tile * tile;
  const int x = threadIdx.x, y = threadIdx.y;
  const int row = blockIdx.y * tile + y, column = blockIdx.x * tile + x;
  float sum = 0;
  for (int start = 0; start < inner; start += tile) {
    a_tile[y * tile + x] = row < rows && start + x < inner ? load(a + row * inner + start + x).value[0] : 0.f;
    b_tile[y * tile + x] = start + y < inner && column < columns ? load(b + (start + y) * columns + column).value[0] : 0.f;
    __syncthreads();
    for (int k = 0; k < tile; ++k) sum += a_tile[y * tile + k] * b_tile[k * tile + x];
    __syncthreads();
  }
  if (row < rows && column < columns) store(c + row * columns + column, Pack<float, 1>{sum});
}

bool multiply_matrices(int rows, int columns, int inner) {
  const std::vector<float> a = random_floats(rows * inner), b = random_floats(inner * columns);
  std::vector<float> c(rows * columns);
  const dim3 grid((columns + tile - 1) / tile, (rows + tile - 1) / tile);
  if (!succeeded(launch(multiply, grid, dim3(tile, tile), 2 * tile * tile * sizeof(float), nullptr, a.data(), b.data(), c.data(), rows,
                        columns, inner))) {
    return false;
  }
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      double sum = 0;
      for (int k = 0; k < inner; ++k) sum += double(a[row * inner + k]) * b[k * columns + column];
      if (!is_close(c[row * columns + column], sum)) return expect(false, "matrix product");
    }
  }
  return true;
}
bool matmul() { return multiply_matrices(21, 13, 19); }

using Partial = float[32];

__global__ void sum_all(const float* x, float* total, int n) {
  Partial& partial = static_shared<Partial>();
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += load(x + i).value[0];
  for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) partial[warp] = sum;
  __syncthreads();
  if (warp > 0) return;
  sum = lane < static_cast<int>(blockDim.x / 32) ? partial[lane] : 0.f;
  for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  if (lane == 0) atomicAdd(total, sum);
}
bool reduce() {
  const std::vector<float> x = random_floats(2000);
  float total = 0;
  return succeeded(launch(sum_all, 3, 96, 0, nullptr, x.data(), &total, 2000)) &&
         expect(is_close(total, std::accumulate(x.begin(), x.end(), 0.0)), "sum");
}

__global__ void add_to_bins(const int* bin, const float* value, float* sums, unsigned* counts, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(&sums[bin[i]], value[i]);
  atomicAdd(&counts[bin[i]], 1u);
}
bool scatter() {
  constexpr int n = 250, bins = 7;
  const std::vector<float> value = random_floats(n);
  std::vector<int> bin(n);
  std::vector<float> sums(bins);
  std::vector<double> expected(bins);
  std::vector<unsigned> counts(bins), expected_counts(bins);
  for (int i = 0; i < n; ++i) {
    bin[i] = std::rand() % bins;
    expected[bin[i]] += value[i];
    ++expected_counts[bin[i]];
  }
  if (!succeeded(launch(add_to_bins, 4, 64, 0, nullptr, bin.data(), value.data(), sums.data(), counts.data(), n))) return false;
  for (int i = 0; i < bins; ++i) {
    if (!is_close(sums[i], expected[i])) return expect(false, "sum of a bin");
  }
  return expect(counts == expected_counts, "number in a bin");
}

// Lane i of a warp of 20 lanes, so that the last 12 of the mask do not exist.
__global__ void warp_functions(int* out) {
  const int lane = threadIdx.x;
  int* mine = out + lane * 8;
  mine[0] = __shfl_sync(0xffffffff, lane, 3, 4);
  mine[1] = __shfl_up_sync(0xffffffff, lane, 1, 4);
  mine[2] = __shfl_down_sync(0xffffffff, lane, 1, 4);
  mine[3] = __shfl_xor_sync(0xffffffff, lane, 2);
  mine[4] = __ballot_sync(0xffffffff, lane % 2);
  mine[5] = __any_sync(0xffffffff, lane == 7);
  mine[6] = __all_sync(0xffffffff, lane < 20);
  // The two halves of the mask meet apart from each other.
  const unsigned mask = lane < 8 ? 0x000000ff : 0xffffff00;
  mine[7] = lane < 8 ? __ballot_sync(mask, 1) : __ballot_sync(mask, lane == 8);
}
bool warps() {
  std::vector<int> out(20 * 8);
  if (!succeeded(launch(warp_functions, 1, 20, 0, nullptr, out.data()))) return false;
  bool right = true;
  for (int lane = 0; lane < 20; ++lane) {
    const int first = lane & ~3;
    const int before = std::max(lane - 1, first), after = std::min(lane + 1, first + 3);
    const int expected[8] = {first + 3, before, after, lane ^ 2, 0xaaaaa, 1, 1, lane < 8 ? 0xff : 0x100};
    right &= std::equal(expected, expected + 8, out.data() + lane * 8);
  }
  return expect(right, "shuffles and votes");
}

// Threads that return do not keep others waiting.
__global__ void return_early(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  if (threadIdx.x % 2) return;
  __syncwarp();
  out[threadIdx.x] = __popc(__ballot_sync(0xffffffff, 1));
}
bool early_return() {
  std::vector<int> out(40);
  return succeeded(launch(return_early, 1, 64, 0, nullptr, out.data())) &&
         expect(out[0] == 16 && out[32] == 4 && out[1] == 0, "votes of those who stayed");
}

// Lane 0 writes what the others read: __syncwarp orders that.
__global__ void pass_on(int* out) {
  int& message = static_shared<int>();
  if (threadIdx.x == 0) message = 42;
  __syncwarp();
  out[threadIdx.x] = message;
}
bool syncwarp() {
  std::vector<int> out(32);
  return succeeded(launch(pass_on, 1, 32, 0, nullptr, out.data())) && expect(out == std::vector<int>(32, 42), "message");
}

// The block that finishes last adds up what the others stored before their fences.
__global__ void sum_last(const float* x, float* partial, unsigned* finished, float* total) {
  if (threadIdx.x > 0) return;
  partial[blockIdx.x] = x[blockIdx.x];
  __threadfence();
  if (atomicAdd(finished, 1u) + 1 < gridDim.x) return;
  __threadfence();
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  *total = sum;
}
bool last_block() {
  const std::vector<float> x = random_floats(20);
  std::vector<float> partial(20);
  unsigned finished = 0;
  float total = 0;
  return succeeded(launch(sum_last, 20, 8, 0, nullptr, x.data(), partial.data(), &finished, &total)) &&
         expect(is_close(total, std::accumulate(x.begin(), x.end(), 0.0)), "sum");
}

template <int times>
__global__ void copy(const float* in, float* out, int quads) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= quads) return;
  for (int time = 0; time < times; ++time) store(out + 4 * i, load<4>(in + 4 * i));
  if (i % 32 == 0) load_table(in);
}
struct alignas(128) Line {
  float value[32];
};
template <int times>
bool count_copy() {
  constexpr uint64_t lines = 25, bytes = lines * sizeof(Line);
  const std::vector<Line> in(lines);
  std::vector<Line> out(lines);
  emulated::reset_counts();
  emulated::counting(true);
  for (int i = 0; i < 2; ++i) {
    if (!succeeded(launch(copy<times>, 3, 100, 0, nullptr, in[0].value, out[0].value, int(bytes / 16)))) return false;
  }
  emulated::counting(false);
  const emulated::Counts counts = emulated::counts();
  const auto is = [](const emulated::Traffic& traffic, uint64_t requested, uint64_t unique, uint64_t lines) {
    return traffic.requested == 2 * requested && traffic.unique == 2 * unique && traffic.lines == 2 * lines;  // of both launches
  };
  return expect(counts.launches == 2 && counts.barriers == 0 && counts.atomics == 0, "launches") &&
         expect(is(counts.loaded, times * bytes, bytes, lines), "bytes loaded") &&
         expect(is(counts.stored, times * bytes, bytes, lines), "bytes stored") &&
         expect(is(counts.table, 7 * 4, 4, 1), "bytes of a table");
}
bool counted_once() { return count_copy<1>(); }
bool counted_twice() { return count_copy<2>(); }

bool counted_atomics() {
  const std::vector<Line> x(2);
  Line total{};
  emulated::reset_counts();
  emulated::counting(true);
  if (!succeeded(launch(sum_all, 3, 64, 0, nullptr, x[0].value, total.value, 60))) return false;
  emulated::counting(false);
  const emulated::Counts counts = emulated::counts();
  return expect(counts.barriers == 3 && counts.atomics == 3, "a barrier and an atomic sum a block") &&
         expect(counts.loaded.requested == 240 && counts.loaded.unique == 240 && counts.loaded.lines == 2, "bytes loaded") &&
         expect(counts.stored.requested == 12 && counts.stored.unique == 4 && counts.stored.lines == 1, "bytes stored");
}

__global__ void nothing() {}
__global__ void use_static_and_dynamic(float* out) {
  float(&fixed)[4096] = static_shared<float[4096]>();
  fixed[0] = dynamic_shared<float>()[0] = 1;
  *out = fixed[0];
}
bool limits() {
  const auto configure = [](dim3 grid, dim3 block, size_t shared = 0) { return launch(nothing, grid, block, shared, nullptr); };
  bool right = true;
  for (const dim3 block : {dim3(1025), dim3(32, 33), dim3(0), dim3(1, 1, 65), dim3(1, 2048)}) {
    right &= expect(configure(1, block) == cudaErrorInvalidConfiguration, "block size");
  }
  for (const dim3 grid : {dim3(0), dim3(1, 0), dim3(0x80000000u), dim3(1, 65536), dim3(1, 1, 65536)}) {
    right &= expect(configure(grid, 1) == cudaErrorInvalidConfiguration, "grid size");
  }
  right &= expect(configure(1, dim3(16, 8, 8)) == cudaSuccess, "1024 threads");

  const void* kernel = reinterpret_cast<const void*>(nothing);
  right &= expect(configure(1, 1, 48 << 10) == cudaSuccess, "48 KiB");
  right &= expect(configure(1, 1, (48 << 10) + 1) == cudaErrorInvalidValue, "more than 48 KiB without opting in");
  right &= expect(!emulated::allow_shared(kernel, (227 << 10) + 1), "opting in to more than there is");
  right &= expect(emulated::allow_shared(kernel, 227 << 10), "opting in");
  right &= expect(configure(1, 1, 227 << 10) == cudaSuccess, "227 KiB");
  right &= expect(configure(1, 1, (227 << 10) + 1) == cudaErrorInvalidValue, "more than 227 KiB");

  float out = 0;
  right &= expect(launch(use_static_and_dynamic, 1, 1, 32 << 10, nullptr, &out) == cudaSuccess, "16 KiB static, 32 dynamic");
  right &= expect(launch(use_static_and_dynamic, 1, 1, 33 << 10, nullptr, &out) == cudaErrorLaunchFailure, "16 KiB static, 33 dynamic");
  return right;
}

bool host_threads() {
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { right += multiply_matrices(10, 10, 40); });
  for (std::thread& thread : threads) thread.join();
  return expect(right == 4, "four host threads at once");
}

// Deadlock: threads from 8 to 39 wait for the block while others of their warps wait for them.
__global__ void wait_for_each_other() {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x % 32 >= 8) __syncwarp();
}
// The emulator runs on, though the runtime API disables a device whose kernel failed.
bool recovery() {
  return expect(!emulated::execute(wait_for_each_other, 1, 64, 0, {}), "a failing kernel") && matmul() && reduce();
}

// How long a thread and a barrier take.
__global__ void wait_often(int times) {
  for (int time = 0; time < times; ++time) __syncthreads();
}
bool timing() {
  constexpr int blocks = 4000, threads = 256, barriers = 10;
  const auto nanoseconds_per_thread = [](int times) {
    const auto start = std::chrono::steady_clock::now();
    launch(wait_often, blocks, threads, 0, nullptr, times);
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / (blocks * threads);
  };
  nanoseconds_per_thread(1);  // makes the stacks
  const double without = nanoseconds_per_thread(0), with = nanoseconds_per_thread(barriers);
  std::printf("%.1f ns a thread, %.1f ns a thread and barrier\n", without, (with - without) / barriers);
  return true;
}

}  // namespace

const std::vector<Check> good_checks = {
    {"matmul", matmul},
    {"reduce", reduce},
    {"scatter", scatter},
    {"warps", warps},
    {"early_return", early_return},
    {"syncwarp", syncwarp},
    {"last_block", last_block},
    {"counted_once", counted_once},
    {"counted_twice", counted_twice},
    {"counted_atomics", counted_atomics},
    {"limits", limits},
    {"host_threads", host_threads},
    {"recovery", recovery},
};
const std::vector<Check> measurements = {{"timing", timing}};
