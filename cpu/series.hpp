// The product of two trigonometric series by their coefficients: a ring of the Gaunt product, the highest output of the matrix product.
#pragma once
#include "cpu/simd.hpp"
#include "cpu/unroll.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Trigonometric coefficients: [-m] and [m] are half the coefficients of sin(m alpha) and cos(m alpha), [0] is the mean.
// h = f g, or h += f g, truncated to degree `dh`: the convolution of their Fourier series, sum over m of F_m G_(k-m) with
// F_m = f[m] - i f[-m]. F_(-m) is the conjugate of the same of f_mirror, for m > 0: f itself where f is a real function.
// Degrees are ints, or Ints for an unrolled product.
template <class T, class Df, class Dg, class Dh>
EQUITENSOR_INLINE void multiply_series(const Vector<T>* f, const Vector<T>* f_mirror, Df df, const Vector<T>* g,
                                       const Vector<T>* g_mirror, Dg dg, Vector<T>* h, Dh dh, bool first) {
  const Int<1> one;
  Vector<T> mean{}, mean2{};
  each(one, minimum(df, dg), [&](auto m) EQUITENSOR_LAMBDA {
    mean += f_mirror[m] * g[m];
    mean2 += f_mirror[-m] * g[-m];
  });
  mean += mean2;
  mean = f[0] * g[0] + (mean + mean);
  h[0] = first ? mean : h[0] + mean;
  each(one, minimum(dh, df + dg), [&](auto k) EQUITENSOR_LAMBDA {
    Vector<T> cosine{}, sine{}, cosine2{}, sine2{};  // two chains each, to hide the latency of the sums
    each(maximum(one, k - dg), minimum(k - one, df), [&](auto m) EQUITENSOR_LAMBDA {
      const Vector<T> fc = f[m], fs = f[-m], gc = g[k - m], gs = g[m - k];
      cosine += fc * gc;
      sine += fc * gs;
      cosine2 -= fs * gs;
      sine2 += fs * gc;
    });
    each(one, minimum(dg, df - k), [&](auto n) EQUITENSOR_LAMBDA {
      const Vector<T> fc = f[n + k], fs = f[-n - k], gc = g_mirror[n], gs = g_mirror[-n];
      cosine += fc * gc;
      sine -= fc * gs;
      cosine2 += fs * gs;
      sine2 += fs * gc;
    });
    each(one, minimum(df, dg - k), [&](auto m) EQUITENSOR_LAMBDA {
      const Vector<T> fc = f_mirror[m], fs = f_mirror[-m], gc = g[m + k], gs = g[-m - k];
      cosine += fc * gc;
      sine += fc * gs;
      cosine2 += fs * gs;
      sine2 -= fs * gc;
    });
    if (k <= dg) {
      cosine += f[0] * g[k];
      sine += f[0] * g[-k];
    }
    if (k <= df) {
      cosine2 += f[k] * g[0];
      sine2 += f[-k] * g[0];
    }
    cosine += cosine2;
    sine += sine2;
    h[k] = first ? cosine : h[k] + cosine;
    h[-k] = first ? sine : h[-k] + sine;
  });
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
