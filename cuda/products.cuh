// Products of the components of two channels, and the gradients through them: around the map of a product that is computed by its paths.
// Pointers are to the calling thread's item of the tiles.
#pragma once
#include "cuda/tile.cuh"

namespace equitensor::cuda {

template <class T>
__device__ __forceinline__ void multiply_components(const PlanProducts<T>& plan, const T* x, const T* y, T* products, const Team& team) {
  for (int p = team.index; p < plan.products; p += team.count)
    products[p * team.pitch] = x[load_table(plan.x_component + p).value[0] * team.pitch] * y[load_table(plan.y_component + p).value[0] * team.pitch];
}

// dx_i += sum over j of g_ij y_j, dy_j += sum over i of g_ij x_i: first the rows of the products, then their columns, each of them one component of
// dx or dy, which one thread sums.
template <class T>
__device__ __forceinline__ void add_gradients(const PlanProducts<T>& plan, const T* products, const T* x, const T* y, T* dx, T* dy, const Team& team) {
  for (int r = team.index; r < plan.rows + plan.columns; r += team.count) {
    const bool is_row = r < plan.rows;
    const int* begin = is_row ? plan.row_begin + r : plan.column_begin + (r - plan.rows);
    const int from = load_table(begin).value[0], to = load_table(begin + 1).value[0];
    T sum = 0;
    int p = 0;
    for (int n = from; n < to; ++n) {
      p = is_row ? n : load_table(plan.column_product + n).value[0];
      sum += products[p * team.pitch] * (is_row ? y[load_table(plan.y_component + p).value[0] * team.pitch] : x[load_table(plan.x_component + p).value[0] * team.pitch]);
    }
    if (is_row)
      dx[load_table(plan.x_component + p).value[0] * team.pitch] += sum;
    else
      dy[load_table(plan.y_component + p).value[0] * team.pitch] += sum;
  }
}

}  // namespace equitensor::cuda
