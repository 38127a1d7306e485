// Paths between low degrees, where every channel of x meets the one channel of y with a weight of its own: cpu/channelwise.cpp.
#pragma once
#include "cpu/row_stream.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Some items, or edges of a node: rows of x, its direction and its gradient by component, all others where the caller has them.
template <class T>
struct ItemGroup {
  static constexpr int most = 4;
  int count;
  const T *x[most], *ax[most], *y[most], *ay[most], *w[most], *aw[most], *z[most];
  const T *x_next[most], *ax_next[most], *w_next[most], *aw_next[most];  // the caller's, of the item that takes this one's place in the next group
  long z_ahead = 0;                       // from z to that one's
  T* dx[most];
  Vector<T>* dy[most];  // a vector a component, whose lanes are to be added up
  RowStream<T> z_out[most], w_out[most];
  T* z_sum = nullptr;  // where z is summed over edges, by component; z_adds: to what is there
  bool z_adds = false;
  bool by_component;  // z
  bool wants_y, wants_weight, wants_z;
  T *z_block, *z_turned, *dw;
  const T* zeros;
};
template <class T>
struct ChannelwisePath {
  void (*run)(const ChannelwisePath&, ItemGroup<T>&);
  long x, y, z, w;  // where the path's blocks and weights begin in their rows
  int lanes;
  T coefficient;
  bool first;  // that reads its block of x, and writes its gradient
};
enum class PathPass { forward, sum, backward, double_backward };
template <class T>
using PathKernel = void (*)(const ChannelwisePath<T>&, ItemGroup<T>&);
// A path an instruction, of a plan that is `channelwise`.
template <class T>
void make_paths(const WeightedPlan<T>& plan, PathPass pass, ChannelwisePath<T>* paths);
template <class T>
EQUITENSOR_INLINE ChannelwisePath<T>* take_paths(const WeightedPlan<T>& plan, Scratch<T>& scratch) {
  return reinterpret_cast<ChannelwisePath<T>*>(scratch.take((plan.instruction_count * sizeof(ChannelwisePath<T>) + sizeof(Vector<T>) - 1) / sizeof(Vector<T>)));
}

// Whether a call that is no convolution is one of these, which then take it.
template <class T>
bool is_channelwise(const WeightedPlan<T>& plan, const Operands<T>& a);
template <class T>
void channelwise(const WeightedPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory);
template <class T>
long channelwise_scratch(const WeightedPlan<T>& plan);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
