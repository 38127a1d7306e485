// Elementary functions that a compiler can evaluate, in doubles: <cmath> is not constexpr before C++26.
#pragma once

// One name a compiled variant: an inline function compiled for AVX-512 must not share its symbol with the baseline's,
// because the linker keeps either copy.
#ifndef EQUITENSOR_VARIANT
#define EQUITENSOR_VARIANT generic
#endif

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

inline constexpr double pi = 3.14159265358979323846;

constexpr int absolute(int v) { return v < 0 ? -v : v; }
constexpr double absolute(double v) { return v < 0 ? -v : v; }
constexpr int minimum(int a, int b) { return a < b ? a : b; }
constexpr int maximum(int a, int b) { return a > b ? a : b; }

// Newton's iteration on a value scaled to [1, 4); the last step rounds to within 1 ulp.
constexpr double square_root(double v) {
  if (!(v > 0)) return 0;
  double scale = 1;
  while (v >= 4) v /= 4, scale *= 2;
  while (v < 1) v *= 4, scale /= 2;
  double x = 0.5 * (1 + v);
  for (int i = 0; i < 6; ++i) x = 0.5 * (x + v / x);
  return x * scale;
}

constexpr double factorial(int n) {
  double r = 1;
  for (int i = 2; i <= n; ++i) r *= i;
  return r;
}

// cos(pi * numerator / denominator) and sin, with exact reduction to [0, pi/4] before the Taylor series.
constexpr double cosine_pi(long numerator, long denominator);
constexpr double sine_pi(long numerator, long denominator) {
  // sin(pi p/q) = cos(pi (p/q - 1/2))
  return cosine_pi(2 * numerator - denominator, 2 * denominator);
}
constexpr double cosine_series(double x) {
  double term = 1, sum = 0;
  for (int k = 1; k < 24; ++k) sum += term, term *= -x * x / ((2 * k - 1) * (2 * k));
  return sum;
}
constexpr double sine_series(double x) {
  double term = x, sum = 0;
  for (int k = 1; k < 24; ++k) sum += term, term *= -x * x / ((2 * k) * (2 * k + 1));
  return sum;
}
constexpr double cosine_pi(long numerator, long denominator) {
  long n = numerator % (2 * denominator);
  if (n < 0) n = -n;
  if (n > denominator) n = 2 * denominator - n;
  const bool negative = 2 * n > denominator;
  if (negative) n = denominator - n;
  const double value = 4 * n > denominator ? sine_series(pi * (denominator - 2 * n) / (2.0 * denominator))
                                           : cosine_series(pi * n / denominator);
  return negative ? -value : value;
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
