// The plan of a matrix product.
#pragma once
#include "build_plan.hpp"
#include "matrix.hpp"

namespace equitensor {

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

}  // namespace equitensor
