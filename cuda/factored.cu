// Factors for each irrep and channel around a product of signals: sum over r of c_r T(a_r x, b_r y), weights [r][a | b | c]. Rows are scaled on their way into the
// product's own kernels and out of them, in chunks that an H100's L2 holds. As cpu/operation.cpp's Factored, which has the formulas: with X = a x and X' = a' x + a x',
//   backward         A = T(., Y, Z):  dx = a A,  da = sum over a channel's components of x A
//   double backward  A = T(., Y', Z) + T(., Y, Z'),  C = T(., Y, Z):  dx = a A + a' C,  da = sum of x A + x' C
#include "cuda/host.hpp"
#include <array>

namespace equitensor::cuda {
namespace {

constexpr int factored_threads = 256;
constexpr size_t chunk_bytes = 32 << 20;

// A channel of a slot: its components in a row.
struct FactorChannel {
  int slot, offset, step, count;
};
// A component of the rows of all slots, one after the other.
struct FactorComponent {
  int slot, component, factor;
};

template <class T>
struct FactoredCall {
  const T *in[operand_count], *weight, *weight_direction;
  T *out[slot_count], *weight_out;
  long long stride[slot_count], weight_stride;  // between rows; 0: one row for all
  bool summed[slot_count], weight_summed;       // the result has a row for every set of items
  bool accumulate;
  int dim[slot_count], weights, set_items;
  // Of a chunk from item `first` on, which has less than 2^31 numbers, of term r: rows of its items, null where there are none.
  long long first;
  int items, r, factors;
  T *scaled[slot_count], *direction[slot_count], *result[slot_count], *second[slot_count];

  __device__ __forceinline__ T read(const T* rows, long long stride, long long item, int c) const { return load(rows + item * stride + c).value[0]; }
  __device__ __forceinline__ T operand(int o, long long item, int c) const { return in[o] ? read(in[o], stride[slot_of(o)], item, c) : T(0); }
};

template <class T>
__global__ __launch_bounds__(factored_threads, 1) void scale_operands(const __grid_constant__ FactoredCall<T> a, const FactorComponent* components, int count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, row = i / unsigned(count);
  if (row >= unsigned(a.items)) return;
  const FactorComponent at = load_table(components + (i - row * unsigned(count))).value[0];
  const int s = at.slot, c = at.component, weight = a.r * a.factors + at.factor;
  if (!a.scaled[s] && !a.direction[s]) return;
  const long long item = a.first + row, place = row * unsigned(a.dim[s]) + c;
  const T value = a.operand(s, item, c), factor = a.read(a.weight, a.weight_stride, item, weight);
  if (a.scaled[s]) store(a.scaled[s] + place, Pack<T, 1>{factor * value});
  if (!a.direction[s]) return;
  T sum = a.weight_direction ? a.read(a.weight_direction, a.weight_stride, item, weight) * value : T(0);
  if (s < 2) sum += factor * a.operand(s + x_direction, item, c);
  store(a.direction[s] + place, Pack<T, 1>{sum});
}

// A thread for a channel of a set of items.
template <class T>
__global__ __launch_bounds__(factored_threads, 1) void take_results(const __grid_constant__ FactoredCall<T> a, const FactorChannel* channels) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const int set = int(i / unsigned(a.factors)), f = int(i - unsigned(set) * unsigned(a.factors)), weight = a.r * a.factors + f;
  const int begin = set * a.set_items, end = minimum(begin + a.set_items, a.items);
  if (begin >= end) return;
  const FactorChannel channel = load_table(channels + f).value[0];
  const int s = channel.slot;
  if (!a.out[s] && !a.weight_out) return;
  const long long row_of_set = a.first / a.set_items + set;
  const auto write = [](T* to, T value, bool adds) { store(to, Pack<T, 1>{adds ? load(to).value[0] + value : value}); };
  T total = 0;
  for (int row = begin; row < end; ++row) {
    const long long item = a.first + row;
    const T factor = a.read(a.weight, a.weight_stride, item, weight), change = a.weight_direction ? a.read(a.weight_direction, a.weight_stride, item, weight) : T(0);
    T gradient = 0;
    for (int m = 0; m < channel.count; ++m) {
      const int c = channel.offset + m * channel.step;
      const long long place = (long long)row * a.dim[s] + c;
      const T first = a.result[s] ? load(a.result[s] + place).value[0] : T(0), second = a.second[s] ? load(a.second[s] + place).value[0] : T(0);
      if (a.out[s])
        write(a.out[s] + (a.summed[s] ? row_of_set : item) * a.dim[s] + c, factor * first + change * second, a.r > 0 || (a.summed[s] ? row > begin : a.accumulate));
      if (!a.weight_out) continue;
      gradient += a.operand(s, item, c) * first;
      if (s < 2 && a.second[s]) gradient += a.operand(s + x_direction, item, c) * second;
    }
    total += gradient;
    if (a.weight_out && !a.weight_summed) write(a.weight_out + item * a.weights + weight, gradient, a.accumulate);
  }
  if (a.weight_out && a.weight_summed) store(a.weight_out + row_of_set * a.weights + weight, Pack<T, 1>{total});
}

template <class T>
class Factored final : public Operation {
 public:
  Factored(std::unique_ptr<Operation> product, int rank, const ChannelSlot (&slots)[3])
      : Operation(product->device, sizeof(T) == 8, slots[0].dim, slots[1].dim, slots[2].dim), product_(std::move(product)), arena_(device), rank_(rank) {
    std::vector<FactorChannel> channels;
    std::vector<FactorComponent> components;
    for (int s = 0; s < slot_count; ++s) {
      const size_t first = components.size();
      components.resize(first + size_t(dim[s]));
      for (const IrrepsBlock& block : slots[s].blocks)
        for (int u = 0; u < block.mul; ++u) {
          for (int m = 0; m <= 2 * block.l; ++m) components[first + size_t(block.at(u, m))] = {s, block.at(u, m), int(channels.size())};
          channels.push_back({s, block.at(u, 0), block.component, 2 * block.l + 1});
        }
    }
    factors_ = int(channels.size()), components_ = int(components.size()), weights = rank * factors_;
    channels_of_ = arena_.build([&](auto& store) { return store.items(channels); });
    components_of_ = arena_.build([&](auto& store) { return store.items(components); });
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    const bool directed = call.weight_direction, doubles = directed || call.in[x_direction] || call.in[y_direction];
    const bool differentiates = call.in[z_operand] && (call.out[0] || call.out[1] || call.weight_out);
    FactoredCall<T> a{};
    for (int o = 0; o < operand_count; ++o) a.in[o] = static_cast<const T*>(call.in[o]);
    a.weight = static_cast<const T*>(call.weight), a.weight_direction = static_cast<const T*>(call.weight_direction);
    a.weight_stride = call.weight_shared ? 0 : weights, a.weights = weights, a.factors = factors_, a.accumulate = call.accumulate;
    a.weight_summed = call.weight_out && call.weight_shared;
    long long summed = a.weight_summed ? weights : 0;
    for (int s = 0; s < slot_count; ++s) {
      a.dim[s] = dim[s], a.stride[s] = call.shared[s] ? 0 : dim[s];
      a.summed[s] = call.out[s] && call.shared[s];
      if (a.summed[s]) summed += dim[s];
    }
    // Rows of the workspace, of every slot so many as there is a pointer to.
    bool moves[slot_count] = {directed || call.in[x_direction], directed || call.in[y_direction], directed && differentiates};
    const bool has_second = doubles && (directed || call.weight_out);
    std::vector<std::pair<T**, int>> rows;
    for (int s = 0; s < slot_count; ++s) {
      const bool needed = call.out[s] || call.weight_out;
      if (s < 2 || differentiates) rows.push_back({&a.scaled[s], dim[s]});
      if (moves[s]) rows.push_back({&a.direction[s], dim[s]});
      if (needed) rows.push_back({&a.result[s], dim[s]});
      if (needed && has_second && (s < 2 || directed)) rows.push_back({&a.second[s], dim[s]});
    }
    size_t numbers = 0;
    for (const auto& [pointer, dim] : rows) numbers += size_t(dim);
    const long long most = std::max<long long>(1, chunk_bytes / (numbers * sizeof(T)));
    a.set_items = int(summed ? std::min(most, items_of_a_sum(call.batch, summed)) : 1);
    const long long sets = (call.batch + a.set_items - 1) / a.set_items, chunk = std::min(call.batch, most / a.set_items * a.set_items);
    const Workspace workspace(device, size_t(chunk) * numbers * sizeof(T), stream);
    T* next = static_cast<T*>(workspace.data());
    for (const auto& [pointer, dim] : rows) *pointer = next, next += chunk * dim;
    std::optional<Workspace> sums[slot_count + 1];
    const auto place = [&](int s, void* out, bool is_summed, int dim) {
      if (is_summed) sums[s].emplace(device, size_t(sets) * dim * sizeof(T), stream), out = sums[s]->data();
      return static_cast<T*>(out);
    };
    for (int s = 0; s < slot_count; ++s) a.out[s] = place(s, call.out[s], a.summed[s], dim[s]);
    a.weight_out = place(slot_count, call.weight_out, a.weight_summed, weights);

    for (a.first = 0; a.first < call.batch; a.first += chunk) {
      a.items = int(std::min(chunk, call.batch - a.first));
      for (a.r = 0; a.r < rank_; ++a.r) {
        FactoredCall<T> part = a;
        enqueue(scale_operands<T>, (long long)a.items * components_, stream, part, components_of_, components_);
        const std::array<const T*, 3> operands{part.scaled[0], part.scaled[1], part.scaled[2]};
        multiply(part, operands, {doubles ? part.direction[0] : nullptr, doubles ? part.direction[1] : nullptr}, part.result, false, stream);
        if (part.direction[2]) {
          T* more[slot_count] = {part.result[0], part.result[1], nullptr};
          multiply(part, {part.scaled[0], part.scaled[1], part.direction[2]}, {}, more, true, stream);
        }
        if (has_second) multiply(part, operands, {}, part.second, false, stream);
        enqueue(take_results<T>, (long long)(a.items + a.set_items - 1) / a.set_items * factors_, stream, part, channels_of_);
      }
    }
    for (int s = 0; s < slot_count; ++s)
      if (a.summed[s]) sum_rows(a.out[s], static_cast<T*>(call.out[s]), call.accumulate, dim[s], sets, stream);
    if (a.weight_summed) sum_rows(a.weight_out, static_cast<T*>(call.weight_out), call.accumulate, weights, sets, stream);
  }

 private:
  template <class... Parameters, class... Arguments>
  static void enqueue(void (*kernel)(Parameters...), long long count, cudaStream_t stream, const Arguments&... arguments) {
    check(launch(kernel, unsigned((count + factored_threads - 1) / factored_threads), factored_threads, 0, stream, arguments...), "cudaLaunchKernel");
  }

  // The product on the chunk's rows. Results that no term reaches have no rows afterwards.
  void multiply(const FactoredCall<T>& a, std::array<const T*, 3> in, std::array<const T*, 2> along, T* (&out)[slot_count], bool accumulate, cudaStream_t stream) const {
    Call call{};
    call.batch = a.items, call.accumulate = accumulate;
    for (int s = 0; s < slot_count; ++s) call.in[s] = in[size_t(s)], call.out[s] = out[s];
    call.in[x_direction] = along[0], call.in[y_direction] = along[1];
    const Terms terms = terms_of(call);
    for (int s = 0; s < slot_count; ++s)
      if (!terms.writes[s]) call.out[s] = out[s] = nullptr;
    if (terms.count > 0) product_->contract(call, stream);
  }

  std::unique_ptr<Operation> product_;
  PlanArena arena_;
  const FactorChannel* channels_of_;
  const FactorComponent* components_of_;
  int rank_, factors_, components_;
};

}  // namespace

std::unique_ptr<Operation> with_factors(std::unique_ptr<Operation> product, int rank, const ChannelSlot (&slots)[3]) {
  if (rank == 0) return product;
  if (product->is_double) return std::make_unique<Factored<double>>(std::move(product), rank, slots);
  return std::make_unique<Factored<float>>(std::move(product), rank, slots);
}

}  // namespace equitensor::cuda
