// Rings of the Gaunt products' grid: from coefficients folded over both hemispheres to those of a ring, and to values at its angles. V: a vector, or some of them.
#pragma once
#include "cpu/block_map.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Of a ring and its mirror image (signs = 2), or of the equator (signs = 1): [part][even, odd][order] to [part][north, south][order], and back.
template <int signs, class T, class V>
inline void unfold_ring(const GauntSlot<T>& slot, const V* folded, V* ring) {
  const int orders = 2 * slot.degree + 1;
  for (int part = 0; part < slot.parts; ++part, folded += 2 * orders, ring += 2 * orders)
    for (int m = 0; m < orders; ++m) {
      const V even = folded[m];
      if (signs == 2) {
        const V odd = folded[orders + m];
        ring[m] = even + odd;
        ring[orders + m] = even - odd;
      } else {
        ring[m] = even;
      }
    }
}
template <int signs, class T, class V>
inline void fold_ring(const GauntSlot<T>& slot, const V* ring, V* folded) {
  unfold_ring<signs>(slot, ring, folded);  // its own inverse up to the factor in the quadrature's weights
}

// Values at the angles 2 pi j / n: even parts at [0, n / 2], odd parts behind them, to sums at j and n - j; and back.
template <class V>
inline void unfold_angles(V* values, int n) {
  for (int j = 1; j <= (n - 1) / 2; ++j) {
    const V even = values[j], odd = values[n / 2 + j];
    values[j] = even + odd;
    values[n / 2 + j] = even - odd;
  }
}
template <class T, class V>
inline void ring_to_angles(const GauntSlot<T>& slot, const V* ring, int n, V* values) {
  apply(slot.to_angles, ring, values);
  unfold_angles(values, n);
}
// Destroys the values.
template <class T, class V>
inline void angles_to_ring(const GauntSlot<T>& slot, V* values, int n, V* ring) {
  unfold_angles(values, n);  // its own inverse up to the factor in from_angles
  apply(slot.from_angles, values, ring);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
