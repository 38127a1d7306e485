// Clebsch-Gordan tensor product. For every pair of irreps: the outer product of its components once, then one sparse map to
// all of its l3; backwards the transposed map once, then a matrix-vector product with either operand. Pairs of low degrees do both
// at once: cpu/coupled_pair.cpp.
#include "cpu/block_map.hpp"
#include "cpu/channels.hpp"
#include "cpu/coupled_pair.hpp"
#include "cpu/kernels.hpp"
#include "cpu/products.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Of every buffer one a tile, one behind the other.
template <class T>
struct ClebschGordanBuffers {
  Vector<T> *in[operand_count], *out[slot_count], *products, *compact;
  ClebschGordanBuffers(const ClebschGordanPlan<T>& plan, Scratch<T>& scratch) {
    const auto is_needed = [&](int slot) { return slot != 1 || !plan.square; };
    for (int o = 0; o < operand_count; ++o) in[o] = scratch.take(is_needed(slot_of(o)) ? tiles_at_once * plan.dim[slot_of(o)] : 0);
    for (int s = 0; s < slot_count; ++s) out[s] = scratch.take(is_needed(s) ? RowWriter<T>::buffer_vectors(plan.dim[s], tiles_at_once) : 0);
    products = scratch.take(tiles_at_once * plan.max_products);
    compact = scratch.take(tiles_at_once * plan.max_compact);
  }
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
  if (pair.triangular) v -= u * (u - 1) / 2;
  for (int s = 0; s < pair.segment_count; ++s) {
    const PlanSegment& segment = pair.segments[s];
    const int first = segment.output.first + u * segment.u_step + v * segment.v_step;
    for (int k = 0; k < segment.count; ++k) copy(segment.compact + k, first + k * segment.output.step);
  }
}

template <int tiles, class T>
inline void multiply_coupled_pair(const ClebschGordanPlan<T>& plan, const PlanPair<T>& pair, const Terms& terms, ClebschGordanBuffers<T>& buffer, RowWriter<T>& z) {
  const bool exchanged = pair.l1 < pair.l2;
  const CoupledKernels<T>& kernels = exchanged ? coupled_kernels<T>(pair.l2, pair.l1) : coupled_kernels<T>(pair.l1, pair.l2);
  for_each_channel(pair, [&](int u, int v) {
    for (int t = 0; t < tiles; ++t) {
      const Vector<T>*x[2], *y[2];
      int products = 0;
      for (int i = 0; i < terms.count; ++i) {
        const Term& term = terms.term[i];
        if (term.out != 2) continue;
        (exchanged ? y : x)[products] = buffer.in[term.a] + t * plan.dim[0] + pair.x_offset + u * pair.x_channel;
        (exchanged ? x : y)[products++] = buffer.in[term.b] + t * plan.dim[1] + pair.y_offset + v * pair.y_channel;
      }
      kernels.multiply[products - 1](pair.coefficients, x, y, pair.coupled_in_row ? z.tile(t) : buffer.compact, pair.degree_outputs);
      if (!pair.coupled_in_row) for_each_output(pair, u, v, [&](int compact, int output) { z.tile(t)[output] = buffer.compact[compact]; });
    }
  });
}
template <int tiles, class T>
inline void multiply_pair(const ClebschGordanPlan<T>& plan, const PlanPair<T>& pair, const Terms& terms, ClebschGordanBuffers<T>& buffer,
                          RowWriter<T>& z) {
  for_each_channel(pair, [&](int u, int v) {
    for (int i = 0; i < terms.count; ++i) {
      const Term& term = terms.term[i];
      if (term.out != 2) continue;
      const Vector<T>* x = buffer.in[term.a] + pair.x_offset + u * pair.x_channel;
      const Vector<T>* y = buffer.in[term.b] + pair.y_offset + v * pair.y_channel;
      if (term.first)
        multiply_components<false, tiles>(pair, x, y, buffer.products, plan.dim[0], plan.dim[1], plan.max_products);
      else
        multiply_components<true, tiles>(pair, x, y, buffer.products, plan.dim[0], plan.dim[1], plan.max_products);
    }
    if (pair.direct) return apply<tiles>(pair.forward, buffer.products, z.tile(), plan.max_products, z.slot_vectors());
    apply<tiles>(pair.forward, buffer.products, buffer.compact, plan.max_products, plan.max_compact);
    for (int t = 0; t < tiles; ++t)
      for_each_output(pair, u, v, [&](int compact, int output) { z.tile(t)[output] = buffer.compact[t * plan.max_compact + compact]; });
  });
}

// x and y: the operands whose product with dz goes into the gradient of the other one, or zeros.
template <int tiles, class T>
inline void differentiate_coupled_pair(const ClebschGordanPlan<T>& plan, const PlanPair<T>& pair, const Vector<T>* x, const Vector<T>* y, ClebschGordanBuffers<T>& buffer,
                                       RowWriter<T>& x_out, RowWriter<T>& y_out, SpreadPrefetch<T>& next) {
  const bool exchanged = pair.l1 < pair.l2;
  const CoupledKernels<T>& kernels = exchanged ? coupled_kernels<T>(pair.l2, pair.l1) : coupled_kernels<T>(pair.l1, pair.l2);
  for_each_channel(pair, [&](int u, int v) {
    for (int t = 0; t < tiles; ++t) {
      Vector<T>* const dz = buffer.in[z_operand] + t * plan.dim[2];
      if (!pair.coupled_in_row) for_each_output(pair, u, v, [&](int compact, int output) { buffer.compact[compact] = dz[output]; });
      const int x_first = pair.x_offset + u * pair.x_channel, y_first = pair.y_offset + v * pair.y_channel;
      const Vector<T>*x_channel = x + t * plan.dim[0] + x_first, *y_channel = y + t * plan.dim[1] + y_first;
      Vector<T>*dx = x_out.tile(t) + x_first, *dy = y_out.tile(t) + y_first;
      kernels.differentiate(pair.coefficients, exchanged ? y_channel : x_channel, exchanged ? x_channel : y_channel, pair.coupled_in_row ? dz : buffer.compact,
                            pair.degree_outputs, exchanged ? dy : dx, exchanged ? dx : dy, next);
    }
  });
}

// x and y: the operands whose product with dz goes into the gradient of the other one.
template <int tiles, class T>
inline void multiply_pair_backward(const ClebschGordanPlan<T>& plan, const PlanPair<T>& pair, const Vector<T>* x, const Vector<T>* y,
                                   ClebschGordanBuffers<T>& buffer, RowWriter<T>& x_out, RowWriter<T>& y_out) {
  const Vector<T>* dz = buffer.in[z_operand];
  for_each_channel(pair, [&](int u, int v) {
    if (pair.direct) {
      apply<tiles>(pair.backward, dz, buffer.products, plan.dim[2], plan.max_products);
    } else {
      for (int t = 0; t < tiles; ++t)
        for_each_output(pair, u, v, [&](int compact, int output) {
          buffer.compact[t * plan.max_compact + compact] = dz[t * plan.dim[2] + output];
        });
      apply<tiles>(pair.backward, buffer.compact, buffer.products, plan.max_compact, plan.max_products);
    }
    const int x_first = pair.x_offset + u * pair.x_channel, y_first = pair.y_offset + v * pair.y_channel;
    add_gradients<tiles>(pair, y != nullptr, x != nullptr, buffer.products, x + x_first, y + y_first, x_out.tile() + x_first, y_out.tile() + y_first, plan.dim[0],
                         plan.dim[1], plan.max_products, x_out.slot_vectors(), y_out.slot_vectors());
  });
}

template <class T>
void clebsch_gordan(const ClebschGordanPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  ClebschGordanBuffers<T> buffer(plan, scratch);
  RowWriter<T> writers[] = {{a, 0, plan.dim[0], buffer.out[0], tiles_at_once},
                            {a, 1, plan.dim[1], buffer.out[1], tiles_at_once},
                            {a, 2, plan.dim[2], buffer.out[2], tiles_at_once}};
  // What is contracted with dz into the gradients of the other slot; in a square one operand, into one gradient.
  const Vector<T> *x = nullptr, *y = nullptr;
  for (int i = 0; i < a.terms.count; ++i) {
    const Term& term = a.terms.term[i];
    if (term.out == 0) y = buffer.in[term.a];
    if (term.out == (plan.square ? 0 : 1)) x = buffer.in[term.a];
  }
  // Kernels of coupled pairs always form both gradients: one that nobody wants of zeros, or of what is read for another term, in a tile that is not written.
  const auto or_zeros = [&](const Vector<T>* operand, int o) {
    if (operand) return operand;
    for (long c = 0; !a.terms.reads[o] && c < tiles_at_once * plan.dim[o]; ++c) buffer.in[o][c] = Vector<T>{};
    return static_cast<const Vector<T>*>(buffer.in[o]);
  };
  bool has_coupled = false, all_coupled = true;
  for (int i = 0; i < plan.pair_count; ++i) {
    const bool coupled = has_constants<T> && plan.pairs[i].coefficients;
    has_coupled |= coupled, all_coupled &= coupled;
  }
  const bool differentiates = x || y;
  const Vector<T>*coupled_x = nullptr, *coupled_y = nullptr;
  if (has_coupled && differentiates) {
    coupled_x = or_zeros(x, x_operand), coupled_y = or_zeros(y, y_operand);
    for (int s = 0; s < 2; ++s)
      for (int t = 0; !a.terms.writes[s] && t < tiles_at_once; ++t)
        for (int c = 0; c < plan.dim[s]; ++c) writers[s].tile(t)[c] = Vector<T>{};
  }
  // Long rows of z are asked for while the tiles before are computed, if all pairs are coupled, since their kernels do it; in a backward, whose results are short, in the
  // order in which they lie. Together 0.74 of the time of a backward at L = 5, and 0.86 of a double backward. Rows of up to 8 lines took longer (docs/decisions.md).
  const bool asks_ahead = has_coupled && all_coupled && a.terms.reads[z_operand] && a.stride[2] > 8 * line<T>;
  const bool stream = a.stream && !(asks_ahead && !a.terms.writes[2]);
  const auto all_pairs = [&]<int tiles>(Int<tiles>, SpreadPrefetch<T> next) EQUITENSOR_LAMBDA {
    for (int i = 0; i < plan.pair_count; ++i) {
      const PlanPair<T>& pair = plan.pairs[i];
      if constexpr (has_constants<T>)
        if (pair.coefficients) {
          if (a.terms.writes[2]) multiply_coupled_pair<tiles>(plan, pair, a.terms, buffer, writers[2]);
          if (differentiates) differentiate_coupled_pair<tiles>(plan, pair, coupled_x, coupled_y, buffer, writers[0], writers[1], next);
          continue;
        }
      if (a.terms.writes[2]) multiply_pair<tiles>(plan, pair, a.terms, buffer, writers[2]);
      if (differentiates) multiply_pair_backward<tiles>(plan, pair, x, y, buffer, writers[0], writers[plan.square ? 0 : 1]);
    }
  };
  for_each_tiles<T, tiles_at_once>(begin, end, stream, [&](const Tile* tiles, int count, bool first, bool last) {
    for (int t = 0; t < count; ++t) {
      for (int o = 0; o < operand_count; ++o)
        if (a.terms.reads[o]) load_rows(a.in[o], a.stride[slot_of(o)], plan.dim[slot_of(o)], tiles[t], buffer.in[o] + t * plan.dim[slot_of(o)]);
      for (int s = 0; s < 2; ++s)
        for (int c = 0; a.terms.writes[s] && c < plan.dim[s]; ++c) writers[s].tile(t)[c] = Vector<T>{};
    }
    // The next rows of z: of a streaming pass those of every lane, which go on from the ones at hand.
    const long row = asks_ahead ? a.stride[2] : 0, step = tiles->step;
    const SpreadPrefetch<T> next(a.in[z_operand] + tiles->next * row, (step == 1 ? width<T> : 1) * count * row, step * row, step == 1 ? 1 : width<T>);
    if (count == tiles_at_once)
      all_pairs(Int<tiles_at_once>{}, next);
    else
      all_pairs(Int<1>{}, next);
    for (int t = 0; t < count; ++t)
      for (RowWriter<T>& writer : writers) writer.write(tiles[t], first && t == 0, last && t + 1 == count, t);
  });
  for (RowWriter<T>& writer : writers) writer.finish();
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
  k.clebsch_gordan = {clebsch_gordan<T>, clebsch_gordan_scratch<T>};
}
template void add_clebsch_gordan(TypedKernels<float>&);
template void add_clebsch_gordan(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
