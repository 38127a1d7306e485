// Applies a map of small dense blocks (core/block_map.hpp) to a tile: the inner loop of every operation.
#pragma once
#include "cpu/plan.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// `outputs` sums in registers; a round loads one input and `outputs` broadcast coefficients.
template <int outputs, class T>
inline void apply_run(const PlanRun<T>& run, const Vector<T>* in, Vector<T>* out) {
  const T* c = run.coefficients;
  const int *source = run.sources, *output = run.outputs;
  for (int b = 0; b < run.blocks; ++b, output += outputs) {
    Vector<T> sum[outputs]{};
    for (int s = 0; s < run.source_count; ++s, c += outputs) {
      const Vector<T> value = in[*source++];
#pragma GCC unroll 12
      for (int o = 0; o < outputs; ++o) sum[o] += c[o] * value;
    }
#pragma GCC unroll 12
    for (int o = 0; o < outputs; ++o) out[output[o]] = sum[o];
  }
}

template <class T>
inline void apply(const PlanMap<T>& map, const Vector<T>* in, Vector<T>* out) {
  for (int r = 0; r < map.count; ++r) {
    const PlanRun<T>& run = map.runs[r];
    switch (run.output_count) {
      case 1: apply_run<1>(run, in, out); break;
      case 2: apply_run<2>(run, in, out); break;
      case 3: apply_run<3>(run, in, out); break;
      case 4: apply_run<4>(run, in, out); break;
      case 5: apply_run<5>(run, in, out); break;
      case 6: apply_run<6>(run, in, out); break;
      case 7: apply_run<7>(run, in, out); break;
      case 8: apply_run<8>(run, in, out); break;
      case 9: apply_run<9>(run, in, out); break;
      case 10: apply_run<10>(run, in, out); break;
      case 11: apply_run<11>(run, in, out); break;
      case 12: apply_run<12>(run, in, out); break;
    }
  }
}

// A channel's components in one contiguous run: the tile itself where they already are.
template <class T, class Slot>
inline const Vector<T>* gather_channel(const Slot& slot, const Vector<T>* tile, int u, Vector<T>* buffer) {
  if (slot.direct) return tile;
  for (int c = 0; c < slot.components; ++c) buffer[c] = tile[slot.channel[c].first + u * slot.channel[c].step];
  return buffer;
}
template <class T, class Slot>
inline void scatter_channel(const Slot& slot, Vector<T>* tile, int u, const Vector<T>* buffer) {
  if (slot.direct) return;
  for (int c = 0; c < slot.components; ++c) tile[slot.channel[c].first + u * slot.channel[c].step] = buffer[c];
}

// Hands out pieces of a kernel's scratch memory; with a null base it only measures.
template <class T>
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<Vector<T>*>(base)) {}
  Vector<T>* take(long vectors) {
    Vector<T>* piece = base_ + used_;
    used_ += vectors;
    return piece;
  }
  long bytes() const { return used_ * long(sizeof(Vector<T>)); }

 private:
  Vector<T>* base_;
  long used_ = 0;
};

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
