// What AddressSanitizer and ThreadSanitizer must be told about fibers and shared memory. Without them all of this is empty.
#pragma once
#include <cstddef>

#if defined(__has_feature)
#define EQUITENSOR_HAS_FEATURE(name) __has_feature(name)
#else
#define EQUITENSOR_HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || EQUITENSOR_HAS_FEATURE(address_sanitizer)
#define EQUITENSOR_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__) || EQUITENSOR_HAS_FEATURE(thread_sanitizer)
#define EQUITENSOR_TSAN 1
#include <sanitizer/tsan_interface.h>
// Exported by the runtime, declared in none of its headers.
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// For functions that run partly as one fiber and partly as another: instrumented, they would confuse whose call stack it is.
#define EQUITENSOR_NO_TSAN __attribute__((no_sanitize("thread")))

namespace emulated::sanitizer {

#ifdef EQUITENSOR_ASAN
inline constexpr bool address = true;
inline void poison(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline constexpr bool address = false;
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

#ifdef EQUITENSOR_TSAN
inline constexpr bool thread = true;
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
// While one lives, this thread's accesses are not looked at: the emulator's bookkeeping is shared by all fibers on purpose.
struct Unobserved {
  Unobserved() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unobserved() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
inline constexpr bool thread = false;
inline void release(void*) {}
inline void acquire(void*) {}
struct Unobserved {
  Unobserved() {}
};
#endif

}  // namespace emulated::sanitizer
