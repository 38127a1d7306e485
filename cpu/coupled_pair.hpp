// All paths between two degrees, unrolled: cpu/coupled_pair.cpp.
#pragma once
#include "core/coupled_pair.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Of one channel of x and one of y, by component, with the pair's coefficients. outputs[l3 - |l1 - l2|]: z's component of degree l3 and order 0.
template <class T>
struct CoupledKernels {
  // Writes z, the sum of one product or of two.
  void (*multiply[2])(const T* coefficients, const Vector<T>* const (&x)[2], const Vector<T>* const (&y)[2], Vector<T>* z, const int* outputs);
  // Adds to dx and dy.
  void (*differentiate)(const T* coefficients, const Vector<T>* x, const Vector<T>* y, const Vector<T>* z, const int* outputs, Vector<T>* dx, Vector<T>* dy, SpreadPrefetch<T>& next);
};
// coupled_degree >= l1 >= l2
template <class T>
const CoupledKernels<T>& coupled_kernels(int l1, int l2);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
