// What kernels did: a claim such as "reads each input once" becomes a test of these.
#pragma once
#include "test/emulation/sanitizers.hpp"
#include <atomic>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace emulated {

// Unique figures are summed over launches: what one launch reads again, or reads after it has written it, costs nothing (a cache may serve it), the next one pays.
struct Traffic {
  uint64_t requested = 0;  // bytes, as often as asked for
  uint64_t unique = 0;     // bytes
  uint64_t lines = 0;      // 128-byte lines touched
};
// Of launches that ran their PTX (ptx.hpp): machine instructions that warps issue, however many of their lanes take part; those of the lanes that do;
// `warp` by the PTX instruction, and by the line of C++. A PTX instruction counts as what ptxas makes of it alone (ptx_instructions.cpp): nothing for moves, cvta,
// ld.param and conversions that read a part of a register or the zero register, 24 for a division of integers, else one a register written. Over
// clebsch_gordan.cu and gaunt.cu that sums up to the machine code's length within 5 %; so what ptxas fuses (a shift into an address) and what it adds
// (matrix.cu, whose loops it unrolls, has a third more code) about cancel.
struct Instructions {
  uint64_t thread = 0, warp = 0;
  std::map<std::string, uint64_t> kinds, lines;
};
// Loads and stores of arrays by threads of such launches, by their bytes.
struct Accesses {
  std::map<unsigned, uint64_t> load, store;
};
struct Counts {
  uint64_t launches = 0;
  uint64_t barriers = 0;  // __syncthreads that a block completed
  uint64_t cleared = 0;   // bytes of memsets, no launches; only while counting(true), as
  // the rest:
  uint64_t atomics = 0;  // on global memory; what they touch is in `stored` as well
  Traffic loaded, stored, table;
  Instructions instructions;
  Accesses accesses;
};

// The bytes that one launch touched.
class Footprint {
 public:
  static constexpr uintptr_t line_bytes = 128;

  // But for the bytes that the other one has.
  void touch(const void* p, size_t bytes, const Footprint* but = nullptr);
  void add_to(Traffic& total) const {
    total.requested += requested_;
    total.lines += lines_.size();
    for (const auto& [line, bytes] : lines_) total.unique += bytes.count();
  }

 private:
  using Bytes = std::bitset<line_bytes>;
  uint64_t requested_ = 0;
  std::unordered_map<uintptr_t, Bytes> lines_;
};

struct LaunchTraffic {
  uint64_t atomics = 0;
  Footprint loaded, stored, table;
};

namespace detail {
inline std::atomic<bool> is_counting = false;
inline std::mutex totals_mutex;
inline Counts totals;
// Of the launch that this host thread runs; null while nothing is counted.
inline thread_local constinit LaunchTraffic* traffic = nullptr;
}  // namespace detail

// Bytes and lines cost a hash look-up an access, so they are counted only on request; launches that run then are counted whole.
inline void counting(bool on) { detail::is_counting = on; }
inline Counts counts() {
  const std::lock_guard lock(detail::totals_mutex);
  return detail::totals;
}
inline void reset_counts() {
  const std::lock_guard lock(detail::totals_mutex);
  detail::totals = {};
}

// At every access of a kernel, so that of these only the question is there.
EQUITENSOR_NO_TSAN inline void count_load(const void* p, size_t bytes) {
  if (detail::traffic) detail::traffic->loaded.touch(p, bytes, &detail::traffic->stored);
}
EQUITENSOR_NO_TSAN inline void count_store(const void* p, size_t bytes) {
  if (detail::traffic) detail::traffic->stored.touch(p, bytes);
}
inline void count_cleared(size_t bytes) {
  if (!detail::is_counting) return;
  const std::lock_guard lock(detail::totals_mutex);
  detail::totals.cleared += bytes;
}
EQUITENSOR_NO_TSAN inline void count_table(const void* p, size_t bytes) {
  if (detail::traffic) detail::traffic->table.touch(p, bytes);
}
void count_atomic_now(const void* p, size_t bytes);
inline void count_atomic(const void* p, size_t bytes) {
  if (detail::traffic) count_atomic_now(p, bytes);
}

// Around the blocks of one launch.
class CountedLaunch {
 public:
  CountedLaunch() {
    if (detail::is_counting) detail::traffic = &traffic_;
  }
  CountedLaunch(const CountedLaunch&) = delete;
  ~CountedLaunch() {
    detail::traffic = nullptr;
    const std::lock_guard lock(detail::totals_mutex);
    ++detail::totals.launches;
    detail::totals.barriers += barriers;
    detail::totals.atomics += traffic_.atomics;
    traffic_.loaded.add_to(detail::totals.loaded);
    traffic_.stored.add_to(detail::totals.stored);
    traffic_.table.add_to(detail::totals.table);
    detail::totals.instructions.thread += instructions.thread;
    detail::totals.instructions.warp += instructions.warp;
    for (const auto& [kind, count] : instructions.kinds) detail::totals.instructions.kinds[kind] += count;
    for (const auto& [line, count] : instructions.lines) detail::totals.instructions.lines[line] += count;
    for (const auto& [bytes, count] : accesses.load) detail::totals.accesses.load[bytes] += count;
    for (const auto& [bytes, count] : accesses.store) detail::totals.accesses.store[bytes] += count;
  }
  uint64_t barriers = 0;
  Instructions instructions;
  Accesses accesses;

 private:
  LaunchTraffic traffic_;
};

}  // namespace emulated
