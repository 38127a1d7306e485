#include "addon/cuda.hpp"
#include "addon/asynchronous.hpp"
#include "cuda/machine.hpp"
#include "cuda/operation.hpp"
#include "cuda/runtime.hpp"
#include <deque>
#include <map>
#include <optional>

namespace equitensor::cuda {
namespace {

// ---- errors

Napi::Error js_error(Napi::Env env, const Error& e) {
  auto error = Napi::Error::New(env, e.what());
  error.Set("code", e.code);
  if (!e.cuda_name.empty()) error.Set("cudaName", e.cuda_name);
  if (!e.call.empty()) error.Set("call", e.call);
  if (e.bytes) error.Set("bytes", double(e.bytes));
  return error;
}

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return function(info);
  } catch (const Error& e) {
    throw js_error(info.Env(), e);
  } catch (const std::bad_alloc&) {
    throw js_error(info.Env(), Error("out_of_memory", "no memory on the host"));
  }
}

// ---- what JavaScript holds

// Streams that may still be reading something, which goes when this has gone.
struct Readers {
  std::set<SharedStream> used;

  ~Readers() {
    for (const SharedStream& stream : used) {
      try {
        stream->synchronize();
      } catch (...) {  // of a disabled device; nothing runs there
      }
    }
  }
};

// A plan on a device. Members go from the last one on.
struct Plan {
  std::unique_ptr<Operation> operation;
  Readers readers;
};

// A graph's sweeps on a device.
struct DeviceSweeps {
  std::vector<DeviceMemory> memory;
  GraphSweeps sweeps;
  Readers readers;
};

// Nodes by species on a device.
struct DeviceSpecies {
  std::vector<DeviceMemory> memory;
  NodeTasks tasks;
  Readers readers;
};

// A part of some memory. The pointer is aligned as the dtype, since slices begin at elements.
struct Array {
  SharedMemory memory;
  size_t offset, bytes;

  char* data() const { return static_cast<char*>(memory->data()) + offset; }
};

template <class T>
constexpr napi_type_tag tag{};
template <>
constexpr napi_type_tag tag<Plan> = {0x65717569746e7372, 0x637564612d706c61};
template <>
constexpr napi_type_tag tag<DeviceSweeps> = {0x65717569746e7372, 0x637564612d737765};
template <>
constexpr napi_type_tag tag<DeviceSpecies> = {0x65717569746e7372, 0x637564612d737065};
template <>
constexpr napi_type_tag tag<Array> = {0x65717569746e7372, 0x637564612d617272};
template <>
constexpr napi_type_tag tag<Stream> = {0x65717569746e7372, 0x637564612d737472};
template <>
constexpr napi_type_tag tag<Graph> = {0x65717569746e7372, 0x637564612d677261};

template <class T>
using Box = std::shared_ptr<T>;

template <class T>
Napi::Value wrap(Napi::Env env, Box<T> object) {
  auto external = Napi::External<Box<T>>::New(env, new Box<T>(std::move(object)), [](Napi::Env, Box<T>* box) { delete box; });
  external.TypeTag(&tag<T>);
  return external;
}
template <class T>
Box<T>& box_of(const Napi::Value& value) {
  if (!value.IsExternal() || !value.As<Napi::External<Box<T>>>().CheckTypeTag(&tag<T>))
    throw Napi::TypeError::New(value.Env(), "equitensor: an object of another kind");
  return *value.As<Napi::External<Box<T>>>().Data();
}
template <class T>
const Box<T>& live(const Napi::Value& value) {
  const Box<T>& box = box_of<T>(value);
  if (!box) throw Error("disposed", "an object was used after dispose()");
  return box;
}

// Of one thread of JavaScript. Workers share devices, but no objects.
struct Environment {
  std::map<int, SharedStream> defaults;
  std::map<int, SharedStream> chosen;  // by Stream.run
  Box<Graph> capture;
};
Environment& environment(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

const SharedStream& stream_of(Napi::Env env, int device) {
  Environment& e = environment(env);
  if (const auto found = e.chosen.find(device); found != e.chosen.end()) return found->second;
  SharedStream& stream = e.defaults[device];
  if (!stream) stream = std::make_shared<Stream>(device);
  return stream;
}

void refuse_capture(Napi::Env env, const char* what) {
  if (environment(env).capture) throw Error("capturing", std::string("capture(): expected calls on device arrays only, got ") + what);
}

// Where the calls of one function go: the stream, or the graph that is being captured.
class Target {
 public:
  Target(Napi::Env env, int device) : capture(environment(env).capture) {
    if (capture && capture->device != device)
      throw Error("capturing", "capture(): expected calls on device " + std::to_string(capture->device) + ", got one on device " +
                                   std::to_string(device));
    stream = capture ? capture->stream() : stream_of(env, device);
  }
  const void* reads(const Napi::Value& value) const {
    if (!value.IsExternal()) return nullptr;
    const Array& array = *live<Array>(value);
    capture ? capture->reads(array.memory) : array.memory->read_on(stream);
    return array.data();
  }
  void* writes(const Napi::Value& value) const {
    if (!value.IsExternal()) return nullptr;
    const Array& array = *live<Array>(value);
    capture ? capture->writes(array.memory) : array.memory->write_on(stream);
    return array.data();
  }
  // A plan, sweeps, or species.
  template <class T>
  void runs(const Box<T>& object) const {
    if (capture) capture->keep(object);
    else object->readers.used.insert(stream);
  }

  SharedStream stream;

 private:
  Box<Graph> capture;
};

// ---- devices

Napi::Value devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::string reason;
  const int count = device_count(reason);
  auto list = Napi::Array::New(env, size_t(count));
  for (int d = 0; d < count; ++d) {
    const DeviceProperties& p = properties(d);
    auto device = Napi::Object::New(env);
    device.Set("name", p.name);
    device.Set("computeCapability", std::to_string(p.major) + "." + std::to_string(p.minor));
    device.Set("memory", double(p.memory));
    device.Set("multiprocessors", p.multiprocessors);
    device.Set("sharedMemoryPerBlock", p.shared_per_block);
    list.Set(uint32_t(d), device);
  }
  auto result = Napi::Object::New(env);
  result.Set("devices", list);
  if (count == 0) result.Set("reason", reason);
  return result;
}

Napi::Value memory(const Napi::CallbackInfo& info) {
  const MemoryUse use = memory_use(info[0].As<Napi::Number>().Int32Value());
  auto result = Napi::Object::New(info.Env());
  result.Set("used", double(use.used));
  result.Set("reserved", double(use.reserved));
  result.Set("reported", double(Napi::MemoryManagement::AdjustExternalMemory(info.Env(), 0)));
  return result;
}

// ---- arrays

int device_argument(const Napi::CallbackInfo& info) { return info[0].As<Napi::Number>().Int32Value(); }

// Reported to V8, so that arrays that are forgotten are collected before the device is full.
Box<Array> allocate(Napi::Env env, int device, size_t bytes) {
  Memory* memory = new Memory(stream_of(env, device), bytes);
  Napi::MemoryManagement::AdjustExternalMemory(env, int64_t(bytes));
  const SharedMemory shared(memory, [env, bytes](Memory* m) {
    delete m;
    Napi::MemoryManagement::AdjustExternalMemory(env, -int64_t(bytes));
  });
  return std::make_shared<Array>(Array{shared, 0, bytes});
}

// Waits until the host's memory is its caller's again, whatever happened.
template <class F>
void finish(const Stream& stream, F&& enqueue) {
  try {
    enqueue();
  } catch (...) {
    try {
      stream.synchronize();
    } catch (...) {
    }
    throw;
  }
  stream.synchronize();
}

void fill(Napi::Env env, const Array& array, const Napi::Value& typed) {
  const SharedStream& stream = stream_of(env, array.memory->device);
  array.memory->write_on(stream);
  finish(*stream, [&] { upload(array.data(), data_of(typed), array.bytes, *stream); });
}

Napi::Value allocate_array(const Napi::CallbackInfo& info) {
  return wrap(info.Env(), allocate(info.Env(), device_argument(info), size_t(info[1].As<Napi::Number>().Int64Value())));
}
Napi::Value array_from(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "an upload");
  const Box<Array> array = allocate(info.Env(), device_argument(info), span_of(info[1]).bytes);
  fill(info.Env(), *array, info[1]);
  return wrap(info.Env(), array);
}
Napi::Value slice(const Napi::CallbackInfo& info) {
  const Array& whole = *live<Array>(info[0]);
  const size_t begin = size_t(info[1].As<Napi::Number>().Int64Value()), end = size_t(info[2].As<Napi::Number>().Int64Value());
  return wrap(info.Env(), std::make_shared<Array>(Array{whole.memory, whole.offset + begin, end - begin}));
}
Napi::Value copy_from_host(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "an upload");
  fill(info.Env(), *live<Array>(info[0]), info[1]);
  return info.Env().Undefined();
}
Napi::Value copy_from_device(const Napi::CallbackInfo& info) {
  const Array& to = *live<Array>(info[0]);
  const Target target(info.Env(), to.memory->device);
  const void* from = target.reads(info[1]);
  copy(target.writes(info[0]), from, to.bytes, *target.stream);
  return info.Env().Undefined();
}
Napi::Value download_array(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "a download");
  const Array& array = *live<Array>(info[0]);
  const SharedStream& stream = stream_of(info.Env(), array.memory->device);
  array.memory->read_on(stream);
  finish(*stream, [&] { download(data_of(info[1]), array.data(), array.bytes, *stream); });
  return info.Env().Undefined();
}
Napi::Value arrays_overlap(const Napi::CallbackInfo& info) {
  const Array &a = *live<Array>(info[0]), &b = *live<Array>(info[1]);
  return Napi::Boolean::New(info.Env(), a.memory == b.memory && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes);
}
Napi::Value fill_zero(const Napi::CallbackInfo& info) {
  const Array& array = *live<Array>(info[0]);
  const Target target(info.Env(), array.memory->device);
  void* data = target.writes(info[0]);
  const OnDevice on(array.memory->device);
  if (array.bytes) check(cudaMemsetAsync(data, 0, array.bytes, target.stream->get()), "cudaMemsetAsync", array.bytes);
  return info.Env().Undefined();
}

// ---- plans

template <class F>
Napi::Value create(const Napi::CallbackInfo& info, F&& make) {
  refuse_capture(info.Env(), "a constructor, which uploads its plan");
  const int device = device_argument(info);
  const OnDevice on(device);
  const auto plan = std::make_shared<Plan>();
  plan->operation = make(device, info[1].As<Napi::Object>());
  return wrap(info.Env(), plan);
}
Napi::Value create_clebsch_gordan(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ClebschGordanForm f = read_clebsch_gordan(o);
    return make_clebsch_gordan(device, f.is_double, f.dims, f.in1, f.in2, f.paths, f.dense, f.square);
  });
}
Napi::Value create_weighted(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) { return make_weighted(device, read_weighted(o)); });
}
Napi::Value create_gaunt(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_gaunt(device, f.is_double, integer(o, "rank"), f.mul, f.slots, f.products, read_grid(o));
  });
}
Napi::Value create_gaunt_product(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const FactorsForm f = read_factors(o);
    return make_gaunt_product(device, f.is_double, f.mul, f.slots, integer(o, "power"), read_grid(o));
  });
}
Napi::Value create_fourier(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_fourier(device, f.is_double, integer(o, "rank"), f.mul, f.slots, f.products, boolean(o, "fft"));
  });
}
Napi::Value create_matrix(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_matrix(device, f.is_double, integer(o, "rank"), f.mul, f.slots, f.products, integer(o, "k"));
  });
}
Napi::Value create_matrix_block(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_matrix_block(device, f.is_double, integer(o, "rank"), f.mul, f.slots, read_block_paths(o));
  });
}
Napi::Value create_symmetric_contraction(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) { return make_symmetric_contraction(device, read_symmetric_contraction(o)); });
}
Napi::Value create_spherical_harmonics(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    return make_spherical_harmonics(device, boolean(o, "isDouble"), ints(o.Get("degrees")), doubles(o.Get("scale")),
                                    boolean(o, "normalize"));
  });
}

// (device, { senders, receivers } of arguments.hpp)
Napi::Value create_sweeps(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "a graph that this device has not seen yet, whose edges are uploaded");
  const int device = device_argument(info);
  const OnDevice on(device);
  const auto result = std::make_shared<DeviceSweeps>();
  result->sweeps = sweeps_of(info[1].As<Napi::Object>());
  Sweep &senders = result->sweeps.senders, &receivers = result->sweeps.receivers;
  std::vector<int> receiver;
  for (int n = 0; n < receivers.nodes; ++n) receiver.insert(receiver.end(), size_t(receivers.begin[n + 1] - receivers.begin[n]), n);
  receivers.node = receiver.data();
  const auto place = [&](const int*& array, int count) {
    result->memory.emplace_back(device, array, size_t(count) * sizeof(int));
    array = result->memory.back().as<int>();
  };
  const int edges = int(receiver.size());
  for (Sweep* sweep : {&senders, &receivers}) place(sweep->begin, sweep->nodes + 1), place(sweep->edge, edges), place(sweep->other, edges);
  place(receivers.node, edges);
  return wrap(info.Env(), result);
}

// (device, species, number of sets, nodes that a block of threads takes at once)
Napi::Value create_species(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "species that this device has not seen yet, which are uploaded");
  const int device = device_argument(info);
  const OnDevice on(device);
  const std::vector<int> species = ints(info[1]);
  const SpeciesTasks host = tasks_of(species.data(), int(species.size()), info[2].As<Napi::Number>().Int32Value(), info[3].As<Napi::Number>().Int32Value());
  const auto result = std::make_shared<DeviceSpecies>();
  const auto place = [&]<class Item>(const std::vector<Item>& items) {
    result->memory.emplace_back(device, items.data(), items.size() * sizeof(Item));
    return result->memory.back().template as<Item>();
  };
  result->tasks = {place(host.order), place(host.tasks), place(host.of_species), int(host.tasks.size())};
  return wrap(info.Env(), result);
}

// ---- calls

void enqueue(const Operation& operation, const Call& call, const Stream& stream) {
  const OnDevice on(operation.device);
  if (call.batch > 0) return operation.contract(call, stream.get());
  // Only the gradient of a shared operand has elements then: a sum of nothing.
  const auto clear = [&](void* out, bool shared, long long numbers) {
    const size_t bytes = (operation.is_double ? 8 : 4) * size_t(numbers);
    if (out && shared && bytes && !call.accumulate) check(cudaMemsetAsync(out, 0, bytes, stream.get()), "cudaMemsetAsync", bytes);
  };
  for (int s = 0; s < slot_count; ++s) clear(call.out[s], call.shared[s], operation.dim[s]);
  clear(call.weight_out, call.weight_shared, operation.weights);
  // And the nodes of a graph without edges.
  if (call.sweep)
    for (const int s : {0, 2}) clear(call.out[s], true, (long long)(s == call.sweep->slot ? call.sweep->nodes : call.sweep->others) * operation.dim[s]);
}

Box<DeviceSweeps> sweeps_in(const Napi::Object& call) {
  const Napi::Value value = call.Get("deviceSweeps");
  return value.IsExternal() ? live<DeviceSweeps>(value) : nullptr;
}
void enqueue(const Operation& operation, const Call& call, const Box<DeviceSweeps>& sweeps, const Stream& stream) {
  for_each_sweep(call, sweeps ? std::optional(sweeps->sweeps) : std::nullopt, call.atomic, [&](const Call& part) { enqueue(operation, part, stream); });
}

Box<DeviceSpecies> species_in(const Napi::Object& call) {
  const Napi::Value value = call.Get("deviceSpecies");
  return value.IsExternal() ? live<DeviceSpecies>(value) : nullptr;
}

// (plan, call of arguments.hpp with device arrays, and with deviceSweeps for sweeps, deviceSpecies for species)
Napi::Value run(const Napi::CallbackInfo& info) {
  const Box<Plan> plan = live<Plan>(info[0]);
  const auto o = info[1].As<Napi::Object>();
  const Target target(info.Env(), plan->operation->device);
  Call call = read_call(o);
  const void* in[operand_arrays];
  void* out[result_arrays];
  for (int i = 0; i < operand_arrays; ++i) in[i] = target.reads(o.Get(operand_names[i]));
  for (int s = 0; s < result_arrays; ++s) out[s] = target.writes(o.Get(result_names[s]));
  put_arrays(call, in, out);
  const Box<DeviceSweeps> sweeps = sweeps_in(o);
  const Box<DeviceSpecies> species = species_in(o);
  target.runs(plan);
  if (sweeps) target.runs(sweeps);
  if (species) target.runs(species), call.tasks = &species->tasks;
  enqueue(*plan->operation, call, sweeps, *target.stream);
  return info.Env().Undefined();
}

// A call on host arrays: to the device, there, and back.
struct HostCall {
  Box<Plan> plan;
  Box<DeviceSweeps> sweeps;
  Box<DeviceSpecies> species;
  Call call;
  HostSpans spans;
  SharedStream stream;

  void execute() const {
    std::optional<Memory> in_memory[operand_arrays], out_memory[result_arrays];
    const void* ins[operand_arrays] = {};
    void* outs[result_arrays] = {};
    Call c = call;
    finish(*stream, [&] {
      for (int i = 0; i < operand_arrays; ++i) {
        const HostSpan& in = spans.in[i];
        if (!in.data || i == species_operand) continue;
        in_memory[i].emplace(stream, in.bytes);
        ins[i] = in_memory[i]->data();
        upload(in_memory[i]->data(), in.data, in.bytes, *stream);
      }
      for (int s = 0; s < result_arrays; ++s) {
        const HostSpan& out = spans.out[s];
        if (!out.data) continue;
        out_memory[s].emplace(stream, out.bytes);
        outs[s] = out_memory[s]->data();
        if (call.accumulate) upload(out_memory[s]->data(), out.data, out.bytes, *stream);
      }
      put_arrays(c, ins, outs);
      if (species) c.tasks = &species->tasks;
      enqueue(*plan->operation, c, sweeps, *stream);
      for (int s = 0; s < result_arrays; ++s)
        if (spans.out[s].data) download(spans.out[s].data, out_memory[s]->data(), spans.out[s].bytes, *stream);
    });
  }
};

HostCall read_host_call(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "one on host arrays");
  const auto o = info[1].As<Napi::Object>();
  const Box<Plan> plan = live<Plan>(info[0]);
  return {plan, sweeps_in(o), species_in(o), read_call(o), HostSpans(o), stream_of(info.Env(), plan->operation->device)};
}

Napi::Value run_host(const Napi::CallbackInfo& info) {
  read_host_call(info).execute();
  return info.Env().Undefined();
}

// ---- asynchronous calls

// Its thread sleeps while the device works: the callbacks that CUDA offers instead are not called after an error, and a promise would
// stay pending.
class CudaWorker : public Worker {
 public:
  using Worker::Worker;

 protected:
  Napi::Error error_of(const std::exception_ptr& thrown) final {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& e) {
      return js_error(Env(), e);
    } catch (...) {
      return Worker::error_of(thrown);
    }
  }
};

class StreamWorker final : public CudaWorker {
 public:
  StreamWorker(Napi::Env env, SharedStream stream) : CudaWorker(env), stream(std::move(stream)), event(this->stream->device) {
    event.record(*this->stream);
  }

 private:
  void work() override { event.synchronize(); }

  SharedStream stream;
  Event event;
};

class HostWorker final : public CudaWorker {
 public:
  HostWorker(Napi::Env env, HostCall c, const Napi::Object& o)
      : CudaWorker(env), call(std::move(c)), arrays(o, call.call.accumulate, call.spans) {}

 private:
  void work() override { call.execute(); }
  void deliver() override {
    if (!arrays.is_cancelled()) arrays.deliver();
  }

  HostCall call;
  PendingArrays arrays;
};

Napi::Value run_host_async(const Napi::CallbackInfo& info) {
  HostCall call = read_host_call(info);
  return (new HostWorker(info.Env(), std::move(call), info[1].As<Napi::Object>()))->start();
}

// (device): a promise that the stream has finished what it was given so far
Napi::Value finished(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "an asynchronous call");
  return (new StreamWorker(info.Env(), stream_of(info.Env(), device_argument(info))))->start();
}

// ---- streams, graphs

Napi::Value create_stream(const Napi::CallbackInfo& info) {
  return wrap(info.Env(), std::make_shared<Stream>(device_argument(info)));
}
// (device, stream | undefined): where calls go from now on; undefined stands for the default stream
Napi::Value choose_stream(const Napi::CallbackInfo& info) {
  auto& chosen = environment(info.Env()).chosen;
  if (info[1].IsUndefined()) chosen.erase(device_argument(info));
  else chosen[device_argument(info)] = live<Stream>(info[1]);
  return info.Env().Undefined();
}
Napi::Value synchronize(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "a wait");
  live<Stream>(info[0])->synchronize();
  return info.Env().Undefined();
}
Napi::Value is_done(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "a wait");
  return Napi::Boolean::New(info.Env(), live<Stream>(info[0])->is_done());
}

Napi::Value begin_capture(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "capture()");
  environment(info.Env()).capture = std::make_shared<Graph>(device_argument(info));
  return info.Env().Undefined();
}
Napi::Value end_capture(const Napi::CallbackInfo& info) {
  const Box<Graph> graph = std::move(environment(info.Env()).capture);
  graph->end();
  return wrap(info.Env(), graph);
}
Napi::Value abandon_capture(const Napi::CallbackInfo& info) {
  environment(info.Env()).capture.reset();
  return info.Env().Undefined();
}
Napi::Value replay(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "replay()");
  const Box<Graph> graph = live<Graph>(info[0]);
  graph->launch(stream_of(info.Env(), graph->device));
  return info.Env().Undefined();
}

// ---- measuring, for bench/

// (device): bytes
Napi::Value l2_cache(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(properties(device_argument(info)).l2_cache));
}
// (to, from): as copyFromDevice, by a kernel
Napi::Value copy_by_kernel(const Napi::CallbackInfo& info) {
  const Array& to = *live<Array>(info[0]);
  const Target target(info.Env(), to.memory->device);
  const void* from = target.reads(info[1]);
  void* out = target.writes(info[0]);
  const OnDevice on(to.memory->device);
  check(enqueue_copy(from, out, (long long)to.bytes, target.stream->get()), "cudaLaunchKernel");
  return info.Env().Undefined();
}
// (isDouble, iterations, out): multiply-adds
Napi::Value fma_chain(const Napi::CallbackInfo& info) {
  const Array& array = *live<Array>(info[2]);
  const long long iterations = info[1].As<Napi::Number>().Int64Value();
  const Target target(info.Env(), array.memory->device);
  void* out = target.writes(info[2]);
  const int multiprocessors = properties(array.memory->device).multiprocessors;
  const OnDevice on(array.memory->device);
  check(enqueue_fma_chain(info[0].As<Napi::Boolean>().Value(), multiprocessors, iterations, out, target.stream->get()), "cudaLaunchKernel");
  return Napi::Number::New(info.Env(), double(fma_chain_operations(multiprocessors, iterations)));
}
// (device, repeats, before, work): milliseconds of each. Nothing waits until all is enqueued: while the device is at `before` the host
// gets ahead, and the time that it takes to enqueue a call does not show between the events.
Napi::Value time(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "a measurement");
  const int device = device_argument(info);
  const auto repeats = size_t(info[1].As<Napi::Number>().Int64Value());
  const auto before = info[2].As<Napi::Function>(), work = info[3].As<Napi::Function>();
  const SharedStream stream = stream_of(info.Env(), device);
  std::deque<Event> begins, ends;
  for (size_t n = 0; n < repeats; ++n) begins.emplace_back(device, true), ends.emplace_back(device, true);
  for (size_t n = 0; n < repeats; ++n) {
    before.Call({});
    begins[n].record(*stream);
    work.Call({});
    ends[n].record(*stream);
  }
  stream->synchronize();
  auto times = Napi::Float64Array::New(info.Env(), repeats);
  for (size_t n = 0; n < repeats; ++n) times[n] = ends[n].milliseconds_since(begins[n]);
  return times;
}

template <class T>
Napi::Value dispose(const Napi::CallbackInfo& info) {
  box_of<T>(info[0]).reset();
  return info.Env().Undefined();
}

#ifdef EQUITENSOR_EMULATED
Napi::Value fail_next(const Napi::CallbackInfo& info) {
  emulated::fail_next(info[0].As<Napi::String>().Utf8Value().c_str(), cudaError_t(info[1].As<Napi::Number>().Int32Value()),
                      info[2].As<Napi::Number>().Int32Value());
  return info.Env().Undefined();
}
// (on): what was counted since it was last switched on.
Napi::Value counting(const Napi::CallbackInfo& info) {
  const emulated::Counts counts = emulated::counts();
  emulated::counting(info[0].As<Napi::Boolean>().Value());
  emulated::reset_counts();
  auto result = Napi::Object::New(info.Env());
  const auto traffic = [&](const char* name, const emulated::Traffic& t) {
    auto bytes = Napi::Object::New(info.Env());
    bytes.Set("requested", double(t.requested));
    bytes.Set("unique", double(t.unique));
    bytes.Set("lines", double(t.lines));
    result.Set(name, bytes);
  };
  const auto by_name = [&](const auto& counted) {
    auto object = Napi::Object::New(info.Env());
    for (const auto& [name, count] : counted) object.Set(name, double(count));
    return object;
  };
  auto instructions = Napi::Object::New(info.Env());
  instructions.Set("thread", double(counts.instructions.thread));
  instructions.Set("warp", double(counts.instructions.warp));
  instructions.Set("kinds", by_name(counts.instructions.kinds));
  instructions.Set("lines", by_name(counts.instructions.lines));
  result.Set("instructions", instructions);
  auto accesses = Napi::Object::New(info.Env());
  accesses.Set("load", by_name(counts.accesses.load));
  accesses.Set("store", by_name(counts.accesses.store));
  result.Set("accesses", accesses);
  result.Set("launches", double(counts.launches));
  result.Set("barriers", double(counts.barriers));
  result.Set("cleared", double(counts.cleared));
  result.Set("atomics", double(counts.atomics));
  traffic("loaded", counts.loaded);
  traffic("stored", counts.stored);
  traffic("table", counts.table);
  return result;
}
// (text | undefined): launches of its kernels run this PTX; undefined: the C++ again.
Napi::Value interpret(const Napi::CallbackInfo& info) {
  try {
    if (info[0].IsUndefined()) emulated::forget_ptx();
    else emulated::interpret(info[0].As<Napi::String>().Utf8Value());
  } catch (const std::runtime_error& e) {
    throw Napi::Error::New(info.Env(), e.what());
  }
  return info.Env().Undefined();
}
// (count): only the last blocks of a launch run; 0: all.
Napi::Value run_last_blocks(const Napi::CallbackInfo& info) {
  emulated::device.last_blocks = uint64_t(info[0].As<Napi::Number>().Int64Value());
  return info.Env().Undefined();
}
Napi::Value calls(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(emulated::calls(info[0].As<Napi::String>().Utf8Value().c_str())));
}
#endif

template <Napi::Value (*function)(const Napi::CallbackInfo&)>
void set(Napi::Object& object, const char* name) {
  object.Set(name, Napi::Function::New(object.Env(), guarded<function>, name));
}

}  // namespace

void register_cuda(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment);
  auto o = Napi::Object::New(env);
  set<devices>(o, "devices");
  set<memory>(o, "memory");
  set<allocate_array>(o, "allocate");
  set<array_from>(o, "from");
  set<slice>(o, "slice");
  set<copy_from_host>(o, "copyFromHost");
  set<copy_from_device>(o, "copyFromDevice");
  set<download_array>(o, "download");
  set<arrays_overlap>(o, "overlap");
  set<fill_zero>(o, "fillZero");
  set<dispose<Array>>(o, "disposeArray");
  set<create_clebsch_gordan>(o, "createClebschGordan");
  set<create_weighted>(o, "createWeighted");
  set<create_gaunt>(o, "createGaunt");
  set<create_gaunt_product>(o, "createGauntProduct");
  set<create_fourier>(o, "createFourier");
  set<create_matrix>(o, "createMatrix");
  set<create_matrix_block>(o, "createMatrixBlock");
  set<create_symmetric_contraction>(o, "createSymmetricContraction");
  set<create_spherical_harmonics>(o, "createSphericalHarmonics");
  set<dispose<Plan>>(o, "disposeOperation");
  set<create_sweeps>(o, "createSweeps");
  set<dispose<DeviceSweeps>>(o, "disposeSweeps");
  set<create_species>(o, "createSpecies");
  set<run>(o, "run");
  set<run_host>(o, "runHost");
  set<run_host_async>(o, "runHostAsync");
  set<finished>(o, "finished");
  set<create_stream>(o, "createStream");
  set<choose_stream>(o, "chooseStream");
  set<synchronize>(o, "synchronize");
  set<is_done>(o, "isDone");
  set<dispose<Stream>>(o, "disposeStream");
  set<begin_capture>(o, "beginCapture");
  set<end_capture>(o, "endCapture");
  set<abandon_capture>(o, "abandonCapture");
  set<replay>(o, "replay");
  set<dispose<Graph>>(o, "disposeGraph");
  set<l2_cache>(o, "l2Cache");
  set<copy_by_kernel>(o, "copyByKernel");
  set<fma_chain>(o, "fmaChain");
  set<time>(o, "time");
#ifdef EQUITENSOR_EMULATED
  set<fail_next>(o, "failNext");
  set<calls>(o, "calls");
  set<counting>(o, "counting");
  set<interpret>(o, "interpret");
  set<run_last_blocks>(o, "runLastBlocks");
#endif
  exports.Set("cuda", o);
}

}  // namespace equitensor::cuda
