// Applies a map of small dense blocks (core/block_map.hpp) to a tile: the inner loop of every operation.
#pragma once
#include "cpu/plan.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Two vectors at once, of channels side by side or of two channels: they share the loads of indices and coefficients, and the ends of short loops.
template <class T>
struct VectorPair {
  Vector<T> half[2];
  EQUITENSOR_INLINE VectorPair& operator+=(const VectorPair& b) { return *this = *this + b; }
  EQUITENSOR_INLINE friend VectorPair operator+(const VectorPair& a, const VectorPair& b) { return {a.half[0] + b.half[0], a.half[1] + b.half[1]}; }
  EQUITENSOR_INLINE friend VectorPair operator-(const VectorPair& a, const VectorPair& b) { return {a.half[0] - b.half[0], a.half[1] - b.half[1]}; }
  EQUITENSOR_INLINE friend VectorPair operator*(const VectorPair& a, const VectorPair& b) { return {a.half[0] * b.half[0], a.half[1] * b.half[1]}; }
  EQUITENSOR_INLINE friend VectorPair operator*(T a, const VectorPair& b) { return {a * b.half[0], a * b.half[1]}; }
};

// Tiles that a map is applied to at once. With AVX-512 the sums of two fit into its 32 registers and share the loads of coefficients
// and indices: 0.78 instead of 0.94 cycles a multiply-add for a (4, 4) pair.
inline constexpr int tiles_at_once = sizeof(Vector<float>) == 64 ? 2 : 1;

// `outputs` sums a tile in registers; a round loads one input a tile and `outputs` broadcast coefficients. The second tile's inputs
// and outputs lie in_tile and out_tile vectors behind the first one's. add: to the outputs that are there.
// V: a vector, or, for one tile, some of them.
template <int outputs, int tiles, bool add, class T, class V>
inline void apply_run(const PlanRun<T>& run, const V* in, V* out, long in_tile, long out_tile) {
  const T* c = run.coefficients;
  const int *source = run.sources, *output = run.outputs;
  for (int b = 0; b < run.blocks; ++b, output += outputs) {
    V sum[tiles][outputs]{};
    if constexpr (add) {
#pragma GCC unroll 12
      for (int o = 0; o < outputs; ++o)
#pragma GCC unroll 2
        for (int t = 0; t < tiles; ++t) sum[t][o] = out[output[o] + t * out_tile];
    }
    for (int s = 0; s < run.source_count; ++s, c += outputs) {
      const V* value = in + *source++;
      if constexpr (tiles == 1) {
        const V first = value[0];
#pragma GCC unroll 12
        for (int o = 0; o < outputs; ++o) sum[0][o] += c[o] * first;
      } else {
        const V first = value[0], second = value[in_tile];
#pragma GCC unroll 12
        for (int o = 0; o < outputs; ++o) {
          const Vector<T> coefficient = in_register(splat(c[o]));
          sum[0][o] += coefficient * first;
          sum[1][o] += coefficient * second;
        }
      }
    }
#pragma GCC unroll 12
    for (int o = 0; o < outputs; ++o)
#pragma GCC unroll 2
      for (int t = 0; t < tiles; ++t) out[output[o] + t * out_tile] = sum[t][o];
  }
}

template <int tiles = 1, bool add = false, class T, class V>
inline void apply(const PlanMap<T>& map, const V* in, V* out, long in_tile = 0, long out_tile = 0) {
  for (int r = 0; r < map.count; ++r) {
    const PlanRun<T>& run = map.runs[r];
    switch (run.output_count) {
      case 1: apply_run<1, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 2: apply_run<2, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 3: apply_run<3, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 4: apply_run<4, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 5: apply_run<5, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 6: apply_run<6, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 7: apply_run<7, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 8: apply_run<8, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 9: apply_run<9, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 10: apply_run<10, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 11: apply_run<11, tiles, add>(run, in, out, in_tile, out_tile); break;
      case 12: apply_run<12, tiles, add>(run, in, out, in_tile, out_tile); break;
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
