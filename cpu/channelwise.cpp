// Every channel of x times the one channel of y, with a weight of its own, between degrees to 3: MACE, NequIP and SevenNet. As in cpu/weighted.cpp lanes are channels and y makes a
// matrix M_ik = sum_j C_ijk y_j a path; here C is known to the compiler, so that no loop has a length to be read, and entries of M that are zero for any y are left out. Such code is
// 0.5 to 4 kB a path, more for all of them than the first cache of instructions holds: some items go through a path together.
#include "cpu/channelwise.hpp"
#include "core/wigner3j.hpp"
#include "cpu/kernels.hpp"
#include "cpu/row_stream.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// C of a path, by the entries of M that are not zero for every y.
template <int l1, int l2, int l3>
struct Coupling {
  static constexpr int inputs = 2 * l1 + 1, components = 2 * l2 + 1, outputs = 2 * l3 + 1;
  struct Table {
    int entries = 0, entry[inputs][outputs] = {};  // entry: -1 where there is none
    alignas(64) float value[components][(inputs * outputs + line<float> - 1) / line<float> * line<float>] = {};  // M is formed by whole vectors
  };
  static constexpr Table table = [] {
    Table t;
    for (int i = 0; i < inputs; ++i)
      for (int k = 0; k < outputs; ++k) {
        bool couples = false;
        for (int j = 0; j < components; ++j) {
          const int m1 = i - l1, m2 = j - l2, m3 = k - l3;
          const double value = orders_couple(l1, m1, l2, m2, l3, m3) ? wigner3j(l1, m1, l2, m2, l3, m3) : 0;
          // Zeros that the selection rule does not show come out of Racah's sum as a few ulp.
          if (absolute(value) > 1e-13) couples = true, t.value[j][t.entries] = float(value);
        }
        t.entry[i][k] = couples ? t.entries : -1;
        t.entries += couples;
      }
    return t;
  }();
  static constexpr int entries = table.entries, padded = (entries + width<float> - 1) / width<float> * width<float>;
};

template <class C, class T>
EQUITENSOR_INLINE void make_matrix(const T* y, T coefficient, T* matrix) {
  constexpr int vectors = C::padded / width<T>;
  Vector<T> sum[vectors]{};
#pragma GCC unroll 7
  for (int j = 0; j < C::components; ++j) {
    const Vector<T> value = in_register(splat(coefficient * y[j]));
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[v] += value * load(C::table.value[j] + v * width<T>);
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) store(matrix + v * width<T>, sum[v]);
}
// body(i, k, entry) for all entries of row i of M.
template <class C, class Input, class Body>
EQUITENSOR_INLINE void for_each_entry(Input, Body&& body) {
  each(Int<0>{}, Int<C::outputs - 1>{}, [&](auto k) EQUITENSOR_LAMBDA {
    constexpr int e = C::table.entry[Input{}][decltype(k){}];
    if constexpr (e >= 0) body(k, Int<e>{});
  });
}

// A path's block of a row of z that lies in z_block.
template <class C, class T>
EQUITENSOR_INLINE void append_block(ItemGroup<T>& a, RowStream<T>& z, int lanes) {
  const T* block = a.z_block;
  if constexpr (C::outputs > 1)
    if (!a.by_component) turn_block<C::outputs, false>(block, lanes, a.z_turned), block = a.z_turned;
  z.append(block, C::outputs * lanes);
}

// z_k = w sum_i M_ik x_i
template <class C, class T>
EQUITENSOR_NOINLINE void multiply_path(const ChannelwisePath<T>& path, ItemGroup<T>& a) {
  constexpr int outputs = C::outputs;
  const int lanes = path.lanes;
  for (int n = 0; n < a.count; ++n) {
    alignas(64) T matrix[C::padded];
    make_matrix<C>(a.y[n] + path.y, path.coefficient, matrix);
    const T *const x = a.x[n] + path.x, *const w = a.w[n] + path.w, *const x_next = a.x_next[n] + path.x;
    const auto products = [&](int c, auto part, Vector<T>(&sum)[outputs]) EQUITENSOR_LAMBDA {
      __builtin_prefetch(a.w_next[n] + path.w + c, 0, 3);
      const Vector<T> weight = part.load(w + c);
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) sum[k] = Vector<T>{};
      each(Int<0>{}, Int<C::inputs - 1>{}, [&](auto i) EQUITENSOR_LAMBDA {
        if (path.first) __builtin_prefetch(x_next + i * lanes + c, 0, 3);
        Vector<T> value = part.load(x + i * lanes + c);
        if constexpr (C::inputs <= outputs) value *= weight;
        for_each_entry<C>(i, [&](auto k, auto e) EQUITENSOR_LAMBDA { sum[k] += splat(matrix[e]) * value; });
      });
#pragma GCC unroll 8
      for (int k = 0; C::inputs > outputs && k < outputs; ++k) sum[k] *= weight;
    };
    RowStream<T>& z = a.z_out[n];
    const bool by_component = a.by_component || outputs == 1;
    if (z.streams() && lanes % width<T> == 0 && by_component) {
      const int phase = z.phase();
      T* const out = z.rows();
      int c = 0;
      if (phase > 0) {
        Vector<T> sum[outputs];
        products(0, Wrapped<T>{phase, lanes}, sum);
        z.append_wrapped(sum, lanes);
        c = width<T> - phase;
      }
      for (; c + width<T> <= lanes; c += width<T>) {
        Vector<T> sum[outputs];
        products(c, Whole<T>{}, sum);
#pragma GCC unroll 8
        for (int k = 0; k < outputs; ++k) stream(out + k * lanes + c, sum[k]);
      }
      z.appended(outputs * lanes);
    } else if (z.streams() && lanes % width<T> == 0) {
      for (int c = 0; c < lanes; c += width<T>) {
        Vector<T> sum[outputs], turned[outputs];
        products(c, Whole<T>{}, sum);
        turn_vectors<outputs, false, T>(sum, turned, std::make_index_sequence<width<T>>{});
#pragma GCC unroll 8
        for (int k = 0; k < outputs; ++k) z.append(turned[k]);
      }
    } else {
      T* const block = a.z_block;
      for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
        Vector<T> sum[outputs];
        products(c, part, sum);
#pragma GCC unroll 8
        for (int k = 0; k < outputs; ++k) part.store(block + k * lanes + c, sum[k]);
      });
      append_block<C>(a, z, lanes);
    }
  }
}

// The same for edges of a node, summed over them into z_sum, in registers.
template <class C, class T>
EQUITENSOR_NOINLINE void sum_path(const ChannelwisePath<T>& path, ItemGroup<T>& a) {
  constexpr int outputs = C::outputs;
  const int lanes = path.lanes;
  alignas(64) T matrix[ItemGroup<T>::most][C::padded];
  for (int n = 0; n < a.count; ++n) make_matrix<C>(a.y[n] + path.y, path.coefficient, matrix[n]);
  T* const z = a.z_sum + path.z;
  for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> sum[outputs];
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) sum[k] = a.z_adds ? part.load(z + k * lanes + c) : Vector<T>{};
    for (int n = 0; n < a.count; ++n) {
      __builtin_prefetch(a.w_next[n] + path.w + c, 0, 2);
      const Vector<T> weight = part.load(a.w[n] + path.w + c);
      const T *const x = a.x[n] + path.x + c, *const x_next = a.x_next[n] + path.x + c;
      each(Int<0>{}, Int<C::inputs - 1>{}, [&](auto i) EQUITENSOR_LAMBDA {
        if (path.first) __builtin_prefetch(x_next + i * lanes, 0, 2);
        const Vector<T> value = weight * part.load(x + i * lanes);
        for_each_entry<C>(i, [&](auto k, auto e) EQUITENSOR_LAMBDA { sum[k] += splat(matrix[n][e]) * value; });
      });
    }
#pragma GCC unroll 8
    for (int k = 0; k < outputs; ++k) part.store(z + k * lanes + c, sum[k]);
  });
}

// z's block of a row, by component.
template <class C, class T>
EQUITENSOR_INLINE const T* block_of_z(const ChannelwisePath<T>& path, const ItemGroup<T>& a, int n) {
  const T* const block = a.z[n] + path.z;
  if constexpr (C::outputs > 1)
    if (!a.by_component) {
      turn_block<C::outputs, true>(block, path.lanes, a.z_turned);
      return a.z_turned;
    }
  return block;
}
// dy_j += sum_e C_je dM_e
template <class C, class T>
EQUITENSOR_INLINE void contract_matrix(const Vector<T>* dmatrix, T coefficient, Vector<T>* dy) {
  each(Int<0>{}, Int<C::components - 1>{}, [&](auto j) EQUITENSOR_LAMBDA {
    Vector<T> sum{};
    each(Int<0>{}, Int<C::entries - 1>{}, [&](auto e) EQUITENSOR_LAMBDA {
      constexpr float value = C::table.value[decltype(j){}][decltype(e){}];
      if constexpr (value != 0) sum += value * dmatrix[e];
    });
    dy[j] += coefficient * sum;
  });
}

// h_i = sum_k M_ik z_k; dx_i += w h_i; dw = sum_i x_i h_i; dM_ik = sum w x_i z_k. Two vectors at once share the loads of M and the loads and stores of dM.
template <class C, class T>
EQUITENSOR_NOINLINE void differentiate_path(const ChannelwisePath<T>& path, ItemGroup<T>& a) {
  constexpr int outputs = C::outputs;
  const int lanes = path.lanes;
  const bool outer = a.wants_y, adds = !path.first;
  for (int n = 0; n < a.count; ++n) {
    alignas(64) T matrix[C::padded];
    make_matrix<C>(a.y[n] + path.y, path.coefficient, matrix);
    Vector<T> dmatrix[C::entries];
#pragma GCC unroll 64
    for (int e = 0; e < C::entries; ++e) dmatrix[e] = Vector<T>{};
    const T *const x = a.x[n] + path.x, *const x_next = a.x_next[n] + path.x, *const w = a.w[n] + path.w, *const z = block_of_z<C>(path, a, n);
    T *const dx = a.dx[n] + path.x, *const dw = a.dw;
    const T* next = a.z[n] + path.z + a.z_ahead;
    const auto run = [&]<int vectors>(Int<vectors>, int first, auto part) EQUITENSOR_LAMBDA {
      Vector<T> zs[vectors][outputs], weight[vectors], dweight[vectors];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const int c = first + v * width<T>;
        __builtin_prefetch(a.w_next[n] + path.w + c, 0, 3);
        weight[v] = part.load(w + c), dweight[v] = Vector<T>{};
#pragma GCC unroll 8
        for (int k = 0; k < outputs; ++k) {
          __builtin_prefetch(next + (v * outputs + k) * width<T>, 0, 3);
          zs[v][k] = in_register(part.load(z + k * lanes + c));
        }
      }
      each(Int<0>{}, Int<C::inputs - 1>{}, [&](auto i) EQUITENSOR_LAMBDA {
        Vector<T> h[vectors]{}, p[vectors];
        for_each_entry<C>(i, [&](auto k, auto e) EQUITENSOR_LAMBDA {
          const Vector<T> m = vectors > 1 ? in_register(splat(matrix[e])) : splat(matrix[e]);
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) h[v] += m * zs[v][k];
        });
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          const int c = first + v * width<T>;
          if (path.first) __builtin_prefetch(x_next + i * lanes + c, 0, 3);
          const Vector<T> value = part.load(x + i * lanes + c);
          T* const to = dx + i * lanes + c;
          part.store(to, (adds ? part.load(to) : Vector<T>{}) + weight[v] * h[v]);
          dweight[v] += value * h[v], p[v] = weight[v] * value;
        }
        if (!outer) return;
        for_each_entry<C>(i, [&](auto k, auto e) EQUITENSOR_LAMBDA {
          Vector<T> sum = dmatrix[e];
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) sum += p[v] * zs[v][k];
          dmatrix[e] = sum;
        });
      });
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) part.store(dw + first + v * width<T>, dweight[v]);
      next += vectors * outputs * width<T>;
    };
    int c = 0;
    if constexpr (tiles_at_once == 2)
      for (; c + 2 * width<T> <= lanes; c += 2 * width<T>) run(Int<2>{}, c, Whole<T>{});
    for (; c + width<T> <= lanes; c += width<T>) run(Int<1>{}, c, Whole<T>{});
    if (c < lanes) run(Int<1>{}, c, Part<T>{lanes - c});
    if (a.wants_weight) a.w_out[n].append(dw, lanes);
    if (outer) contract_matrix<C>(dmatrix, path.coefficient, a.dy[n] + path.y);
  }
}

// With directions: p_i = w ax_i + aw x_i, q_i = w x_i; z_k = sum_i M_ik p_i + M'_ik q_i; h = M z, h' = M' z; dx_i += aw h_i + w h'_i; dw = sum_i ax_i h_i + x_i h'_i; dM_ik = sum p_i z_k.
template <class C, class T>
EQUITENSOR_NOINLINE void direct_path(const ChannelwisePath<T>& path, ItemGroup<T>& a) {
  constexpr int outputs = C::outputs;
  const int lanes = path.lanes;
  const bool adds = !path.first;
  for (int n = 0; n < a.count; ++n) {
    alignas(64) T matrix[C::padded];
    alignas(64) T matrix_direction[C::padded];
    make_matrix<C>(a.y[n] + path.y, path.coefficient, matrix);
    if (a.ay[n])
      make_matrix<C>(a.ay[n] + path.y, path.coefficient, matrix_direction);
    else
      for (T& entry : matrix_direction) entry = 0;
    Vector<T> dmatrix[C::entries];
#pragma GCC unroll 64
    for (int e = 0; e < C::entries; ++e) dmatrix[e] = Vector<T>{};
    const T *const x = a.x[n] + path.x, *const ax = a.ax[n] + path.x, *const w = a.w[n] + path.w, *const aw = a.aw[n] ? a.aw[n] + path.w : a.zeros;
    const T *const x_next = a.x_next[n] + path.x, *const ax_next = a.ax_next[n] + path.x;
    const T* const z = block_of_z<C>(path, a, n);
    T *const dx = a.dx[n] + path.x, *const dw = a.dw, *const out = a.z_sum ? a.z_sum + path.z : a.z_block;
    const bool z_adds = a.z_sum && (a.z_adds || n > 0);
    const T* next = a.z[n] + path.z + a.z_ahead;
    for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
      __builtin_prefetch(a.w_next[n] + path.w + c, 0, 3);
      if (a.aw[n]) __builtin_prefetch(a.aw_next[n] + path.w + c, 0, 3);
      const Vector<T> weight = part.load(w + c), aweight = part.load(aw + c);
      Vector<T> sum[outputs]{}, zs[outputs], dweight{};
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) {
        __builtin_prefetch(next + k * width<T>, 0, 3);
        zs[k] = in_register(part.load(z + k * lanes + c));
      }
      next += outputs * width<T>;
      each(Int<0>{}, Int<C::inputs - 1>{}, [&](auto i) EQUITENSOR_LAMBDA {
        if (path.first) __builtin_prefetch(x_next + i * lanes + c, 0, 3);
        if (path.first) __builtin_prefetch(ax_next + i * lanes + c, 0, 3);
        const Vector<T> value = part.load(x + i * lanes + c), avalue = part.load(ax + i * lanes + c);
        const Vector<T> p = weight * avalue + aweight * value, q = weight * value;
        Vector<T> h{}, h_direction{};
        for_each_entry<C>(i, [&](auto k, auto e) EQUITENSOR_LAMBDA {
          const Vector<T> m = in_register(splat(matrix[e])), md = in_register(splat(matrix_direction[e]));
          sum[k] += m * p;
          sum[k] += md * q;
          h += m * zs[k];
          h_direction += md * zs[k];
          dmatrix[e] += p * zs[k];
        });
        T* const to = dx + i * lanes + c;
        Vector<T> gradient = adds ? part.load(to) : Vector<T>{};
        gradient += aweight * h;
        gradient += weight * h_direction;
        part.store(to, gradient);
        dweight += avalue * h;
        dweight += value * h_direction;
      });
      part.store(dw + c, dweight);
#pragma GCC unroll 8
      for (int k = 0; k < outputs; ++k) part.store(out + k * lanes + c, z_adds ? part.load(out + k * lanes + c) + sum[k] : sum[k]);
    });
    if (a.wants_z && !a.z_sum) append_block<C>(a, a.z_out[n], lanes);
    if (a.wants_weight) a.w_out[n].append(dw, lanes);
    if (a.wants_y) contract_matrix<C>(dmatrix, path.coefficient, a.dy[n] + path.y);
  }
}

template <class T>
PathKernel<T> path_kernel(int l1, int l2, int l3, PathPass pass) {
  PathKernel<T> found = nullptr;
  each(Int<0>{}, Int<channelwise_degree>{}, [&](auto d1) {
    each(Int<0>{}, Int<channelwise_degree>{}, [&](auto d2) {
      each(Int<0>{}, Int<channelwise_degree>{}, [&](auto d3) {
        constexpr int a = decltype(d1){}, b = decltype(d2){}, c = decltype(d3){};
        if constexpr (absolute(a - b) <= c && c <= a + b) {
          using C = Coupling<a, b, c>;
          if (a == l1 && b == l2 && c == l3)
            switch (pass) {
              case PathPass::forward: found = multiply_path<C, T>; break;
              case PathPass::sum: found = sum_path<C, T>; break;
              case PathPass::backward: found = differentiate_path<C, T>; break;
              case PathPass::double_backward: found = direct_path<C, T>; break;
            }
        }
      });
    });
  });
  return found;
}

template <class T>
void make_paths(const WeightedPlan<T>& plan, PathPass pass, ChannelwisePath<T>* paths) {
  for (int i = 0; i < plan.instruction_count; ++i) {
    const PlanInstruction<T>& in = plan.instructions[i];
    paths[i] = {path_kernel<T>(in.inputs / 2, in.matrix_components / 2, in.outputs / 2, pass),
                plan.blocks[0][in.lane_block].offset,
                plan.blocks[1][in.matrix_block].offset,
                plan.blocks[2][in.out_block].offset,
                in.weight,
                in.segments[0].lanes,
                in.coefficient,
                in.asks_ahead};
  }
}

template <class T>
struct ChannelwiseBuffers {
  static constexpr int most = ItemGroup<T>::most;
  ChannelwisePath<T>* paths;
  T *x[most], *ax[most], *dx[most];
  Vector<T>* dy[most];
  T *z_block, *z_turned, *dw, *zeros, *row;
  ChannelwiseBuffers(const WeightedPlan<T>& plan, Scratch<T>& scratch) {
    const auto take = [&](long n) { return reinterpret_cast<T*>(scratch.take((n + width<T> - 1) / width<T> + 1)); };
    paths = take_paths(plan, scratch);
    for (int n = 0; n < most; ++n) x[n] = take(plan.dim[0]), ax[n] = take(plan.dim[0]), dx[n] = take(plan.dim[0]), dy[n] = scratch.take(plan.dim[1]);
    z_block = take(plan.max_block), z_turned = take(plan.max_block);
    dw = take(plan.max_lanes), zeros = take(plan.max_lanes), row = take(maximum(plan.dim[0], plan.dim[1]));
  }
};

template <class T>
class ChannelwiseItems {
 public:
  ChannelwiseItems(const WeightedPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    differentiates_ = wants(0) || wants(1) || a.weight_out;
    doubles_ = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
    make_paths(plan, doubles_ ? PathPass::double_backward : differentiates_ ? PathPass::backward : PathPass::forward, buffer_.paths);
    group_.by_component = by_component(2), x_by_component_ = by_component(0);
    group_.wants_y = wants(1), group_.wants_weight = a.weight_out, group_.wants_z = wants(2);
    group_.z_block = buffer_.z_block, group_.z_turned = buffer_.z_turned, group_.dw = buffer_.dw, group_.zeros = buffer_.zeros;
    for (int c = 0; c < plan.max_lanes; ++c) buffer_.zeros[c] = 0;
    for (int n = 0; n < ItemGroup<T>::most; ++n) {
      group_.ax[n] = buffer_.ax[n], group_.dx[n] = buffer_.dx[n], group_.dy[n] = buffer_.dy[n];
      for (int c = 0; doubles_ && !a.in[x_direction] && c < plan.dim[0]; ++c) buffer_.ax[n][c] = 0;
      for (int c = 0; differentiates_ && c < plan.dim[0]; ++c) buffer_.dx[n][c] = 0;  // of blocks without a path
    }
  }

  void run(long begin, long end) {
    constexpr int most = ItemGroup<T>::most;
    RowStream<T> x = writer(wants(0) ? a_.out[0] : nullptr, begin, plan_.dim[0]), y = writer(wants(1) ? a_.out[1] : nullptr, begin, plan_.dim[1]);
    group_.z_out[0] = writer(wants(2) ? a_.out[2] : nullptr, begin, plan_.dim[2]);
    group_.w_out[0] = writer(a_.weight_out, begin, plan_.weights);
    for (long item = begin; item < end;) {
      const int count = int(end - item < most ? end - item : most);
      const bool last = item + count == end;
      take(item, count, last || item + 2 * count > end ? 0 : count);
      for (int i = 0; i < plan_.instruction_count; ++i) buffer_.paths[i].run(buffer_.paths[i], group_);
      for (int n = 0; n < count; ++n) {
        if (wants(0)) write_x(n, x);
        if (wants(1)) write_y(n, y);
      }
      for (RowStream<T>* rows : {group_.z_out, group_.w_out}) {
        for (int n = 0; n + 1 < count; ++n) rows[n].join(rows[n + 1]);
        rows[0] = rows[count - 1];
      }
      item += count;
    }
    for (RowStream<T>* result : {&x, &y, &group_.z_out[0], &group_.w_out[0]}) result->finish();
  }

 private:
  bool wants(int slot) const { return a_.terms.writes[slot]; }
  bool by_component(int slot) const {
    bool all = true;
    for (int b = 0; b < plan_.block_count[slot]; ++b) all &= plan_.blocks[slot][b].by_component;
    return all;
  }
  RowStream<T> writer(T* to, long item, long dim) const { return {to ? to + item * dim : nullptr, a_.stream, a_.accumulate}; }

  void take(long item, int count, int ahead) {
    group_.count = count;
    group_.z_ahead = ahead * a_.stride[2];
    for (int n = 0; n < count; ++n) {
      const long at = item + n;
      const T* const x = a_.in[x_operand] + at * a_.stride[0];
      group_.x[n] = bring(x, buffer_.x[n]), group_.x_next[n] = x + ahead * a_.stride[0];
      const T* const ax = a_.in[x_direction] ? a_.in[x_direction] + at * a_.stride[0] : buffer_.ax[n];
      if (a_.in[x_direction]) bring(ax, buffer_.ax[n]);
      group_.ax_next[n] = a_.in[x_direction] ? ax + ahead * a_.stride[0] : ax;
      group_.y[n] = a_.in[y_operand] + at * a_.stride[1];
      group_.ay[n] = a_.in[y_direction] ? a_.in[y_direction] + at * a_.stride[1] : nullptr;
      group_.w[n] = a_.weight + at * a_.weight_stride, group_.w_next[n] = group_.w[n] + ahead * a_.weight_stride;
      group_.aw[n] = a_.weight_direction ? a_.weight_direction + at * a_.weight_stride : nullptr;
      if (group_.aw[n]) group_.aw_next[n] = group_.aw[n] + ahead * a_.weight_stride;
      group_.z[n] = a_.in[z_operand] ? a_.in[z_operand] + at * a_.stride[2] : nullptr;
      for (int c = 0; differentiates_ && c < plan_.dim[1]; ++c) buffer_.dy[n][c] = Vector<T>{};
      for (const T* row : {group_.y[n], group_.ay[n]})
        for (int c = 0; row && c < plan_.dim[1]; c += line<T>) __builtin_prefetch(row + ahead * a_.stride[1] + c, 0, 3);
      if (n == 0) continue;
      if (wants(2)) group_.z_out[n] = writer(a_.out[2], at, plan_.dim[2]), group_.z_out[n].follow();
      if (a_.weight_out) group_.w_out[n] = writer(a_.weight_out, at, plan_.weights), group_.w_out[n].follow();
    }
  }
  // A row of x as the kernels want it. Forward, its vectors are read where z's begin, and a copy would gain nothing.
  const T* bring(const T* row, T* to) const {
    if (x_by_component_ && !differentiates_) return row;
    turn_row<true>(plan_.blocks[0], plan_.block_count[0], row, to);
    return to;
  }

  void write_x(int n, RowStream<T>& result) {
    if (!x_by_component_) turn_row<false>(plan_.blocks[0], plan_.block_count[0], buffer_.dx[n], buffer_.row);
    result.append(x_by_component_ ? buffer_.dx[n] : buffer_.row, plan_.dim[0]);
  }
  void write_y(int n, RowStream<T>& result) {
    const int dim = plan_.dim[1];
    for (int c = 0; c < dim; c += width<T>) store(buffer_.row + c, add_up<T>(buffer_.dy[n], c, dim));
    result.append(buffer_.row, dim);
  }

  const WeightedPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  ChannelwiseBuffers<T> buffer_;
  ItemGroup<T> group_;
  bool differentiates_, doubles_, x_by_component_;
};

template <class T>
bool is_channelwise(const WeightedPlan<T>& plan, const Operands<T>& a) {
  const bool differentiates = a.terms.writes[0] || a.terms.writes[1] || a.weight_out;
  const bool doubles = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
  const bool has_all = a.in[x_operand] && a.in[y_operand] && a.weight && (!differentiates || a.in[z_operand]);
  const bool sums = a.sum[0] || a.sum[1] || a.sum[2] || a.weight_sum;
  constexpr int least = width<T>;  // see RowStream::follow
  return plan.channelwise && plan.dim[2] >= least && plan.weights >= least && !a.sweep && !sums && has_all && (differentiates || (!doubles && a.terms.writes[2])) && (doubles || !differentiates || !a.terms.writes[2]);
}
template <class T>
void channelwise(const WeightedPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  ChannelwiseItems<T>(plan, a, memory).run(begin, end);
}
template <class T>
long channelwise_scratch(const WeightedPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  ChannelwiseBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

#if defined(__AVX2__) && !defined(EQUITENSOR_COUNT)  // has_constants
template void make_paths(const WeightedPlan<float>&, PathPass, ChannelwisePath<float>*);
template bool is_channelwise(const WeightedPlan<float>&, const Operands<float>&);
template void channelwise(const WeightedPlan<float>&, const Operands<float>&, long, long, void*);
template long channelwise_scratch(const WeightedPlan<float>&);
#endif

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
