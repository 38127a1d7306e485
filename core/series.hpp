// The product of two trigonometric series by their coefficients: a ring of the Gaunt product, the highest output of the matrix product.
#pragma once
#include "unroll.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Trigonometric coefficients: [-m] and [m] are half the coefficients of sin(m alpha) and cos(m alpha), [0] is the mean.
// h = f g, or h += f g, truncated to degree `dh`: the convolution of their Fourier series, sum over m of F_m G_(k-m) with
// F_m = f[m] - i f[-m]. F_(-m) is the conjugate of the same of f_mirror, for m > 0: f itself where f is a real function.
// f, g and h are indexed from -degree to degree. Degrees are ints, or Ints for an unrolled product.
template <class V, class F, class Df, class G, class Dg, class H>
EQUITENSOR_INLINE constexpr void series_mean(const F& f, const F& f_mirror, Df df, const G& g, Dg dg, const H& h, bool first) {
  const Int<1> one{};
  V mean{}, mean2{};
  each(one, minimum(df, dg), [&](auto m) EQUITENSOR_LAMBDA {
    mean += f_mirror[m] * g[m];
    mean2 += f_mirror[-m] * g[-m];
  });
  mean += mean2;
  mean = f[0] * g[0] + (mean + mean);
  h[0] = first ? mean : h[0] + mean;
}
// Orders k and -k, k > 0.
template <class V, class F, class Df, class G, class Dg, class H, class K>
EQUITENSOR_INLINE constexpr void series_order(const F& f, const F& f_mirror, Df df, const G& g, const G& g_mirror, Dg dg, const H& h, K k,
                                              bool first) {
  const Int<1> one{};
  V cosine{}, sine{}, cosine2{}, sine2{};  // two chains each, to hide the latency of the sums
  each(maximum(one, k - dg), minimum(k - one, df), [&](auto m) EQUITENSOR_LAMBDA {
    const V fc = f[m], fs = f[-m], gc = g[k - m], gs = g[m - k];
    cosine += fc * gc;
    sine += fc * gs;
    cosine2 -= fs * gs;
    sine2 += fs * gc;
  });
  each(one, minimum(dg, df - k), [&](auto n) EQUITENSOR_LAMBDA {
    const V fc = f[n + k], fs = f[-n - k], gc = g_mirror[n], gs = g_mirror[-n];
    cosine += fc * gc;
    sine -= fc * gs;
    cosine2 += fs * gs;
    sine2 += fs * gc;
  });
  each(one, minimum(df, dg - k), [&](auto m) EQUITENSOR_LAMBDA {
    const V fc = f_mirror[m], fs = f_mirror[-m], gc = g[m + k], gs = g[-m - k];
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
}
template <class V, class F, class Df, class G, class Dg, class H, class Dh>
EQUITENSOR_INLINE constexpr void multiply_series(const F& f, const F& f_mirror, Df df, const G& g, const G& g_mirror, Dg dg, const H& h,
                                                 Dh dh, bool first) {
  series_mean<V>(f, f_mirror, df, g, dg, h, first);
  each(Int<1>{}, minimum(dh, df + dg),
       [&](auto k) EQUITENSOR_LAMBDA { series_order<V>(f, f_mirror, df, g, g_mirror, dg, h, k, first); });
  // Orders that the product does not have: h may be a slot with degrees that take no part.
  each(df + dg + Int<1>{}, dh, [&](auto k) EQUITENSOR_LAMBDA {
    if (first) h[k] = h[-k] = V{};
  });
}

// Operations of multiply_series, first product into its output.
constexpr long series_product_operations(int df, int dg, int dh) {
  long n = 4 * minimum(df, dg) + 4;  // mean
  for (int k = 1; k <= minimum(dh, df + dg); ++k) {
    const int sum = maximum(0, minimum(k - 1, df) - maximum(1, k - dg) + 1);
    n += 8 * (sum + maximum(0, minimum(dg, df - k)) + maximum(0, minimum(df, dg - k)));
    n += 4 * ((k <= dg) + (k <= df)) + 2;
  }
  return n;
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
