// Real spherical harmonics of vectors, their gradient, and the derivatives of both along a direction: core/spherical_harmonics.hpp, one
// vector a lane.
#include "core/spherical_harmonics.hpp"
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"
#include <type_traits>

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
struct HarmonicsBuffers {
  Vector<T>*vectors, *direction, *cotangent, *gradient, *out;
  HarmonicsBuffers(const HarmonicsPlan<T>& plan, Scratch<T>& scratch)
      : vectors(scratch.take(3)), direction(scratch.take(3)), cotangent(scratch.take(plan.dim)),
        gradient(scratch.take(RowWriter<T>::buffer_vectors(3))), out(scratch.take(RowWriter<T>::buffer_vectors(plan.dim))) {}
};

// A number, which does not change along a direction.
template <class N, class T>
EQUITENSOR_INLINE N constant(T value) {
  if constexpr (std::is_same_v<N, Vector<T>>)
    return splat(value);
  else
    return {splat(value), splat(T(0))};
}

// With a direction the results are derivatives along it.
template <class T, bool has_direction>
void evaluate_harmonics(const HarmonicsPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  using V = Vector<T>;
  using N = std::conditional_t<has_direction, Dual<V>, V>;
  Scratch<T> scratch(memory);
  HarmonicsBuffers<T> buffer(plan, scratch);
  const int orders = plan.lmax + 1;
  const bool values = a.terms.writes[2], gradient = a.terms.writes[0];
  RowWriter<T> x_out(a, 0, 3, buffer.gradient), z_out(a, 2, plan.dim, buffer.out);
  const auto read = [](const auto* p) EQUITENSOR_LAMBDA { return *p; };
  for_each_tile<T>(begin, end, a.stream, [&](const Tile& tile, bool first, bool last) {
    const auto load_point = [&](int operand, V* to) -> Point<V> {
      load_rows(a.in[operand], a.stride[0], 3, tile, to);
      return {to[0], to[1], to[2]};
    };
    const Point<V> v = load_point(x_operand, buffer.vectors);
    V inverse = splat(T(1)), slope = inverse;
    if (plan.normalize) {
      // e3nn's torch.nn.functional.normalize: the length is at least 1e-12, so that the zero vector stays zero.
      const V length = vector_sqrt<T>(dot(v, v));
      inverse = splat(T(1)) / vector_max<T>(length, T(1e-12));
      slope = vector_where_above<T>(length, T(1e-12), inverse);
    }
    Normalised<N> at;
    if constexpr (has_direction) {
      const Point<V> direction = load_point(x_direction, buffer.direction);
      at = plan.normalize ? normalised(v, direction, inverse, slope) : Normalised<N>{along<V>(v, direction), {}};
    } else {
      at = plan.normalize ? normalised(v, inverse, slope) : Normalised<N>{v, {}};
    }
    V* const cotangent = buffer.cotangent;
    if (gradient) {
      load_rows(a.in[z_operand], a.stride[2], plan.dim, tile, cotangent);
      for (int l = 0; l < orders; ++l)
        for (int copy = plan.degree_begin[l] + 1; copy < plan.degree_begin[l + 1]; ++copy)
          for (int m = -l; m <= l; ++m) cotangent[plan.centre[l] + m] += cotangent[plan.copies[copy] + l + m];
    }
    const N squared = dot(at.point, at.point);
    Point<N> sum{};
    N cosine = constant<N>(T(1)), sine{};  // Re, Im w^m
    for (int m = 0; m < orders; ++m) {
      const N start = constant<N>(plan.recurrence[2 * orders * orders + m]);
      if (values) {
        V* const to = z_out.tile();
        write_order(plan, m, start, at.point.y, squared, cosine, sine, read, [&](int component, V value) EQUITENSOR_LAMBDA { to[component] = value; });
      }
      if (gradient && m < plan.lmax) add_gradient(plan, m, start, at.point.y, squared, cosine, sine, cotangent, read, sum);
      next_power(at.point, cosine, sine);
    }
    if (values) z_out.write(tile, first, last);
    if (gradient) {
      const Point<V> result = plan.normalize ? normalised_gradient<V>(at, sum) : result_of<V>(sum);
      V* const to = x_out.tile();
      to[0] = result.x, to[1] = result.y, to[2] = result.z;
      x_out.write(tile, first, last);
    }
  });
  stream_fence();
}

template <class T>
void harmonics(const HarmonicsPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  if (a.terms.reads[x_direction])
    evaluate_harmonics<T, true>(plan, a, begin, end, memory);
  else
    evaluate_harmonics<T, false>(plan, a, begin, end, memory);
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
