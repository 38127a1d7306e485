// The form of the matrix tensor product: X_ab = sum over l, m of wigner3j(k, k, l)[a, b, m] x_lm, Z = X Y, and
// z_lm = sum over a, b of wigner3j(k, k, l)[a, b, m] Z_ab.
#pragma once
#include "block_map.hpp"
#include "matrix_fold.hpp"
#include "series.hpp"
#include "sixj.hpp"
#include <optional>

namespace equitensor {

struct MatrixComponent {
  int l, m, part;
};

// components -> [part][a][b] of a matrix, or of a folded one (matrix_fold.hpp); the transpose reads one off.
inline std::vector<MapEntry> matrix_entries(const std::vector<MatrixComponent>& components, int k, bool folded) {
  const int size = 2 * k + 1;
  std::vector<MapEntry> entries;
  for (int i = 0; i < int(components.size()); ++i) {
    const MatrixComponent& c = components[i];
    std::vector<double> matrix(size * size);
    for (int a = -k; a <= k; ++a)
      for (int b = -k; b <= k; ++b)
        if (orders_couple(k, a, k, b, c.l, c.m)) matrix[(a + k) * size + b + k] = wigner3j(k, a, k, b, c.l, c.m);
    // A butterfly's transpose is its inverse times 2, and an entry goes through up to two of them.
    if (folded) unfold<true>(matrix.data(), k);
    for (int a = -k; a <= k; ++a)
      for (int b = -k; b <= k; ++b) {
        const int twice = folded ? (a && b ? 2 : 1) * (absolute(a) != absolute(b) ? 2 : 1) : 1;
        const double value = matrix[(a + k) * size + b + k] / twice;
        if (absolute(value) > 1e-13) entries.push_back({i, c.part * size * size + (a + k) * size + b + k, value});
      }
  }
  return entries;
}

// The outputs of the highest degree that two inputs reach, by their only path, (l1, l2, l1 + l2). Its Clebsch-Gordan coefficients
// factorise, <l1 m1 l2 m2 | l1+l2 m1+m2> = g(l1, m1) g(l2, m2) / g(l1+l2, m1+m2) with g(l, m) = sqrt(binomial(2l, l+m)), so that it
// is the product of two Fourier series: F_m = g(l, m) x_m in the complex basis, where x_(-m) = (-1)^m times the conjugate of x_m.
struct MatrixTop {
  int l1, l2;
  int x_first, y_first, out_first;          // component m = -l of each
  std::vector<double> scale1, scale2, scale_out;  // between real components and the series of cpu/series.hpp
};
inline std::vector<double> stretched_scale(int l) {
  std::vector<double> scale;
  double binomial = 1;
  for (int m = -l; m <= l; ++m) {
    scale.push_back(square_root(m ? binomial / 2 : binomial));
    binomial *= double(l - m) / (l + m + 1);
  }
  return scale;
}
// From one product of parts; none if no output has that degree.
inline std::optional<MatrixTop> matrix_top(const std::vector<MatrixComponent>& in1, const std::vector<MatrixComponent>& in2,
                                           const std::vector<MatrixComponent>& out, int part1, int part2, int part_out, int k) {
  const auto degree = [](const std::vector<MatrixComponent>& components) {
    int l = 0;
    for (const MatrixComponent& c : components) l = maximum(l, c.l);
    return l;
  };
  const auto first_of = [](const std::vector<MatrixComponent>& components, int l, int part) {
    for (int i = 0; i < int(components.size()); ++i)
      if (components[i].l == l && components[i].part == part) return i;
    return -1;
  };
  const int l1 = degree(in1), l2 = degree(in2), l3 = l1 + l2;
  const int x = first_of(in1, l1, part1), y = first_of(in2, l2, part2), z = first_of(out, l3, part_out);
  if (x < 0 || y < 0 || z < 0) return std::nullopt;
  std::vector<double> scale_out = stretched_scale(l3);
  for (double& s : scale_out) s = matrix_path(l1, l2, l3, k) / square_root(2 * l3 + 1) / s;
  return MatrixTop{l1, l2, x, y, z, stretched_scale(l1), stretched_scale(l2), scale_out};
}

}  // namespace equitensor
