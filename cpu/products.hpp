// Products of the components of two channels, and the gradients through them: around the map of a product that is computed by its paths.
#pragma once
#include "cpu/plan.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// V: a vector, or some of them.
// products = x_i y_j, or products += x_i y_j; complex products first.
template <bool add, class T, class V>
EQUITENSOR_INLINE void multiply_components(const PlanProducts<T>& plan, const V* x, const V* y, V* products) {
  for (int r = 0; r < plan.complex_rows; ++r) {
    const ComplexProduct& row = plan.complex[plan.complex_row_begin[r]];
    const V x0 = x[row.x[0]], x1 = x[row.x[1]];
    for (int p = plan.complex_row_begin[r]; p < plan.complex_row_begin[r + 1]; ++p) {
      const V y0 = y[plan.complex[p].y[0]], y1 = y[plan.complex[p].y[1]];
      V* const to = products + 4 * p;
      if constexpr (add) {
        to[0] = to[0] + x0 * y0 - x1 * y1;
        to[1] = to[1] + x0 * y1 + x1 * y0;
        to[2] = to[2] + x0 * y0 + x1 * y1;
        to[3] = to[3] + x1 * y0 - x0 * y1;
      } else {
        const V same = x0 * y0, crossed = x1 * y0;
        to[0] = same - x1 * y1;
        to[1] = crossed + x0 * y1;
        to[2] = same + x1 * y1;
        to[3] = crossed - x0 * y1;
      }
    }
  }
  products += 4 * plan.complex_count;
  for (int r = 0; r < plan.rows; ++r) {
    const V xr = x[plan.x_component[plan.row_begin[r]]];
    for (int p = plan.row_begin[r]; p < plan.row_begin[r + 1]; ++p) {
      const V product = xr * y[plan.y_component[p]];
      products[p] = add ? products[p] + product : product;
    }
  }
}

// dx_i += sum over j of g_ij y_j, dy_j += sum over i of g_ij x_i. Both at once share the g_ij; dx and dy may then be the same,
// since in a square no pair of orders is multiplied by itself.
template <bool to_x, bool to_y, class T, class V>
EQUITENSOR_INLINE void add_gradients(const PlanProducts<T>& plan, const V* products, const V* x, const V* y, V* dx, V* dy) {
  for (int r = 0; r < plan.complex_rows; ++r) {
    const int c0 = plan.complex[plan.complex_row_begin[r]].x[0], c1 = plan.complex[plan.complex_row_begin[r]].x[1];
    const V x0 = to_y ? x[c0] : V{}, x1 = to_y ? x[c1] : V{};
    V sum0 = to_x ? dx[c0] : V{}, sum1 = to_x ? dx[c1] : V{};
    for (int p = plan.complex_row_begin[r]; p < plan.complex_row_begin[r + 1]; ++p) {
      const V* const g = products + 4 * p;
      const V plus = g[2] + g[0], minus = g[2] - g[0], crossed = g[1] + g[3], turned = g[1] - g[3];
      const int d0 = plan.complex[p].y[0], d1 = plan.complex[p].y[1];
      // One product a statement, so that the order of a sum is the same whichever gradients are wanted.
      if (to_x) {
        const V y0 = y[d0], y1 = y[d1];
        sum0 += plus * y0, sum1 += crossed * y0;
        sum0 += turned * y1, sum1 += minus * y1;
      }
      if (to_y) {
        V dy0 = dy[d0], dy1 = dy[d1];
        dy0 += plus * x0, dy1 += turned * x0;
        dy0 += crossed * x1, dy1 += minus * x1;
        dy[d0] = dy0, dy[d1] = dy1;
      }
    }
    if (to_x) dx[c0] = sum0, dx[c1] = sum1;
  }
  products += 4 * plan.complex_count;
  for (int r = 0; r < plan.rows; ++r) {
    int p = plan.row_begin[r];
    const int c = plan.x_component[p];
    const V xr = to_y ? x[c] : V{};
    V sum = to_x ? products[p] * y[plan.y_component[p]] : V{};
    if (to_y) dy[plan.y_component[p]] += products[p] * xr;
    for (++p; p < plan.row_begin[r + 1]; ++p) {
      const V g = products[p];
      if (to_x) sum += g * y[plan.y_component[p]];
      if (to_y) dy[plan.y_component[p]] += g * xr;
    }
    if (to_x) dx[c] += sum;
  }
}
template <class T>
inline void add_gradients(const PlanProducts<T>& plan, bool to_x, bool to_y, const Vector<T>* products, const Vector<T>* x, const Vector<T>* y,
                          Vector<T>* dx, Vector<T>* dy) {
  if (to_x && to_y)
    add_gradients<true, true>(plan, products, x, y, dx, dy);
  else if (to_x)
    add_gradients<true, false>(plan, products, x, y, dx, dy);
  else
    add_gradients<false, true>(plan, products, x, y, dx, dy);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
