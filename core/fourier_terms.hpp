// The product of two series on the torus, h = f g, term by term. A series is real: frequency m >= 0 in the angle phi with a cosine's and a sine's
// coefficient, u >= 0 in the angle theta with a cosine where m is even and a sine where it is odd, as signals on the sphere have them. Its
// coefficients are those of exp(i m phi) and exp(i u theta), so half a cosine's. Then every term of a product is plus or minus one
// coefficient of f times one of g, times 2 for each axis on which both frequencies cancel.
#pragma once
#include "unroll.hpp"
#include <algorithm>

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

struct TorusFrequency {
  int part, m, u;
  int at;  // of the cosine's coefficient; the sine's, for m > 0, is the next
};

// Complex coefficients F = c - i s of the three slots with H += sign * weight * F G, or with a conjugate, see top.
struct TorusRelation {
  int at[3];
  bool real[3];      // m = 0
  int top;           // the slot whose order is the sum of the two others'
  bool negative;
  int weight;        // 1, 2 or 4
};

// The relations of one coefficient of f with one of g. find(m, u) gives the place of the product's coefficient, or -1 where it is not wanted.
template <class Find, class Emit>
constexpr void relate(const TorusFrequency& f, const TorusFrequency& g, Find&& find, Emit&& emit) {
  const bool f_sine = f.m % 2, g_sine = g.m % 2;
  for (int m_differ = 0; m_differ <= (f.m > 0 && g.m > 0); ++m_differ)
    for (int u_differ = 0; u_differ <= (f.u > 0 && g.u > 0); ++u_differ) {
      const int m = m_differ ? absolute(f.m - g.m) : f.m + g.m, u = u_differ ? absolute(f.u - g.u) : f.u + g.u;
      if (u == 0 && m % 2) continue;  // the sine of zero
      const int at = find(m, u);
      if (at < 0) continue;
      // Sines are -i/2 at u and i/2 at -u: two of them make a negative cosine, and the one whose frequency is taken off changes its sign.
      const bool reversed = u_differ && (f.u > g.u ? g_sine : f_sine);
      const int top = !m_differ ? 2 : f.m > g.m ? 0 : 1;
      emit(TorusRelation{{f.at, g.at, at}, {f.m == 0, g.m == 0, m == 0}, top, (f_sine && g_sine) != reversed,
                         (m == 0 && f.m > 0 ? 2 : 1) * (u == 0 && f.u > 0 ? 2 : 1)});
    }
}

// How two complex factors a and b enter a sum: their product, with a conjugate, with a real factor, into a real sum.
enum class TermKind { product, conjugate_b, conjugate_a, real_a, real_b, dot, real };
constexpr int term_kinds = 7;
constexpr int term_operations(TermKind kind) {
  return kind <= TermKind::conjugate_a ? 8 : kind <= TermKind::dot ? 4 : 2;
}

struct TorusTerm {
  int out, a, b;
  bool real;  // the sum
  TermKind kind;
  bool negative;
  int weight;
};
// A relation as a term of slot `out` from the slots a and b: all three stand in Re(conj(top) other other), which a gradient opens elsewhere.
constexpr TorusTerm torus_term(const TorusRelation& r, int a, int b, int out) {
  const TermKind kind = r.real[out] ? (r.real[a] ? TermKind::real : TermKind::dot)
                        : r.real[a] ? TermKind::real_a
                        : r.real[b] ? TermKind::real_b
                        : r.top == out ? TermKind::product
                        : r.top == a   ? TermKind::conjugate_b
                                       : TermKind::conjugate_a;
  return {r.at[out], r.at[a], r.at[b], r.real[out], kind, r.negative, r.weight};
}
// By sum; in it the heaviest first, since the sum so far is doubled where the weight halves.
constexpr bool operator<(const TorusTerm& x, const TorusTerm& y) {
  if (x.out != y.out) return x.out < y.out;
  if (x.weight != y.weight) return x.weight > y.weight;
  if (x.kind != y.kind) return x.kind < y.kind;
  if (x.negative != y.negative) return x.negative < y.negative;
  return x.a != y.a ? x.a < y.a : x.b < y.b;
}
// Doublings of the sum behind term t of `count`.
constexpr int doublings(const TorusTerm* terms, int t, int count) {
  const int next = t + 1 < count && terms[t + 1].out == terms[t].out ? terms[t + 1].weight : 1;
  return (terms[t].weight >= 2 * next) + (terms[t].weight >= 4 * next);
}

template <TermKind kind, bool negative, class F, class G, class V>
EQUITENSOR_INLINE constexpr void add_term(const F& f, const G& g, V& cosine, V& sine) {
  const auto add = [](V& sum, const V& x, const V& y) EQUITENSOR_LAMBDA { negative ? sum -= x * y : sum += x * y; };
  const auto subtract = [](V& sum, const V& x, const V& y) EQUITENSOR_LAMBDA { negative ? sum += x * y : sum -= x * y; };
  const V fc = f[0], gc = g[0];
  add(cosine, fc, gc);
  if constexpr (kind == TermKind::real_a) add(sine, fc, g[1]);
  if constexpr (kind == TermKind::real_b) add(sine, f[1], gc);
  if constexpr (kind <= TermKind::conjugate_a || kind == TermKind::dot) {
    const V fs = f[1], gs = g[1];
    if constexpr (kind == TermKind::product)
      subtract(cosine, fs, gs);
    else
      add(cosine, fs, gs);
    if constexpr (kind == TermKind::product) add(sine, fc, gs), add(sine, fs, gc);
    if constexpr (kind == TermKind::conjugate_b) add(sine, fs, gc), subtract(sine, fc, gs);
    if constexpr (kind == TermKind::conjugate_a) add(sine, fc, gs), subtract(sine, fs, gc);
  }
}

// A signal of every degree to `degree`, and a product of which the frequencies u >= m are read: of all products into degree 4 (core/fourier.hpp).
template <int degree>
struct TorusFrequencies {
  TorusFrequency of[(degree + 1) * (degree + 2)];
  int count = 0, coefficients = 0;
  constexpr int find(int m, int u) const {
    for (int i = 0; i < count; ++i)
      if (of[i].m == m && of[i].u == u) return of[i].at;
    return -1;
  }
};
template <int degree>
constexpr TorusFrequencies<degree> full_frequencies(bool read_off) {
  TorusFrequencies<degree> all{};
  for (int m = 0; m <= degree; ++m)
    for (int u = m % 2; u <= degree; ++u) {
      // Only degree m itself has order m and no degree above: its frequencies are of one parity.
      if (read_off ? u < m : m == degree && (u - m) % 2) continue;
      all.of[all.count++] = {0, m, u, all.coefficients};
      all.coefficients += m ? 2 : 1;
    }
  return all;
}
// Which component (l, m) of such a signal, at l (l + 1) + m, and which coefficient belong together; by coefficient.
struct TorusPair {
  int l, m, component, coefficient;
};
template <int degree>
struct TorusPairs {
  TorusPair of[(degree + 1) * (degree + 1) * (degree + 2)];
  int count = 0;
};
template <int degree>
constexpr TorusPairs<degree> full_pairs(bool read_off) {
  TorusPairs<degree> pairs{};
  const TorusFrequencies<degree> frequencies = full_frequencies<degree>(read_off);
  for (int i = 0; i < frequencies.count; ++i) {
    const TorusFrequency& f = frequencies.of[i];
    for (int sine = 0; sine <= (f.m > 0); ++sine)
      for (int l = f.m; l <= degree; ++l)
        if ((l - f.u) % 2 == 0 && (read_off ? l <= f.u : l >= f.u)) {
          const int m = sine ? -f.m : f.m;
          pairs.of[pairs.count++] = {l, m, l * (l + 1) + m, f.at + sine};
        }
  }
  return pairs;
}
template <int capacity>
struct TorusTerms {
  TorusTerm of[capacity];
  int count = 0;
};
// The terms of slot `out` in the product of two signals of degree d, into degree 2 d.
template <int d, int out>
constexpr auto full_terms() {
  constexpr auto relations = [](auto&& emit) {
    constexpr auto in = full_frequencies<d>(false);
    constexpr auto product = full_frequencies<2 * d>(true);
    for (int i = 0; i < in.count; ++i)
      for (int j = 0; j < in.count; ++j) relate(in.of[i], in.of[j], [&](int m, int u) { return product.find(m, u); }, emit);
  };
  constexpr int count = [=] {
    int n = 0;
    relations([&](const TorusRelation&) { ++n; });
    return n;
  }();
  TorusTerms<count> terms{};
  relations([&](const TorusRelation& r) { terms.of[terms.count++] = torus_term(r, out == 0 ? 1 : 0, out == 2 ? 1 : 2, out); });
  std::sort(terms.of, terms.of + count);
  return terms;
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
