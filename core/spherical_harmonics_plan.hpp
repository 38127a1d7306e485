// The plan of spherical harmonics.
#pragma once
#include "build_plan.hpp"
#include "legendre.hpp"

namespace equitensor {

// Operations of core/spherical_harmonics.hpp on numbers, or on dual numbers along a direction.
inline long harmonics_flops(const std::vector<int>& copies, bool normalize, bool along_direction, bool with_values, bool with_gradient) {
  const int lmax = int(copies.size()) - 1;
  const long add = along_direction ? 2 : 1, scale = add, multiply = along_direction ? 4 : 1, result = along_direction ? 3 : 1;
  const long recurrence = 2 * multiply + 2 * scale + add;
  long flops = (normalize ? 9 + (along_direction ? 17 : 0) : 0) + 3 * multiply + 2 * add;
  for (int m = 0; m <= lmax; ++m) {
    flops += 4 * multiply + 2 * add;
    const int orders = m > 0 ? 2 : 1, sums = m > 1 ? 6 : m > 0 ? 5 : 3;
    if (with_values) {
      flops += (lmax - m) * recurrence;
      for (int l = m; l <= lmax; ++l)
        if (copies[l] > 0) flops += scale + orders * result;
    }
    if (with_gradient && m < lmax) {
      flops += (lmax - 1 - m) * recurrence + (m > 0 ? 6 * multiply + (m > 1 ? 10 : 8) * add : 3 * add);
      for (int l = m + 1; l <= lmax; ++l)
        if (copies[l] > 0) flops += (m > 0 ? 3 : 2) * scale + sums * (scale + add);
    }
  }
  if (with_gradient) {
    if (normalize) flops += 6 * multiply + 5 * add + 3 * result;
    for (int l = 0; l <= lmax; ++l) flops += std::max(0, copies[l] - 1) * (2 * l + 1);
  }
  return flops;
}

template <class T, class Store>
HarmonicsPlan<T> harmonics_plan(Store& store, const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize,
                                PassFlops& flops) {
  const int lmax = int(scale.size()) - 1, orders = lmax + 1;
  int dim_out = 0;
  std::vector<int> begin, copies, centre, counts;
  for (int l = 0; l <= lmax; ++l) {
    begin.push_back(int(copies.size()));
    int at = 0;
    for (int d : degrees) {
      if (d == l) copies.push_back(at);
      at += 2 * d + 1;
    }
    dim_out = at;
    counts.push_back(int(copies.size()) - begin[l]);
    centre.push_back(counts[l] > 0 ? copies[begin[l]] + l : -1);
  }
  begin.push_back(int(copies.size()));
  // core/legendre.hpp's recurrence, next = a (y value - b r^2 previous), with a and -a b stored.
  std::vector<double> recurrence(2 * orders * orders + orders), ladder(3 * orders * orders);
  for (int m = 0; m <= lmax; ++m) {
    for (int l = m + 1; l <= lmax; ++l) {
      const double a = square_root((4.0 * l * l - 1) / (double(l) * l - double(m) * m));
      const double b = square_root(((l - 1.0) * (l - 1.0) - double(m) * m) / (4.0 * (l - 1.0) * (l - 1.0) - 1));
      recurrence[2 * (m * orders + l)] = a;
      recurrence[2 * (m * orders + l) + 1] = -a * b;
      const HarmonicLadder step = harmonic_ladder(l, m);
      double* to = &ladder[3 * (m * orders + l)];
      to[0] = scale[l] * step.up, to[1] = scale[l] * step.same, to[2] = scale[l] * step.down;
    }
    double diagonal = m > 0 ? square_root(2.0) : 1;
    for (int k = 1; k <= m; ++k) diagonal *= square_root((2 * k + 1.0) / (2 * k));
    recurrence[2 * orders * orders + m] = diagonal;
  }
  flops.forward = harmonics_flops(counts, normalize, false, true, false);
  flops.backward = harmonics_flops(counts, normalize, false, false, true);
  flops.double_backward = harmonics_flops(counts, normalize, true, true, true);
  return {lmax, dim_out, normalize, store.ints(begin), store.ints(copies), store.ints(centre), store.template values<T>(recurrence),
          store.template values<T>(ladder), store.template values<T>(scale)};
}

}  // namespace equitensor
