// What the host side of every operation shares: plans in device memory, the size of tiles, gradients that are summed over the batch.
#pragma once
#include "core/build_plan.hpp"
#include "cuda/operation.hpp"
#include "cuda/tile.cuh"
#include <algorithm>
#include <cstring>
#include <optional>

namespace equitensor::cuda {

constexpr int threads = 384;  // a block, at most
// With so many, and one block an SM asked for, a thread has up to 168 registers and none spills (left to itself ptxas aims at fewer), where an SM holds
// one block, 19 % of its threads. The MTP has 512 of up to 128 registers, 25 %. What hides latency instead: the numbers of a pack, and the 4 to 12
// sums of a map's block, are independent of one another.

// The arrays of an operation's plans, of each in one piece of device memory. The builder runs twice: once for the size, then with the final addresses.
class PlanArena {
 public:
  static constexpr int row_bytes = 16;  // coefficients are loaded 16 bytes at a time
  static constexpr bool on_device = true;

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
    built_.push_back(std::move(memory_));
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
  DeviceMemory memory_;  // of the plan that is being built
  std::vector<DeviceMemory> built_;
};

// Items and threads of a block, and its shared memory.
struct Tiling {
  int items = 0, threads = 0;
  size_t shared_bytes = 0;

  dim3 grid(long long virtual_items) const { return dim3(unsigned((virtual_items + items - 1) / items)); }
};

// V: what a thread computes on, a number or Items. A tile has `components` of every item, is worth `teams` teams and needs `least_teams`.
//
// A pack for every lane of a warp, or as many as shared memory has room for. In a small batch fewer, for every SM to have a block. If two
// blocks fit into an SM, they hide each other's barriers, and have half the threads each.
template <class V>
long long packs_with_room(int device, long components) {
  return properties(device).shared_per_block / (components * (long long)sizeof(V)) - pitch_of(0);
}
template <class V>
Tiling tiling_for(int device, long components, int teams, long long batch, int least_teams = 1) {
  const DeviceProperties& card = properties(device);
  constexpr int each = items_of<V>;
  const long long bytes_of_pack = components * (long long)sizeof(V), most = card.shared_per_block, room = packs_with_room<V>(device, components);
  if (room < 1)
    throw Error("not_supported", "an item of this operation takes " + std::to_string(2 * bytes_of_pack / each) +
                                     " bytes of shared memory, the device has " + std::to_string(most) + " a block: use backend 'cpu'");
  const long long wanted = (batch + (long long)card.multiprocessors * each - 1) / (card.multiprocessors * each);
  const int packs = int(std::min<long long>({32, room, std::max<long long>(8, wanted)}));
  const size_t bytes = size_t(bytes_of_pack * pitch_of(packs));
  const int most_threads = bytes <= size_t(most) / 2 ? threads / 2 : threads;
  return {packs * each, std::max(std::min(most_threads, teams * 32), least_teams * 32), bytes};
}
template <class Kernel>
void allow_all_shared_memory(int device, Kernel* kernel) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, properties(device).shared_per_block),
        "cudaFuncSetAttribute");
}

// T: of the array, C: of the tile. threads: of a block.
template <class T, class C>
Rows rows_of(int dim, int components, int mul, bool shared, const Strided* channel, bool channels_innermost, int threads) {
  const unsigned items = 16 / sizeof(T) * unsigned(std::max(1, threads / components));  // of a turn
  const unsigned numbers = items * unsigned(components);
  return {dim, components, mul, divisor(components), divisor(mul), shared ? 0 : dim, channel, channels_innermost,
          mul == 1 && !channel && !shared, numbers / unsigned(16 / sizeof(T)), numbers, items * unsigned(sizeof(C))};
}
template <class T>
Rows whole_rows(int dim, bool shared, int threads) { return rows_of<T, T>(dim, dim, 1, shared, nullptr, false, threads); }
template <class T, class C>
Rows channel_rows(const PlanSlot& slot, int mul, bool shared, bool channels_innermost, int threads) {
  return rows_of<T, C>(slot.dim, slot.components, mul, shared, slot.direct ? nullptr : slot.channel, channels_innermost, threads);
}

// Whether neighbouring channels are neighbours in memory (ir_mul).
inline bool are_innermost(const ChannelSlot& slot) {
  return std::all_of(slot.blocks.begin(), slot.blocks.end(), [](const IrrepsBlock& block) { return block.mul > 1 && block.channel == 1; });
}

// Sum of the rows, in an order that depends on their number only: out = sum over i of rows[i], or out += it. Of many rows the first ones are lost.
void sum_rows(float* rows, float* out, bool accumulate, int dim, long long batch, cudaStream_t stream);
void sum_rows(double* rows, double* out, bool accumulate, int dim, long long batch, cudaStream_t stream);

// Items whose gradients of shared operands, so many numbers, go to one row, one after another; the rows are summed afterwards. More rows give more threads work,
// fewer are less to add up: 16 M numbers in all, between 64 and 4096 rows.
inline long long items_of_a_sum(long long items, long long numbers) {
  const long long rows = std::clamp((1ll << 24) / numbers, 64ll, 4096ll);
  return (items + rows - 1) / rows;
}

// Results as the kernels write them, a row an item. That of a slot which all items share is summed afterwards.
template <class T>
class Results {
 public:
  Results(const Operation& operation, const Call& call, const Terms& terms, cudaStream_t stream)
      : call_(call), dim_(operation.dim), stream_(stream) {
    for (int s = 0; s < slot_count; ++s) {
      summed_[s] = terms.writes[s] && call.out[s] && call.shared[s];
      if (summed_[s]) workspace_[s].emplace(operation.device, size_t(call.batch) * dim_[s] * sizeof(T), stream);
    }
  }

  T* rows(int s) const { return static_cast<T*>(summed_[s] ? workspace_[s]->data() : call_.out[s]); }
  bool accumulates(int s) const { return call_.accumulate && !summed_[s]; }
  void finish() const {
    for (int s = 0; s < slot_count; ++s)
      if (summed_[s]) sum_rows(rows(s), static_cast<T*>(call_.out[s]), call_.accumulate, dim_[s], call_.batch, stream_);
  }

 private:
  const Call& call_;
  const int* dim_;
  cudaStream_t stream_;
  bool summed_[slot_count];
  std::optional<Workspace> workspace_[slot_count];
};

// The terms of a whole backward pass.
inline Terms backward_terms(bool square = false) {
  Call call{};
  call.in[x_operand] = call.in[y_operand] = call.in[z_operand] = call.out[0] = call.out[1] = &call;
  return terms_of(call, square);
}

// Hands out the components of a tile.
struct Components {
  long count = 0;
  // A team for every 48: fewer would wait for one another at the barriers, more have too little to do to be worth their fixed cost.
  int teams() const { return int(std::clamp<long>(count / 48, 1, threads / 32)); }
  int take(long n) {
    const long at = count;
    count += n;
    return int(at);
  }
};

template <template <class> class Kind, class... Arguments>
std::unique_ptr<Operation> make(bool is_double, const Arguments&... arguments) {
  if (is_double) return std::make_unique<Kind<double>>(arguments...);
  return std::make_unique<Kind<float>>(arguments...);
}

}  // namespace equitensor::cuda
