// The plan of a Clebsch-Gordan product.
#pragma once
#include "build_plan.hpp"
#include "clebsch_gordan.hpp"

namespace equitensor {

// in_row: a pair of one channel names components of the output row itself.
template <class T, class Store>
ClebschGordanPlan<T> clebsch_gordan_plan(Store& store, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                         const std::vector<IrrepsBlock>& in2, const std::vector<ClebschGordanPath>& paths,
                                         bool dense, bool square, bool in_row, PassFlops& flops) {
  ClebschGordanPlan<T> plan{};
  std::vector<PlanPair<T>> pairs;
  for (const ClebschGordanPair& form : clebsch_gordan_pairs(in1, in2, paths, dense, square)) {
    const IrrepsBlock &b1 = in1[form.in1], &b2 = in2[form.in2];
    PlanPair<T> pair{};
    pair.mul1 = b1.mul, pair.mul2 = b2.mul, pair.connection = form.connection, pair.triangular = form.triangular;
    pair.x_offset = b1.offset, pair.x_channel = b1.channel;
    pair.y_offset = b2.offset, pair.y_channel = b2.channel;
    const auto opposite_x = [&](int i) { return 2 * b1.l - i; };
    const auto opposite_y = [&](int j) { return 2 * b2.l - j; };
    // The baseline multiplies as an einsum does.
    FoldedProducts folded = dense ? FoldedProducts{{}, form.products, form.entries}
                                  : fold_orders(form.products, form.entries, form.symmetric, least_saved<Store>, opposite_x, opposite_y);
    for (ComplexProduct& p : folded.complex) p.x[0] *= b1.component, p.x[1] *= b1.component, p.y[0] *= b2.component, p.y[1] *= b2.component;
    for (auto& [i, j] : folded.products) i *= b1.component, j *= b2.component;
    const long channels = form.connection == Connection::all    ? long(b1.mul) * b2.mul
                          : form.connection == Connection::same ? b1.mul
                                                                : long(b1.mul) * (b1.mul - 1) / 2;
    pair.direct = in_row && b1.mul == 1 && b2.mul == 1;
    std::vector<PlanSegment> segments;
    std::vector<int> row_component;
    std::vector<PlanPlace> places;
    for (const ClebschGordanPath& path : form.paths) {
      segments.push_back({pair.compact_outputs, 2 * path.l3 + 1, {path.offset, path.component}, path.u_step, path.v_step});
      pair.compact_outputs += 2 * path.l3 + 1;
      for (int k = 0; k <= 2 * path.l3; ++k) {
        row_component.push_back(path.offset + k * path.component);
        places.push_back({row_component.back(), path.u_step, path.v_step});
      }
    }
    BlockMap forward = make_block_map(pair.compact_outputs, folded.entries);
    BlockMap backward = make_block_map(int(form.products.size()), transposed(folded.entries));
    if (pair.direct) {
      for (MapBlock& b : forward.blocks)
        for (int& o : b.outputs) o = row_component[o];
      for (MapBlock& b : backward.blocks)
        for (int& s : b.sources) s = row_component[s];
    }
    PassFlops each;
    static_cast<PlanProducts<T>&>(pair) = build_products<T>(store, folded, forward, backward, each);
    flops.add(channels, each);
    pair.places = store.items(std::move(places));
    pair.by_outputs = divisor(pair.compact_outputs);
    pair.segment_count = int(segments.size());
    pair.segments = store.items(std::move(segments));
    plan.max_products = std::max(plan.max_products, pair.products);
    plan.max_compact = std::max(plan.max_compact, pair.compact_outputs);
    pairs.push_back(pair);
  }
  std::copy(dims, dims + 3, plan.dim);
  plan.square = square;
  plan.pair_count = int(pairs.size());
  plan.pairs = store.items(std::move(pairs));
  return plan;
}

}  // namespace equitensor
