// Products of channels with a matrix M, which is [input][output], their gradients, and products with weights.
#pragma once
#include "cpu/row_stream.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Component i of channel c lies at at[i * pitch + c], and that of the next item `ahead` elements on; 0 where somebody else asks for it. An item's
// components are read side by side, in an order that the hardware does not foresee: without prefetches a (7, 7, 7) path took 1.9 us instead of 1.5.
template <class T>
struct ChannelView {
  const T* at = nullptr;
  long pitch = 0, ahead = 0;

  ChannelView() = default;
  EQUITENSOR_INLINE ChannelView(const T* at, long pitch, long ahead = 0) : at(at), pitch(pitch), ahead(ahead) {}
  // Member by member: a copy of 16 bytes at once of what was just stored 8 bytes at a time waits for those stores. See RowStream.
  EQUITENSOR_INLINE ChannelView(const ChannelView& from) : at(from.at), pitch(from.pitch), ahead(from.ahead) { asm("" : "+r"(pitch), "+r"(ahead)); }
  ChannelView& operator=(const ChannelView&) = default;
};
template <class T, class Vectors>
EQUITENSOR_INLINE Vector<T> load_ahead(Vectors part, const ChannelView<T>& view, int component, int c) {
  const T* p = view.at + component * view.pitch + c;
  __builtin_prefetch(p + view.ahead, 0, 2);
  return part.load(p);
}

// Calls body(first output, outputs) for at most 8 outputs at a time.
template <class Body>
EQUITENSOR_INLINE void for_each_outputs(int outputs, Body&& body) {
  const int parts = (outputs + 7) / 8;
  for (int p = 0; p < parts; ++p) {
    const int first = p * outputs / parts;
#define EQUITENSOR_CASE(k) \
  case k: body(first, Int<k>{}); break;
    switch ((p + 1) * outputs / parts - first) {
      EQUITENSOR_CASE(1) EQUITENSOR_CASE(3) EQUITENSOR_CASE(4) EQUITENSOR_CASE(5) EQUITENSOR_CASE(6) EQUITENSOR_CASE(7) EQUITENSOR_CASE(8)
    }
#undef EQUITENSOR_CASE
  }
}
// Calls body(inputs, first output, outputs, distance between rows of M) for at most 8 outputs at a time, with constants for degrees to 3.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_shape(int inputs, int outputs, Body&& body) {
#define EQUITENSOR_CASE(i, k) \
  case 8 * i + k: return body(Int<i>{}, 0, Int<k>{}, Int<k>{});
  if constexpr (has_constants<T>) {
    if (inputs <= 7 && outputs <= 7) switch (8 * inputs + outputs) {
      EQUITENSOR_CASE(1, 1) EQUITENSOR_CASE(1, 3) EQUITENSOR_CASE(1, 5) EQUITENSOR_CASE(1, 7)
      EQUITENSOR_CASE(3, 1) EQUITENSOR_CASE(3, 3) EQUITENSOR_CASE(3, 5) EQUITENSOR_CASE(3, 7)
      EQUITENSOR_CASE(5, 1) EQUITENSOR_CASE(5, 3) EQUITENSOR_CASE(5, 5) EQUITENSOR_CASE(5, 7)
      EQUITENSOR_CASE(7, 1) EQUITENSOR_CASE(7, 3) EQUITENSOR_CASE(7, 5) EQUITENSOR_CASE(7, 7)
    }
  }
#undef EQUITENSOR_CASE
  for_each_outputs(outputs, [&](int first, auto count) EQUITENSOR_LAMBDA { body(inputs, first, count, outputs); });
}

// scale * sum_i M_ik x_i of some vectors of channels, which share the loads of M.
template <int vectors, int outputs, class T, class M, class Inputs, class Row, class Vectors>
EQUITENSOR_INLINE void sum_products(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, int c, Vectors part, Vector<T> (&sum)[vectors][outputs]) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v)
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) sum[v][k] = Vector<T>{};
  each(Int<0>{}, inputs - Int<1>{}, [&](auto i) EQUITENSOR_LAMBDA {
    Vector<T> value[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) value[v] = load_ahead(part, x, i, c + v * width<T>);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) {
      const auto m = shared_entry<vectors, T>(matrix[i * row + k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[v][k] += m * value[v];
    }
  });
  if (!scale.at) return;
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    const Vector<T> factor = load_ahead(part, scale, 0, c + v * width<T>);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) sum[v][k] = factor * sum[v][k];
  }
}
// Two vectors at once where M is large: with 15 x 15 entries 0.83 of the time; to 7 x 7 it made no difference.
template <class T, class M, class Inputs>
inline constexpr bool pairs_vectors = tiles_at_once == 2 && std::is_same_v<M, T> && std::is_same_v<Inputs, int>;
template <int outputs, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void multiply_matrix(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, T* out, long out_pitch, bool adds, int lanes) {
  const auto run = [&]<int vectors>(Int<vectors>, int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> sum[vectors][outputs];
    sum_products(inputs, row, matrix, x, scale, c, part, sum);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        T* to = out + k * out_pitch + c + v * width<T>;
        part.store(to, adds ? part.load(to) + sum[v][k] : sum[v][k]);
      }
  };
  int c = 0;
  if constexpr (pairs_vectors<T, M, Inputs>)
    for (; c + 2 * width<T> <= lanes; c += 2 * width<T>) run(Int<2>{}, c, Whole<T>{});
  for (; c + width<T> <= lanes; c += width<T>) run(Int<1>{}, c, Whole<T>{});
  if (c < lanes) run(Int<1>{}, c, Part<T>{lanes - c});
}
// Of the edges of one node: out_k (+)= sum over edges and i of M_ik w x_i, which stays in registers over the edges.
template <class T>
struct EdgeGroup {
  static constexpr int most = 4;  // whose rows of x stay in L1 beside the node's: 18 kB for MACE large
  static constexpr int most_doubly = 2;  // with directions: the rows of x are three
  int count;
  const T* matrices;  // `pitch` apart
  long pitch;
  ChannelView<T> x[most], w[most];
};
template <int outputs, class T, class Inputs, class Row>
EQUITENSOR_NOINLINE void sum_edges(Inputs inputs, Row row, const EdgeGroup<T>& group, long entry_offset, long x_offset, T* out, long out_pitch, bool adds, int lanes) {
  for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> sum[outputs];
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) sum[k] = adds ? part.load(out + k * out_pitch + c) : Vector<T>{};
    for (int e = 0; e < group.count; ++e) {
      const T* const matrix = group.matrices + e * group.pitch + entry_offset;
      const T* const x = group.x[e].at + x_offset + c;
      const long pitch = group.x[e].pitch, ahead = group.x[e].ahead;
      const Vector<T> w = load_ahead(part, group.w[e], 0, c);
      each(Int<0>{}, inputs - Int<1>{}, [&](auto i) EQUITENSOR_LAMBDA {
        __builtin_prefetch(x + i * pitch + ahead, 0, 2);
        const Vector<T> value = w * part.load(x + i * pitch);
#pragma GCC unroll 8
        for (int k = 0; k < outputs; ++k) sum[k] += entry<T>(matrix[i * row + k]) * value;
      });
    }
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) part.store(out + k * out_pitch + c, sum[k]);
  });
}
// The same into the rows that come next in a streamed result.
template <int outputs, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void stream_matrix(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, RowStream<T>& result, int lanes) {
  const int phase = result.phase();
  T* out = result.rows();
  const auto run = [&]<int vectors>(Int<vectors>, int c) EQUITENSOR_LAMBDA {
    Vector<T> sum[vectors][outputs];
    sum_products(inputs, row, matrix, x, scale, c, Whole<T>{}, sum);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) stream(out + k * lanes + c + v * width<T>, sum[v][k]);
  };
  int c = 0;
  if (phase > 0) {
    Vector<T> sum[1][outputs];
    sum_products(inputs, row, matrix, x, scale, 0, Wrapped<T>{phase, lanes}, sum);
    result.append_wrapped(sum[0], lanes);
    c = width<T> - phase;
  }
  if constexpr (pairs_vectors<T, M, Inputs>)
    for (; c + 2 * width<T> <= lanes; c += 2 * width<T>) run(Int<2>{}, c);
  for (; c + width<T> <= lanes; c += width<T>) run(Int<1>{}, c);
  result.appended(outputs * lanes);
}

// Likewise with the components of a channel side by side.
template <int outputs, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void stream_turned(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, RowStream<T>& result, int lanes) {
  if constexpr (outputs % 2 == 1)  // others are parts of more components
    for (int c = 0; c < lanes; c += width<T>) {
      Vector<T> sum[1][outputs], turned[outputs];
      sum_products(inputs, row, matrix, x, scale, c, Whole<T>{}, sum);
      turn_vectors<outputs, false, T>(sum[0], turned, std::make_index_sequence<width<T>>{});
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) result.append(turned[k]);
    }
}

// h_i = sum_k M_ik z_k; dx_i += s h_i; dw += sum_i t_i h_i; dM_ik += s t_i z_k
template <class T>
struct Gradient {
  ChannelView<T> s, t, z;
  T* dx;
  long dx_pitch;
  T* dw;
  bool dx_adds, dw_adds;  // to what is there
  Vector<T>* dmatrix;
};
// Vectors at once: they share the loads of M and the loads and stores of dM.
template <int outputs, bool outer, int vectors, class T, class M, class Inputs, class Row, class Vectors>
EQUITENSOR_INLINE void differentiate_vectors(Inputs inputs, Row row, const M* matrix, const Gradient<T>& a, int c, Vectors part) {
  constexpr int w = width<T>;
  Vector<T> z[vectors][outputs], s[vectors], dw[vectors];
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    s[v] = load_ahead(part, a.s, 0, c + v * w), dw[v] = a.dw_adds ? part.load(a.dw + c + v * w) : Vector<T>{};
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) z[v][k] = load_ahead(part, a.z, k, c + v * w);
  }
  each(Int<0>{}, inputs - Int<1>{}, [&](auto i) EQUITENSOR_LAMBDA {
    Vector<T> h[vectors]{}, p[vectors];
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) {
      const Vector<T> m = vectors > 1 ? in_register(entry<T>(matrix[i * row + k])) : entry<T>(matrix[i * row + k]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) h[v] += m * z[v][k];
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const Vector<T> t = load_ahead(part, a.t, i, c + v * w);
      T* dx = a.dx + i * a.dx_pitch + c + v * w;
      part.store(dx, (a.dx_adds ? part.load(dx) : Vector<T>{}) + s[v] * h[v]);
      dw[v] += t * h[v];
      if (outer) p[v] = s[v] * t;
    }
    if (!outer) return;
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) {
      Vector<T> sum = a.dmatrix[i * row + k];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum += p[v] * z[v][k];
      a.dmatrix[i * row + k] = sum;
    }
  });
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) part.store(a.dw + c + v * w, dw[v]);
}
template <int outputs, bool outer, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void differentiate(Inputs inputs, Row row, const M* matrix, const Gradient<T>& given, int lanes) {
  const Gradient<T> a = given;
  int c = 0;
  if constexpr (tiles_at_once == 2)
    for (; c + 2 * width<T> <= lanes; c += 2 * width<T>) differentiate_vectors<outputs, outer, 2>(inputs, row, matrix, a, c, Whole<T>{});
  for (; c + width<T> <= lanes; c += width<T>) differentiate_vectors<outputs, outer, 1>(inputs, row, matrix, a, c, Whole<T>{});
  if (c < lanes) differentiate_vectors<outputs, outer, 1>(inputs, row, matrix, a, c, Part<T>{lanes - c});
}

// With directions of all operands: p_i = w ax_i + aw x_i, q_i = w x_i; out_k = sum_i M_ik p_i + M'_ik q_i; and, with z,
// h = M z, h' = M' z; dx_i += aw h_i + w h'_i; dw += sum_i ax_i h_i + x_i h'_i; dM_ik += p_i z_k.
template <class T>
struct Directional {
  ChannelView<T> w, aw, x, ax, z;
  T* out;
  long out_pitch;
  bool adds;
  T* dx;
  long dx_pitch;
  T* dw;
  bool dx_adds, dw_adds;
  Vector<T>* dmatrix;
};
template <int outputs, bool gradient, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void direct_matrix(Inputs inputs, Row row, const M* matrix, const M* matrix_direction, const Directional<T>& given, int lanes) {
  const Directional<T> a = given;
  for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
    const Vector<T> w = load_ahead(part, a.w, 0, c), aw = load_ahead(part, a.aw, 0, c);
    Vector<T> sum[outputs]{}, z[outputs], dw{};
#pragma GCC unroll 8
    for (int k = 0; gradient && k < outputs; ++k) z[k] = load_ahead(part, a.z, k, c);
    if (gradient && a.dw_adds) dw = part.load(a.dw + c);
    each(Int<0>{}, inputs - Int<1>{}, [&](auto i) EQUITENSOR_LAMBDA {
      const Vector<T> x = load_ahead(part, a.x, i, c), ax = load_ahead(part, a.ax, i, c);
      const Vector<T> p = w * ax + aw * x, q = w * x;
      Vector<T> h{}, h_direction{};
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) {
        const Vector<T> m = in_register(entry<T>(matrix[i * row + k])), md = in_register(entry<T>(matrix_direction[i * row + k]));
        sum[k] += m * p;
        sum[k] += md * q;
        if (!gradient) continue;
        h += m * z[k];
        h_direction += md * z[k];
        a.dmatrix[i * row + k] += p * z[k];
      }
      if (!gradient) return;
      T* dx = a.dx + i * a.dx_pitch + c;
      Vector<T> to = a.dx_adds ? part.load(dx) : Vector<T>{};
      to += aw * h;
      to += w * h_direction;
      part.store(dx, to);
      dw += ax * h;
      dw += x * h_direction;
    });
    if (gradient) part.store(a.dw + c, dw);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) part.store(a.out + k * a.out_pitch + c, a.adds ? part.load(a.out + k * a.out_pitch + c) + sum[k] : sum[k]);
  });
}

// Of the edges of a node, one at a time, whose operands lie aligned in L1: rows of M in turn, each with its row of dM in registers over all channels. From L1 that is within a
// tenth of the multiply-adds' time, where `differentiate` takes 1.5 to 1.9 of it; but z is loaded for every row, and where vectors begin within a line that costs more than it saves.
// Rows lie `pitch` apart; of copies of a scalar's entry, 0, and then a row's z is `z_row` behind the one before.
struct MatrixRows {
  int count, pitch;
  long z_row;
};
template <int outputs, bool outer, class T>
EQUITENSOR_NOINLINE void differentiate_rows(const MatrixRows& rows, const T* matrix, const Gradient<T>& given, int lanes) {
  const Gradient<T> a = given;
  for (int i = 0; i < rows.count; ++i) {
    Vector<T> m[outputs], dm[outputs];
    Vector<T>* const dmatrix = a.dmatrix + i * rows.pitch;
    const bool again = rows.pitch == 0 && i > 0, dw_adds = a.dw_adds || i > 0;
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) m[k] = in_register(splat(matrix[i * rows.pitch + k])), dm[k] = outer && again ? dmatrix[k] : Vector<T>{};
    const T *const x_row = a.t.at + i * a.t.pitch, *const z = a.z.at + i * rows.z_row;
    T* const dx = a.dx + i * a.dx_pitch;
    for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
      const Vector<T> s = part.load(a.s.at + c), x = part.load(x_row + c), p = s * x;
      Vector<T> h{};
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) {
        const Vector<T> value = in_register(part.load(z + k * a.z.pitch + c));
        h += m[k] * value;
        if (outer) dm[k] += p * value;
      }
      part.store(dx + c, (a.dx_adds ? part.load(dx + c) : Vector<T>{}) + s * h);
      part.store(a.dw + c, (dw_adds ? part.load(a.dw + c) : Vector<T>{}) + x * h);
    });
#pragma GCC unroll 8
    for (int k = 0; outer && k < outputs; ++k) dmatrix[k] = dm[k];
  }
}
// Components of `out` lie as far apart as z's.
template <int outputs, class T>
EQUITENSOR_NOINLINE void direct_rows(const MatrixRows& rows, const T* matrix, const T* matrix_direction, const Directional<T>& given, int lanes) {
  const Directional<T> a = given;
  for (int i = 0; i < rows.count; ++i) {
    Vector<T> m[outputs], md[outputs], dm[outputs];
    Vector<T>* const dmatrix = a.dmatrix + i * rows.pitch;
    const bool again = rows.pitch == 0 && i > 0, dw_adds = a.dw_adds || i > 0, adds = a.adds || (rows.pitch > 0 && i > 0);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) {
      m[k] = in_register(splat(matrix[i * rows.pitch + k])), md[k] = in_register(splat(matrix_direction[i * rows.pitch + k]));
      dm[k] = again ? dmatrix[k] : Vector<T>{};
    }
    const T *const x_row = a.x.at + i * a.x.pitch, *const ax_row = a.ax.at + i * a.ax.pitch, *const z = a.z.at + i * rows.z_row;
    T *const dx = a.dx + i * a.dx_pitch, *const out = a.out + i * rows.z_row;
    for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
      const Vector<T> w = part.load(a.w.at + c), aw = part.load(a.aw.at + c), x = part.load(x_row + c), ax = part.load(ax_row + c);
      const Vector<T> p = w * ax + aw * x, q = w * x;
      Vector<T> h{}, h_direction{};
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) {
        T* const to = out + k * a.z.pitch + c;
        Vector<T> sum = adds ? part.load(to) : Vector<T>{};
        sum += m[k] * p;
        sum += md[k] * q;
        part.store(to, sum);
        const Vector<T> value = in_register(part.load(z + k * a.z.pitch + c));
        h += m[k] * value;
        h_direction += md[k] * value;
        dm[k] += p * value;
      }
      Vector<T> to = a.dx_adds ? part.load(dx + c) : Vector<T>{}, dw = dw_adds ? part.load(a.dw + c) : Vector<T>{};
      to += aw * h;
      to += w * h_direction;
      dw += ax * h;
      dw += x * h_direction;
      part.store(dx + c, to);
      part.store(a.dw + c, dw);
    });
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) dmatrix[k] = dm[k];
  }
}

// ---- products with weights, whose rows lie `pitch` apart: cpu/weighted_mix.cpp

template <class T>
struct MixWeights {
  const T* at;
  long pitch, ahead;  // to the next item's
  int rows, columns;
};
// out[k] (+)= sum_c t[k][c] W[c] of `components` k
template <class T>
void mix_weights(const T* t, long t_pitch, int components, const MixWeights<T>& weights, T* out, long out_pitch, bool adds);
// g[k][c] = sum_w z[k][w] W[c][w]
template <class T>
void unmix_weights(const T* z, long z_pitch, int components, const MixWeights<T>& weights, T* g, long g_pitch);
// dW[c] (+)= sum_k t[k][c] z[k]
template <class T>
void add_weight_products(const T* t, long t_pitch, const T* z, long z_pitch, int components, int rows, int columns, T* dw, long dw_pitch, bool adds);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
