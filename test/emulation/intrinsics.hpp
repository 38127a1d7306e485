// CUDA's functions for device code. Those that wait for other threads know the line that they were called from.
#pragma once
#include "test/emulation/block.hpp"
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

using emulated_where = std::source_location;

inline void __syncthreads(emulated_where where = emulated_where::current()) { emulated::wait_at_barrier(where); }

inline void __syncwarp(unsigned mask = 0xffffffff, emulated_where where = emulated_where::current()) { emulated::wait_for_warp(mask, where); }

namespace emulated {

template <class T>
T shuffle_value(Shuffle kind, unsigned mask, T value, int argument, int width, std::source_location where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(kind, mask, bits, argument, width, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Atomic among fibers as they are; really atomic for ThreadSanitizer and for other host threads. Relaxed, as in CUDA.
template <class T, class Operation>
T read_modify_write(T* p, Operation operation) {
  count_atomic(p, sizeof(T));
  T expected, desired;
  __atomic_load(p, &expected, __ATOMIC_RELAXED);
  do desired = operation(expected);
  while (!__atomic_compare_exchange(p, &expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return expected;
}

}  // namespace emulated

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, emulated_where where = emulated_where::current()) {
  return emulated::shuffle_value(emulated::Shuffle::index, mask, value, lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, emulated_where where = emulated_where::current()) {
  return emulated::shuffle_value(emulated::Shuffle::up, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, emulated_where where = emulated_where::current()) {
  return emulated::shuffle_value(emulated::Shuffle::down, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, emulated_where where = emulated_where::current()) {
  return emulated::shuffle_value(emulated::Shuffle::exclusive_or, mask, value, bits, width, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emulated_where where = emulated_where::current()) {
  return emulated::vote(mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, emulated_where where = emulated_where::current()) {
  return emulated::vote(mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulated_where where = emulated_where::current()) {
  return emulated::vote(mask, predicate == 0, where) == 0;
}

template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  return emulated::read_modify_write(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicSub(T* p, std::type_identity_t<T> v) {
  return emulated::read_modify_write(p, [v](T old) { return static_cast<T>(old - v); });
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  return emulated::read_modify_write(p, [v](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  return emulated::read_modify_write(p, [v](T old) { return v < old ? v : old; });
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return emulated::read_modify_write(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> compare, std::type_identity_t<T> v) {
  return emulated::read_modify_write(p, [=](T old) { return old == compare ? v : old; });
}

// Orders what came before it with what follows the fences of others, which is what a counter of finished blocks relies on.
inline void __threadfence() {
  static char token;
  emulated::sanitizer::acquire(&token);
  emulated::sanitizer::release(&token);
}
inline void __threadfence_block() { __threadfence(); }
[[noreturn]] inline void __trap(emulated_where where = emulated_where::current()) { emulated::fail(where, "__trap"); }

template <class T>
T __ldg(const T* p) {
  emulated::count_load(p, sizeof(T));
  return *p;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return v ? std::countr_zero(static_cast<unsigned>(v)) + 1 : 0; }
inline unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (v >> bit & 1) << (31 - bit);
  return reversed;
}
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }
// Of one type only: CUDA also mixes them, with conversions that a kernel had better write out.
constexpr int min(int a, int b) { return b < a ? b : a; }
constexpr unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
constexpr long long min(long long a, long long b) { return b < a ? b : a; }
constexpr int max(int a, int b) { return a < b ? b : a; }
constexpr unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
constexpr long long max(long long a, long long b) { return a < b ? b : a; }
