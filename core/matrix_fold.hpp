// A matrix of the matrix product in the form in which its map to components is smallest.
//
// Its index is an order, -k .. k, of a sine or a cosine. The four entries (+-a, +-b) are sums and differences of one contribution of
// order a + b and one of order |a - b|, cosine and sine of each; and (a, b) and (b, a) are sums and differences of one of the even and one
// of the odd degrees. A folded matrix holds the contributions, so that each of them reads the components of one order and one parity of
// degree: 262 instead of 776 coefficients at k = 6 (degrees 0 .. 6) and 735 instead of 2,400 for the output, for 288 additions.
#pragma once
#include "unroll.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class V>
EQUITENSOR_INLINE constexpr void butterfly(V& a, V& b) {
  const V sum = a + b;
  b = a - b;
  a = sum;
}

constexpr long fold_additions(int k) { return 8L * k * k; }

// Folded to plain, in place; or the transpose of that, from a plain matrix's cotangent to a folded one's. `centre` is entry (0, 0),
// rows are `size` entries long. These two together, for every a and every a < b, do a matrix; they touch different entries.
template <class V, class M>
EQUITENSOR_INLINE constexpr void unfold_order(const M& centre, int size, int a) {
  butterfly<V>(centre[a], centre[a * size]);
  butterfly<V>(centre[-a], centre[-a * size]);
  butterfly<V>(centre[a * size + a], centre[-a * size - a]);
  butterfly<V>(centre[-a * size + a], centre[a * size - a]);
}
template <bool transpose, class V, class M>
EQUITENSOR_INLINE constexpr void unfold_orders(const M& centre, int size, int a, int b) {
  V cc = centre[a * size + b], ss = centre[-a * size - b], cs = centre[a * size - b], sc = centre[-a * size + b];
  V cc2 = centre[b * size + a], ss2 = centre[-b * size - a], cs2 = centre[b * size - a], sc2 = centre[-b * size + a];
  for (int step = 0; step < 2; ++step) {
    if ((step == 0) == transpose) {
      butterfly(cc, ss), butterfly(sc, cs);
      butterfly(cc2, ss2), butterfly(sc2, cs2);
    } else {
      butterfly(cc, cc2), butterfly(ss, ss2), butterfly(cs, cs2), butterfly(sc, sc2);
    }
  }
  centre[a * size + b] = cc, centre[-a * size - b] = ss, centre[a * size - b] = cs, centre[-a * size + b] = sc;
  centre[b * size + a] = cc2, centre[-b * size - a] = ss2, centre[b * size - a] = cs2, centre[-b * size + a] = sc2;
}
// K: an Int, whose loops are unrolled (with those over the blocks of a product 0.85 to 0.95 of the time of a MTP of L = 2 to 6), or an int.
template <bool transpose, class V, class K>
EQUITENSOR_INLINE void unfold_all(V* matrix, K k) {
  const auto size = k + k + Int<1>{};
  V* const centre = matrix + k * size + k;
  each(Int<1>{}, k, [&](auto a) EQUITENSOR_LAMBDA {
    unfold_order<V>(centre, size, a);
    each(a + Int<1>{}, k, [&](auto b) EQUITENSOR_LAMBDA { unfold_orders<transpose, V>(centre, size, a, b); });
  });
}
template <bool transpose, class V>
inline void unfold(V* matrix, int k) {
  switch (k) {
    case 2: return unfold_all<transpose>(matrix, Int<2>{});
    case 3: return unfold_all<transpose>(matrix, Int<3>{});
    case 4: return unfold_all<transpose>(matrix, Int<4>{});
    case 5: return unfold_all<transpose>(matrix, Int<5>{});
    case 6: return unfold_all<transpose>(matrix, Int<6>{});
    default: return unfold_all<transpose>(matrix, k);
  }
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
