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

// Whether kernels of low degrees have lengths, and most of them coefficients, as constants: everywhere, they would take longer to compile than all others together.
template <class T>
inline constexpr bool has_constants = sizeof(T) == 4 && sizeof(Vector<T>) >= 32;

// Of `count` sums those from `first` on, their lanes added up.
template <class T>
inline Vector<T> add_up(const Vector<T>* sums, int first, int count) {
  Vector<T> lanes[width<T>];
  for (int i = 0; i < width<T>; ++i) lanes[i] = sums[minimum(first + i, count - 1)];
  return sum_lanes<T>(lanes);
}

// An entry of a matrix that all channels share, or that is a vector of theirs.
template <class T>
EQUITENSOR_INLINE Vector<T> entry(T e) { return splat(e); }
template <class T>
EQUITENSOR_INLINE Vector<T> entry(Vector<T> e) { return e; }
// The same for `uses` multiply-adds: a broadcast of its own, where it does not go with its only one.
template <int uses, class T, class M>
EQUITENSOR_INLINE Vector<T> shared_entry(M e) {
  return uses > 1 ? in_register(entry<T>(e)) : entry<T>(e);
}

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

// in [channel][component], a block of the caller's, to out [component][channel], or the other way round. The number of components is odd, so that of a component no
// two channels lie in one lane: lane l of vector v holds component (w v + l) mod components, with w lanes. In every lane the vectors are rotated until each
// holds one component, by a blend for every bit of the distance, and then a permutation puts the channels in order: 28 operations for 7 components, where
// picking from two vectors at a time takes 42, and for 15 components 75 where a square transpose takes 128. They run at twice the rate of those.
// The channel whose component is in a lane.
constexpr int channel_in_lane(int components, int w, int lane, int component) {
  int u = 0;
  while ((u * components + component) % w != lane) ++u;
  return u;
}
template <int components, bool to_components, int bit, class T, size_t... lane>
EQUITENSOR_INLINE void rotate_vectors(Vector<T>* v, std::index_sequence<lane...>) {
  Vector<T> from[components];
#pragma GCC unroll 15
  for (int i = 0; i < components; ++i) from[i] = v[i];
#pragma GCC unroll 15
  for (int i = 0; i < components; ++i)
    v[i] = blend<T, ((int(lane) % components & bit) != 0)...>(from[i], from[(to_components ? i + components - bit : i + bit) % components]);
}
template <int components, bool to_components, class T, size_t... lane>
EQUITENSOR_INLINE void turn_vectors(const Vector<T>* from, Vector<T>* to, std::index_sequence<lane...> lanes) {
  constexpr int w = width<T>;
  const auto rotate = [&](Vector<T>* v) EQUITENSOR_LAMBDA {
    rotate_vectors<components, to_components, 1, T>(v, lanes);
    if constexpr (minimum(w, components) > 2) rotate_vectors<components, to_components, 2, T>(v, lanes);
    if constexpr (minimum(w, components) > 4) rotate_vectors<components, to_components, 4, T>(v, lanes);
    if constexpr (minimum(w, components) > 8) rotate_vectors<components, to_components, 8, T>(v, lanes);
  };
  Vector<T> v[components];
  if constexpr (w == 1) {
    for (int c = 0; c < components; ++c) to[c] = from[c];
  } else if constexpr (to_components) {
#pragma GCC unroll 15
    for (int i = 0; i < components; ++i) v[i * w % components] = from[i];
    rotate(v);
    each(Int<0>{}, Int<components - 1>{}, [&](auto c) EQUITENSOR_LAMBDA { to[c] = permute_lanes<T, (int(lane) * components + decltype(c){}) % w...>(v[c]); });
  } else {
    each(Int<0>{}, Int<components - 1>{}, [&](auto c) EQUITENSOR_LAMBDA { v[c] = permute_lanes<T, channel_in_lane(components, w, int(lane), decltype(c){})...>(from[c]); });
    rotate(v);
#pragma GCC unroll 15
    for (int i = 0; i < components; ++i) to[i] = v[i * w % components];
  }
}
template <int components, bool to_components, class T>
EQUITENSOR_INLINE void turn_channels(const T* in, long in_pitch, T* out, long out_pitch) {
  Vector<T> from[components], to[components];
#pragma GCC unroll 15
  for (int v = 0; v < components; ++v) from[v] = load(in + v * in_pitch);
  turn_vectors<components, to_components, T>(from, to, std::make_index_sequence<width<T>>{});
#pragma GCC unroll 15
  for (int v = 0; v < components; ++v) store(out + v * out_pitch, to[v]);
}
template <int components, bool to_components, class T>
inline void turn_block(const T* in, int mul, T* out) {
  const auto turn = [&](int u) EQUITENSOR_LAMBDA {
    if constexpr (to_components)
      turn_channels<components, true>(in + u * components, width<T>, out + u, mul);
    else
      turn_channels<components, false>(in + u, mul, out + u * components, width<T>);
  };
  int u = 0;
  for (; u + width<T> <= mul; u += width<T>) turn(u);
  if (u == mul) return;
  if (mul > width<T>) return turn(mul - width<T>);  // some channels again
  if constexpr (to_components)
    transpose_matrix(in, components, mul, components, out, mul);
  else
    transpose_matrix(in, mul, components, mul, out, components);
}
template <bool to_components, class T>
inline void turn_block(const T* in, const PlanBlock& block, T* out) {
  switch (block.components) {
    case 3: return turn_block<3, to_components>(in, block.mul, out);
    case 5: return turn_block<5, to_components>(in, block.mul, out);
    case 7: return turn_block<7, to_components>(in, block.mul, out);
    case 9: return turn_block<9, to_components>(in, block.mul, out);
    case 11: return turn_block<11, to_components>(in, block.mul, out);
    case 13: return turn_block<13, to_components>(in, block.mul, out);
    case 15: return turn_block<15, to_components>(in, block.mul, out);
  }
  if constexpr (to_components)
    transpose_matrix(in, block.components, block.mul, block.components, out, block.mul);
  else
    transpose_matrix(in, block.mul, block.components, block.mul, out, block.components);
}
template <class T>
inline void copy_row(const T* from, T* to, int n) {
  for_each_vector<T>(n, [&](int c, auto part) EQUITENSOR_LAMBDA { part.store(to + c, part.load(from + c)); });
}
// All blocks of a row.
template <bool to_components, class T>
inline void turn_row(const PlanBlock* blocks, int count, const T* from, T* to) {
  for (int b = 0; b < count; ++b) {
    const PlanBlock& block = blocks[b];
    if (block.by_component)
      copy_row(from + block.offset, to + block.offset, block.mul * block.components);
    else
      turn_block<to_components>(from + block.offset, block, to + block.offset);
  }
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
