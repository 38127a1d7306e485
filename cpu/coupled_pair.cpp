// All paths between two degrees at once, for pairs of low degrees in float32: the loops over orders and degrees are unrolled, so that no index is read and no product stored.
// The coefficients are a list in the order in which they are needed (core/coupled_pair.hpp).
#include "cpu/coupled_pair.hpp"
#include "cpu/channels.hpp"
#include <array>

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Degrees l3 whose sums, of orders M and -M, are in registers at once: all of them with 32 registers.
inline constexpr int degrees_at_once = sizeof(Vector<float>) == 64 ? 2 * coupled_degree + 1 : 5;

enum class Orders { sum, difference };

// body(a, b, sum or difference) for the orders of x and y that couple to order M.
template <int l1, int l2, int M, class Body>
EQUITENSOR_INLINE void for_each_product(Body&& body) {
  each(Int<0>{}, Int<l1>{}, [&](auto order) EQUITENSOR_LAMBDA {
    constexpr int a = decltype(order){};
    constexpr std::integral_constant<Orders, Orders::sum> sum;
    constexpr std::integral_constant<Orders, Orders::difference> difference;
    if constexpr (M - a >= 0 && M - a <= l2) body(order, Int<M - a>{}, sum);
    if constexpr (a > M && a - M <= l2) body(order, Int<a - M>{}, difference);
    if constexpr (a > 0 && M > 0 && a + M <= l2) body(order, Int<a + M>{}, difference);
  });
}

// For one order M after the other: z_l3,+-M = sum of c_l3 re, c_l3 im over the products that couple to it.
template <int l1, int l2, int terms, class T>
void multiply_coupled(const T* coefficients, const Vector<T>* const (&x)[2], const Vector<T>* const (&y)[2], Vector<T>* z, const int* outputs) {
  using V = Vector<T>;
  constexpr CoupledPair pair{l1, l2};
  each(Int<0>{}, Int<l1 + l2>{}, [&](auto order) EQUITENSOR_LAMBDA {
    constexpr int M = decltype(order){}, lowest = pair.lowest(M), chunks = (pair.highest() - lowest) / degrees_at_once + 1;
    each(Int<0>{}, Int<chunks - 1>{}, [&](auto chunk) EQUITENSOR_LAMBDA {
      constexpr int begin = lowest + decltype(chunk){} * degrees_at_once, count = minimum(degrees_at_once, pair.highest() + 1 - begin);
      V positive[count], negative[count];
#pragma GCC unroll 16
      for (int q = 0; q < count; ++q) positive[q] = negative[q] = V{};
      for_each_product<l1, l2, M>([&](auto a_, auto b_, auto kind) EQUITENSOR_LAMBDA {
        constexpr int a = decltype(a_){}, b = decltype(b_){};
        constexpr bool is_difference = kind == Orders::difference;
        constexpr int at = pair.first(a, b) + (is_difference ? pair.sums(a, b) : 0) + begin - lowest;
        V re{}, im{};
#pragma GCC unroll 2
        for (int t = 0; t < terms; ++t) {
          const V xa = x[t][l1 + a], x_a = x[t][l1 - a], yb = y[t][l2 + b], y_b = y[t][l2 - b];
          if constexpr (a == 0 || b == 0)
            re += xa * yb, im += a == 0 ? xa * y_b : x_a * yb;
          else if constexpr (!is_difference)
            re += xa * yb, re -= x_a * y_b, im += xa * y_b, im += x_a * yb;
          else if constexpr (a < b)
            re += xa * yb, re += x_a * y_b, im += xa * y_b, im -= x_a * yb;
          else
            re += xa * yb, re += x_a * y_b, im += x_a * yb, im -= xa * y_b;
        }
        each(Int<0>{}, Int<count - 1>{}, [&](auto q) EQUITENSOR_LAMBDA {
          constexpr bool odd = (l1 + l2 + begin + decltype(q){}) % 2 != 0;
          if constexpr (M == 0) {
            if constexpr (!odd)
              positive[q] += splat(coefficients[at + q]) * re;
            else if constexpr (is_difference)
              positive[q] += splat(coefficients[at + q]) * im;
          } else {
            const V c = in_register(splat(coefficients[at + q]));
            if constexpr (odd)
              negative[q] += c * re, positive[q] -= c * im;
            else
              positive[q] += c * re, negative[q] += c * im;
          }
        });
      });
      each(Int<0>{}, Int<count - 1>{}, [&](auto q) EQUITENSOR_LAMBDA {
        V* const to = z + outputs[begin + decltype(q){} - pair.lowest()];
        to[M] = positive[q];
        if constexpr (M > 0) to[-M] = negative[q];
      });
    });
  });
}

// For orders a and b: the gradients of their products, sums of c_l3 z_l3 over the degrees, and those of x and y through them.
template <int l1, int l2, class T>
void differentiate_coupled(const T* coefficients, const Vector<T>* x, const Vector<T>* y, const Vector<T>* z, const int* outputs, Vector<T>* dx, Vector<T>* dy, SpreadPrefetch<T>& next) {
  using V = Vector<T>;
  constexpr CoupledPair pair{l1, l2};
  V sum_y[2 * l2 + 1];
#pragma GCC unroll 16
  for (int j = 0; j <= 2 * l2; ++j) sum_y[j] = dy[j];
  each(Int<0>{}, Int<l1>{}, [&](auto a_) EQUITENSOR_LAMBDA {
    constexpr int a = decltype(a_){};
    const V xa = x[l1 + a], x_a = x[l1 - a];
    V sum = dx[l1 + a], sum_of_negative = dx[l1 - a];
    each(Int<0>{}, Int<l2>{}, [&](auto b_) EQUITENSOR_LAMBDA {
      constexpr int b = decltype(b_){};
      next.template some<(a > 0 ? 2 : 1) * (b > 0 ? 2 : 1)>();
      // The gradients of both parts of a product.
      const auto gather = [&]<int M, int at>(Int<M>, Int<at>, V& re, V& im) EQUITENSOR_LAMBDA {
        each(Int<pair.lowest(M)>{}, Int<pair.highest()>{}, [&](auto l3) EQUITENSOR_LAMBDA {
          constexpr bool odd = (l1 + l2 + decltype(l3){}) % 2 != 0;
          const V* const from = z + outputs[l3 - pair.lowest()];
          const T* const value = coefficients + at + (l3 - pair.lowest(M));
          if constexpr (M == 0) {
            if constexpr (!odd)
              re += splat(*value) * from[0];
            else
              im += splat(*value) * from[0];
          } else {
            const V c = in_register(splat(*value));
            if constexpr (odd)
              re += c * from[-M], im -= c * from[M];
            else
              re += c * from[M], im += c * from[-M];
          }
        });
      };
      const V yb = y[l2 + b], y_b = y[l2 - b];
      V &sum_b = sum_y[l2 + b], &sum_of_negative_b = sum_y[l2 - b];
      V re{}, im{};
      gather(Int<a + b>{}, Int<pair.first(a, b)>{}, re, im);
      if constexpr (a == 0 && b == 0) {
        sum += re * yb, sum_b += re * xa;
      } else if constexpr (a == 0) {
        sum += re * yb, sum += im * y_b, sum_b += re * xa, sum_of_negative_b += im * xa;
      } else if constexpr (b == 0) {
        sum += re * yb, sum_of_negative += im * yb, sum_b += re * xa, sum_b += im * x_a;
      } else {
        V re_difference{}, im_difference{};
        gather(Int<(a < b ? b - a : a - b)>{}, Int<pair.first(a, b) + pair.sums(a, b)>{}, re_difference, im_difference);
        if constexpr (a < b) im_difference = -im_difference;
        const V plus = re_difference + re, minus = re_difference - re, crossed = im + im_difference, turned = im - im_difference;
        sum += plus * yb, sum += turned * y_b, sum_of_negative += crossed * yb, sum_of_negative += minus * y_b;
        sum_b += plus * xa, sum_b += crossed * x_a, sum_of_negative_b += turned * xa, sum_of_negative_b += minus * x_a;
      }
    });
    dx[l1 + a] = sum;
    if constexpr (a > 0) dx[l1 - a] = sum_of_negative;
  });
#pragma GCC unroll 16
  for (int j = 0; j <= 2 * l2; ++j) dy[j] = sum_y[j];
}

template <class T>
const CoupledKernels<T>& coupled_kernels(int l1, int l2) {
  constexpr int count = (coupled_degree + 1) * (coupled_degree + 2) / 2;
  static constexpr auto kernels = []<int... n>(std::integer_sequence<int, n...>) {
    constexpr auto degree = [](int pair) {
      int l = 0;
      while ((l + 1) * (l + 2) / 2 <= pair) ++l;
      return l;
    };
    return std::array{[]<int l1, int l2>(Int<l1>, Int<l2>) {
      return CoupledKernels<T>{{multiply_coupled<l1, l2, 1, T>, multiply_coupled<l1, l2, 2, T>}, differentiate_coupled<l1, l2, T>};
    }(Int<degree(n)>{}, Int<n - degree(n) * (degree(n) + 1) / 2>{})...};
  }(std::make_integer_sequence<int, count>{});
  return kernels[size_t(l1 * (l1 + 1) / 2 + l2)];
}

#if defined(__AVX2__) && !defined(EQUITENSOR_COUNT)
static_assert(has_constants<float>);
template const CoupledKernels<float>& coupled_kernels(int, int);
#endif

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
