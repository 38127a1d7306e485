#include "addon/cuda.hpp"
#include "addon/arguments.hpp"
#include "cuda/operation.hpp"
#include "cuda/runtime.hpp"
#include "cuda/sum.hpp"
#include <cstring>
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

// A plan on a device, and the streams that may still be reading it.
struct Plan {
  std::unique_ptr<Operation> operation;
  std::set<SharedStream> used;

  ~Plan() {
    for (const SharedStream& stream : used) {
      try {
        stream->synchronize();
      } catch (...) {  // of a disabled device; nothing runs there
      }
    }
  }
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
  void runs(const Box<Plan>& plan) const {
    if (capture) capture->keep(plan);
    else plan->used.insert(stream);
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

size_t bytes_of(const Napi::Value& typed) { return typed.As<Napi::TypedArray>().ByteLength(); }

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
  const Box<Array> array = allocate(info.Env(), device_argument(info), bytes_of(info[1]));
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
// (isDouble, a, b): a += b
Napi::Value add(const Napi::CallbackInfo& info) {
  const Array& a = *live<Array>(info[1]);
  const bool is_double = info[0].As<Napi::Boolean>().Value();
  const Target target(info.Env(), a.memory->device);
  const void* b = target.reads(info[2]);
  void* out = target.writes(info[1]);
  const OnDevice on(a.memory->device);
  check(enqueue_sum(is_double, out, b, out, (long long)(a.bytes / (is_double ? 8 : 4)), target.stream->get()), "cudaLaunchKernel");
  return info.Env().Undefined();
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
Napi::Value create_gaunt(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_gaunt(device, f.is_double, f.mul, f.slots, f.products, read_grid(o));
  });
}
Napi::Value create_matrix(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_matrix(device, f.is_double, f.mul, f.slots, f.products, integer(o, "k"));
  });
}
Napi::Value create_matrix_block(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    const ChannelForm f = read_channel_product(o);
    return make_matrix_block(device, f.is_double, f.mul, f.slots, read_block_paths(o));
  });
}
Napi::Value create_spherical_harmonics(const Napi::CallbackInfo& info) {
  return create(info, [](int device, const Napi::Object& o) {
    return make_spherical_harmonics(device, boolean(o, "isDouble"), ints(o.Get("degrees")), doubles(o.Get("scale")),
                                    boolean(o, "normalize"));
  });
}

// ---- calls

using Pass = void (Operation::*)(const Call&, cudaStream_t) const;

Pass pass_of(const Napi::Value& name) {
  return name.As<Napi::String>().Utf8Value() == "forward" ? &Operation::forward : &Operation::backward;
}

void enqueue(const Operation& operation, Pass pass, const Call& call, const Stream& stream) {
  const OnDevice on(operation.device);
  if (call.batch > 0) return (operation.*pass)(call, stream.get());
  // Only the gradient of a shared operand has elements then: a sum of nothing.
  const size_t size = operation.is_double ? 8 : 4;
  const auto clear = [&](void* out, bool is_shared, int dim) {
    const size_t bytes = size * size_t(dim);
    if (out && is_shared) check(cudaMemsetAsync(out, 0, bytes, stream.get()), "cudaMemsetAsync", bytes);
  };
  clear(call.x_out, call.x_shared, operation.dim1);
  clear(call.y_out, call.y_shared, operation.dim2);
}

// All of a call but its arrays.
Call read_call(const Napi::Object& o) {
  Call call{};
  call.batch = o.Get("batch").As<Napi::Number>().Int64Value();
  call.x_shared = boolean(o, "xShared"), call.y_shared = boolean(o, "yShared");
  return call;
}

// (plan, pass, { x, y, z, xOut, yOut, zOut, batch, xShared, yShared }) with device arrays
Napi::Value run(const Napi::CallbackInfo& info) {
  const Box<Plan> plan = live<Plan>(info[0]);
  const auto o = info[2].As<Napi::Object>();
  const Target target(info.Env(), plan->operation->device);
  Call call = read_call(o);
  call.x = target.reads(o.Get("x")), call.y = target.reads(o.Get("y")), call.z = target.reads(o.Get("z"));
  call.x_out = target.writes(o.Get("xOut")), call.y_out = target.writes(o.Get("yOut")), call.z_out = target.writes(o.Get("zOut"));
  target.runs(plan);
  enqueue(*plan->operation, pass_of(info[1]), call, *target.stream);
  return info.Env().Undefined();
}

// A call on host arrays: to the device, there, and back.
struct HostCall {
  struct In {
    const void* data;
    size_t bytes;
  };
  struct Out {
    void* data;
    size_t bytes;
  };
  Box<Plan> plan;
  Pass pass;
  Call call;
  In in[3];
  Out out[3];
  SharedStream stream;

  void execute() const {
    std::optional<Memory> in_memory[3], out_memory[3];
    Call c = call;
    const void** sources[3] = {&c.x, &c.y, &c.z};
    void** results[3] = {&c.x_out, &c.y_out, &c.z_out};
    finish(*stream, [&] {
      for (int s = 0; s < 3; ++s) {
        if (!in[s].data) continue;
        in_memory[s].emplace(stream, in[s].bytes);
        *sources[s] = in_memory[s]->data();
        upload(in_memory[s]->data(), in[s].data, in[s].bytes, *stream);
      }
      for (int s = 0; s < 3; ++s) {
        if (!out[s].data) continue;
        out_memory[s].emplace(stream, out[s].bytes);
        *results[s] = out_memory[s]->data();
      }
      enqueue(*plan->operation, pass, c, *stream);
      for (int s = 0; s < 3; ++s)
        if (out[s].data) download(out[s].data, out_memory[s]->data(), out[s].bytes, *stream);
    });
  }
};

constexpr const char* in_names[3] = {"x", "y", "z"};
constexpr const char* out_names[3] = {"xOut", "yOut", "zOut"};

HostCall read_host_call(const Napi::CallbackInfo& info) {
  refuse_capture(info.Env(), "one on host arrays");
  const auto o = info[2].As<Napi::Object>();
  HostCall h{live<Plan>(info[0]), pass_of(info[1]), read_call(o), {}, {}, nullptr};
  h.stream = stream_of(info.Env(), h.plan->operation->device);
  for (int s = 0; s < 3; ++s) {
    const Napi::Value in = o.Get(in_names[s]), out = o.Get(out_names[s]);
    if (in.IsTypedArray()) h.in[s] = {data_of(in), bytes_of(in)};
    if (out.IsTypedArray()) h.out[s] = {data_of(out), bytes_of(out)};
  }
  return h;
}

Napi::Value run_host(const Napi::CallbackInfo& info) {
  read_host_call(info).execute();
  return info.Env().Undefined();
}

// ---- asynchronous calls

// A promise of what execute() does on a thread of libuv's pool. That thread sleeps while the device works: the callbacks that CUDA
// offers instead are not called after an error, and a promise would stay pending.
class Worker : public Napi::AsyncWorker {
 public:
  explicit Worker(Napi::Env env) : Napi::AsyncWorker(env, "equitensor"), deferred(env) {}

  Napi::Promise start() {
    const Napi::Promise promise = deferred.Promise();
    Queue();
    return promise;
  }

 protected:
  virtual void work() = 0;
  virtual void deliver(Napi::Env) {}

  void Execute() final {
    try {
      work();
    } catch (const Error& e) {
      error = e;
    } catch (const std::bad_alloc&) {
      error = Error("out_of_memory", "no memory on the host");
    }
  }
  void OnOK() final {
    try {
      if (!error) deliver(Env());
      if (error) deferred.Reject(js_error(Env(), *error).Value());
      else deferred.Resolve(Env().Undefined());
    } catch (const Napi::Error&) {  // the environment is being torn down
    }
  }
  // Of libuv: the work was cancelled.
  void OnError(const Napi::Error& e) final {
    try {
      deferred.Reject(e.Value());
    } catch (const Napi::Error&) {
    }
  }

 private:
  Napi::Promise::Deferred deferred;
  std::optional<Error> error;
};

class StreamWorker final : public Worker {
 public:
  StreamWorker(Napi::Env env, SharedStream stream) : Worker(env), stream(std::move(stream)), event(this->stream->device) {
    event.record(*this->stream);
  }

 private:
  void work() override { event.synchronize(); }

  SharedStream stream;
  Event event;
};

// Copies of the inputs, and the results delivered at the end: the arrays' memory may be transferred away in the meantime.
class HostWorker final : public Worker {
 public:
  HostWorker(Napi::Env env, HostCall c, const Napi::Object& o) : Worker(env), call(std::move(c)) {
    for (int s = 0; s < 3; ++s) {
      if (call.in[s].data) {
        const auto* data = static_cast<const char*>(call.in[s].data);
        inputs[s].assign(data, data + call.in[s].bytes);
        call.in[s].data = inputs[s].data();
      }
      if (call.out[s].data) {
        arrays[s] = Napi::Persistent(o.Get(out_names[s]).As<Napi::Object>());
        results[s].resize(call.out[s].bytes);
        call.out[s].data = results[s].data();
      }
    }
  }

 private:
  void work() override { call.execute(); }
  void deliver(Napi::Env) override {
    for (int s = 0; s < 3; ++s) {
      if (arrays[s].IsEmpty()) continue;
      const Napi::Object array = arrays[s].Value();
      if (bytes_of(array) == results[s].size() && !results[s].empty()) std::memcpy(data_of(array), results[s].data(), results[s].size());
    }
  }

  HostCall call;
  std::vector<char> inputs[3], results[3];
  Napi::ObjectReference arrays[3];
};

Napi::Value run_host_async(const Napi::CallbackInfo& info) {
  HostCall call = read_host_call(info);
  return (new HostWorker(info.Env(), std::move(call), info[2].As<Napi::Object>()))->start();
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
  result.Set("launches", double(counts.launches));
  result.Set("barriers", double(counts.barriers));
  traffic("loaded", counts.loaded);
  traffic("stored", counts.stored);
  traffic("table", counts.table);
  return result;
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
  set<add>(o, "add");
  set<fill_zero>(o, "fillZero");
  set<dispose<Array>>(o, "disposeArray");
  set<create_clebsch_gordan>(o, "createClebschGordan");
  set<create_gaunt>(o, "createGaunt");
  set<create_matrix>(o, "createMatrix");
  set<create_matrix_block>(o, "createMatrixBlock");
  set<create_spherical_harmonics>(o, "createSphericalHarmonics");
  set<dispose<Plan>>(o, "disposeOperation");
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
#ifdef EQUITENSOR_EMULATED
  set<fail_next>(o, "failNext");
  set<calls>(o, "calls");
  set<counting>(o, "counting");
#endif
  exports.Set("cuda", o);
}

}  // namespace equitensor::cuda
