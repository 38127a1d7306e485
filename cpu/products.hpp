// Products of the components of two channels, and the gradients through them: around the map of a product that is computed by its paths.
#pragma once
#include "cpu/plan.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// V: a vector, or some of them.
// products = x_i y_j, or products += x_i y_j.
template <bool add, class T, class V>
EQUITENSOR_INLINE void multiply_components(const PlanProducts<T>& plan, const V* x, const V* y, V* products) {
  for (int r = 0; r < plan.rows; ++r) {
    const V xr = x[plan.x_component[plan.row_begin[r]]];
    for (int p = plan.row_begin[r]; p < plan.row_begin[r + 1]; ++p) {
      const V product = xr * y[plan.y_component[p]];
      products[p] = add ? products[p] + product : product;
    }
  }
}

// dx_i += sum over j of g_ij y_j, dy_j += sum over i of g_ij x_i. Both at once share the g_ij; dx and dy may then be the same.
template <bool to_x, bool to_y, class T, class V>
EQUITENSOR_INLINE void add_gradients(const PlanProducts<T>& plan, const V* products, const V* x, const V* y, V* dx, V* dy) {
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
