// Solid harmonics and the gradient of a sum of them, for both backends, on plain numbers or on dual ones: a double backward and a jvp are
// the same code along a direction.
//
//   r^l Y_lm = s_l Q_lm(y, r^2) Re w^m, and Im w^m for order -m     w = z + i x (polar axis y), Q by the recurrence of core/legendre.hpp
//
// N: what is computed with (numbers, vectors, duals of them); T: the plan's coefficients, read by `read`.
#pragma once
#include "plan.hpp"
#include "unroll.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// value + derivative e with e^2 = 0: a function of it has its derivative along a direction beside its value.
template <class V>
struct Dual {
  V value, derivative;

  EQUITENSOR_INLINE constexpr Dual& operator+=(Dual b) { return *this = *this + b; }
  EQUITENSOR_INLINE friend constexpr Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.derivative + b.derivative}; }
  EQUITENSOR_INLINE friend constexpr Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.derivative - b.derivative}; }
  EQUITENSOR_INLINE friend constexpr Dual operator*(Dual a, Dual b) { return {a.value * b.value, a.value * b.derivative + a.derivative * b.value}; }
};
// By a constant of the direction: a coefficient, or a cotangent.
template <class S, class V>
EQUITENSOR_INLINE constexpr Dual<V> operator*(S s, Dual<V> d) { return {s * d.value, s * d.derivative}; }

// What a pass asks for: a product, or its derivative along the direction.
template <class V>
EQUITENSOR_INLINE constexpr V result_of(V a, V b) { return a * b; }
template <class V>
EQUITENSOR_INLINE constexpr V result_of(Dual<V> a, Dual<V> b) { return a.value * b.derivative + a.derivative * b.value; }

template <class N>
struct Point {
  N x, y, z;
};
template <class N>
EQUITENSOR_INLINE constexpr N dot(const Point<N>& a, const Point<N>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class S, class N>
EQUITENSOR_INLINE constexpr Point<N> operator*(S s, const Point<N>& a) { return {s * a.x, s * a.y, s * a.z}; }
template <class N>
EQUITENSOR_INLINE constexpr Point<N> operator-(const Point<N>& a, const Point<N>& b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

template <class V>
EQUITENSOR_INLINE constexpr Point<Dual<V>> along(const Point<V>& a, const Point<V>& direction) {
  return {{a.x, direction.x}, {a.y, direction.y}, {a.z, direction.z}};
}

// The normalised vector, and one over the length as a factor of gradients. `slope` is that too, or 0 where the length is clamped: there
// the gradient is defined to be 0, since that of degree 1 would be 1e12.
template <class N>
struct Normalised {
  Point<N> point;
  N slope;
};
template <class V>
EQUITENSOR_INLINE constexpr Normalised<V> normalised(const Point<V>& v, V inverse, V slope) { return {inverse * v, slope}; }
template <class V>
EQUITENSOR_INLINE constexpr Normalised<Dual<V>> normalised(const Point<V>& v, const Point<V>& direction, V inverse, V slope) {
  const Point<V> u = inverse * v;
  const V radial = dot(u, direction);
  return {along<V>(u, slope * (direction - radial * u)), {slope, V{} - slope * (slope * radial)}};
}
// From the gradient with respect to the normalised vector to that with respect to the vector.
template <class V, class N>
EQUITENSOR_INLINE constexpr Point<V> normalised_gradient(const Normalised<N>& at, const Point<N>& gradient) {
  const Point<N> tangential = gradient - dot(gradient, at.point) * at.point;
  return {result_of(at.slope, tangential.x), result_of(at.slope, tangential.y), result_of(at.slope, tangential.z)};
}
template <class V>
EQUITENSOR_INLINE constexpr Point<V> result_of(const Point<V>& a) { return a; }
template <class V>
EQUITENSOR_INLINE constexpr Point<V> result_of(const Point<Dual<V>>& a) { return {a.x.derivative, a.y.derivative, a.z.derivative}; }

// Calls visit(l, Q_lm) for degrees m <= l <= last, Q without the factor s_l. start: Q_mm, the recurrence's diagonal.
template <class N, class T, class Read, class Visit>
EQUITENSOR_INLINE constexpr void for_each_degree(const HarmonicsPlan<T>& plan, int m, int last, N start, N y, N squared, const Read& read,
                                                 Visit&& visit) {
  N value = start, previous{};
  for (int l = m; l <= last; ++l) {
    if (l > m) {
      const T* ab = plan.recurrence + 2 * (m * (plan.lmax + 1) + l);
      const N next = read(ab) * (y * value) + read(ab + 1) * (squared * previous);
      previous = value;
      value = next;
    }
    visit(l, value);
  }
}

// w^(m+1) from w^m.
template <class N>
EQUITENSOR_INLINE constexpr void next_power(const Point<N>& v, N& cosine, N& sine) {
  const N next = cosine * v.z - sine * v.x;
  sine = cosine * v.x + sine * v.z;
  cosine = next;
}

// Calls write(component, value) for the harmonics of orders m and -m, with their derivatives along the direction for dual numbers.
template <class N, class T, class Read, class Write>
EQUITENSOR_INLINE constexpr void write_order(const HarmonicsPlan<T>& plan, int m, N start, N y, N squared, N cosine, N sine, const Read& read,
                                             Write&& write) {
  for_each_degree<N>(plan, m, plan.lmax, start, y, squared, read, [&](int l, N value) EQUITENSOR_LAMBDA {
    int copy = read(plan.degree_begin + l);
    const int end = read(plan.degree_begin + l + 1);
    if (copy == end) return;
    const N scaled = read(plan.scale + l) * value;
    const auto even = result_of(scaled, cosine);
    auto odd = even;
    if (m > 0) odd = result_of(scaled, sine);
    for (; copy < end; ++copy) {
      const int centre = read(plan.copies + copy) + l;
      write(centre + m, even);
      if (m > 0) write(centre - m, odd);
    }
  });
}

// sum += what the harmonics of order k of degrees l - 1 give to the gradient of sum over l, m of g_lm s_l r^l Y_lm: by harmonic_ladder
// (core/legendre.hpp) they meet the g_lm of orders k + 1, k and k - 1. g[centre[l] + m] is g_lm, of all copies of l. low: min(k, 2).
template <int low, class N, class T, class G, class Read>
EQUITENSOR_INLINE constexpr void add_gradient(const HarmonicsPlan<T>& plan, int k, N start, N y, N squared, N cosine, N sine, const G& g,
                                              const Read& read, Point<N>& sum) {
  N up{}, up_sine{}, same{}, same_sine{}, down{}, down_sine{};
  for_each_degree<N>(plan, k, plan.lmax - 1, start, y, squared, read, [&](int below, N value) EQUITENSOR_LAMBDA {
    const int l = below + 1, centre = read(plan.centre + l);
    if (centre < 0) return;
    const T* ladder = plan.ladder + 3 * (k * (plan.lmax + 1) + l);
    const N from_above = read(ladder) * value, from_same = read(ladder + 1) * value;
    up += g[centre + k + 1] * from_above;
    up_sine += g[centre - k - 1] * from_above;
    same += g[centre + k] * from_same;
    if constexpr (low > 0) {
      const N from_below = read(ladder + 2) * value;
      same_sine += g[centre - k] * from_same;
      down += g[centre + k - 1] * from_below;
      if constexpr (low > 1) down_sine += g[centre - k + 1] * from_below;
    }
  });
  // Re of (up - down) w^k, of i (up + down) w^k and of same w^k, where up stands for up - i up_sine.
  if constexpr (low == 0) {
    sum = {sum.x + up_sine, sum.y + same, sum.z + up};
  } else {
    N x_cosine = up_sine, z_sine = up_sine;
    if constexpr (low > 1) x_cosine += down_sine, z_sine = z_sine - down_sine;
    sum.x += x_cosine * cosine - (up + down) * sine;
    sum.y += same * cosine + same_sine * sine;
    sum.z += (up - down) * cosine + z_sine * sine;
  }
}
template <class N, class T, class G, class Read>
EQUITENSOR_INLINE constexpr void add_gradient(const HarmonicsPlan<T>& plan, int k, N start, N y, N squared, N cosine, N sine, const G& g,
                                              const Read& read, Point<N>& sum) {
  if (k == 0) return add_gradient<0>(plan, k, start, y, squared, cosine, sine, g, read, sum);
  if (k == 1) return add_gradient<1>(plan, k, start, y, squared, cosine, sine, g, read, sum);
  add_gradient<2>(plan, k, start, y, squared, cosine, sine, g, read, sum);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
