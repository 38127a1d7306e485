// Matrix tensor product, as on the CPU: components to matrices, their product, components read off. A block holds the matrices of its items
// in shared memory; nothing between operands and result is in global memory. Float32 operands are multiplied in double from k = 9 on.
#include "core/matrix_plan.hpp"
#include "cuda/channel_product.cuh"

namespace equitensor::cuda {
namespace {

// A term is Z Y^T, X^T Z or X Y.
__host__ __device__ inline int left_of(const Term& term) { return term.out == 0 ? term.b : term.a; }
__host__ __device__ inline int right_of(const Term& term) { return term.out == 0 ? term.a : term.b; }

// A warp for each of the 4 x 4 blocks of a matrix of k = 6 or 7, so that the product, in registers, can take its left factor's place.
constexpr int matrix_threads = 512;

struct MatrixView {
  int row, column;  // strides
};
// One term: first components of its factors and its result, and whose parts of a product they are.
struct MatrixTerm {
  int left, right, out, left_slot, right_slot, out_slot;
  MatrixView left_view, right_view;
};

// First components in a tile.
struct MatrixLayout {
  int channel_in[operand_count], matrix[operand_count], channel_out[slot_count], gradient[slot_count];
  int series;  // of the highest outputs: both factors and their mirrors
  bool in_place;
  int blocks;  // of a side, in multiply_matrices
  Divisor by_blocks, by_folds;  // by_folds: of unfold_parts
  bool unfolds, folds;  // some operand, some result
  MatrixTerm term[4];
  int components;
  int teams, least_teams, work;
  MatrixLayout() = default;
  template <class C>
  MatrixLayout(const MatrixPlan<C>& plan, const Terms& terms) {
    const auto entries = [&](int s) { return long(plan.slots[s].parts) * plan.size * plan.size; };
    const bool has_tops = plan.top_count > 0 && terms.writes[2];
    const int series_components = has_tops ? 4 * plan.size : 0;
    blocks = (plan.size + 3) / 4;
    Components first, results;
    // A product of which every team has one block (k = 6 and 7), in registers, takes its left factor's place: 436 components instead of 605 at
    // L = 6, which leave room for a pack a lane. Then the series lie there, and the results' components where the right factor was.
    const int left = left_of(terms.term[0]);
    in_place = terms.count == 1 && plan.slots[0].parts == 1 && plan.slots[1].parts == 1 && plan.slots[2].parts == 1 &&
               blocks * blocks == matrix_threads / 32;
    if (in_place) matrix[left] = series = first.take(entries(slot_of(left))), results.count = std::max<long>(first.count, series_components);
    // Otherwise the results' components lie where the operands' matrices were, and the operands' components where the results' matrices will be;
    // unless the highest outputs, the last thing to be computed, need them.
    for (int o = 0; o < operand_count; ++o)
      if (!in_place || o != left) matrix[o] = first.take(terms.reads[o] ? entries(slot_of(o)) : 0);
    for (int s = 0; s < slot_count; ++s) channel_out[s] = results.take(terms.writes[s] ? plan.slots[s].components : 0);
    if (!in_place) series = results.take(series_components);
    Components second{std::max(first.count, results.count)}, operands = second;
    for (int s = 0; s < slot_count; ++s) gradient[s] = in_place ? matrix[left] : second.take(terms.writes[s] ? entries(s) : 0);
    if (has_tops) operands = second;
    for (int o = 0; o < operand_count; ++o) channel_in[o] = operands.take(terms.reads[o] ? plan.slots[slot_of(o)].components : 0);
    Components tile{std::max(second.count, operands.count)};
    unfolds = folds = false;
    for (int o = 0; o < operand_count; ++o) unfolds |= terms.reads[o] && plan.slots[slot_of(o)].folded;
    for (int s = 0; s < slot_count; ++s) folds |= terms.writes[s] && plan.slots[s].folded;
    const MatrixView plain{plan.size, 1}, transposed{1, plan.size};
    for (int t = 0; t < terms.count; ++t) {
      const Term& from = terms.term[t];
      const int l = left_of(from), r = right_of(from);
      term[t] = {matrix[l], matrix[r], gradient[from.out], slot_of(l), slot_of(r), from.out, from.out == 1 ? transposed : plain, from.out == 0 ? transposed : plain};
    }
    by_blocks = divisor(blocks), by_folds = divisor(plan.size / 2 + 1);
    components = int(tile.count), teams = tile.teams(), least_teams = in_place ? blocks * blocks : 1, work = transforms_of(terms);
  }
};

template <class C, class V>
__device__ __forceinline__ void unfold_parts(const MatrixSlot<C>& slot, int size, const Strip<V>& matrix, Divisor by_folds, const Team& team,
                                             bool transpose) {
  // Orders a <= b, row by row of their triangle; rows a and k + 1 - a together are k + 1 long.
  const int k = size / 2, tasks = k * (k + 1) / 2;
  for (int part = 0; part < slot.parts; ++part) {
    const Strip<V> centre = matrix.from(part * size * size + k * size + k);
    for (int t = team.index; t < tasks; t += team.count) {
      const int row = divide(t, by_folds), column = t - row * (k + 1), rest = column - (k - row);
      const int a = rest < 0 ? row + 1 : k - row, b = a + (rest < 0 ? column : rest);
      if (b == a)
        unfold_order<V>(centre, size, a);
      else if (transpose)
        unfold_orders<true, V>(centre, size, a, b);
      else
        unfold_orders<false, V>(centre, size, a, b);
    }
  }
}

template <int rows, int columns, class V>
__device__ __forceinline__ void multiply_block(Strip<V> a, MatrixView va, Strip<V> b, MatrixView vb, const Strip<V>& c, int size, bool first,
                                               bool in_place, V (&sum)[4][4]) {
  const unsigned left_step = va.row * a.pitch, right_step = vb.column * b.pitch;
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int j = 0; j < columns; ++j) sum[i][j] = first ? V{} : c[i * size + j];
#pragma unroll 1
  for (int k = 0; k < size; ++k, a = a.from(va.column), b = b.from(vb.row)) {
    V right[columns];
#pragma unroll
    for (int j = 0; j < columns; ++j) right[j] = shared_at<V>(b.at + j * right_step);
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const V left = shared_at<V>(a.at + i * left_step);
#pragma unroll
      for (int j = 0; j < columns; ++j) sum[i][j] += left * right[j];
    }
  }
  if (in_place) return;
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int j = 0; j < columns; ++j) c[i * size + j] = sum[i][j];
}
// c = a b, or c += a b, in blocks of nearly equal sides of at most 4, shared out to the teams. In place: no team has more than one.
template <class V>
__device__ __forceinline__ void multiply_matrices(const Strip<V>& a, MatrixView va, const Strip<V>& b, MatrixView vb, const Strip<V>& c, int size,
                                                  bool first, const MatrixLayout& layout, const Team& team) {
  const int blocks = layout.blocks;
  const bool in_place = layout.in_place;
  const Divisor by_blocks = layout.by_blocks;
  for (int t = team.index; in_place || t < blocks * blocks; t += team.count) {
    V sum[4][4] = {};
    Strip<V> out = c;
    int rows = 0, columns = 0;
    if (t < blocks * blocks) {
      const int bi = divide(t, by_blocks), bj = t - bi * blocks;
      const int i = divide(bi * size, by_blocks), j = divide(bj * size, by_blocks);
      rows = divide((bi + 1) * size, by_blocks) - i, columns = divide((bj + 1) * size, by_blocks) - j;
      const Strip<V> left = a.from(i * va.row), right = b.from(j * vb.column);
      out = c.from(i * size + j);
#define EQUITENSOR_CASE(r, c) \
  case 8 * r + c: multiply_block<r, c, V>(left, va, right, vb, out, size, first, in_place, sum); break;
      switch (8 * rows + columns) {
        EQUITENSOR_CASE(4, 4) EQUITENSOR_CASE(4, 3) EQUITENSOR_CASE(3, 4) EQUITENSOR_CASE(3, 3) EQUITENSOR_CASE(3, 2)
        EQUITENSOR_CASE(2, 3) EQUITENSOR_CASE(2, 2) EQUITENSOR_CASE(2, 1) EQUITENSOR_CASE(1, 2) EQUITENSOR_CASE(1, 1)
      }
#undef EQUITENSOR_CASE
    }
    if (!in_place) continue;
    __syncthreads();  // both factors have been read
    if (t >= blocks * blocks) return;
    // Four blocks a side are each 3 or 4 long.
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if ((i < 3 || rows == 4) && (j < 3 || columns == 4)) out[i * size + j] = sum[i][j];
    return;
  }
}

// Orders of a product of series, as components of the output: what is assigned is scaled and stored, or added.
template <class C, class V>
struct ScaledOrders {
  Strip<V> out;
  const C* scale;
  bool first;
  struct Place {
    V& at;
    C scale;
    bool first;
    __device__ __forceinline__ void operator=(const V& value) const { at = first ? scale * value : at + scale * value; }
    __device__ __forceinline__ operator V() const { return at; }  // only for the type's sake: of one product nothing is read
  };
  __device__ __forceinline__ Place operator[](int m) const { return {out[m], load_table(scale + m).value[0], first}; }
};

// The highest outputs by their only path, core/matrix.hpp. series: room for both series and their mirrors.
template <class C, class V>
__device__ __forceinline__ void multiply_top(const PlanTop<C>& top, bool first_term, const Strip<V>& x, const Strip<V>& y, const Strip<V>& z,
                                             const Strip<V>& series, const Team& team) {
  const int l1 = top.l1, l2 = top.l2, l3 = l1 + l2, n1 = 2 * l1 + 1, n2 = 2 * l2 + 1;
  const auto scale = [&](const Strip<V>& in, int n, const C* scale, const C* mirror, const Strip<V>& to) {
    for (int m = team.index; m < n; m += team.count) {
      const V value = in[m];
      to[m] = load_table(scale + m).value[0] * value;
      to[n + m] = load_table(mirror + m).value[0] * value;
    }
  };
  scale(x.from(top.x_first), n1, top.scale1, top.mirror1, series);
  scale(y.from(top.y_first), n2, top.scale2, top.mirror2, series.from(2 * n1));
  __syncthreads();
  const Strip<V> fx = series.from(l1), fx_mirror = series.from(n1 + l1), gy = series.from(2 * n1 + l2), gy_mirror = series.from(2 * n1 + n2 + l2);
  const ScaledOrders<C, V> h{z.from(top.out_first + l3), top.scale_out + l3, first_term && top.first};
  for (int k = team.index; k <= l3; k += team.count) {
    if (k == 0)
      series_mean<V>(fx, fx_mirror, l1, gy, l2, h, true);
    else
      series_order<V>(fx, fx_mirror, l1, gy, gy_mirror, l2, h, k, true);
  }
  __syncthreads();
}

// One term. A thread has the same blocks of a result in every term, so that they need no barrier between them.
template <class C, class V>
__device__ __forceinline__ void multiply_term(const MatrixPlan<C>& plan, bool first, const MatrixTerm& term, const MatrixLayout& layout,
                                              const Strip<V>& tile, const Team& team) {
  const int n = plan.size;
  const auto part = [&](int first, int index) { return tile.from(first + index * n * n); };
  unsigned written = first ? 0 : ~0u;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct product = load_table(plan.products + p).value[0];
    const int out = part_of(product, term.out_slot);
    multiply_matrices(part(term.left, part_of(product, term.left_slot)), term.left_view, part(term.right, part_of(product, term.right_slot)),
                      term.right_view, part(term.out, out), n, !(written >> out & 1), layout, team);
    written |= 1u << out;
  }
}

// T: type of the arrays; C: of the computation and the plan.
template <class C>
__device__ __forceinline__ void multiply_signals(const MatrixPlan<C>& plan, const Step<MatrixLayout>& step, const Strip<Items<C>>& tile, const Team& team) {
  const MatrixLayout& layout = step.layout;
  const int n = plan.size;
#pragma unroll 1
  for (int i = 0; i < step.read_count; ++i) {
    const int o = step.read[i].index, s = step.read[i].slot;
    apply(plan.slots[s].to_matrix, tile.from(layout.channel_in[o]), tile.from(layout.matrix[o]), team);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; layout.unfolds && i < step.read_count; ++i) {
    const int o = step.read[i].index, s = step.read[i].slot;
    if (plan.slots[s].folded) unfold_parts(plan.slots[s], n, tile.from(layout.matrix[o]), layout.by_folds, team, false);
  }
  if (layout.unfolds) __syncthreads();
#pragma unroll 1
  for (int t = 0; t < step.terms.count; ++t) multiply_term(plan, step.terms.term[t].first, layout.term[t], layout, tile, team);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; layout.folds && i < step.written_count; ++i) {
    const int s = step.written[i].slot;
    if (plan.slots[s].folded) unfold_parts(plan.slots[s], n, tile.from(layout.gradient[s]), layout.by_folds, team, true);
  }
  if (layout.folds) __syncthreads();
#pragma unroll 1
  for (int i = 0; i < step.written_count; ++i) {
    const int s = step.written[i].slot;
    apply(plan.slots[s].from_matrix, tile.from(layout.gradient[s]), tile.from(layout.channel_out[s]), team);
  }
  __syncthreads();
#pragma unroll 1
  for (int t = 0; t < step.terms.count; ++t) {
    const Term term = step.terms.term[t];
    if (term.out != 2) continue;
    for (int i = 0; i < plan.top_count; ++i)
      multiply_top(plan.tops[i], term.first, tile.from(layout.channel_in[term.a]), tile.from(layout.channel_in[term.b]),
                   tile.from(layout.channel_out[2]), tile.from(layout.series), team);
  }
}

template <class T, class C>
__global__ __launch_bounds__(matrix_threads, 1) void matrix(const __grid_constant__ MatrixPlan<C> plan, const __grid_constant__ Steps<T, MatrixLayout> steps, int items, long long signals) {
  for_each_step(plan, steps, items, signals);
}

template <class T, class C>
class Matrix final : public ChannelProduct<T, C, MatrixPlan<C>, MatrixLayout> {
 public:
  Matrix(int device, int rank, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, int k)
      : ChannelProduct<T, C, MatrixPlan<C>, MatrixLayout>(device, rank, slots, matrix<T, C>, [&](auto& store) {
          PassFlops flops;
          return matrix_plan<C>(store, mul, slots, products, k, flops);
        }) {}
};

}  // namespace

std::unique_ptr<Operation> make_matrix(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k) {
  if (is_double) return std::make_unique<Matrix<double, double>>(device, rank, mul, slots, products, k);
  if (k > matrix_largest_float_k) return std::make_unique<Matrix<float, double>>(device, rank, mul, slots, products, k);
  return std::make_unique<Matrix<float, float>>(device, rank, mul, slots, products, k);
}

}  // namespace equitensor::cuda
