// The form of MACE's symmetric contraction: for every node and channel,
//   out_LM = sum over paths of w T_LM,   T of a path: x_b1,   C (x_b1, x_b2),   or   C (C (x_b1, x_b2)_l12, x_b3),
// with C_M,ij = sqrt(2 l_out + 1) wigner3j(l_out, l_left, l_right)[M, i, j]. One x in every place makes many paths the same polynomial, or
// combinations of each other: a basis of them is evaluated, with weights that are linear in those of the paths.
#pragma once
#include "block_map.hpp"
#include "irreps.hpp"
#include "wigner3j.hpp"
#include <array>
#include <set>

namespace equitensor {

struct SymmetricPath {
  int out, order;  // order: how many factors
  int in[3];       // their blocks
  int l12;         // of three
};
struct SymmetricForm {
  bool is_double;
  int dims[2], mul, species;
  std::vector<IrrepsBlock> in, out;
  std::vector<SymmetricPath> paths;
};

// out_k += value left_i right_j
struct Coupling {
  int i, j, k;
  double value;
};
class Couplings {
 public:
  const std::vector<Coupling>& of(int left, int right, int out) {
    std::vector<Coupling>& list = known_[{left, right, out}];
    if (!list.empty()) return list;
    for (int i = -left; i <= left; ++i)
      for (int j = -right; j <= right; ++j)
        for (int k = -out; k <= out; ++k) {
          const double value = orders_couple(out, k, left, i, right, j) ? wigner3j(out, k, left, i, right, j) : 0;
          // Zeros that the selection rule does not show come out of Racah's sum as a few ulp.
          if (absolute(value) > 1e-13) list.push_back({i + left, j + right, k + out, square_root(2 * out + 1) * value});
        }
    return list;
  }
  std::vector<double> apply(const std::vector<double>& left, const std::vector<double>& right, int out) {
    std::vector<double> result(size_t(2 * out + 1));
    for (const Coupling& c : of(int(left.size()) / 2, int(right.size()) / 2, out)) result[size_t(c.k)] += c.value * left[size_t(c.i)] * right[size_t(c.j)];
    return result;
  }

 private:
  std::map<std::array<int, 3>, std::vector<Coupling>> known_;
};

// Path p is the sum of `value` times the basis' polynomials.
struct SymmetricExpansion {
  int row, path;
  double value;
};

// A basis of the polynomials of all paths, of those of them that are cheapest to evaluate together: z = sum over l, b of C (y_lb, x_b) with
// y_lb = sum of weights times C (x_b1, x_b2)_l and x_l. So what two paths have in common, (b1, b2, l) or (l, b, out), is computed once.
class SymmetricBasis {
 public:
  std::vector<SymmetricPath> rows;  // the linear ones behind the others
  std::vector<SymmetricExpansion> expansions;

  explicit SymmetricBasis(const SymmetricForm& form) : form_(form) {
    // Paths of the same factors are the only ones that can depend on each other.
    std::map<std::pair<int, std::vector<int>>, std::vector<int>> groups;
    for (int p = 0; p < int(form.paths.size()); ++p) {
      std::vector<int> factors(form.paths[size_t(p)].in, form.paths[size_t(p)].in + form.paths[size_t(p)].order);
      std::sort(factors.begin(), factors.end());
      groups[{form.paths[size_t(p)].out, std::move(factors)}].push_back(p);
    }
    // Those without a choice first: what they need is free for the others. The linear ones are last, as the plan has them.
    const auto rank = [&](const std::vector<int>* paths) { return std::pair(form.paths[size_t((*paths)[0])].order == 1, paths->size()); };
    std::vector<const std::vector<int>*> sorted;
    for (const auto& [key, paths] : groups) sorted.push_back(&paths);
    std::stable_sort(sorted.begin(), sorted.end(), [&](const auto* a, const auto* b) { return rank(a) < rank(b); });
    for (const std::vector<int>* paths : sorted) expand(*paths);
  }

  Couplings couplings;

 private:
  using Vector = std::vector<double>;
  static double dot(const Vector& a, const Vector& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }
  // Multiply-adds that a path needs beside those of the basis so far.
  long added_cost(const SymmetricPath& path) {
    if (path.order == 1) return 0;
    const int l3 = l_of(path.in[path.order - 1]), left = path.order == 2 ? l_of(path.in[0]) : path.l12;
    long cost = 2 * left + 1;
    if (!outer_.count(outer_key(path))) cost += 2 * long(couplings.of(left, l3, form_.out[size_t(path.out)].l).size());
    if (path.order == 3 && !inner_.count({path.in[0], path.in[1], path.l12}))
      cost += 2 * long(couplings.of(l_of(path.in[0]), l_of(path.in[1]), path.l12).size());
    return cost;
  }
  int l_of(int block) const { return form_.in[size_t(block)].l; }
  std::array<int, 3> outer_key(const SymmetricPath& path) const {
    return {path.out, path.in[path.order - 1], path.order == 2 ? l_of(path.in[0]) : path.l12};
  }
  // Values at points: of polynomials of one degree and the same factors, as good as their coefficients.
  Vector values_of(const SymmetricPath& path, int points) {
    unsigned state = 1;
    Vector values;
    for (int n = 0; n < points; ++n) {
      std::map<int, Vector> x;
      for (int f = 0; f < path.order; ++f) x[path.in[f]];
      for (auto& [block, components] : x)
        for (int m = 0; m <= 2 * l_of(block); ++m) components.push_back((state = state * 1664525u + 1013904223u) / 2147483648.0 - 1);
      Vector value = x[path.in[0]];
      if (path.order > 1) value = couplings.apply(value, x[path.in[1]], path.order == 2 ? form_.out[size_t(path.out)].l : path.l12);
      if (path.order > 2) value = couplings.apply(value, x[path.in[2]], form_.out[size_t(path.out)].l);
      values.insert(values.end(), value.begin(), value.end());
    }
    return values;
  }
  void expand(const std::vector<int>& paths) {
    struct Polynomial {
      Vector values, rest;  // rest: orthogonal to the basis
      double size;
    };
    std::vector<Polynomial> polynomials;
    for (int p : paths) {
      Vector values = values_of(form_.paths[size_t(p)], int(paths.size()) + 4);
      const double size = square_root(dot(values, values));
      polynomials.push_back({values, values, size});
    }
    std::vector<int> chosen;                 // of the paths
    std::vector<Vector> directions, mixture;  // orthonormal; values of chosen[i] are sum over j <= i of mixture[i][j] directions[j]
    for (;;) {
      // The cheapest one that is clearly independent, or the most independent one.
      int best = -1;
      double best_rest = 0;
      long best_cost = 0;
      for (int i = 0; i < int(paths.size()); ++i) {
        const Polynomial& polynomial = polynomials[size_t(i)];
        const double rest = polynomial.size > 1e-9 ? square_root(dot(polynomial.rest, polynomial.rest)) / polynomial.size : 0;
        if (rest < 1e-7) continue;
        const bool clear = rest > 0.15, best_clear = best_rest > 0.15;
        const long cost = added_cost(form_.paths[size_t(paths[size_t(i)])]);
        if (best < 0 || (clear && !best_clear) || (clear == best_clear && (clear ? cost < best_cost : rest > best_rest))) best = i, best_rest = rest, best_cost = cost;
      }
      if (best < 0) break;
      const SymmetricPath& path = form_.paths[size_t(paths[size_t(best)])];
      if (path.order > 1) outer_.insert(outer_key(path));
      if (path.order > 2) inner_.insert({path.in[0], path.in[1], path.l12});
      Vector direction = polynomials[size_t(best)].rest;
      for (const Vector& d : directions) {  // again, against rounding
        const double along = dot(direction, d);
        for (size_t c = 0; c < d.size(); ++c) direction[c] -= along * d[c];
      }
      const double size = square_root(dot(direction, direction));
      for (double& c : direction) c /= size;
      directions.push_back(direction);
      mixture.emplace_back();
      for (const Vector& d : directions) mixture.back().push_back(dot(polynomials[size_t(best)].values, d));
      chosen.push_back(best);
      for (Polynomial& polynomial : polynomials) {
        const double along = dot(polynomial.rest, direction);
        for (size_t c = 0; c < direction.size(); ++c) polynomial.rest[c] -= along * direction[c];
      }
    }
    const int first = int(rows.size());
    for (int i : chosen) rows.push_back(form_.paths[size_t(paths[size_t(i)])]);
    for (size_t i = 0; i < paths.size(); ++i) {
      Vector along;
      for (const Vector& d : directions) along.push_back(dot(polynomials[i].values, d));
      for (int j = int(chosen.size()) - 1; j >= 0; --j) {
        const double value = along[size_t(j)] / mixture[size_t(j)][size_t(j)];
        for (int k = 0; k <= j; ++k) along[size_t(k)] -= value * mixture[size_t(j)][size_t(k)];
        if (absolute(value) > 1e-12) expansions.push_back({first + j, paths[i], value});
      }
    }
  }

  const SymmetricForm& form_;
  std::set<std::array<int, 3>> outer_, inner_;  // (out, block, l) and (b1, b2, l12) that are in use
};

}  // namespace equitensor
