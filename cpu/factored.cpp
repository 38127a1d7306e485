// Rows multiplied component by component: what a product with factors (cpu/operation.cpp) does before and behind the product's own kernel.
#include "cpu/kernels.hpp"
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// row[c] = values[index[c]] of `count` values: while these fit two vectors, a load, a permutation or two and a store for a vector of components.
template <class T>
void spread_row(const T* values, int count, const int* index, T* row, long n) {
  constexpr int w = width<T>;
#if !defined(EQUITENSOR_COUNT)
  if (count <= 2 * w && n >= w) {
    const Vector<T> first = count >= w ? load(values) : load_partial(values, count);
    const Vector<T> second = count > w ? load_partial(values + w, count - w) : first;
    for (long c = 0; c < n; c += w) {
      const long at = minimum(c, n - w);  // the last vector ends with the row
      typename LanesOf<T>::type from;
      for (int i = 0; i < w; ++i) from[i] = index[at + i];
      const Vector<T> picked = pick_lanes<T>(first, from);
      store(row + at, count <= w ? picked : from < w ? picked : pick_lanes<T>(second, from));
    }
    return;
  }
#endif
  for (long c = 0; c < n; ++c) row[c] = values[index[c]];
}
// out = a b, or out += a b
template <class T>
void multiply_rows(const T* a, const T* b, T* out, long n, bool add) {
  long c = 0;
  for (; c + width<T> <= n; c += width<T>) {
    const Vector<T> product = load(a + c) * load(b + c);
    store(out + c, add ? load(out + c) + product : product);
  }
  if (c == n) return;
  const int rest = int(n - c);
  const Vector<T> product = load_partial(a + c, rest) * load_partial(b + c, rest);
  store_partial(out + c, add ? load_partial(out + c, rest) + product : product, rest);
}
// out += a
template <class T>
void add_rows(const T* a, T* out, long n) {
  long c = 0;
  for (; c + width<T> <= n; c += width<T>) store(out + c, load(out + c) + load(a + c));
  if (c < n) store_partial(out + c, load_partial(out + c, int(n - c)) + load_partial(a + c, int(n - c)), int(n - c));
}

template <class T>
void add_factored(TypedKernels<T>& k) {
  k.spread_row = spread_row<T>;
  k.multiply_rows = multiply_rows<T>;
  k.add_rows = add_rows<T>;
}
template void add_factored(TypedKernels<float>&);
template void add_factored(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
