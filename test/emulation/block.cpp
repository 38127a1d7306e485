// The threads of one block as fibers of one host thread: their scheduling, barriers, warp collectives and shared memory, and every
// misuse of these that can be seen.
#include "test/emulation/block.hpp"
#include "test/emulation/fibers.hpp"
#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>

namespace emulated {
namespace {

enum class State : uint8_t { fresh, running, at_barrier, in_warp, finished };

struct Thread {
  uint3 index;
  unsigned rank = 0;
  State state = State::fresh;
  std::source_location where;  // of the barrier or collective it waits in
  Stack stack;
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
  bool is_shared(const void* p) const {
    return std::any_of(shared_.begin(), shared_.end(), [p](const SharedMemory& memory) { return memory.contains(p); });
  }
  const Thread& thread() const { return *thread_; }
  [[noreturn]] void fail(std::source_location where, const char* format, va_list arguments);
  [[noreturn]] void fail_at(std::source_location where, const char* format, ...) __attribute__((format(printf, 3, 4)));

 private:
  void prepare(const Launch& launch);
  bool run_one(uint3 index);
  void resume(Thread& thread);
  void finished(Thread& thread);
  void pass_barrier();
  void end_meeting(Warp& warp, Meeting& meeting);
  void report(std::source_location where, const char* format, va_list arguments);
  void report_deadlock();
  void suspend() {
    sanitizer::release(&end_token_);  // the end of the launch also follows threads that are never resumed
    switch_context(thread_->context, scheduler_);
  }
  EQUITENSOR_NO_TSAN static void run_thread();
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
  std::minstd_rand shuffle_;
  unsigned live_ = 0, at_barrier_ = 0;
  uint64_t blocks_ = 0, barriers_ = 0;
  std::source_location barrier_where_;
  bool failed_ = false;
  // A thread releases one token and acquires the same after the barrier. Two in turn: a thread that already waits at the next barrier
  // must not seem to come before those that have yet to leave this one. New ones for each block, which the last one's do not order.
  std::unique_ptr<char[]> barrier_tokens_;
  char end_token_ = 0;
};

// Whose kernel this host thread runs.
thread_local constinit Block* running = nullptr;

bool same_place(std::source_location a, std::source_location b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}
std::string name_of(std::source_location where) { return std::string(where.file_name()) + ':' + std::to_string(where.line()); }

bool Block::run(const Launch& launch) {
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
  sanitizer::acquire(&end_token_);  // what follows the launch follows all its threads
  counted.barriers = barriers_;
  return !failed_;
}

void Block::prepare(const Launch& launch) {
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

bool Block::run_one(uint3 index) {
  blockIdx = index;
  ++blocks_;
  shared_.clear();
  shared_.emplace_back(nullptr, launch_->shared_bytes);
  detail::dynamic_memory = shared_.front().data();
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

  running = this;
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
  running = nullptr;

  for (const SharedMemory& memory : shared_) {
    if (memory.is_intact() || failed_) continue;
    std::fprintf(stderr, "CUDA emulation: block (%u,%u,%u) stored outside its %zu bytes of %s shared memory\n", index.x, index.y, index.z,
                 memory.bytes(), memory.key ? "static" : "dynamic");
    failed_ = true;
  }
  // Threads of a failed block never go on.
  for (Thread& thread : threads_)
    if (thread.stack.memory) stacks_.abandon(std::exchange(thread.stack, {}));
  return !failed_;
}

void Block::resume(Thread& thread) {
  thread_ = &thread;
  threadIdx = thread.index;
  if (thread.state == State::fresh) {
    thread.stack = stacks_.take(blocks_);
    start_context(thread.context, thread.stack, thread.rank, run_thread);
  }
  const bool begins = std::exchange(thread.state, State::running) == State::fresh;
  switch_context(scheduler_, thread.context, begins ? Switch::begins : Switch::goes_on);
  if (thread.state == State::finished) finished(thread);
}

void Block::run_thread() {
  Block& block = *running;
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
  switch_context(block.thread_->context, block.scheduler_, Switch::ends);
  std::abort();  // unreachable: nobody resumes it
}

// Those that wait for all live threads may have waited for this one only.
void Block::finished(Thread& thread) {
  stacks_.give_back(std::exchange(thread.stack, {}));
  --live_;
  Warp& warp = warps_[thread.warp()];
  warp.live &= ~(1u << thread.lane());
  if (at_barrier_ && at_barrier_ == live_) pass_barrier();
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived && meeting.arrived == (meeting.mask & warp.live)) end_meeting(warp, meeting);
  }
}

void Block::wait_at_barrier(std::source_location where) {
  void* token;
  {
    const sanitizer::Unobserved unobserved;
    token = barrier_tokens_.get() + barriers_ % 2;
    if (at_barrier_ && !same_place(where, barrier_where_)) {
      fail_at(where, "barrier divergence: other threads of the block wait at the __syncthreads of %s", name_of(barrier_where_).c_str());
    }
    barrier_where_ = thread_->where = where;
    thread_->state = State::at_barrier;
    if (++at_barrier_ == live_) pass_barrier();
  }
  sanitizer::release(token);
  suspend();
  sanitizer::acquire(token);
}

void Block::pass_barrier() {
  ++barriers_;
  at_barrier_ = 0;
  for (Thread& thread : threads_) {
    if (thread.state == State::at_barrier) ready_.push_back(&thread);
  }
}

// Each lane of `mask` that has not returned hands in a value; returns all of them once they are there.
const Meeting::Result& Block::meet(uint32_t mask, uint64_t value, std::source_location where, bool orders_memory) {
  Meeting::Result* result;
  {
    const sanitizer::Unobserved unobserved;
    Thread& thread = *thread_;
    Warp& warp = warps_[thread.warp()];
    if (!(mask >> thread.lane() & 1)) fail_at(where, "bad mask: lane %u passes 0x%08x, where it is not itself", thread.lane(), mask);
    auto found = std::find_if(warp.meetings.begin(), warp.meetings.end(), [mask](const Meeting& m) { return m.mask == mask; });
    if (found == warp.meetings.end()) {
      found = warp.meetings.emplace(found);
      found->mask = mask;
    }
    Meeting& meeting = *found;
    if (meeting.arrived && !same_place(where, meeting.where)) {
      fail_at(where, "warp divergence: other lanes of mask 0x%08x wait at %s", mask, name_of(meeting.where).c_str());
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

void Block::end_meeting(Warp& warp, Meeting& meeting) {
  meeting.results[meeting.generation % 2].participants = meeting.arrived;
  Thread* first = &threads_[(&warp - warps_.data()) * 32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (meeting.arrived >> lane & 1) ready_.push_back(first + lane);
  }
  meeting.arrived = 0;
  ++meeting.generation;
}

void* Block::static_memory(const void* key, size_t bytes) {
  const sanitizer::Unobserved unobserved;
  for (const SharedMemory& memory : shared_) {
    if (memory.key == key) return memory.data();
  }
  shared_bytes_ += bytes;
  if (shared_bytes_ > launch_->shared_limit) {
    fail_at(std::source_location::current(), "static and dynamic shared memory of a block take %zu bytes, %zu are allowed", shared_bytes_,
         launch_->shared_limit);
  }
  return shared_.emplace_back(key, bytes).data();
}

void Block::report(std::source_location where, const char* format, va_list arguments) {
  const uint3 thread = thread_->index, block = blockIdx;
  std::fprintf(stderr, "%s: CUDA emulation: ", name_of(where).c_str());
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, " [thread (%u,%u,%u) of block (%u,%u,%u)]\n", thread.x, thread.y, thread.z, block.x, block.y, block.z);
}

// Ends the launch from within a thread of it.
void Block::fail(std::source_location where, const char* format, va_list arguments) {
  {
    const sanitizer::Unobserved unobserved;
    report(where, format, arguments);
    failed_ = true;
  }
  throw Failure();
}
void Block::fail_at(std::source_location where, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail(where, format, arguments);
}

void Block::report_deadlock() {
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

}  // namespace

bool run_grid(const Launch& launch) {
  static thread_local Block block;
  return block.run(launch);
}
void* static_memory(const void* key, size_t bytes) { return running->static_memory(key, bytes); }
void fail(std::source_location where, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  running->fail(where, format, arguments);
}

void wait_at_barrier(std::source_location where) { running->wait_at_barrier(where); }
void wait_for_warp(unsigned mask, std::source_location where) { running->meet(mask, 0, where, true); }

uint64_t shuffle(Shuffle kind, unsigned mask, uint64_t value, int argument, int width, std::source_location where) {
  Block& block = *running;
  if (width < 1 || width > 32 || !std::has_single_bit(unsigned(width))) block.fail_at(where, "a shuffle's width is a power of 2 up to 32, not %d", width);
  const Meeting::Result& result = block.meet(mask, value, where, false);
  const sanitizer::Unobserved unobserved;
  const int lane = int(block.thread().lane()), first = lane & ~(width - 1), end = first + width;
  int from = lane;
  switch (kind) {
    case Shuffle::index: from = first + (argument & (width - 1)); break;
    // A lane that would read beyond its segment of `width` lanes gets its own value; xor reads earlier segments as well.
    case Shuffle::up: from = lane - argument < first ? lane : lane - argument; break;
    case Shuffle::down: from = lane + argument >= end ? lane : lane + argument; break;
    case Shuffle::exclusive_or: from = (lane ^ argument) >= end ? lane : lane ^ argument; break;
  }
  if (!(result.participants >> from & 1)) block.fail_at(where, "lane %d reads lane %d, which is inactive or not in the mask 0x%08x", lane, from, mask);
  return result.value[from];
}

unsigned vote(unsigned mask, bool predicate, std::source_location where) {
  const Meeting::Result& result = running->meet(mask, predicate, where, false);
  const sanitizer::Unobserved unobserved;
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((result.participants >> lane & 1) && result.value[lane]) votes |= 1u << lane;
  }
  return votes;
}

// ---- counters

void Footprint::touch(const void* p, size_t bytes, const Footprint* but) {
  const sanitizer::Unobserved unobserved;
  requested_ += bytes;
  uintptr_t address = reinterpret_cast<uintptr_t>(p);
  while (bytes) {
    const size_t first = address % line_bytes;
    const size_t here = bytes < line_bytes - first ? bytes : line_bytes - first;
    Bytes touched = (Bytes().set() >> (line_bytes - here)) << first;
    if (but && !but->lines_.empty()) {
      const auto found = but->lines_.find(address / line_bytes);
      if (found != but->lines_.end()) touched &= ~found->second;
    }
    if (touched.any()) lines_[address / line_bytes] |= touched;
    address += here;
    bytes -= here;
  }
}
void count_atomic_now(const void* p, size_t bytes) {
  const sanitizer::Unobserved unobserved;
  if (running->is_shared(p)) return;
  ++detail::traffic->atomics;
  detail::traffic->stored.touch(p, bytes);
}

}  // namespace emulated
