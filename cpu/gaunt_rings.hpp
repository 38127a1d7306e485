// Rings of the Gaunt products' grid: from coefficients folded over both hemispheres to those of a ring, and to values at its angles.
#pragma once
#include "cpu/block_map.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Of a ring and its mirror image (signs = 2), or of the equator (signs = 1): [part][even, odd][order] to [part][north, south][order], and back.
template <int signs, class T>
inline void unfold_ring(const GauntSlot<T>& slot, const Vector<T>* folded, Vector<T>* ring) {
  const int orders = 2 * slot.degree + 1;
  for (int part = 0; part < slot.parts; ++part, folded += 2 * orders, ring += 2 * orders)
    for (int m = 0; m < orders; ++m) {
      const Vector<T> even = folded[m];
      if (signs == 2) {
        const Vector<T> odd = folded[orders + m];
        ring[m] = even + odd;
        ring[orders + m] = even - odd;
      } else {
        ring[m] = even;
      }
    }
}
template <int signs, class T>
inline void fold_ring(const GauntSlot<T>& slot, const Vector<T>* ring, Vector<T>* folded) {
  unfold_ring<signs>(slot, ring, folded);  // its own inverse up to the factor in the quadrature's weights
}

// Values at the angles 2 pi j / n: even parts at [0, n / 2], odd parts behind them, to sums at j and n - j; and back.
template <class T>
inline void unfold_angles(Vector<T>* values, int n) {
  for (int j = 1; j <= (n - 1) / 2; ++j) {
    const Vector<T> even = values[j], odd = values[n / 2 + j];
    values[j] = even + odd;
    values[n / 2 + j] = even - odd;
  }
}
template <class T>
inline void ring_to_angles(const GauntSlot<T>& slot, const Vector<T>* ring, int n, Vector<T>* values) {
  apply(slot.to_angles, ring, values);
  unfold_angles<T>(values, n);
}
// Destroys the values.
template <class T>
inline void angles_to_ring(const GauntSlot<T>& slot, Vector<T>* values, int n, Vector<T>* ring) {
  unfold_angles<T>(values, n);  // its own inverse up to the factor in from_angles
  apply(slot.from_angles, values, ring);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
