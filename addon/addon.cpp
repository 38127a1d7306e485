// The N-API glue: typed arrays in, kernels called, nothing kept but plans. Arguments come from lib/, which has checked them.
#include "addon/arguments.hpp"
#include "addon/asynchronous.hpp"
#include "addon/cuda.hpp"
#include "core/sixj.hpp"
#include "core/wigner_d.hpp"
#include "cpu/dispatch.hpp"
#include "cpu/operation.hpp"
#include "cpu/pool.hpp"
#include <chrono>
#include <cstdlib>
#include <napi.h>

namespace equitensor {
namespace {

// ---- plans

struct Handle {
  std::shared_ptr<const Operation> operation;  // shared with pending calls
};
constexpr napi_type_tag handle_tag = {0x65717569746e7372, 0x6f7065726174696f};

Napi::Value wrap(Napi::Env env, std::unique_ptr<Operation> operation) {
  auto* handle = new Handle{std::move(operation)};
  auto external = Napi::External<Handle>::New(env, handle, [](Napi::Env, Handle* h) { delete h; });
  external.TypeTag(&handle_tag);
  return external;
}
Handle& handle_of(const Napi::Value& value) {
  if (!value.IsExternal() || !value.As<Napi::External<Handle>>().CheckTypeTag(&handle_tag))
    throw Napi::TypeError::New(value.Env(), "equitensor: not an operation");
  return *value.As<Napi::External<Handle>>().Data();
}
const std::shared_ptr<const Operation>& operation_of(const Napi::Value& value) {
  const Handle& handle = handle_of(value);
  if (!handle.operation) throw Napi::TypeError::New(value.Env(), "equitensor: the operation is disposed");
  return handle.operation;
}

Napi::Value create_clebsch_gordan(const Napi::CallbackInfo& info) {
  const ClebschGordanForm f = read_clebsch_gordan(info[0].As<Napi::Object>());
  return wrap(info.Env(), make_clebsch_gordan(f.is_double, f.dims, f.in1, f.in2, f.paths, f.dense, f.square));
}

Napi::Value create_weighted(const Napi::CallbackInfo& info) {
  const WeightedForm f = read_weighted(info[0].As<Napi::Object>());
  return wrap(info.Env(), make_weighted(f));
}

Napi::Value create_gaunt(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const ChannelForm f = read_channel_product(o);
  return wrap(info.Env(), make_gaunt(f.is_double, integer(o, "rank"), f.mul, f.slots, f.products, read_grid(o)));
}

Napi::Value create_gaunt_product(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const FactorsForm f = read_factors(o);
  return wrap(info.Env(), make_gaunt_product(f.is_double, f.mul, f.slots, integer(o, "power"), {integer(o, "rings"), integer(o, "angles"), true}));
}

Napi::Value create_fourier(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const ChannelForm f = read_channel_product(o);
  return wrap(info.Env(), make_fourier(f.is_double, integer(o, "rank"), f.mul, f.slots, f.products, boolean(o, "fft")));
}

Napi::Value create_matrix(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const ChannelForm f = read_channel_product(o);
  return wrap(info.Env(), make_matrix(f.is_double, integer(o, "rank"), f.mul, f.slots, f.products, integer(o, "k")));
}

Napi::Value create_matrix_block(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const ChannelForm f = read_channel_product(o);
  return wrap(info.Env(), make_matrix_block(f.is_double, integer(o, "rank"), f.mul, f.slots, read_block_paths(o)));
}

Napi::Value create_symmetric_contraction(const Napi::CallbackInfo& info) {
  std::vector<int> ranks;
  auto result = Napi::Object::New(info.Env());
  result.Set("operation", wrap(info.Env(), make_symmetric_contraction(read_symmetric_contraction(info[0].As<Napi::Object>()), ranks)));
  auto list = Napi::Array::New(info.Env(), ranks.size());
  for (size_t b = 0; b < ranks.size(); ++b) list.Set(uint32_t(b), ranks[b]);
  result.Set("ranks", list);
  return result;
}

Napi::Value create_spherical_harmonics(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  return wrap(info.Env(), make_spherical_harmonics(boolean(o, "isDouble"), ints(o.Get("degrees")), doubles(o.Get("scale")),
                                                   boolean(o, "normalize")));
}

Napi::Value dispose(const Napi::CallbackInfo& info) {
  handle_of(info[0]).operation.reset();
  return info.Env().Undefined();
}

Napi::Value flops(const Napi::CallbackInfo& info) {
  const Operation& operation = *operation_of(info[0]);
  auto result = Napi::Object::New(info.Env());
  result.Set("forward", double(operation.flops.forward));
  result.Set("backward", double(operation.flops.backward));
  result.Set("doubleBackward", double(operation.flops.double_backward));
  result.Set("unrolled", double(operation.flops.unrolled));
  return result;
}

// ---- calls

Napi::Value overlap(const Napi::CallbackInfo& info) {
  const auto *a = static_cast<char*>(data_of(info[0])), *b = static_cast<char*>(data_of(info[1]));
  const size_t a_size = info[0].As<Napi::TypedArray>().ByteLength(), b_size = info[1].As<Napi::TypedArray>().ByteLength();
  return Napi::Boolean::New(info.Env(), a < b + b_size && b < a + a_size);
}

const Kernels& kernels_named(const Napi::Value& variant) {
  const std::string name = variant.IsString() ? variant.As<Napi::String>().Utf8Value() : "";
  const Kernels* kernels = find_kernels(name);
  if (!kernels) {
    const char* preferred = std::getenv("EQUITENSOR_CPU");
    std::string known;
    for (const std::string& v : variants()) known += (known.empty() ? "" : ", ") + v;
    throw Napi::Error::New(variant.Env(), "EQUITENSOR_CPU: expected one of " + known + ", which this machine can run, got \"" +
                                              (name.empty() && preferred ? preferred : name) + "\"");
  }
  return *kernels;
}

Call call_on(const HostSpans& spans, const Napi::Object& o) {
  Call call = read_call(o);
  call.threads = integer(o, "threads");
  const void* in[operand_arrays];
  void* out[result_arrays];
  for (int i = 0; i < operand_arrays; ++i) in[i] = spans.in[i].data;
  for (int s = 0; s < result_arrays; ++s) out[s] = spans.out[s].data;
  put_arrays(call, in, out);
  call.species = static_cast<const int*>(spans.in[species_operand].data);
  return call;
}

// (operation, call of arguments.hpp with typed arrays and variant?)
Napi::Value contract(const Napi::CallbackInfo& info) {
  const auto o = info[1].As<Napi::Object>();
  try {
    const Operation& operation = *operation_of(info[0]);
    const Kernels& kernels = kernels_named(o.Get("variant"));
    const Call call = call_on(HostSpans(o), o);
    for_each_sweep(call, read_sweeps(o), operation.differentiates_by_receiver(call), [&](const Call& part) { operation.contract(part, kernels); });
  } catch (const std::bad_alloc&) {
    throw out_of_memory(info.Env(), "no memory for the kernels' working space");
  }
  return info.Env().Undefined();
}

class ContractWorker final : public Worker {
 public:
  ContractWorker(Napi::Env env, std::shared_ptr<const Operation> operation, const Napi::Object& o, HostSpans spans)
      : Worker(env), operation(std::move(operation)), kernels(kernels_named(o.Get("variant"))),
        arrays(o, boolean(o, "accumulate"), spans), call(call_on(spans, o)), sweeps(read_sweeps(o)) {
    call.cancel = arrays.cancel();
    if (sweeps) graph = Napi::Persistent(o.Get("sweeps").As<Napi::Object>());
  }

 private:
  void work() override {
    for_each_sweep(call, sweeps, operation->differentiates_by_receiver(call), [&](const Call& part) { operation->contract(part, kernels); });
  }
  void deliver() override {
    if (!arrays.is_cancelled()) arrays.deliver();
  }

  std::shared_ptr<const Operation> operation;
  const Kernels& kernels;
  PendingArrays arrays;
  Call call;
  std::optional<GraphSweeps> sweeps;
  Napi::ObjectReference graph;  // whose arrays these are
};

// As contract, with cancel?: a promise
Napi::Value contract_async(const Napi::CallbackInfo& info) {
  const auto o = info[1].As<Napi::Object>();
  try {
    return (new ContractWorker(info.Env(), operation_of(info[0]), o, HostSpans(o)))->start();
  } catch (const std::bad_alloc&) {
    throw out_of_memory(info.Env(), "no memory for the copies of the arrays that a pending call has");
  }
}

Napi::Value take_count(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), double(find_kernels("counted")->take_count()));
}

// ---- mathematics

int degree(const Napi::CallbackInfo& info, int i) { return info[i].As<Napi::Number>().Int32Value(); }

Napi::Value wigner3j_array(const Napi::CallbackInfo& info) {
  const int l1 = degree(info, 0), l2 = degree(info, 1), l3 = degree(info, 2);
  const size_t n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, n3 = 2 * l3 + 1;
  auto result = Napi::Float64Array::New(info.Env(), n1 * n2 * n3);
  double* out = result.Data();
  for (int i = -l1; i <= l1; ++i)
    for (int j = -l2; j <= l2; ++j)
      for (int k = -l3; k <= l3; ++k, ++out) *out = orders_couple(l1, i, l2, j, l3, k) ? wigner3j(l1, i, l2, j, l3, k) : 0;
  return result;
}
Napi::Value gaunt(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), gaunt_coefficient(degree(info, 0), degree(info, 1), degree(info, 2), degree(info, 3),
                                                         degree(info, 4), degree(info, 5)));
}
Napi::Value gaunt_path_coefficient(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), gaunt_path(degree(info, 0), degree(info, 1), degree(info, 2)));
}
Napi::Value matrix_path_coefficient(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), matrix_path(degree(info, 0), degree(info, 1), degree(info, 2), degree(info, 3)));
}
Napi::Value matrix_block_path_coefficient(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), matrix_block_path(degree(info, 0), degree(info, 1), degree(info, 2), degree(info, 3),
                                                         info[4].As<Napi::Boolean>().Value()));
}
Napi::Value wigner_d_array(const Napi::CallbackInfo& info) {
  const std::vector<double> d = wigner_d(degree(info, 0), doubles(info[1]).data());
  auto result = Napi::Float64Array::New(info.Env(), d.size());
  std::copy(d.begin(), d.end(), result.Data());
  return result;
}

// ---- the machine

Napi::Value cpu_info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto result = Napi::Object::New(env);
  result.Set("variant", kernels_named(env.Undefined()).name);
  auto names = Napi::Array::New(env);
  for (const std::string& name : variants()) names.Set(names.Length(), name);
  result.Set("variants", names);
  result.Set("threads", available_threads());
  return result;
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// { bytes, threads }: bytes read plus written a second, copying half of `bytes` to the other half past the cache. The best of three.
Napi::Value measure_copy_bandwidth(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const long half = long(o.Get("bytes").As<Napi::Number>().Int64Value()) / 2 / 4096 * 4096;
  const int threads = integer(o, "threads");
  char* memory = static_cast<char*>(std::aligned_alloc(4096, size_t(2 * half)));
  if (!memory) throw Napi::Error::New(info.Env(), "equitensor: no memory to measure the copy bandwidth");
  const Kernels& kernels = kernels_named(info.Env().Undefined());
  const long tasks = 16L * threads, share = half / tasks / 4096 * 4096;
  const auto copy = [&] {
    parallel_for(threads, tasks, 0, [&](long t, void*) {
      const long begin = t * share, bytes = t + 1 == tasks ? half - begin : share;
      kernels.copy(memory + begin, memory + half + begin, bytes);
    });
  };
  std::fill(memory, memory + 2 * half, char(1));
  double best = 1e30;
  for (int run = 0; run < 3; ++run) {
    const double start = seconds();
    copy();
    best = std::min(best, seconds() - start);
  }
  std::free(memory);
  return Napi::Number::New(info.Env(), 2.0 * double(half) / best);
}

// { dtype, threads }: multiply-adds a second, all lanes. The best of five.
Napi::Value measure_fma_peak(const Napi::CallbackInfo& info) {
  const auto o = info[0].As<Napi::Object>();
  const bool is_double = o.Get("dtype").As<Napi::String>().Utf8Value() == "float64";
  const int threads = integer(o, "threads");
  const Kernels& kernels = kernels_named(info.Env().Undefined());
  const long iterations = 4'000'000;
  const auto chain = is_double ? kernels.f64.fma_chain : kernels.f32.fma_chain;
  const long each = is_double ? kernels.f64.fma_per_iteration : kernels.f32.fma_per_iteration;
  double best = 1e30;
  for (int run = 0; run < 5; ++run) {
    const double start = seconds();
    parallel_for(threads, threads, 0, [&](long, void*) {
      volatile double result = chain(iterations);
      (void)result;
    });
    best = std::min(best, seconds() - start);
  }
  return Napi::Number::New(info.Env(), double(each) * double(iterations) * threads / best);
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  const auto add = [&](const char* name, Napi::Value (*function)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, function, name));
  };
  exports.Set("stamp", EQUITENSOR_STAMP);
  add("cpuInfo", cpu_info);
  add("createClebschGordan", create_clebsch_gordan);
  add("createWeighted", create_weighted);
  add("createGaunt", create_gaunt);
  add("createGauntProduct", create_gaunt_product);
  add("createFourier", create_fourier);
  add("createMatrix", create_matrix);
  add("createMatrixBlock", create_matrix_block);
  add("createSymmetricContraction", create_symmetric_contraction);
  add("createSphericalHarmonics", create_spherical_harmonics);
  add("dispose", dispose);
  add("overlap", overlap);
  add("flops", flops);
  add("contract", contract);
  add("contractAsync", contract_async);
  add("takeCount", take_count);
  add("wigner3j", wigner3j_array);
  add("gauntCoefficient", gaunt);
  add("gauntPath", gaunt_path_coefficient);
  add("matrixPath", matrix_path_coefficient);
  add("matrixBlockPath", matrix_block_path_coefficient);
  add("wignerD", wigner_d_array);
  add("measureCopyBandwidth", measure_copy_bandwidth);
  add("measureFmaPeak", measure_fma_peak);
#ifdef EQUITENSOR_CUDA
  cuda::register_cuda(env, exports);
#endif
  return exports;
}

}  // namespace
}  // namespace equitensor

static Napi::Object initialise(Napi::Env env, Napi::Object exports) { return equitensor::initialise(env, exports); }
NODE_API_MODULE(equitensor_cpu, initialise)
