// Every kernel file adds its functions to its variant's table; machine.cpp assembles the table.
#pragma once
#include "core/arithmetic.hpp"
#include "cpu/plan.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
void add_clebsch_gordan(TypedKernels<T>&);
template <class T>
void add_fourier(TypedKernels<T>&);
template <class T>
void add_weighted(TypedKernels<T>&);
template <class T>
void add_weighted_tiles(TypedKernels<T>&);
template <class T>
void add_gaunt(TypedKernels<T>&);
template <class T>
void add_gaunt_product(TypedKernels<T>&);
template <class T>
void add_matrix(TypedKernels<T>&);
template <class T>
void add_matrix_block(TypedKernels<T>&);
template <class T>
void add_factored(TypedKernels<T>&);
template <class T>
void add_symmetric_contraction(TypedKernels<T>&);
template <class T>
void add_spherical_harmonics(TypedKernels<T>&);

const Kernels& kernels();

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
