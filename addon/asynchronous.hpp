// Promises of what native code does on another thread, and the host arrays of such a call.
#pragma once
#include "addon/arguments.hpp"
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <napi.h>

namespace equitensor {

inline Napi::Error out_of_memory(Napi::Env env, const char* text) {
  auto error = Napi::Error::New(env, text);
  error.Set("code", "out_of_memory");
  return error;
}

struct HostSpan {
  void* data;
  size_t bytes;
};
// Not null for an array of no elements, which has no memory but is there.
inline HostSpan span_of(const Napi::Value& value) {
  static char nothing;
  if (!value.IsTypedArray()) return {};
  void* data = data_of(value);
  return {data ? data : &nothing, value.As<Napi::TypedArray>().ByteLength()};
}
struct HostSpans {
  HostSpan in[operand_arrays]{}, out[result_arrays]{};

  explicit HostSpans(const Napi::Object& call) {
    const bool factors = boolean(call, "factors");
    for (int o = 0; o < (factors ? operand_arrays : factor_operand); ++o) in[o] = span_of(call.Get(operand_names[o]));
    for (int s = 0; s < (factors ? result_arrays : factor_result); ++s) out[s] = span_of(call.Get(result_names[s]));
  }
};

// The memory of a pending call. JavaScript may transfer an array's memory away in the meantime, so that inputs are copied and
// results are delivered at the end; shared memory cannot be transferred, and inputs there are read in place.
class PendingArrays {
 public:
  // Points `spans` to memory that stays. `cancel`: an Int32Array in shared memory, not 0 once nobody wants the results; or undefined.
  PendingArrays(const Napi::Object& call, bool accumulate, HostSpans& spans) {
    for (int o = 0; o < operand_arrays; ++o) {
      HostSpan& span = spans.in[o];
      if (!span.data) continue;
      const Napi::Object array = call.Get(operand_names[o]).As<Napi::Object>();
      if (array.As<Napi::TypedArray>().Get("buffer").IsArrayBuffer())
        span.data = copy(copies_[o], span);
      else
        shared_[o] = Napi::Persistent(array);
    }
    for (int s = 0; s < result_arrays; ++s) {
      HostSpan& span = spans.out[s];
      if (!span.data) continue;
      arrays_[s] = Napi::Persistent(call.Get(result_names[s]).As<Napi::Object>());
      bytes_[s] = span.bytes;
      if (accumulate) {
        span.data = copy(results_[s], span);
      } else {
        results_[s].reset(new char[span.bytes]);
        span.data = results_[s].get();
      }
    }
    if (const Napi::Value cancel = call.Get("cancel"); cancel.IsTypedArray()) {
      cancel_array_ = Napi::Persistent(cancel.As<Napi::Object>());
      cancel_ = static_cast<const std::atomic<int>*>(data_of(cancel));
    }
  }

  const std::atomic<int>* cancel() const { return cancel_; }
  bool is_cancelled() const { return cancel_ && *cancel_; }

  // On the thread of JavaScript.
  void deliver() const {
    for (int s = 0; s < result_arrays; ++s) {
      if (arrays_[s].IsEmpty()) continue;
      const HostSpan to = span_of(arrays_[s].Value());
      if (to.bytes == bytes_[s] && to.bytes) std::memcpy(to.data, results_[s].get(), to.bytes);
    }
  }

 private:
  using Bytes = std::unique_ptr<char[]>;
  static void* copy(Bytes& into, const HostSpan& from) {
    into.reset(new char[from.bytes]);
    std::memcpy(into.get(), from.data, from.bytes);
    return into.get();
  }

  Bytes copies_[operand_arrays], results_[result_arrays];
  size_t bytes_[result_arrays] = {};
  Napi::ObjectReference shared_[operand_arrays], arrays_[result_arrays], cancel_array_;
  const std::atomic<int>* cancel_ = nullptr;
};

// A promise of what work() does on a thread of libuv's pool.
class Worker : public Napi::AsyncWorker {
 public:
  explicit Worker(Napi::Env env) : Napi::AsyncWorker(env, "equitensor"), deferred_(env) {}

  Napi::Promise start() {
    const Napi::Promise promise = deferred_.Promise();
    Queue();
    return promise;
  }

 protected:
  virtual void work() = 0;
  virtual void deliver() {}
  // What the promise is rejected with when work() has thrown.
  virtual Napi::Error error_of(const std::exception_ptr& thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::bad_alloc&) {
      return out_of_memory(Env(), "no memory for the kernels' working space");
    } catch (const std::exception& e) {
      return Napi::Error::New(Env(), e.what());
    }
  }

 private:
  void Execute() final {
    try {
      work();
    } catch (...) {
      thrown_ = std::current_exception();
    }
  }
  void OnOK() final {
    try {
      if (!thrown_) deliver();
      if (thrown_) deferred_.Reject(error_of(thrown_).Value());
      else deferred_.Resolve(Env().Undefined());
    } catch (const Napi::Error&) {  // the environment is being torn down
    }
  }
  // Of libuv: the work was cancelled.
  void OnError(const Napi::Error& e) final {
    try {
      deferred_.Reject(e.Value());
    } catch (const Napi::Error&) {
    }
  }

  Napi::Promise::Deferred deferred_;
  std::exception_ptr thrown_;
};

}  // namespace equitensor
