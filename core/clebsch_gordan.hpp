// The form of the Clebsch-Gordan tensor product: out[u, v, k] += coefficient * sum_ij wigner3j[i, j, k] x[u, i] y[v, j].
#pragma once
#include "block_map.hpp"
#include "irreps.hpp"
#include "wigner3j.hpp"

namespace equitensor {

struct ClebschGordanPath {
  int in1, in2;  // blocks
  Connection connection;
  int l3;
  int offset, u_step, v_step, component;  // component k of channels u, v: offset + u * u_step + v * v_step + k * component
  // Channels u < v of one block, numbered row by row: each row is one shorter than the one before, and v counts less u (u - 1) / 2.
  bool triangular;
  double coefficient;
};

// All paths of one pair of input blocks, so that the products x_i y_j are formed once for them.
struct ClebschGordanPair {
  int in1, in2;
  Connection connection;
  bool triangular;
  bool symmetric;                             // of a channel with itself: x_i x_j is x_j x_i
  std::vector<std::pair<int, int>> products;  // (i, j), sorted
  std::vector<ClebschGordanPath> paths;
  std::vector<MapEntry> entries;              // product -> component, the paths' components one behind the other
};

// dense: every product for every output, zeros included, as an einsum with the full coefficient tensor computes it.
// square: both inputs are the same array, so that of the products of a channel with itself x_i x_j and x_j x_i are one.
inline std::vector<ClebschGordanPair> clebsch_gordan_pairs(const std::vector<IrrepsBlock>& in1,
                                                           const std::vector<IrrepsBlock>& in2,
                                                           const std::vector<ClebschGordanPath>& paths, bool dense, bool square) {
  std::vector<ClebschGordanPair> pairs;
  for (const ClebschGordanPath& path : paths) {
    size_t p = 0;
    while (p < pairs.size() && !(pairs[p].in1 == path.in1 && pairs[p].in2 == path.in2 && pairs[p].connection == path.connection)) ++p;
    if (p == pairs.size()) {
      const bool symmetric = square && path.connection == Connection::same && path.in1 == path.in2;
      pairs.push_back({path.in1, path.in2, path.connection, path.triangular, symmetric, {}, {}, {}});
    }
    pairs[p].paths.push_back(path);
  }
  for (ClebschGordanPair& pair : pairs) {
    const int l1 = in1[pair.in1].l, l2 = in2[pair.in2].l;
    for (int i = -l1; i <= l1; ++i)
      for (int j = pair.symmetric ? i : -l2; j <= l2; ++j) {
        const int product = int(pair.products.size());
        bool used = false;
        int first = 0;
        for (const ClebschGordanPath& path : pair.paths) {
          const int l3 = path.l3;
          for (int k = -l3; k <= l3; ++k) {
            const bool couples = orders_couple(l1, i, l2, j, l3, k);
            double value = couples ? path.coefficient * wigner3j(l1, i, l2, j, l3, k) : 0;
            if (couples && pair.symmetric && i != j) value += path.coefficient * wigner3j(l1, j, l2, i, l3, k);
            // Zeros that the selection rule does not show come out of Racah's sum as a few ulp.
            if (!dense && absolute(value) <= 1e-13 * absolute(path.coefficient)) continue;
            pair.entries.push_back({product, first + k + l3, value});
            used = true;
          }
          first += 2 * l3 + 1;
        }
        if (used) pair.products.push_back({i + l1, j + l2});
      }
  }
  return pairs;
}

}  // namespace equitensor
