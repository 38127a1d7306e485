// The form of the matrix tensor product: X_ab = sum over l, m of wigner3j(k, k, l)[a, b, m] x_lm, Z = X Y, and
// z_lm = sum over a, b of wigner3j(k, k, l)[a, b, m] Z_ab.
#pragma once
#include "block_map.hpp"
#include "sixj.hpp"

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

// The outputs of the highest degree that two inputs reach, by their only path, (l1, l2, l1 + l2), from products of components.
struct MatrixTopForm {
  std::vector<int> x_component, y_component;  // of each product
  std::vector<MapEntry> entries;              // product -> component
};
inline MatrixTopForm matrix_top(const std::vector<MatrixComponent>& in1, const std::vector<MatrixComponent>& in2,
                                const std::vector<MatrixComponent>& out, int part1, int part2, int part_out, int k) {
  const auto degree = [](const std::vector<MatrixComponent>& components) {
    int l = 0;
    for (const MatrixComponent& c : components) l = maximum(l, c.l);
    return l;
  };
  const int l1 = degree(in1), l2 = degree(in2);
  MatrixTopForm form;
  for (int i = 0; i < int(in1.size()); ++i)
    for (int j = 0; j < int(in2.size()); ++j) {
      if (in1[i].l != l1 || in1[i].part != part1 || in2[j].l != l2 || in2[j].part != part2) continue;
      const int product = int(form.x_component.size());
      bool used = false;
      for (int o = 0; o < int(out.size()); ++o) {
        const int l3 = l1 + l2;
        if (out[o].l != l3 || out[o].part != part_out || !orders_couple(l1, in1[i].m, l2, in2[j].m, l3, out[o].m)) continue;
        const double value = matrix_path(l1, l2, l3, k) * wigner3j(l1, in1[i].m, l2, in2[j].m, l3, out[o].m);
        form.entries.push_back({product, o, value});
        used = true;
      }
      if (!used) continue;
      form.x_component.push_back(i);
      form.y_component.push_back(j);
    }
  return form;
}

}  // namespace equitensor
