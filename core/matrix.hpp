// The form of the matrix tensor product: X_ab = sum over l, m of wigner3j(k, k, l)[a, b, m] x_lm, Z = X Y, and
// z_lm = sum over a, b of wigner3j(k, k, l)[a, b, m] Z_ab.
#pragma once
#include "block_map.hpp"
#include "wigner3j.hpp"

namespace equitensor {

struct MatrixComponent {
  int l, m, part;
};

// components -> [part][a][b] of a folded matrix F; the transpose reads a folded matrix off. wigner3j(k, k, l)[b, a] is (-1)^l
// wigner3j(k, k, l)[a, b], so that even degrees make up a symmetric matrix, kept above the diagonal of F, and odd degrees an
// antisymmetric one, kept below it: X_ab = F_ab + F_ba and X_ba = F_ab - F_ba for a < b. That halves the entries.
inline std::vector<MapEntry> matrix_entries(const std::vector<MatrixComponent>& components, int k) {
  const int size = 2 * k + 1;
  std::vector<MapEntry> entries;
  for (int i = 0; i < int(components.size()); ++i) {
    const MatrixComponent& c = components[i];
    for (int a = -k; a <= k; ++a)
      for (int b = a; b <= k; ++b) {
        if (!orders_couple(k, a, k, b, c.l, c.m)) continue;
        const double value = wigner3j(k, a, k, b, c.l, c.m);
        if (absolute(value) <= 1e-13) continue;
        const int row = c.l % 2 ? b : a, column = c.l % 2 ? a : b;
        entries.push_back({i, (c.part * size + row + k) * size + column + k, value});
      }
  }
  return entries;
}

}  // namespace equitensor
