// All paths between two degrees, as the CPU's unrolled kernels take them: products of orders on the fly, and one coefficient for both parts of a complex product.
//
// With x_a + i x_-a and y_b + i y_-b for the orders of a degree (x_0 alone for order 0), the parts of x y couple to orders +-(a + b) and those of x conj(y), or of conj(x) y
// if b > a, to orders +-|a - b| (core/complex_products.hpp). In e3nn's basis both parts do so with one coefficient c: if l1 + l2 + l3 is even, z_M += c re and z_-M += c im; if it
// is odd, z_-M += c re and z_M -= c im. Order M = 0 has one part: z_0 += c re if the sum is even, and c im if it is odd.
#pragma once
#include "arithmetic.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

inline constexpr int coupled_degree = 5;  // the largest: with degree 6 their code is twice as long, and L = 6 takes as long

// l1 >= l2: a pair the other way round is this one with x and y exchanged.
struct CoupledPair {
  int l1, l2;

  // The degrees l3, of an order.
  constexpr int lowest(int order = 0) const { return order > l1 - l2 ? order : l1 - l2; }
  constexpr int highest() const { return l1 + l2; }
  // The products of orders a and b have a difference beside their sum if neither is 0. Coefficients of one are those of its degrees l3, in order.
  static constexpr bool has_difference(int a, int b) { return a > 0 && b > 0; }
  constexpr int sums(int a, int b) const { return highest() - lowest(a + b) + 1; }
  constexpr int differences(int a, int b) const { return has_difference(a, b) ? highest() - lowest(absolute(a - b)) + 1 : 0; }
  // Where the coefficients of orders a and b begin, their sum's before their difference's.
  constexpr int first(int a, int b) const {
    int at = 0;
    for (int i = 0; i <= l1; ++i)
      for (int j = 0; j <= l2; ++j) {
        if (i == a && j == b) return at;
        at += sums(i, j) + differences(i, j);
      }
    return at;
  }
};

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
