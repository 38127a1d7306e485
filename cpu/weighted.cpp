// Weighted tensor product, an item at a time: lanes are channels, which lie side by side in ir_mul and are brought there from mul_ir. Every
// channel of one operand makes a matrix M_ik = sum_j C_ijk y_j an instruction; then t_k = sum_i M_ik x_i for all channels of the other operand.
// Backwards h_i = sum_k M_ik dz_k gives the gradients of x, w h, and of the weights, sum_i x_i h_i: N multiply-adds instead of two times N for a
// matrix of N entries. dM_ik = sum_u (w x)_i dz_k is contracted with the coefficients once an item.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// ---- vectors of channels

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

// ---- results

// Writes the rows of a result from begin to end. Streamed, every vector is written once and whole: what does not fill one waits for what follows.
// Here and elsewhere, what was just stored is loaded as it was stored, aligned alike and as long: any other load waits until the store has left for the cache,
// behind all streamed ones before it, so that computing and writing take turns (MACE large: 3.0 instead of 2.3 us).
template <class T>
class RowStream {
 public:
  RowStream(T* to, bool streams, bool accumulates) : to_(to), streams_(to && streams), accumulates_(accumulates) {
    if (!streams_) return;
    foreign_ = waiting_ = int(reinterpret_cast<uintptr_t>(to) % sizeof(Vector<T>) / sizeof(T));
    to_ -= waiting_;
  }
  bool streams() const { return streams_; }
  // `from` is aligned.
  void append(const T* from, int n) {
    if (!streams_) {
      for_each_vector<T>(n, [&](int c, auto part) EQUITENSOR_LAMBDA {
        part.store(to_ + c, accumulates_ ? part.load(to_ + c) + part.load(from + c) : part.load(from + c));
      });
      to_ += n;
      return;
    }
    const int waiting = waiting_;
    Vector<T> before = before_;
    int c = 0;
    for (; c + width<T> <= n; c += width<T>) {
      const Vector<T> turned = rotate<T>(load(from + c), waiting);
      write(first_lanes<T>(waiting, before, turned));
      before = turned;
    }
    if (c < n) {
      const Vector<T> turned = rotate<T>(load(from + c), waiting), whole = first_lanes<T>(waiting, before, turned);
      waiting_ += n - c;
      before = whole;
      if (waiting_ >= width<T>) {
        write(whole);
        waiting_ -= width<T>;
        before = turned;
      }
    }
    before_ = before;
  }

  // For whoever writes the next rows, of `lanes` elements, a multiple of a vector's, itself: they begin `phase` elements into a vector at `rows`.
  // A row's first elements share it with the last ones of the row before; these vectors, with the last elements in front, are `value`.
  int phase() const { return waiting_; }
  T* rows() const { return to_ + waiting_; }
  template <int n>
  EQUITENSOR_INLINE void append_wrapped(const Vector<T> (&value)[n], int lanes) {
    T* const to = to_;
    write(first_lanes<T>(waiting_, before_, value[0]));
#pragma GCC unroll 8
    for (int k = 1; k < n; ++k) stream(to + k * lanes, first_lanes<T>(waiting_, value[k - 1], value[k]));
    before_ = value[n - 1];
    to_ = to;
  }
  void appended(int n) { to_ += n; }

  void finish() {
    T lanes[width<T>];
    store(lanes, before_);
    for (int i = foreign_; i < waiting_; ++i) to_[i] = lanes[i];
  }

 private:
  EQUITENSOR_INLINE void write(Vector<T> whole) {
    if (foreign_ > 0) {  // the vector's beginning is somebody else's
      T lanes[width<T>];
      store(lanes, whole);
      for (int i = foreign_; i < width<T>; ++i) to_[i] = lanes[i];
      foreign_ = 0;
    } else {
      stream(to_, whole);
    }
    to_ += width<T>;
  }

  T* to_;
  bool streams_, accumulates_;
  int foreign_ = 0, waiting_ = 0;
  Vector<T> before_{};  // its first `waiting_` lanes
};

// ---- products with M, which is [input][output]

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

// Calls body(inputs, first output, outputs, distance between rows of M) for at most 8 outputs at a time; with constants for degrees to 3, in float32
// with AVX2 and more: everywhere, this file took three times as long to compile as all others together.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_shape(int inputs, int outputs, Body&& body) {
  constexpr bool has_constants = sizeof(T) == 4 && sizeof(Vector<T>) >= 32;
#define EQUITENSOR_CASE(i, k) \
  case 8 * i + k: return body(Int<i>{}, 0, Int<k>{}, Int<k>{});
  if constexpr (has_constants) {
    if (inputs <= 7 && outputs <= 7) switch (8 * inputs + outputs) {
      EQUITENSOR_CASE(1, 1) EQUITENSOR_CASE(1, 3) EQUITENSOR_CASE(1, 5) EQUITENSOR_CASE(1, 7)
      EQUITENSOR_CASE(3, 1) EQUITENSOR_CASE(3, 3) EQUITENSOR_CASE(3, 5) EQUITENSOR_CASE(3, 7)
      EQUITENSOR_CASE(5, 1) EQUITENSOR_CASE(5, 3) EQUITENSOR_CASE(5, 5) EQUITENSOR_CASE(5, 7)
      EQUITENSOR_CASE(7, 1) EQUITENSOR_CASE(7, 3) EQUITENSOR_CASE(7, 5) EQUITENSOR_CASE(7, 7)
    }
  }
#undef EQUITENSOR_CASE
  const int parts = (outputs + 7) / 8;
  for (int p = 0; p < parts; ++p) {
    const int first = p * outputs / parts;
#define EQUITENSOR_CASE(k) \
  case k: body(inputs, first, Int<k>{}, outputs); break;
    switch ((p + 1) * outputs / parts - first) {
      EQUITENSOR_CASE(1) EQUITENSOR_CASE(3) EQUITENSOR_CASE(4) EQUITENSOR_CASE(5) EQUITENSOR_CASE(6) EQUITENSOR_CASE(7) EQUITENSOR_CASE(8)
    }
#undef EQUITENSOR_CASE
  }
}

// scale * sum_i M_ik x_i of a vector of channels.
template <int outputs, class T, class M, class Inputs, class Row, class Vectors>
EQUITENSOR_INLINE void sum_products(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, int c, Vectors part, Vector<T> (&sum)[outputs]) {
#pragma GCC unroll 8
  for (int k = 0; k < outputs; ++k) sum[k] = Vector<T>{};
  each(Int<0>{}, inputs - Int<1>{}, [&](auto i) EQUITENSOR_LAMBDA {
    const Vector<T> value = load_ahead(part, x, i, c);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) sum[k] += entry<T>(matrix[i * row + k]) * value;
  });
  if (!scale.at) return;
  const Vector<T> factor = load_ahead(part, scale, 0, c);
#pragma GCC unroll 8
  for (int k = 0; k < outputs; ++k) sum[k] = factor * sum[k];
}
template <int outputs, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void multiply_matrix(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, T* out, long out_pitch, bool adds, int lanes) {
  for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> sum[outputs];
    sum_products(inputs, row, matrix, x, scale, c, part, sum);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) part.store(out + k * out_pitch + c, adds ? part.load(out + k * out_pitch + c) + sum[k] : sum[k]);
  });
}
// The same into the rows that come next in a streamed result.
template <int outputs, class T, class M, class Inputs, class Row>
EQUITENSOR_NOINLINE void stream_matrix(Inputs inputs, Row row, const M* matrix, ChannelView<T> x, ChannelView<T> scale, RowStream<T>& result, int lanes) {
  Vector<T> sum[outputs];
  const int phase = result.phase();
  T* out = result.rows();
  int c = 0;
  if (phase > 0) {
    sum_products(inputs, row, matrix, x, scale, 0, Wrapped<T>{phase, lanes}, sum);
    result.append_wrapped(sum, lanes);
    c = width<T> - phase;
  }
  for (; c + width<T> <= lanes; c += width<T>) {
    sum_products(inputs, row, matrix, x, scale, c, Whole<T>{}, sum);
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) stream(out + k * lanes + c, sum[k]);
  }
  result.appended(outputs * lanes);
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
EQUITENSOR_NOINLINE void differentiate(Inputs inputs, Row row, const M* matrix, const Gradient<T>& a, int lanes) {
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
EQUITENSOR_NOINLINE void direct_matrix(Inputs inputs, Row row, const M* matrix, const M* matrix_direction, const Directional<T>& a, int lanes) {
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

// ---- products with weights: out (+)= a b, where a[r][d] lies at a[r * a_row + d * a_column].

template <int rows, int vectors, class T>
EQUITENSOR_NOINLINE void multiply_columns(const T* a, long a_row, long a_column, const T* b, long b_pitch, int depth, T* out, long out_pitch, bool adds, int columns) {
  for_each_vector<T>(columns, [&](int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> sum[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) sum[r] = adds ? part.load(out + r * out_pitch + c) : Vector<T>{};
    for (int d = 0; d < depth; ++d) {
      const Vector<T> right = part.load(b + d * b_pitch + c);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r] += a[r * a_row + d * a_column] * right;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) part.store(out + r * out_pitch + c, sum[r]);
  });
}
template <class T>
inline void multiply(const T* a, long a_row, long a_column, int rows, const T* b, long b_pitch, int depth, int columns, T* out, long out_pitch, bool adds) {
  for (; rows > 0; rows -= 4, a += 4 * a_row, out += 4 * out_pitch) switch (rows) {
      case 1: multiply_columns<1, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
      case 2: multiply_columns<2, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
      case 3: multiply_columns<3, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
      default: multiply_columns<4, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
    }
}

// ---- an item

template <class T>
struct WeightedBuffers {
  T *lanes[operand_count];            // blocks that lie by channel in the row, by component; of z one block at a time
  T *turned, *turned_direction;       // weights, transposed where an instruction wants them so
  T *ones, *zeros, *unused;
  T *matrix, *matrix_direction;
  Vector<T> *matrices, *matrices_direction, *dmatrix;
  T *t, *t_direction, *g, *g_direction;
  T *z, *row;                         // a block of the result, and what is about to be written
  T* node;                            // of a convolution: the result that is summed over a node's edges, by component
  T *gradient[2], *weight_gradient;
  Vector<T>* sums[2];                 // of a matrix operand: the lanes of its gradient are still to be added up
  WeightedBuffers(const WeightedPlan<T>& plan, Scratch<T>& scratch) {
    const auto take = [&](long n) { return reinterpret_cast<T*>(scratch.take((n + width<T> - 1) / width<T> + 1)); };
    for (int o = 0; o < operand_count; ++o) lanes[o] = take(o == z_operand ? plan.max_block : plan.dim[slot_of(o)]);
    turned = take(plan.weights), turned_direction = take(plan.weights);
    for (T** constant : {&ones, &zeros, &unused}) *constant = take(plan.max_lanes);
    matrix = take(plan.max_pitch), matrix_direction = take(plan.max_pitch);
    for (Vector<T>** entries : {&matrices, &matrices_direction, &dmatrix}) *entries = scratch.take(plan.max_entries);
    for (T** staged : {&t, &t_direction, &g, &g_direction}) *staged = take(plan.max_staged);
    z = take(plan.max_block), node = take(plan.dim[2]);
    row = take(maximum(maximum(plan.dim[0], plan.dim[1]), maximum(plan.max_block, plan.weights)));
    for (int s = 0; s < 2; ++s) gradient[s] = take(plan.dim[s]), sums[s] = scratch.take(plan.makes_matrices[s] ? plan.dim[s] : 0);
    weight_gradient = take(plan.weights);
  }
};

template <class T>
class WeightedItem {
 public:
  WeightedItem(const WeightedPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    for (int c = 0; c < plan.max_lanes; ++c) buffer_.ones[c] = 1, buffer_.zeros[c] = 0, buffer_.unused[c] = 0;
    differentiates_ = wants(0) || wants(1) || a.weight_out;
    doubles_ = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
    for (int s = 0; s < 2; ++s) clear(buffer_.gradient[s], plan.dim[s]), clear_sums(s);
    if (a.sweep) clear(buffer_.node, plan.dim[2]);
    clear(buffer_.weight_gradient, plan.weights);
    gradient_adds_[0] = a.sum[0], gradient_adds_[1] = a.sum[1];
  }

  void run(long begin, long end) {
    RowStream<T> x = writer(0, begin), y = writer(1, begin), z = writer(2, begin);
    RowStream<T> w(a_.weight_out ? a_.weight_out + begin * a_.weight_stride : nullptr, a_.stream && !a_.weight_sum, a_.accumulate && !a_.weight_sum);
    for (long item = begin; item < end; ++item) {
      take(item_at(item), item_at(item + 1));
      run_instructions(&z);
      const bool last = item + 1 == end;
      if (wants(0) && (last || !a_.sum[0])) write_gradient(0, x);
      if (wants(1) && (last || !a_.sum[1])) write_gradient(1, y);
      if (a_.weight_out && (last || !a_.weight_sum)) write_weight_gradient(w);
    }
    for (RowStream<T>* result : {&x, &y, &z, &w}) result->finish();
  }

  // Items are the edges of these nodes. What is summed over the edges of one stays in L1 and is written once.
  void sweep(long begin, long end) {
    const Sweep& sweep = *a_.sweep;
    RowStream<T> nodes = writer(sweep.slot, begin);
    const int last = sweep.begin[end];
    for (int node = int(begin), e = sweep.begin[begin]; node < end; ++node) {
      const int first = e;
      for (int next = sweep.begin[node + 1]; e < next; ++e) {
        z_adds_ = gradient_adds_[0] = e > first;
        const Rows at = edge_at(node, e);
        take(at, e + 1 < next ? edge_at(node, e + 1) : e + 1 < last ? edge_at(node_behind(node), e + 1) : at);
        run_instructions(nullptr);
        if (wants(1) && !a_.sum[1]) write_row(1, a_.out[1] + at.slot[1]);
        if (a_.weight_out && !a_.weight_sum) write_weight_row(a_.weight_out + at.weight);
      }
      if (wants(2)) write_node(nodes, e == first);
      if (wants(0)) {
        if (e == first) clear(buffer_.gradient[0], plan_.dim[0]);
        write_gradient(0, nodes);
      }
    }
    nodes.finish();
    if (a_.sum[1]) write_row(1, a_.out[1]);
    if (a_.weight_sum) write_weight_row(a_.weight_out);
  }

 private:
  using Instruction = PlanInstruction<T>;
  using View = ChannelView<T>;

  bool wants(int slot) const { return a_.terms.writes[slot]; }
  RowStream<T> writer(int slot, long begin) const {
    return {wants(slot) ? a_.out[slot] + (a_.sum[slot] ? 0 : begin * a_.stride[slot]) : nullptr, a_.stream && !a_.sum[slot], a_.accumulate && !a_.sum[slot]};
  }

  // Where an item's rows begin, in elements.
  struct Rows {
    long slot[slot_count], weight;
  };
  Rows item_at(long item) const { return {{item * a_.stride[0], item * a_.stride[1], item * a_.stride[2]}, item * a_.weight_stride}; }
  Rows edge_at(int node, int e) const {
    const Sweep& sweep = *a_.sweep;
    const long row = sweep.edge[e], other = sweep.other[e];
    const long sender = sweep.slot == 0 ? node : other, receiver = sweep.slot == 0 ? other : node;
    return {{sender * a_.stride[0], row * a_.stride[1], receiver * a_.stride[2]}, row * a_.weight_stride};
  }
  // The next node that has edges; there is one.
  int node_behind(int node) const {
    do ++node;
    while (a_.sweep->begin[node] == a_.sweep->begin[node + 1]);
    return node;
  }

  // Points to the item's rows, and brings what lies by channel to lie by component.
  void take(const Rows& at, const Rows& next) {
    for (int o : {x_operand, y_operand, z_operand, x_direction, y_direction}) {
      const int s = slot_of(o);
      if (!a_.in[o]) continue;
      const T* const row = a_.in[o] + at.slot[s];
      const bool again = row == row_[o];
      row_[o] = row;
      ahead_[s] = next.slot[s] - at.slot[s];
      if (o != z_operand) prefetch_row(row + ahead_[s], plan_.dim[s] <= 4 * line<T> ? plan_.dim[s] : 0);
      if (o == z_operand || again) continue;
      for (int b = 0; b < plan_.block_count[s]; ++b) {
        const PlanBlock& block = plan_.blocks[s][b];
        if (block.by_component) continue;
        prefetch_row(row + block.offset + ahead_[s], block.mul * block.components);
        turn_block<true>(row + block.offset, block, buffer_.lanes[o] + block.offset);
      }
    }
    const T* const weight = a_.weight ? a_.weight + at.weight : nullptr;
    const bool again = weight == weight_;
    weight_ = weight, weight_ahead_ = next.weight - at.weight;
    if (a_.weight_direction) weight_direction_ = a_.weight_direction + at.weight;
    if (again) return;
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      if (in.weight < 0 || !(in.weight_columns || (in.mixed && differentiates_))) continue;
      turn(in, weight_, buffer_.turned);
      if (weight_direction_) turn(in, weight_direction_, buffer_.turned_direction);
    }
  }
  // Of the next item: what the kernels do not ask for themselves.
  static void prefetch_row(const T* row, int n) {
    for (int c = 0; c < n; c += line<T>) __builtin_prefetch(row + c, 0, 2);
  }
  void turn(const Instruction& in, const T* weights, T* turned) {
    if (in.weight_columns) {
      const int rows = in.weights / in.weight_columns;
      transpose_matrix(weights + in.weight, in.weight_columns, rows, in.weight_columns, turned + in.weight, rows);
    }
    for (int m = 0; m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      transpose_matrix(weights + in.weight + mix.weight, mix.pitch, mix.count, in.mixed, turned + in.weight + mix.first, in.channels);
    }
  }

  View view(int operand, int block_index) const {
    const PlanBlock& block = plan_.blocks[slot_of(operand)][block_index];
    if (!a_.in[operand]) return {buffer_.zeros, 0};
    if (!block.by_component) return {buffer_.lanes[operand] + block.offset, block.mul};
    return {row_[operand] + block.offset, block.mul, ahead_[slot_of(operand)]};
  }
  View lane_view(const Instruction& in, bool direction) const {
    View found = view(direction ? (in.lane_operand == 0 ? x_direction : y_direction) : in.lane_operand, in.lane_block);
    if (!in.asks_ahead) found.ahead = 0;
    return found;
  }
  View matrix_view(const Instruction& in, bool direction) const {
    return view(direction ? (in.lane_operand == 0 ? y_direction : x_direction) : 1 - in.lane_operand, in.matrix_block);
  }
  // Of a segment: a weight a channel.
  View weights_of(const Instruction& in, const PlanChannels& channels) const {
    if (in.weight < 0) return {buffer_.ones, 0};
    if (in.weight_columns) return {buffer_.turned + in.weight + channels.weight, 0};
    return {weight_ + in.weight + channels.weight, 0, weight_ahead_};
  }
  View weight_directions_of(const Instruction& in, const PlanChannels& channels) const {
    if (in.weight < 0 || !weight_direction_) return {buffer_.zeros, 0};
    if (in.weight_columns) return {buffer_.turned_direction + in.weight + channels.weight, 0};
    return {weight_direction_ + in.weight + channels.weight, 0, weight_ahead_};
  }

  template <class Body>
  EQUITENSOR_INLINE void for_each_segment(const Instruction& in, Body&& body) {
    if (in.same_channel) {
      const int mul = in.segments[0].lanes;
      for (int c = 0; c < mul; c += width<T>) body(PlanChannels{0, c, minimum(width<T>, mul - c), c, c, false});
    } else {
      for (int s = 0; s < in.segment_count; ++s) body(in.segments[s]);
    }
  }

  // Calls body(count), a constant for degrees to 3, so that it has no loop of a few rounds.
  template <class Body>
  static EQUITENSOR_INLINE void with_components(int count, Body&& body) {
    switch (count) {
      case 1: return body(Int<1>{});
      case 3: return body(Int<3>{});
      case 5: return body(Int<5>{});
      case 7: return body(Int<7>{});
      default: return body(count);
    }
  }

  void make_matrix(const Instruction& in, const PlanChannels& channels, View from, T* matrix) const {
    const T* y = from.at + (from.pitch ? channels.matrix_channel : 0);
    with_components(in.matrix_components, [&](auto components) EQUITENSOR_LAMBDA {
      for (int e = 0; e < in.pitch; e += width<T>) {
        Vector<T> sum{};
        each(Int<0>{}, components - Int<1>{}, [&](auto j) EQUITENSOR_LAMBDA { sum += y[j * from.pitch] * load(in.coefficients + j * in.pitch + e); });
        store(matrix + e, sum);
      }
    });
  }
  void make_matrix(const Instruction& in, const PlanChannels& channels, View from, Vector<T>* matrix) const {
    for (int e = 0; e < in.entries; ++e) {
      Vector<T> sum{};
      for (int n = in.of_entry[e]; n < in.of_entry[e + 1]; ++n)
        sum += in.of_entry_value[n] * load_channels(from.at + in.of_entry_component[n] * from.pitch + channels.lane, channels.lanes);
      matrix[e] = sum;
    }
  }
  static EQUITENSOR_INLINE Vector<T> load_channels(const T* p, int lanes) { return lanes == width<T> ? load(p) : load_partial(p, lanes); }

  // The gradient of the matrix operand: of every channel by itself, or in lanes that write_gradient adds up.
  void contract_matrix(const Instruction& in, const PlanChannels& channels) {
    const int slot = 1 - in.lane_operand;
    const PlanBlock& block = plan_.blocks[slot][in.matrix_block];
    if (in.same_channel) {
      for (int j = 0; j < in.matrix_components; ++j) {
        T* gradient = buffer_.gradient[slot] + block.offset + j * block.mul + channels.lane;
        Vector<T> sum = load_channels(gradient, channels.lanes);
        for (int n = in.of_component[j]; n < in.of_component[j + 1]; ++n) sum += in.of_component_value[n] * buffer_.dmatrix[in.of_component_entry[n]];
        if (channels.lanes == width<T>)
          store(gradient, sum);
        else
          store_partial(gradient, sum, channels.lanes);
      }
      return;
    }
    Vector<T>* sums = buffer_.sums[slot] + block.offset + channels.matrix_channel;
    const auto contract = [&]<int count>(int first, Int<count>) EQUITENSOR_LAMBDA {
      Vector<T> sum[count];
#pragma GCC unroll 7
      for (int j = 0; j < count; ++j) sum[j] = sums[(first + j) * block.mul];
      const T* coefficients = in.coefficients + first * in.pitch;
      for (int e = 0; e < in.entries; ++e) {
        const Vector<T> value = buffer_.dmatrix[e];
#pragma GCC unroll 7
        for (int j = 0; j < count; ++j) sum[j] += coefficients[j * in.pitch + e] * value;
      }
#pragma GCC unroll 7
      for (int j = 0; j < count; ++j) sums[(first + j) * block.mul] = sum[j];
    };
    switch (in.matrix_components) {
      case 1: return contract(0, Int<1>{});
      case 3: return contract(0, Int<3>{});
      case 5: return contract(0, Int<5>{});
      case 7: return contract(0, Int<7>{});
    }
    int j = 0;
    for (; j + 7 <= in.matrix_components; j += 7) contract(j, Int<7>{});
    for (; j + 2 <= in.matrix_components; j += 2) contract(j, Int<2>{});
    for (; j < in.matrix_components; ++j) contract(j, Int<1>{});
  }

  // ---- instructions

  // result: where z's rows go; null where they are summed over a node's edges.
  void run_instructions(RowStream<T>* result) {
    int next = 0;
    for (int b = 0; b < plan_.block_count[2]; ++b) {
      const PlanBlock& block = plan_.blocks[2][b];
      const int n = block.mul * block.components;
      const bool empty = next == plan_.instruction_count || plan_.instructions[next].out_block != b;
      View z{nullptr, block.mul};
      if (differentiates_ && !empty) {
        z.at = row_[z_operand] + block.offset, z.ahead = ahead_[2];
        if (!block.by_component) {
          prefetch_row(z.at + ahead_[2], n);
          turn_block<true>(z.at, block, buffer_.lanes[z_operand]);
          z.at = buffer_.lanes[z_operand], z.ahead = 0;
        }
      }
      z_ = result || !wants(2) ? buffer_.z : buffer_.node + block.offset;
      for (; next < plan_.instruction_count && plan_.instructions[next].out_block == b; ++next) {
        const Instruction& in = plan_.instructions[next];
        // An output that one segment makes goes straight to memory.
        const bool only = next + 1 == plan_.instruction_count || plan_.instructions[next + 1].out_block != b;
        straight_ = result && !doubles_ && wants(2) && result->streams() && block.by_component && block.mul % width<T> == 0 && (in.outputs <= 7 || in.copies > 1) && !in.adds && only &&
                            !in.mixed && !in.same_channel && in.segment_count == 1
                        ? result
                        : nullptr;
        if (in.same_channel)
          run_instruction(in, z, buffer_.matrices, buffer_.matrices_direction);
        else
          run_instruction(in, z, buffer_.matrix, buffer_.matrix_direction);
      }
      if (!wants(2) || !result) continue;
      if (!empty && straight_) continue;
      for (int c = 0; empty && c < n; ++c) buffer_.z[c] = 0;
      append_block(*result, block, buffer_.z);
    }
  }
  void append_block(RowStream<T>& result, const PlanBlock& block, const T* from) {
    if (!block.by_component) {
      turn_block<false>(from, block, buffer_.row);
      from = buffer_.row;
    }
    result.append(from, block.mul * block.components);
  }
  // Blocks that no instruction writes have been cleared once and for all.
  void write_node(RowStream<T>& result, bool isolated) {
    if (isolated) clear(buffer_.node, plan_.dim[2]);
    for (int b = 0; b < plan_.block_count[2]; ++b) append_block(result, plan_.blocks[2][b], buffer_.node + plan_.blocks[2][b].offset);
  }

  template <class M>
  void run_instruction(const Instruction& in, View z, M* matrix, M* matrix_direction) {
    const View x = lane_view(in, false), ax = lane_view(in, true), y = matrix_view(in, false), ay = matrix_view(in, true);
    const bool weighted = in.weight >= 0, directed = weighted && weight_direction_;
    if (in.mixed && differentiates_) {  // the gradient of t: times the weights, and times their direction
      unmix(in, z, weighted ? buffer_.turned + in.weight : buffer_.ones, buffer_.g);
      if (directed) unmix(in, z, buffer_.turned_direction + in.weight, buffer_.g_direction);
    }
    for_each_segment(in, [&](const PlanChannels& s) {
      make_matrix(in, s, y, matrix);
      if (doubles_) make_matrix(in, s, ay, matrix_direction);
      const View xs = segment(x, s), axs = segment(ax, s), zs{z.at + s.out, z.pitch, z.ahead};
      if (differentiates_)
        for (int e = 0; e < in.entries; ++e) buffer_.dmatrix[e] = Vector<T>{};
      if (in.mixed)
        run_mixed(in, s, matrix, matrix_direction, xs, axs, directed);
      else if (doubles_)
        run_doubly(in, s, matrix, matrix_direction, xs, axs, zs);
      else
        run_singly(in, s, matrix, xs, zs);
      if (wants(1 - in.lane_operand)) contract_matrix(in, s);
    });
    if (!in.mixed) return;
    const int mul = plan_.blocks[2][in.out_block].mul;
    const T* t = doubles_ ? buffer_.t_direction : buffer_.t;
    if (wants(2)) {
      mix(in, t, weighted ? weight_ + in.weight : buffer_.ones, mul, in.adds || z_adds_);
      if (directed) mix(in, buffer_.t, weight_direction_ + in.weight, mul, true);
    }
    for (int m = 0; a_.weight_out && weighted && m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      T* dw = buffer_.weight_gradient + in.weight + mix.weight;
      multiply(t + mix.first, 1L, in.channels, mix.count, z.at, z.pitch, in.outputs, in.mixed, dw, mix.pitch, a_.weight_sum);
    }
  }
  static EQUITENSOR_INLINE View segment(View x, const PlanChannels& s) { return {x.at + (x.pitch ? s.lane : 0), x.pitch, x.ahead}; }

  // Calls body(inputs, row, copy, first output, outputs) for the shapes of an instruction: see for_each_shape. A scalar's matrix is a multiple of
  // the identity, and so one entry for as many copies as there are components.
  template <class Body>
  EQUITENSOR_INLINE void for_each_part(const Instruction& in, Body&& body) {
    if (in.copies > 1)
      for (int copy = 0; copy < in.copies; ++copy) body(Int<1>{}, copy, Int<1>{}, Int<1>{});
    else
      for_each_shape<T>(in.inputs, in.outputs, body);
  }
  static EQUITENSOR_INLINE int first_entry(const Instruction& in, int first) { return in.copies > 1 ? 0 : first; }
  static EQUITENSOR_INLINE View inputs_of(const Instruction& in, View x, int first) { return {x.at + (in.copies > 1 ? first * x.pitch : 0), x.pitch, x.ahead}; }

  template <class M>
  void multiply_by(const Instruction& in, const M* matrix, View x, View scale, T* out, long out_pitch, bool adds, int lanes) {
    for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
      multiply_matrix<outputs>(inputs, row, matrix + first_entry(in, first), inputs_of(in, x, first), scale, out + first * out_pitch, out_pitch, adds, lanes);
    });
  }

  // Of the lane operand, the weights and M, with z the gradient of M's product.
  template <class M>
  void differentiate_by(const Instruction& in, const PlanChannels& s, const M* matrix, View z, View scale, View t, bool again = false) {
    const bool outer = wants(1 - in.lane_operand);
    const long pitch = plan_.blocks[in.lane_operand][in.lane_block].mul;
    for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
      const int e = first_entry(in, first);
      const Gradient<T> a{scale, inputs_of(in, t, first), {z.at + first * z.pitch, z.pitch, z.ahead}, lane_gradient(in, s) + (in.copies > 1 ? first * pitch : 0), pitch,
                          weight_gradient(in, s), again || adds_gradient(in, s, first), again || a_.weight_sum || first > 0, buffer_.dmatrix + e};
      if (outer)
        differentiate<outputs, true>(inputs, row, matrix + e, a, s.lanes);
      else
        differentiate<outputs, false>(inputs, row, matrix + e, a, s.lanes);
    });
  }
  T* lane_gradient(const Instruction& in, const PlanChannels& s) const {
    return buffer_.gradient[in.lane_operand] + plan_.blocks[in.lane_operand][in.lane_block].offset + s.lane;
  }
  // The others find the gradient of their block cleared, or written.
  bool adds_gradient(const Instruction& in, const PlanChannels& s, int first) const {
    return gradient_adds_[in.lane_operand] || !in.makes_gradient || s.matrix_channel > 0 || (in.copies == 1 && first > 0);
  }
  T* weight_gradient(const Instruction& in, const PlanChannels& s) const {
    return in.weight < 0 || in.mixed ? buffer_.unused : buffer_.weight_gradient + in.weight + s.weight;
  }

  template <class M>
  void run_singly(const Instruction& in, const PlanChannels& s, const M* matrix, View x, View z) {
    const View w = weights_of(in, s), scale = in.weight < 0 ? View{} : w;
    if (straight_)
      for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
        stream_matrix<outputs>(inputs, row, matrix + first_entry(in, first), inputs_of(in, x, first), scale, *straight_, s.lanes);
      });
    else if (wants(2))
      multiply_by(in, matrix, x, scale, z_ + s.out, z.pitch, in.adds || s.adds || z_adds_, s.lanes);
    if (differentiates_) differentiate_by(in, s, matrix, z, w, x);
  }

  template <class M>
  void run_doubly(const Instruction& in, const PlanChannels& s, const M* matrix, const M* matrix_direction, View x, View ax, View z) {
    const View w = weights_of(in, s), aw = weight_directions_of(in, s);
    const long pitch = plan_.blocks[in.lane_operand][in.lane_block].mul;
    for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
      const int e = first_entry(in, first);
      const Directional<T> a{w, aw, inputs_of(in, x, first), inputs_of(in, ax, first), {z.at + first * z.pitch, z.pitch, z.ahead},
                             z_ + s.out + first * z.pitch, z.pitch, in.adds || s.adds || z_adds_, lane_gradient(in, s) + (in.copies > 1 ? first * pitch : 0), pitch,
                             weight_gradient(in, s), adds_gradient(in, s, first), a_.weight_sum || first > 0, buffer_.dmatrix + e};
      if (differentiates_)
        direct_matrix<outputs, true>(inputs, row, matrix + e, matrix_direction + e, a, s.lanes);
      else
        direct_matrix<outputs, false>(inputs, row, matrix + e, matrix_direction + e, a, s.lanes);
    });
  }

  template <class M>
  void run_mixed(const Instruction& in, const PlanChannels& s, const M* matrix, const M* matrix_direction, View x, View ax, bool directed) {
    const View ones{buffer_.ones, 0}, g{buffer_.g + s.out, in.channels}, g_direction{buffer_.g_direction + s.out, in.channels};
    T *t = buffer_.t + s.out, *t_direction = buffer_.t_direction + s.out;
    const bool wants_t = wants(2) || (a_.weight_out && in.weight >= 0);
    if (wants_t && (!doubles_ || directed)) multiply_by(in, matrix, x, View{}, t, in.channels, false, s.lanes);
    if (wants_t && doubles_) {
      multiply_by(in, matrix, ax, View{}, t_direction, in.channels, false, s.lanes);
      multiply_by(in, matrix_direction, x, View{}, t_direction, in.channels, true, s.lanes);
    }
    if (!differentiates_) return;
    if (!doubles_) return differentiate_by(in, s, matrix, g, ones, x);
    if (directed) differentiate_by(in, s, matrix, g_direction, ones, x);
    differentiate_by(in, s, matrix_direction, g, ones, ax, directed);
  }

  // Behind the instruction's segments: the output's channels from those of t, with the weights, and back with the transposed ones.
  void mix(const Instruction& in, const T* t, const T* weights, int mul, bool adds) {
    for (int m = 0; m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      multiply(t + mix.first, in.channels, 1L, in.outputs, weights + mix.weight, mix.pitch, mix.count, in.mixed, z_, mul, adds || m > 0);
    }
  }
  void unmix(const Instruction& in, View z, const T* turned, T* g) {
    multiply(z.at, z.pitch, 1L, in.outputs, turned, in.channels, in.mixed, in.channels, g, in.channels, false);
  }

  void clear(T* from, int n) {
    for (int c = 0; c < n; c += width<T>) store(from + c, Vector<T>{});
  }
  void clear_sums(int slot) {
    for (int c = 0; plan_.makes_matrices[slot] && c < plan_.dim[slot]; ++c) buffer_.sums[slot][c] = Vector<T>{};
  }

  void write_gradient(int slot, RowStream<T>& result) {
    constexpr int w = width<T>;
    const int n = plan_.dim[slot];
    T* gradient = buffer_.gradient[slot];
    for (int c = 0; plan_.makes_matrices[slot] && c < n; c += w) {
      Vector<T> lanes[w];
      for (int i = 0; i < w; ++i) lanes[i] = buffer_.sums[slot][minimum(c + i, n - 1)];
      transpose<T>(lanes);
#pragma GCC unroll 4
      for (int distance = w / 2; distance > 0; distance /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < distance; ++i) lanes[i] += lanes[i + distance];
      store(gradient + c, load(gradient + c) + lanes[0]);
    }
    const T* row = gradient;
    bool made = true;
    for (int b = 0; b < plan_.block_count[slot]; ++b) made &= plan_.blocks[slot][b].by_component;
    for (int b = 0; !made && b < plan_.block_count[slot]; ++b) {
      const PlanBlock& block = plan_.blocks[slot][b];
      row = buffer_.row;
      if (block.by_component)
        for_each_vector<T>(block.mul * block.components, [&](int c, auto part) EQUITENSOR_LAMBDA {
          part.store(buffer_.row + block.offset + c, part.load(gradient + block.offset + c));
        });
      else
        turn_block<false>(gradient + block.offset, block, buffer_.row + block.offset);
    }
    result.append(row, n);
    for (int b = 0; b < plan_.block_count[slot]; ++b) {
      const PlanBlock& block = plan_.blocks[slot][b];
      for (int c = 0; !block.gradient_made && c < block.mul * block.components; ++c) gradient[block.offset + c] = 0;
    }
    clear_sums(slot);
  }

  // Rows by themselves: in no order, or the only one. Streamed where they are several lines.
  void write_row(int slot, T* to) {
    RowStream<T> row(to, false, a_.accumulate && !a_.sum[slot]);
    write_gradient(slot, row);
  }
  void write_weight_row(T* to) {
    RowStream<T> row(to, a_.stream && !a_.weight_sum && plan_.weights >= 8 * line<T>, a_.accumulate && !a_.weight_sum);
    write_weight_gradient(row);
    row.finish();
  }

  void write_weight_gradient(RowStream<T>& result) {
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      if (in.weight < 0 || !in.weight_columns) continue;
      T* gradient = buffer_.weight_gradient + in.weight;
      const int rows = in.weights / in.weight_columns;
      transpose_matrix(gradient, rows, in.weight_columns, rows, buffer_.row, in.weight_columns);
      for (int c = 0; c < in.weights; ++c) gradient[c] = buffer_.row[c];
    }
    result.append(buffer_.weight_gradient, plan_.weights);
  }

  const WeightedPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  WeightedBuffers<T> buffer_;
  RowStream<T>* straight_ = nullptr;  // where the instruction's output goes, if it is not staged
  bool differentiates_, doubles_;  // results beside z; with directions
  const T* row_[operand_count] = {};
  const T *weight_ = nullptr, *weight_direction_ = nullptr;
  long ahead_[slot_count] = {}, weight_ahead_ = 0;  // from these rows to the next item's
  T* z_ = nullptr;                                  // where the block of z at hand is summed
  bool z_adds_ = false, gradient_adds_[2];          // to what items before have put there
};

template <class T>
void weighted(const WeightedPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  WeightedItem<T> item(plan, a, memory);
  if (a.sweep)
    item.sweep(begin, end);
  else
    item.run(begin, end);
  stream_fence();
}

template <class T>
long weighted_scratch(const WeightedPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  WeightedBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_weighted(TypedKernels<T>& k) {
  k.weighted = {weighted<T>, weighted_scratch<T>};
}
template void add_weighted(TypedKernels<float>&);
template void add_weighted(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
