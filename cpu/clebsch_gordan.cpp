// Clebsch-Gordan tensor product. For every pair of irreps: the outer product of its components once, then one sparse map to
// all of its l3; backwards the transposed map once, then a matrix-vector product with either operand.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/products.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Of every buffer one a tile, one behind the other.
template <class T>
struct ClebschGordanBuffers {
  Vector<T> *x, *y, *z, *dx, *dy, *dz, *products, *compact;
  ClebschGordanBuffers(const ClebschGordanPlan<T>& plan, Scratch<T>& scratch)
      : x(scratch.take(tiles_at_once * plan.dim1)),
        y(plan.square ? x : scratch.take(tiles_at_once * plan.dim2)),
        z(scratch.take(RowWriter<T>::buffer_vectors(plan.dim_out, tiles_at_once))),
        dx(scratch.take(RowWriter<T>::buffer_vectors(plan.dim1, tiles_at_once))),
        dy(scratch.take(RowWriter<T>::buffer_vectors(plan.dim2, tiles_at_once))),
        dz(scratch.take(tiles_at_once * plan.dim_out)),
        products(scratch.take(tiles_at_once * plan.max_products)),
        compact(scratch.take(tiles_at_once * plan.max_compact)) {}
};

// Calls body(u, v) for the channels of both inputs that the pair connects.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_channel(const PlanPair<T>& pair, Body&& body) {
  for (int u = 0; u < pair.mul1; ++u) {
    if (pair.connection == Connection::same)
      body(u, u);
    else
      for (int v = pair.connection == Connection::upper ? u + 1 : 0; v < pair.mul2; ++v) body(u, v);
  }
}

// Calls copy(compact, output) for the compact outputs of one channel and their components in the row.
template <class T, class Copy>
EQUITENSOR_INLINE void for_each_output(const PlanPair<T>& pair, int u, int v, Copy&& copy) {
  const int shrunk = u * (u - 1) / 2;
  for (int s = 0; s < pair.segment_count; ++s) {
    const PlanSegment& segment = pair.segments[s];
    const int first = segment.output.first + u * segment.u_step - shrunk * segment.u_shrink + v * segment.v_step;
    for (int k = 0; k < segment.count; ++k) copy(segment.compact + k, first + k * segment.output.step);
  }
}

template <int tiles, class T>
inline void multiply_pair(const ClebschGordanPlan<T>& plan, const PlanPair<T>& pair, ClebschGordanBuffers<T>& buffer,
                          RowWriter<T>& z) {
  for_each_channel(pair, [&](int u, int v) {
    for (int t = 0; t < tiles; ++t) {
      const Vector<T>* x = buffer.x + t * plan.dim1 + pair.x_offset + u * pair.x_channel;
      const Vector<T>* y = buffer.y + t * plan.dim2 + pair.y_offset + v * pair.y_channel;
      multiply_components(pair, x, y, buffer.products + t * plan.max_products);
    }
    if (pair.direct) return apply<tiles>(pair.forward, buffer.products, z.tile(), plan.max_products, z.slot_vectors());
    apply<tiles>(pair.forward, buffer.products, buffer.compact, plan.max_products, plan.max_compact);
    for (int t = 0; t < tiles; ++t)
      for_each_output(pair, u, v, [&](int compact, int output) { z.tile(t)[output] = buffer.compact[t * plan.max_compact + compact]; });
  });
}

template <int tiles, class T>
inline void multiply_pair_backward(const ClebschGordanPlan<T>& plan, const PlanPair<T>& pair, ClebschGordanBuffers<T>& buffer,
                                   RowWriter<T>& x_out, RowWriter<T>& y_out) {
  for_each_channel(pair, [&](int u, int v) {
    if (pair.direct) {
      apply<tiles>(pair.backward, buffer.dz, buffer.products, plan.dim_out, plan.max_products);
    } else {
      for (int t = 0; t < tiles; ++t)
        for_each_output(pair, u, v, [&](int compact, int output) {
          buffer.compact[t * plan.max_compact + compact] = buffer.dz[t * plan.dim_out + output];
        });
      apply<tiles>(pair.backward, buffer.compact, buffer.products, plan.max_compact, plan.max_products);
    }
    const int x_first = pair.x_offset + u * pair.x_channel, y_first = pair.y_offset + v * pair.y_channel;
    for (int t = 0; t < tiles; ++t) {
      const Vector<T>*x = buffer.x + t * plan.dim1 + x_first, *y = buffer.y + t * plan.dim2 + y_first;
      add_gradients(pair, buffer.products + t * plan.max_products, x, y, x_out.tile(t) + x_first, y_out.tile(t) + y_first);
    }
  });
}

template <class T>
void clebsch_gordan_forward(const ClebschGordanPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  ClebschGordanBuffers<T> buffer(plan, scratch);
  RowWriter<T> z(a.z_out, plan.dim_out, buffer.z, false, tiles_at_once);
  for_each_tiles<T, tiles_at_once>(begin, end, a.stream, [&](const Tile* tiles, int count, bool first, bool last) {
    for (int t = 0; t < count; ++t) {
      load_rows(a.x, a.x_stride, plan.dim1, tiles[t], buffer.x + t * plan.dim1);
      if (!plan.square) load_rows(a.y, a.y_stride, plan.dim2, tiles[t], buffer.y + t * plan.dim2);
    }
    for (int i = 0; i < plan.pair_count; ++i) {
      if (count == tiles_at_once)
        multiply_pair<tiles_at_once>(plan, plan.pairs[i], buffer, z);
      else
        multiply_pair<1>(plan, plan.pairs[i], buffer, z);
    }
    for (int t = 0; t < count; ++t) z.write(tiles[t], first && t == 0, last && t + 1 == count, t);
  });
  stream_fence();
}

template <class T>
void clebsch_gordan_backward(const ClebschGordanPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  ClebschGordanBuffers<T> buffer(plan, scratch);
  RowWriter<T> x_out(a.x_out, plan.dim1, buffer.dx, a.sum_x, tiles_at_once);
  RowWriter<T> own_y_out(a.y_out, plan.dim2, buffer.dy, a.sum_y, tiles_at_once);
  RowWriter<T>& y_out = plan.square ? x_out : own_y_out;
  for_each_tiles<T, tiles_at_once>(begin, end, a.stream, [&](const Tile* tiles, int count, bool first, bool last) {
    for (int t = 0; t < count; ++t) {
      load_rows(a.x, a.x_stride, plan.dim1, tiles[t], buffer.x + t * plan.dim1);
      if (!plan.square) load_rows(a.y, a.y_stride, plan.dim2, tiles[t], buffer.y + t * plan.dim2);
      load_rows(a.z, a.z_stride, plan.dim_out, tiles[t], buffer.dz + t * plan.dim_out);
      for (int c = 0; c < plan.dim1; ++c) x_out.tile(t)[c] = Vector<T>{};
      for (int c = 0; c < plan.dim2; ++c) y_out.tile(t)[c] = Vector<T>{};
    }
    for (int i = 0; i < plan.pair_count; ++i) {
      if (count == tiles_at_once)
        multiply_pair_backward<tiles_at_once>(plan, plan.pairs[i], buffer, x_out, y_out);
      else
        multiply_pair_backward<1>(plan, plan.pairs[i], buffer, x_out, y_out);
    }
    for (int t = 0; t < count; ++t) {
      x_out.write(tiles[t], first && t == 0, last && t + 1 == count, t);
      own_y_out.write(tiles[t], first && t == 0, last && t + 1 == count, t);
    }
  });
  x_out.finish();
  own_y_out.finish();
  stream_fence();
}

template <class T>
long clebsch_gordan_scratch(const ClebschGordanPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  ClebschGordanBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_clebsch_gordan(TypedKernels<T>& k) {
  k.clebsch_gordan_forward = clebsch_gordan_forward<T>;
  k.clebsch_gordan_backward = clebsch_gordan_backward<T>;
  k.clebsch_gordan_scratch = clebsch_gordan_scratch<T>;
}
template void add_clebsch_gordan(TypedKernels<float>&);
template void add_clebsch_gordan(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
