// The form of the matrix tensor product: X_ab = sum over l, m of wigner3j(k, k, l)[a, b, m] x_lm, Z = X Y, and
// z_lm = sum over a, b of wigner3j(k, k, l)[a, b, m] Z_ab.
#pragma once
#include "block_map.hpp"
#include "wigner3j.hpp"

namespace equitensor {

struct MatrixComponent {
  int l, m, part;
};

// components -> [part][a][b]; the transpose reads a matrix off.
inline std::vector<MapEntry> matrix_entries(const std::vector<MatrixComponent>& components, int k) {
  const int size = 2 * k + 1;
  std::vector<MapEntry> entries;
  for (int i = 0; i < int(components.size()); ++i)
    for (int a = -k; a <= k; ++a)
      for (int b = -k; b <= k; ++b) {
        if (!orders_couple(k, a, k, b, components[i].l, components[i].m)) continue;
        const double value = wigner3j(k, a, k, b, components[i].l, components[i].m);
        if (absolute(value) > 1e-13) entries.push_back({i, (components[i].part * size + a + k) * size + b + k, value});
      }
  return entries;
}

}  // namespace equitensor
