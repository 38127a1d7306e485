// The plan of a weighted product on the CPU; on CUDA its kernels have plans of their own (cuda/weighted.cu, cuda/weighted_channelwise.cu).
#pragma once
#include "build_plan.hpp"
#include "weighted.hpp"

namespace equitensor {

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

    to.coefficient = T(from.coefficient);
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
  int weights = 0, block = 0;
  plan.weights_in_order = true;
  plan.channelwise = !instructions.empty() && int(instructions.size()) == plan.block_count[2];
  for (const PlanInstruction<T>& in : instructions) {
    constexpr int most = 2 * channelwise_degree + 1;
    const bool low = in.inputs <= most && in.matrix_components <= most && in.outputs <= most;
    const bool plain = in.lane_operand == 0 && !in.same_channel && !in.mixed && in.weight_columns == 0 && in.segment_count == 1 && all_blocks[1][size_t(in.matrix_block)].mul == 1;
    plan.channelwise &= low && plain && in.out_block == block++;
    plan.weights_in_order &= in.weight == weights;
    weights += in.weights;
  }
  plan.weights_in_order &= weights == plan.weights;
  plan.channelwise &= plan.weights_in_order;
  for (int s = 0; s < 2; ++s)
    if (plan.makes_matrices[s]) flops.backward += form.dims[s], flops.double_backward += form.dims[s];
  for (int s = 0; s < 3; ++s) plan.blocks[s] = store.items(std::move(all_blocks[s]));
  plan.instruction_count = int(instructions.size());
  plan.instructions = store.items(std::move(instructions));
  return plan;
}

}  // namespace equitensor
