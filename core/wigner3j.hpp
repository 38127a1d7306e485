// Real Wigner 3j symbols in e3nn's basis, at compile time or at run time, under g++, clang and nvcc.
#pragma once
#include "arithmetic.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Complex Clebsch-Gordan coefficient <j1 m1 j2 m2 | j3 m3> (Condon-Shortley), by Racah's sum (Edmonds 1957, eq. 3.6.11).
// In doubles it stays within 1e-14 of orthogonality for every j1, j2 <= 11 and j3 <= 22 (test/mathematics.test.ts).
constexpr double clebsch_gordan(int j1, int m1, int j2, int m2, int j3, int m3) {
  if (m1 + m2 != m3 || j3 < absolute(j1 - j2) || j3 > j1 + j2) return 0;
  if (absolute(m1) > j1 || absolute(m2) > j2 || absolute(m3) > j3) return 0;
  const double triangle = (2 * j3 + 1) * factorial(j3 + j1 - j2) * factorial(j3 - j1 + j2) * factorial(j1 + j2 - j3) /
                          factorial(j1 + j2 + j3 + 1);
  const double orders = factorial(j3 + m3) * factorial(j3 - m3) * factorial(j1 - m1) * factorial(j1 + m1) *
                        factorial(j2 - m2) * factorial(j2 + m2);
  double sum = 0;
  for (int k = 0; k <= j1 + j2 - j3; ++k) {
    const int a = j1 + j2 - j3 - k, b = j1 - m1 - k, c = j2 + m2 - k, d = j3 - j2 + m1 + k, e = j3 - j1 - m2 + k;
    if (b < 0 || c < 0 || d < 0 || e < 0) continue;
    const double term =
        1 / (factorial(k) * factorial(a) * factorial(b) * factorial(c) * factorial(d) * factorial(e));
    sum += k % 2 ? -term : term;
  }
  return square_root(triangle) * square_root(orders) * sum;
}

struct Complex {
  double re = 0, im = 0;
};
constexpr Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }

// Column m of e3nn's change_basis_real_to_complex(l): the at most two complex orders that a real order is made of.
struct RealHarmonic {
  int count = 0;
  int order[2] = {};
  Complex value[2] = {};
};
constexpr RealHarmonic real_harmonic(int l, int m) {
  const Complex phases[4] = {{1, 0}, {0, -1}, {-1, 0}, {0, 1}};  // (-i)^l
  const Complex phase = phases[l % 4];
  if (m == 0) return {1, {0, 0}, {phase, {}}};
  const int a = absolute(m);
  const double s = square_root(0.5), sign = a % 2 ? -s : s;
  if (m > 0) return {2, {-a, a}, {phase * Complex{s, 0}, phase * Complex{sign, 0}}};
  return {2, {-a, a}, {phase * Complex{0, -s}, phase * Complex{0, sign}}};
}

// e3nn o3.wigner_3j(l1, l2, l3)[m1 + l1, m2 + l2, m3 + l3]: real, sum of squares over all orders 1.
constexpr double wigner3j(int l1, int m1, int l2, int m2, int l3, int m3) {
  if (l3 < absolute(l1 - l2) || l3 > l1 + l2) return 0;
  const RealHarmonic a = real_harmonic(l1, m1), b = real_harmonic(l2, m2), c = real_harmonic(l3, m3);
  double sum = 0;
  for (int i = 0; i < a.count; ++i)
    for (int j = 0; j < b.count; ++j)
      for (int k = 0; k < c.count; ++k) {
        if (a.order[i] + b.order[j] != c.order[k]) continue;
        const Complex conjugate{c.value[k].re, -c.value[k].im};
        sum += (a.value[i] * b.value[j] * conjugate).re *
               clebsch_gordan(l1, a.order[i], l2, b.order[j], l3, c.order[k]);
      }
  return sum / square_root(2 * l3 + 1);
}

// Orders m3 that can be coupled with real orders m1 and m2: |m3| is |m1| + |m2| or their difference, and the number of
// negative (sine) orders must match the parity of l1 + l2 + l3. At most two; the sparsity of every form rests on it.
constexpr bool orders_couple(int l1, int m1, int l2, int m2, int l3, int m3) {
  const int a = absolute(m1), b = absolute(m2), c = absolute(m3);
  if (c != a + b && c != absolute(a - b)) return false;
  const int sines = (m1 < 0) + (m2 < 0) + (m3 < 0);
  return (sines + l1 + l2 + l3) % 2 == 0;
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
