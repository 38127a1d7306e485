// Signals that are multiplied channel by channel, as the Gaunt and the matrix product take them.
#pragma once
#include "core/irreps.hpp"
#include <vector>

namespace equitensor {

// A channel's components of every slot; see core/gaunt.hpp and core/matrix.hpp.
struct ChannelSlot {
  int dim;
  std::vector<IrrepsBlock> blocks;
  std::vector<int> parts;  // of each block
};

struct Grid {
  int rings, angles;
  bool pointwise;  // values at the angles; otherwise products of the rings' trigonometric coefficients
};

}  // namespace equitensor
