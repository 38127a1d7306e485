// What the host side of every operation shares: plans in device memory, the size of tiles, gradients that are summed over the batch.
#pragma once
#include "cuda/operation.hpp"
#include "cuda/tile.cuh"
#include <cstring>

namespace equitensor::cuda {

constexpr int threads = 256;  // a block
// For __launch_bounds__. Left to itself ptxas aims at 64 registers in float32, and spills. In float64 that is an occupancy of 13 %: there
// a thread's loads of a tile are independent of one another, and so are the 4 to 12 sums of a map's block, which hides what warps do not.
template <class T>
constexpr int blocks_per_multiprocessor = sizeof(T) == 4 ? 2 : 1;

// A plan's arrays in one piece of device memory. The builder runs twice: once for the size, then with the final addresses.
class PlanArena {
 public:
  static constexpr int row_bytes = 16;  // coefficients are loaded 16 bytes at a time

  explicit PlanArena(int device) : device_(device) {}

  template <class Build>
  auto build(Build&& build) {
    build(*this);
    memory_ = DeviceMemory(device_, bytes_);
    bytes_.clear();
    auto plan = build(*this);
    Stream stream(device_);
    upload(const_cast<char*>(memory_.as<char>()), bytes_.data(), bytes_.size(), stream);
    stream.synchronize();
    bytes_ = {};
    return plan;
  }

  const int* ints(const std::vector<int>& v) { return items(v); }
  template <class T>
  const T* values(const std::vector<double>& v) {
    return items(std::vector<T>(v.begin(), v.end()));
  }
  template <class Item>
  const Item* items(const std::vector<Item>& v) {
    const size_t at = (bytes_.size() + row_bytes - 1) / row_bytes * row_bytes;
    bytes_.resize(at + v.size() * sizeof(Item));
    if (!v.empty()) std::memcpy(bytes_.data() + at, v.data(), v.size() * sizeof(Item));
    return reinterpret_cast<const Item*>(reinterpret_cast<uintptr_t>(memory_.as<char>()) + at);
  }

 private:
  int device_;
  std::vector<char> bytes_;
  DeviceMemory memory_;
};

// Items a block, and the shared memory for them.
struct Tiling {
  int items = 0;
  size_t shared_bytes = 0;

  dim3 grid(long long virtual_items) const { return dim3(unsigned((virtual_items + items - 1) / items)); }
};

// As many items as fit, up to a warp's 32: two blocks an SM if that leaves at least 8, which hide each other's barriers.
template <class Kernel, class Bytes>
Tiling configure(int device, Kernel* kernel, Bytes&& bytes) {
  const size_t most = size_t(properties(device).shared_per_block);
  int items = 32;
  while (items > 8 && bytes(items) > most / 2) items /= 2;
  while (items > 1 && bytes(items) > most) items /= 2;
  if (bytes(items) > most)
    throw Error("not_supported", "an item of this operation takes " + std::to_string(bytes(1)) + " bytes of shared memory, the device has " +
                                     std::to_string(most) + " a block: use backend 'cpu'");
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, int(most)),
        "cudaFuncSetAttribute");
  return {items, bytes(items)};
}

inline Rows whole_rows(int dim, bool shared) { return {dim, dim, 1, divisor(dim), divisor(1), shared ? 0 : dim, nullptr, false}; }
inline Rows channel_rows(const PlanSlot& slot, int mul, bool shared, bool channels_innermost) {
  return {slot.dim, slot.components, mul, divisor(slot.components), divisor(mul), shared ? 0 : slot.dim,
          slot.direct ? nullptr : slot.channel, channels_innermost};
}

// Whether neighbouring channels are neighbours in memory (ir_mul).
inline bool are_innermost(const ChannelSlot (&slots)[3]) {
  for (const ChannelSlot& slot : slots)
    for (const IrrepsBlock& block : slot.blocks)
      if (block.mul == 1 || block.channel != 1) return false;
  return true;
}

// Sum of the rows, in an order that depends on their number only: out = sum over i of rows[i].
void sum_rows(const float* rows, float* out, int dim, long long batch, cudaStream_t stream);
void sum_rows(const double* rows, double* out, int dim, long long batch, cudaStream_t stream);

// A gradient as the kernels write it, a row an item. That of an operand which all items share is summed afterwards.
template <class T>
class Gradient {
 public:
  Gradient(void* out, bool shared, int device, int dim, long long batch, cudaStream_t stream)
      : out_(static_cast<T*>(out)), summed_(out && shared), dim_(dim), batch_(batch), stream_(stream),
        workspace_(device, summed_ ? size_t(batch) * dim * sizeof(T) : 0, stream) {}

  T* rows() const { return summed_ ? static_cast<T*>(workspace_.data()) : out_; }
  void finish() const {
    if (summed_) sum_rows(rows(), out_, dim_, batch_, stream_);
  }

 private:
  T* out_;
  bool summed_;
  int dim_;
  long long batch_;
  cudaStream_t stream_;
  Workspace workspace_;
};

// Rows of every slot of a product of signals.
struct ChannelRows {
  Rows slot[3];
};

// The host's side of a product of signals, channel by channel: a plan and two kernels.
template <class T, class Plan>
class ChannelProduct : public Operation {
 public:
  void forward(const Call& call, cudaStream_t stream) const override {
    const long long signals = call.batch * plan_.mul;
    if (signals == 0) return;
    check(launch(forward_kernel_, forward_.grid(signals), threads, forward_.shared_bytes, stream, plan_, rows(call.x_shared, call.y_shared),
                 forward_.items, signals, static_cast<const T*>(call.x), static_cast<const T*>(call.y), static_cast<T*>(call.z_out)),
          "cudaLaunchKernel");
  }
  void backward(const Call& call, cudaStream_t stream) const override {
    const long long signals = call.batch * plan_.mul;
    const Gradient<T> dx(call.x_out, call.x_shared, device, dim1, call.batch, stream);
    const Gradient<T> dy(call.y_out, call.y_shared, device, dim2, call.batch, stream);
    if (signals > 0)
      check(launch(backward_kernel_, backward_.grid(signals), threads, backward_.shared_bytes, stream, plan_,
                   rows(call.x_shared, call.y_shared), rows(false, false), backward_.items, signals, static_cast<const T*>(call.x),
                   static_cast<const T*>(call.y), static_cast<const T*>(call.z), dx.rows(), dy.rows()),
            "cudaLaunchKernel");
    dx.finish(), dy.finish();
  }

 protected:
  using ForwardKernel = void (*)(Plan, ChannelRows, int items, long long signals, const T* x, const T* y, T* z);
  using BackwardKernel = void (*)(Plan, ChannelRows, ChannelRows gradients, int items, long long signals, const T* x, const T* y, const T* dz,
                                  T* dx, T* dy);

  // build(store) makes the plan; tile_bytes(plan, pitch, is_backward) is the shared memory of a tile.
  template <class Build, class TileBytes>
  ChannelProduct(int device, const ChannelSlot (&slots)[3], ForwardKernel forward, BackwardKernel backward, Build&& build,
                 TileBytes&& tile_bytes)
      : Operation(device, sizeof(T) == 8, {slots[0].dim, slots[1].dim, slots[2].dim}), arena_(device), innermost_(are_innermost(slots)),
        plan_(arena_.build(build)), forward_kernel_(forward), backward_kernel_(backward) {
    forward_ = configure(device, forward, [&](int items) { return tile_bytes(plan_, pitch_of(items), false); });
    backward_ = configure(device, backward, [&](int items) { return tile_bytes(plan_, pitch_of(items), true); });
  }

 private:
  ChannelRows rows(bool x_shared, bool y_shared) const {
    const auto slot = [&](int s, bool shared) { return channel_rows(plan_.slots[s], plan_.mul, shared, innermost_); };
    return {{slot(0, x_shared), slot(1, y_shared), slot(2, false)}};
  }

  PlanArena arena_;
  bool innermost_;
  Plan plan_;
  ForwardKernel forward_kernel_;
  BackwardKernel backward_kernel_;
  Tiling forward_, backward_;
};

template <template <class> class Kind, class... Arguments>
std::unique_ptr<Operation> make(bool is_double, const Arguments&... arguments) {
  if (is_double) return std::make_unique<Kind<double>>(arguments...);
  return std::make_unique<Kind<float>>(arguments...);
}

}  // namespace equitensor::cuda
