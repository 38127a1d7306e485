// Loops that are unrolled where their bounds are compile-time constants and are ordinary loops where they are not, from one source.
// GCC unrolls nested loops whose inner bounds depend on the outer index only if the source forces it. Fully unrolled, the
// operands of a short product stay in registers.
#pragma once
#include "arithmetic.hpp"
#include <utility>

// Lambdas and short functions that have to be inlined for their operands to stay in registers.
#if defined(__CUDACC__)
#define EQUITENSOR_INLINE inline
#define EQUITENSOR_LAMBDA
#else
#define EQUITENSOR_INLINE inline __attribute__((always_inline))
#define EQUITENSOR_LAMBDA __attribute__((always_inline))
#endif

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <int n>
struct Int {
  constexpr operator int() const { return n; }
};
template <int a, int b>
constexpr Int<a + b> operator+(Int<a>, Int<b>) { return {}; }
template <int a, int b>
constexpr Int<a - b> operator-(Int<a>, Int<b>) { return {}; }
template <int a, int b>
constexpr Int<(a < b ? a : b)> minimum(Int<a>, Int<b>) { return {}; }
template <int a, int b>
constexpr Int<(a > b ? a : b)> maximum(Int<a>, Int<b>) { return {}; }

// body(i) for i = begin .. end, both included.
template <class Body>
EQUITENSOR_INLINE constexpr void each(int begin, int end, Body&& body) {
  for (int i = begin; i <= end; ++i) body(i);
}
template <int begin, int end, class Body>
EQUITENSOR_INLINE constexpr void each(Int<begin>, Int<end>, Body&& body) {
  if constexpr (begin <= end)
    [&]<int... i>(std::integer_sequence<int, i...>) EQUITENSOR_LAMBDA { (body(Int<begin + i>{}), ...); }
  (std::make_integer_sequence<int, end - begin + 1>{});
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
