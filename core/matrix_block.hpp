// The form of the matrix tensor product over a direct sum of irreps, z_l3 = sum over l1, l2 of coefficient * wigner3j x_l1 y_l2 with the
// coefficients of core/sixj.hpp.
//
// The matrices themselves are not formed. To read z of degrees 0 .. 2L off a matrix of irreps 0 .. L takes a multiply-add for every nonzero of
// wigner3j(k1, k2, l3), k1, k2 <= L: as many as all paths together. At L = 4 the paths take 3,876 and the product of two 25 x 25 matrices
// alone 15,625, at L = 8 82,260 and 531,441.
#pragma once
#include "block_map.hpp"
#include "channels.hpp"
#include "wigner3j.hpp"
#include <set>

namespace equitensor {

struct MatrixBlockPath {
  int in1, in2, out;  // blocks
  double coefficient;
};

// Pairs of irreps that lead to the same outputs, as (l1, l2) and (l2, l1) do: their products together, since the map's blocks are then
// twice as long and an output is loaded and stored half as often (9 % at L = 4, 18 % at L = 5).
struct MatrixBlockChunk {
  std::vector<std::pair<int, int>> products;  // components of a channel of x and y, sorted
  std::vector<MapEntry> entries;              // product -> component of a channel of z
};

inline std::vector<MatrixBlockChunk> matrix_block_chunks(const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths) {
  // Products of a tile stay in the first cache, and in a block's shared memory.
  constexpr size_t most_products = 512;
  std::vector<int> first[3];
  for (int s = 0; s < 3; ++s) {
    int at = 0;
    for (const IrrepsBlock& b : slots[s].blocks) first[s].push_back(at), at += 2 * b.l + 1;
  }
  using Entries = std::map<std::pair<int, int>, std::vector<std::pair<int, double>>>;  // of a product
  std::map<std::pair<int, int>, std::set<int>> outputs;
  std::map<std::pair<int, int>, Entries> pairs;
  for (const MatrixBlockPath& path : paths) {
    const int l1 = slots[0].blocks[path.in1].l, l2 = slots[1].blocks[path.in2].l, l3 = slots[2].blocks[path.out].l;
    outputs[{path.in1, path.in2}].insert(path.out);
    for (int i = -l1; i <= l1; ++i)
      for (int j = -l2; j <= l2; ++j)
        for (int k = -l3; k <= l3; ++k) {
          if (!orders_couple(l1, i, l2, j, l3, k)) continue;
          const double value = wigner3j(l1, i, l2, j, l3, k);
          if (absolute(value) > 1e-13)
            pairs[{path.in1, path.in2}][{first[0][path.in1] + i + l1, first[1][path.in2] + j + l2}].push_back(
                {first[2][path.out] + k + l3, path.coefficient * value});
        }
  }
  std::map<std::set<int>, std::vector<Entries>> chunks;
  for (auto& [pair, entries] : pairs) {
    std::vector<Entries>& same = chunks[outputs[pair]];
    if (same.empty() || same.back().size() + entries.size() > most_products)
      same.push_back(std::move(entries));
    else
      same.back().merge(entries);
  }
  std::vector<MatrixBlockChunk> result;
  for (const auto& [shared, parts] : chunks)
    for (const Entries& entries : parts) {
      MatrixBlockChunk& chunk = result.emplace_back();
      for (const auto& [product, to] : entries) {
        for (const auto& [output, value] : to) chunk.entries.push_back({int(chunk.products.size()), output, value});
        chunk.products.push_back(product);
      }
    }
  return result;
}

}  // namespace equitensor
