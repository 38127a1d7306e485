// Channels side by side in vectors, and how they get there from a layout that has the components of a channel side by side.
#pragma once
#include "cpu/block_map.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
struct Whole {
  EQUITENSOR_INLINE Vector<T> load(const T* p) const { return equitensor::load(p); }
  EQUITENSOR_INLINE void store(T* p, Vector<T> v) const { equitensor::store(p, v); }
};
template <class T>
struct Part {
  int n;
  EQUITENSOR_INLINE Vector<T> load(const T* p) const { return load_partial(p, n); }
  EQUITENSOR_INLINE void store(T* p, Vector<T> v) const { store_partial(p, v, n); }
};
// The last `phase` channels of `lanes`, and then the first ones.
template <class T>
struct Wrapped {
  int phase, lanes;
  EQUITENSOR_INLINE Vector<T> load(const T* p) const { return load_both(p + lanes - phase, p - phase, phase); }
};
// Calls body(channel, Whole or Part) for every vector of `lanes` channels.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_vector(int lanes, Body&& body) {
  int c = 0;
  for (; c + width<T> <= lanes; c += width<T>) body(c, Whole<T>{});
  if (c < lanes) body(c, Part<T>{lanes - c});
}

// An entry of a matrix that all channels share, or that is a vector of theirs.
template <class T>
EQUITENSOR_INLINE Vector<T> entry(T e) { return splat(e); }
template <class T>
EQUITENSOR_INLINE Vector<T> entry(Vector<T> e) { return e; }

// out[columns][rows] = in[rows][columns]
template <class T>
inline void transpose_matrix(const T* in, long in_pitch, int rows, int columns, T* out, long out_pitch) {
  constexpr int w = width<T>;
  for (int r = 0; r < rows; r += w)
    for (int c = 0; c < columns; c += w) {
      const int height = minimum(w, rows - r), breadth = minimum(w, columns - c);
      Vector<T> block[w];
      for (int i = 0; i < w; ++i) {
        const T* row = in + (r + minimum(i, height - 1)) * in_pitch + c;
        block[i] = breadth == w ? load(row) : load_partial(row, breadth);
      }
      transpose<T>(block);
      for (int i = 0; i < breadth; ++i) {
        T* to = out + (c + i) * out_pitch + r;
        if (height == w)
          store(to, block[i]);
        else
          store_partial(to, block[i], height);
      }
    }
}

// in [channel][component], a block of the caller's, to out [component][channel], or the other way round. Vectors of 3, 5 and 7 components are put
// together by permutations of two registers, longer ones in square blocks.
template <int components, bool to_components, class T, size_t... lane>
EQUITENSOR_INLINE void turn_channels(const T* in, long in_pitch, T* out, long out_pitch, std::index_sequence<lane...>) {
  constexpr int w = width<T>;
  Vector<T> from[components];
#pragma GCC unroll 8
  for (int v = 0; v < components; ++v) from[v] = load(in + v * in_pitch);
  each(Int<0>{}, Int<components - 1>{}, [&](auto o) EQUITENSOR_LAMBDA {
    Vector<T> turned = from[0];
    each(Int<0>{}, Int<components - 1>{}, [&](auto v) EQUITENSOR_LAMBDA {
      constexpr int to = decltype(o){}, source = decltype(v){};
      if constexpr (to_components)  // channel `lane`, component `to`
        turned = permute<T, ((int(lane) * components + to) / w == source ? w + (int(lane) * components + to) % w : int(lane))...>(turned, from[source]);
      else  // element `lane` of vector `to`
        turned = permute<T, ((to * w + int(lane)) % components == source ? w + (to * w + int(lane)) / components : int(lane))...>(turned, from[source]);
    });
    store(out + o * out_pitch, turned);
  });
}
template <int components, bool to_components, class T>
inline void turn_block(const T* in, int mul, T* out) {
  int u = 0;
#if !defined(EQUITENSOR_COUNT)
  constexpr auto lanes = std::make_index_sequence<width<T>>{};
  for (; u + width<T> <= mul; u += width<T>) {
    if constexpr (to_components)
      turn_channels<components, true>(in + u * components, width<T>, out + u, mul, lanes);
    else
      turn_channels<components, false>(in + u, mul, out + u * components, width<T>, lanes);
  }
#endif
  if (u == mul) return;
  if constexpr (to_components)
    transpose_matrix(in + u * components, components, mul - u, components, out + u, mul);
  else
    transpose_matrix(in + u, mul, components, mul - u, out + u * components, components);
}
template <bool to_components, class T>
inline void turn_block(const T* in, const PlanBlock& block, T* out) {
  switch (block.components) {
    case 3: return turn_block<3, to_components>(in, block.mul, out);
    case 5: return turn_block<5, to_components>(in, block.mul, out);
    case 7: return turn_block<7, to_components>(in, block.mul, out);
  }
  if constexpr (to_components)
    transpose_matrix(in, block.components, block.mul, block.components, out, block.mul);
  else
    transpose_matrix(in, block.mul, block.components, block.mul, out, block.components);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
