// Matrix tensor product over a direct sum of irreps, by its paths (core/matrix_block.hpp): products of components, a chunk at a time, and
// a map that adds them up in the outputs; backwards the transposed map, then the gradients through the products.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/products.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Of every buffer one a tile, one behind the other.
template <class T>
struct MatrixBlockBuffers {
  Vector<T> *tile[3], *out[3], *in_channel[3], *out_channel[3], *products;
  MatrixBlockBuffers(const MatrixBlockPlan<T>& plan, Scratch<T>& scratch) {
    for (int s = 0; s < 3; ++s) {
      const PlanSlot& slot = plan.slots[s];
      tile[s] = scratch.take(tiles_at_once * slot.dim);
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(slot.dim, tiles_at_once));
      in_channel[s] = scratch.take(tiles_at_once * slot.components);
      out_channel[s] = scratch.take(tiles_at_once * slot.components);
    }
    products = scratch.take(tiles_at_once * plan.max_products);
  }
};

// Components of a channel of every tile, one tile's `pitch` vectors behind the other's.
template <class T>
struct Channel {
  Vector<T>* first;
  long pitch;
  EQUITENSOR_INLINE Vector<T>* operator[](int tile) const { return first + tile * pitch; }
};
template <int tiles, class T>
inline Channel<T> input_channel(const MatrixBlockPlan<T>& plan, const MatrixBlockBuffers<T>& buffer, int s, int u) {
  const PlanSlot& slot = plan.slots[s];
  if (slot.direct) return {buffer.tile[s], slot.dim};
  const Channel<T> channel{buffer.in_channel[s], slot.components};
  for (int t = 0; t < tiles; ++t) gather_channel<T>(slot, buffer.tile[s] + t * slot.dim, u, channel[t]);
  return channel;
}
// Zeros, to be added to.
template <int tiles, class T>
inline Channel<T> output_channel(const MatrixBlockPlan<T>& plan, const MatrixBlockBuffers<T>& buffer, RowWriter<T>& out, int s) {
  const PlanSlot& slot = plan.slots[s];
  const Channel<T> channel = slot.direct ? Channel<T>{out.tile(), out.slot_vectors()} : Channel<T>{buffer.out_channel[s], slot.components};
  for (int t = 0; t < tiles; ++t)
    for (int c = 0; c < slot.components; ++c) channel[t][c] = Vector<T>{};
  return channel;
}
template <int tiles, class T>
inline void put_channel(const MatrixBlockPlan<T>& plan, RowWriter<T>& out, int s, int u, const Channel<T>& channel) {
  for (int t = 0; t < tiles; ++t) scatter_channel<T>(plan.slots[s], out.tile(t), u, channel[t]);
}

template <int tiles, class T>
inline void multiply(const MatrixBlockPlan<T>& plan, MatrixBlockBuffers<T>& buffer, RowWriter<T>& z_out) {
  for (int u = 0; u < plan.mul; ++u) {
    const Channel<T> x = input_channel<tiles>(plan, buffer, 0, u), y = input_channel<tiles>(plan, buffer, 1, u);
    const Channel<T> z = output_channel<tiles>(plan, buffer, z_out, 2), products{buffer.products, plan.max_products};
    for (int i = 0; i < plan.chunk_count; ++i) {
      const PlanProducts<T>& chunk = plan.chunks[i];
      for (int t = 0; t < tiles; ++t) multiply_components(chunk, x[t], y[t], products[t]);
      apply<tiles, true>(chunk.forward, products.first, z.first, products.pitch, z.pitch);
    }
    put_channel<tiles>(plan, z_out, 2, u, z);
  }
}
template <int tiles, class T>
inline void multiply_backward(const MatrixBlockPlan<T>& plan, MatrixBlockBuffers<T>& buffer, RowWriter<T>& x_out, RowWriter<T>& y_out) {
  for (int u = 0; u < plan.mul; ++u) {
    const Channel<T> x = input_channel<tiles>(plan, buffer, 0, u), y = input_channel<tiles>(plan, buffer, 1, u);
    const Channel<T> dz = input_channel<tiles>(plan, buffer, 2, u), products{buffer.products, plan.max_products};
    const Channel<T> dx = output_channel<tiles>(plan, buffer, x_out, 0), dy = output_channel<tiles>(plan, buffer, y_out, 1);
    for (int i = 0; i < plan.chunk_count; ++i) {
      const PlanProducts<T>& chunk = plan.chunks[i];
      apply<tiles>(chunk.backward, dz.first, products.first, dz.pitch, products.pitch);
      for (int t = 0; t < tiles; ++t) add_gradients(chunk, products[t], x[t], y[t], dx[t], dy[t]);
    }
    put_channel<tiles>(plan, x_out, 0, u, dx);
    put_channel<tiles>(plan, y_out, 1, u, dy);
  }
}

template <class T>
void matrix_block_forward(const MatrixBlockPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBlockBuffers<T> buffer(plan, scratch);
  const int dim1 = plan.slots[0].dim, dim2 = plan.slots[1].dim;
  RowWriter<T> z(a.z_out, plan.slots[2].dim, buffer.out[2], false, tiles_at_once);
  for_each_tiles<T, tiles_at_once>(begin, end, a.stream, [&](const Tile* tiles, int count, bool first, bool last) {
    for (int t = 0; t < count; ++t) {
      load_rows(a.x, a.x_stride, dim1, tiles[t], buffer.tile[0] + t * dim1);
      load_rows(a.y, a.y_stride, dim2, tiles[t], buffer.tile[1] + t * dim2);
    }
    if (count == tiles_at_once)
      multiply<tiles_at_once>(plan, buffer, z);
    else
      multiply<1>(plan, buffer, z);
    for (int t = 0; t < count; ++t) z.write(tiles[t], first && t == 0, last && t + 1 == count, t);
  });
  stream_fence();
}

template <class T>
void matrix_block_backward(const MatrixBlockPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBlockBuffers<T> buffer(plan, scratch);
  const int dim1 = plan.slots[0].dim, dim2 = plan.slots[1].dim, dim_out = plan.slots[2].dim;
  RowWriter<T> x_out(a.x_out, dim1, buffer.out[0], a.sum_x, tiles_at_once);
  RowWriter<T> y_out(a.y_out, dim2, buffer.out[1], a.sum_y, tiles_at_once);
  for_each_tiles<T, tiles_at_once>(begin, end, a.stream, [&](const Tile* tiles, int count, bool first, bool last) {
    for (int t = 0; t < count; ++t) {
      load_rows(a.x, a.x_stride, dim1, tiles[t], buffer.tile[0] + t * dim1);
      load_rows(a.y, a.y_stride, dim2, tiles[t], buffer.tile[1] + t * dim2);
      load_rows(a.z, a.z_stride, dim_out, tiles[t], buffer.tile[2] + t * dim_out);
    }
    if (count == tiles_at_once)
      multiply_backward<tiles_at_once>(plan, buffer, x_out, y_out);
    else
      multiply_backward<1>(plan, buffer, x_out, y_out);
    for (int t = 0; t < count; ++t) {
      x_out.write(tiles[t], first && t == 0, last && t + 1 == count, t);
      y_out.write(tiles[t], first && t == 0, last && t + 1 == count, t);
    }
  });
  x_out.finish();
  y_out.finish();
  stream_fence();
}

template <class T>
long matrix_block_scratch(const MatrixBlockPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  MatrixBlockBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_matrix_block(TypedKernels<T>& k) {
  k.matrix_block_forward = matrix_block_forward<T>;
  k.matrix_block_backward = matrix_block_backward<T>;
  k.matrix_block_scratch = matrix_block_scratch<T>;
}
template void add_matrix_block(TypedKernels<float>&);
template void add_matrix_block(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
