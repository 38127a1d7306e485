// Clebsch-Gordan tensor product. For every pair of irreps: the outer product of its components once, then one sparse map to
// all of its l3; backwards the transposed map once, then a matrix-vector product with either operand.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
struct ClebschGordanBuffers {
  Vector<T> *x, *y, *z, *dx, *dy, *dz, *products, *compact;
  ClebschGordanBuffers(const ClebschGordanPlan<T>& plan, Scratch<T>& scratch)
      : x(scratch.take(plan.dim1)),
        y(scratch.take(plan.dim2)),
        z(scratch.take(RowWriter<T>::buffer_vectors(plan.dim_out))),
        dx(scratch.take(RowWriter<T>::buffer_vectors(plan.dim1))),
        dy(scratch.take(RowWriter<T>::buffer_vectors(plan.dim2))),
        dz(scratch.take(plan.dim_out)),
        products(scratch.take(plan.max_products)),
        compact(scratch.take(plan.max_compact)) {}
};

// Calls body(u, v) for the channels of both inputs that the pair connects.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_channel(const PlanPair<T>& pair, Body&& body) {
  for (int u = 0; u < pair.mul1; ++u) {
    if (pair.same_channel)
      body(u, u);
    else
      for (int v = 0; v < pair.mul2; ++v) body(u, v);
  }
}

template <class T>
void clebsch_gordan_forward(const ClebschGordanPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  ClebschGordanBuffers<T> buffer(plan, scratch);
  RowWriter<T> z(a.z_out, plan.dim_out, buffer.z);
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    load_rows(a.x, a.x_stride, plan.dim1, tile, buffer.x);
    load_rows(a.y, a.y_stride, plan.dim2, tile, buffer.y);
    for (int i = 0; i < plan.pair_count; ++i) {
      const PlanPair<T>& pair = plan.pairs[i];
      for_each_channel(pair, [&](int u, int v) {
        const Vector<T>* x = buffer.x + pair.x_offset + u * pair.x_channel;
        const Vector<T>* y = buffer.y + pair.y_offset + v * pair.y_channel;
        for (int r = 0; r < pair.rows; ++r) {
          const Vector<T> xr = x[pair.x_component[pair.row_begin[r]]];
          for (int p = pair.row_begin[r]; p < pair.row_begin[r + 1]; ++p) buffer.products[p] = xr * y[pair.y_component[p]];
        }
        apply(pair.forward, buffer.products, pair.direct ? z.tile() : buffer.compact);
        if (pair.direct) return;
        for (int s = 0; s < pair.segment_count; ++s) {
          const PlanSegment& segment = pair.segments[s];
          Vector<T>* to = z.tile() + segment.output.first + u * segment.u_step + v * segment.v_step;
          for (int k = 0; k < segment.count; ++k) to[k * segment.output.step] = buffer.compact[segment.compact + k];
        }
      });
    }
    z.write(tile, first, last);
  });
  stream_fence();
}

template <class T>
void clebsch_gordan_backward(const ClebschGordanPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  ClebschGordanBuffers<T> buffer(plan, scratch);
  RowWriter<T> x_out(a.x_out, plan.dim1, buffer.dx, a.sum_x), y_out(a.y_out, plan.dim2, buffer.dy, a.sum_y);
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    load_rows(a.x, a.x_stride, plan.dim1, tile, buffer.x);
    load_rows(a.y, a.y_stride, plan.dim2, tile, buffer.y);
    load_rows(a.z, a.z_stride, plan.dim_out, tile, buffer.dz);
    for (int c = 0; c < plan.dim1; ++c) x_out.tile()[c] = Vector<T>{};
    for (int c = 0; c < plan.dim2; ++c) y_out.tile()[c] = Vector<T>{};
    for (int i = 0; i < plan.pair_count; ++i) {
      const PlanPair<T>& pair = plan.pairs[i];
      for_each_channel(pair, [&](int u, int v) {
        const Vector<T>* dz = buffer.dz;
        if (!pair.direct) {
          for (int s = 0; s < pair.segment_count; ++s) {
            const PlanSegment& segment = pair.segments[s];
            const Vector<T>* from = buffer.dz + segment.output.first + u * segment.u_step + v * segment.v_step;
            for (int k = 0; k < segment.count; ++k) buffer.compact[segment.compact + k] = from[k * segment.output.step];
          }
          dz = buffer.compact;
        }
        apply(pair.backward, dz, buffer.products);
        const int x_first = pair.x_offset + u * pair.x_channel, y_first = pair.y_offset + v * pair.y_channel;
        const Vector<T>*x = buffer.x + x_first, *y = buffer.y + y_first;
        Vector<T>*dx = x_out.tile() + x_first, *dy = y_out.tile() + y_first;
        for (int r = 0; r < pair.rows; ++r) {
          const int c = pair.x_component[pair.row_begin[r]];
          const Vector<T> xr = x[c];
          Vector<T> sum = dx[c];
          for (int p = pair.row_begin[r]; p < pair.row_begin[r + 1]; ++p) {
            const Vector<T> g = buffer.products[p];
            sum += g * y[pair.y_component[p]];
            dy[pair.y_component[p]] += g * xr;
          }
          dx[c] = sum;
        }
      });
    }
    x_out.write(tile, first, last);
    y_out.write(tile, first, last);
  });
  x_out.finish();
  y_out.finish();
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
