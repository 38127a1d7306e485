// Products of trigonometric series.
#pragma once
#include "arithmetic.hpp"

namespace equitensor {

// Operations of multiply_series in cpu/series.hpp, first product into its output.
constexpr long series_product_operations(int df, int dg, int dh) {
  long n = 4 * minimum(df, dg) + 4;  // mean
  for (int k = 1; k <= minimum(dh, df + dg); ++k) {
    const int sum = maximum(0, minimum(k - 1, df) - maximum(1, k - dg) + 1);
    n += 8 * (sum + maximum(0, minimum(dg, df - k)) + maximum(0, minimum(df, dg - k)));
    n += 4 * ((k <= dg) + (k <= df)) + 2;
  }
  return n;
}

}  // namespace equitensor
