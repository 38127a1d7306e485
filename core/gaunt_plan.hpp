// The plans of a Gaunt product on the grid, and of one of several factors.
#pragma once
#include "build_plan.hpp"
#include "gaunt.hpp"

namespace equitensor {

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

}  // namespace equitensor
