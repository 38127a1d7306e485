// One pool of threads for the process.
#pragma once
#include <functional>

namespace equitensor {

int available_threads();

// Calls body(task, scratch) once for every task in [0, tasks), on up to `threads` threads including the caller's. scratch is the
// thread's own, 64-byte aligned. Throws std::bad_alloc if there is no memory for it. When another JavaScript thread
// is using the pool, the caller does all tasks alone: what a task computes never depends on who runs it.
void parallel_for(int threads, long tasks, long scratch_bytes, const std::function<void(long, void*)>& body);

}  // namespace equitensor
