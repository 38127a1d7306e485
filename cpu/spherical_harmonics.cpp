// Real spherical harmonics of vectors: Legendre recurrences in Cartesian form, one vector a lane.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
struct HarmonicsBuffers {
  Vector<T>*vectors, *out;
  HarmonicsBuffers(const HarmonicsPlan<T>& plan, Scratch<T>& scratch)
      : vectors(scratch.take(3)), out(scratch.take(RowWriter<T>::buffer_vectors(plan.dim))) {}
};

// r^l Y_lm = scale_l Q_lm(y, r^2) Re or Im (z + i x)^m (polar axis y), with Q by the recurrence of core/legendre.hpp.
template <class T>
void harmonics(const HarmonicsPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  Scratch<T> scratch(memory);
  HarmonicsBuffers<T> buffer(plan, scratch);
  const int orders = plan.lmax + 1;
  RowWriter<T> writer(a, 2, plan.dim, buffer.out);
  const T* diagonal = plan.recurrence + 2 * orders * orders;
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    load_rows(a.in[x_operand], a.stride[0], 3, tile, buffer.vectors);
    Vector<T> x = buffer.vectors[0], y = buffer.vectors[1], z = buffer.vectors[2];
    if (plan.normalize) {
      // e3nn's torch.nn.functional.normalize: the length is at least 1e-12, so that the zero vector stays zero.
      const Vector<T> length = vector_max<T>(vector_sqrt<T>(x * x + y * y + z * z), T(1e-12));
      x = x / length;
      y = y / length;
      z = z / length;
    }
    const Vector<T> squared = x * x + y * y + z * z;
    Vector<T> cosine = splat(T(1)), sine = splat(T(0));  // Re, Im (z + i x)^m
    for (int m = 0; m < orders; ++m) {
      Vector<T> value = splat(diagonal[m]), previous = splat(T(0));
      for (int l = m; l < orders; ++l) {
        if (l > m) {
          const T* ab = plan.recurrence + 2 * (m * orders + l);
          const Vector<T> next = ab[0] * (y * value) + ab[1] * (squared * previous);
          previous = value;
          value = next;
        }
        for (int copy = plan.degree_begin[l]; copy < plan.degree_begin[l + 1]; ++copy) {
          Vector<T>* to = writer.tile() + plan.copies[copy] + l;
          const Vector<T> scaled = plan.scale[l] * value;
          to[m] = scaled * cosine;
          if (m > 0) to[-m] = scaled * sine;
        }
      }
      const Vector<T> next = cosine * z - sine * x;
      sine = cosine * x + sine * z;
      cosine = next;
    }
    writer.write(tile, first, last);
  });
  stream_fence();
}

template <class T>
long harmonics_scratch(const HarmonicsPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  HarmonicsBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_spherical_harmonics(TypedKernels<T>& k) {
  k.harmonics = {harmonics<T>, harmonics_scratch<T>};
}
template void add_spherical_harmonics(TypedKernels<float>&);
template void add_spherical_harmonics(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
