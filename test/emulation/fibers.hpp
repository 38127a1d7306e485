// Flows of control that a host thread switches between, each on a stack of its own.
#pragma once
#include "test/emulation/sanitizers.hpp"
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <new>
#include <sys/mman.h>

#if !defined(__x86_64__) && !defined(EQUITENSOR_EMULATION_UCONTEXT)
#define EQUITENSOR_EMULATION_UCONTEXT
#endif
#ifdef EQUITENSOR_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace emulated {

// Reserved, not used: a kernel touches a page or two. AddressSanitizer puts red zones between local variables.
inline constexpr size_t stack_bytes = sanitizer::address ? 256 << 10 : 128 << 10;
inline constexpr size_t guard_page_bytes = 4096;  // below a stack, so that its overflow is a fault and not a riddle

// What a flow runs on.
struct Stack {
  char* memory = nullptr;
  void* tsan_fiber = nullptr;  // ThreadSanitizer's name for who runs here
  uint64_t block = 0;          // that it served last
};

// To ThreadSanitizer all that runs on one stack is one thread, so it is silent about a race of a flow with an earlier one on its stack, or with what that one has
// waited for. So a stack rests for as many blocks. A new one each time would do too, at 0.8 MB of ThreadSanitizer's, written and unmapped, which takes 0.2 ms.
inline constexpr uint64_t blocks_told_apart = 3;

class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool&) = delete;
  ~StackPool() {
    for (const Stack& stack : free_) discard(stack);
  }
  Stack take(uint64_t block) {
    Stack stack;
    if (sanitizer::thread) {
      if (!free_.empty() && free_.front().block + blocks_told_apart < block) stack = free_.front(), free_.pop_front();
    } else if (!free_.empty()) {
      stack = free_.back(), free_.pop_back();
    }
    if (!stack.memory) make(stack);
    stack.block = block;
    return stack;
  }
  // Of a flow that has ended.
  void give_back(const Stack& stack) {
    forget_frames(stack);
    free_.push_back(stack);
  }
  // Of one that has not, and never goes on.
  void abandon(const Stack& stack) {
    if (sanitizer::thread) {
      discard(stack);
    } else {
      give_back(stack);
    }
  }

 private:
  static void make(Stack& stack) {
    void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard_page_bytes, PROT_NONE);
    stack.memory = static_cast<char*>(memory);
#ifdef EQUITENSOR_TSAN
    stack.tsan_fiber = __tsan_create_fiber(0);
#endif
  }
  // The functions that ran there did not all return, so AddressSanitizer still has red zones of their frames.
  static void forget_frames(const Stack& stack) { sanitizer::unpoison(stack.memory + guard_page_bytes, stack_bytes - guard_page_bytes); }
  static void discard(const Stack& stack) {
    forget_frames(stack);
#ifdef EQUITENSOR_TSAN
    __tsan_destroy_fiber(stack.tsan_fiber);
#endif
    munmap(stack.memory, stack_bytes);
  }
  std::deque<Stack> free_;
};

// A flow that is not running now.
struct Context {
#ifdef EQUITENSOR_EMULATION_UCONTEXT
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;   // AddressSanitizer's
  void* tsan_fiber = nullptr;
};

#ifdef EQUITENSOR_EMULATION_UCONTEXT
// Portable, and some ten times slower: it saves the signal mask with a system call.
EQUITENSOR_NO_TSAN inline void exchange_registers(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
inline void prepare_registers(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}
#else
#ifdef __clang__
#define EQUITENSOR_OPAQUE noinline
#else
#define EQUITENSOR_OPAQUE noipa  // g++ would look inside, see no register used, and keep values in all of them
#endif
// Saves on the stack itself the registers that a call preserves in the System V ABI (`from` is rdi, `to` is rsi); 2 ns.
__attribute__((naked, EQUITENSOR_OPAQUE, no_sanitize("thread", "address", "undefined"))) inline void exchange_stacks(void** /*from*/,
                                                                                                                  void* /*to*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
      "ret\n");
}
EQUITENSOR_NO_TSAN inline void exchange_registers(Context& from, Context& to) {
  exchange_stacks(&from.stack_pointer, to.stack_pointer);
}
inline void prepare_registers(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // where entry would return to: ends a debugger's backtrace, and aligns the stack as a call does
  *--top = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
  context.stack_pointer = top;
}
#endif

// Stores the running flow in `from` and goes on with `to`, which `begins` after all that `from` has done. A flow that `ends` is never switched to again.
enum class Switch { goes_on, begins, ends };
EQUITENSOR_NO_TSAN inline void switch_context(Context& from, Context& to, [[maybe_unused]] Switch how = Switch::goes_on) {
#ifdef EQUITENSOR_ASAN
  __sanitizer_start_switch_fiber(how == Switch::ends ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
#endif
#ifdef EQUITENSOR_TSAN
  // Other switches order nothing; only barriers do.
  __tsan_switch_to_fiber(to.tsan_fiber, how == Switch::begins ? 0 : __tsan_switch_to_fiber_no_sync);
#endif
  exchange_registers(from, to);
#ifdef EQUITENSOR_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// To be called first in a new flow, with the one that it was switched to from.
inline void entered_from([[maybe_unused]] Context& starter) {
#ifdef EQUITENSOR_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &starter.stack_bottom, &starter.stack_size);
#endif
}

// `colour` staggers stacks by cache lines: all starting at the same place in a page, they would compete for one set of the cache.
inline void start_context(Context& context, const Stack& stack, unsigned colour, void (*entry)()) {
  const size_t stagger = colour % 32 * 256;
  context.stack_bottom = stack.memory;
  context.stack_size = stack_bytes;
  context.tsan_fiber = stack.tsan_fiber;
  prepare_registers(context, stack.memory + guard_page_bytes, stack_bytes - guard_page_bytes - stagger, entry);
}
inline void adopt_running_thread([[maybe_unused]] Context& context) {
#ifdef EQUITENSOR_TSAN
  context.tsan_fiber = __tsan_get_current_fiber();
#endif
}

}  // namespace emulated
