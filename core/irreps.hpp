// Where the components of irreps lie in a row.
#pragma once
namespace equitensor {

// `mul` channels of degree l: component m (0 .. 2l) of channel u lies at offset + u * channel + m * component. In mul_ir (mul, 2l + 1)
// channel is 2l + 1 and component 1, in ir_mul (2l + 1, mul) channel is 1 and component the block's mul.
struct IrrepsBlock {
  int offset, mul, l;
  int channel, component;

  int at(int u, int m) const { return offset + u * channel + m * component; }
};

// Which channels u and v of two blocks are multiplied. e3nn's uvuv: all of them; uuu: u with u; uvu<v: u with every later v.
enum class Connection { all, same, upper };

// Of a product of signals channel by channel: these parts of the inputs' components, into that part of the output's.
struct PlanProduct {
  int part1, part2, part_out;
};

}  // namespace equitensor
