// Matrix tensor product, as on the CPU: components to matrices, their product, components read off. A block holds the matrices of its items
// in shared memory; nothing between operands and result is in global memory. Float32 operands are multiplied in double from k = 9 on.
#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

// T: the operands' type; C: that of the computation and the plan.
template <class C>
struct MatrixTiles {
  C *channel[3], *matrix[3], *gradient[3];
  int bytes;
  __host__ __device__ MatrixTiles(const MatrixPlan<C>& plan, C* memory, int pitch, bool backward) {
    C* at = memory;
    const int entries = plan.size * plan.size;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      const bool is_input = backward || s < 2, is_output = backward ? s < 2 : s == 2;
      channel[s] = at;
      at += plan.slots[s].components * pitch;
      matrix[s] = at;
      at += is_input ? plan.slots[s].parts * entries * pitch : 0;
      gradient[s] = at;
      at += is_output ? plan.slots[s].parts * entries * pitch : 0;
    }
    bytes = int((at - memory) * sizeof(C));
  }
};

template <class C>
__device__ __forceinline__ void unfold_parts(const MatrixSlot<C>& slot, int size, C* matrix, const Team& team, bool transpose) {
  const int k = size / 2, tasks = k * (k + 1) / 2;
  for (int part = 0; part < slot.parts; ++part) {
    const Strip<C> centre{matrix + (part * size * size + k * size + k) * team.pitch + team.item, team.pitch};
    int a = 1, before = 0;  // tasks of smaller orders
    for (int t = team.index; t < tasks; t += team.count) {
      while (t - before > k - a) before += k - a + 1, ++a;
      const int b = a + t - before;
      if (b == a)
        unfold_order<C>(centre, size, a);
      else if (transpose)
        unfold_orders<true, C>(centre, size, a, b);
      else
        unfold_orders<false, C>(centre, size, a, b);
    }
  }
}

struct MatrixView {
  int row, column;
};
template <int rows, int columns, class C>
__device__ __forceinline__ void multiply_block(Strip<C> a, MatrixView va, Strip<C> b, MatrixView vb, Strip<C> c, int size, bool first) {
  C sum[rows][columns];
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int j = 0; j < columns; ++j) sum[i][j] = first ? C(0) : c[i * size + j];
  for (int k = 0; k < size; ++k) {
    C right[columns];
#pragma unroll
    for (int j = 0; j < columns; ++j) right[j] = b[k * vb.row + j * vb.column];
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const C left = a[i * va.row + k * va.column];
#pragma unroll
      for (int j = 0; j < columns; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int j = 0; j < columns; ++j) c[i * size + j] = sum[i][j];
}
// c = a b, or c += a b, in blocks of nearly equal sides of at most 4, shared out to the teams.
template <class C>
__device__ __forceinline__ void multiply_matrices(Strip<C> a, MatrixView va, Strip<C> b, MatrixView vb, Strip<C> c, int size, bool first,
                                                  const Team& team) {
  const int blocks = (size + 3) / 4;
  for (int t = team.index; t < blocks * blocks; t += team.count) {
    const int bi = t / blocks, bj = t - bi * blocks;
    const int i = bi * size / blocks, j = bj * size / blocks, rows = (bi + 1) * size / blocks - i, columns = (bj + 1) * size / blocks - j;
    const Strip<C> left{&a[i * va.row], a.pitch}, right{&b[j * vb.column], b.pitch}, out{&c[i * size + j], c.pitch};
#define EQUITENSOR_CASE(r, c) \
  case 8 * r + c: multiply_block<r, c, C>(left, va, right, vb, out, size, first); break;
    switch (8 * rows + columns) {
      EQUITENSOR_CASE(4, 4) EQUITENSOR_CASE(4, 3) EQUITENSOR_CASE(3, 4) EQUITENSOR_CASE(3, 3) EQUITENSOR_CASE(3, 2)
      EQUITENSOR_CASE(2, 3) EQUITENSOR_CASE(2, 2) EQUITENSOR_CASE(2, 1) EQUITENSOR_CASE(1, 2) EQUITENSOR_CASE(1, 1)
    }
#undef EQUITENSOR_CASE
  }
}

// The highest outputs by their only path, core/matrix.hpp. f: room for both series, their mirrors and the product.
template <class C>
__device__ __forceinline__ void multiply_top(const PlanTop<C>& top, const C* x, const C* y, C* z, C* f, const Team& team) {
  const int l1 = top.l1, l2 = top.l2, l3 = l1 + l2, n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, pitch = team.pitch;
  const Strip<C> series{f + team.item, pitch};
  for (int m = team.index; m < n1 + n2; m += team.count) {
    const bool is_x = m < n1;
    const int at = is_x ? m : m - n1, n = is_x ? n1 : n2, first = is_x ? 0 : 2 * n1;
    const C value = (is_x ? x[(top.x_first + at) * pitch + team.item] : y[(top.y_first + at) * pitch + team.item]);
    series[first + at] = load_table((is_x ? top.scale1 : top.scale2) + at).value[0] * value;
    series[first + n + at] = load_table((is_x ? top.mirror1 : top.mirror2) + at).value[0] * value;
  }
  __syncthreads();
  const auto strip = [&](int i) { return Strip<C>{f + i * pitch + team.item, pitch}; };
  const Strip<C> fx = strip(l1), fx_mirror = strip(n1 + l1), gy = strip(2 * n1 + l2), gy_mirror = strip(2 * n1 + n2 + l2);
  const Strip<C> h = strip(2 * n1 + 2 * n2 + l3);
  for (int k = team.index; k <= l3; k += team.count) {
    if (k == 0)
      series_mean<C>(fx, fx_mirror, l1, gy, l2, h, true);
    else
      series_order<C>(fx, fx_mirror, l1, gy, gy_mirror, l2, h, k, true);
    for (int m = -k; m <= k; m += k ? 2 * k : 1) {
      C& out = z[(top.out_first + l3 + m) * pitch + team.item];
      const C value = load_table(top.scale_out + l3 + m).value[0] * h[m];
      out = top.first ? value : out + value;
    }
  }
  __syncthreads();
}

template <class T, class C>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<C>) void matrix_forward(MatrixPlan<C> plan, ChannelRows rows, int items, long long signals, const T* x,
                                                          const T* y, T* z) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), n = plan.size, pitch = team.pitch;
  const MatrixTiles<C> tile(plan, dynamic_shared<C>(), pitch, false);
  load_tile(rows.slot[0], x, first, live, tile.channel[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel[1], pitch);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) apply(plan.slots[s].to_matrix, choose(tile.channel, s) + team.item, choose(tile.matrix, s) + team.item, team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) unfold_parts(plan.slots[s], n, choose(tile.matrix, s), team, false);
  __syncthreads();
  unsigned written = 0;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct product = load_table(plan.products + p).value[0];
    const auto part = [&](C* matrix, int index) { return Strip<C>{matrix + index * n * n * pitch + team.item, pitch}; };
    multiply_matrices(part(tile.matrix[0], product.part1), {n, 1}, part(tile.matrix[1], product.part2), {n, 1},
                      part(tile.gradient[2], product.part_out), n, !(written >> product.part_out & 1), team);
    written |= 1u << product.part_out;
  }
  __syncthreads();
  unfold_parts(plan.slots[2], n, tile.gradient[2], team, true);
  __syncthreads();
  apply(plan.slots[2].from_matrix, tile.gradient[2] + team.item, tile.channel[2] + team.item, team);
  __syncthreads();
  for (int t = 0; t < plan.top_count; ++t)
    multiply_top(plan.tops[t], tile.channel[0], tile.channel[1], tile.channel[2], tile.matrix[0], team);
  store_tile(rows.slot[2], z, first, live, tile.channel[2], pitch);
}

template <class T, class C>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<C>) void matrix_backward(MatrixPlan<C> plan, ChannelRows rows, ChannelRows gradient_rows, int items,
                                                           long long signals, const T* x, const T* y, const T* dz, T* dx, T* dy) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), n = plan.size, pitch = team.pitch;
  const MatrixTiles<C> tile(plan, dynamic_shared<C>(), pitch, true);
  load_tile(rows.slot[0], x, first, live, tile.channel[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel[1], pitch);
  load_tile(rows.slot[2], dz, first, live, tile.channel[2], pitch);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 3; ++s) apply(plan.slots[s].to_matrix, choose(tile.channel, s) + team.item, choose(tile.matrix, s) + team.item, team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 3; ++s) unfold_parts(plan.slots[s], n, choose(tile.matrix, s), team, false);
  __syncthreads();
  unsigned written1 = 0, written2 = 0;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct product = load_table(plan.products + p).value[0];
    const auto part = [&](C* matrix, int index) { return Strip<C>{matrix + index * n * n * pitch + team.item, pitch}; };
    const Strip<C> xs = part(tile.matrix[0], product.part1), ys = part(tile.matrix[1], product.part2);
    const Strip<C> zs = part(tile.matrix[2], product.part_out);
    multiply_matrices(zs, {n, 1}, ys, {1, n}, part(tile.gradient[0], product.part1), n, !(written1 >> product.part1 & 1), team);
    multiply_matrices(xs, {1, n}, zs, {n, 1}, part(tile.gradient[1], product.part2), n, !(written2 >> product.part2 & 1), team);
    written1 |= 1u << product.part1;
    written2 |= 1u << product.part2;
  }
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) unfold_parts(plan.slots[s], n, choose(tile.gradient, s), team, true);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) apply(plan.slots[s].from_matrix, choose(tile.gradient, s) + team.item, choose(tile.channel, s) + team.item, team);
  __syncthreads();
  if (dx) store_tile(gradient_rows.slot[0], dx, first, live, tile.channel[0], pitch);
  if (dy) store_tile(gradient_rows.slot[1], dy, first, live, tile.channel[1], pitch);
}

template <class T, class C>
class Matrix final : public ChannelProduct<T, MatrixPlan<C>> {
 public:
  Matrix(int device, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, int k)
      : ChannelProduct<T, MatrixPlan<C>>(
            device, slots, matrix_forward<T, C>, matrix_backward<T, C>,
            [&](auto& store) {
              PassFlops flops;
              return matrix_plan<C>(store, mul, slots, products, k, flops);
            },
            [](const MatrixPlan<C>& plan, int pitch, bool backward) { return size_t(MatrixTiles<C>(plan, nullptr, pitch, backward).bytes); }) {}
};

}  // namespace

std::unique_ptr<Operation> make_matrix(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k) {
  if (is_double) return std::make_unique<Matrix<double, double>>(device, mul, slots, products, k);
  if (k > matrix_largest_float_k) return std::make_unique<Matrix<float, double>>(device, mul, slots, products, k);
  return std::make_unique<Matrix<float, float>>(device, mul, slots, products, k);
}

}  // namespace equitensor::cuda
