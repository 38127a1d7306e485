// The plan of a Gaunt product through Fourier series.
#pragma once
#include "build_plan.hpp"
#include "fourier.hpp"

namespace equitensor {

// Every coefficient of the form has a sum, if an empty one.
template <class Store>
PlanTerms build_terms(Store& store, const FourierSlotForm& form, std::vector<TorusTerm> terms, long& operations) {
  std::sort(terms.begin(), terms.end());
  std::vector<PlanTermSum> sums;
  std::vector<PlanTermRun> runs;
  std::vector<int> factors;
  const int count = int(terms.size());
  int t = 0;
  for (const TorusFrequency& f : form.frequencies) {
    const int begin = int(runs.size());
    for (const int first = t; t < count && terms[size_t(t)].out == f.at; ++t) {
      const TorusTerm &term = terms[size_t(t)], &before = terms[size_t(t > first ? t - 1 : t)];
      const int kind = 2 * int(term.kind) + term.negative;
      if (t == first || runs.back().kind != kind || before.weight != term.weight) runs.push_back({kind, t, 0, 0});
      ++runs.back().count;
      runs.back().doublings = doublings(terms.data(), t, count);
      factors.push_back(term.a), factors.push_back(term.b);
      operations += term_operations(term.kind) + runs.back().doublings * (f.m ? 2 : 1);
    }
    sums.push_back({f.at, begin, int(runs.size()), f.m == 0});
  }
  const int sum_count = int(sums.size());
  return {store.items(std::move(sums)), store.items(std::move(runs)), store.ints(std::move(factors)), sum_count};
}

// What the unrolled kernels take: one signal of every degree to d in each input, every degree to 2d in the output, and their frequencies.
template <int degree>
bool is_full(const std::vector<GridComponent>& components, const FourierSlotForm& form, bool read_off) {
  const TorusFrequencies<degree> full = full_frequencies<degree>(read_off);
  if (form.parts != 1 || int(components.size()) != (degree + 1) * (degree + 1)) return false;
  for (int i = 0; i < int(components.size()); ++i)
    if (components[size_t(i)].l * (components[size_t(i)].l + 1) + components[size_t(i)].m != i) return false;
  return std::equal(form.frequencies.begin(), form.frequencies.end(), full.of, full.of + full.count,
                    [](const TorusFrequency& a, const TorusFrequency& b) { return a.m == b.m && a.u == b.u; });
}
template <class T, int degree, class Store>
const T* pair_values(Store& store, const FourierSlotForm& form, bool read_off, long& multiply_adds) {
  const TorusPairs<degree> pairs = full_pairs<degree>(read_off);
  std::vector<double> values(size_t(pairs.count), 0.0);
  for (const MapEntry& e : form.synthesis)
    for (int i = 0; i < pairs.count; ++i)
      if (pairs.of[i].component == e.input && pairs.of[i].coefficient == e.output) values[size_t(i)] = e.value;
  multiply_adds = pairs.count;
  return store.template values<T>(values);
}
template <class T, int d, class Store>
bool make_unrolled(Store& store, FourierPlan<T>& plan, const std::vector<GridComponent> (&components)[3], const FourierSlotForm (&forms)[3],
                   long (&multiply_adds)[3]) {
  if (!is_full<d>(components[0], forms[0], false) || !is_full<d>(components[1], forms[1], false) || !is_full<2 * d>(components[2], forms[2], true))
    return false;
  plan.unrolled = d;
  for (int s = 0; s < 2; ++s) plan.slots[s].pairs = pair_values<T, d>(store, forms[s], false, multiply_adds[s]);
  plan.slots[2].pairs = pair_values<T, 2 * d>(store, forms[2], true, multiply_adds[2]);
  return true;
}

template <class T, class Store>
FourierPlan<T> fourier_plan(Store& store, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, bool fft,
                            PassFlops& flops) {
  FourierPlan<T> plan{};
  plan.mul = mul, plan.fft = fft;
  plan.product_count = int(products.size());
  plan.products = store.items(products);
  std::vector<GridComponent> components[3];
  FourierSlotForm forms[3];
  for (int s = 0; s < 3; ++s) components[s] = slot_components<GridComponent>(plan.slots[s], slots[s], store);
  for (int s = 0; s < 2; ++s) forms[s] = fourier_input_form(components[s]);
  std::vector<std::set<int>> degrees;
  for (const PlanProduct& p : products) {
    degrees.resize(std::max(degrees.size(), size_t(p.part_out) + 1));
    for (const GridComponent& x : components[0])
      for (const GridComponent& y : components[1])
        if (x.part == p.part1 && y.part == p.part2)
          for (int l = absolute(x.l - y.l); l <= x.l + y.l; l += 2) degrees[size_t(p.part_out)].insert(l);
  }
  forms[2] = fourier_output_form(components[2], degrees);

  FastTransform half_circles[2], full_circle;
  if (fft) {
    // As many points as the product has frequencies, or a few more that halve more often.
    const int largest = forms[0].degree + forms[1].degree;
    const auto angle_operations = [&](int points) {
      long operations = points;
      for (const FourierSlotForm& form : forms) operations += full_circle_transform(form.degree, points).operations();
      return operations;
    };
    const auto ring_operations = [&](int points) {
      long operations = points * angle_operations(plan.angles);
      for (int s = 0; s < 3; ++s)
        for (int sine = 0; sine < 2; ++sine) {  // about as many orders of either
          std::vector<int> frequencies;
          for (int u = sine; u <= (s == 2 ? largest : forms[s].degree); ++u) frequencies.push_back(u);
          operations += forms[s].degree * half_circle_transform(sine, frequencies, points).operations();
        }
      return operations;
    };
    const auto fewest = [](int smallest, const auto& operations) {
      int best = smallest;
      long fewest_operations = operations(smallest);
      for (int points = smallest + 1; points < smallest + 8; ++points)
        if (const long n = operations(points); n < fewest_operations) best = points, fewest_operations = n;
      return best;
    };
    plan.angles = fewest(largest + forms[2].degree + 1, angle_operations);
    plan.rings = fewest(largest + 1, ring_operations);
    const auto butterflies = [&](const FastTransform& t) {
      std::vector<int> pairs;
      for (const auto& [first, second] : t.butterflies) pairs.push_back(first), pairs.push_back(second);
      return PlanButterflies{store.ints(std::move(pairs)), int(t.butterflies.size())};
    };
    for (int sine = 0; sine < 2; ++sine) plan.ring_butterflies[sine] = butterflies(half_circle_transform(sine, {}, plan.rings));
    plan.angle_butterflies = butterflies(full_circle_transform(0, plan.angles));
  }

  long synthesis[3], analysis[3], to_rings[3], from_rings[3], to_angles[3], from_angles[3], products_into[3];
  for (int s = 0; s < 3; ++s) {
    FourierSlot<T>& slot = plan.slots[s];
    FourierSlotForm& form = forms[s];
    slot.degree = form.degree, slot.parts = form.parts, slot.coefficients = form.coefficients;
    if (fft) {
      const int orders = 2 * form.degree + 1;
      std::vector<double> scale(size_t(form.coefficients), 1);  // sums over all points become coefficients
      std::vector<MapEntry> ring_entries;
      long butterflies = 0;
      for (const TorusFrequency& f : form.frequencies) {
        const FastTransform t = half_circle_transform(f.m % 2, {f.u}, plan.rings);
        for (int sine = 0; sine < (f.m ? 2 : 1); ++sine) {
          if (s == 2) scale[size_t(f.at + sine)] = 1.0 / ((f.u ? 2 : 1) * plan.rings * (f.m ? 2 : 1) * plan.angles);
          for (const MapEntry& e : t.entries)
            ring_entries.push_back({f.at + sine, (e.output * form.parts + f.part) * orders + form.degree + (sine ? -f.m : f.m), e.value});
        }
      }
      for (int m = -form.degree; m <= form.degree; ++m) butterflies += form.parts * plan.ring_butterflies[absolute(m % 2)].count;
      for (MapEntry& e : form.synthesis) e.value *= scale[size_t(e.output)];
      const std::vector<MapEntry> angle_entries = full_circle_transform(form.degree, plan.angles).entries;
      const BlockMap to_ring = make_block_map(plan.rings * form.parts * orders, ring_entries);
      const BlockMap from_ring = make_block_map(form.coefficients, transposed(ring_entries));
      const BlockMap to_angle = make_block_map(plan.angles, angle_entries), from_angle = make_block_map(orders, transposed(angle_entries));
      slot.to_rings = build_map<T>(store, to_ring), slot.from_rings = build_map<T>(store, from_ring);
      slot.to_angles = build_map<T>(store, to_angle), slot.from_angles = build_map<T>(store, from_angle);
      to_rings[s] = 2 * (to_ring.multiply_adds + butterflies), from_rings[s] = 2 * (from_ring.multiply_adds + butterflies);
      to_angles[s] = 2 * (to_angle.multiply_adds + plan.angle_butterflies.count);
      from_angles[s] = 2 * (from_angle.multiply_adds + plan.angle_butterflies.count);
    }
    const BlockMap in = make_block_map(form.coefficients, form.synthesis);
    std::vector<MapEntry> analysis_entries = transposed(form.synthesis);
    ReachedParts(products, s).keep(analysis_entries, components[s]);
    const BlockMap out = make_block_map(slot.components, analysis_entries);
    slot.synthesis = build_map<T>(store, in), slot.analysis = build_map<T>(store, out);
    synthesis[s] = 2 * in.multiply_adds, analysis[s] = 2 * out.multiply_adds;
  }
  if (!fft) {
    long pairs[3];
    static_assert(fourier_unrolled_degree == 2);
    if (make_unrolled<T, 1>(store, plan, components, forms, pairs) || make_unrolled<T, 2>(store, plan, components, forms, pairs))
      for (int s = 0; s < 3; ++s) synthesis[s] = analysis[s] = 2 * pairs[s];
    std::vector<TorusTerm> terms[3];
    torus_relations(forms, products, [&](const TorusRelation& r) {
      for (int out = 0; out < 3; ++out) terms[out].push_back(torus_term(r, out == 0 ? 1 : 0, out == 2 ? 1 : 2, out));
    });
    for (int out = 0; out < 3; ++out) {
      products_into[out] = 0;
      plan.terms[out] = build_terms(store, forms[out], std::move(terms[out]), products_into[out]);
    }
  }

  const long n = long(products.size());
  const auto& slot = plan.slots;
  const auto input = [&](int s) { return synthesis[s] + (fft ? to_rings[s] + long(plan.rings) * slot[s].parts * to_angles[s] : 0); };
  // `terms` products of the same two slots; the first product of a part is not added to anything.
  const auto contraction = [&](int out, long terms = 1) {
    if (!fft) return terms * products_into[out] + (terms - 1) * slot[out].coefficients + analysis[out];
    const long ring = (2 * terms * n - ReachedParts(products, out).count()) * plan.angles + slot[out].parts * from_angles[out];
    return plan.rings * ring + from_rings[out] + analysis[out];
  };
  flops.forward = mul * (input(0) + input(1) + contraction(2));
  flops.result = mul * contraction(2);
  if (plan.unrolled) flops.unrolled = flops.forward;
  flops.backward = mul * (input(0) + input(1) + input(2) + contraction(0) + contraction(1));
  flops.double_backward = mul * (2 * (input(0) + input(1)) + input(2) + contraction(0) + contraction(1) + contraction(2, 2));
  return plan;
}

}  // namespace equitensor
