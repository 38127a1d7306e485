// How a kernel is called. No functions here: anything inline would be compiled for AVX-512 under a name that the baseline shares.
#pragma once
#include "core/plan.hpp"
#include <cstdint>

namespace equitensor {

// One call. Operand rows are contiguous; a row stride of 0 shares one row between all items.
template <class T>
struct Operands {
  const T *x, *y, *z;  // z: the output's cotangent
  long x_stride, y_stride, z_stride;
  T *x_out, *y_out, *z_out;
  bool sum_x, sum_y;   // x_out, y_out: a single row, the sum over the items of the call
  bool stream;         // the outputs outgrow the cache: write them past it
};

// One variant's kernels. Items [begin, end); scratch as large as the matching *_scratch says, aligned to 64 bytes.
template <class T>
struct TypedKernels {
  using ClebschGordan = void(const ClebschGordanPlan<T>&, const Operands<T>&, long begin, long end, void* scratch);
  using Gaunt = void(const GauntPlan<T>&, const Operands<T>&, long begin, long end, void* scratch);
  using Matrix = void(const MatrixPlan<T>&, const Operands<T>&, long begin, long end, void* scratch);
  using MatrixBlock = void(const MatrixBlockPlan<T>&, const Operands<T>&, long begin, long end, void* scratch);
  using Harmonics = void(const HarmonicsPlan<T>&, const Operands<T>&, long begin, long end, void* scratch);
  ClebschGordan *clebsch_gordan_forward, *clebsch_gordan_backward;
  Gaunt *gaunt_forward, *gaunt_backward;
  Matrix *matrix_forward, *matrix_backward;
  MatrixBlock *matrix_block_forward, *matrix_block_backward;
  Harmonics* harmonics_forward;
  long (*clebsch_gordan_scratch)(const ClebschGordanPlan<T>&);
  long (*gaunt_scratch)(const GauntPlan<T>&);
  long (*matrix_scratch)(const MatrixPlan<T>&);
  long (*matrix_block_scratch)(const MatrixBlockPlan<T>&);
  long (*harmonics_scratch)(const HarmonicsPlan<T>&);
  double (*fma_chain)(long iterations);  // runs iterations x fma_per_iteration dependent-free multiply-adds
  long fma_per_iteration;
  long rows_per_task;  // a multiple of what one streaming pass covers
};
struct Kernels {
  const char* name;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  void (*copy)(const void* from, void* to, long bytes);  // streaming; both aligned to 64 bytes
  long (*take_count)();  // variant "counted": scalar operations since the last call; null elsewhere
};

}  // namespace equitensor
