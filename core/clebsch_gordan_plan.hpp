// The plan of a Clebsch-Gordan product.
#pragma once
#include "build_plan.hpp"
#include "clebsch_gordan.hpp"
#include "coupled_pair.hpp"

namespace equitensor {

// scale[l3 - |l1 - l2|]: of the path to l3. exchanged: the paths are of degrees l2 and l1.
inline std::vector<double> coupled_coefficients(CoupledPair pair, bool exchanged, const std::vector<double>& scale) {
  std::vector<double> values;
  const int l1 = pair.l1, l2 = pair.l2;
  const auto symbol = [&](int m1, int m2, int l3, int m3) { return exchanged ? wigner3j(l2, m2, l1, m1, l3, m3) : wigner3j(l1, m1, l2, m2, l3, m3); };
  const auto append = [&](int a, int b, int order) {
    for (int l3 = pair.lowest(order); l3 <= pair.highest(); ++l3) {
      const bool odd = (l1 + l2 + l3) % 2 != 0;
      // Of order 0 there is one part alone, and the imaginary one, x_-a y_b - x_a y_-b, if the sum is odd.
      const double value = !odd ? symbol(a, b, l3, order) : order > 0 ? symbol(a, b, l3, -order) : symbol(-a, b, l3, 0);
      values.push_back(scale[size_t(l3 - pair.lowest())] * value);
    }
  };
  for (int a = 0; a <= l1; ++a)
    for (int b = 0; b <= l2; ++b) {
      append(a, b, a + b);
      if (pair.has_difference(a, b)) append(a, b, absolute(a - b));
    }
  return values;
}

// Nothing unless the unrolled kernels take the pair, which then has the paths to all l3.
inline std::vector<double> coefficients_if_coupled(const ClebschGordanPair& form, const IrrepsBlock& in1, const IrrepsBlock& in2) {
  const CoupledPair pair{std::max(in1.l, in2.l), std::min(in1.l, in2.l)};
  if (pair.l1 > coupled_degree || in1.component != 1 || in2.component != 1) return {};
  std::map<int, double> scale;
  for (const ClebschGordanPath& path : form.paths) scale[path.l3] = path.coefficient;
  const size_t degrees = size_t(pair.highest() - pair.lowest() + 1);
  if (scale.size() != degrees || form.paths.size() != degrees) return {};
  std::vector<double> scales;
  for (const auto& [l3, value] : scale) scales.push_back(value);
  return coupled_coefficients(pair, in1.l < in2.l, scales);
}

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
    const bool in_float32_on_cpu = !Store::on_device && sizeof(T) == sizeof(float);
    const std::vector<double> coefficients = in_float32_on_cpu && !dense && !square ? coefficients_if_coupled(form, b1, b2) : std::vector<double>();
    const bool coupled = !coefficients.empty();
    pair.direct = in_row && b1.mul == 1 && b2.mul == 1;
    pair.coupled_in_row = pair.direct && std::all_of(form.paths.begin(), form.paths.end(), [](const ClebschGordanPath& path) { return path.component == 1; });
    std::vector<PlanSegment> segments;
    std::vector<int> row_component, degree_outputs(coupled ? form.paths.size() : 0);
    std::vector<PlanPlace> places;
    for (const ClebschGordanPath& path : form.paths) {
      if (coupled) degree_outputs[size_t(path.l3 - absolute(b1.l - b2.l))] = path.l3 + (pair.coupled_in_row ? path.offset : pair.compact_outputs);
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
    pair.l1 = b1.l, pair.l2 = b2.l;
    pair.coefficients = coupled ? store.template values<T>(coefficients) : nullptr;
    pair.degree_outputs = store.ints(degree_outputs);
    pair.places = store.items(std::move(places));
    pair.by_outputs = divisor(pair.compact_outputs);
    pair.segment_count = int(segments.size());
    pair.segments = store.items(std::move(segments));
    plan.max_products = std::max(plan.max_products, pair.products);
    plan.max_compact = std::max(plan.max_compact, pair.compact_outputs);
    pairs.push_back(pair);
  }
  // A coupled pair and the same one the other way round take the same code, which one behind the other is read once.
  const auto place = [](const PlanPair<T>& pair) {
    return pair.coefficients ? std::pair(std::max(pair.l1, pair.l2), std::min(pair.l1, pair.l2)) : std::pair(coupled_degree + 1, 0);
  };
  std::stable_sort(pairs.begin(), pairs.end(), [&](const PlanPair<T>& a, const PlanPair<T>& b) { return place(a) < place(b); });
  std::copy(dims, dims + 3, plan.dim);
  plan.square = square;
  plan.pair_count = int(pairs.size());
  plan.pairs = store.items(std::move(pairs));
  return plan;
}

}  // namespace equitensor
