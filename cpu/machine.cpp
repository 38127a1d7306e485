// The table of this variant's kernels, and the two loops that measure what the machine can do at best.
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

inline constexpr int chains = 12;  // latency 4 x two units, with room to spare

template <class T>
double fma_chain(long iterations) {
  Vector<T> sum[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) sum[i] = splat(T(i));
  const Vector<T> factor = splat(T(0.999)), term = splat(T(0.001));
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
#if !defined(EQUITENSOR_COUNT)
    asm volatile("" : : "m"(n));  // keeps the loop as written
#endif
  }
  Vector<T> total = sum[0];
#pragma GCC unroll 12
  for (int i = 1; i < chains; ++i) total += sum[i];
  T lanes[width<T>];
  store(lanes, total);
  return lanes[0];
}

void copy(const void* from, void* to, long bytes) {
  const float* in = static_cast<const float*>(from);
  float* out = static_cast<float*>(to);
  for (long i = 0; i < bytes / 4; i += width<float>) stream(out + i, load(in + i));
  stream_fence();
}

#if defined(EQUITENSOR_COUNT)
long operation_count = 0;
long take_count() {
  const long count = operation_count;
  operation_count = 0;
  return count;
}
#endif

template <class T>
TypedKernels<T> typed_kernels() {
  TypedKernels<T> k{};
  add_clebsch_gordan(k);
  add_fourier(k);
  add_weighted(k);
  add_weighted_tiles(k);
  add_gaunt(k);
  add_gaunt_product(k);
  add_matrix(k);
  add_matrix_block(k);
  add_factored(k);
  add_symmetric_contraction(k);
  add_spherical_harmonics(k);
  k.fma_chain = fma_chain<T>;
  k.fma_per_iteration = long(chains) * width<T>;
  k.rows_per_task = pass_items<T>;
  return k;
}

#define EQUITENSOR_TEXT(name) EQUITENSOR_TEXT_(name)
#define EQUITENSOR_TEXT_(name) #name

const Kernels& kernels() {
  static const Kernels table{EQUITENSOR_TEXT(EQUITENSOR_VARIANT),
                             typed_kernels<float>(),
                             typed_kernels<double>(),
                             copy,
#if defined(EQUITENSOR_COUNT)
                             take_count
#else
                             nullptr
#endif
  };
  return table;
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
