// The threads of one block as fibers of one host thread: their scheduling, barriers, warp collectives and shared memory, and every
// misuse of these that can be seen.
#pragma once
#include "test/emulation/counters.hpp"
#include "test/emulation/device.hpp"
#include "test/emulation/fibers.hpp"
#include "test/emulation/vectors.hpp"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <numeric>
#include <random>
#include <source_location>
#include <string>
#include <utility>

// CUDA's own variables, those of the thread that runs now.
inline thread_local constinit uint3 threadIdx = {}, blockIdx = {};
inline thread_local constinit dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulated {

// What a launch executes, without its types: `call(closure)` is one thread's run of the kernel.
struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  size_t shared_limit = 0;  // that static and dynamic shared memory may take together
  void (*call)(const void* closure) = nullptr;
  const void* closure = nullptr;
};

enum class State : uint8_t { fresh, running, at_barrier, in_warp, finished };

struct Thread {
  uint3 index;
  unsigned rank = 0;
  State state = State::fresh;
  std::source_location where;  // of the barrier or collective it waits in
  char* stack = nullptr;
  Context context;

  unsigned warp() const { return rank / 32; }
  unsigned lane() const { return rank % 32; }
};

// Lanes that meet under one mask. The values of one meeting stay readable while the quickest lanes are already in the next; the
// address of each result is ThreadSanitizer's token of that meeting.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  unsigned generation = 0;
  std::source_location where;
  struct Result {
    uint32_t participants = 0;
    uint64_t value[32];
  } results[2];
};
struct Warp {
  uint32_t live = 0;
  std::list<Meeting> meetings;  // one a mask
};

// One allocation of shared memory, all NaN at first. The guard bytes around it are poisoned for AddressSanitizer, and compared after the
// block without it: a store to them is found in every build.
class SharedMemory {
 public:
  SharedMemory(const void* key, size_t bytes) : key(key), bytes_(bytes) {
    whole_ = static_cast<unsigned char*>(operator new(bytes + 2 * guard_bytes, alignment));
    std::memset(whole_, guard_value, guard_bytes);
    std::memset(data(), 0xff, bytes);
    std::memset(data() + bytes, guard_value, guard_bytes);
    sanitizer::poison(whole_, guard_bytes);
    sanitizer::poison(data() + bytes, guard_bytes);
  }
  SharedMemory(SharedMemory&& other) noexcept : key(other.key), bytes_(other.bytes_), whole_(std::exchange(other.whole_, nullptr)) {}
  ~SharedMemory() {
    if (whole_) operator delete(whole_, alignment);
  }
  unsigned char* data() const { return whole_ + guard_bytes; }
  size_t bytes() const { return bytes_; }
  bool contains(const void* p) const { return p >= data() && p < data() + bytes_; }
  bool is_intact() const {
    sanitizer::unpoison(whole_, bytes_ + 2 * guard_bytes);
    const auto is_guard = [](unsigned char byte) { return byte == guard_value; };
    return std::all_of(whole_, data(), is_guard) && std::all_of(data() + bytes_, data() + bytes_ + guard_bytes, is_guard);
  }

  const void* key;  // tells variables in static shared memory apart

 private:
  static constexpr size_t guard_bytes = 128;
  static constexpr unsigned char guard_value = 0xa5;
  static constexpr std::align_val_t alignment{128};
  size_t bytes_;
  unsigned char* whole_;
};

// One a host thread, kept for its stacks.
class Block {
 public:
  // Runs all blocks. False: one did what would be undefined on a device; stderr says what.
  bool run(const Launch& launch);

  // The rest is for the fiber that runs.
  void wait_at_barrier(std::source_location where);
  const Meeting::Result& meet(uint32_t mask, uint64_t value, std::source_location where, bool orders_memory);
  void* static_memory(const void* key, size_t bytes);
  void* dynamic_memory() const { return shared_.front().data(); }
  bool is_shared(const void* p) const {
    return std::any_of(shared_.begin(), shared_.end(), [p](const SharedMemory& memory) { return memory.contains(p); });
  }
  const Thread& thread() const { return *thread_; }
  [[noreturn]] void fail(std::source_location where, const char* format, ...) __attribute__((format(printf, 3, 4)));

 private:
  void prepare(const Launch& launch);
  bool run_one(uint3 index);
  void resume(Thread& thread);
  void finished(Thread& thread);
  void pass_barrier();
  void end_meeting(Warp& warp, Meeting& meeting);
  void report(std::source_location where, const char* format, va_list arguments);
  void report_deadlock();
  void recycle(Thread& thread);
  void suspend() {
    sanitizer::release(&end_token_);  // the end of the launch also follows threads that are never resumed
    switch_context(thread_->context, scheduler_);
  }
  static void run_thread();
  struct Failure {};  // thrown from the kernel to its beginning, so that destructors run

  const Launch* launch_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Thread*> ready_, turn_;  // to run next, and those of the turn in progress
  std::vector<SharedMemory> shared_;   // the dynamic one first
  size_t shared_bytes_ = 0;
  Thread* thread_ = nullptr;
  Context scheduler_;
  StackPool stacks_;
  TsanFibers tsan_fibers_;
  std::minstd_rand shuffle_;
  unsigned live_ = 0, at_barrier_ = 0;
  uint64_t barriers_ = 0;
  std::source_location barrier_where_;
  bool failed_ = false;
  // A thread releases one token and acquires the same after the barrier. Two in turn: a thread that already waits at the next barrier
  // must not seem to come before those that have yet to leave this one. New ones for each block, which the last one's do not order.
  std::unique_ptr<char[]> barrier_tokens_;
  char end_token_ = 0;
};

namespace detail {
// The block whose kernel this host thread runs.
inline thread_local constinit Block* block = nullptr;
}  // namespace detail

inline bool same_place(std::source_location a, std::source_location b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}
inline std::string name_of(std::source_location where) { return std::string(where.file_name()) + ':' + std::to_string(where.line()); }

inline bool Block::run(const Launch& launch) {
  const sanitizer::Unobserved unobserved;
  prepare(launch);
  CountedLaunch counted;
  // Blocks in an order that is a step (coprime to their number, so that all get their turn) from one to the next.
  const dim3 grid = launch.grid;
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  uint64_t at = 0, step = 1;
  if (device.seed) {
    at = shuffle_() % blocks;
    do step = 1 + shuffle_() % blocks;
    while (std::gcd(step, blocks) != 1);
  }
  const uint64_t last = device.last_blocks;
  for (uint64_t i = 0; i < blocks && !failed_; ++i, at = (at + step) % blocks) {
    if (last && at + last < blocks) continue;
    run_one({unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)});
  }
  tsan_fibers_.shrink(0);
  sanitizer::acquire(&end_token_);  // what follows the launch follows all its threads
  counted.barriers = barriers_;
  return !failed_;
}

inline void Block::prepare(const Launch& launch) {
  launch_ = &launch;
  failed_ = false;
  barriers_ = 0;
  shuffle_.seed(static_cast<unsigned>(device.seed));
  adopt_running_thread(scheduler_);
  const dim3 size = blockDim = launch.block;
  gridDim = launch.grid;
  threads_.resize(size.x * size.y * size.z);
  warps_.resize((threads_.size() + 31) / 32);
  unsigned rank = 0;
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x, ++rank) {
        threads_[rank].index = {x, y, z};
        threads_[rank].rank = rank;
      }
    }
  }
}

inline bool Block::run_one(uint3 index) {
  blockIdx = index;
  shared_.clear();
  shared_.emplace_back(nullptr, launch_->shared_bytes);
  shared_bytes_ = launch_->shared_bytes;
  live_ = static_cast<unsigned>(threads_.size());
  at_barrier_ = 0;
  ready_.clear();
  for (Warp& warp : warps_) {
    warp.live = 0;
    warp.meetings.clear();
  }
  if (sanitizer::thread) barrier_tokens_ = std::make_unique<char[]>(2);
  for (Thread& thread : threads_) {
    thread.state = State::fresh;
    warps_[thread.warp()].live |= 1u << thread.lane();
    ready_.push_back(&thread);
  }

  detail::block = this;
  while (!ready_.empty() && !failed_) {
    turn_.swap(ready_);
    ready_.clear();
    if (device.seed) std::shuffle(turn_.begin(), turn_.end(), shuffle_);
    for (Thread* thread : turn_) {
      resume(*thread);
      if (failed_) break;
    }
  }
  if (live_ && !failed_) report_deadlock();
  detail::block = nullptr;

  for (const SharedMemory& memory : shared_) {
    if (memory.is_intact() || failed_) continue;
    std::fprintf(stderr, "CUDA emulation: block (%u,%u,%u) stored outside its %zu bytes of %s shared memory\n", index.x, index.y, index.z,
                 memory.bytes(), memory.key ? "static" : "dynamic");
    failed_ = true;
  }
  // Threads of a failed block never go on; their stacks serve others.
  for (Thread& thread : threads_) recycle(thread);
  return !failed_;
}

inline void Block::resume(Thread& thread) {
  thread_ = &thread;
  threadIdx = thread.index;
  if (thread.state == State::fresh) {
    thread.stack = stacks_.take();
    start_context(thread.context, thread.stack, thread.rank, run_thread);
  }
  thread.state = State::running;
  switch_context(scheduler_, thread.context);
  if (thread.state == State::finished) finished(thread);
}

inline void Block::run_thread() {
  Block& block = *detail::block;
  entered_from(block.scheduler_);
  try {
    block.launch_->call(block.launch_->closure);
  } catch (Failure) {
  }
  {
    const sanitizer::Unobserved unobserved;
    block.thread_->state = State::finished;
    sanitizer::release(&block.end_token_);
  }
  switch_context(block.thread_->context, block.scheduler_, true);
  std::abort();  // unreachable: nobody resumes it
}

inline void Block::recycle(Thread& thread) {
  if (!thread.stack) return;
  tsan_fibers_.retire(thread.context, threads_.size());  // those of the last block are told apart from this one's
  stacks_.give_back(std::exchange(thread.stack, nullptr));
}

// Those that wait for all live threads may have waited for this one only.
inline void Block::finished(Thread& thread) {
  recycle(thread);
  --live_;
  Warp& warp = warps_[thread.warp()];
  warp.live &= ~(1u << thread.lane());
  if (at_barrier_ && at_barrier_ == live_) pass_barrier();
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived && meeting.arrived == (meeting.mask & warp.live)) end_meeting(warp, meeting);
  }
}

inline void Block::wait_at_barrier(std::source_location where) {
  void* token;
  {
    const sanitizer::Unobserved unobserved;
    token = barrier_tokens_.get() + barriers_ % 2;
    if (at_barrier_ && !same_place(where, barrier_where_)) {
      fail(where, "barrier divergence: other threads of the block wait at the __syncthreads of %s", name_of(barrier_where_).c_str());
    }
    barrier_where_ = thread_->where = where;
    thread_->state = State::at_barrier;
    if (++at_barrier_ == live_) pass_barrier();
  }
  sanitizer::release(token);
  suspend();
  sanitizer::acquire(token);
}

inline void Block::pass_barrier() {
  ++barriers_;
  at_barrier_ = 0;
  for (Thread& thread : threads_) {
    if (thread.state == State::at_barrier) ready_.push_back(&thread);
  }
}

// Each lane of `mask` that has not returned hands in a value; returns all of them once they are there.
inline const Meeting::Result& Block::meet(uint32_t mask, uint64_t value, std::source_location where, bool orders_memory) {
  Meeting::Result* result;
  {
    const sanitizer::Unobserved unobserved;
    Thread& thread = *thread_;
    Warp& warp = warps_[thread.warp()];
    if (!(mask >> thread.lane() & 1)) fail(where, "bad mask: lane %u passes 0x%08x, where it is not itself", thread.lane(), mask);
    auto found = std::find_if(warp.meetings.begin(), warp.meetings.end(), [mask](const Meeting& m) { return m.mask == mask; });
    if (found == warp.meetings.end()) {
      found = warp.meetings.emplace(found);
      found->mask = mask;
    }
    Meeting& meeting = *found;
    if (meeting.arrived && !same_place(where, meeting.where)) {
      fail(where, "warp divergence: other lanes of mask 0x%08x wait at %s", mask, name_of(meeting.where).c_str());
    }
    result = &meeting.results[meeting.generation % 2];
    result->value[thread.lane()] = value;
    meeting.arrived |= 1u << thread.lane();
    meeting.where = thread.where = where;
    thread.state = State::in_warp;
    if (meeting.arrived == (mask & warp.live)) end_meeting(warp, meeting);
  }
  if (orders_memory) sanitizer::release(result);
  suspend();
  if (orders_memory) sanitizer::acquire(result);
  return *result;
}

inline void Block::end_meeting(Warp& warp, Meeting& meeting) {
  meeting.results[meeting.generation % 2].participants = meeting.arrived;
  Thread* first = &threads_[(&warp - warps_.data()) * 32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (meeting.arrived >> lane & 1) ready_.push_back(first + lane);
  }
  meeting.arrived = 0;
  ++meeting.generation;
}

inline void* Block::static_memory(const void* key, size_t bytes) {
  const sanitizer::Unobserved unobserved;
  for (const SharedMemory& memory : shared_) {
    if (memory.key == key) return memory.data();
  }
  shared_bytes_ += bytes;
  if (shared_bytes_ > launch_->shared_limit) {
    fail(std::source_location::current(), "static and dynamic shared memory of a block take %zu bytes, %zu are allowed", shared_bytes_,
         launch_->shared_limit);
  }
  return shared_.emplace_back(key, bytes).data();
}

inline void Block::report(std::source_location where, const char* format, va_list arguments) {
  const uint3 thread = thread_->index, block = blockIdx;
  std::fprintf(stderr, "%s: CUDA emulation: ", name_of(where).c_str());
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, " [thread (%u,%u,%u) of block (%u,%u,%u)]\n", thread.x, thread.y, thread.z, block.x, block.y, block.z);
}

// Ends the launch from within a thread of it.
inline void Block::fail(std::source_location where, const char* format, ...) {
  {
    const sanitizer::Unobserved unobserved;
    va_list arguments;
    va_start(arguments, format);
    report(where, format, arguments);
    va_end(arguments);
    failed_ = true;
  }
  throw Failure();
}

inline void Block::report_deadlock() {
  failed_ = true;
  std::fprintf(stderr, "CUDA emulation: deadlock in block (%u,%u,%u):\n", blockIdx.x, blockIdx.y, blockIdx.z);
  std::vector<const Thread*> waiting;
  for (const Thread& thread : threads_) {
    if (thread.state != State::finished) waiting.push_back(&thread);
  }
  while (!waiting.empty()) {
    const Thread& first = *waiting.front();
    const auto elsewhere = std::stable_partition(waiting.begin(), waiting.end(), [&](const Thread* thread) {
      return thread->state != first.state || !same_place(thread->where, first.where);
    });
    std::fprintf(stderr, "%s:   %zu threads wait for others %s, first (%u,%u,%u)\n", name_of(first.where).c_str(),
                 static_cast<size_t>(waiting.end() - elsewhere), first.state == State::at_barrier ? "of the block" : "of their warp",
                 first.index.x, first.index.y, first.index.z);
    waiting.erase(elsewhere, waiting.end());
  }
}

inline bool run_grid(const Launch& launch) {
  static thread_local Block block;
  return block.run(launch);
}

inline void* dynamic_shared() { return detail::block->dynamic_memory(); }

namespace detail {
template <class T, int id>
inline char static_shared_key;
}
template <class T, int id>
T& static_shared() {
  static_assert(alignof(T) <= 128);
  return *static_cast<T*>(detail::block->static_memory(&detail::static_shared_key<T, id>, sizeof(T)));
}

}  // namespace emulated
