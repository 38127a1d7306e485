// Associated Legendre functions and Gauss-Legendre quadrature.
#pragma once
#include "arithmetic.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// sqrt(4 pi) Y_lm without its azimuthal factor, at x = cos(beta): sqrt((2l+1) (l-m)! / (l+m)!) |P_l^m(x)|, times sqrt(2)
// for m > 0, with the phase in which e3nn's harmonics are positive multiples of cos(m alpha) and sin(m alpha) (no
// Condon-Shortley sign). Mean square over the sphere 1. Recurrence in l at fixed m, stable for all l <= 44.
constexpr double legendre(int l, int m, double x) {
  const double sine = square_root((1 - x) * (1 + x));
  double value = m > 0 ? square_root(2.0) : 1;  // degree m, order m
  for (int k = 1; k <= m; ++k) value *= sine * square_root((2 * k + 1.0) / (2 * k));
  double previous = 0;
  for (int k = m + 1; k <= l; ++k) {
    const double a = square_root((4.0 * k * k - 1) / (double(k) * k - double(m) * m));
    const double b = square_root(((k - 1.0) * (k - 1.0) - double(m) * m) / (4.0 * (k - 1.0) * (k - 1.0) - 1));
    const double next = a * (x * value - b * previous);
    previous = value;
    value = next;
  }
  return value;
}

// Derivatives of sqrt(4 pi) r^l Y_lm without Re or Im, F_lm = Q_lm(y, r^2) w^m with w = z + i x and conjugate w', from order k of degree l - 1:
//   dF_l(k+1)/dw = up F_(l-1)k    dF_lk/dy = same F_(l-1)k    dF_l(k-1)/dw' = -down F_(l-1)k
// From dP_l^m/dt and the recurrences in m (DLMF 14.10), with the factors of legendre(). Of order 0, whose F is real, down is that of d/dw + d/dw'.
struct HarmonicLadder {
  double up, same, down;
};
constexpr HarmonicLadder harmonic_ladder(int l, int k) {
  const double ratio = (2 * l + 1.0) / (2 * l - 1.0);
  return {square_root(ratio * (l + k) * (l + k + 1) * (k == 0 ? 2 : 1)) / 2, square_root(ratio * (l - k) * (l + k)),
          square_root(ratio * (l - k) * (l - k + 1) * (k == 1 ? 2 : 1)) / 2};
}

struct QuadratureNode {
  double x, weight;
};

// Node i of the n-point Gauss-Legendre rule on [-1, 1], nodes descending, weights summing to 2: Newton's iteration on P_n
// from Tricomi's initial guess (Abramowitz & Stegun 22.16.6). The rule is exact for polynomials of degree 2n - 1. The lower half mirrors
// the upper one exactly, because the transforms fold north and south.
constexpr QuadratureNode gauss_legendre(int n, int i) {
  if (2 * i + 1 == n) {
    double p0 = 1, derivative = 0;  // P_n'(0) = n P_{n-1}(0)
    double p1 = 0;
    for (int k = 1; k < n; ++k) {
      const double p2 = ((2 * k - 1) * 0.0 * p1 - (k - 1) * p1) / k;
      p1 = p0;
      p0 = p2;
    }
    derivative = n * p0;
    return {0, 2 / (derivative * derivative)};
  }
  if (2 * i + 1 > n) {
    const QuadratureNode mirror = gauss_legendre(n, n - 1 - i);
    return {-mirror.x, mirror.weight};
  }
  double x = (1 - 1.0 / (8.0 * n * n) + 1.0 / (8.0 * n * n * n)) * cosine_pi(4 * i + 3, 4 * n + 2);
  double derivative = 1;
  for (int iteration = 0; iteration < 12; ++iteration) {
    double p0 = 1, p1 = 0;
    for (int k = 1; k <= n; ++k) {
      const double p2 = ((2 * k - 1) * x * p0 - (k - 1) * p1) / k;
      p1 = p0;
      p0 = p2;
    }
    derivative = n * (x * p0 - p1) / (x * x - 1);
    const double step = p0 / derivative;
    x -= step;
    if (absolute(step) < 1e-17) break;
  }
  return {x, 2 / ((1 - x) * (1 + x) * derivative * derivative)};
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
