#include "cpu/pool.hpp"
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace equitensor {
namespace {

struct Scratch {
  void* memory = nullptr;
  long size = 0;
  ~Scratch() { std::free(memory); }
  void* at_least(long bytes) {
    if (bytes > size) {
      std::free(memory);
      size = (bytes + 4095) / 4096 * 4096;
      memory = std::aligned_alloc(64, size_t(size));
      if (!memory) {
        size = 0;
        throw std::bad_alloc();
      }
    }
    return memory;
  }
};
thread_local Scratch scratch;

struct Job {
  const std::function<void(long, void*)>* body;
  long tasks, scratch_bytes;
  std::atomic<long> next{0};
  std::atomic<bool> out_of_memory{false};

  void work() {
    void* memory;
    try {
      memory = scratch.at_least(scratch_bytes);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
      return;
    }
    for (long task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) (*body)(task, memory);
  }
};

class Pool {
 public:
  void run(int helpers, Job& job) {
    {
      std::lock_guard lock(mutex_);
      while (int(threads_.size()) < helpers) {
        const int index = int(threads_.size());
        threads_.emplace_back([this, index] { serve(index); });
      }
      job_ = &job;
      helpers_ = helpers;
      running_ = helpers;
      ++generation_;
    }
    start_.notify_all();
    job.work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    job_ = nullptr;
  }

  std::mutex in_use;

 private:
  void serve(int index) {
    long seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= helpers_) continue;
      Job* job = job_;
      lock.unlock();
      job->work();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  int helpers_ = 0, running_ = 0;
  long generation_ = 0;
};

// Never destroyed: its threads sleep until the process ends, and a worker thread of Node may still be in a kernel then.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

int available_threads() {
  const int n = int(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

void parallel_for(int threads, long tasks, long scratch_bytes, const std::function<void(long, void*)>& body) {
  Job job{&body, tasks, scratch_bytes};
  const int helpers = int(std::min<long>(threads, tasks)) - 1;
  std::unique_lock lock(pool().in_use, std::defer_lock);
  if (helpers > 0 && lock.try_lock())
    pool().run(helpers, job);
  else
    job.work();
  if (job.out_of_memory) throw std::bad_alloc();
}

}  // namespace equitensor
