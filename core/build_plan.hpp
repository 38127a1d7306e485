// Builds plans (plan.hpp) from the forms of the operations. Every builder takes a store, which owns what a plan points to: on the CPU
// the process's memory, for CUDA a device's. It has
//   const int* ints(std::vector<int>)   const T* values<T>(std::vector<double>)   const Item* items(std::vector<Item>)
//   static constexpr int row_bytes      rows of coefficients are padded to a multiple of it
#pragma once
#include "channels.hpp"
#include "clebsch_gordan.hpp"
#include "fourier.hpp"
#include "gaunt.hpp"
#include "matrix.hpp"
#include "plan.hpp"
#include <algorithm>
#include <set>

namespace equitensor {

// Operations an item; a multiply-add counts two.
struct PassFlops {
  long forward = 0, backward = 0;
};

template <class T, class Store>
PlanMap<T> build_map(Store& store, const BlockMap& map) {
  std::map<std::pair<size_t, size_t>, std::vector<const MapBlock*>> shapes;
  for (const MapBlock& b : map.blocks) shapes[{b.outputs.size(), b.sources.size()}].push_back(&b);
  constexpr size_t multiple = std::max<size_t>(1, Store::row_bytes / sizeof(T));
  std::vector<PlanRun<T>> runs;
  for (const auto& [shape, blocks] : shapes) {
    const size_t pitch = (shape.first + multiple - 1) / multiple * multiple;
    std::vector<double> coefficients;
    std::vector<int> sources, outputs;
    for (const MapBlock* b : blocks) {
      for (size_t s = 0; s < shape.second; ++s) {
        const auto row = b->coefficients.begin() + long(s * shape.first);
        coefficients.insert(coefficients.end(), row, row + long(shape.first));
        coefficients.resize(coefficients.size() + pitch - shape.first);
      }
      sources.insert(sources.end(), b->sources.begin(), b->sources.end());
      outputs.insert(outputs.end(), b->outputs.begin(), b->outputs.end());
    }
    runs.push_back({int(blocks.size()), int(shape.second), int(shape.first), store.template values<T>(coefficients),
                    store.ints(sources), store.ints(outputs)});
  }
  const int count = int(runs.size());
  return {store.items(std::move(runs)), count};
}

// in_row: a pair of one channel names components of the output row itself.
template <class T, class Store>
ClebschGordanPlan<T> clebsch_gordan_plan(Store& store, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                         const std::vector<IrrepsBlock>& in2, const std::vector<ClebschGordanPath>& paths,
                                         bool dense, bool in_row, PassFlops& flops) {
  ClebschGordanPlan<T> plan{};
  std::vector<PlanPair<T>> pairs;
  for (const ClebschGordanPair& form : clebsch_gordan_pairs(in1, in2, paths, dense)) {
    const IrrepsBlock &b1 = in1[form.in1], &b2 = in2[form.in2];
    PlanPair<T> pair{};
    pair.mul1 = b1.mul, pair.mul2 = b2.mul, pair.same_channel = form.same_channel;
    pair.x_offset = b1.offset, pair.x_channel = b1.channel;
    pair.y_offset = b2.offset, pair.y_channel = b2.channel;
    std::vector<int> x, y, rows;
    for (const auto& [i, j] : form.products) {
      if (x.empty() || x.back() != i * b1.component) rows.push_back(int(x.size()));
      x.push_back(i * b1.component);
      y.push_back(j * b2.component);
    }
    pair.rows = int(rows.size()), pair.products = int(x.size());
    rows.push_back(pair.products);
    std::vector<int> columns, column_products;
    for (int j = 0; j <= 2 * b2.l; ++j) {
      columns.push_back(int(column_products.size()));
      for (int p = 0; p < pair.products; ++p)
        if (form.products[p].second == j) column_products.push_back(p);
      if (columns.back() == int(column_products.size())) columns.pop_back();
    }
    pair.columns = int(columns.size());
    columns.push_back(pair.products);
    const long channels = form.same_channel ? b1.mul : long(b1.mul) * b2.mul;
    pair.direct = in_row && channels == 1;
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
    BlockMap forward = make_block_map(pair.compact_outputs, form.entries);
    BlockMap backward = make_block_map(pair.products, transposed(form.entries));
    if (pair.direct) {
      for (MapBlock& b : forward.blocks)
        for (int& o : b.outputs) o = row_component[o];
      for (MapBlock& b : backward.blocks)
        for (int& s : b.sources) s = row_component[s];
    }
    flops.forward += channels * (pair.products + 2 * forward.multiply_adds);
    flops.backward += channels * (4 * pair.products + 2 * backward.multiply_adds);
    pair.forward = build_map<T>(store, forward), pair.backward = build_map<T>(store, backward);
    pair.x_component = store.ints(x), pair.y_component = store.ints(y), pair.row_begin = store.ints(rows);
    pair.column_begin = store.ints(columns), pair.column_product = store.ints(column_products);
    pair.places = store.items(std::move(places));
    pair.segment_count = int(segments.size());
    pair.segments = store.items(std::move(segments));
    plan.max_products = std::max(plan.max_products, pair.products);
    plan.max_compact = std::max(plan.max_compact, pair.compact_outputs);
    pairs.push_back(pair);
  }
  plan.dim1 = dims[0], plan.dim2 = dims[1], plan.dim_out = dims[2];
  plan.pair_count = int(pairs.size());
  plan.pairs = store.items(std::move(pairs));
  return plan;
}

// What the Gaunt and the matrix product share: the components of a channel, in the order of the blocks.
template <class Component, class Store>
std::vector<Component> slot_components(PlanSlot& plan, const ChannelSlot& slot, Store& store) {
  std::vector<Component> components;
  std::vector<Strided> places;
  plan.direct = true;
  for (size_t b = 0; b < slot.blocks.size(); ++b) {
    const IrrepsBlock& block = slot.blocks[b];
    for (int m = 0; m <= 2 * block.l; ++m) {
      plan.direct &= block.mul == 1 && block.at(0, m) == int(places.size());
      components.push_back({block.l, m - block.l, slot.parts[b]});
      places.push_back({block.at(0, m), block.channel});
    }
  }
  plan.dim = slot.dim;
  plan.components = int(components.size());
  plan.channel = store.items(std::move(places));
  return components;
}

template <class T, class Store>
GauntPlan<T> gaunt_plan(Store& store, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products,
                        const Grid& grid, PassFlops& flops) {
  GauntPlan<T> plan{};
  plan.mul = mul, plan.rings = grid.rings, plan.angles = grid.angles, plan.pointwise = grid.pointwise;
  plan.product_count = int(products.size());
  plan.products = store.items(products);
  long synthesis[3], analysis[3], to_angles[3], from_angles[3];
  for (int s = 0; s < 3; ++s) {
    GauntSlot<T>& slot = plan.slots[s];
    const auto components = slot_components<GridComponent>(slot, slots[s], store);
    const GauntSlotForm form = gaunt_slot_form(components, grid.rings, grid.angles);
    slot.degree = form.degree, slot.parts = form.parts;
    const BlockMap in = make_block_map(form.rings_size, form.synthesis, Missing::untouched);
    const BlockMap out = make_block_map(slot.components, form.analysis);
    const BlockMap to = make_block_map(grid.angles, form.to_angles);
    const BlockMap from = make_block_map(2 * form.degree + 1, form.from_angles);
    slot.synthesis = build_map<T>(store, in), slot.analysis = build_map<T>(store, out);
    slot.to_angles = build_map<T>(store, to), slot.from_angles = build_map<T>(store, from);
    synthesis[s] = 2 * in.multiply_adds, analysis[s] = 2 * out.multiply_adds;
    to_angles[s] = 2 * to.multiply_adds, from_angles[s] = 2 * from.multiply_adds;
  }

  const long mirrored = grid.rings / 2, n = long(products.size());
  const auto& slot = plan.slots;
  const bool plain = !grid.pointwise && n == 1 && slot[0].parts == 1 && slot[1].parts == 1 && slot[2].parts == 1;
  const auto orders = [&](int s) { return 2 * slot[s].degree + 1; };
  const auto folds = [&](int s) { return mirrored * 2 * slot[s].parts * orders(s); };
  // Unrolled products unfold their inputs each by itself; the others share the unfolded ones.
  const int d = slot[0].degree;
  const bool unrolled = plain && d >= 1 && d <= gaunt_unrolled_degree && slot[1].degree == d && slot[2].degree == 2 * d;
  const long angle_fold = 2 * ((grid.angles - 1) / 2);
  const auto input = [&](int s) {
    const long angular = grid.pointwise ? long(grid.rings) * slot[s].parts * (to_angles[s] + angle_fold) : 0;
    return synthesis[s] + folds(s) + angular;
  };
  const auto contraction = [&](int a, int b, int out) {
    const long added = n - slot[out].parts;  // the first product of a part is not added to anything
    const long ring = grid.pointwise
                          ? n * grid.angles + added * grid.angles + slot[out].parts * (angle_fold + from_angles[out])
                          : n * series_product_operations(slot[a].degree, slot[b].degree, slot[out].degree) + added * orders(out);
    return grid.rings * ring + folds(out) + analysis[out];
  };
  flops.forward = mul * (input(0) + input(1) + contraction(0, 1, 2));
  flops.backward = mul * (input(0) + input(1) + input(2) + contraction(1, 2, 0) + contraction(0, 2, 1) +
                         (unrolled ? folds(2) : 0));
  return plan;
}

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
    const BlockMap out = make_block_map(slot.components, transposed(form.synthesis));
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
  const auto contraction = [&](int out) {
    if (!fft) return products_into[out] + analysis[out];
    // The first product of a part is not added to anything.
    const long ring = (2 * n - slot[out].parts) * plan.angles + slot[out].parts * from_angles[out];
    return plan.rings * ring + from_rings[out] + analysis[out];
  };
  flops.forward = mul * (input(0) + input(1) + contraction(2));
  flops.backward = mul * (input(0) + input(1) + input(2) + contraction(0) + contraction(1));
  return plan;
}

// The highest outputs are small differences of large matrix entries: read off a float32 matrix, l3 = 2k is wrong by 2e-6 of its block's
// largest value at k = 4, 7e-6 at k = 5, 1e-5 at k = 6, 2e-5 at k = 8 (l3 = 15: 3e-6), 1e-4 at k = 10. So from k = 6 on l3 = l1 + l2 is
// computed by its only path, and from k = 9 on float32 operands are multiplied in double.
constexpr int matrix_largest_plain_k = 5, matrix_largest_float_k = 8;

// Returns the operations that it takes.
template <class T, class Store>
long compute_top_directly(Store& store, MatrixPlan<T>& plan, const std::vector<MatrixComponent> (&components)[3], const std::vector<PlanProduct>& products,
                          int k, std::set<int>& direct_outputs) {
  const auto mirror = [](std::vector<double> scale) {
    for (int i = 0, l = int(scale.size()) / 2; i <= 2 * l; ++i)
      if ((i - l) % 2) scale[i] = -scale[i];
    return scale;
  };
  std::vector<PlanTop<T>> tops;
  long flops = 0;
  for (const PlanProduct& p : products) {
    const std::optional<MatrixTop> top = matrix_top(components[0], components[1], components[2], p.part1, p.part2, p.part_out, k);
    if (!top) continue;
    const int l1 = top->l1, l2 = top->l2, l3 = l1 + l2;
    const bool first = direct_outputs.insert(top->out_first).second;
    for (int m = 1; m <= 2 * l3; ++m) direct_outputs.insert(top->out_first + m);
    tops.push_back({l1, l2, top->x_first, top->y_first, top->out_first, first, store.template values<T>(top->scale1),
                    store.template values<T>(mirror(top->scale1)), store.template values<T>(top->scale2), store.template values<T>(mirror(top->scale2)),
                    store.template values<T>(top->scale_out)});
    flops += series_product_operations(l1, l2, l3) + 2 * (2 * l1 + 1) + 2 * (2 * l2 + 1) + (first ? 1 : 2) * (2 * l3 + 1);
  }
  plan.top_count = int(tops.size());
  plan.tops = store.items(std::move(tops));
  return flops;
}

template <class T, class Store>
MatrixPlan<T> matrix_plan(Store& store, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, int k,
                          PassFlops& flops) {
  MatrixPlan<T> plan{};
  const int size = 2 * k + 1;
  plan.mul = mul, plan.size = size;
  plan.product_count = int(products.size());
  plan.products = store.items(products);
  std::vector<MatrixComponent> components[3];
  for (int s = 0; s < 3; ++s) components[s] = slot_components<MatrixComponent>(plan.slots[s], slots[s], store);
  const bool in_float = sizeof(T) == 4 && k <= matrix_largest_float_k;
  std::set<int> direct_outputs;  // components of a channel of the output
  const long direct_flops = in_float && k > matrix_largest_plain_k ? compute_top_directly(store, plan, components, products, k, direct_outputs) : 0;
  long to[3], from[3];
  for (int s = 0; s < 3; ++s) {
    MatrixSlot<T>& slot = plan.slots[s];
    slot.parts = 1;
    for (int part : slots[s].parts) slot.parts = std::max(slot.parts, part + 1);
    const std::vector<MapEntry> entries = matrix_entries(components[s], k);
    std::vector<MapEntry> reverse = transposed(entries);
    if (s == 2) std::erase_if(reverse, [&](const MapEntry& e) { return direct_outputs.count(e.output) > 0; });
    const BlockMap to_matrix = make_block_map(slot.parts * size * size, entries);
    const BlockMap from_matrix = make_block_map(slot.components, reverse);
    slot.to_matrix = build_map<T>(store, to_matrix), slot.from_matrix = build_map<T>(store, from_matrix);
    const long folds = slot.parts * fold_additions(k);
    to[s] = 2 * to_matrix.multiply_adds + folds, from[s] = 2 * from_matrix.multiply_adds + folds;
  }
  const long multiply = 2 * long(products.size()) * size * size * size;
  flops.forward = mul * (to[0] + to[1] + multiply + from[2] + direct_flops);
  flops.backward = mul * (to[0] + to[1] + to[2] + 2 * multiply + from[0] + from[1]);
  return plan;
}

template <class T, class Store>
HarmonicsPlan<T> harmonics_plan(Store& store, const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize) {
  const int lmax = int(scale.size()) - 1, orders = lmax + 1;
  int dim_out = 0;
  std::vector<int> begin, copies;
  for (int l = 0; l <= lmax; ++l) {
    begin.push_back(int(copies.size()));
    int at = 0;
    for (int d : degrees) {
      if (d == l) copies.push_back(at);
      at += 2 * d + 1;
    }
    dim_out = at;
  }
  begin.push_back(int(copies.size()));
  // core/legendre.hpp's recurrence, next = a (y value - b r^2 previous), with a and -a b stored.
  std::vector<double> recurrence(2 * orders * orders + orders);
  for (int m = 0; m <= lmax; ++m) {
    for (int l = m + 1; l <= lmax; ++l) {
      const double a = square_root((4.0 * l * l - 1) / (double(l) * l - double(m) * m));
      const double b = square_root(((l - 1.0) * (l - 1.0) - double(m) * m) / (4.0 * (l - 1.0) * (l - 1.0) - 1));
      recurrence[2 * (m * orders + l)] = a;
      recurrence[2 * (m * orders + l) + 1] = -a * b;
    }
    double diagonal = m > 0 ? square_root(2.0) : 1;
    for (int k = 1; k <= m; ++k) diagonal *= square_root((2 * k + 1.0) / (2 * k));
    recurrence[2 * orders * orders + m] = diagonal;
  }
  return {lmax, dim_out, normalize, store.ints(begin), store.ints(copies), store.template values<T>(recurrence), store.template values<T>(scale)};
}

}  // namespace equitensor
