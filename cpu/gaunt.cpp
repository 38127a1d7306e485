// Gaunt tensor product: seminaive transform of both signals to the rings of a Gauss-Legendre grid, product ring by ring, transform
// back. North and south are folded: an order's even and odd degrees are summed apart on the northern rings, and give both
// hemispheres by their sum and difference, which halves the Legendre work.
//
// The trilinear form T(x, y, z) = mean over the sphere of f_x f_y f_z is symmetric, so that every term is the same product with
// another slot as its output.
#include "core/series.hpp"
#include "cpu/gaunt_rings.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// A ring and its mirror image at once, from and to their even and odd halves: the product of the sums goes to the northern ring, the
// product of the differences to the southern one. Unrolled for a product of two signals of degree d and its gradients, so
// that what lies between is in registers: 17 against 23 ns an item at d = 2, 61 against 80 at d = 4.
template <int df, int dg, int dh, class T>
void multiply_mirrored(const Vector<T>* f, const Vector<T>* g, Vector<T>* h, bool first) {
  constexpr int nf = 2 * df + 1, ng = 2 * dg + 1, nh = 2 * dh + 1;
  Vector<T> a[nf], b[ng], north[nh], south[nh];
#pragma GCC unroll 32
  for (int m = 0; m < nf; ++m) a[m] = f[m] + f[nf + m];
#pragma GCC unroll 32
  for (int m = 0; m < ng; ++m) b[m] = g[m] + g[ng + m];
  multiply_series<Vector<T>>(a + df, a + df, Int<df>{}, b + dg, b + dg, Int<dg>{}, north + dh, Int<dh>{}, true);
#pragma GCC unroll 32
  for (int m = 0; m < nf; ++m) a[m] = f[m] - f[nf + m];
#pragma GCC unroll 32
  for (int m = 0; m < ng; ++m) b[m] = g[m] - g[ng + m];
  multiply_series<Vector<T>>(a + df, a + df, Int<df>{}, b + dg, b + dg, Int<dg>{}, south + dh, Int<dh>{}, true);
#pragma GCC unroll 32
  for (int m = 0; m < nh; ++m) {
    const Vector<T> even = north[m] + south[m], odd = north[m] - south[m];
    h[m] = first ? even : h[m] + even;
    h[nh + m] = first ? odd : h[nh + m] + odd;
  }
}
// The equator is its own mirror image: all of it is in the even halves.
template <int df, int dg, int dh, class T>
void multiply_equator(const Vector<T>* f, const Vector<T>* g, Vector<T>* h, bool first) {
  multiply_series<Vector<T>>(f + df, f + df, Int<df>{}, g + dg, g + dg, Int<dg>{}, h + dh, Int<dh>{}, first);
}
template <class T>
struct UnrolledProduct {
  using Function = void (*)(const Vector<T>* f, const Vector<T>* g, Vector<T>* h, bool first);
  Function mirrored = nullptr, equator = nullptr;
};
template <class T>
UnrolledProduct<T> unrolled_product(int df, int dg, int dh) {
#define EQUITENSOR_CASE(d)                                                                                         \
  if (df == d && dg == d && dh == 2 * d) return {multiply_mirrored<d, d, 2 * d, T>, multiply_equator<d, d, 2 * d, T>}; \
  if (df == d && dg == 2 * d && dh == d) return {multiply_mirrored<d, 2 * d, d, T>, multiply_equator<d, 2 * d, d, T>};
  static_assert(gaunt_unrolled_degree == 6);
  EQUITENSOR_CASE(1) EQUITENSOR_CASE(2) EQUITENSOR_CASE(3) EQUITENSOR_CASE(4) EQUITENSOR_CASE(5) EQUITENSOR_CASE(6)
#undef EQUITENSOR_CASE
  return {};
}

template <class T>
struct GauntBuffers {
  Vector<T>*tile[operand_count], *in_channel[operand_count], *folded_in[operand_count], *ring_in[operand_count], *values_in[operand_count];
  Vector<T>*out[slot_count], *out_channel[slot_count], *folded_out[slot_count], *ring_out[slot_count], *values_out;
  GauntBuffers(const GauntPlan<T>& plan, Scratch<T>& scratch) {
    int most_parts = 1;
    const auto orders = [](const GauntSlot<T>& slot) { return long(slot.parts) * 2 * (2 * slot.degree + 1); };
    for (int o = 0; o < operand_count; ++o) {
      const GauntSlot<T>& slot = plan.slots[slot_of(o)];
      tile[o] = scratch.take(slot.dim);
      in_channel[o] = scratch.take(slot.components);
      folded_in[o] = scratch.take(orders(slot) * ((plan.rings + 1) / 2));
      ring_in[o] = scratch.take(orders(slot));
      values_in[o] = scratch.take(plan.pointwise ? slot.parts * plan.angles : 0);
    }
    for (int s = 0; s < slot_count; ++s) {
      const GauntSlot<T>& slot = plan.slots[s];
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(slot.dim));
      out_channel[s] = scratch.take(slot.components);
      folded_out[s] = scratch.take(orders(slot) * ((plan.rings + 1) / 2));
      ring_out[s] = scratch.take(orders(slot));
      most_parts = maximum(most_parts, slot.parts);
    }
    values_out = scratch.take(plan.pointwise ? most_parts * plan.angles : 0);
  }
};

inline int part_of(const PlanProduct& product, int slot) {
  return slot == 0 ? product.part1 : slot == 1 ? product.part2 : product.part_out;
}

template <int signs, class T>
inline void multiply_ring(const GauntPlan<T>& plan, GauntBuffers<T>& buffer, const Term& term) {
  const int sa = slot_of(term.a), sb = slot_of(term.b);
  const GauntSlot<T>&a = plan.slots[sa], &b = plan.slots[sb], &out = plan.slots[term.out];
  const int a_orders = 2 * a.degree + 1, b_orders = 2 * b.degree + 1, out_orders = 2 * out.degree + 1;
  unsigned written = term.first ? 0 : ~0u;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct& product = plan.products[p];
    const int pa = part_of(product, sa), pb = part_of(product, sb), pc = part_of(product, term.out);
    for (int sign = 0; sign < signs; ++sign) {
      const Vector<T>* f = buffer.ring_in[term.a] + (2 * pa + sign) * a_orders + a.degree;
      const Vector<T>* g = buffer.ring_in[term.b] + (2 * pb + sign) * b_orders + b.degree;
      multiply_series<Vector<T>>(f, f, a.degree, g, g, b.degree, buffer.ring_out[term.out] + (2 * pc + sign) * out_orders + out.degree,
                         out.degree, !(written >> pc & 1));
    }
    written |= 1u << pc;
  }
}

// last: of the terms of this output.
template <class T>
inline void multiply_ring_pointwise(const GauntPlan<T>& plan, GauntBuffers<T>& buffer, const Term& term, bool last, int sign) {
  const GauntSlot<T>& out = plan.slots[term.out];
  const int n = plan.angles, orders = 2 * out.degree + 1;
  unsigned written = term.first ? 0 : ~0u;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct& product = plan.products[p];
    const int pc = part_of(product, term.out);
    const Vector<T>* f = buffer.values_in[term.a] + part_of(product, slot_of(term.a)) * n;
    const Vector<T>* g = buffer.values_in[term.b] + part_of(product, slot_of(term.b)) * n;
    Vector<T>* h = buffer.values_out + pc * n;
    const bool first = !(written >> pc & 1);
    for (int j = 0; j < n; ++j) h[j] = first ? f[j] * g[j] : h[j] + f[j] * g[j];
    written |= 1u << pc;
  }
  for (int pc = 0; last && pc < out.parts; ++pc)
    angles_to_ring(out, buffer.values_out + pc * n, n, buffer.ring_out[term.out] + (2 * pc + sign) * orders);
}

// One ring and its mirror image (signs = 2), or the equator (signs = 1).
template <int signs, class T>
inline void contract_ring(const GauntPlan<T>& plan, GauntBuffers<T>& buffer, int ring, const Terms& terms) {
  const auto at = [&](int s) { return 2L * ring * plan.slots[s].parts * (2 * plan.slots[s].degree + 1); };
  for (int o = 0; o < operand_count; ++o)
    if (terms.reads[o]) unfold_ring<signs>(plan.slots[slot_of(o)], buffer.folded_in[o] + at(slot_of(o)), buffer.ring_in[o]);
  if (plan.pointwise) {
    for (int sign = 0; sign < signs; ++sign) {
      for (int o = 0; o < operand_count; ++o) {
        if (!terms.reads[o]) continue;
        const GauntSlot<T>& slot = plan.slots[slot_of(o)];
        for (int part = 0; part < slot.parts; ++part)
          ring_to_angles(slot, buffer.ring_in[o] + (2 * part + sign) * (2 * slot.degree + 1), plan.angles, buffer.values_in[o] + part * plan.angles);
      }
      for (int i = 0; i < terms.count; ++i)
        multiply_ring_pointwise(plan, buffer, terms.term[i], i + 1 == terms.count || terms.term[i + 1].first, sign);
    }
  } else {
    for (int i = 0; i < terms.count; ++i) multiply_ring<signs>(plan, buffer, terms.term[i]);
  }
  for (int s = 0; s < slot_count; ++s)
    if (terms.writes[s]) fold_ring<signs>(plan.slots[s], buffer.ring_out[s], buffer.folded_out[s] + at(s));
}

template <class T>
void gaunt(const GauntPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  GauntBuffers<T> buffer(plan, scratch);
  const Terms& terms = a.terms;
  RowWriter<T> writers[] = {
      {a, 0, plan.slots[0].dim, buffer.out[0]}, {a, 1, plan.slots[1].dim, buffer.out[1]}, {a, 2, plan.slots[2].dim, buffer.out[2]}};
  // The synthesis leaves ring coefficients that no component reaches as they are.
  for (int o = 0; o < operand_count; ++o) {
    const GauntSlot<T>& slot = plan.slots[slot_of(o)];
    const long folded = slot.parts * 2L * (2 * slot.degree + 1) * ((plan.rings + 1) / 2);
    for (long i = 0; terms.reads[o] && i < folded; ++i) buffer.folded_in[o][i] = Vector<T>{};
  }
  UnrolledProduct<T> unrolled[4];
  bool all_unrolled = !plan.pointwise && plan.product_count == 1;
  for (const GauntSlot<T>& slot : plan.slots) all_unrolled &= slot.parts == 1;
  for (int i = 0; i < terms.count; ++i) {
    const Term& term = terms.term[i];
    unrolled[i] = unrolled_product<T>(plan.slots[slot_of(term.a)].degree, plan.slots[slot_of(term.b)].degree, plan.slots[term.out].degree);
    all_unrolled &= unrolled[i].mirrored != nullptr;
  }
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    for (int o = 0; o < operand_count; ++o)
      if (terms.reads[o]) load_rows(a.in[o], a.stride[slot_of(o)], plan.slots[slot_of(o)].dim, tile, buffer.tile[o]);
    for (int u = 0; u < plan.mul; ++u) {
      for (int o = 0; o < operand_count; ++o) {
        const GauntSlot<T>& slot = plan.slots[slot_of(o)];
        if (terms.reads[o]) apply(slot.synthesis, gather_channel<T>(slot, buffer.tile[o], u, buffer.in_channel[o]), buffer.folded_in[o]);
      }
      const int mirrored = plan.rings / 2, all = (plan.rings + 1) / 2;
      for (int ring = 0; ring < all; ++ring) {
        if (all_unrolled) {
          for (int i = 0; i < terms.count; ++i) {
            const Term& term = terms.term[i];
            const auto at = [&](int s) { return 2L * ring * (2 * plan.slots[s].degree + 1); };
            const auto multiply = ring < mirrored ? unrolled[i].mirrored : unrolled[i].equator;
            multiply(buffer.folded_in[term.a] + at(slot_of(term.a)), buffer.folded_in[term.b] + at(slot_of(term.b)),
                     buffer.folded_out[term.out] + at(term.out), term.first);
          }
        } else if (ring < mirrored) {
          contract_ring<2>(plan, buffer, ring, terms);
        } else {
          contract_ring<1>(plan, buffer, ring, terms);
        }
      }
      for (int s = 0; s < slot_count; ++s) {
        if (!terms.writes[s]) continue;
        const bool direct = plan.slots[s].direct;
        apply(plan.slots[s].analysis, buffer.folded_out[s], direct ? writers[s].tile() : buffer.out_channel[s]);
        scatter_channel<T>(plan.slots[s], writers[s].tile(), u, buffer.out_channel[s]);
      }
    }
    for (RowWriter<T>& writer : writers) writer.write(tile, first, last);
  });
  for (RowWriter<T>& writer : writers) writer.finish();
  stream_fence();
}

template <class T>
long gaunt_scratch(const GauntPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  GauntBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_gaunt(TypedKernels<T>& k) {
  k.gaunt = {gaunt<T>, gaunt_scratch<T>};
}
template void add_gaunt(TypedKernels<float>&);
template void add_gaunt(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
