#include "test/emulation/runtime.hpp"
#include "test/emulation/device.hpp"
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace emulated::runtime {

using Work = std::function<cudaError_t()>;

// A place in a stream's order; the event it was recorded with may be gone.
struct Place {
  std::shared_ptr<struct Queue> queue;
  long long ticket = 0;
};

struct Task {
  Work work;
  Place after;  // of another stream; then there is no work
};

struct Queue {
  int device;
  std::deque<Task> tasks;
  long long enqueued = 0, done = 0;
  bool running = false;
};

}  // namespace emulated::runtime

struct CUgraph_st {
  int device;
  std::vector<emulated::runtime::Work> work;
  std::vector<std::shared_ptr<void>> memory;  // asked for while capturing: the same at every launch
};
struct CUstream_st {
  std::shared_ptr<emulated::runtime::Queue> queue;
  std::unique_ptr<CUgraph_st> capture;
  bool invalidated = false;
};
struct CUevent_st {
  emulated::runtime::Place place;
  std::shared_ptr<double> time = std::make_shared<double>(0);  // of its last record, in milliseconds
};
struct CUmemPoolHandle_st {
  int device;
};

namespace emulated::runtime {
namespace {

struct Allocation {
  size_t bytes;
  int device;
  bool from_pool;
};
struct Device {
  size_t used = 0, used_of_pool = 0;
  cudaError_t sticky = cudaSuccess;
};
struct Failure {
  cudaError_t error;
  int skip;
};

// One lock for all of it; it is released while work runs.
struct State {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<const char*, Allocation> allocations;
  std::vector<Device> devices;
  std::vector<std::weak_ptr<Queue>> queues;
  std::vector<std::shared_ptr<Queue>> abandoned;  // of destroyed streams, with work to do
  std::map<std::string, Failure> failures;
  std::map<std::string, long long> calls;
  size_t memory;
  bool has_pools;

  State() {
    const auto number = [](const char* name, long long otherwise) {
      const char* text = std::getenv(name);
      return text ? std::atoll(text) : otherwise;
    };
    devices.resize(size_t(number("EQUITENSOR_EMULATED_DEVICES", 1)));
    memory = size_t(number("EQUITENSOR_EMULATED_MEMORY", 1ll << 30));
    has_pools = number("EQUITENSOR_EMULATED_POOLS", 1) != 0;
  }
};
State& state() {
  static State* s = new State;  // outlives all destructors
  return *s;
}
using Lock = std::unique_lock<std::mutex>;

thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

// An error that a test has asked for.
cudaError_t injected(const char* call) {
  State& s = state();
  ++s.calls[call];
  const auto found = s.failures.find(call);
  if (found == s.failures.end() || found->second.skip-- > 0) return cudaSuccess;
  const cudaError_t error = found->second.error;
  s.failures.erase(found);
  // The errors of kernels that went wrong before; see cuda/runtime.cpp.
  if (error >= cudaErrorIllegalAddress && error <= cudaErrorLaunchFailure) s.devices[size_t(current)].sticky = error;
  return error;
}

// What every call begins with: the lock; a test's error; the error that has disabled the current device.
#define BEGIN(call)                                                                 \
  Lock lock(state().mutex);                                                         \
  if (const cudaError_t error = injected(#call); error != cudaSuccess) return result(error); \
  if (const cudaError_t error = sticky(current); error != cudaSuccess) return result(error)

cudaError_t sticky(int device) {
  const State& s = state();
  if (s.devices.empty()) return cudaErrorInsufficientDriver;
  return s.devices[size_t(device)].sticky;
}

// Runs the tasks of a queue up to a ticket, after whatever those wait for.
void drain(Lock& lock, const std::shared_ptr<Queue>& queue, long long ticket) {
  State& s = state();
  while (queue->done < ticket) {
    if (queue->running) {
      s.changed.wait(lock);
      continue;
    }
    queue->running = true;
    Task task = std::move(queue->tasks.front());
    queue->tasks.pop_front();
    if (task.after.queue) {
      drain(lock, task.after.queue, task.after.ticket);
    } else if (s.devices[size_t(queue->device)].sticky == cudaSuccess) {
      lock.unlock();
      const int previous = current;
      current = queue->device;
      const cudaError_t error = task.work();
      current = previous;
      task = {};
      lock.lock();
      if (error != cudaSuccess) s.devices[size_t(queue->device)].sticky = error;
    }
    queue->running = false;
    ++queue->done;
    s.changed.notify_all();
  }
}
void drain(Lock& lock, const std::shared_ptr<Queue>& queue) { drain(lock, queue, queue->enqueued); }

std::shared_ptr<Queue> legacy_queue(int device) {
  static std::map<int, std::shared_ptr<Queue>> queues;
  auto& queue = queues[device];
  if (!queue) {
    queue = std::make_shared<Queue>();
    queue->device = device;
  }
  return queue;
}

cudaError_t push(Lock& lock, cudaStream_t stream, Work work) {
  if (stream && stream->capture) {
    stream->capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  const std::shared_ptr<Queue> queue = stream ? stream->queue : legacy_queue(current);
  queue->tasks.push_back({std::move(work), {}});
  ++queue->enqueued;
  if (!stream) {
    drain(lock, queue);
    return sticky(queue->device);
  }
  return cudaSuccess;
}

// What cannot be part of a graph ends the capture.
cudaError_t refuse_capture(cudaStream_t stream) {
  if (!stream || !stream->capture) return cudaSuccess;
  stream->invalidated = true;
  return cudaErrorStreamCaptureUnsupported;
}
#define NOT_CAPTURING(stream) \
  if (const cudaError_t error = refuse_capture(stream); error != cudaSuccess) return result(error)

Place tail(cudaStream_t stream) {
  const auto queue = stream ? stream->queue : legacy_queue(current);
  return {queue, queue->enqueued};
}

bool is_device_memory(const void* p, size_t bytes) {
  const auto& all = state().allocations;
  auto next = all.upper_bound(static_cast<const char*>(p));
  if (next == all.begin()) return false;
  const auto& [begin, allocation] = *--next;
  return static_cast<const char*>(p) + bytes <= begin + allocation.bytes;
}

constexpr size_t lazy_bytes = 1 << 30;

void* allocate(size_t bytes, bool from_pool) {
  State& s = state();
  Device& device = s.devices[size_t(current)];
  if (bytes > s.memory - device.used) return nullptr;
  // As aligned as the real one, and NaN.
  void* memory = bytes < lazy_bytes ? std::aligned_alloc(256, (bytes + 255) / 256 * 256)
                                    : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!memory || memory == MAP_FAILED) return nullptr;
  if (bytes < lazy_bytes) std::memset(memory, 0xff, bytes);
  s.allocations[static_cast<char*>(memory)] = {bytes, current, from_pool};
  device.used += bytes;
  if (from_pool) device.used_of_pool += bytes;
  return memory;
}

bool release(void* memory) {
  State& s = state();
  const auto found = s.allocations.find(static_cast<char*>(memory));
  if (found == s.allocations.end()) return false;
  const Allocation a = found->second;
  s.allocations.erase(found);
  s.devices[size_t(a.device)].used -= a.bytes;
  if (a.from_pool) s.devices[size_t(a.device)].used_of_pool -= a.bytes;
  if (a.bytes < lazy_bytes) {
    std::memset(memory, 0xff, a.bytes);
    std::free(memory);
  } else {
    munmap(memory, a.bytes);
  }
  return true;
}

void drain_device(Lock& lock, int device) {
  for (const auto& weak : std::vector(state().queues))
    if (const auto queue = weak.lock(); queue && queue->device == device) drain(lock, queue);
  std::erase_if(state().abandoned, [](const auto& queue) { return queue->done == queue->enqueued; });
}

double milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace
}  // namespace emulated::runtime

using namespace emulated::runtime;

namespace emulated {

cudaError_t enqueue(cudaStream_t stream, Work work) {
  BEGIN(cudaLaunchKernel);
  return result(push(lock, stream, [work = std::move(work)] {
    {
      const Lock lock(state().mutex);
      if (const cudaError_t error = injected("kernel"); error != cudaSuccess) return error;
    }
    return work();
  }));
}

void fail_next(const char* call, cudaError_t error, int skip) {
  const Lock lock(state().mutex);
  state().failures[call] = {error, skip};
}

std::vector<DeviceMemory> device_memory() {
  const Lock lock(state().mutex);
  std::vector<DeviceMemory> all;
  for (const auto& [begin, a] : state().allocations) all.push_back({begin, a.bytes, a.from_pool});
  return all;
}

long long calls(const char* call) {
  const Lock lock(state().mutex);
  return state().calls[call];
}

}  // namespace emulated

// ---- errors

#define ERRORS(X)                                                                                                                      \
  X(cudaSuccess, "no error") X(cudaErrorInvalidValue, "invalid argument") X(cudaErrorMemoryAllocation, "out of memory")                 \
  X(cudaErrorInitializationError, "initialization error") X(cudaErrorCudartUnloading, "driver shutting down")                          \
  X(cudaErrorInvalidConfiguration, "invalid configuration argument")                                                                  \
  X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")                                      \
  X(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable")                                                  \
  X(cudaErrorNoDevice, "no CUDA-capable device is detected") X(cudaErrorInvalidDevice, "invalid device ordinal")                       \
  X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")                                      \
  X(cudaErrorInvalidResourceHandle, "invalid resource handle") X(cudaErrorNotReady, "device not ready")                                \
  X(cudaErrorIllegalAddress, "an illegal memory access was encountered") X(cudaErrorAssert, "device-side assert triggered")            \
  X(cudaErrorMisalignedAddress, "misaligned address") X(cudaErrorLaunchFailure, "unspecified launch failure")                          \
  X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                                            \
  X(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")                                     \
  X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define X(name, text) case name: return #name;
    ERRORS(X)
#undef X
    default: return "unrecognized error code";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define X(name, text) case name: return text;
    ERRORS(X)
#undef X
    default: return "unrecognized error code";
  }
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

// ---- devices

cudaError_t cudaDriverGetVersion(int* version) {
  const Lock lock(state().mutex);
  *version = state().devices.empty() ? 0 : CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  BEGIN(cudaGetDeviceCount);
  *count = int(state().devices.size());
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  BEGIN(cudaGetDeviceProperties);
  if (device < 0 || size_t(device) >= state().devices.size()) return result(cudaErrorInvalidDevice);
  *p = {};
  std::snprintf(p->name, sizeof p->name, "CPU emulation of CUDA");
  p->major = 9, p->minor = 0;
  p->totalGlobalMem = state().memory;
  p->multiProcessorCount = 4;
  p->sharedMemPerBlockOptin = emulated::device.shared_limit;
  p->l2CacheSize = 1 << 16;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device); error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(p.sharedMemPerBlockOptin); break;
    case cudaDevAttrMemoryPoolsSupported: *value = state().has_pools; break;
    default: return result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  const Lock lock(state().mutex);
  if (const cudaError_t error = injected("cudaSetDevice"); error != cudaSuccess) return result(error);
  if (device < 0 || size_t(device) >= state().devices.size()) return result(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  BEGIN(cudaDeviceSynchronize);
  drain_device(lock, current);
  return result(sticky(current));
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  BEGIN(cudaFuncSetAttribute);
  return result(value >= 0 && emulated::allow_shared(kernel, size_t(value)) ? cudaSuccess : cudaErrorInvalidValue);
}

// ---- memory

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  BEGIN(cudaMalloc);
  *memory = allocate(bytes, false);
  return result(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}
// At once: that the real one waits for the device is nowhere promised.
cudaError_t cudaFree(void* memory) {
  BEGIN(cudaFree);
  if (!memory) return cudaSuccess;
  return result(release(memory) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  BEGIN(cudaMemGetInfo);
  *total = state().memory;
  *free = *total - state().devices[size_t(current)].used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* wanted) {
  BEGIN(cudaMemPoolCreate);
  *pool = new CUmemPoolHandle_st{wanted->location.id};
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  BEGIN(cudaMemPoolSetAttribute);
  return cudaSuccess;
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  BEGIN(cudaMemPoolGetAttribute);
  *static_cast<uint64_t*>(value) = state().devices[size_t(pool->device)].used_of_pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) {
  BEGIN(cudaMemPoolTrimTo);
  return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** memory, size_t bytes, cudaMemPool_t, cudaStream_t stream) {
  BEGIN(cudaMallocFromPoolAsync);
  *memory = allocate(bytes, true);
  if (stream && stream->capture) {
    if (!*memory) return result(cudaErrorMemoryAllocation);
    stream->capture->memory.emplace_back(*memory, [](void* piece) {
      const Lock lock(state().mutex);
      release(piece);
    });
    return cudaSuccess;
  }
  if (!*memory && stream) {  // what this stream has freed is at hand
    drain(lock, stream->queue);
    *memory = allocate(bytes, true);
  }
  return result(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  BEGIN(cudaFreeAsync);
  if (stream && stream->capture) {
    for (const auto& piece : stream->capture->memory)
      if (piece.get() == memory) return cudaSuccess;  // the graph's
    stream->invalidated = true;
    return result(cudaErrorStreamCaptureUnsupported);
  }
  if (!is_device_memory(memory, 0)) return result(cudaErrorInvalidValue);
  return result(push(lock, stream, [memory] {
    const Lock lock(state().mutex);
    return release(memory) ? cudaSuccess : cudaErrorInvalidValue;
  }));
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  BEGIN(cudaMemcpyAsync);
  const bool to_device = is_device_memory(to, bytes), from_device = is_device_memory(from, bytes);
  if (kind != cudaMemcpyDefault && (to_device != (kind != cudaMemcpyDeviceToHost) || from_device != (kind != cudaMemcpyHostToDevice)))
    return result(cudaErrorInvalidValue);
  if (!to_device && !from_device) return result(cudaErrorInvalidValue);
  if (!to_device || !from_device) NOT_CAPTURING(stream);
  // Host memory is looked at as late as can be: the real runtime may do so if it is pinned.
  return result(push(lock, stream, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  }));
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) { return cudaMemcpyAsync(to, from, bytes, kind, nullptr); }
cudaError_t cudaMemsetAsync(void* memory, int byte, size_t bytes, cudaStream_t stream) {
  BEGIN(cudaMemsetAsync);
  if (!is_device_memory(memory, bytes)) return result(cudaErrorInvalidValue);
  return result(push(lock, stream, [=] {
    std::memset(memory, byte, bytes);
    emulated::count_cleared(bytes);
    return cudaSuccess;
  }));
}
cudaError_t cudaMemset(void* memory, int byte, size_t bytes) { return cudaMemsetAsync(memory, byte, bytes, nullptr); }

// ---- streams, events, graphs

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  BEGIN(cudaStreamCreateWithFlags);
  *stream = new CUstream_st{std::make_shared<Queue>(), nullptr, false};
  (*stream)->queue->device = current;
  std::erase_if(state().queues, [](const auto& queue) { return queue.expired(); });
  state().queues.push_back((*stream)->queue);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(state().mutex);
  if (!stream) return result(cudaErrorInvalidResourceHandle);
  if (stream->queue->done < stream->queue->enqueued) state().abandoned.push_back(stream->queue);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  BEGIN(cudaStreamSynchronize);
  NOT_CAPTURING(stream);
  const auto queue = stream ? stream->queue : legacy_queue(current);
  drain(lock, queue);
  return result(sticky(queue->device));
}
// Each question takes the stream one step further.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  BEGIN(cudaStreamQuery);
  NOT_CAPTURING(stream);
  const auto queue = stream ? stream->queue : legacy_queue(current);
  if (queue->done == queue->enqueued) return result(sticky(queue->device));
  drain(lock, queue, queue->done + 1);
  return cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  BEGIN(cudaStreamWaitEvent);
  if (stream && stream->capture) {
    stream->invalidated = true;
    return result(cudaErrorStreamCaptureIsolation);
  }
  if (!event->place.queue) return cudaSuccess;  // never recorded
  const auto queue = stream ? stream->queue : legacy_queue(current);
  queue->tasks.push_back({nullptr, event->place});
  ++queue->enqueued;
  if (!stream) drain(lock, queue);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  BEGIN(cudaLaunchHostFunc);
  return result(push(lock, stream, [=] {
    function(data);
    return cudaSuccess;
  }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  BEGIN(cudaEventCreateWithFlags);
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  BEGIN(cudaEventRecord);
  NOT_CAPTURING(stream);
  const cudaError_t error = push(lock, stream, [time = event->time] {
    *time = milliseconds();
    return cudaSuccess;
  });
  event->place = tail(stream);
  return result(error);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  BEGIN(cudaEventSynchronize);
  const Place place = event->place;
  if (!place.queue) return cudaSuccess;
  drain(lock, place.queue, place.ticket);
  return result(sticky(place.queue->device));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  BEGIN(cudaEventQuery);
  const Place place = event->place;
  if (!place.queue || place.queue->done >= place.ticket) return result(sticky(current));
  drain(lock, place.queue, place.queue->done + 1);
  return cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* elapsed, cudaEvent_t begin, cudaEvent_t end) {
  BEGIN(cudaEventElapsedTime);
  for (const cudaEvent_t event : {begin, end}) {
    if (!event->place.queue) return result(cudaErrorInvalidResourceHandle);
    if (event->place.queue->done < event->place.ticket) return cudaErrorNotReady;
  }
  *elapsed = float(*end->time - *begin->time);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  BEGIN(cudaStreamBeginCapture);
  if (!stream || stream->capture) return result(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_unique<CUgraph_st>(CUgraph_st{stream->queue->device, {}, {}});
  stream->invalidated = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  BEGIN(cudaStreamEndCapture);
  if (!stream || !stream->capture) return result(cudaErrorInvalidValue);
  const std::unique_ptr<CUgraph_st> captured = std::move(stream->capture);
  *graph = stream->invalidated ? nullptr : new CUgraph_st(*captured);
  lock.unlock();  // for the memory of a capture that failed
  return result(stream->invalidated ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  BEGIN(cudaGraphInstantiate);
  *executable = new CUgraph_st(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  BEGIN(cudaGraphLaunch);
  for (const Work& work : executable->work)
    if (const cudaError_t error = push(lock, stream, work); error != cudaSuccess) return result(error);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
