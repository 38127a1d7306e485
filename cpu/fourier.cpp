// Gaunt tensor product in the Fourier basis: both signals as series on the torus, their product term by term (or as values, by fast transforms
// along both axes), and the components read off the product's coefficients.
//
// A gradient is the transpose, and every term the same product with another slot as its output: the output's cotangent spread over the
// coefficients, multiplied with an input's, and gathered.
#include "core/fourier_terms.hpp"
#include "core/matrix_fold.hpp"
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T, TermKind kind, bool negative>
inline void add_run(const Vector<T>* a, const Vector<T>* b, const int* factors, int count, Vector<T>& cosine, Vector<T>& sine) {
  for (const int* end = factors + 2 * count; factors < end; factors += 2) add_term<kind, negative>(a + factors[0], b + factors[1], cosine, sine);
}
template <class T>
inline void multiply_terms(const PlanTerms& terms, const Vector<T>* a, const Vector<T>* b, Vector<T>* out) {
  for (int i = 0; i < terms.count; ++i) {
    const PlanTermSum& sum = terms.sums[i];
    Vector<T> cosine{}, sine{};
    for (int r = sum.run_begin; r < sum.run_end; ++r) {
      const PlanTermRun& run = terms.runs[r];
      const int* factors = terms.factors + 2 * run.begin;
#define EQUITENSOR_CASE(kind)                                                                                                          \
  case 2 * int(TermKind::kind): add_run<T, TermKind::kind, false>(a, b, factors, run.count, cosine, sine); break;                      \
  case 2 * int(TermKind::kind) + 1: add_run<T, TermKind::kind, true>(a, b, factors, run.count, cosine, sine); break;
      switch (run.kind) {
        EQUITENSOR_CASE(product) EQUITENSOR_CASE(conjugate_b) EQUITENSOR_CASE(conjugate_a)
        EQUITENSOR_CASE(real_a) EQUITENSOR_CASE(real_b) EQUITENSOR_CASE(dot) EQUITENSOR_CASE(real)
      }
#undef EQUITENSOR_CASE
      for (int d = 0; d < run.doublings; ++d) {
        cosine += cosine;
        if (!sum.real) sine += sine;
      }
    }
    out[sum.out] = cosine;
    if (!sum.real) out[sum.out + 1] = sine;
  }
}

// All terms as straight code; and the maps to coefficients and from them, whose blocks would be of one to three numbers.
template <int d, int out, class T>
EQUITENSOR_NOINLINE void multiply_unrolled(const Vector<T>* a, const Vector<T>* b, Vector<T>* h) {
  static constexpr auto terms = full_terms<d, out>();
  Vector<T> cosine{}, sine{};
  each(Int<0>{}, Int<terms.count - 1>{}, [&](auto t) EQUITENSOR_LAMBDA {
    constexpr int i = decltype(t){};
    constexpr TorusTerm term = terms.of[i];
    add_term<term.kind, term.negative>(a + term.a, b + term.b, cosine, sine);
    for (int n = 0; n < doublings(terms.of, i, terms.count); ++n) {
      cosine += cosine;
      if (!term.real) sine += sine;
    }
    if constexpr (i + 1 == terms.count || terms.of[minimum(i + 1, terms.count - 1)].out != term.out) {
      h[term.out] = cosine;
      if (!term.real) h[term.out + 1] = sine;
      cosine = sine = Vector<T>{};
    }
  });
}
template <int degree, bool read_off, bool to_coefficients, class T>
EQUITENSOR_NOINLINE void map_unrolled(const T* values, const Vector<T>* in, Vector<T>* out) {
  static constexpr auto pairs = full_pairs<degree>(read_off);
  static constexpr int outputs = to_coefficients ? full_frequencies<degree>(read_off).coefficients : (degree + 1) * (degree + 1);
  each(Int<0>{}, Int<outputs - 1>{}, [&](auto o) EQUITENSOR_LAMBDA {
    constexpr int output = decltype(o){};
    Vector<T> sum{};
    each(Int<0>{}, Int<pairs.count - 1>{}, [&](auto p) EQUITENSOR_LAMBDA {
      constexpr TorusPair pair = pairs.of[decltype(p){}];
      if constexpr ((to_coefficients ? pair.coefficient : pair.component) == output)
        sum += values[decltype(p){}] * in[to_coefficients ? pair.component : pair.coefficient];
    });
    out[output] = sum;
  });
}
template <bool reversed, class T>
inline void apply_butterflies(const PlanButterflies& b, Vector<T>* values, long step) {
  for (int i = 0; i < b.count; ++i) {
    const int* pair = b.pairs + 2 * (reversed ? b.count - 1 - i : i);
    butterfly(values[pair[0] * step], values[pair[1] * step]);
  }
}
// Of every order of every part: the rings of one lie parts * orders apart.
template <bool reversed, class T>
inline void fold_rings(const FourierPlan<T>& plan, int s, Vector<T>* rings) {
  const FourierSlot<T>& slot = plan.slots[s];
  const int orders = 2 * slot.degree + 1;
  for (int part = 0; part < slot.parts; ++part)
    for (int m = -slot.degree; m <= slot.degree; ++m)
      apply_butterflies<reversed, T>(plan.ring_butterflies[absolute(m % 2)], rings + part * orders + m + slot.degree, slot.parts * orders);
}

template <class T>
struct FourierBuffers {
  Vector<T>*tile[operand_count], *in_channel[operand_count], *in[operand_count];
  Vector<T>*out[slot_count], *out_channel[slot_count], *product[slot_count], *term;
  Vector<T>*rings_in[operand_count], *rings_out[slot_count], *values_in[operand_count], *values_out;  // FFT
  FourierBuffers(const FourierPlan<T>& plan, Scratch<T>& scratch) {
    int most_parts = 1;
    const auto rings = [&](const FourierSlot<T>& slot) { return plan.fft ? plan.rings * slot.parts * (2L * slot.degree + 1) : 0; };
    for (int o = 0; o < operand_count; ++o) {
      const FourierSlot<T>& slot = plan.slots[slot_of(o)];
      tile[o] = scratch.take(slot.dim);
      in_channel[o] = scratch.take(slot.components);
      in[o] = scratch.take(slot.coefficients);
      rings_in[o] = scratch.take(rings(slot));
      values_in[o] = scratch.take(plan.fft ? slot.parts * plan.angles : 0);
    }
    for (int s = 0; s < slot_count; ++s) {
      const FourierSlot<T>& slot = plan.slots[s];
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(slot.dim));
      out_channel[s] = scratch.take(slot.components);
      product[s] = scratch.take(slot.coefficients);
      rings_out[s] = scratch.take(rings(slot));
      most_parts = maximum(most_parts, slot.parts);
    }
    term = scratch.take(plan.fft ? 0 : plan.slots[2].coefficients);  // only the output has more than one
    values_out = scratch.take(plan.fft ? most_parts * plan.angles : 0);
  }
};

// multiply(slot, a, b, to). A sum that is doubled on its way has to begin at zero, so the second term is formed apart.
template <class T, class Multiply>
inline void multiply_directly(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Terms& terms, Multiply&& multiply) {
  for (int i = 0; i < terms.count; ++i) {
    const Term& term = terms.term[i];
    Vector<T>* product = buffer.product[term.out];
    multiply(term.out, buffer.in[term.a], buffer.in[term.b], term.first ? product : buffer.term);
    for (int c = 0; !term.first && c < plan.slots[term.out].coefficients; ++c) product[c] += buffer.term[c];
  }
}

template <int d, class T>
void contract_unrolled(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Terms& terms, const Vector<T>* const (&in)[operand_count],
                       Vector<T>* const (&out)[slot_count]) {
  for (int o = 0; o < operand_count; ++o) {
    if (!terms.reads[o]) continue;
    const T* pairs = plan.slots[slot_of(o)].pairs;
    if (slot_of(o) == 2)
      map_unrolled<2 * d, true, true, T>(pairs, in[o], buffer.in[o]);
    else
      map_unrolled<d, false, true, T>(pairs, in[o], buffer.in[o]);
  }
  multiply_directly(plan, buffer, terms, [](int s, const Vector<T>* a, const Vector<T>* b, Vector<T>* to) EQUITENSOR_LAMBDA {
    if (s == 0)
      multiply_unrolled<d, 0, T>(a, b, to);
    else if (s == 1)
      multiply_unrolled<d, 1, T>(a, b, to);
    else
      multiply_unrolled<d, 2, T>(a, b, to);
  });
  for (int s = 0; s < slot_count; ++s) {
    if (!terms.writes[s]) continue;
    const T* pairs = plan.slots[s].pairs;
    if (s == 2)
      map_unrolled<2 * d, true, false, T>(pairs, buffer.product[s], out[s]);
    else
      map_unrolled<d, false, false, T>(pairs, buffer.product[s], out[s]);
  }
}

inline int torus_part(const PlanProduct& product, int slot) {
  return slot == 0 ? product.part1 : slot == 1 ? product.part2 : product.part_out;
}

// Values on one ring, multiplied; behind the last term of a result, back to its coefficients.
template <class T>
inline void multiply_values(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Term& term, bool last, int ring) {
  const FourierSlot<T>& out = plan.slots[term.out];
  const int n = plan.angles, orders = 2 * out.degree + 1;
  unsigned written = term.first ? 0 : ~0u;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct& product = plan.products[p];
    const int part = torus_part(product, term.out);
    const Vector<T>* f = buffer.values_in[term.a] + torus_part(product, slot_of(term.a)) * n;
    const Vector<T>* g = buffer.values_in[term.b] + torus_part(product, slot_of(term.b)) * n;
    Vector<T>* h = buffer.values_out + part * n;
    const bool first = !(written >> part & 1);
    for (int j = 0; j < n; ++j) h[j] = first ? f[j] * g[j] : h[j] + f[j] * g[j];
    written |= 1u << part;
  }
  for (int part = 0; last && part < out.parts; ++part) {
    apply_butterflies<true, T>(plan.angle_butterflies, buffer.values_out + part * n, 1);
    apply(out.from_angles, buffer.values_out + part * n, buffer.rings_out[term.out] + (ring * out.parts + part) * orders);
  }
}
template <class T>
inline void multiply_by_values(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Terms& terms) {
  for (int o = 0; o < operand_count; ++o) {
    if (!terms.reads[o]) continue;
    apply(plan.slots[slot_of(o)].to_rings, buffer.in[o], buffer.rings_in[o]);
    fold_rings<false>(plan, slot_of(o), buffer.rings_in[o]);
  }
  for (int ring = 0; ring < plan.rings; ++ring) {
    for (int o = 0; o < operand_count; ++o) {
      if (!terms.reads[o]) continue;
      const FourierSlot<T>& slot = plan.slots[slot_of(o)];
      for (int part = 0; part < slot.parts; ++part) {
        Vector<T>* values = buffer.values_in[o] + part * plan.angles;
        apply(slot.to_angles, buffer.rings_in[o] + (ring * slot.parts + part) * (2 * slot.degree + 1), values);
        apply_butterflies<false, T>(plan.angle_butterflies, values, 1);
      }
    }
    for (int i = 0; i < terms.count; ++i)
      multiply_values(plan, buffer, terms.term[i], i + 1 == terms.count || terms.term[i + 1].first, ring);
  }
  for (int s = 0; s < slot_count; ++s) {
    if (!terms.writes[s]) continue;
    fold_rings<true>(plan, s, buffer.rings_out[s]);
    apply(plan.slots[s].from_rings, buffer.rings_out[s], buffer.product[s]);
  }
}

template <class T>
inline void contract_channel(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Terms& terms, const Vector<T>* const (&in)[operand_count],
                             Vector<T>* const (&out)[slot_count]) {
  for (int o = 0; o < operand_count; ++o)
    if (terms.reads[o]) apply(plan.slots[slot_of(o)].synthesis, in[o], buffer.in[o]);
  if (plan.fft)
    multiply_by_values(plan, buffer, terms);
  else
    multiply_directly(plan, buffer, terms, [&](int s, const Vector<T>* a, const Vector<T>* b, Vector<T>* to) EQUITENSOR_LAMBDA {
      multiply_terms<T>(plan.terms[s], a, b, to);
    });
  for (int s = 0; s < slot_count; ++s)
    if (terms.writes[s]) apply(plan.slots[s].analysis, buffer.product[s], out[s]);
}

template <class T>
void fourier(const FourierPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  FourierBuffers<T> buffer(plan, scratch);
  const Terms& terms = a.terms;
  RowWriter<T> writers[] = {
      {a, 0, plan.slots[0].dim, buffer.out[0]}, {a, 1, plan.slots[1].dim, buffer.out[1]}, {a, 2, plan.slots[2].dim, buffer.out[2]}};
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    for (int o = 0; o < operand_count; ++o)
      if (terms.reads[o]) load_rows(a.in[o], a.stride[slot_of(o)], plan.slots[slot_of(o)].dim, tile, buffer.tile[o]);
    for (int u = 0; u < plan.mul; ++u) {
      const Vector<T>* in[operand_count];
      for (int o = 0; o < operand_count; ++o)
        in[o] = terms.reads[o] ? gather_channel<T>(plan.slots[slot_of(o)], buffer.tile[o], u, buffer.in_channel[o]) : nullptr;
      Vector<T>* out[slot_count];
      for (int s = 0; s < slot_count; ++s) out[s] = plan.slots[s].direct ? writers[s].tile() : buffer.out_channel[s];
      if (plan.unrolled == 1)
        contract_unrolled<1>(plan, buffer, terms, in, out);
      else if (plan.unrolled == 2)
        contract_unrolled<2>(plan, buffer, terms, in, out);
      else
        contract_channel(plan, buffer, terms, in, out);
      for (int s = 0; s < slot_count; ++s)
        if (terms.writes[s]) scatter_channel<T>(plan.slots[s], writers[s].tile(), u, buffer.out_channel[s]);
    }
    for (RowWriter<T>& writer : writers) writer.write(tile, first, last);
  });
  for (RowWriter<T>& writer : writers) writer.finish();
  stream_fence();
}

template <class T>
long fourier_scratch(const FourierPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  FourierBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_fourier(TypedKernels<T>& k) {
  k.fourier = {fourier<T>, fourier_scratch<T>};
}
template void add_fourier(TypedKernels<float>&);
template void add_fourier(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
