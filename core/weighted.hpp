// The form of the weighted tensor product with e3nn's connection modes:
//   out[.., k] += coefficient * weight * sum_ij wigner3j[i, j, k] x[u, i] y[v, j]
// where the mode says which channels u, v of the inputs and which channels of the output are connected, and by which weight.
#pragma once
#include "block_map.hpp"
#include "irreps.hpp"
#include "plan.hpp"
#include "wigner3j.hpp"

namespace equitensor {

// e3nn's, in this order. Weights of an instruction, row-major: uvw (mul1, mul2, mul3); uvu, uvv, uvuv (mul1, mul2); uuw (mul1, mul3); uuu (mul1);
// uvu<v (pairs); u<vw (pairs, mul3), with the pairs u < v in the order of torch.triu_indices(mul, mul, 1).
enum class Mode : int { uvw, uvu, uvv, uuw, uuu, uvuv, upper, upper_w };

struct WeightedInstruction {
  int in1, in2, out;  // blocks
  Mode mode;
  int weight;  // the first one, -1 without weights
  double coefficient;
};

struct WeightedForm {
  bool is_double;
  int dims[3], weights;
  std::vector<IrrepsBlock> blocks[3];  // of x, y, z
  std::vector<WeightedInstruction> instructions;
};

// Which channels an instruction connects.
struct WeightedConnection {
  int lane_operand;  // 0: x, 1: y
  bool same_channel = false;
  std::vector<PlanChannels> segments;
  int weights;
  int weight_columns = 0;
  int mixed = 0, channels = 0;
  std::vector<PlanMix> mixes;
};

inline WeightedConnection connection_of(Mode mode, int mul1, int mul2, int mul3) {
  WeightedConnection c{};
  const auto every_v = [&](bool adds) {  // lanes are x's channels
    c.lane_operand = 0;
    for (int v = 0; v < mul2; ++v) c.segments.push_back({v, 0, mul1, adds ? 0 : v * mul1, v * mul1, adds && v > 0});
  };
  const auto every_u = [&](bool adds) {
    c.lane_operand = 1;
    for (int u = 0; u < mul1; ++u) c.segments.push_back({u, 0, mul2, adds ? 0 : u * mul2, u * mul2, adds && u > 0});
  };
  const auto upper = [&] {
    c.lane_operand = 1;
    for (int u = 0, pair = 0; u + 1 < mul1; pair += mul1 - 1 - u, ++u) c.segments.push_back({u, u + 1, mul1 - 1 - u, pair, pair, false});
  };
  const auto mix = [&](int channels) {
    c.mixed = mul3, c.channels = channels;
    c.mixes = {{0, channels, 0, mul3}};
  };
  switch (mode) {
    case Mode::uvu:
      every_v(true);
      c.weights = mul1 * mul2;
      if (mul2 > 1) c.weight_columns = mul2;
      break;
    case Mode::uvv:
      every_u(true);
      c.weights = mul1 * mul2;
      break;
    case Mode::uvuv:
      if (mul2 == 1)
        every_v(false);
      else
        every_u(false);
      c.weights = mul1 * mul2;
      break;
    case Mode::uuu:
    case Mode::uuw:
      c.same_channel = true;
      c.segments = {{0, 0, mul1, 0, 0, false}};
      c.weights = mul1;
      if (mode == Mode::uuw) mix(mul1), c.weights = mul1 * mul3;
      break;
    case Mode::upper:
    case Mode::upper_w:
      upper();
      c.weights = mul1 * (mul1 - 1) / 2;
      if (mode == Mode::upper_w) mix(c.weights), c.weights *= mul3;
      break;
    case Mode::uvw:
      c.weights = mul1 * mul2 * mul3;
      // The longer of both as lanes. Those of x come as (v, u), so that every v is a matrix of its own.
      if (mul2 > mul1 && mul2 > 1) {
        every_u(false);
        mix(mul1 * mul2);
      } else {
        every_v(false);
        c.mixed = mul3, c.channels = mul1 * mul2;
        for (int v = 0; v < mul2; ++v) c.mixes.push_back({v * mul1, mul1, v * mul3, mul2 * mul3});
      }
      break;
  }
  return c;
}

}  // namespace equitensor
