// Wigner D matrices of the real basis, from a rotation matrix.
#pragma once
#include "wigner3j.hpp"
#include <vector>

namespace equitensor {

// D of degree l for a proper rotation R (3 x 3, row-major, on xyz), row-major (2l+1, 2l+1). D of degree 1 is R itself; each
// further degree is the part of D1 x D(l-1) that the Wigner 3j symbol (1, l-1, l) projects out:
// D_kn = (2l+1) sum C_ijk D1_ip D(l-1)_jq C_pqn.
inline std::vector<double> wigner_d(int l, const double* rotation) {
  if (l == 0) return {1};
  std::vector<double> d(rotation, rotation + 9);
  for (int degree = 2; degree <= l; ++degree) {
    const int lower = degree - 1, n = 2 * lower + 1, size = 2 * degree + 1;
    struct Entry {
      int i, j, k;
      double value;
    };
    std::vector<Entry> entries;
    for (int i = -1; i <= 1; ++i)
      for (int j = -lower; j <= lower; ++j)
        for (int k = -degree; k <= degree; ++k)
          if (orders_couple(1, i, lower, j, degree, k))
            entries.push_back({i + 1, j + lower, k + degree, wigner3j(1, i, lower, j, degree, k)});
    std::vector<double> next(size * size);
    for (const Entry& a : entries)
      for (const Entry& b : entries)
        next[a.k * size + b.k] += size * a.value * rotation[3 * a.i + b.i] * d[a.j * n + b.j] * b.value;
    d = std::move(next);
  }
  return d;
}

}  // namespace equitensor
