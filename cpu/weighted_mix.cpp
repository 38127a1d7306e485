// Products of an item's channels with its own weights, which are most of what such an item reads: W is gone through once, row by row, its lines and those of the next
// item asked for on the way, and never transposed.
#include "cpu/kernels.hpp"
#include "cpu/weighted_products.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Calls body(column, vectors, part) for groups of up to 4 vectors of the columns, the last of which is a part of one where there is one.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_group(int columns, Body&& body) {
  constexpr int w = width<T>;
  int c = 0;
  for (; c + 4 * w <= columns; c += 4 * w) body(c, Int<4>{}, Whole<T>{});
  const int left = columns - c;
  const auto last = [&](auto part) EQUITENSOR_LAMBDA {
    switch ((left + w - 1) / w) {
      case 1: return body(c, Int<1>{}, part);
      case 2: return body(c, Int<2>{}, part);
      case 3: return body(c, Int<3>{}, part);
      case 4: return body(c, Int<4>{}, part);
    }
  };
  if (left % w == 0)
    last(Whole<T>{});
  else
    last(Part<T>{left % w});
}
// All vectors of a group are whole but the last.
template <int vectors, class T, class Last>
EQUITENSOR_INLINE void load_group(const T* from, Last last, Vector<T> (&to)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v + 1 < vectors; ++v) to[v] = load(from + v * width<T>);
  to[vectors - 1] = last.load(from + (vectors - 1) * width<T>);
}
template <int vectors, class T, class Last>
EQUITENSOR_INLINE void store_group(T* to, Last last, const Vector<T> (&from)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v + 1 < vectors; ++v) store(to + v * width<T>, from[v]);
  last.store(to + (vectors - 1) * width<T>, from[vectors - 1]);
}
template <int vectors, class T>
EQUITENSOR_INLINE void prefetch_group(const T* next) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) __builtin_prefetch(next + v * width<T>, 0, 2);
}

template <int n, int vectors, bool first, class T, class Last>
EQUITENSOR_NOINLINE void mix_group(const T* t, long t_pitch, const MixWeights<T>& weights, int c, T* out, long out_pitch, bool adds, Last last) {
  Vector<T> sum[n][vectors]{};
#pragma GCC unroll 3
  for (int k = 0; adds && k < n; ++k) load_group(out + k * out_pitch + c, last, sum[k]);
  const T* row = weights.at + c;
  for (int r = 0; r < weights.rows; ++r, row += weights.pitch) {
    if (first) prefetch_group<vectors>(row + weights.ahead);
    Vector<T> value[vectors];
    load_group(row, last, value);
#pragma GCC unroll 3
    for (int k = 0; k < n; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[k][v] += t[k * t_pitch + r] * value[v];
  }
#pragma GCC unroll 3
  for (int k = 0; k < n; ++k) store_group(out + k * out_pitch + c, last, sum[k]);
}
template <class T>
void mix_weights(const T* t, long t_pitch, int components, const MixWeights<T>& weights, T* out, long out_pitch, bool adds) {
  for_each_group<T>(weights.columns, [&](int c, auto vectors, auto last) EQUITENSOR_LAMBDA {
    const auto mix = [&](int k, auto n, auto first) EQUITENSOR_LAMBDA {
      mix_group<n, vectors, first>(t + k * t_pitch, t_pitch, weights, c, out + k * out_pitch, out_pitch, adds, last);
    };
    switch (components) {
      case 1: return mix(0, Int<1>{}, Int<1>{});
      case 3: return mix(0, Int<3>{}, Int<1>{});
    }
    mix(0, Int<3>{}, Int<1>{});
    int k = 3;
    for (; k + 3 <= components; k += 3) mix(k, Int<3>{}, Int<0>{});
    for (; k < components; ++k) mix(k, Int<1>{}, Int<0>{});
  });
}

// rows[r] (+)= lanes of z W[r] of some vectors
template <int vectors, class T, class Last>
EQUITENSOR_INLINE void multiply_group(const T* z, const T* weights, long pitch, long ahead, int count, Vector<T>* rows, bool adds, Last last) {
  Vector<T> right[vectors];
  load_group(z, last, right);
  for (int r = 0; r < count; ++r, weights += pitch) {
    prefetch_group<vectors>(weights + ahead);
    Vector<T> left[vectors], sum = adds ? rows[r] : Vector<T>{};
    load_group(weights, last, left);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum += left[v] * right[v];
    rows[r] = sum;
  }
}
template <class T>
void unmix_weights(const T* z, long z_pitch, int components, const MixWeights<T>& weights, T* g, long g_pitch) {
  constexpr int w = width<T>;
  Vector<T> rows[w]{};
  for (int first = 0; first < weights.rows; first += w) {
    const int count = minimum(w, weights.rows - first);
    const T* const at = weights.at + first * weights.pitch;
    for (int k = 0; k < components; ++k) {
      const long ahead = k == 0 ? weights.ahead : 0;
      for_each_group<T>(weights.columns, [&](int c, auto vectors, auto last) EQUITENSOR_LAMBDA {
        multiply_group<vectors>(z + k * z_pitch + c, at + c, weights.pitch, ahead, count, rows, c > 0, last);
      });
      const Vector<T> sum = sum_lanes<T>(rows);
      if (count == w)
        store(g + k * g_pitch + first, sum);
      else
        store_partial(g + k * g_pitch + first, sum, count);
    }
  }
}

template <int n, int vectors, class T, class Last>
EQUITENSOR_NOINLINE void add_group(const T* t, long t_pitch, const T* z, long z_pitch, int rows, T* dw, long dw_pitch, bool adds, Last last) {
  Vector<T> right[n][vectors];
#pragma GCC unroll 3
  for (int k = 0; k < n; ++k) load_group(z + k * z_pitch, last, right[k]);
  for (int r = 0; r < rows; ++r, dw += dw_pitch) {
    Vector<T> sum[vectors]{};
    if (adds) load_group(dw, last, sum);
#pragma GCC unroll 3
    for (int k = 0; k < n; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[v] += t[k * t_pitch + r] * right[k][v];
    store_group(dw, last, sum);
  }
}
template <class T>
void add_weight_products(const T* t, long t_pitch, const T* z, long z_pitch, int components, int rows, int columns, T* dw, long dw_pitch, bool adds) {
  for_each_group<T>(columns, [&](int c, auto vectors, auto last) EQUITENSOR_LAMBDA {
    const auto add = [&](int k, auto n) EQUITENSOR_LAMBDA {
      add_group<n, vectors>(t + k * t_pitch, t_pitch, z + k * z_pitch + c, z_pitch, rows, dw + c, dw_pitch, adds || k > 0, last);
    };
    int k = 0;
    for (; k + 3 <= components; k += 3) add(k, Int<3>{});
    for (; k < components; ++k) add(k, Int<1>{});
  });
}

#define EQUITENSOR_MIX(T)                                                                         \
  template void mix_weights(const T*, long, int, const MixWeights<T>&, T*, long, bool);           \
  template void unmix_weights(const T*, long, int, const MixWeights<T>&, T*, long);               \
  template void add_weight_products(const T*, long, const T*, long, int, int, int, T*, long, bool);
EQUITENSOR_MIX(float)
EQUITENSOR_MIX(double)
#undef EQUITENSOR_MIX

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
