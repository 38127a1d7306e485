// Builds plans (plan.hpp) from the forms of the operations. Every builder takes a store, which owns what a plan points to: on the CPU
// the process's memory, for CUDA a device's. It has
//   const int* ints(std::vector<int>)   const T* values<T>(std::vector<double>)   const Item* items(std::vector<Item>)
//   static constexpr int row_bytes      rows of coefficients are padded to a multiple of it
//   static constexpr bool on_device
#pragma once
#include "channels.hpp"
#include "clebsch_gordan.hpp"
#include "gaunt.hpp"
#include "matrix.hpp"
#include "matrix_block.hpp"
#include "plan.hpp"
#include <algorithm>
#include <set>

namespace equitensor {

// Operations an item; a multiply-add counts two.
struct PassFlops {
  long forward = 0, backward = 0, double_backward = 0;

  void add(long times, const PassFlops& each) {
    forward += times * each.forward, backward += times * each.backward, double_backward += times * each.double_backward;
  }
};

inline Divisor divisor(int d) { return {~0u / unsigned(d)}; }

template <class T, class Store>
PlanMap<T> build_map(Store& store, const BlockMap& map) {
  std::map<std::pair<size_t, size_t>, std::vector<const MapBlock*>> shapes;
  for (const MapBlock& b : map.blocks) shapes[{b.outputs.size(), b.sources.size()}].push_back(&b);
  constexpr size_t multiple = std::max<size_t>(1, Store::row_bytes / sizeof(T));
  PlanMap<T> result{};
  std::vector<PlanRun<T>> runs;
  std::vector<PlanBlock> list;
  std::vector<double> all_coefficients;
  std::vector<int> indices;
  for (const auto& [shape, blocks] : shapes) {
    const size_t pitch = (shape.first + multiple - 1) / multiple * multiple;
    std::vector<double> coefficients;
    std::vector<int> sources, outputs;
    for (const MapBlock* b : blocks) {
      const int at = int(indices.size());
      list.push_back({int(all_coefficients.size() + coefficients.size()), at, at + int(shape.second), short(shape.second), short(shape.first)});
      indices.insert(indices.end(), b->sources.begin(), b->sources.end());
      indices.insert(indices.end(), b->outputs.begin(), b->outputs.end());
      for (size_t s = 0; s < shape.second; ++s) {
        const auto row = b->coefficients.begin() + long(s * shape.first);
        coefficients.insert(coefficients.end(), row, row + long(shape.first));
        coefficients.resize(coefficients.size() + pitch - shape.first);
      }
      sources.insert(sources.end(), b->sources.begin(), b->sources.end());
      outputs.insert(outputs.end(), b->outputs.begin(), b->outputs.end());
    }
    if constexpr (Store::on_device)
      all_coefficients.insert(all_coefficients.end(), coefficients.begin(), coefficients.end());
    else
      runs.push_back({int(blocks.size()), int(shape.second), int(shape.first), store.template values<T>(coefficients),
                      store.ints(sources), store.ints(outputs)});
  }
  if constexpr (Store::on_device) {
    result.block_count = int(list.size());
    result.blocks = store.items(std::move(list));
    result.coefficients = store.template values<T>(all_coefficients);
    result.indices = store.ints(indices);
  } else {
    result.count = int(runs.size());
    result.runs = store.items(std::move(runs));
  }
  return result;
}

// products: components of x and y, sorted. flops: of one pair of channels.
template <class T, class Store>
PlanProducts<T> build_products(Store& store, const std::vector<std::pair<int, int>>& products, const BlockMap& forward, const BlockMap& backward,
                               PassFlops& flops) {
  PlanProducts<T> plan{};
  std::vector<int> x, y, rows, columns, column_products;
  std::map<int, std::vector<int>> by_column;
  for (const auto& [i, j] : products) {
    if (x.empty() || x.back() != i) rows.push_back(int(x.size()));
    by_column[j].push_back(int(x.size()));
    x.push_back(i);
    y.push_back(j);
  }
  plan.rows = int(rows.size()), plan.products = int(x.size()), plan.columns = int(by_column.size());
  rows.push_back(plan.products);
  for (const auto& [j, column] : by_column) {
    columns.push_back(int(column_products.size()));
    column_products.insert(column_products.end(), column.begin(), column.end());
  }
  columns.push_back(plan.products);
  flops.forward += plan.products + 2 * forward.multiply_adds;
  flops.backward += 4 * plan.products + 2 * backward.multiply_adds;
  flops.double_backward += 7 * plan.products + 2 * (forward.multiply_adds + backward.multiply_adds);
  plan.forward = build_map<T>(store, forward), plan.backward = build_map<T>(store, backward);
  plan.x_component = store.ints(x), plan.y_component = store.ints(y), plan.row_begin = store.ints(rows);
  plan.column_begin = store.ints(columns), plan.column_product = store.ints(column_products);
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
    std::vector<std::pair<int, int>> products;
    for (const auto& [i, j] : form.products) products.push_back({i * b1.component, j * b2.component});
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
    BlockMap forward = make_block_map(pair.compact_outputs, form.entries);
    BlockMap backward = make_block_map(int(products.size()), transposed(form.entries));
    if (pair.direct) {
      for (MapBlock& b : forward.blocks)
        for (int& o : b.outputs) o = row_component[o];
      for (MapBlock& b : backward.blocks)
        for (int& s : b.sources) s = row_component[s];
    }
    PassFlops each;
    static_cast<PlanProducts<T>&>(pair) = build_products<T>(store, products, forward, backward, each);
    flops.add(channels, each);
    pair.places = store.items(std::move(places));
    pair.out_component = store.ints(row_component);
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
    // On the CPU ring coefficients that no component reaches are cleared once, and not for every tile.
    const BlockMap in = make_block_map(form.rings_size, form.synthesis, Store::on_device ? Missing::zero : Missing::untouched);
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
  // `terms` products of the same two slots; the first product of a part is not added to anything.
  const auto contraction = [&](int a, int b, int out, int terms = 1) {
    const long added = terms * n - slot[out].parts;
    const long ring = grid.pointwise
                          ? (terms * n + added) * grid.angles + slot[out].parts * (angle_fold + from_angles[out])
                          : terms * n * series_product_operations(slot[a].degree, slot[b].degree, slot[out].degree) + added * orders(out);
    // Unrolled ones fold each term, and add it folded.
    return grid.rings * ring + (unrolled ? terms : 1) * folds(out) + analysis[out];
  };
  flops.forward = mul * (input(0) + input(1) + contraction(0, 1, 2));
  flops.backward = mul * (input(0) + input(1) + input(2) + contraction(1, 2, 0) + contraction(0, 2, 1) +
                         (unrolled ? folds(2) : 0));
  flops.double_backward = mul * (2 * (input(0) + input(1)) + input(2) + contraction(1, 2, 0) + contraction(0, 2, 1) + contraction(0, 1, 2, 2) +
                                 (unrolled ? folds(0) + folds(1) + folds(2) : 0));
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
  std::vector<PlanProducts<T>> chunks;
  for (const MatrixBlockChunk& chunk : matrix_block_chunks(slots, paths)) {
    const BlockMap forward = make_block_map(plan.slots[2].components, chunk.entries, Missing::untouched);
    const BlockMap backward = make_block_map(int(chunk.products.size()), transposed(chunk.entries));
    chunks.push_back(build_products<T>(store, chunk.products, forward, backward, each));
    plan.max_products = std::max(plan.max_products, chunks.back().products);
  }
  flops.add(mul, each);
  plan.chunk_count = int(chunks.size());
  plan.chunks = store.items(std::move(chunks));
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
