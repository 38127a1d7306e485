// Weighted tensor product: t_k = w sum_i M_ik x_i for the channels of one operand, the lane operand, with M_ik = sum_j C_ijk y_j of a channel of the other
// one; with or without a mix of the channels behind it. A group of 8 to 32 neighbouring threads has an item to itself, so that nothing waits for a block.
//
// Two kernels. `channelwise` is for uvu, uvv and uvuv: a thread keeps its channels' x and dx in registers while it goes through their paths, and every
// number of x, of the weights and of z is read or written once, straight from global memory. `weighted` is for all modes, with sums in shared memory.
#include "core/unroll.hpp"
#include "cuda/host.hpp"
#include <type_traits>

namespace equitensor::cuda {
namespace {

// Occupancy is 12 to 25 %, for the registers: what hides the latency is that a thread has the loads of a whole path in flight, up to 14 of 16 bytes.
constexpr int weighted_threads = 128;

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
};

// A set's items, or its nodes' edges, one after another; those of a warp's sets side by side, for all of its lanes to be together.
struct WeightedItems {
  int begin, count, most;
  template <class T>
  __device__ __forceinline__ WeightedItems(const WeightedCall<T>& a, long long set, int n) : begin(0), count(1), most(1) {
    if (!a.is_swept) return;
    const long long node = set * a.items + n;
    const bool is_there = node < a.sweep.nodes;
    begin = is_there ? load_table(a.sweep.begin + node).value[0] : 0;
    most = count = is_there ? load_table(a.sweep.begin + node + 1).value[0] - begin : 0;
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
    const int other = load_table(a.sweep.other + place).value[0], mine = live ? int(node) : 0;
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
};

template <class T>
__device__ __forceinline__ T read(const T* p) { return load(p).value[0]; }
template <class T>
__device__ __forceinline__ void write(T* p, T value, bool adds) { store(p, Pack<T, 1>{adds ? read(p) + value : value}); }

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

// Adds up v over the `lanes` lanes of a group, in an order that depends on nothing else: lanes exchange halves of what they have, so that n sums cost
// n - 1 shuffles and one for each doubling from n to lanes. Then lane k * lanes / n has the sum of v[k], and calls body(k, sum). n is a power of two, up to 8.
template <int n, class T, class Body>
__device__ __forceinline__ void sum_over_lanes(T (&v)[n], int lane, int lanes, Body&& body) {
  unsigned step = unsigned(lanes) / 2;
  if constexpr (n > 1) {
#pragma unroll
    for (int half = n / 2; half > 0; half /= 2, step /= 2) {
      const bool upper = unsigned(lane) & step;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const T sent = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
        v[i] = kept + __shfl_xor_sync(0xffffffff, sent, step);
      }
    }
  }
  const unsigned others = step > 0 ? 2 * step - 1 : 0;
  int k = lane;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    if (n == 8 && distance > 2) continue;
    if (step >= unsigned(distance)) {
      v[0] += __shfl_xor_sync(0xffffffff, v[0], distance);
      k >>= 1;
    }
  }
  if ((unsigned(lane) & others) == 0) body(k, v[0]);
}
template <int n>
constexpr int summed_at_once = n == 1 ? 1 : n <= 4 ? 4 : 8;

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

// ---- channelwise

// A piece of a lane operand's block: `count` components from `first` on.
struct ChannelPiece {
  int operand;
  Place place;
  int mul, first, count;
  int components;  // of the block: more than `count` if it is in pieces
  int path_begin, path_end;
};
// A path, or a part of its outputs.
struct ChannelPath {
  Place out;
  int outputs;
  int matrix, pitch;  // its first entry, and the distance between its rows
  bool is_whole;      // all outputs of a channel
  bool is_scalar;     // M is one number times the identity
  int weight, weight_step;  // -1 without
  bool adds;          // to what paths before have written to z
  bool adds_weight;   // to what pieces before have written to the weights' gradient
  bool adds_matrix;   // and to M's
};
// A lane operand's block with everything that multiplies it.
struct ChannelChunk {
  int piece_begin, piece_end, entry_begin, entry_end, sum_begin, sum_end;
};
// A component of a matrix operand, or of a block that nothing multiplies.
struct ChannelTarget {
  int operand, offset;
  bool is_lane;  // of the lane operand as well, which has written it before
};
template <class T>
struct ChannelwisePlan {
  const ChannelChunk* chunks;
  int chunk_count;
  const ChannelPiece* pieces;
  const ChannelPath* paths;
  const ChannelTarget* targets;
  int target_count;
  const WeightedSum *entries, *sums;  // of M, from targets; of targets, from M's gradient
  const WeightedTerm<T>*entry_terms, *sum_terms;
  int matrix_size;
  int lanes;  // of a group
  int shared;  // numbers of an item
};

enum class WeightedPass { forward, backward, directional };

// n components of `packed` channels, beginning at `at`. Channels that are neighbours (ir_mul) are one access for each component, and so many are a whole
// block's channels of mul_ir, [channel][component], accessed as they lie; of a piece of such a block numbers are accessed one by one.
// Calls access(offset, count, first number), the numbers being [channel][component] if the last of all arguments is true, and [component][channel] otherwise.
template <int packed, int n, class Access>
__device__ __forceinline__ void for_each_access(const Place& place, bool is_whole, Access&& access) {
  if (packed == 1 || place.channel == 1) {
    each(Int<0>{}, Int<n - 1>{}, [&](auto i) { access(i * place.component, Int<packed>{}, Int<i * packed>{}, std::false_type{}); });
  } else if (is_whole) {
    each(Int<0>{}, Int<n - 1>{}, [&](auto q) { access(q * packed, Int<packed>{}, Int<q * packed>{}, std::true_type{}); });
  } else {
    each(Int<0>{}, Int<n * packed - 1>{}, [&](auto f) { access(f / packed * place.component + f % packed * place.channel, Int<1>{}, f, std::false_type{}); });
  }
}
template <class T, int packed, int n>
__device__ __forceinline__ void load_channels(const T* at, const Place& place, bool is_whole, T (&v)[n][packed]) {
  for_each_access<packed, n>(place, is_whole, [&](int offset, auto count, auto first, auto by_channel) {
    const Pack<T, count> pack = load<count>(at + offset);
    each(Int<0>{}, Int<count - 1>{}, [&](auto p) {
      constexpr int f = first + p;
      v[by_channel ? f % n : f / packed][by_channel ? f / n : f % packed] = pack.value[p];
    });
  });
}
template <class T, int packed, int n>
__device__ __forceinline__ void store_channels(T* at, const Place& place, bool is_whole, bool adds, const T (&v)[n][packed]) {
  for_each_access<packed, n>(place, is_whole, [&](int offset, auto count, auto first, auto by_channel) {
    Pack<T, count> pack{};
    if (adds) pack = load<count>(at + offset);
    each(Int<0>{}, Int<count - 1>{}, [&](auto p) {
      constexpr int f = first + p;
      pack.value[p] += v[by_channel ? f % n : f / packed][by_channel ? f / n : f % packed];
    });
    store<count>(at + offset, pack);
  });
}

// A row of M, whose pieces begin at 16 bytes.
template <int n, class T>
__device__ __forceinline__ void load_row(const T* matrix, T (&m)[n]) {
  constexpr int lanes = n == 1 ? 1 : 16 / sizeof(T);
#pragma unroll
  for (int q = 0; q < n; q += lanes) {
    const Pack<T, lanes> pack = *reinterpret_cast<const Pack<T, lanes>*>(matrix + q);
#pragma unroll
    for (int p = 0; p < lanes; ++p)
      if (q + p < n) m[q + p] = pack.value[p];
  }
}

// A thread's channels c, c + 1, ... of an item: so many as `packed` says.
template <class T, int packed, WeightedPass pass>
struct ChannelwiseThread {
  static constexpr bool directional = pass == WeightedPass::directional;
  const ChannelwisePlan<T>& plan;
  const WeightedRows<T>& rows;
  const T *matrix, *matrix_direction;
  T* matrix_gradient;
  int lane;
  bool wants_matrix, differentiates;
  int c;
  bool active, first_round;

  __device__ __forceinline__ void load_weights(const T* weights, const ChannelPath& path, T missing, T (&w)[1][packed]) const {
    if (!weights || path.weight < 0) {
#pragma unroll
      for (int p = 0; p < packed; ++p) w[0][p] = missing;
    } else {
      load_channels(rows.weights(weights) + path.weight + c * path.weight_step, {0, path.weight_step, 0}, false, w);
    }
#pragma unroll
    for (int p = 0; p < packed; ++p) w[0][p] = active ? w[0][p] : T(0);
  }
  __device__ __forceinline__ void store_weight_gradient(const ChannelPath& path, const T (&dw)[1][packed]) const {
    if (!rows.a.weight_out || path.weight < 0 || !active || !rows.live) return;
    store_channels(rows.weight_out() + path.weight + c * path.weight_step, {0, path.weight_step, 0}, false, rows.adds_weight() || path.adds_weight, dw);
  }

  // Row `i` of the path's gradient of M: sum over the channels of t_i z_k.
  template <int n>
  __device__ __forceinline__ void add_row(T* to, bool adds, const T (&t)[packed], const T (&z)[n][packed]) const {
    constexpr int count = summed_at_once<n>;
    T sum[count] = {};
#pragma unroll
    for (int k = 0; k < n; ++k)
#pragma unroll
      for (int p = 0; p < packed; ++p) sum[k] += t[p] * z[k][p];
    sum_over_lanes(sum, lane, plan.lanes, [&](int k, T total) {
      if (k < n) to[k] = adds ? to[k] + total : total;
    });
  }

  template <int inputs>
  __device__ __forceinline__ void run(const ChannelPiece& piece) {
    const int s = piece.operand, d = s == 0 ? x_direction : y_direction;
    const int at = piece.place.offset + c * piece.place.channel + piece.first * piece.place.component;
    T x[inputs][packed], ax[directional ? inputs : 1][packed] = {}, dx[pass == WeightedPass::forward ? 1 : inputs][packed] = {};
    const bool is_whole = piece.count == piece.components;
    load_channels(rows.in(s) + at, piece.place, is_whole, x);
    if constexpr (directional)
      if (rows.a.in[d]) load_channels(rows.in(d) + at, piece.place, is_whole, ax);
#pragma unroll 1
    for (int n = piece.path_begin; n < piece.path_end; ++n) {
      const ChannelPath path = load_table(plan.paths + n).value[0];
      if (path.is_scalar)
        multiply<inputs, inputs, true>(piece, path, x, ax, dx);
      else if (pass != WeightedPass::forward || is_whole)
        // No lambdas, which nvcc may leave as functions that are called, and with them the item's rows in local memory.
        switch (path.outputs) {
          case 1: multiply<inputs, 1, false>(piece, path, x, ax, dx); break;
          case 3: multiply<inputs, 3, false>(piece, path, x, ax, dx); break;
          case 5: multiply<inputs, 5, false>(piece, path, x, ax, dx); break;
          default: multiply<inputs, 7, false>(piece, path, x, ax, dx);
        }
    }
    if constexpr (pass != WeightedPass::forward)
      if (rows.a.out[s] && active && rows.live) store_channels(rows.out(s) + at, piece.place, is_whole, rows.adds(s), dx);
  }

  // Of a block in pieces: outputs, each a sum over all of them, so that it is stored once.
  __device__ __forceinline__ void run_in_pieces(const ChannelPiece& piece) {
    const int s = piece.operand, d = s == 0 ? x_direction : y_direction, at = piece.place.offset + c * piece.place.channel;
    const T* const x = rows.in(s) + at;
    const T* const ax = directional && rows.a.in[d] ? rows.in(d) + at : nullptr;
#pragma unroll 1
    for (int n = piece.path_begin; n < piece.path_end; ++n) {
      const ChannelPath path = load_table(plan.paths + n).value[0];
      if (path.is_scalar) continue;
      switch (path.outputs) {
        case 1: sum_pieces<1>(piece, path, x, ax); break;
        case 3: sum_pieces<3>(piece, path, x, ax); break;
        case 5: sum_pieces<5>(piece, path, x, ax); break;
        default: sum_pieces<7>(piece, path, x, ax);
      }
    }
  }
  template <int outputs>
  __device__ __forceinline__ void sum_pieces(const ChannelPiece& piece, const ChannelPath& path, const T* x, const T* ax) {
    T w[1][packed], aw[1][packed], sum[outputs][packed] = {};
    load_weights(rows.a.weight, path, T(1), w);
    if constexpr (directional) load_weights(rows.a.weight_direction, path, T(0), aw);
#pragma unroll 1
    for (int i = 0; i < piece.components; ++i) {
      T xs[1][packed], axs[1][packed] = {}, m[outputs], md[outputs];
      load_channels(x + i * piece.place.component, piece.place, false, xs);
      if (ax) load_channels(ax + i * piece.place.component, piece.place, false, axs);
      load_row(matrix + path.matrix + i * path.pitch, m);
      if constexpr (directional) load_row(matrix_direction + path.matrix + i * path.pitch, md);
#pragma unroll
      for (int p = 0; p < packed; ++p) {
        const T t = directional ? w[0][p] * axs[0][p] + aw[0][p] * xs[0][p] : w[0][p] * xs[0][p];
#pragma unroll
        for (int k = 0; k < outputs; ++k) {
          sum[k][p] += m[k] * t;
          if constexpr (directional) sum[k][p] += md[k] * (w[0][p] * xs[0][p]);
        }
      }
    }
    if (active && rows.live)
      store_channels(rows.out(2) + path.out.offset + c * path.out.channel, path.out, path.is_whole, rows.adds(2) || path.adds, sum);
  }

  template <int inputs, int outputs, bool is_scalar, int directions, int gradients>
  __device__ __forceinline__ void multiply(const ChannelPiece& piece, const ChannelPath& path, const T (&x)[inputs][packed], const T (&ax)[directions][packed],
                                           T (&dx)[gradients][packed]) {
    const int first = path.matrix + (is_scalar ? 0 : piece.first * path.pitch);
    const int at = path.out.offset + c * path.out.channel;
    T w[1][packed], aw[1][packed], dw[1][packed] = {}, sum[outputs][packed] = {}, z[outputs][packed];
    load_weights(rows.a.weight, path, T(1), w);
    if constexpr (directional) load_weights(rows.a.weight_direction, path, T(0), aw);
    if constexpr (pass != WeightedPass::forward)
      if (pass == WeightedPass::backward || differentiates) load_channels(rows.in(z_operand) + at, path.out, path.is_whole, z);
    T scalar[1] = {}, scalar_direction[1] = {}, scalar_gradient[1][packed] = {};
    if constexpr (is_scalar) {
      load_row(matrix + first, scalar);
      if constexpr (directional) load_row(matrix_direction + first, scalar_direction);
    }
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      T m[outputs], md[outputs];
      if constexpr (!is_scalar) {
        load_row(matrix + first + i * path.pitch, m);
        if constexpr (directional) load_row(matrix_direction + first + i * path.pitch, md);
      }
      T t[packed];  // of M's gradient
#pragma unroll
      for (int p = 0; p < packed; ++p) t[p] = directional ? w[0][p] * ax[directional ? i : 0][p] + aw[0][p] * x[i][p] : w[0][p] * x[i][p];
      if constexpr (pass != WeightedPass::backward) {
#pragma unroll
        for (int k = is_scalar ? i : 0; k < (is_scalar ? i + 1 : outputs); ++k)
#pragma unroll
          for (int p = 0; p < packed; ++p) {
            // Forward the weights wait until the end.
            sum[k][p] += (is_scalar ? scalar[0] : m[k]) * (directional ? t[p] : x[i][p]);
            if constexpr (directional) sum[k][p] += (is_scalar ? scalar_direction[0] : md[k]) * (w[0][p] * x[i][p]);
          }
      }
      if constexpr (pass == WeightedPass::forward) continue;
      if (directional && !differentiates) continue;
#pragma unroll
      for (int p = 0; p < packed; ++p) {
        T h = 0, hd = 0;
#pragma unroll
        for (int k = is_scalar ? i : 0; k < (is_scalar ? i + 1 : outputs); ++k) {
          h += (is_scalar ? scalar[0] : m[k]) * z[k][p];
          if constexpr (directional) hd += (is_scalar ? scalar_direction[0] : md[k]) * z[k][p];
        }
        if constexpr (directional) {
          dx[i % gradients][p] += aw[0][p] * h + w[0][p] * hd;
          dw[0][p] += ax[i % directions][p] * h + x[i][p] * hd;
        } else {
          dx[i % gradients][p] += w[0][p] * h;
          dw[0][p] += x[i][p] * h;
        }
        if constexpr (is_scalar) scalar_gradient[0][p] += t[p] * z[i % outputs][p];
      }
      if constexpr (!is_scalar)
        if (wants_matrix) add_row(matrix_gradient + first + i * path.pitch, path.adds_matrix || !first_round, t, z);
    }
    if constexpr (is_scalar && pass != WeightedPass::forward) {
      T ones[packed];
#pragma unroll
      for (int p = 0; p < packed; ++p) ones[p] = 1;
      if (wants_matrix) add_row(matrix_gradient + first, path.adds_matrix || !first_round, ones, scalar_gradient);
    }
    if constexpr (pass != WeightedPass::forward)
      if (pass == WeightedPass::backward || differentiates) store_weight_gradient(path, dw);
    if constexpr (pass != WeightedPass::backward) {
      if constexpr (pass == WeightedPass::forward)
#pragma unroll
        for (int k = 0; k < outputs; ++k)
#pragma unroll
          for (int p = 0; p < packed; ++p) sum[k][p] *= w[0][p];
      if (rows.a.out[2] && (is_scalar || piece.count == piece.components) && active && rows.live)
        store_channels(rows.out(2) + at, path.out, path.is_whole, rows.adds(2) || path.adds, sum);
    }
  }
};

template <class T, int packed, WeightedPass pass>
__global__ __launch_bounds__(weighted_threads, 1) void channelwise(const __grid_constant__ ChannelwisePlan<T> plan, const __grid_constant__ WeightedCall<T> a) {
  constexpr bool directional = pass == WeightedPass::directional;
  const int lanes = plan.lanes, lane = int(threadIdx.x) % lanes, group = int(threadIdx.x) / lanes;
  T* const values = dynamic_shared<T>() + group * plan.shared;  // of the targets, and of their directions; then their gradients
  T* const directions = values + plan.target_count;
  T* const gradients = directions + plan.target_count;
  T* const matrix = values + (3 * plan.target_count + 3) / 4 * 4;
  T* const matrix_direction = matrix + plan.matrix_size;
  T* const matrix_gradient = directional ? matrix_direction + plan.matrix_size : matrix_direction;
  const long long set = (long long)blockIdx.x * (blockDim.x / lanes) + group;
#pragma unroll 1
  for (int n = 0; n < a.items; ++n) {
    const WeightedItems items(a, set, n);
#pragma unroll 1
    for (int e = 0; e < items.most; ++e) {
      const WeightedRows<T> rows(a, set, n, items, e);
      const bool differentiates = pass == WeightedPass::backward || (directional && a.in[z_operand] && (a.out[0] || a.out[1] || a.weight_out));
      const bool wants_matrix = differentiates && (a.out[0] || a.out[1]);
      for (int t = lane; t < plan.target_count; t += lanes) {
        const ChannelTarget target = load_table(plan.targets + t).value[0];
        values[t] = read(rows.in(target.operand) + target.offset);
        const int direction = target.operand == 0 ? x_direction : y_direction;
        if constexpr (directional) directions[t] = a.in[direction] ? read(rows.in(direction) + target.offset) : T(0);
        if constexpr (pass != WeightedPass::forward) gradients[t] = 0;
      }
#pragma unroll 1
      for (int chunk_index = 0; chunk_index < plan.chunk_count; ++chunk_index) {
        const ChannelChunk chunk = load_table(plan.chunks + chunk_index).value[0];
        __syncwarp();
        for (int e = chunk.entry_begin + lane; e < chunk.entry_end; e += lanes) {
          const WeightedSum entry = load_table(plan.entries + e).value[0];
          matrix[entry.to] = sum_of(plan.entry_terms, entry.begin, entry.end, [&](int t) { return values[t]; });
          if constexpr (directional) matrix_direction[entry.to] = sum_of(plan.entry_terms, entry.begin, entry.end, [&](int t) { return directions[t]; });
        }
        __syncwarp();
#pragma unroll 1
        for (int p = chunk.piece_begin; p < chunk.piece_end; ++p) {
          const ChannelPiece piece = load_table(plan.pieces + p).value[0];
#pragma unroll 1
          for (int begin = 0; begin < piece.mul; begin += lanes * packed) {
            const int c = begin + lane * packed;
            ChannelwiseThread<T, packed, pass> thread{plan,  rows,         matrix,         matrix_direction, matrix_gradient,
                                                            lane, wants_matrix, differentiates, minimum(c, piece.mul - packed), c < piece.mul, begin == 0};
            if constexpr (pass != WeightedPass::backward)
              if (piece.first == 0 && piece.count < piece.components && a.out[2]) thread.run_in_pieces(piece);
            switch (piece.count) {
              case 1: thread.template run<1>(piece); break;
              case 3: thread.template run<3>(piece); break;
              case 5: thread.template run<5>(piece); break;
              default: thread.template run<7>(piece);
            }
          }
        }
        if constexpr (pass == WeightedPass::forward) continue;
        __syncwarp();
        if (wants_matrix)
          for (int t = chunk.sum_begin + lane; t < chunk.sum_end; t += lanes) {
            const WeightedSum sum = load_table(plan.sums + t).value[0];
            gradients[sum.to] += sum_of(plan.sum_terms, sum.begin, sum.end, [&](int e) { return matrix_gradient[e]; });
          }
      }
      __syncwarp();
      if constexpr (pass != WeightedPass::forward)
        for (int t = lane; wants_matrix && rows.live && t < plan.target_count; t += lanes) {
          const ChannelTarget target = load_table(plan.targets + t).value[0];
          if (a.out[target.operand]) write(rows.out(target.operand) + target.offset, gradients[t], target.is_lane || rows.adds(target.operand));
        }
      __syncwarp();
    }
  }
}

// ---- every mode

struct WeightedSegment {
  int matrix_channel, lane, lanes, out;
  int weight, weight_pitch;  // of channel 0, and from channel to channel
};
template <class T>
struct WeightedInstructionPlan {
  int lane_operand;
  Place lane, matrix;
  int inputs, matrix_components, outputs;
  bool same_channel;  // every lane has a matrix of its own, of the same channel
  int mixed;          // output channels of the mix; 0: t is the output itself
  bool weighted;
  const WeightedSegment* segments;
  int segment_count;
  const WeightedSum *entries, *sums;  // M[i * outputs + k] from components of y, and back
  const WeightedTerm<T>*entry_terms, *sum_terms;
};
template <class T>
struct WeightedBlock {
  Place place;
  int mul, components;
  Divisor by_components;
  const WeightedInstructionPlan<T>* instructions;
  int instruction_count;
};
template <class T>
struct GeneralPlan {
  int dim[slot_count];
  const WeightedBlock<T>* blocks;  // of the output
  int block_count;
  int lanes;        // of a group
  int max_block, max_entries, max_staged;
};
// Channels of t that are mixed at a time.
constexpr int staged_channels = 64;

// First numbers of an item in shared memory: gradients of x and y; a block of z, of its cotangent, as [channel][component]; M; channels of t and of its gradient.
struct WeightedLayout {
  int gradient[2], z, dz, matrix, matrix_direction, matrix_gradient, t, t_direction, g, g_direction;
  long count;
  template <class T>
  WeightedLayout(const GeneralPlan<T>& plan, bool differentiates, bool directional) {
    Components numbers;
    for (int s = 0; s < 2; ++s) gradient[s] = numbers.take(differentiates ? plan.dim[s] : 0);
    z = numbers.take(plan.max_block), dz = numbers.take(differentiates ? plan.max_block : 0);
    matrix = numbers.take(plan.max_entries), matrix_direction = numbers.take(directional ? plan.max_entries : 0);
    matrix_gradient = numbers.take(differentiates ? plan.max_entries : 0);
    t = numbers.take(plan.max_staged), t_direction = numbers.take(directional ? plan.max_staged : 0);
    g = numbers.take(differentiates ? plan.max_staged : 0), g_direction = numbers.take(differentiates && directional ? plan.max_staged : 0);
    count = numbers.count;
  }
};

// Components of a lane's channel, `step` apart.
template <class T>
struct Channel {
  const T* at;
  int step;
  __device__ __forceinline__ T operator[](int i) const { return read(at + i * step); }
};

// One instruction on an item, by one lane of its group.
template <class T>
struct WeightedLane {
  const WeightedInstructionPlan<T>& in;
  const WeightedRows<T>& rows;
  T* const shared;
  const WeightedLayout& layout;
  int lane, lanes;
  bool differentiates, wants_matrix;

  __device__ __forceinline__ int lane_direction() const { return in.lane_operand == 0 ? x_direction : y_direction; }
  __device__ __forceinline__ int matrix_direction() const { return in.lane_operand == 0 ? y_direction : x_direction; }
  __device__ __forceinline__ Channel<T> lane_channel(int operand, int u) const {
    return {rows.a.in[operand] ? rows.in(operand) + in.lane.offset + u * in.lane.channel : nullptr, in.lane.component};
  }
  __device__ __forceinline__ Channel<T> matrix_channel(int operand, int u) const {
    return {rows.a.in[operand] ? rows.in(operand) + in.matrix.offset + u * in.matrix.channel : nullptr, in.matrix.component};
  }

  // Entry e of M, which a channel of `operand` makes: of the whole group, or of this lane.
  __device__ __forceinline__ T made(int e, const Channel<T>& from) const {
    const WeightedSum entry = load_table(in.entries + e).value[0];
    return sum_of(in.entry_terms, entry.begin, entry.end, [&](int j) { return from[j]; });
  }
  __device__ __forceinline__ void make_matrix(int operand, int channel, T* matrix) const {
    const Channel<T> from = matrix_channel(operand, channel);
    for (int e = lane; e < in.inputs * in.outputs; e += lanes) matrix[e] = rows.a.in[operand] ? made(e, from) : T(0);
  }
  // Calls body(outputs, first one, entry(i, k)).
  template <class Body>
  __device__ __forceinline__ void for_each_part(const T* matrix, int operand, int u, Body&& body) const {
    const Channel<T> from = matrix_channel(operand, u);
    const bool made_here = in.same_channel, missing = !rows.a.in[operand];
    for_each_piece(in.outputs, [&](auto outputs, int first) {
      body(outputs, first, [&](int i, int k) {
        const int e = i * in.outputs + first + k;
        return made_here ? missing ? T(0) : made(e, from) : matrix[e];
      });
    });
  }

  // to_k = scale * sum_i M_ik x_i, or to_k += it.
  __device__ __forceinline__ void multiply(const T* matrix, int matrix_operand, int lane_operand, int u, T scale, T* to, bool adds) const {
    if (!rows.a.in[matrix_operand] || !rows.a.in[lane_operand]) {
      for (int k = 0; !adds && k < in.outputs; ++k) to[k] = 0;
      return;
    }
    const Channel<T> x = lane_channel(lane_operand, u);
    for_each_part(matrix, matrix_operand, u, [&](auto outputs, int first, auto entry) {
      T sum[outputs] = {};
#pragma unroll 1
      for (int i = 0; i < in.inputs; ++i) {
        const T value = x[i];
#pragma unroll
        for (int k = 0; k < outputs; ++k) sum[k] += entry(i, k) * value;
      }
#pragma unroll
      for (int k = 0; k < outputs; ++k) to[first + k] = (adds ? to[first + k] : T(0)) + scale * sum[k];
    });
  }

  // With h_i = sum_k M_ik z_k: dx_i += scale h_i, dM_ik += scale outer_i z_k; returns sum_i inner_i h_i. Every lane of the group is here; one that is
  // not active has a scale of 0.
  __device__ __forceinline__ T differentiate(const T* matrix, int matrix_operand, int u, bool active, const T* z, T scale, int outer_operand, int inner_operand) const {
    T dw = 0;
    const Channel<T> outer = lane_channel(outer_operand, u), inner = lane_channel(inner_operand, u);
    T* const dx = shared + layout.gradient[in.lane_operand] + in.lane.offset + u * in.lane.channel;
    T* const dy = shared + layout.gradient[1 - in.lane_operand] + in.matrix.offset + u * in.matrix.channel;
    T* const dmatrix = shared + layout.matrix_gradient;
    for_each_part(matrix, matrix_operand, u, [&](auto outputs, int first, auto entry) {
      constexpr int count = summed_at_once<decltype(outputs){}>;
      T value[outputs];
#pragma unroll
      for (int k = 0; k < outputs; ++k) value[k] = z[first + k];
#pragma unroll 1
      for (int i = 0; i < in.inputs; ++i) {
        const T t = rows.a.in[outer_operand] ? scale * outer[i] : T(0);
        T h = 0;
#pragma unroll
        for (int k = 0; k < outputs; ++k) h += entry(i, k) * value[k];
        if (active) dx[i * in.lane.component] += scale * h;
        if (rows.a.in[inner_operand]) dw += inner[i] * h;
        if (!wants_matrix) continue;
        T row[count] = {};
#pragma unroll
        for (int k = 0; k < outputs; ++k) row[k] = t * value[k];
        if (in.same_channel) {
#pragma unroll 1
          for (int j = 0; active && j < in.matrix_components; ++j) {
            // The nonzeros of this row.
            const WeightedSum sum = load_table(in.sums + j * in.inputs + i).value[0];
            T part = 0;
            for (int n = sum.begin; n < sum.end; ++n) {
              const WeightedTerm<T> term = load_table(in.sum_terms + n).value[0];
#pragma unroll
              for (int k = 0; k < outputs; ++k) part += term.from - i * in.outputs == first + k ? term.value * row[k] : T(0);
            }
            dy[j * in.matrix.component] += part;
          }
        } else {
          sum_over_lanes(row, lane, lanes, [&](int k, T total) {
            if (k < outputs) dmatrix[i * in.outputs + first + k] += total;
          });
        }
      }
    });
    return dw;
  }

  // dy from dM.
  __device__ __forceinline__ void contract(const WeightedSegment& s) const {
    T* const dy = shared + layout.gradient[1 - in.lane_operand] + in.matrix.offset + s.matrix_channel * in.matrix.channel;
    const T* const dmatrix = shared + layout.matrix_gradient;
    for (int j = lane; j < in.matrix_components; j += lanes)
      for (int i = 0; i < in.inputs; ++i) {
        const WeightedSum sum = load_table(in.sums + j * in.inputs + i).value[0];
        dy[j * in.matrix.component] += sum_of(in.sum_terms, sum.begin, sum.end, [&](int e) { return dmatrix[e]; });
      }
  }

  __device__ __forceinline__ T weight_of(const T* weights, const WeightedSegment& s, int c, T missing) const {
    return weights && in.weighted ? read(rows.weights(weights) + s.weight + c * s.weight_pitch) : missing;
  }

  template <bool directional>
  __device__ __forceinline__ void run(const WeightedSegment& s) const {
    T *const matrix = shared + layout.matrix, *const md = shared + layout.matrix_direction;
    T *const z = shared + layout.z, *const dz = shared + layout.dz;
    const int x = in.lane_operand, y = 1 - in.lane_operand, ax = lane_direction(), ay = matrix_direction();
    __syncwarp();
    if (!in.same_channel) {
      make_matrix(y, s.matrix_channel, matrix);
      if constexpr (directional) make_matrix(ay, s.matrix_channel, md);
      for (int e = lane; differentiates && e < in.inputs * in.outputs; e += lanes) shared[layout.matrix_gradient + e] = 0;
    }
    __syncwarp();
    const int step = in.mixed ? staged_channels : s.lanes;
#pragma unroll 1
    for (int begin = 0; begin < s.lanes; begin += step) {
      const int end = minimum(begin + step, s.lanes);
      if (in.mixed && differentiates) {
        unmix(s, begin, end, rows.a.weight, T(1), shared + layout.g);
        if constexpr (directional) unmix(s, begin, end, rows.a.weight_direction, T(0), shared + layout.g_direction);
        __syncwarp();
      }
#pragma unroll 1
      for (int first = begin; first < end; first += lanes) {
        const bool active = first + lane < end;
        const int c = active ? first + lane : end - 1, u = s.lane + c, place = (c - begin) * in.outputs;
        if (in.mixed)
          take_mixed<directional>(s, c, u, place, active);
        else
          take<directional>(s, c, u, active);
      }
      if (!in.mixed) continue;
      __syncwarp();
      mix<directional>(s, begin, end);
      __syncwarp();
    }
    __syncwarp();
    if (differentiates && wants_matrix && !in.same_channel) contract(s);
  }

  template <bool directional>
  __device__ __forceinline__ void take(const WeightedSegment& s, int c, int u, bool active) const {
    const T *const matrix = shared + layout.matrix, *const md = shared + layout.matrix_direction;
    const int x = in.lane_operand, y = 1 - in.lane_operand, ax = lane_direction(), ay = matrix_direction();
    const int place = (s.out + c) * in.outputs;
    const T w = active ? weight_of(rows.a.weight, s, c, T(1)) : T(0), aw = directional && active ? weight_of(rows.a.weight_direction, s, c, T(0)) : T(0);
    if (rows.a.out[2] && active) {
      T* const to = shared + layout.z + place;
      if constexpr (directional) {
        multiply(matrix, y, ax, u, w, to, true);
        multiply(md, ay, x, u, w, to, true);
        multiply(matrix, y, x, u, aw, to, true);
      } else {
        multiply(matrix, y, x, u, w, to, true);
      }
    }
    if (!differentiates) return;
    const T* const from = shared + layout.dz + place;
    T dw;
    if constexpr (directional)
      dw = differentiate(matrix, y, u, active, from, aw, x, ax) + differentiate(md, ay, u, active, from, w, ax, x);
    else
      dw = differentiate(matrix, y, u, active, from, w, x, x);
    if (rows.a.weight_out && in.weighted && active && rows.live) write(rows.weight_out() + s.weight + c * s.weight_pitch, dw, rows.adds_weight());
  }

  // Channel c of t, or of its derivative, and what the gradient of t, which the mix turns z into, says of x, y and M.
  template <bool directional>
  __device__ __forceinline__ void take_mixed(const WeightedSegment& s, int c, int u, int place, bool active) const {
    const T *const matrix = shared + layout.matrix, *const md = shared + layout.matrix_direction;
    const int x = in.lane_operand, y = 1 - in.lane_operand, ax = lane_direction(), ay = matrix_direction();
    T *const t = shared + layout.t + place, *const td = shared + layout.t_direction + place;
    T *const g = shared + layout.g + place, *const gd = shared + layout.g_direction + place;
    if (active && (rows.a.out[2] || rows.a.weight_out)) {
      multiply(matrix, y, x, u, T(1), t, false);
      if constexpr (directional) {
        multiply(matrix, y, ax, u, T(1), td, false);
        multiply(md, ay, x, u, T(1), td, true);
      }
    }
    if (!differentiates) return;
    const T scale = active ? T(1) : T(0);
    if constexpr (directional) {
      differentiate(matrix, y, u, active, gd, scale, x, x);
      differentiate(md, ay, u, active, g, scale, ax, ax);
    } else {
      differentiate(matrix, y, u, active, g, scale, x, x);
    }
  }
  // Gradients of channels [begin, end) of t: g_c = sum_w W_cw dz_w. A lane has its channels c; or its w, whose sums are added up, where channels are few.
  __device__ __forceinline__ void unmix(const WeightedSegment& s, int begin, int end, const T* weights, T missing, T* to) const {
    const T* const dz = shared + layout.dz;
    const bool are_few = 2 * (end - begin) < lanes;
    const int first_c = are_few ? 0 : lane, step_c = are_few ? 1 : lanes, first_w = are_few ? lane : 0, step_w = are_few ? lanes : 1;
    const T* const row = weights && in.weighted ? rows.weights(weights) + s.weight + begin * s.weight_pitch : nullptr;
    for_each_piece(in.outputs, [&](auto outputs, int first) {
      constexpr int count = summed_at_once<decltype(outputs){}>;
#pragma unroll 1
      for (int c = first_c; c < end - begin; c += step_c) {
        T sum[count] = {};
#pragma unroll 1
        for (int w = first_w; w < in.mixed; w += step_w) {
          const T weight = row ? read(row + c * s.weight_pitch + w) : missing;
#pragma unroll
          for (int k = 0; k < outputs; ++k) sum[k] += weight * dz[w * in.outputs + first + k];
        }
        T* const g = to + c * in.outputs + first;
        if (are_few) {
          sum_over_lanes(sum, lane, lanes, [&](int k, T total) {
            if (k < outputs) g[k] = total;
          });
        } else {
#pragma unroll
          for (int k = 0; k < outputs; ++k) g[k] = sum[k];
        }
      }
    });
  }

  // z_w += sum_c W_cw t_c, and dW_cw = sum_k t_ck dz_wk, for channels [begin, end) of t; a lane has its channels w.
  template <bool directional>
  __device__ __forceinline__ void mix(const WeightedSegment& s, int begin, int end) const {
    for (int w = lane; w < in.mixed; w += lanes)
      for_each_piece(in.outputs, [&](auto outputs, int first) {
        T* const z = shared + layout.z + w * in.outputs + first;
        const T* const t = shared + layout.t + first;
        const T* const td = shared + (directional ? layout.t_direction : layout.t) + first;
        const int weight = s.weight + begin * s.weight_pitch + w;
        if (rows.a.out[2]) {
          const T* const weights = rows.a.weight && in.weighted ? rows.weights(rows.a.weight) + weight : nullptr;
          const T* const direction = directional && rows.a.weight_direction && in.weighted ? rows.weights(rows.a.weight_direction) + weight : nullptr;
          T sum[outputs] = {};
#pragma unroll 1
          for (int c = 0; c < end - begin; ++c) {
            const T value = weights ? read(weights + c * s.weight_pitch) : T(1);
#pragma unroll
            for (int k = 0; k < outputs; ++k) sum[k] += value * td[c * in.outputs + k];
            if (direction) {
              const T change = read(direction + c * s.weight_pitch);
#pragma unroll
              for (int k = 0; k < outputs; ++k) sum[k] += change * t[c * in.outputs + k];
            }
          }
#pragma unroll
          for (int k = 0; k < outputs; ++k) z[k] += sum[k];
        }
        if (!rows.a.weight_out || !in.weighted || !rows.live) return;
        T* const dw = rows.weight_out() + weight;
        T dz[outputs];
#pragma unroll
        for (int k = 0; k < outputs; ++k) dz[k] = shared[layout.dz + w * in.outputs + first + k];
#pragma unroll 1
        for (int c = 0; c < end - begin; ++c) {
          T sum = 0;
#pragma unroll
          for (int k = 0; k < outputs; ++k) sum += td[c * in.outputs + k] * dz[k];
          write(dw + c * s.weight_pitch, sum, rows.adds_weight() || first > 0);
        }
      });
  }
};

template <class T, bool directional>
__global__ __launch_bounds__(weighted_threads, 1) void weighted(const __grid_constant__ GeneralPlan<T> plan, const __grid_constant__ WeightedCall<T> a,
                                                             const __grid_constant__ WeightedLayout layout) {
  const int lanes = plan.lanes, lane = int(threadIdx.x) % lanes, group = int(threadIdx.x) / lanes;
  T* const shared = dynamic_shared<T>() + group * layout.count;
  const long long set = (long long)blockIdx.x * (blockDim.x / lanes) + group;
#pragma unroll 1
  for (int n = 0; n < a.items; ++n) {
    const WeightedItems items(a, set, n);
#pragma unroll 1
    for (int e = 0; e < items.most; ++e) {
      const WeightedRows<T> rows(a, set, n, items, e);
      const bool wants_x = rows.a.out[0], wants_y = rows.a.out[1], differentiates = rows.a.in[z_operand] && (wants_x || wants_y || rows.a.weight_out);
#pragma unroll 1
      for (int s = 0; s < 2; ++s)
        for (int c = lane; differentiates && c < plan.dim[s]; c += lanes) shared[layout.gradient[s] + c] = 0;
#pragma unroll 1
      for (int b = 0; b < plan.block_count; ++b) {
        const WeightedBlock<T> block = load_table(plan.blocks + b).value[0];
        const int numbers = block.mul * block.components;
        const auto at = [&](int i) {
          const int u = divide(i, block.by_components);
          return block.place.offset + u * block.place.channel + (i - u * block.components) * block.place.component;
        };
        for (int i = lane; i < numbers; i += lanes) {
          shared[layout.z + i] = 0;
          if (differentiates) shared[layout.dz + i] = read(rows.in(z_operand) + at(i));
        }
#pragma unroll 1
        for (int i = 0; i < block.instruction_count; ++i) {
          const WeightedInstructionPlan<T> in = load_table(block.instructions + i).value[0];
          const WeightedLane<T> mine{in, rows, shared, layout, lane, lanes, differentiates, in.lane_operand == 0 ? wants_y : wants_x};
#pragma unroll 1
          for (int s = 0; s < in.segment_count; ++s) mine.template run<directional>(load_table(in.segments + s).value[0]);
        }
        __syncwarp();
        if (rows.a.out[2] && rows.live)
          for (int i = lane; i < numbers; i += lanes) write(rows.out(2) + at(i), shared[layout.z + i], rows.adds(2));
        __syncwarp();
      }
#pragma unroll 1
      for (int s = 0; s < 2; ++s)
        for (int c = lane; differentiates && rows.a.out[s] && rows.live && c < plan.dim[s]; c += lanes) write(rows.out(s) + c, shared[layout.gradient[s] + c], rows.adds(s));
      __syncwarp();
    }
  }
}

// ---- host

struct Coupling {
  int i, j, k;  // components of the lane operand, of the matrix operand and of the output
  double value;
};
std::vector<Coupling> couplings_of(const WeightedForm& form, const WeightedInstruction& in, int lane_operand) {
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
Place place_of(const IrrepsBlock& b) { return {b.offset, b.channel, b.component}; }
template <class T>
WeightedTerm<T> term(double value, int from) { return {T(value), from}; }

// Threads that channels share out. `weight`: work of one.
struct ChannelWork {
  int channels;
  long weight;
};
// Lanes of an item's group: as many as leave the fewest idle, in rounds of `packed` channels a lane, and the more, the fewer items share the block's memory. At
// least 8, which the sums of 8 numbers over the lanes need.
int lanes_for(const std::vector<ChannelWork>& work, int packed) {
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
std::vector<WeightedInstruction> instructions_of(const WeightedForm& form) {
  std::vector<WeightedInstruction> result;
  for (const WeightedInstruction& in : form.instructions) {
    const int mul1 = form.blocks[0][size_t(in.in1)].mul, mul2 = form.blocks[1][size_t(in.in2)].mul, mul3 = form.blocks[2][size_t(in.out)].mul;
    if (mul1 > 0 && mul2 > 0 && mul3 > 0 && !connection_of(in.mode, mul1, mul2, mul3).segments.empty()) result.push_back(in);
  }
  std::stable_sort(result.begin(), result.end(), [](const auto& a, const auto& b) { return a.out < b.out; });
  return result;
}
WeightedConnection connection_in(const WeightedForm& form, const WeightedInstruction& in) {
  return connection_of(in.mode, form.blocks[0][size_t(in.in1)].mul, form.blocks[1][size_t(in.in2)].mul, form.blocks[2][size_t(in.out)].mul);
}
bool is_channelwise(const WeightedForm& form) {
  const auto all = instructions_of(form);
  return std::all_of(all.begin(), all.end(), [](const auto& in) { return in.mode == Mode::uvu || in.mode == Mode::uvv || in.mode == Mode::uvuv; });
}

template <class T, class Store>
ChannelwisePlan<T> channelwise_plan(Store& store, const WeightedForm& form) {
  constexpr int row = 16 / sizeof(T);
  const auto padded = [](int n) { return (n + row - 1) / row * row; };
  const std::vector<WeightedInstruction> all = instructions_of(form);
  const auto block_of = [](const WeightedInstruction& in, int operand) { return size_t(operand == 0 ? in.in1 : in.in2); };
  ChannelwisePlan<T> plan{};
  std::vector<ChannelChunk> chunks;
  std::vector<ChannelPiece> pieces;
  std::vector<ChannelPath> paths;
  std::vector<ChannelTarget> targets;
  std::vector<WeightedSum> entries, sums;
  std::vector<WeightedTerm<T>> entry_terms, sum_terms;

  std::vector<int> first_target[2];
  for (int s = 0; s < 2; ++s)
    for (size_t b = 0; b < form.blocks[s].size(); ++b) {
      const IrrepsBlock& block = form.blocks[s][b];
      bool is_lane = false, is_matrix = false;
      for (const WeightedInstruction& in : all)
        if (block_of(in, s) == b) (connection_in(form, in).lane_operand == s ? is_lane : is_matrix) = true;
      first_target[s].push_back(int(targets.size()));
      for (int u = 0; (is_matrix || !is_lane) && u < block.mul; ++u)
        for (int m = 0; m <= 2 * block.l; ++m) targets.push_back({s, block.at(u, m), is_lane});
    }
  std::vector<const WeightedInstruction*> written(form.blocks[2].size());  // first of those that write the block
  for (int s = 0; s < 2; ++s)
    for (size_t b = 0; b < form.blocks[s].size(); ++b) {
      const IrrepsBlock& lane = form.blocks[s][b];
      const int components = 2 * lane.l + 1;
      std::vector<const WeightedInstruction*> mine;
      for (const WeightedInstruction& in : all)
        if (block_of(in, s) == b && connection_in(form, in).lane_operand == s) mine.push_back(&in);
      if (mine.empty()) continue;
      ChannelChunk chunk{int(pieces.size()), 0, int(entries.size()), 0, int(sums.size()), 0};
      // M of every segment, of the whole block.
      int size = 0;
      std::vector<std::vector<int>> matrices;
      std::map<int, std::vector<WeightedTerm<T>>> of_target;
      const auto pitch_of_outputs = [&](int outputs) {
        int pitch = 0;
        for (int p = 0; p < pieces_of(outputs); ++p) pitch += padded(piece_begin(outputs, p + 1) - piece_begin(outputs, p));
        return pitch;
      };
      const auto place_in_row = [&](int outputs, int k) {
        int place = 0, p = 0;
        for (; piece_begin(outputs, p + 1) <= k; ++p) place += padded(piece_begin(outputs, p + 1) - piece_begin(outputs, p));
        return place + k - piece_begin(outputs, p);
      };
      for (const WeightedInstruction* in : mine) {
        const size_t other = block_of(*in, 1 - s);
        const IrrepsBlock &matrix = form.blocks[1 - s][other], &out = form.blocks[2][size_t(in->out)];
        const bool is_scalar = matrix.l == 0 && lane.l > 0;
        const int outputs = 2 * out.l + 1, pitch = pitch_of_outputs(outputs);
        const std::vector<Coupling> couplings = couplings_of(form, *in, s);
        matrices.emplace_back();
        for (const PlanChannels& segment : connection_in(form, *in).segments) {
          matrices.back().push_back(size);
          std::map<int, std::vector<WeightedTerm<T>>> of_entry;
          if (!is_scalar)  // all of them, since M is dense
            for (int i = 0; i < components; ++i)
              for (int k = 0; k < outputs; ++k) of_entry[size + i * pitch + place_in_row(outputs, k)];
          for (const Coupling& c : couplings) {
            if (is_scalar && c.i > 0) continue;
            const int place = size + (is_scalar ? 0 : c.i * pitch + place_in_row(outputs, c.k));
            const int target = first_target[1 - s][other] + segment.matrix_channel * (2 * matrix.l + 1) + c.j;
            of_entry[place].push_back(term<T>(c.value, target));
            of_target[target].push_back(term<T>(c.value, place));
          }
          for (const auto& [place, terms] : of_entry) {
            entries.push_back({place, int(entry_terms.size()), int(entry_terms.size() + terms.size())});
            entry_terms.insert(entry_terms.end(), terms.begin(), terms.end());
          }
          size += is_scalar ? row : components * pitch;
        }
      }
      for (const auto& [target, terms] : of_target) {
        sums.push_back({target, int(sum_terms.size()), int(sum_terms.size() + terms.size())});
        sum_terms.insert(sum_terms.end(), terms.begin(), terms.end());
      }
      plan.matrix_size = std::max(plan.matrix_size, (size + 3) / 4 * 4);
      for (int p = 0; p < pieces_of(components); ++p) {
        const int first = piece_begin(components, p), count = piece_begin(components, p + 1) - first;
        ChannelPiece piece{s, place_of(lane), lane.mul, first, count, components, int(paths.size()), 0};
        for (size_t n = 0; n < mine.size(); ++n) {
          const WeightedInstruction& in = *mine[n];
          const WeightedConnection connection = connection_in(form, in);
          const IrrepsBlock &matrix = form.blocks[1 - s][block_of(in, 1 - s)], &out = form.blocks[2][size_t(in.out)];
          const bool is_scalar = matrix.l == 0 && lane.l > 0;
          const WeightedInstruction*& writer = written[size_t(in.out)];
          if (!writer) writer = &in;
          for (size_t v = 0; v < connection.segments.size(); ++v) {
            const PlanChannels& segment = connection.segments[v];
            const int outputs = 2 * out.l + 1, pitch = pitch_of_outputs(outputs);
            const auto add = [&](int first_output, int count_of_outputs, int entry, bool again, bool adds_matrix) {
              Place place = place_of(out);
              place.offset += segment.out * out.channel + first_output * out.component;
              const int weight = in.weight < 0 ? -1 : in.weight + (connection.weight_columns ? int(v) : segment.weight);
              paths.push_back({place, count_of_outputs, matrices[n][v] + entry, pitch, count_of_outputs == outputs, is_scalar, weight, connection.weight_columns ? connection.weight_columns : 1,
                               writer != &in || segment.adds, again, adds_matrix});
            };
            if (is_scalar) {
              add(first, count, 0, p > 0, p > 0);
            } else {
              for (int q = 0; q < pieces_of(outputs); ++q) {
                const int begin = piece_begin(outputs, q);
                add(begin, piece_begin(outputs, q + 1) - begin, place_in_row(outputs, begin), p > 0 || q > 0, false);
              }
            }
          }
        }
        piece.path_end = int(paths.size());
        pieces.push_back(piece);
      }
      chunk.piece_end = int(pieces.size()), chunk.entry_end = int(entries.size()), chunk.sum_end = int(sums.size());
      chunks.push_back(chunk);
    }
  plan.target_count = int(targets.size()), plan.chunk_count = int(chunks.size());
  plan.chunks = store.items(chunks), plan.pieces = store.items(pieces), plan.paths = store.items(paths), plan.targets = store.items(targets);
  plan.entries = store.items(entries), plan.sums = store.items(sums), plan.entry_terms = store.items(entry_terms), plan.sum_terms = store.items(sum_terms);
  return plan;
}

template <class T, class Store>
GeneralPlan<T> general_plan(Store& store, const WeightedForm& form) {
  GeneralPlan<T> plan{};
  std::copy(form.dims, form.dims + 3, plan.dim);
  const std::vector<WeightedInstruction> all = instructions_of(form);
  std::vector<WeightedBlock<T>> blocks;
  std::vector<ChannelWork> work;
  for (size_t b = 0; b < form.blocks[2].size(); ++b) {
    const IrrepsBlock& out = form.blocks[2][b];
    if (out.mul == 0) continue;
    const int outputs = 2 * out.l + 1;
    plan.max_block = std::max(plan.max_block, out.mul * outputs);
    std::vector<WeightedInstructionPlan<T>> instructions;
    for (const WeightedInstruction& from : all) {
      if (size_t(from.out) != b) continue;
      const WeightedConnection connection = connection_in(form, from);
      const int s = connection.lane_operand;
      const IrrepsBlock &lane = form.blocks[s][size_t(s == 0 ? from.in1 : from.in2)], &matrix = form.blocks[1 - s][size_t(s == 0 ? from.in2 : from.in1)];
      WeightedInstructionPlan<T> to{};
      to.lane_operand = s, to.lane = place_of(lane), to.matrix = place_of(matrix);
      to.inputs = 2 * lane.l + 1, to.matrix_components = 2 * matrix.l + 1, to.outputs = outputs;
      to.same_channel = connection.same_channel, to.mixed = connection.mixed, to.weighted = from.weight >= 0;
      std::vector<std::vector<WeightedTerm<T>>> of_entry(size_t(to.inputs * outputs)), of_row(size_t(to.matrix_components * to.inputs));
      for (const Coupling& c : couplings_of(form, from, s)) {
        of_entry[size_t(c.i * outputs + c.k)].push_back(term<T>(c.value, c.j));
        of_row[size_t(c.j * to.inputs + c.i)].push_back(term<T>(c.value, c.i * outputs + c.k));
      }
      const auto flat = [&](const std::vector<std::vector<WeightedTerm<T>>>& lists, const WeightedSum*& ranges, const WeightedTerm<T>*& terms) {
        std::vector<WeightedSum> all_ranges;
        std::vector<WeightedTerm<T>> all_terms;
        for (const auto& list : lists) {
          all_ranges.push_back({int(all_ranges.size()), int(all_terms.size()), int(all_terms.size() + list.size())});
          all_terms.insert(all_terms.end(), list.begin(), list.end());
        }
        ranges = store.items(all_ranges), terms = store.items(all_terms);
      };
      flat(of_entry, to.entries, to.entry_terms), flat(of_row, to.sums, to.sum_terms);
      std::vector<WeightedSegment> segments;
      for (size_t n = 0; n < connection.segments.size(); ++n) {
        const PlanChannels& segment = connection.segments[n];
        WeightedSegment mine{segment.matrix_channel, segment.lane, segment.lanes, segment.out, from.weight + segment.weight, 1};
        if (connection.weight_columns) mine.weight = from.weight + int(n), mine.weight_pitch = connection.weight_columns;
        if (connection.mixed)
          for (const PlanMix& mix : connection.mixes)
            if (mix.first <= segment.out && segment.out < mix.first + mix.count)
              mine.weight = from.weight + mix.weight + (segment.out - mix.first) * mix.pitch, mine.weight_pitch = mix.pitch;
        segments.push_back(mine);
        work.push_back({segment.lanes, long(to.inputs) * outputs});
        if (connection.mixed) work.push_back({connection.mixed, long(segment.lanes) * outputs});
      }
      to.segment_count = int(segments.size()), to.segments = store.items(segments);
      if (connection.mixed) plan.max_staged = std::max(plan.max_staged, staged_channels * outputs);
      if (!connection.same_channel) plan.max_entries = std::max(plan.max_entries, to.inputs * outputs);
      instructions.push_back(to);
    }
    blocks.push_back({place_of(out), out.mul, outputs, divisor(outputs), nullptr, int(instructions.size())});
    blocks.back().instructions = store.items(instructions);
  }
  plan.block_count = int(blocks.size()), plan.blocks = store.items(blocks), plan.lanes = lanes_for(work, 1);
  return plan;
}

// Items whose gradients of shared operands go to one row, one after another; the rows are summed afterwards. More rows give more threads work, fewer are
// less to add up: so many numbers in all, between these counts of rows.
constexpr long long summed_numbers = 1 << 24, fewest_rows = 64, most_rows = 4096;

template <class T>
class Weighted final : public Operation {
 public:
  Weighted(int device, const WeightedForm& form)
      : Operation(device, sizeof(T) == 8, form.dims[0], form.dims[1], form.dims[2]), arena_(device) {
    weights = form.weights;
    is_channelwise_ = is_channelwise(form);
    if (is_channelwise_) {
      channelwise_ = arena_.build([&](auto& store) { return channelwise_plan<T>(store, form); });
      is_channelwise_ = channelwise_bytes(WeightedPass::directional) <= properties(device).shared_per_block;
    }
    if (is_channelwise_) {
      find_packs(form);
      for (const auto& layouts : channelwise_kernels)
        for (const auto kernel : layouts)
          if (kernel) allow_all_shared_memory(device, kernel);
      if (has_directional) return;
    }
    general_ = arena_.build([&](auto& store) { return general_plan<T>(store, form); });
    tiling_of(general_.lanes, general_bytes(WeightedLayout(general_, true, true)));
    for (const auto kernel : general_kernels) allow_all_shared_memory(device, kernel);
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    WeightedCall<T> a{};
    for (int o = 0; o < operand_count; ++o) a.in[o] = static_cast<const T*>(call.in[o]);
    a.weight = static_cast<const T*>(call.weight), a.weight_direction = static_cast<const T*>(call.weight_direction);
    a.weight_stride = call.weight_shared ? 0 : weights, a.weights = weights;
    a.accumulate = call.accumulate, a.batch = call.batch;
    long long summed = 0;
    const auto is_summed = [&](const void* out, bool shared, int dim) {
      if (out && shared) summed += dim;
      return out && shared;
    };
    for (int s = 0; s < slot_count; ++s) {
      a.dim[s] = dim[s], a.stride[s] = call.shared[s] ? 0 : dim[s];
      a.summed[s] = is_summed(call.out[s], call.shared[s], dim[s]);
    }
    a.weight_summed = is_summed(call.weight_out, call.weight_shared, weights);
    a.is_swept = call.sweep;
    if (call.sweep) a.sweep = *call.sweep;
    const long long items = call.sweep ? call.sweep->nodes : call.batch;
    const long long wanted = summed ? std::clamp(summed_numbers / summed, fewest_rows, most_rows) : items;
    a.items = int((items + wanted - 1) / wanted);
    const long long rows = (items + a.items - 1) / a.items;

    std::optional<Workspace> workspace[slot_count + 1];
    const auto clear = [&](T* to, long long numbers) { check(cudaMemsetAsync(to, 0, size_t(numbers) * sizeof(T), stream), "cudaMemsetAsync", size_t(numbers) * sizeof(T)); };
    const auto place = [&](int s, void* out, bool is_summed, int dim) {
      if (!is_summed) return static_cast<T*>(out);
      workspace[s].emplace(device, size_t(rows) * dim * sizeof(T), stream);
      T* const to = static_cast<T*>(workspace[s]->data());
      if (call.sweep) clear(to, rows * dim);
      return to;
    };
    if (call.sweep && !call.accumulate)
      if (T* const nodes = static_cast<T*>(call.out[call.sweep->slot])) clear(nodes, items * dim[call.sweep->slot]);
    for (int s = 0; s < slot_count; ++s) a.out[s] = place(s, call.out[s], a.summed[s], dim[s]);
    a.weight_out = place(slot_count, call.weight_out, a.weight_summed, weights);
    launch_kernel(a, rows, stream);
    for (int s = 0; s < slot_count; ++s)
      if (a.summed[s]) sum_rows(a.out[s], static_cast<T*>(call.out[s]), call.accumulate, dim[s], rows, stream);
    if (a.weight_summed) sum_rows(a.weight_out, static_cast<T*>(call.weight_out), call.accumulate, weights, rows, stream);
  }

 private:
  static constexpr int pack = 16 / sizeof(T);

  // `bytes` of shared memory for each item, with `lanes` threads.
  Tiling tiling_of(int lanes, long long bytes) const {
    const long long most = properties(device).shared_per_block;
    while (lanes < 32 && 32 / lanes * bytes > most) lanes *= 2;
    if (32 / lanes * bytes > most)
      throw Error("not_supported", "an item of this operation takes " + std::to_string(bytes) + " bytes of shared memory, the device has " + std::to_string(most) +
                                       " a block: use backend 'cpu'");
    int threads = weighted_threads;
    while (threads > 32 && threads / lanes * bytes > most / 2) threads /= 2;
    return {threads / lanes, threads, size_t(threads / lanes * bytes)};
  }
  long long channelwise_bytes(WeightedPass pass) const {
    const int matrices = pass == WeightedPass::forward ? 1 : pass == WeightedPass::backward ? 2 : 3;
    return ((3 * channelwise_.target_count + 3) / 4 * 4 + matrices * channelwise_.matrix_size) * (long long)sizeof(T);
  }
  static long long general_bytes(const WeightedLayout& layout) { return layout.count * (long long)sizeof(T); }

  void launch_kernel(const WeightedCall<T>& a, long long rows, cudaStream_t stream) const {
    const bool directional = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
    const bool differentiates = a.in[z_operand] && (a.out[0] || a.out[1] || a.weight_out);
    if (!is_channelwise_ || (directional && !has_directional)) {
      GeneralPlan<T> plan = general_;
      const WeightedLayout layout(plan, differentiates, directional);
      const Tiling tiling = tiling_of(plan.lanes, general_bytes(layout));
      plan.lanes = tiling.threads / tiling.items;
      check(launch(general_kernels[directional], tiling.grid(rows), tiling.threads, tiling.shared_bytes, stream, plan, a, layout), "cudaLaunchKernel");
      return;
    }
    const WeightedPass pass = directional ? WeightedPass::directional : differentiates ? WeightedPass::backward : WeightedPass::forward;
    const int packed = directional || !has_packs_ || !is_aligned(a) ? 1 : pack;
    ChannelwisePlan<T> plan = channelwise_;
    const long long bytes = channelwise_bytes(pass);
    const Tiling tiling = tiling_of(lanes_for(work_, packed), bytes);
    plan.lanes = tiling.threads / tiling.items, plan.shared = int(bytes / (long long)sizeof(T));
    const auto kernel = channelwise_kernels[packed > 1][int(pass)];
    check(launch(kernel, tiling.grid(rows), tiling.threads, tiling.shared_bytes, stream, plan, a), "cudaLaunchKernel");
  }

  // Whether a thread can have the channels of 16 bytes: all that it reads and writes begins there, in every item.
  void find_packs(const WeightedForm& form) {
    has_packs_ = true;
    const auto require = [&](int n) { has_packs_ &= n % pack == 0; };
    const auto require_block = [&](int operand, int b) {
      const IrrepsBlock& block = form.blocks[operand][size_t(b)];
      require(block.offset), require(block.mul), require(form.dims[operand]);
      is_lane_[operand] = true;
    };
    const auto components = [&](int operand, int b) { return 2L * form.blocks[operand][size_t(b)].l + 1; };
    for (const WeightedInstruction& in : instructions_of(form)) {
      const int s = connection_in(form, in).lane_operand;
      const int b = s == 0 ? in.in1 : in.in2;
      require_block(s, b), require_block(2, in.out);
      work_.push_back({form.blocks[s][size_t(b)].mul, long(connection_in(form, in).segments.size()) * components(s, b) * components(2, in.out)});
      if (in.weight >= 0) require(in.weight), require(form.weights);
    }
  }
  bool is_aligned(const WeightedCall<T>& a) const {
    bool all = true;
    const auto require = [&](const void* p) { all &= reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    for (int o = 0; o < operand_count; ++o)
      if (is_lane_[slot_of(o)]) require(a.in[o]);
    for (int s = 0; s < slot_count; ++s)
      if (is_lane_[s]) require(a.out[s]);
    require(a.weight), require(a.weight_direction), require(a.weight_out);
    return all;
  }

  using ChannelwiseKernel = void (*)(ChannelwisePlan<T>, WeightedCall<T>);
  // With directions a thread has registers for one channel in float32; with two, or in float64, ptxas spills some on sm_100. So these passes go through the
  // kernel for all modes in float64.
  static constexpr bool has_directional = sizeof(T) == 4;
  static constexpr ChannelwiseKernel directional_kernel() {
    if constexpr (has_directional)
      return channelwise<T, 1, WeightedPass::directional>;
    else
      return nullptr;
  }
  // [one channel a thread, a pack][pass]
  static constexpr ChannelwiseKernel channelwise_kernels[2][3] = {
      {channelwise<T, 1, WeightedPass::forward>, channelwise<T, 1, WeightedPass::backward>, directional_kernel()},
      {channelwise<T, pack, WeightedPass::forward>, channelwise<T, pack, WeightedPass::backward>, nullptr}};
  using GeneralKernel = void (*)(GeneralPlan<T>, WeightedCall<T>, WeightedLayout);
  static constexpr GeneralKernel general_kernels[2] = {weighted<T, false>, weighted<T, true>};

  PlanArena arena_;
  bool is_channelwise_ = false, has_packs_ = false, is_lane_[slot_count] = {};
  std::vector<ChannelWork> work_;
  ChannelwisePlan<T> channelwise_{};
  GeneralPlan<T> general_{};
};

}  // namespace

std::unique_ptr<Operation> make_weighted(int device, const WeightedForm& form) { return make<Weighted>(form.is_double, device, form); }

}  // namespace equitensor::cuda
