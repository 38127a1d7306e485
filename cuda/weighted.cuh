// What the two kernels of the weighted tensor product share (cuda/weighted.cu, cuda/weighted_channelwise.cu): t_k = w sum_i M_ik x_i for the channels of one
// operand, the lane operand, with M_ik = sum_j C_ijk y_j of a channel of the other one; with or without a mix of the channels behind it. A group of 8 to 32
// neighbouring threads has an item to itself, so that nothing waits for a block.
#pragma once
#include "core/unroll.hpp"
#include "core/weighted.hpp"
#include "cuda/host.hpp"

namespace equitensor::cuda {

// Occupancy is 12 to 25 %, for the registers: what hides the latency is that a thread has the loads of a whole path in flight, up to 14 of 16 bytes.
constexpr int weighted_threads = 128;

// Edges of a convolution whose sum a thread has in registers (forward, by channelwise): what it adds to a node's row passes through the cache once for all of them.
constexpr int edges_at_once = 8;

// ---- what both kernels are given

// Component m of channel u lies at offset + u * channel + m * component.
struct Place {
  int offset, channel, component;
};

// A sum of coefficients times numbers: terms [begin, end), into `to`.
struct alignas(16) WeightedSum {
  int to, begin, end;
};
template <class T>
struct alignas(2 * sizeof(T)) WeightedTerm {
  T value;
  int from;
};

template <class T>
struct WeightedCall {
  const T* in[operand_count];
  T* out[slot_count];
  const T *weight, *weight_direction;
  T* weight_out;
  long long stride[slot_count], weight_stride;  // between the operands' rows; 0: one row for all
  int dim[slot_count], weights;
  bool summed[slot_count], weight_summed;       // the result has a row for every set of items
  bool accumulate;
  long long batch;
  int items;     // of a set, one after another; of a convolution nodes
  Sweep sweep;   // of a convolution, whose results are there already: sums of no edges
  bool is_swept;
  int span;      // so many edges, one after another in the sweep, take the place of a node's, and what they add to rows of nodes is atomic; 0: nodes it is
};

// A set's items, or its nodes' edges, one after another; those of a warp's sets side by side, for all of its lanes to be together.
struct WeightedItems {
  int begin, count, most;
  template <class T>
  __device__ __forceinline__ WeightedItems(const WeightedCall<T>& a, long long set, int n) : begin(0), count(1), most(1) {
    if (!a.is_swept) return;
    const long long node = set * a.items + n;
    int end = 0;
    if (a.span) {
      const auto within = [&](long long place) { return int(place < a.batch ? place : a.batch); };
      begin = within(node * a.span), end = within((node + 1) * a.span);
    } else if (node < a.sweep.nodes) {
      begin = load_table(a.sweep.begin + node).value[0], end = load_table(a.sweep.begin + node + 1).value[0];
    }
    most = count = end - begin;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) most = maximum(most, __shfl_xor_sync(0xffffffff, most, distance));
  }
};

// Of an item: where its rows begin.
template <class T>
struct WeightedRows {
  const WeightedCall<T>& a;
  long long item, set;
  int sender, receiver;  // of an edge
  bool again;  // not the first of a set, or of a node
  bool live;   // otherwise beyond the batch, or a node's edges: computed as some other item, and not stored

  __device__ __forceinline__ WeightedRows(const WeightedCall<T>& a, long long set, int n, const WeightedItems& items, int e)
      : a(a), item(set * a.items + n), set(set), sender(0), receiver(0), again(n > 0), live(item < a.batch) {
    if (!a.is_swept) {
      if (!live) item = a.batch - 1;
      return;
    }
    const long long node = item;
    again = e > 0;
    live = e < items.count;
    const long long place = live ? items.begin + e : 0;
    item = load_table(a.sweep.edge + place).value[0];
    const int other = load_table(a.sweep.other + place).value[0], mine = a.span ? load_table(a.sweep.node + place).value[0] : live ? int(node) : 0;
    sender = a.sweep.slot == 0 ? mine : other, receiver = a.sweep.slot == 0 ? other : mine;
  }
  // Computed where they are needed: arrays of pointers that are indexed at run time would be in local memory.
  __device__ __forceinline__ long long row(int slot) const { return !a.is_swept || slot == 1 ? item : slot == 0 ? sender : receiver; }
  __device__ __forceinline__ const T* in(int operand) const { return a.in[operand] + row(slot_of(operand)) * a.stride[slot_of(operand)]; }
  __device__ __forceinline__ T* out(int slot) const { return a.out[slot] + (a.summed[slot] ? set : row(slot)) * a.dim[slot]; }
  __device__ __forceinline__ const T* weights(const T* all) const { return all + item * a.weight_stride; }
  __device__ __forceinline__ T* weight_out() const { return a.weight_out + (a.weight_summed ? set : item) * a.weights; }
  // To what the results hold: a set's row of zeros, where its first node may have no edges.
  __device__ __forceinline__ bool adds(int slot) const {
    return a.summed[slot] ? again || a.is_swept : a.accumulate || (a.is_swept && slot == a.sweep.slot && again);
  }
  __device__ __forceinline__ bool adds_weight() const { return a.weight_summed ? again || a.is_swept : a.accumulate; }
  // A node's row, which the threads of its other edges add to at the same time.
  __device__ __forceinline__ bool is_atomic(int slot) const { return a.span && slot != 1; }
};

template <class T>
__device__ __forceinline__ T read(const T* p) { return load(p).value[0]; }
template <class T>
__device__ __forceinline__ void write(T* p, T value, bool adds, bool is_atomic = false) {
  if (is_atomic)
    add_atomically(p, Pack<T, 1>{value});
  else
    store(p, Pack<T, 1>{adds ? read(p) + value : value});
}

// sum of coefficient * from[...]
template <class T, class From>
__device__ __forceinline__ T sum_of(const WeightedTerm<T>* terms, int begin, int end, From&& from) {
  T sum = 0;
  for (int n = begin; n < end; ++n) {
    const WeightedTerm<T> term = load_table(terms + n).value[0];
    sum += term.value * from(term.from);
  }
  return sum;
}

// Adds up v over the `lanes` lanes of a group, 8, 16 or 32, in an order that depends on nothing else. Lanes exchange halves of what they have: n sums cost n to n + 2
// shuffles, and one for each doubling from 8 to the lanes. Then lane k, for k < n, has the sum of v[k], and calls body(k, sum). n is at most 8.
template <int n, class T, class Body>
__device__ __forceinline__ void sum_over_lanes(T (&v)[n], int lane, int lanes, Body&& body) {
  constexpr int exchanges = n > 4 ? 3 : n > 2 ? 2 : n > 1 ? 1 : 0;
#pragma unroll
  for (int e = 0; e < exchanges; ++e) {
    const int count = (n + (1 << e) - 1) >> e;
    const bool upper = lane >> e & 1;
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const T sent = upper ? v[2 * i] : v[2 * i + 1], kept = upper ? v[2 * i + 1] : v[2 * i];
      v[i] = kept + __shfl_xor_sync(0xffffffff, sent, 1 << e);
    }
    if (count % 2) v[count / 2] = v[count - 1] + __shfl_xor_sync(0xffffffff, v[count - 1], 1 << e);
  }
#pragma unroll
  for (int distance = 1 << exchanges; distance < 32; distance *= 2)
    if (distance < 8 || distance < lanes) v[0] += __shfl_xor_sync(0xffffffff, v[0], distance);
  if (lane < n) body(lane, v[0]);
}

// Numbers of components are odd. They are taken in pieces of 1, 3, 5 and 7: an odd number of pieces, as even as can be.
constexpr int pieces_of(int components) { return (components + 6) / 7 | 1; }
constexpr int piece_begin(int components, int piece) {
  const int pieces = pieces_of(components);
  return piece + 2 * ((components - pieces) / 2 * piece / pieces);
}
template <class Body>
__device__ __forceinline__ void with_components(int count, Body&& body) {
  switch (count) {
    case 1: return body(Int<1>{});
    case 3: return body(Int<3>{});
    case 5: return body(Int<5>{});
    default: return body(Int<7>{});
  }
}

// Calls body(outputs, first one) for the pieces of a number that is known at run time, which is a division for each if there are several.
template <class Body>
__device__ __forceinline__ void for_each_piece(int components, Body&& body) {
  for (int p = 0, first = 0; first < components; ++p) {
    const int next = components <= 7 ? components : piece_begin(components, p + 1);
    with_components(next - first, [&](auto outputs) { body(outputs, first); });
    first = next;
  }
}

// ---- host

struct Coupling {
  int i, j, k;  // components of the lane operand, of the matrix operand and of the output
  double value;
};
inline std::vector<Coupling> couplings_of(const WeightedForm& form, const WeightedInstruction& in, int lane_operand) {
  const int l1 = form.blocks[0][size_t(in.in1)].l, l2 = form.blocks[1][size_t(in.in2)].l, l3 = form.blocks[2][size_t(in.out)].l;
  std::vector<Coupling> result;
  for (int m1 = -l1; m1 <= l1; ++m1)
    for (int m2 = -l2; m2 <= l2; ++m2)
      for (int m3 = -l3; m3 <= l3; ++m3) {
        const double value = orders_couple(l1, m1, l2, m2, l3, m3) ? wigner3j(l1, m1, l2, m2, l3, m3) : 0;
        // Zeros that the selection rule does not show come out of Racah's sum as a few ulp.
        if (absolute(value) <= 1e-13) continue;
        const int i1 = m1 + l1, i2 = m2 + l2;
        result.push_back({lane_operand == 0 ? i1 : i2, lane_operand == 0 ? i2 : i1, m3 + l3, in.coefficient * value});
      }
  return result;
}
inline Place place_of(const IrrepsBlock& b) { return {b.offset, b.channel, b.component}; }
template <class T>
WeightedTerm<T> term(double value, int from) { return {T(value), from}; }

// Threads that channels share out. `weight`: work of one.
struct ChannelWork {
  int channels;
  long weight;
};
// Lanes of an item's group: as many as leave the fewest idle, in rounds of `packed` channels a lane, and the more, the fewer items share the block's memory. At
// least 8, which the sums of 8 numbers over the lanes need.
inline int lanes_for(const std::vector<ChannelWork>& work, int packed) {
  int best = 32;
  long least = -1;
  for (const int lanes : {32, 16, 8}) {
    long cost = 0;
    for (const ChannelWork& w : work) cost += (w.channels + lanes * packed - 1) / (lanes * packed) * lanes * w.weight;
    if (least < 0 || cost < least) least = cost, best = lanes;
  }
  return best;
}

// Instructions with channels, by their output blocks.
inline std::vector<WeightedInstruction> instructions_of(const WeightedForm& form) {
  std::vector<WeightedInstruction> result;
  for (const WeightedInstruction& in : form.instructions) {
    const int mul1 = form.blocks[0][size_t(in.in1)].mul, mul2 = form.blocks[1][size_t(in.in2)].mul, mul3 = form.blocks[2][size_t(in.out)].mul;
    if (mul1 > 0 && mul2 > 0 && mul3 > 0 && !connection_of(in.mode, mul1, mul2, mul3).segments.empty()) result.push_back(in);
  }
  std::stable_sort(result.begin(), result.end(), [](const auto& a, const auto& b) { return a.out < b.out; });
  return result;
}
inline WeightedConnection connection_in(const WeightedForm& form, const WeightedInstruction& in) {
  return connection_of(in.mode, form.blocks[0][size_t(in.in1)].mul, form.blocks[1][size_t(in.in2)].mul, form.blocks[2][size_t(in.out)].mul);
}

// `bytes` of shared memory for each item, with `lanes` threads.
inline Tiling weighted_tiling(int device, int lanes, long long bytes) {
  const long long most = properties(device).shared_per_block;
  while (lanes < 32 && 32 / lanes * bytes > most) lanes *= 2;
  if (32 / lanes * bytes > most)
    throw Error("not_supported", "an item of this operation takes " + std::to_string(bytes) + " bytes of shared memory, the device has " + std::to_string(most) +
                                     " a block: use backend 'cpu'");
  int threads = weighted_threads;
  while (threads > 32 && threads / lanes * bytes > most / 2) threads /= 2;
  return {threads / lanes, threads, size_t(threads / lanes * bytes)};
}

template <class T>
bool has_directions(const WeightedCall<T>& a) { return a.in[x_direction] || a.in[y_direction] || a.weight_direction; }
template <class T>
bool has_gradients(const WeightedCall<T>& a) { return a.in[z_operand] && (a.out[0] || a.out[1] || a.weight_out); }

// A kernel with its plan.
template <class T>
class WeightedKernel {
 public:
  virtual ~WeightedKernel() = default;
  // Of so many sets of items.
  virtual void launch(const WeightedCall<T>& a, long long sets, cudaStream_t stream) const = 0;
};

// Null for other modes than uvu, uvv and uvuv, and where an item is too large.
template <class T>
std::unique_ptr<WeightedKernel<T>> make_channelwise(int device, const WeightedForm& form);

}  // namespace equitensor::cuda
