// Vectors of the widest registers that this variant has, and the few operations that the compiler's vector type lacks.
#pragma once
#include "core/arithmetic.hpp"
#include "core/unroll.hpp"
#include <cstdint>
#include <type_traits>
#include <utility>
#if defined(__x86_64__) && !defined(EQUITENSOR_COUNT)
#include <immintrin.h>
#endif

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

#define EQUITENSOR_NOINLINE __attribute__((noinline))

#if defined(EQUITENSOR_COUNT)

// One lane that counts its operations: op.cost is checked against it.
extern long operation_count;
template <class T>
struct Counted {
  T value;
  EQUITENSOR_INLINE Counted& operator+=(Counted b) { return *this = *this + b; }
  EQUITENSOR_INLINE Counted& operator-=(Counted b) { return *this = *this - b; }
  EQUITENSOR_INLINE friend Counted operator+(Counted a, Counted b) { return ++operation_count, Counted{a.value + b.value}; }
  EQUITENSOR_INLINE friend Counted operator-(Counted a, Counted b) { return ++operation_count, Counted{a.value - b.value}; }
  EQUITENSOR_INLINE friend Counted operator*(Counted a, Counted b) { return ++operation_count, Counted{a.value * b.value}; }
  EQUITENSOR_INLINE friend Counted operator*(T a, Counted b) { return ++operation_count, Counted{a * b.value}; }
  EQUITENSOR_INLINE friend Counted operator/(Counted a, Counted b) { return ++operation_count, Counted{a.value / b.value}; }
};
template <class T>
using Vector = Counted<T>;
template <class T>
inline constexpr int width = 1;

template <class T>
EQUITENSOR_INLINE Vector<T> splat(T s) { return {s}; }
template <class T>
EQUITENSOR_INLINE Vector<T> load(const T* p) { return {*p}; }
template <class T>
EQUITENSOR_INLINE void store(T* p, Vector<T> v) { *p = v.value; }
template <class T>
EQUITENSOR_INLINE Vector<T> load_partial(const T* p, int) { return {*p}; }
template <class T>
EQUITENSOR_INLINE Vector<T> load_both(const T*, const T* last, int) { return {*last}; }
template <class T>
EQUITENSOR_INLINE void store_partial(T* p, Vector<T> v, int) { *p = v.value; }
template <class T>
EQUITENSOR_INLINE void store_lanes(T* p, Vector<T> v, int begin, int end) {
  if (begin < end) *p = v.value;
}
template <class T>
EQUITENSOR_INLINE void stream(T* p, Vector<T> v) { *p = v.value; }
EQUITENSOR_INLINE void stream_fence() {}
template <class T>
EQUITENSOR_INLINE void transpose(Vector<T> (&)[1]) {}
template <class T>
inline constexpr int piece = 16 / int(sizeof(T));
template <class T>
EQUITENSOR_INLINE void load_transposed(const T* first, long, int n, Vector<T>* out) {
  for (int i = 0; i < n; ++i) out[i] = {first[i]};
}
template <class T>
EQUITENSOR_INLINE Counted<T> in_register(Counted<T> v) { return v; }
template <class T>
EQUITENSOR_INLINE Vector<T> first_lanes(int, Vector<T>, Vector<T> b) { return b; }
template <class T>
EQUITENSOR_INLINE Vector<T> rotate(Vector<T> v, int) { return v; }
template <class T>
EQUITENSOR_INLINE Vector<T> vector_sqrt(Vector<T> v) { return {T(__builtin_sqrt(v.value))}; }
template <class T>
EQUITENSOR_INLINE Vector<T> vector_max(Vector<T> a, T b) { return {a.value > b ? a.value : b}; }
template <class T>
EQUITENSOR_INLINE Vector<T> vector_where_above(Vector<T> a, T b, Vector<T> v) { return {a.value > b ? v.value : 0}; }

#else

#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;  // SSE2, NEON
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes), may_alias));
  typedef T unaligned __attribute__((vector_size(vector_bytes), aligned(alignof(T)), may_alias));
};
template <class T>
struct PieceOf {
  typedef T type __attribute__((vector_size(16), may_alias));
  typedef T unaligned __attribute__((vector_size(16), aligned(alignof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
inline constexpr int width = vector_bytes / int(sizeof(T));

template <class T>
EQUITENSOR_INLINE Vector<T> splat(T s) { return s - Vector<T>{}; }
// Keeps the compiler from loading a broadcast anew for each of its uses.
template <class V>
EQUITENSOR_INLINE V in_register(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
  return v;
}
template <class T>
EQUITENSOR_INLINE Vector<T> load(const T* p) { return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p); }
template <class T>
EQUITENSOR_INLINE void store(T* p, Vector<T> v) { *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v; }

// The first n < width elements.
template <class T>
EQUITENSOR_INLINE Vector<T> load_partial(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
  else
    return (Vector<T>)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
#else
  Vector<T> v{};
  for (int i = 0; i < width<T>; ++i)
    if (i < n) v[i] = p[i];
  return v;
#endif
}
// Lanes begin, ..., end - 1 to where they are in a vector at p.
template <class T>
EQUITENSOR_INLINE void store_lanes(T* p, Vector<T> v, int begin, int end) {
#if defined(__AVX512F__)
  const unsigned mask = (1u << end) - (1u << begin);
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, __mmask16(mask), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, __mmask8(mask), (__m512d)v);
#else
  for (int i = 0; i < width<T>; ++i)
    if (begin <= i && i < end) p[i] = v[i];
#endif
}

template <class T>
EQUITENSOR_INLINE void store_partial(T* p, Vector<T> v, int n) { store_lanes(p, v, 0, n); }

// The first n lanes from `first`, the others from `last`: what else lies there is not read.
template <class T>
EQUITENSOR_INLINE Vector<T> load_both(const T* first, const T* last, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_mask_loadu_ps((__m512)load_partial(first, n), __mmask16(~0u << n), last);
  else
    return (Vector<T>)_mm512_mask_loadu_pd((__m512d)load_partial(first, n), __mmask8(~0u << n), last);
#else
  T lanes[width<T>];
  for (int i = 0; i < width<T>; ++i) lanes[i] = i < n ? first[i] : last[i];
  return load(lanes);
#endif
}

// A store past the cache; p is aligned to the vector. It saves reading the line that is about to be overwritten: 20.7
// against 14.3 GB/s for a copy of 2 GB on one core.
template <class T>
EQUITENSOR_INLINE void stream(T* p, Vector<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}
EQUITENSOR_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
struct LanesOf {
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index type __attribute__((vector_size(vector_bytes)));
  template <size_t... i>
  static EQUITENSOR_INLINE type numbers(std::index_sequence<i...>) { return type{Index(i)...}; }
};
template <int distance, class T, size_t... lane>
EQUITENSOR_INLINE void exchange(Vector<T>& a, Vector<T>& b, std::index_sequence<lane...>) {
  constexpr int w = width<T>;
  const Vector<T> low = __builtin_shufflevector(a, b, (int(lane) & distance ? w + int(lane) - distance : int(lane))...);
  b = __builtin_shufflevector(a, b, (int(lane) & distance ? w + int(lane) : int(lane) + distance)...);
  a = low;
}
// Square transpose, width x width, by log2(width) rounds of exchanges.
template <class T, int distance = width<T> / 2>
EQUITENSOR_INLINE void transpose_rounds(Vector<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < width<T>; ++i)
    if (!(i & distance)) exchange<distance, T>(rows[i], rows[i + distance], std::make_index_sequence<width<T>>{});
  if constexpr (distance > 1) transpose_rounds<T, distance / 2>(rows);
}
template <class T>
EQUITENSOR_INLINE void transpose(Vector<T> (&rows)[width<T>]) { transpose_rounds<T>(rows); }

// Elements of 16 bytes, and a vector of these of rows first, first + pitch, ...; n of them, else zeros.
template <class T>
inline constexpr int piece = 16 / int(sizeof(T));
template <class T>
EQUITENSOR_INLINE Vector<T> load_pieces(const T* first, long pitch, int n) {
  using Piece = typename PieceOf<T>::type;
  const auto row = [&](int i) EQUITENSOR_LAMBDA -> Piece {
    const T* p = first + i * pitch;
    if (n == piece<T>) return *reinterpret_cast<const typename PieceOf<T>::unaligned*>(p);
    Piece v{};
    for (int c = 0; c < piece<T>; ++c)
      if (c < n) v[c] = p[c];
    return v;
  };
#if defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512((__m128)row(0));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, (__m128)row(1));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, (__m128)row(2));
  return (Vector<T>)_mm512_mask_broadcast_f32x4(v, 0xf000, (__m128)row(3));
#elif defined(__AVX2__)
  return (Vector<T>)_mm256_insertf128_ps(_mm256_castps128_ps256((__m128)row(0)), (__m128)row(1), 1);
#else
  return row(0);
#endif
}
// Every 16 bytes by themselves: low has the first half of a's and then of b's elements in turns, high the second.
template <class T, size_t... lane>
EQUITENSOR_INLINE void interleave(Vector<T> a, Vector<T> b, Vector<T>& low, Vector<T>& high, std::index_sequence<lane...>) {
  constexpr int w = width<T>, half = piece<T> / 2;
  low = __builtin_shufflevector(a, b, (int(lane) / piece<T> * piece<T> + int(lane) % piece<T> / 2 + int(lane) % 2 * w)...);
  high = __builtin_shufflevector(a, b, (int(lane) / piece<T> * piece<T> + int(lane) % piece<T> / 2 + half + int(lane) % 2 * w)...);
}
// The first n <= piece<T> elements of `width` rows into out[element], whose lanes are the rows. Loads of 16 bytes put rows a piece's length apart side by side, so that
// shuffles within 16 bytes are enough: a transpose of 16 x 16 takes 40 cycles instead of 64.
template <class T>
EQUITENSOR_INLINE void load_transposed(const T* first, long pitch, int n, Vector<T>* out) {
  constexpr auto lanes = std::make_index_sequence<width<T>>{};
  Vector<T> rows[piece<T>], turned[piece<T>];
#pragma GCC unroll 4
  for (int i = 0; i < piece<T>; ++i) rows[i] = load_pieces(first + i * pitch, piece<T> * pitch, n);
  if constexpr (piece<T> == 2) {
    interleave<T>(rows[0], rows[1], turned[0], turned[1], lanes);
  } else {
    Vector<T> low[2], high[2];
    interleave<T>(rows[0], rows[2], low[0], high[0], lanes);
    interleave<T>(rows[1], rows[3], low[1], high[1], lanes);
    interleave<T>(low[0], low[1], turned[0], turned[1], lanes);
    interleave<T>(high[0], high[1], turned[2], turned[3], lanes);
  }
#pragma GCC unroll 4
  for (int i = 0; i < piece<T>; ++i)
    if (i < n) out[i] = turned[i];
}

template <class T>
EQUITENSOR_INLINE typename LanesOf<T>::type lane_numbers() { return LanesOf<T>::numbers(std::make_index_sequence<width<T>>{}); }
// The first n lanes of a, the others of b.
template <class T>
EQUITENSOR_INLINE Vector<T> first_lanes(int n, Vector<T> a, Vector<T> b) { return lane_numbers<T>() < typename LanesOf<T>::Index(n) ? a : b; }
// Lane i: lane from[i] of v, modulo their number.
template <class T>
EQUITENSOR_INLINE Vector<T> pick_lanes(Vector<T> v, typename LanesOf<T>::type from) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_permutexvar_ps((__m512i)from, (__m512)v);
  else
    return (Vector<T>)_mm512_permutexvar_pd((__m512i)from, (__m512d)v);
#elif defined(__clang__)  // which has no shuffle by lanes that are not constants
  Vector<T> picked;
  for (int i = 0; i < width<T>; ++i) picked[i] = v[from[i] & (width<T> - 1)];
  return picked;
#else
  return __builtin_shuffle(v, from);
#endif
}
// Lane i goes to lane i + n, the last ones to the first.
template <class T>
EQUITENSOR_INLINE Vector<T> rotate(Vector<T> v, int n) { return pick_lanes<T>(v, lane_numbers<T>() - typename LanesOf<T>::Index(n)); }

template <class T>
EQUITENSOR_INLINE Vector<T> vector_sqrt(Vector<T> v) {
  for (int i = 0; i < width<T>; ++i) v[i] = sizeof(T) == 4 ? T(__builtin_sqrtf(float(v[i]))) : T(__builtin_sqrt(v[i]));
  return v;
}
template <class T>
EQUITENSOR_INLINE Vector<T> vector_max(Vector<T> a, T b) { return a > b ? a : splat<T>(b); }
// v where a > b, else 0.
template <class T>
EQUITENSOR_INLINE Vector<T> vector_where_above(Vector<T> a, T b, Vector<T> v) { return a > b ? v : Vector<T>{}; }

#endif

// Lane i: the sum of the lanes of rows[i]. Halves of two rows are exchanged and added, which leaves half as many.
template <class T, int distance = width<T> / 2>
EQUITENSOR_INLINE Vector<T> sum_lanes(Vector<T>* rows) {
#if !defined(EQUITENSOR_COUNT)
  if constexpr (distance > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < distance; ++i) {
      exchange<distance, T>(rows[i], rows[i + distance], std::make_index_sequence<width<T>>{});
      rows[i] += rows[i + distance];
    }
    return sum_lanes<T, distance / 2>(rows);
  }
#endif
  return rows[0];
}

// Lane i is lane index[i] of v. With AVX-512 by name: g++ 12 makes wrong code of some constant permutations of doubles.
template <class T, int... index>
EQUITENSOR_INLINE Vector<T> permute_lanes(Vector<T> v) {
#if defined(EQUITENSOR_COUNT)
  return v;
#elif defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_permutexvar_ps((__m512i)typename LanesOf<T>::type{index...}, (__m512)v);
  else
    return (Vector<T>)_mm512_permutexvar_pd((__m512i)typename LanesOf<T>::type{index...}, (__m512d)v);
#else
  return __builtin_shufflevector(v, v, index...);
#endif
}
// Lane i of b where second[i], of a elsewhere.
template <class T, bool... second>
EQUITENSOR_INLINE Vector<T> blend(Vector<T> a, Vector<T> b) {
#if defined(EQUITENSOR_COUNT)
  return a;
#elif defined(__AVX512F__)
  unsigned mask = 0, bit = 1;
  ((mask |= second ? bit : 0, bit <<= 1), ...);
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_mask_blend_ps(__mmask16(mask), (__m512)a, (__m512)b);
  else
    return (Vector<T>)_mm512_mask_blend_pd(__mmask8(mask), (__m512d)a, (__m512d)b);
#else
  typename LanesOf<T>::type chosen{typename LanesOf<T>::Index(second ? -1 : 0)...};
  return chosen ? b : a;
#endif
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
