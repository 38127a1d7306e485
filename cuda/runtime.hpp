// The CUDA runtime as the addon uses it: errors as exceptions, and owners of devices' memory, streams, events and graphs. Host code.
#pragma once
#ifndef EQUITENSOR_EMULATED
#include <cuda_runtime_api.h>
#endif
#include <cstddef>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace equitensor::cuda {

// ---- errors

class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message, std::string cuda_name = "", std::string call = "", size_t bytes = 0)
      : std::runtime_error(message), code(std::move(code)), cuda_name(std::move(cuda_name)), call(std::move(call)), bytes(bytes) {}

  std::string code;       // one of errorCodes in lib/errors.ts
  std::string cuda_name;  // cudaErrorMemoryAllocation
  std::string call;       // cudaMallocAsync
  size_t bytes;           // asked for, where the call allocates or copies
};

// Throws what `result` of `call` stands for. An error after which the device answers nothing else (an illegal address, a failed launch)
// disables the calling thread's device for the rest of the process.
void check(cudaError_t result, const char* call, size_t bytes = 0);

// ---- devices

struct DeviceProperties {
  std::string name;
  int major, minor;  // compute capability
  size_t memory;     // bytes
  int multiprocessors;
  int shared_per_block;  // bytes, with cudaFuncAttributeMaxDynamicSharedMemorySize raised
  int l2_cache;          // bytes
  bool has_pools;        // cudaMallocAsync
};

// 0 where no device can be used; `reason` then says why. Asked of the driver once.
int device_count(std::string& reason);
const DeviceProperties& properties(int device);

// Makes `device` the calling thread's for a scope. Throws if an error has disabled it.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;

 private:
  int outer, previous = 0;  // of this class, and of the thread's other users of CUDA
};

// ---- streams, events

// Does not synchronise with the legacy default stream. Destroying it lets work that is enqueued finish.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;

  void synchronize() const;
  bool is_done() const;
  void wait_for(const Stream& other) const;  // for all that `other` has been given so far

  cudaStream_t get() const { return stream; }
  const int device;

 private:
  cudaStream_t stream = nullptr;
};
using SharedStream = std::shared_ptr<Stream>;

class Event {
 public:
  explicit Event(int device, bool is_timed = false);
  ~Event();
  Event(const Event&) = delete;

  void record(const Stream&);
  void synchronize() const;  // the thread sleeps
  double milliseconds_since(const Event& earlier) const;  // both timed, and over

  cudaEvent_t get() const { return event; }
  const int device;

 private:
  cudaEvent_t event = nullptr;
};

// ---- memory

// Memory of a plan: filled once, read by launches on any stream. Whoever destroys it knows that those are over.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(int device, const void* bytes, size_t size);  // returns when the device has its copy
  template <class T>
  DeviceMemory(int device, const std::vector<T>& values) : DeviceMemory(device, values.data(), values.size() * sizeof(T)) {}
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory();

  template <class T>
  const T* as() const {
    return static_cast<const T*>(memory);
  }
  size_t size() const { return bytes; }

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(memory, other.memory), std::swap(bytes, other.bytes), std::swap(device, other.device);
  }

  void* memory = nullptr;
  size_t bytes = 0;
  int device = 0;
};

// Memory of arrays, in stream order: from the device's pool, reused as soon as the stream that freed it gets there, and returned only
// after all streams that use it. Streams that share an array wait for one another where they have to: a reader for the last writer, a
// writer for everybody. One thread at a time.
class Memory {
 public:
  Memory(SharedStream stream, size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;

  void* data() const { return memory; }
  const size_t bytes;
  const int device;

  // Call before work that reads or writes it is enqueued on `stream`.
  void read_on(const SharedStream& stream);
  void write_on(const SharedStream& stream);

 private:
  void* memory = nullptr;
  SharedStream writer;
  std::set<SharedStream> readers;  // since the last write; each has waited for it
};
using SharedMemory = std::shared_ptr<Memory>;

// Memory of one call, in the order of its stream.
class Workspace {
 public:
  Workspace(int device, size_t bytes, cudaStream_t stream);
  ~Workspace();
  Workspace(const Workspace&) = delete;

  void* data() const { return memory; }

 private:
  void* memory = nullptr;
  int device;
  cudaStream_t stream;
};

// Bytes of arrays that live on a device, and bytes that its pool holds for them and for reuse.
struct MemoryUse {
  size_t used, reserved;
};
MemoryUse memory_use(int device);

// All three only enqueue. Host memory has to stay as it is until the stream has been there.
void upload(void* to, const void* from, size_t bytes, const Stream&);
void download(void* to, const void* from, size_t bytes, const Stream&);
void copy(void* to, const void* from, size_t bytes, const Stream&);

// ---- graphs

// Work recorded on a stream of its own, to be launched again and again on any other.
class Graph {
 public:
  explicit Graph(int device);  // capture begins
  ~Graph();
  Graph(const Graph&) = delete;

  // While capturing: the stream to enqueue on, and which memory that work uses. The graph keeps it, and waits at every launch for
  // those that used it in between.
  const SharedStream& stream() const { return capturing; }
  void reads(const SharedMemory& memory) { read.insert(memory); }
  void writes(const SharedMemory& memory) { written.insert(memory); }
  // Kept as long as the graph: the plans of its operations.
  void keep(std::shared_ptr<const void> object) { kept.push_back(std::move(object)); }

  void end();  // capture ends; launch from now on
  void launch(const SharedStream&);

  const int device;

 private:
  SharedStream capturing;
  cudaGraphExec_t executable = nullptr;
  std::set<SharedMemory> read, written;
  std::vector<std::shared_ptr<const void>> kept;
  std::set<SharedStream> launched;
};

}  // namespace equitensor::cuda
