// Wigner 6j symbols and the Gaunt coefficient: the path coefficients of the matrix and the Gaunt product.
#pragma once
#include "wigner3j.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

constexpr double triangle_factor(int a, int b, int c) {
  return factorial(a + b - c) * factorial(a - b + c) * factorial(-a + b + c) / factorial(a + b + c + 1);
}

constexpr bool triangle(int a, int b, int c) { return c >= absolute(a - b) && c <= a + b; }

// {a b c; d e f} for integer degrees, by Racah's formula (Edmonds 1957, eq. 6.3.7).
constexpr double wigner6j(int a, int b, int c, int d, int e, int f) {
  if (!triangle(a, b, c) || !triangle(a, e, f) || !triangle(d, b, f) || !triangle(d, e, c)) return 0;
  const double norm = square_root(triangle_factor(a, b, c)) * square_root(triangle_factor(a, e, f)) *
                      square_root(triangle_factor(d, b, f)) * square_root(triangle_factor(d, e, c));
  const int low = maximum(maximum(a + b + c, a + e + f), maximum(d + b + f, d + e + c));
  const int high = minimum(minimum(a + b + d + e, b + c + e + f), a + c + d + f);
  double sum = 0;
  for (int t = low; t <= high; ++t) {
    const double term = factorial(t + 1) /
                        (factorial(t - a - b - c) * factorial(t - a - e - f) * factorial(t - d - b - f) *
                         factorial(t - d - e - c) * factorial(a + b + d + e - t) * factorial(b + c + e + f - t) *
                         factorial(a + c + d + f - t));
    sum += t % 2 ? -term : term;
  }
  return norm * sum;
}

// |3j(l1 l2 l3; 0 0 0)|, the ordinary (complex) symbol with zero orders.
constexpr double wigner3j_zero(int l1, int l2, int l3) {
  if ((l1 + l2 + l3) % 2) return 0;
  return absolute(clebsch_gordan(l1, 0, l2, 0, l3, 0)) / square_root(2 * l3 + 1);
}

// Path coefficient of the Gaunt product: mean over the sphere of three functions sqrt(4 pi) Y, divided by wigner3j.
constexpr double gaunt_path(int l1, int l2, int l3) {
  return square_root(double(2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)) * wigner3j_zero(l1, l2, l3);
}

// Integral over the sphere of three real harmonics of unit integral norm.
constexpr double gaunt_coefficient(int l1, int m1, int l2, int m2, int l3, int m3) {
  return gaunt_path(l1, l2, l3) * wigner3j(l1, m1, l2, m2, l3, m3) / square_root(4 * pi);
}

// Path coefficient of the matrix product of (2k+1) x (2k+1) matrices.
constexpr double matrix_path(int l1, int l2, int l3, int k) {
  return (l3 % 2 ? -1 : 1) * wigner6j(l1, l2, l3, k, k, k);
}

// Path coefficient of the product of matrices over the direct sum of the irreps 0 .. k, whose block (k1, k2) holds wigner3j(k1, k2, l) times
// sqrt((2k1+1)(2k2+1)) ('norm') or sqrt(2l+1) ('component'). Three 3j contract to a 6j, C(k1 k2 l1) C(k2 k3 l2) C(k1 k3 l3) =
// (-1)^(k1+k3+l3) {l1 l2 l3; k3 k1 k2} C(l1 l2 l3), so that it is a sum over k1, k2, k3. To degree 11 it loses four digits at most (1e-13,
// l = 8, compared with 40 digits).
constexpr double matrix_block_path(int l1, int l2, int l3, int k, bool is_norm) {
  if (!triangle(l1, l2, l3)) return 0;
  double sum = 0, size = 0;
  for (int k1 = 0; k1 <= k; ++k1)
    for (int k2 = absolute(k1 - l1); k2 <= minimum(k, k1 + l1); ++k2)
      for (int k3 = maximum(absolute(k2 - l2), absolute(k1 - l3)); k3 <= minimum(k, minimum(k2 + l2, k1 + l3)); ++k3) {
        const double scale = is_norm ? double(2 * k1 + 1) * (2 * k2 + 1) * (2 * k3 + 1) : 1;
        const double term = scale * wigner6j(l1, l2, l3, k3, k1, k2);
        sum += (k1 + k3 + l3) % 2 ? -term : term;
        size += absolute(term);
      }
  if (absolute(sum) <= 1e-12 * size) return 0;
  return is_norm ? sum : sum * square_root(double(2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1));
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
