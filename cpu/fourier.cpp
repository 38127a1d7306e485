// Gaunt tensor product in the Fourier basis: both signals as series on the torus, their product term by term (or as values, by fast transforms
// along both axes), and the components read off the product's coefficients.
//
// Each gradient is the transpose: the output's cotangent spread over the coefficients, multiplied with the other input's, and gathered.
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
template <int d, class T>
void contract_unrolled(const FourierPlan<T>& plan, const Vector<T>* const (&in)[3], Vector<T>* const (&coefficients)[3],
                       Vector<T>* const (&product)[3], Vector<T>* const (&out)[3]) {
  const auto& slot = plan.slots;
  map_unrolled<d, false, true, T>(slot[0].pairs, in[0], coefficients[0]);
  map_unrolled<d, false, true, T>(slot[1].pairs, in[1], coefficients[1]);
  if (out[2]) {
    multiply_unrolled<d, 2, T>(coefficients[0], coefficients[1], product[2]);
    map_unrolled<2 * d, true, false, T>(slot[2].pairs, product[2], out[2]);
  } else {
    map_unrolled<2 * d, true, true, T>(slot[2].pairs, in[2], coefficients[2]);
    multiply_unrolled<d, 0, T>(coefficients[1], coefficients[2], product[0]);
    map_unrolled<d, false, false, T>(slot[0].pairs, product[0], out[0]);
    multiply_unrolled<d, 1, T>(coefficients[0], coefficients[2], product[1]);
    map_unrolled<d, false, false, T>(slot[1].pairs, product[1], out[1]);
  }
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

struct TorusContraction {
  int a, b, out;  // slots
};

template <class T>
struct FourierBuffers {
  Vector<T>*tile[3], *out[3], *in_channel[3], *out_channel[3], *in[3], *product[3];
  Vector<T>*rings_in[3], *rings_out[3], *values_in[3], *values_out;  // FFT
  FourierBuffers(const FourierPlan<T>& plan, Scratch<T>& scratch) {
    int most_parts = 1;
    for (int s = 0; s < 3; ++s) {
      const FourierSlot<T>& slot = plan.slots[s];
      const long rings = plan.fft ? plan.rings * slot.parts * (2L * slot.degree + 1) : 0;
      tile[s] = scratch.take(slot.dim);
      out[s] = scratch.take(RowWriter<T>::buffer_vectors(slot.dim));
      in_channel[s] = scratch.take(slot.components);
      out_channel[s] = scratch.take(slot.components);
      in[s] = scratch.take(slot.coefficients);
      product[s] = scratch.take(slot.coefficients);
      rings_in[s] = scratch.take(rings);
      rings_out[s] = scratch.take(rings);
      values_in[s] = scratch.take(plan.fft ? slot.parts * plan.angles : 0);
      most_parts = maximum(most_parts, slot.parts);
    }
    values_out = scratch.take(plan.fft ? most_parts * plan.angles : 0);
  }
};

inline int torus_part(const PlanProduct& product, int slot) {
  return slot == 0 ? product.part1 : slot == 1 ? product.part2 : product.part_out;
}

// Values on one ring, multiplied, back to its coefficients.
template <class T>
inline void multiply_values(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const TorusContraction& c, int ring) {
  const FourierSlot<T>& out = plan.slots[c.out];
  const int n = plan.angles, orders = 2 * out.degree + 1;
  unsigned written = 0;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct& product = plan.products[p];
    const int part = torus_part(product, c.out);
    const Vector<T>* f = buffer.values_in[c.a] + torus_part(product, c.a) * n;
    const Vector<T>* g = buffer.values_in[c.b] + torus_part(product, c.b) * n;
    Vector<T>* h = buffer.values_out + part * n;
    const bool first = !(written >> part & 1);
    for (int j = 0; j < n; ++j) h[j] = first ? f[j] * g[j] : h[j] + f[j] * g[j];
    written |= 1u << part;
  }
  for (int part = 0; part < out.parts; ++part) {
    apply_butterflies<true, T>(plan.angle_butterflies, buffer.values_out + part * n, 1);
    apply(out.from_angles, buffer.values_out + part * n, buffer.rings_out[c.out] + (ring * out.parts + part) * orders);
  }
}
template <class T>
inline void multiply_by_values(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Vector<T>* const (&in)[3],
                               const TorusContraction* contractions, int count) {
  for (int s = 0; s < 3; ++s) {
    if (!in[s]) continue;
    apply(plan.slots[s].to_rings, buffer.in[s], buffer.rings_in[s]);
    fold_rings<false>(plan, s, buffer.rings_in[s]);
  }
  for (int ring = 0; ring < plan.rings; ++ring) {
    for (int s = 0; s < 3; ++s) {
      if (!in[s]) continue;
      const FourierSlot<T>& slot = plan.slots[s];
      for (int part = 0; part < slot.parts; ++part) {
        Vector<T>* values = buffer.values_in[s] + part * plan.angles;
        apply(slot.to_angles, buffer.rings_in[s] + (ring * slot.parts + part) * (2 * slot.degree + 1), values);
        apply_butterflies<false, T>(plan.angle_butterflies, values, 1);
      }
    }
    for (int i = 0; i < count; ++i) multiply_values(plan, buffer, contractions[i], ring);
  }
  for (int i = 0; i < count; ++i) {
    const int s = contractions[i].out;
    fold_rings<true>(plan, s, buffer.rings_out[s]);
    apply(plan.slots[s].from_rings, buffer.rings_out[s], buffer.product[s]);
  }
}

template <class T>
inline void contract_channel(const FourierPlan<T>& plan, FourierBuffers<T>& buffer, const Vector<T>* const (&in)[3], Vector<T>* const (&out)[3],
                             const TorusContraction* contractions, int count) {
  for (int s = 0; s < 3; ++s)
    if (in[s]) apply(plan.slots[s].synthesis, in[s], buffer.in[s]);
  if (plan.fft) {
    multiply_by_values(plan, buffer, in, contractions, count);
  } else {
    for (int i = 0; i < count; ++i) {
      const TorusContraction& c = contractions[i];
      multiply_terms<T>(plan.terms[c.out], buffer.in[c.a], buffer.in[c.b], buffer.product[c.out]);
    }
  }
  for (int i = 0; i < count; ++i) {
    const int s = contractions[i].out;
    apply(plan.slots[s].analysis, buffer.product[s], out[s]);
  }
}

template <class T>
inline void contract_series(const FourierPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory,
                            const bool (&is_input)[3], const TorusContraction* contractions, int count) {
  Scratch<T> scratch(memory);
  FourierBuffers<T> buffer(plan, scratch);
  const T* in[3] = {a.x, a.y, a.z};
  const long strides[3] = {a.x_stride, a.y_stride, a.z_stride};
  RowWriter<T> writers[3] = {{a.x_out, plan.slots[0].dim, buffer.out[0], a.sum_x},
                             {a.y_out, plan.slots[1].dim, buffer.out[1], a.sum_y},
                             {a.z_out, plan.slots[2].dim, buffer.out[2]}};
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    for (int s = 0; s < 3; ++s)
      if (is_input[s]) load_rows(in[s], strides[s], plan.slots[s].dim, tile, buffer.tile[s]);
    for (int u = 0; u < plan.mul; ++u) {
      const Vector<T>* channel[3]{};
      for (int s = 0; s < 3; ++s)
        if (is_input[s]) channel[s] = gather_channel<T>(plan.slots[s], buffer.tile[s], u, buffer.in_channel[s]);
      Vector<T>* result[3]{};
      for (int i = 0; i < count; ++i) {
        const int s = contractions[i].out;
        result[s] = plan.slots[s].direct ? writers[s].tile() : buffer.out_channel[s];
      }
      if (plan.unrolled == 1)
        contract_unrolled<1, T>(plan, channel, buffer.in, buffer.product, result);
      else if (plan.unrolled == 2)
        contract_unrolled<2, T>(plan, channel, buffer.in, buffer.product, result);
      else
        contract_channel(plan, buffer, channel, result, contractions, count);
      for (int s = 0; s < 3; ++s)
        if (result[s]) scatter_channel<T>(plan.slots[s], writers[s].tile(), u, buffer.out_channel[s]);
    }
    for (int i = 0; i < count; ++i) writers[contractions[i].out].write(tile, first, last);
  });
  for (RowWriter<T>& writer : writers) writer.finish();
  stream_fence();
}

// A contraction's inputs are in the order of their slots, as in the plan's terms.
template <class T>
void fourier_forward(const FourierPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  const TorusContraction contractions[] = {{0, 1, 2}};
  contract_series(plan, a, begin, end, memory, {true, true, false}, contractions, 1);
}
template <class T>
void fourier_backward(const FourierPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  const TorusContraction contractions[] = {{1, 2, 0}, {0, 2, 1}};
  contract_series(plan, a, begin, end, memory, {true, true, true}, contractions, 2);
}
template <class T>
long fourier_scratch(const FourierPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  FourierBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_fourier(TypedKernels<T>& k) {
  k.fourier_forward = fourier_forward<T>;
  k.fourier_backward = fourier_backward<T>;
  k.fourier_scratch = fourier_scratch<T>;
}
template void add_fourier(TypedKernels<float>&);
template void add_fourier(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
