// Products of the components of two channels in shared memory, and the gradients through them: around the map of a product that is computed by
// its paths, as cpu/products.hpp.
#pragma once
#include "cuda/tile.cuh"

namespace equitensor::cuda {

// products = x_i y_j, or products += x_i y_j, shared out to the teams. A complex product takes half the loads of the four products that it stands for.
template <class T, class V>
__device__ __forceinline__ void multiply_components(const PlanProducts<T>& plan, const Strip<V>& x, const Strip<V>& y, const Strip<V>& products, bool add,
                                                    const Team& team) {
  const Strip<V> others = products.from(4 * plan.complex_count);
  for (int n = team.index; n < plan.complex_count + plan.count; n += team.count) {
    if (n >= plan.complex_count) {
      const int p = n - plan.complex_count;
      const V value = x[load_table(plan.x_component + p).value[0]] * y[load_table(plan.y_component + p).value[0]];
      others[p] = add ? others[p] + value : value;
      continue;
    }
    const ComplexProduct c = load_table(plan.complex + n).value[0];
    const Strip<V> to = products.from(4 * n);
    const V x0 = x[c.x[0]], x1 = x[c.x[1]], y0 = y[c.y[0]], y1 = y[c.y[1]];
    V sum[4] = {};
#pragma unroll
    for (int i = 0; add && i < 4; ++i) sum[i] = to[i];
    sum[0] += x0 * y0, sum[0] -= x1 * y1;
    sum[1] += x0 * y1, sum[1] += x1 * y0;
    sum[2] += x0 * y0, sum[2] += x1 * y1;
    sum[3] += x1 * y0, sum[3] -= x0 * y1;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = sum[i];
  }
}

// dx_i += sum over j of g_ij y_j, dy_j += sum over i of g_ij x_i, each where wanted. Rows first, then columns: a component's sum is one team's. Between the complex
// products and the others, which add to the same components, the block waits.
template <class T, class V>
__device__ __forceinline__ void add_gradients(const PlanProducts<T>& plan, bool to_x, bool to_y, const Strip<V>& products, const Strip<V>& x, const Strip<V>& y,
                                              const Strip<V>& dx, const Strip<V>& dy, const Team& team) {
  for (int r = team.index; r < plan.complex_rows + plan.complex_columns; r += team.count) {
    const bool is_row = r < plan.complex_rows;
    if (!(is_row ? to_x : to_y)) continue;
    const int* begin = is_row ? plan.complex_row_begin + r : plan.complex_column_begin + (r - plan.complex_rows);
    const int from = load_table(begin).value[0], to = load_table(begin + 1).value[0];
    const Strip<V> other{is_row ? y.at : x.at, x.pitch}, out{is_row ? dx.at : dy.at, dx.pitch};
    V sum0{}, sum1{};
    int c0 = 0, c1 = 0;
    for (int n = from; n < to; ++n) {
      const int p = is_row ? n : load_table(plan.complex_column_product + n).value[0];
      const ComplexProduct c = load_table(plan.complex + p).value[0];
      const Strip<V> g = products.from(4 * p);
      const V plus = g[2] + g[0], minus = g[2] - g[0], crossed = g[1] + g[3], turned = g[1] - g[3];
      const V other0 = other[is_row ? c.y[0] : c.x[0]], other1 = other[is_row ? c.y[1] : c.x[1]];
      c0 = is_row ? c.x[0] : c.y[0], c1 = is_row ? c.x[1] : c.y[1];
      sum0 += plus * other0, sum1 += minus * other1;
      sum0 += (is_row ? turned : crossed) * other1, sum1 += (is_row ? crossed : turned) * other0;
    }
    out[c0] += sum0, out[c1] += sum1;
  }
  if (plan.complex_count > 0) __syncthreads();
  const Strip<V> others = products.from(4 * plan.complex_count);
  for (int r = team.index; r < plan.rows + plan.columns; r += team.count) {
    const bool is_row = r < plan.rows;
    if (!(is_row ? to_x : to_y)) continue;
    const int* begin = is_row ? plan.row_begin + r : plan.column_begin + (r - plan.rows);
    const int from = load_table(begin).value[0], to = load_table(begin + 1).value[0];
    const Strip<V> other{is_row ? y.at : x.at, x.pitch}, out{is_row ? dx.at : dy.at, dx.pitch};
    V sum{};
    int p = 0;
    for (int n = from; n < to; ++n) {
      p = is_row ? n : load_table(plan.column_product + n).value[0];
      sum += others[p] * other[load_table((is_row ? plan.y_component : plan.x_component) + p).value[0]];
    }
    out[load_table((is_row ? plan.x_component : plan.y_component) + p).value[0]] += sum;
  }
}

}  // namespace equitensor::cuda
