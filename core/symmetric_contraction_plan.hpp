// The plan of a symmetric contraction.
#pragma once
#include "build_plan.hpp"
#include "symmetric_contraction.hpp"

namespace equitensor {

// Entries out_k += value left_i right_j as products and their map; a square's products x_i x_j and x_j x_i are one.
struct ProductEntries {
  std::map<std::pair<int, int>, std::map<int, double>> of;
  void add(const std::vector<Coupling>& couplings, int left, int right, int out, bool square) {
    for (const Coupling& c : couplings) {
      int i = left + c.i, j = right + c.j;
      if (square && i > j) std::swap(i, j);
      of[{i, j}][out + c.k] += c.value;
    }
  }
  template <class T, class Store>
  PlanProducts<T> build(Store& store, int outputs, long& products, long& forward, long& backward) const {
    std::vector<std::pair<int, int>> pairs;
    std::vector<MapEntry> entries;
    for (const auto& [pair, values] : of) {
      for (const auto& [out, value] : values)
        if (absolute(value) > 1e-13) entries.push_back({int(pairs.size()), out, value});
      if (!entries.empty() && entries.back().input == int(pairs.size())) pairs.push_back(pair);
    }
    const BlockMap map = make_block_map(outputs, entries), transposed_map = make_block_map(int(pairs.size()), transposed(entries));
    PassFlops unused;
    products = long(pairs.size()), forward = 2 * map.multiply_adds, backward = 2 * transposed_map.multiply_adds;
    return build_products<T>(store, FoldedProducts{{}, pairs, entries}, map, transposed_map, unused);
  }
};

// What a symmetric contraction computes: pairs = squares(x, x), y = weighted terms of x and the pairs, z = products(y, x) + weighted linear terms of x.
struct SymmetricTables {
  int inputs = 0, pairs = 0, sums = 0, outputs = 0;  // components of a channel: of x, of the pairs, of y, of z
  ProductEntries squares, products;
  std::vector<PlanSymmetricTerm> terms, linear;

  SymmetricTables(const SymmetricForm& form, SymmetricBasis& basis) {
    std::vector<int> first[2];  // components of a channel before the block's
    for (int s = 0; s < 2; ++s) {
      int& components = s == 0 ? inputs : outputs;
      for (const IrrepsBlock& b : s == 0 ? form.in : form.out) first[s].push_back(std::exchange(components, components + 2 * b.l + 1));
    }
    std::map<std::array<int, 3>, int> known_pairs, known_sums;
    const auto l_of = [&](int block) { return form.in[size_t(block)].l; };
    for (const SymmetricPath& row : basis.rows) {
      const int out = first[1][size_t(row.out)];
      int source = first[0][size_t(row.in[0])], l = l_of(row.in[0]);
      if (row.order == 1) {
        linear.push_back({source, out, 2 * l + 1, false});
        continue;
      }
      if (row.order == 3) {
        const auto [pair, added] = known_pairs.insert({{row.in[0], row.in[1], row.l12}, pairs});
        if (added) {
          squares.add(basis.couplings.of(l, l_of(row.in[1]), row.l12), source, first[0][size_t(row.in[1])], pairs, true);
          pairs += 2 * row.l12 + 1;
        }
        source = inputs + pair->second, l = row.l12;
      }
      const int right = row.in[row.order - 1];
      const auto [sum, added] = known_sums.insert({{row.out, right, l}, sums});
      if (added) {
        products.add(basis.couplings.of(l, l_of(right), form.out[size_t(row.out)].l), sums, first[0][size_t(right)], out, false);
        sums += 2 * l + 1;
      }
      terms.push_back({source, sum->second, 2 * l + 1, added});
    }
  }
};

// Operations are those of a node; the weights of the basis are made once a call.
template <class T, class Store>
SymmetricPlan<T> symmetric_plan(Store& store, const SymmetricForm& form, SymmetricBasis& basis, PassFlops& flops) {
  SymmetricTables tables(form, basis);
  SymmetricPlan<T> plan{};
  plan.mul = form.mul;
  plan.inputs = tables.inputs, plan.pairs = tables.pairs, plan.sums = tables.sums, plan.outputs = tables.outputs;
  for (int s = 0; s < 2; ++s) {
    std::vector<PlanBlock> blocks;
    for (const IrrepsBlock& b : s == 0 ? form.in : form.out)
      blocks.push_back({b.offset, b.mul, 2 * b.l + 1, b.component == b.mul || b.mul == 1 || b.l == 0, false});
    plan.dim[s] = form.dims[s];
    plan.block_count[s] = int(blocks.size());
    plan.blocks[s] = store.items(std::move(blocks));
  }
  long q, q_map, q_back, r, r_map, r_back;
  plan.squares = tables.squares.template build<T>(store, plan.pairs, q, q_map, q_back);
  plan.products = tables.products.template build<T>(store, plan.outputs, r, r_map, r_back);
  long into_sums = 0, first_into_sums = 0, of_pairs = 0, into_outputs = 0;
  for (const PlanSymmetricTerm& t : tables.terms) {
    into_sums += t.count, first_into_sums += t.first ? t.count : 0, of_pairs += t.source >= plan.inputs ? t.count : 0;
  }
  for (const PlanSymmetricTerm& t : tables.linear) into_outputs += t.count;
  const long sums_made = q + q_map + 2 * into_sums - first_into_sums;
  flops.forward = form.mul * (sums_made + r + r_map + 2 * into_outputs);
  flops.backward = form.mul * (sums_made + r_back + 4 * r + 4 * (into_sums + into_outputs) + q_back + 4 * q);
  // On dual numbers, whose products are three multiply-adds.
  flops.double_backward = form.mul * (sums_made + 3 * q + q_map + 4 * into_sums - first_into_sums + 3 * r + r_map + 4 * into_outputs +
                                      r_back + 6 * r + 8 * into_sums + 2 * of_pairs + 4 * into_outputs + 2 * q_back + 8 * q);
  plan.term_count = int(tables.terms.size()), plan.linear_count = int(tables.linear.size());
  plan.terms = store.items(std::move(tables.terms)), plan.linear = store.items(std::move(tables.linear));
  return plan;
}

}  // namespace equitensor
