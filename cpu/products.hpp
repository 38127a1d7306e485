// Products of the components of two channels, and the gradients through them: around the map of a product that is computed by its paths.
#pragma once
#include "cpu/plan.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// V: a vector, or some of them.
// products = x_i y_j, or products += x_i y_j; complex products first. Of tiles apart by the pitches, which share the indices: 0.8 of the time of one after the other.
template <bool add, int tiles = 1, class T, class V>
EQUITENSOR_INLINE void multiply_components(const PlanProducts<T>& plan, const V* x, const V* y, V* products, long x_pitch = 0, long y_pitch = 0,
                                           long products_pitch = 0) {
  for (int r = 0; r < plan.complex_rows; ++r) {
    const ComplexProduct& row = plan.complex[plan.complex_row_begin[r]];
    V x0[tiles], x1[tiles];
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t) x0[t] = x[t * x_pitch + row.x[0]], x1[t] = x[t * x_pitch + row.x[1]];
    for (int p = plan.complex_row_begin[r]; p < plan.complex_row_begin[r + 1]; ++p) {
      const V *const from = y + plan.complex[p].y[0], *const from_1 = y + plan.complex[p].y[1];
#pragma GCC unroll 2
      for (int t = 0; t < tiles; ++t) {
        const V y0 = from[t * y_pitch], y1 = from_1[t * y_pitch];
        V* const to = products + t * products_pitch + 4 * p;
        if constexpr (add) {
          to[0] = to[0] + x0[t] * y0 - x1[t] * y1;
          to[1] = to[1] + x0[t] * y1 + x1[t] * y0;
          to[2] = to[2] + x0[t] * y0 + x1[t] * y1;
          to[3] = to[3] + x1[t] * y0 - x0[t] * y1;
        } else {
          const V same = x0[t] * y0, crossed = x1[t] * y0;
          to[0] = same - x1[t] * y1;
          to[1] = crossed + x0[t] * y1;
          to[2] = same + x1[t] * y1;
          to[3] = crossed - x0[t] * y1;
        }
      }
    }
  }
  products += 4 * plan.complex_count;
  // Not by rows, most of which are of one product.
  for (int p = 0; p < plan.count; ++p) {
    const V *const a = x + plan.x_component[p], *const b = y + plan.y_component[p];
    V* const to = products + p;
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t) {
      const V product = a[t * x_pitch] * b[t * y_pitch];
      to[t * products_pitch] = add ? to[t * products_pitch] + product : product;
    }
  }
}

// dx_i += sum over j of g_ij y_j, dy_j += sum over i of g_ij x_i. Both at once share the g_ij; dx and dy may then be the same,
// since in a square no pair of orders is multiplied by itself.
template <bool to_x, bool to_y, int tiles = 1, class T, class V>
EQUITENSOR_INLINE void add_gradients(const PlanProducts<T>& plan, const V* products, const V* x, const V* y, V* dx, V* dy, long x_pitch = 0, long y_pitch = 0,
                                     long products_pitch = 0, long dx_pitch = 0, long dy_pitch = 0) {
  for (int r = 0; r < plan.complex_rows; ++r) {
    const int c0 = plan.complex[plan.complex_row_begin[r]].x[0], c1 = plan.complex[plan.complex_row_begin[r]].x[1];
    V x0[tiles], x1[tiles], sum0[tiles], sum1[tiles];
#pragma GCC unroll 2
    for (int t = 0; t < tiles; ++t) {
      if (to_y) x0[t] = x[t * x_pitch + c0], x1[t] = x[t * x_pitch + c1];
      if (to_x) sum0[t] = dx[t * dx_pitch + c0], sum1[t] = dx[t * dx_pitch + c1];
    }
    for (int p = plan.complex_row_begin[r]; p < plan.complex_row_begin[r + 1]; ++p) {
      const int d0 = plan.complex[p].y[0], d1 = plan.complex[p].y[1];
#pragma GCC unroll 2
      for (int t = 0; t < tiles; ++t) {
        const V* const g = products + t * products_pitch + 4 * p;
        const V plus = g[2] + g[0], minus = g[2] - g[0], crossed = g[1] + g[3], turned = g[1] - g[3];
        // One product a statement, so that the order of a sum is the same whichever gradients are wanted.
        if (to_x) {
          const V y0 = y[t * y_pitch + d0], y1 = y[t * y_pitch + d1];
          sum0[t] += plus * y0, sum1[t] += crossed * y0;
          sum0[t] += turned * y1, sum1[t] += minus * y1;
        }
        if (to_y) {
          V* const to = dy + t * dy_pitch;
          V dy0 = to[d0], dy1 = to[d1];
          dy0 += plus * x0[t], dy1 += turned * x0[t];
          dy0 += crossed * x1[t], dy1 += minus * x1[t];
          to[d0] = dy0, to[d1] = dy1;
        }
      }
    }
#pragma GCC unroll 2
    for (int t = 0; to_x && t < tiles; ++t) dx[t * dx_pitch + c0] = sum0[t], dx[t * dx_pitch + c1] = sum1[t];
  }
  products += 4 * plan.complex_count;
  for (int r = 0; r < plan.rows; ++r) {
    const int first = plan.row_begin[r], c = plan.x_component[first];
    V xr[tiles], sum[tiles];
#pragma GCC unroll 2
    for (int t = 0; to_y && t < tiles; ++t) xr[t] = x[t * x_pitch + c];
    for (int p = first; p < plan.row_begin[r + 1]; ++p) {
      const int d = plan.y_component[p];
#pragma GCC unroll 2
      for (int t = 0; t < tiles; ++t) {
        const V g = products[t * products_pitch + p];
        if (to_x) sum[t] = p == first ? g * y[t * y_pitch + d] : sum[t] + g * y[t * y_pitch + d];
        if (to_y) dy[t * dy_pitch + d] += g * xr[t];
      }
    }
#pragma GCC unroll 2
    for (int t = 0; to_x && t < tiles; ++t) dx[t * dx_pitch + c] += sum[t];
  }
}
template <int tiles = 1, class T>
inline void add_gradients(const PlanProducts<T>& plan, bool to_x, bool to_y, const Vector<T>* products, const Vector<T>* x, const Vector<T>* y,
                          Vector<T>* dx, Vector<T>* dy, long x_pitch, long y_pitch, long products_pitch, long dx_pitch, long dy_pitch) {
  if (to_x && to_y)
    add_gradients<true, true, tiles>(plan, products, x, y, dx, dy, x_pitch, y_pitch, products_pitch, dx_pitch, dy_pitch);
  else if (to_x)
    add_gradients<true, false, tiles>(plan, products, x, y, dx, dy, x_pitch, y_pitch, products_pitch, dx_pitch, dy_pitch);
  else
    add_gradients<false, true, tiles>(plan, products, x, y, dx, dy, x_pitch, y_pitch, products_pitch, dx_pitch, dy_pitch);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
