#include "cuda/runtime.hpp"
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>

namespace equitensor::cuda {
namespace {

// The calling thread's, as OnDevice set it: after a sticky error cudaGetDevice may no longer tell.
thread_local int current_device = 0;

// What happened first to each device that an error has disabled.
std::mutex disabled_mutex;
std::map<int, std::string> disabled;
std::atomic<bool> any_disabled = false;

// Of all threads. Waiting for a whole device would end those on it.
std::atomic<int> captures = 0;

// After these a context answers nothing else, and only a new process gets another one.
bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorMpsClientTerminated:
      return true;
    default:
      return false;
  }
}

const char* code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out_of_memory";
    case cudaErrorInitializationError:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return "backend_unavailable";
    default:
      return "cuda";
  }
}

std::string describe(cudaError_t error, const char* call, size_t bytes) {
  std::string text = std::string(call) + (bytes ? " of " + std::to_string(bytes) + " bytes" : "") + ": " + cudaGetErrorName(error);
  return text + " (" + cudaGetErrorString(error) + ")";
}

void require_usable(int device) {
  if (!any_disabled) return;
  const std::lock_guard lock(disabled_mutex);
  const auto found = disabled.find(device);
  if (found != disabled.end())
    throw Error("device_disabled", "CUDA device " + std::to_string(device) +
                                       " is unusable in this process since an earlier error: " + found->second);
}

// What destructors do: nothing is left to tell whom, and at exit the runtime may be gone before them.
template <class F>
void quietly(int device, F&& f) noexcept {
  int previous = 0;
  cudaGetDevice(&previous);
  cudaSetDevice(device);
  f();
  cudaSetDevice(previous);
  cudaGetLastError();
}

}  // namespace

void check(cudaError_t result, const char* call, size_t bytes) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it once more
  const std::string text = describe(result, call, bytes);
  if (is_sticky(result)) {
    const std::lock_guard lock(disabled_mutex);
    const bool is_first = disabled.emplace(current_device, text).second;
    any_disabled = true;
    const std::string device = "CUDA device " + std::to_string(current_device);
    throw Error(is_first ? "cuda" : "device_disabled",
                is_first ? text + "; " + device + " is unusable for the rest of this process"
                         : device + " is unusable in this process since an earlier error: " + disabled[current_device],
                cudaGetErrorName(result), call, bytes);
  }
  throw Error(code_of(result), text, cudaGetErrorName(result), call, bytes);
}

// ---- devices

namespace {

struct Devices {
  std::vector<DeviceProperties> properties;
  std::string reason;

  Devices() {
    int count = 0;
    const cudaError_t result = cudaGetDeviceCount(&count);  // leaves `count` as it is when it fails
    if (result != cudaSuccess) {
      cudaGetLastError();
      reason = result == cudaErrorInsufficientDriver
                   ? missing_driver()
                   : describe(result, "cudaGetDeviceCount", 0);
      return;
    }
    for (int d = 0; d < count; ++d) {
      cudaDeviceProp p;
      if (cudaGetDeviceProperties(&p, d) != cudaSuccess) break;
      int pools = 0;
      if (cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, d) != cudaSuccess) pools = 0;
      properties.push_back({p.name, p.major, p.minor, p.totalGlobalMem, p.multiProcessorCount, int(p.sharedMemPerBlockOptin), p.l2CacheSize,
                            pools != 0});
    }
    cudaGetLastError();
    if (properties.empty()) reason = "the NVIDIA driver sees no device";
  }

  static std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }
  static std::string missing_driver() {
    int number = 0;
    if (cudaDriverGetVersion(&number) != cudaSuccess || number == 0) return "there is no NVIDIA driver";
    return "the NVIDIA driver is for CUDA " + version(number) + " and older, and this build has the runtime of CUDA " + version(CUDART_VERSION);
  }
};
const Devices& devices() {
  static const Devices all;
  return all;
}

}  // namespace

int device_count(std::string& reason) {
  reason = devices().reason;
  return int(devices().properties.size());
}

const DeviceProperties& properties(int device) { return devices().properties.at(size_t(device)); }

OnDevice::OnDevice(int device) : outer(current_device) {
  require_usable(device);
  if (cudaGetDevice(&previous) != cudaSuccess) previous = device;
  current_device = device;
  const cudaError_t result = cudaSetDevice(device);
  if (result == cudaSuccess) return;
  try {
    check(result, "cudaSetDevice");
  } catch (...) {
    current_device = outer;
    throw;
  }
}
OnDevice::~OnDevice() {
  current_device = outer;
  cudaSetDevice(previous);
}

// ---- streams, events

Stream::Stream(int device) : device(device) {
  const OnDevice on(device);
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
}
Stream::~Stream() {
  quietly(device, [&] { cudaStreamDestroy(stream); });
}
void Stream::synchronize() const {
  const OnDevice on(device);
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}
bool Stream::is_done() const {
  const OnDevice on(device);
  const cudaError_t result = cudaStreamQuery(stream);
  if (result == cudaErrorNotReady) return cudaGetLastError(), false;
  check(result, "cudaStreamQuery");
  return true;
}
void Stream::wait_for(const Stream& other) const {
  if (this == &other) return;
  Event event(other.device);
  event.record(other);
  const OnDevice on(device);
  check(cudaStreamWaitEvent(stream, event.get(), 0), "cudaStreamWaitEvent");
}

Event::Event(int device, bool is_timed) : device(device) {
  const OnDevice on(device);
  check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync | (is_timed ? 0 : cudaEventDisableTiming)), "cudaEventCreateWithFlags");
}
Event::~Event() {
  quietly(device, [&] { cudaEventDestroy(event); });
}
void Event::record(const Stream& stream) {
  const OnDevice on(device);
  check(cudaEventRecord(event, stream.get()), "cudaEventRecord");
}
void Event::synchronize() const {
  const OnDevice on(device);
  check(cudaEventSynchronize(event), "cudaEventSynchronize");
}
double Event::milliseconds_since(const Event& earlier) const {
  const OnDevice on(device);
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, earlier.event, event), "cudaEventElapsedTime");
  return milliseconds;
}

// ---- memory

DeviceMemory::DeviceMemory(int device, const void* from, size_t size) : bytes(size), device(device) {
  if (size == 0) return;
  const OnDevice on(device);
  check(cudaMalloc(&memory, size), "cudaMalloc", size);
  try {
    const Stream stream(device);
    upload(memory, from, size, stream);
    stream.synchronize();
  } catch (...) {
    cudaFree(memory);
    throw;
  }
}
DeviceMemory::~DeviceMemory() {
  if (memory) quietly(device, [&] { cudaFree(memory); });
}

namespace {

// A pool of our own, so that its threshold is nobody else's business. Never destroyed: arrays may outlive static objects.
cudaMemPool_t pool_of(int device) {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;
  const std::lock_guard lock(mutex);
  if (const auto found = pools.find(device); found != pools.end()) return found->second;
  cudaMemPoolProps wanted{};
  wanted.allocType = cudaMemAllocationTypePinned;
  wanted.location.type = cudaMemLocationTypeDevice;
  wanted.location.id = device;
  cudaMemPool_t pool;
  check(cudaMemPoolCreate(&pool, &wanted), "cudaMemPoolCreate");
  // Otherwise every synchronisation gives freed memory back to the driver, and the next call asks for it again.
  uint64_t keep = UINT64_MAX;
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  return pools.emplace(device, pool).first->second;
}

void* allocate(int device, size_t bytes, cudaStream_t stream) {
  void* memory = nullptr;
  const OnDevice on(device);
  if (!properties(device).has_pools) {
    check(cudaMalloc(&memory, bytes), "cudaMalloc", bytes);
    return memory;
  }
  const cudaMemPool_t pool = pool_of(device);
  cudaError_t result = cudaMallocFromPoolAsync(&memory, bytes, pool, stream);
  if (result == cudaErrorMemoryAllocation) {
    // What other streams have freed becomes available once they have been there, and pieces too small for this one can be given back.
    cudaGetLastError();
    if (captures == 0) check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    else check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    check(cudaMemPoolTrimTo(pool, 0), "cudaMemPoolTrimTo");
    result = cudaMallocFromPoolAsync(&memory, bytes, pool, stream);
  }
  check(result, "cudaMallocFromPoolAsync", bytes);
  return memory;
}
void release(int device, void* memory, cudaStream_t stream) {
  quietly(device, [&] {
    if (properties(device).has_pools) {
      cudaFreeAsync(memory, stream);
    } else {
      cudaStreamSynchronize(stream);
      cudaFree(memory);
    }
  });
}

}  // namespace

Memory::Memory(SharedStream stream, size_t bytes) : bytes(bytes), device(stream->device), writer(std::move(stream)) {
  if (bytes > 0) memory = allocate(device, bytes, writer->get());
}

Memory::~Memory() {
  if (!memory) return;
  try {
    write_on(writer);
  } catch (...) {
    return;  // a disabled device, whose memory goes with the process; some stream may still be at it
  }
  release(device, memory, writer->get());
}

Workspace::Workspace(int device, size_t bytes, cudaStream_t stream) : device(device), stream(stream) {
  if (bytes > 0) memory = allocate(device, bytes, stream);
}
Workspace::~Workspace() {
  if (memory) release(device, memory, stream);
}

void Memory::read_on(const SharedStream& stream) {
  if (stream == writer || readers.contains(stream)) return;
  stream->wait_for(*writer);
  readers.insert(stream);
}

void Memory::write_on(const SharedStream& stream) {
  if (stream != writer && !readers.contains(stream)) stream->wait_for(*writer);
  for (const SharedStream& reader : readers) stream->wait_for(*reader);
  readers.clear();
  writer = stream;
}

MemoryUse memory_use(int device) {
  if (!properties(device).has_pools) return {0, 0};
  const OnDevice on(device);
  const cudaMemPool_t pool = pool_of(device);
  uint64_t used = 0, reserved = 0;
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "cudaMemPoolGetAttribute");
  check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "cudaMemPoolGetAttribute");
  return {size_t(used), size_t(reserved)};
}

namespace {
void enqueue_copy_of(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, const Stream& stream) {
  if (bytes == 0) return;
  const OnDevice on(stream.device);
  check(cudaMemcpyAsync(to, from, bytes, kind, stream.get()), "cudaMemcpyAsync", bytes);
}
}  // namespace
void upload(void* to, const void* from, size_t bytes, const Stream& stream) {
  enqueue_copy_of(to, from, bytes, cudaMemcpyHostToDevice, stream);
}
void download(void* to, const void* from, size_t bytes, const Stream& stream) {
  enqueue_copy_of(to, from, bytes, cudaMemcpyDeviceToHost, stream);
}
// Between two devices too.
void copy(void* to, const void* from, size_t bytes, const Stream& stream) {
  enqueue_copy_of(to, from, bytes, cudaMemcpyDefault, stream);
}

// ---- graphs

// Relaxed: finalizers run whenever the collector likes, and may free memory on this thread during the capture.
Graph::Graph(int device) : device(device), capturing(std::make_shared<Stream>(device)) {
  const OnDevice on(device);
  check(cudaStreamBeginCapture(capturing->get(), cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  ++captures;
}

void Graph::end() {
  const OnDevice on(device);
  cudaGraph_t graph = nullptr;
  const cudaError_t result = cudaStreamEndCapture(capturing->get(), &graph);
  capturing.reset();
  --captures;
  check(result, "cudaStreamEndCapture");
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(made, "cudaGraphInstantiate");
}

void Graph::launch(const SharedStream& stream) {
  for (const SharedMemory& memory : written) memory->write_on(stream);
  for (const SharedMemory& memory : read)
    if (!written.contains(memory)) memory->read_on(stream);
  // Two launches of one graph never overlap, on whatever streams: the driver orders them.
  launched.insert(stream);
  const OnDevice on(device);
  check(cudaGraphLaunch(executable, stream->get()), "cudaGraphLaunch");
}

Graph::~Graph() {
  quietly(device, [&] {
    if (capturing) {
      cudaGraph_t graph = nullptr;
      if (cudaStreamEndCapture(capturing->get(), &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
      --captures;
    }
    // Work under way reads plans that may go with this graph.
    for (const SharedStream& stream : launched) cudaStreamSynchronize(stream->get());
    if (executable) cudaGraphExecDestroy(executable);
  });
}

}  // namespace equitensor::cuda
