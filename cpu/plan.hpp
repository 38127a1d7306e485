// How a kernel is called. No functions here: anything inline would be compiled for AVX-512 under a name that the baseline shares.
#pragma once
#include "core/call.hpp"
#include "core/plan.hpp"
#include <cstdint>

namespace equitensor {

// One call. Operand rows are contiguous; a row stride of 0 shares one row between all items.
template <class T>
struct Operands {
  const T* in[operand_count];
  long stride[slot_count];
  T* out[slot_count];
  // Of an operation with weights.
  const T *weight, *weight_direction;
  T* weight_out;
  // Of a product of many factors, whose items have rows of their own.
  const T *factor[max_factors], *factor_direction[max_factors];
  T* factor_out[max_factors];
  const int* order;      // of a symmetric contraction: item i is row order[i]
  long weight_stride;
  bool weight_sum;
  Terms terms;
  bool sum[slot_count];  // the result is a single row, the sum over the items of the call
  bool accumulate;       // add to what the results hold
  bool stream;           // the results outgrow the cache: write them past it
  // Of a convolution: [begin, end) are its nodes; otherwise null. In the order of the receivers out[0] has a row of x's gradient an edge, from that of
  // node `begin` on, by component; x_by_component: so have the rows of x and its direction, whatever the layout. adds_by_sender: out[0] has the senders' rows
  // themselves, to which one thread adds.
  const Sweep* sweep;
  bool x_by_component, adds_by_sender;
};

// One variant's kernel of one operation. Items [begin, end); scratch as large as scratch() says, aligned to 64 bytes.
template <class Plan, class T>
struct Kernel {
  void (*contract)(const Plan&, const Operands<T>&, long begin, long end, void* scratch);
  long (*scratch)(const Plan&);
};
template <class T>
struct TypedKernels {
  Kernel<ClebschGordanPlan<T>, T> clebsch_gordan;
  Kernel<WeightedPlan<T>, T> weighted;
  Kernel<WeightedPlan<T>, T> weighted_tiles;  // of plans that mix all channels: with one row of weights for all items
  Kernel<GauntPlan<T>, T> gaunt;
  Kernel<GauntProductPlan<T>, T> gaunt_product;
  Kernel<FourierPlan<T>, T> fourier;
  Kernel<MatrixPlan<T>, T> matrix;
  Kernel<MatrixBlockPlan<T>, T> matrix_block;
  Kernel<SymmetricPlan<T>, T> symmetric_contraction;
  Kernel<HarmonicsPlan<T>, T> harmonics;
  // Rows [begin, end) of x to by component, or back: there through `row`, one of them, if they are added to what is there.
  void (*turn_rows)(const WeightedPlan<T>&, const T* in, T* out, bool to_components, T* row, long begin, long end);
  // Components [begin, end) of `count` rows, each added to that row of `to` that `index` says.
  void (*scatter_rows)(T* to, const int* index, const T* rows, long count, long dim, long begin, long end);
  void (*spread_row)(const T* values, int count, const int* index, T* row, long n);
  void (*multiply_rows)(const T* a, const T* b, T* out, long n, bool add);
  void (*add_rows)(const T* a, T* out, long n);
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
