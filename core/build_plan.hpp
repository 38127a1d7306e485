// Builds plans (plan.hpp) from the forms of the operations. Every builder takes a store, which owns what a plan points to: on the CPU
// the process's memory, for CUDA a device's. It has
//   const int* ints(std::vector<int>)   const T* values<T>(std::vector<double>)   const Item* items(std::vector<Item>)
//   static constexpr bool on_device     and there row_bytes, to whose multiples rows of coefficients are padded
#pragma once
#include "channels.hpp"
#include "clebsch_gordan.hpp"
#include "complex_products.hpp"
#include "fourier.hpp"
#include "gaunt.hpp"
#include "matrix.hpp"
#include "matrix_block.hpp"
#include "plan.hpp"
#include "symmetric_contraction.hpp"
#include "weighted.hpp"
#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace equitensor {

// Operations an item; a multiply-add counts two.
struct PassFlops {
  long forward = 0, backward = 0, double_backward = 0;
  // Those of forward in products that are unrolled on the CPU and run at its peak, where everything else waits for loads and stores.
  long unrolled = 0;
  long result = 0;  // of a product: what the result takes beside the gradients, in one call

  void add(long times, const PassFlops& each) {
    result += times * each.result;
    forward += times * each.forward, backward += times * each.backward, double_backward += times * each.double_backward;
  }
};

inline Divisor divisor(int d) { return {~0u / unsigned(d)}; }

template <class T, class Store>
PlanMap<T> build_map(Store& store, const BlockMap& map) {
  std::map<std::pair<size_t, size_t>, std::vector<const MapBlock*>> shapes;
  for (const MapBlock& b : map.blocks) shapes[{b.outputs.size(), b.sources.size()}].push_back(&b);
  PlanMap<T> result{};
  if constexpr (Store::on_device) {
    std::vector<PlanMapBlock> list;
    std::vector<T> rows;
    // Room for so many bytes behind what is there.
    const auto take = [&](size_t bytes) {
      const size_t at = rows.size();
      rows.resize(at + (bytes + Store::row_bytes - 1) / Store::row_bytes * (Store::row_bytes / sizeof(T)));
      return &rows[at];
    };
    for (const auto& [shape, blocks] : shapes)
      for (const MapBlock* b : blocks) {
        list.push_back({int(rows.size()), int(shape.second / 2), int(shape.second % 2), int(shape.first)});
        for (size_t s = 0; s < shape.second; ++s) {
          T* const row = take((shape.first + 1) * sizeof(T));
          std::memcpy(row, &b->sources[s], sizeof(int));
          std::copy_n(b->coefficients.begin() + long(s * shape.first), shape.first, row + 1);
        }
        std::memcpy(take(shape.first * sizeof(int)), b->outputs.data(), shape.first * sizeof(int));
      }
    result.block_count = int(list.size());
    result.blocks = store.items(std::move(list));
    result.rows = store.items(std::move(rows));
  } else {
    std::vector<PlanRun<T>> runs;
    for (const auto& [shape, blocks] : shapes) {
      std::vector<double> coefficients;
      std::vector<int> sources, outputs;
      for (const MapBlock* b : blocks) {
        coefficients.insert(coefficients.end(), b->coefficients.begin(), b->coefficients.end());
        sources.insert(sources.end(), b->sources.begin(), b->sources.end());
        outputs.insert(outputs.end(), b->outputs.begin(), b->outputs.end());
      }
      runs.push_back({int(blocks.size()), int(shape.second), int(shape.first), store.template values<T>(coefficients),
                      store.ints(sources), store.ints(outputs)});
    }
    result.count = int(runs.size());
    result.runs = store.items(std::move(runs));
  }
  return result;
}

// The components of opposite orders, of one more irrep.
inline void append_opposite(std::vector<int>& opposite, int components) {
  const int first = int(opposite.size());
  for (int c = components; c-- > 0;) opposite.push_back(first + c);
}

// On a device a complex product always pays, since it loads half of what four products do.
template <class Store>
inline constexpr int least_saved = Store::on_device ? 0 : entries_worth_folding;

// Operations on the products of one pair of channels: to form them, to add more, and for the gradients of both operands.
struct ProductFlops {
  long form = 0, add = 0, gradients = 0;
  explicit ProductFlops(const FoldedProducts& folded) {
    const long complex = long(folded.complex.size()), others = long(folded.products.size());
    form = 10 * complex + others, add = 16 * complex + 2 * others;
    gradients = 20 * complex + 4 * others;
  }
};

// flops: of one pair of channels.
template <class T, class Store>
PlanProducts<T> build_products(Store& store, const FoldedProducts& folded, const BlockMap& forward, const BlockMap& backward, PassFlops& flops) {
  PlanProducts<T> plan{};
  // Numbers of products, sorted by row, as rows and as columns.
  const auto index = [&](size_t count, auto&& row_of, auto&& column_of, const int*& row_begin, int& row_count, const int*& column_begin, const int*& column_product,
                         int& column_count) {
    std::vector<int> rows, columns, products;
    std::map<int, std::vector<int>> by_column;
    for (size_t p = 0; p < count; ++p) {
      if (p == 0 || row_of(p) != row_of(p - 1)) rows.push_back(int(p));
      by_column[column_of(p)].push_back(int(p));
    }
    for (const auto& [j, column] : by_column) {
      columns.push_back(int(products.size()));
      products.insert(products.end(), column.begin(), column.end());
    }
    row_count = int(rows.size()), column_count = int(columns.size());
    rows.push_back(int(count)), columns.push_back(int(count));
    row_begin = store.ints(rows), column_begin = store.ints(columns), column_product = store.ints(products);
  };
  const auto& complex = folded.complex;
  const auto& others = folded.products;
  index(complex.size(), [&](size_t p) { return complex[p].x[0]; }, [&](size_t p) { return complex[p].y[0]; }, plan.complex_row_begin, plan.complex_rows,
        plan.complex_column_begin, plan.complex_column_product, plan.complex_columns);
  index(others.size(), [&](size_t p) { return others[p].first; }, [&](size_t p) { return others[p].second; }, plan.row_begin, plan.rows, plan.column_begin,
        plan.column_product, plan.columns);
  std::vector<int> x, y;
  for (const auto& [i, j] : others) x.push_back(i), y.push_back(j);
  plan.complex_count = int(complex.size()), plan.count = int(others.size()), plan.products = 4 * plan.complex_count + plan.count;
  plan.complex = store.items(complex), plan.x_component = store.ints(x), plan.y_component = store.ints(y);
  const ProductFlops each(folded);
  flops.forward += each.form + 2 * forward.multiply_adds;
  flops.backward += each.gradients + 2 * backward.multiply_adds;
  flops.double_backward += each.form + each.add + each.gradients + 2 * (forward.multiply_adds + backward.multiply_adds);
  flops.result += each.form + 2 * forward.multiply_adds;
  plan.forward = build_map<T>(store, forward), plan.backward = build_map<T>(store, backward);
  return plan;
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

template <class T, class Store>
WeightedPlan<T> weighted_plan(Store& store, const WeightedForm& form, PassFlops& flops) {
  constexpr int multiple = 16;  // entries of the widest vector, so that M is formed by whole ones
  WeightedPlan<T> plan{};
  std::copy(form.dims, form.dims + 3, plan.dim);
  plan.weights = form.weights;
  std::vector<PlanBlock> all_blocks[3];
  for (int s = 0; s < 3; ++s) {
    std::vector<PlanBlock> blocks;
    for (const IrrepsBlock& b : form.blocks[s]) {
      const int components = 2 * b.l + 1;
      blocks.push_back({b.offset, b.mul, components, b.component == b.mul || b.mul == 1 || components == 1, false});
      plan.max_lanes = std::max(plan.max_lanes, b.mul);
      plan.max_block = std::max(plan.max_block, b.mul * components);
    }
    plan.block_count[s] = int(blocks.size());
    all_blocks[s] = std::move(blocks);
  }

  std::vector<WeightedInstruction> sorted = form.instructions;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.out < b.out; });
  std::vector<PlanInstruction<T>> instructions;
  for (const WeightedInstruction& from : sorted) {
    const IrrepsBlock& b1 = form.blocks[0][size_t(from.in1)];
    const IrrepsBlock& b2 = form.blocks[1][size_t(from.in2)];
    const IrrepsBlock& b3 = form.blocks[2][size_t(from.out)];
    WeightedConnection c = connection_of(from.mode, b1.mul, b2.mul, b3.mul);
    if (b1.mul == 0 || b2.mul == 0 || b3.mul == 0 || c.segments.empty()) continue;
    const bool from_x = c.lane_operand == 0;
    const IrrepsBlock &lane = from_x ? b1 : b2, &matrix = from_x ? b2 : b1;
    PlanInstruction<T> to{};
    to.lane_operand = c.lane_operand;
    to.lane_block = from_x ? from.in1 : from.in2, to.matrix_block = from_x ? from.in2 : from.in1, to.out_block = from.out;
    to.inputs = 2 * lane.l + 1, to.matrix_components = 2 * matrix.l + 1, to.outputs = 2 * b3.l + 1;
    to.same_channel = c.same_channel;
    to.asks_ahead = std::none_of(instructions.begin(), instructions.end(),
                                 [&](const auto& before) { return before.lane_operand == to.lane_operand && before.lane_block == to.lane_block; });
    // Not where the block's channels are spread over segments, or it is an operand of channel by channel products before, which add to its gradient.
    const bool added_to = std::any_of(instructions.begin(), instructions.end(), [&](const auto& before) {
      return before.same_channel && before.lane_operand != to.lane_operand && before.matrix_block == to.lane_block;
    });
    to.makes_gradient = to.asks_ahead && !added_to && !c.same_channel && c.segments[0].lanes == lane.mul;
    if (to.makes_gradient) all_blocks[c.lane_operand][size_t(to.lane_block)].gradient_made = true;
    to.adds = !instructions.empty() && instructions.back().out_block == from.out;
    to.weight = from.weight, to.weights = c.weights, to.weight_columns = c.weight_columns, to.mixed = c.mixed, to.channels = c.channels;

    const bool scalar = matrix.l == 0 && lane.l > 0;
    to.copies = scalar ? to.inputs : 1;
    const int n = scalar ? 1 : to.inputs * to.outputs, components = to.matrix_components;
    to.entries = n, to.pitch = (n + multiple - 1) / multiple * multiple;
    to.by_nonzeros = components > 5;
    std::vector<double> dense(size_t(components * to.pitch)), of_entry_value, of_component_value;
    for (int e = 0; e < n; ++e)
      for (int j = 0; j < components; ++j) {
        const int i = e / to.outputs, k = e % to.outputs;
        const int m1 = (from_x ? i : j) - b1.l, m2 = (from_x ? j : i) - b2.l, m3 = k - b3.l;
        const double value = orders_couple(b1.l, m1, b2.l, m2, b3.l, m3) ? wigner3j(b1.l, m1, b2.l, m2, b3.l, m3) : 0;
        // Zeros that the selection rule does not show come out of Racah's sum as a few ulp.
        if (absolute(value) > 1e-13) dense[size_t(j * to.pitch + e)] = from.coefficient * value;
      }
    std::vector<int> of_entry, of_entry_component, of_component, of_component_entry;
    for (int e = 0; e < n; ++e) {
      of_entry.push_back(int(of_entry_value.size()));
      for (int j = 0; j < components; ++j)
        if (const double value = dense[size_t(j * to.pitch + e)]; value != 0) of_entry_component.push_back(j), of_entry_value.push_back(value);
    }
    of_entry.push_back(int(of_entry_value.size()));
    for (int j = 0; j < components; ++j) {
      of_component.push_back(int(of_component_value.size()));
      for (int e = 0; e < n; ++e)
        if (const double value = dense[size_t(j * to.pitch + e)]; value != 0) of_component_entry.push_back(e), of_component_value.push_back(value);
    }
    of_component.push_back(int(of_component_value.size()));
    std::vector<int> two_components(size_t(2 * n));
    std::vector<double> two_values(size_t(2 * n));
    for (int e = 0; e < n; ++e)
      for (int m = of_entry[size_t(e)], to = 2 * e; m < of_entry[size_t(e + 1)]; ++m, ++to)
        two_components[size_t(to)] = of_entry_component[size_t(m)], two_values[size_t(to)] = of_entry_value[size_t(m)];

    // Operations of a lane. A sum of products starts from zero, so that every product is a multiply-add. `parts` of the outputs at a time.
    const long pairs = scalar ? to.copies : n, parts = scalar ? to.copies : (to.outputs + 7) / 8, inputs = scalar ? 1 : to.inputs;
    const long nonzeros = long(of_component_value.size());
    const auto products = [&](bool adds, bool scaled) { return 2 * pairs + to.outputs * (int(adds) + int(scaled)); };
    const long gradients = 4 * pairs + 5 * parts * inputs;
    for (const PlanChannels& s : c.segments) {
      const long lanes = s.lanes;
      const long make = c.same_channel ? lanes * 2 * nonzeros : 2 * long(components) * to.pitch;
      const long contraction = c.same_channel ? lanes * 2 * nonzeros : 2 * (to.by_nonzeros ? nonzeros : long(components) * n);
      const bool adds = to.adds || s.adds;
      if (c.mixed) {
        flops.forward += make + lanes * products(false, false);
        flops.backward += make + contraction + lanes * ((from.weight >= 0 ? products(false, false) : 0) + gradients);
        // T(x, y), of which the weights' direction is multiplied, beside T(ax, y) + T(x, ay).
        const long directed = from.weight >= 0 ? products(false, false) + gradients : 0;
        flops.double_backward += 2 * make + contraction + lanes * (directed + products(false, false) + products(true, false) + gradients);
      } else {
        flops.forward += make + lanes * products(adds, from.weight >= 0);
        flops.backward += make + contraction + lanes * gradients;
        flops.double_backward += 2 * make + contraction + lanes * (10 * pairs + 12 * parts * inputs + (adds ? to.outputs : 0));
      }
    }
    plan.max_staged = std::max(plan.max_staged, to.outputs * c.channels);
    const long mix = 2L * to.outputs * c.channels * c.mixed;
    flops.forward += mix, flops.backward += (from.weight >= 0 ? 2 : 1) * mix, flops.double_backward += (from.weight >= 0 ? 5 : 2) * mix;
    plan.makes_matrices[1 - c.lane_operand] |= !c.same_channel;
    plan.max_pitch = std::max(plan.max_pitch, to.pitch), plan.max_entries = std::max(plan.max_entries, n);
    if (from.weight < 0) plan.max_lanes = std::max(plan.max_lanes, c.mixed * c.channels);

    to.segment_count = int(c.segments.size()), to.segments = store.items(std::move(c.segments));
    to.mix_count = int(c.mixes.size()), to.mixes = store.items(std::move(c.mixes));
    to.coefficients = store.template values<T>(dense);
    to.of_entry = store.ints(of_entry), to.of_entry_component = store.ints(of_entry_component);
    to.of_component = store.ints(of_component), to.of_component_entry = store.ints(of_component_entry);
    to.two_components = store.ints(two_components), to.two_values = store.template values<T>(two_values);
    to.of_entry_value = store.template values<T>(of_entry_value), to.of_component_value = store.template values<T>(of_component_value);
    instructions.push_back(to);
  }
  plan.mixes = std::all_of(instructions.begin(), instructions.end(), [](const auto& in) { return in.mixed > 0 && in.weight >= 0; });
  for (int s = 0; s < 2; ++s)
    if (plan.makes_matrices[s]) flops.backward += form.dims[s], flops.double_backward += form.dims[s];
  for (int s = 0; s < 3; ++s) plan.blocks[s] = store.items(std::move(all_blocks[s]));
  plan.instruction_count = int(instructions.size());
  plan.instructions = store.items(std::move(instructions));
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

// Parts of a slot that products have. Another part of an input is there for nothing: its gradient is zero, and is not to be read off what no product has written.
struct ReachedParts {
  std::set<int> parts;
  ReachedParts(const std::vector<PlanProduct>& products, int slot) {
    for (const PlanProduct& p : products) parts.insert(slot == 0 ? p.part1 : slot == 1 ? p.part2 : p.part_out);
  }
  long count() const { return long(parts.size()); }
  // Entries into components of other parts.
  template <class Component>
  void keep(std::vector<MapEntry>& entries, const std::vector<Component>& components) const {
    std::erase_if(entries, [&](const MapEntry& e) { return parts.count(components[size_t(e.output)].part) == 0; });
  }
};

// Whether a slot's signals are folded: plan.hpp.
template <class Store, class Component>
bool folds(const std::vector<Component>& components) {
  return !Store::on_device || std::any_of(components.begin(), components.end(), [&](const Component& c) { return c.l != components[0].l; });
}

struct GauntSlotFlops {
  long synthesis, analysis, to_angles, from_angles;
};
template <class T, class Store>
GauntSlotFlops build_gaunt_slot(Store& store, GauntSlot<T>& slot, const ChannelSlot& channels, const Grid& grid, const ReachedParts* reached = nullptr) {
  const auto components = slot_components<GridComponent>(slot, channels, store);
  slot.folded = !reached || folds<Store>(components);  // GauntProduct sums along the angles of folded rings
  GauntSlotForm form = gaunt_slot_form(components, grid.rings, grid.angles, slot.folded);
  if (reached) reached->keep(form.analysis, components);
  slot.degree = form.degree, slot.parts = form.parts;
  // On the CPU ring coefficients that no component reaches are cleared once, and not for every tile.
  const BlockMap in = make_block_map(form.rings_size, form.synthesis, Store::on_device ? Missing::zero : Missing::untouched);
  const BlockMap out = make_block_map(slot.components, form.analysis);
  const BlockMap to = make_block_map(grid.angles, form.to_angles);
  const BlockMap from = make_block_map(2 * form.degree + 1, form.from_angles);
  slot.synthesis = build_map<T>(store, in), slot.analysis = build_map<T>(store, out);
  slot.to_angles = build_map<T>(store, to), slot.from_angles = build_map<T>(store, from);
  return {2 * in.multiply_adds, 2 * out.multiply_adds, 2 * to.multiply_adds, 2 * from.multiply_adds};
}

template <class T, class Store>
GauntPlan<T> gaunt_plan(Store& store, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products,
                        const Grid& grid, PassFlops& flops) {
  GauntPlan<T> plan{};
  plan.mul = mul, plan.rings = grid.rings, plan.angles = grid.angles, plan.pointwise = grid.pointwise;
  plan.product_count = int(products.size());
  plan.products = store.items(products);
  const ReachedParts reached[3] = {{products, 0}, {products, 1}, {products, 2}};
  long synthesis[3], analysis[3], to_angles[3], from_angles[3];
  for (int s = 0; s < 3; ++s) {
    const GauntSlotFlops flops_of = build_gaunt_slot(store, plan.slots[s], slots[s], grid, &reached[s]);
    synthesis[s] = flops_of.synthesis, analysis[s] = flops_of.analysis, to_angles[s] = flops_of.to_angles, from_angles[s] = flops_of.from_angles;
  }

  const long mirrored = grid.rings / 2, n = long(products.size());
  const auto& slot = plan.slots;
  const bool plain = !grid.pointwise && n == 1 && slot[0].parts == 1 && slot[1].parts == 1 && slot[2].parts == 1;
  const auto orders = [&](int s) { return 2 * slot[s].degree + 1; };
  const auto folds = [&](int s) { return slot[s].folded ? mirrored * 2 * slot[s].parts * orders(s) : 0; };
  // Unrolled products unfold their inputs each by itself; the others share the unfolded ones.
  const int d = slot[0].degree;
  const bool unrolled = plain && d >= 1 && d <= gaunt_unrolled_degree && slot[1].degree == d && slot[2].degree == 2 * d;
  const long angle_fold = 2 * ((grid.angles - 1) / 2);
  const auto input = [&](int s) {
    const long angular = grid.pointwise ? long(grid.rings) * slot[s].parts * (to_angles[s] + angle_fold) : 0;
    return synthesis[s] + folds(s) + angular;
  };
  // `terms` products of the same two slots; the first product of a part is not added to anything.
  const auto contraction = [&](int a, int b, int out, int terms = 1) {
    const long added = terms * n - reached[out].count();
    const long ring = grid.pointwise
                          ? (terms * n + added) * grid.angles + slot[out].parts * (angle_fold + from_angles[out])
                          : terms * n * series_product_operations(slot[a].degree, slot[b].degree, slot[out].degree) + added * orders(out);
    // Unrolled ones fold each term, and add it folded.
    return grid.rings * ring + (unrolled ? terms : 1) * folds(out) + analysis[out];
  };
  flops.forward = mul * (input(0) + input(1) + contraction(0, 1, 2));
  flops.result = mul * (contraction(0, 1, 2) + (unrolled ? folds(0) + folds(1) : 0));
  if (unrolled) flops.unrolled = mul * grid.rings * series_product_operations(d, d, 2 * d);
  flops.backward = mul * (input(0) + input(1) + input(2) + contraction(1, 2, 0) + contraction(0, 2, 1) +
                         (unrolled ? folds(2) : 0));
  flops.double_backward = mul * (2 * (input(0) + input(1)) + input(2) + contraction(1, 2, 0) + contraction(0, 2, 1) + contraction(0, 1, 2, 2) +
                                 (unrolled ? folds(0) + folds(1) + folds(2) : 0));
  return plan;
}

// power: of the one factor there is; otherwise 0, and the last slot is the result of the others.
template <class T, class Store>
GauntProductPlan<T> gaunt_product_plan(Store& store, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid, PassFlops& flops) {
  GauntProductPlan<T> plan{};
  plan.mul = mul, plan.rings = grid.rings, plan.angles = grid.angles, plan.power = power;
  plan.factors = int(slots.size()) - 1, plan.parts = 1;
  GauntSlot<T>* next = plan.slots;
  const int n = power ? power : plan.factors;
  const long mirrored = grid.rings / 2, angle_fold = 2 * ((grid.angles - 1) / 2), points = long(grid.rings) * grid.angles;
  long inputs = 0, outputs = 0, result_in = 0, result_out = 0;  // to the grid and back, of all factors and of the result
  for (const ChannelSlot& channels : slots) {
    GauntSlot<T>& slot = *next++;
    const GauntSlotFlops each = build_gaunt_slot(store, slot, channels, grid);
    plan.parts = std::max(plan.parts, slot.parts);
    const long folds = mirrored * 2 * slot.parts * (2 * slot.degree + 1), rings = long(grid.rings) * slot.parts;
    const bool is_result = &channels == &slots.back();
    (is_result ? result_in : inputs) += each.synthesis + folds + rings * (each.to_angles + angle_fold);
    (is_result ? result_out : outputs) += each.analysis + folds + rings * (each.from_angles + angle_fold);
  }
  // Operations of a product at a point, of the part of e of one of dual numbers, and of all of that.
  const long multiply = plan.parts == 2 ? 6 : 1, tangent = 2 * multiply + plan.parts, both = multiply + tangent, scale = plan.parts;
  flops.forward = mul * (inputs + result_out + points * (n - 1) * multiply);
  if (power) {
    flops.backward = mul * (inputs + result_in + outputs + points * ((n - 1) * multiply + scale));
    // n v^(n-1) a, and n (n - 1) v^(n-2) a g
    flops.double_backward = mul * (2 * inputs + result_in + outputs + result_out + points * ((n - 2 + 1 + 1 + (n > 2)) * multiply + 2 * scale));
  } else {
    flops.backward = mul * (inputs + result_in + outputs + points * (3 * (n - 2) + n) * multiply);
    flops.double_backward = mul * (2 * inputs + result_in + outputs + result_out + points * ((2 * (n - 2)) * both + (n - 2 + 1) * tangent + n * multiply));
  }
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
    slot.folded = folds<Store>(components[s]);
    const std::vector<MapEntry> entries = matrix_entries(components[s], k, slot.folded);
    std::vector<MapEntry> reverse = transposed(entries);
    ReachedParts(products, s).keep(reverse, components[s]);
    if (s == 2) std::erase_if(reverse, [&](const MapEntry& e) { return direct_outputs.count(e.output) > 0; });
    const BlockMap to_matrix = make_block_map(slot.parts * size * size, entries);
    const BlockMap from_matrix = make_block_map(slot.components, reverse);
    slot.to_matrix = build_map<T>(store, to_matrix), slot.from_matrix = build_map<T>(store, from_matrix);
    const long additions = slot.folded ? slot.parts * fold_additions(k) : 0;
    to[s] = 2 * to_matrix.multiply_adds + additions, from[s] = 2 * from_matrix.multiply_adds + additions;
  }
  const long multiply = 2 * long(products.size()) * size * size * size;
  flops.forward = mul * (to[0] + to[1] + multiply + from[2] + direct_flops);
  flops.result = mul * (multiply + from[2] + direct_flops);
  flops.backward = mul * (to[0] + to[1] + to[2] + 2 * multiply + from[0] + from[1]);
  flops.double_backward = mul * (2 * (to[0] + to[1]) + to[2] + 4 * multiply + from[0] + from[1] + from[2] + 2 * direct_flops + long(direct_outputs.size()));
  return plan;
}

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
MatrixBlockPlan<T> matrix_block_plan(Store& store, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths,
                                     PassFlops& flops) {
  MatrixBlockPlan<T> plan{};
  plan.mul = mul;
  for (int s = 0; s < 3; ++s) slot_components<MatrixComponent>(plan.slots[s], slots[s], store);
  PassFlops each;
  std::vector<int> opposite[2];
  for (int s = 0; s < 2; ++s)
    for (const IrrepsBlock& b : slots[s].blocks) append_opposite(opposite[s], 2 * b.l + 1);
  std::vector<PlanProducts<T>> chunks;
  for (const MatrixBlockChunk& chunk : matrix_block_chunks(slots, paths)) {
    const FoldedProducts folded = fold_orders(chunk.products, chunk.entries, false, least_saved<Store>, [&](int i) { return opposite[0][size_t(i)]; },
                                              [&](int j) { return opposite[1][size_t(j)]; });
    const BlockMap forward = make_block_map(plan.slots[2].components, folded.entries, Missing::untouched);
    const BlockMap backward = make_block_map(int(chunk.products.size()), transposed(folded.entries));
    chunks.push_back(build_products<T>(store, folded, forward, backward, each));
    plan.max_products = std::max(plan.max_products, chunks.back().products);
  }
  flops.add(mul, each);
  plan.chunk_count = int(chunks.size());
  plan.chunks = store.items(std::move(chunks));
  return plan;
}

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
