// Products of the components of two channels, and the gradients through them: around the map of a product that is computed by its paths.
#pragma once
#include "cpu/plan.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
inline void multiply_components(const PlanProducts<T>& plan, const Vector<T>* x, const Vector<T>* y, Vector<T>* products) {
  for (int r = 0; r < plan.rows; ++r) {
    const Vector<T> xr = x[plan.x_component[plan.row_begin[r]]];
    for (int p = plan.row_begin[r]; p < plan.row_begin[r + 1]; ++p) products[p] = xr * y[plan.y_component[p]];
  }
}

// dx_i += sum over j of g_ij y_j, dy_j += sum over i of g_ij x_i. dx and dy may be the same.
template <class T>
inline void add_gradients(const PlanProducts<T>& plan, const Vector<T>* products, const Vector<T>* x, const Vector<T>* y, Vector<T>* dx,
                          Vector<T>* dy) {
  for (int r = 0; r < plan.rows; ++r) {
    int p = plan.row_begin[r];
    const int c = plan.x_component[p];
    const Vector<T> xr = x[c];
    Vector<T> sum = products[p] * y[plan.y_component[p]];
    dy[plan.y_component[p]] += products[p] * xr;
    for (++p; p < plan.row_begin[r + 1]; ++p) {
      const Vector<T> g = products[p];
      sum += g * y[plan.y_component[p]];
      dy[plan.y_component[p]] += g * xr;
    }
    dx[c] += sum;
  }
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
