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
  Vector<T> *tile[operand_count], *in_channel[operand_count], *out[slot_count], *out_channel[slot_count], *products;
  MatrixBlockBuffers(const MatrixBlockPlan<T>& plan, Scratch<T>& scratch) {
    for (int o = 0; o < operand_count; ++o) {
      const PlanSlot& slot = plan.slots[slot_of(o)];
      tile[o] = scratch.take(tiles_at_once * slot.dim);
      in_channel[o] = scratch.take(tiles_at_once * slot.components);
    }
    for (int s = 0; s < slot_count; ++s) {
      const PlanSlot& slot = plan.slots[s];
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(slot.dim, tiles_at_once));
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
inline Channel<T> input_channel(const MatrixBlockPlan<T>& plan, const MatrixBlockBuffers<T>& buffer, int o, int u) {
  const PlanSlot& slot = plan.slots[slot_of(o)];
  if (slot.direct) return {buffer.tile[o], slot.dim};
  const Channel<T> channel{buffer.in_channel[o], slot.components};
  for (int t = 0; t < tiles; ++t) gather_channel<T>(slot, buffer.tile[o] + t * slot.dim, u, channel[t]);
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
inline void contract_channel(const MatrixBlockPlan<T>& plan, const Terms& terms, MatrixBlockBuffers<T>& buffer, RowWriter<T>* writers, int u) {
  Channel<T> in[operand_count]{}, out[slot_count]{};
  const Channel<T> products{buffer.products, plan.max_products};
  for (int o = 0; o < operand_count; ++o)
    if (terms.reads[o]) in[o] = input_channel<tiles>(plan, buffer, o, u);
  for (int s = 0; s < slot_count; ++s)
    if (terms.writes[s]) out[s] = output_channel<tiles>(plan, buffer, writers[s], s);
  // The operands whose product with dz goes into the gradient of the other one.
  Channel<T> x{}, y{};
  for (int i = 0; i < terms.count; ++i) {
    if (terms.term[i].out == 0) y = in[terms.term[i].a];
    if (terms.term[i].out == 1) x = in[terms.term[i].a];
  }
  for (int c = 0; c < plan.chunk_count; ++c) {
    const PlanProducts<T>& chunk = plan.chunks[c];
    for (int i = 0; i < terms.count; ++i) {
      const Term& term = terms.term[i];
      if (term.out != 2) continue;
      const Channel<T>&a = in[term.a], &b = in[term.b];
      if (term.first)
        multiply_components<false, tiles>(chunk, a.first, b.first, products.first, a.pitch, b.pitch, products.pitch);
      else
        multiply_components<true, tiles>(chunk, a.first, b.first, products.first, a.pitch, b.pitch, products.pitch);
    }
    if (terms.writes[2]) apply<tiles, true>(chunk.forward, products.first, out[2].first, products.pitch, out[2].pitch);
    if (!terms.writes[0] && !terms.writes[1]) continue;
    apply<tiles>(chunk.backward, in[z_operand].first, products.first, in[z_operand].pitch, products.pitch);
    add_gradients<tiles>(chunk, terms.writes[0], terms.writes[1], products.first, x.first, y.first, out[0].first, out[1].first, x.pitch, y.pitch, products.pitch,
                         out[0].pitch, out[1].pitch);
  }
  for (int s = 0; s < slot_count; ++s)
    for (int t = 0; terms.writes[s] && t < tiles; ++t) scatter_channel<T>(plan.slots[s], writers[s].tile(t), u, out[s][t]);
}

template <class T>
void matrix_block(const MatrixBlockPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  MatrixBlockBuffers<T> buffer(plan, scratch);
  RowWriter<T> writers[] = {{a, 0, plan.slots[0].dim, buffer.out[0], tiles_at_once},
                            {a, 1, plan.slots[1].dim, buffer.out[1], tiles_at_once},
                            {a, 2, plan.slots[2].dim, buffer.out[2], tiles_at_once}};
  for_each_tiles<T, tiles_at_once>(begin, end, a.stream, [&](const Tile* tiles, int count, bool first, bool last) {
    for (int t = 0; t < count; ++t)
      for (int o = 0; o < operand_count; ++o) {
        const int dim = plan.slots[slot_of(o)].dim;
        if (a.terms.reads[o]) load_rows(a.in[o], a.stride[slot_of(o)], dim, tiles[t], buffer.tile[o] + t * dim);
      }
    for (int u = 0; u < plan.mul; ++u) {
      if (count == tiles_at_once)
        contract_channel<tiles_at_once>(plan, a.terms, buffer, writers, u);
      else
        contract_channel<1>(plan, a.terms, buffer, writers, u);
    }
    for (int t = 0; t < count; ++t)
      for (RowWriter<T>& writer : writers) writer.write(tiles[t], first && t == 0, last && t + 1 == count, t);
  });
  for (RowWriter<T>& writer : writers) writer.finish();
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
  k.matrix_block = {matrix_block<T>, matrix_block_scratch<T>};
}
template void add_matrix_block(TypedKernels<float>&);
template void add_matrix_block(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
