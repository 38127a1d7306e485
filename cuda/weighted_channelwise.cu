// The weighted tensor product of the modes uvu, uvv and uvuv: a thread keeps its channels' x and dx in registers while it goes through their paths, and every
// number of x, of the weights and of z is read or written once, straight from global memory.
#include "cuda/weighted.cuh"
#include <map>
#include <type_traits>

namespace equitensor::cuda {
namespace {

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
  int lanes;     // of a group
  int together;  // items of a group at a time, more than one forward only
  int shared;    // numbers of an item
};

enum class WeightedPass { forward, backward, directional };

// Numbers of an item in shared memory for the targets, so that M begins at 16 bytes.
template <class T>
__host__ __device__ constexpr int targets_of(const ChannelwisePlan<T>& plan, WeightedPass pass) {
  return ((pass == WeightedPass::forward ? 1 : 3) * plan.target_count + 3) / 4 * 4;
}

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
__device__ __forceinline__ void store_channels(T* at, const Place& place, bool is_whole, bool adds, const T (&v)[n][packed], bool is_atomic = false) {
  for_each_access<packed, n>(place, is_whole, [&](int offset, auto count, auto first, auto by_channel) {
    Pack<T, count> pack{};
    if (adds && !is_atomic) pack = load<count>(at + offset);
    each(Int<0>{}, Int<count - 1>{}, [&](auto p) {
      constexpr int f = first + p;
      pack.value[p] += v[by_channel ? f % n : f / packed][by_channel ? f / n : f % packed];
    });
    if (is_atomic)
      add_atomically<count>(at + offset, pack);
    else
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

// A thread's channels c, c + 1, ... of an item: so many as `packed` says, of which with directions there is one.
template <class T, WeightedPass pass, int packed>
struct ChannelwiseThread {
  static constexpr bool directional = pass == WeightedPass::directional;
  static_assert(!directional || packed == 1);
  const ChannelwisePlan<T>& plan;
  const WeightedRows<T>& rows;  // of the item; forward of the first one
  const T *matrix, *matrix_direction;
  T* matrix_gradient;
  int lane;
  bool wants_matrix, differentiates;
  int c;
  bool active, first_round;
  // Forward: items e to e + count - 1 of set n's, with M `plan.shared` apart.
  const WeightedItems& items;
  int n, e, count;

  __device__ __forceinline__ WeightedRows<T> rows_at(int k) const { return {rows.a, rows.set, n, items, e + k}; }
  // Whether item k is the last one of `row`, that of its result.
  __device__ __forceinline__ bool is_last(int k, int row) const {
    return k + 1 == count || (rows.a.span && load_table(rows.a.sweep.node + items.begin + e + k + 1).value[0] != row);
  }

  __device__ __forceinline__ void load_weights(const WeightedRows<T>& rows, const T* weights, const ChannelPath& path, T missing, T (&w)[1][packed]) const {
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
    if constexpr (pass != WeightedPass::forward) load_channels(rows.in(s) + at, piece.place, is_whole, x);
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
      if (rows.a.out[s] && active && rows.live) store_channels(rows.out(s) + at, piece.place, is_whole, rows.adds(s), dx, rows.is_atomic(s));
  }

  // Of a block in pieces: outputs, each a sum over all of them, so that it is stored once.
  __device__ __forceinline__ void run_in_pieces(const ChannelPiece& piece) {
#pragma unroll 1
    for (int n = piece.path_begin; n < piece.path_end; ++n) {
      const ChannelPath path = load_table(plan.paths + n).value[0];
      if (path.is_scalar) continue;
      switch (path.outputs) {
        case 1: sum_pieces<1>(piece, path); break;
        case 3: sum_pieces<3>(piece, path); break;
        case 5: sum_pieces<5>(piece, path); break;
        default: sum_pieces<7>(piece, path);
      }
    }
  }
  template <int outputs>
  __device__ __forceinline__ void sum_pieces(const ChannelPiece& piece, const ChannelPath& path) {
    const int s = piece.operand, d = s == 0 ? x_direction : y_direction, at = piece.place.offset + c * piece.place.channel;
    T sum[outputs][packed] = {};
#pragma unroll 1
    for (int n = 0; n < count; ++n) {
      const WeightedRows<T> mine = rows_at(n);
      const T* const x = mine.in(s) + at;
      const T* const ax = directional && mine.a.in[d] ? mine.in(d) + at : nullptr;
      T w[1][packed], aw[1][packed];
      load_weights(mine, mine.a.weight, path, T(1), w);
      if constexpr (directional) load_weights(mine, mine.a.weight_direction, path, T(0), aw);
#pragma unroll 1
      for (int i = 0; i < piece.components; ++i) {
        T xs[1][packed], axs[1][packed] = {}, m[outputs], md[outputs];
        load_channels(x + i * piece.place.component, piece.place, false, xs);
        if (ax) load_channels(ax + i * piece.place.component, piece.place, false, axs);
        load_row(matrix + n * plan.shared + path.matrix + i * path.pitch, m);
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
      if (is_last(n, mine.receiver)) store_outputs(mine, path, sum), clear(sum);
    }
  }

  // Row i of M. Where M is a number times the identity only [i] is set, and the others must not be read: of a row these are the entries from row_begin on.
  template <bool is_scalar, int outputs>
  static __device__ __forceinline__ void load_entries(const T* m, const ChannelPath& path, int i, T (&row)[outputs]) {
    if constexpr (is_scalar)
      row[i] = *m;
    else
      load_row(m + i * path.pitch, row);
  }
  template <bool is_scalar>
  static __device__ __forceinline__ int row_begin(int i) { return is_scalar ? i : 0; }
  template <bool is_scalar>
  static __device__ __forceinline__ int row_end(int i, int outputs) { return is_scalar ? i + 1 : outputs; }

  template <int outputs>
  __device__ __forceinline__ void store_outputs(const WeightedRows<T>& to, const ChannelPath& path, const T (&sum)[outputs][packed]) const {
    if (rows.a.out[2] && active && rows.live)
      store_channels(to.out(2) + path.out.offset + c * path.out.channel, path.out, path.is_whole, rows.adds(2) || path.adds, sum, rows.is_atomic(2));
  }
  template <int outputs>
  __device__ __forceinline__ void load_cotangents(const ChannelPath& path, T (&z)[outputs][packed]) const {
    load_channels(rows.in(z_operand) + path.out.offset + c * path.out.channel, path.out, path.is_whole, z);
  }
  // The gradient of M that is a number times the identity: the sum over its diagonal.
  __device__ __forceinline__ void add_scalar(T* to, bool adds, const T (&diagonal)[1][packed]) const {
    T ones[packed];
#pragma unroll
    for (int p = 0; p < packed; ++p) ones[p] = 1;
    add_row(to, adds, ones, diagonal);
  }

  template <int outputs>
  static __device__ __forceinline__ void clear(T (&sum)[outputs][packed]) {
#pragma unroll
    for (int k = 0; k < outputs; ++k)
#pragma unroll
      for (int p = 0; p < packed; ++p) sum[k][p] = 0;
  }

  // Path by path, and x is read again for each: it is in the cache, where sums would have to go, and come from, at every item.
  template <int inputs, int outputs, bool is_scalar>
  __device__ __forceinline__ void forward(const ChannelPiece& piece, const ChannelPath& path, int first) const {
    const int at = piece.place.offset + c * piece.place.channel + piece.first * piece.place.component;
    T sum[outputs][packed] = {};
#pragma unroll 1
    for (int n = 0; n < count; ++n) {
      const WeightedRows<T> mine = rows_at(n);
      T w[1][packed], x[inputs][packed];
      load_weights(mine, mine.a.weight, path, T(1), w);
      load_channels(mine.in(piece.operand) + at, piece.place, piece.count == piece.components, x);
#pragma unroll
      for (int i = 0; i < inputs; ++i) {
        T m[outputs];
        load_entries<is_scalar>(matrix + n * plan.shared + first, path, i, m);
#pragma unroll
        for (int p = 0; p < packed; ++p) {
          const T t = w[0][p] * x[i][p];
#pragma unroll
          for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) sum[k][p] += m[k] * t;
        }
      }
      if (is_last(n, mine.receiver)) store_outputs(mine, path, sum), clear(sum);
    }
  }

  template <int inputs, int outputs, bool is_scalar>
  __device__ __forceinline__ void backward(const ChannelPath& path, int first, const T (&x)[inputs][packed], T (&dx)[inputs][packed]) const {
    T w[1][packed], dw[1][packed] = {}, z[outputs][packed], diagonal[1][packed] = {};
    load_weights(rows, rows.a.weight, path, T(1), w);
    load_cotangents(path, z);
    const bool adds_matrix = path.adds_matrix || !first_round;
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      T m[outputs], t[packed];
      load_entries<is_scalar>(matrix + first, path, i, m);
#pragma unroll
      for (int p = 0; p < packed; ++p) {
        T h = 0;
#pragma unroll
        for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) h += m[k] * z[k][p];
        dx[i][p] += w[0][p] * h;
        dw[0][p] += x[i][p] * h;
        t[p] = w[0][p] * x[i][p];
        if constexpr (is_scalar) diagonal[0][p] += t[p] * z[i][p];
      }
      if (!is_scalar && wants_matrix) add_row(matrix_gradient + first + i * path.pitch, adds_matrix, t, z);
    }
    if (is_scalar && wants_matrix) add_scalar(matrix_gradient + first, adds_matrix, diagonal);
    store_weight_gradient(path, dw);
  }

  template <int inputs, int outputs, bool is_scalar>
  __device__ __forceinline__ void with_directions(const ChannelPath& path, int first, bool is_whole, const T (&x)[inputs][1], const T (&ax)[inputs][1], T (&dx)[inputs][1]) const {
    T w[1][1], aw[1][1], dw[1][1] = {}, sum[outputs][1] = {}, z[outputs][1], diagonal[1][1] = {};
    load_weights(rows, rows.a.weight, path, T(1), w), load_weights(rows, rows.a.weight_direction, path, T(0), aw);
    if (differentiates) load_cotangents(path, z);
    const bool adds_matrix = path.adds_matrix || !first_round;
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      T m[outputs], md[outputs];
      load_entries<is_scalar>(matrix + first, path, i, m), load_entries<is_scalar>(matrix_direction + first, path, i, md);
      const T t[1] = {w[0][0] * ax[i][0] + aw[0][0] * x[i][0]};  // of M's gradient
#pragma unroll
      for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) sum[k][0] += m[k] * t[0] + md[k] * (w[0][0] * x[i][0]);
      if (!differentiates) continue;
      T h = 0, hd = 0;
#pragma unroll
      for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) h += m[k] * z[k][0], hd += md[k] * z[k][0];
      dx[i][0] += aw[0][0] * h + w[0][0] * hd;
      dw[0][0] += ax[i][0] * h + x[i][0] * hd;
      if constexpr (is_scalar) diagonal[0][0] += t[0] * z[i][0];
      if (!is_scalar && wants_matrix) add_row(matrix_gradient + first + i * path.pitch, adds_matrix, t, z);
    }
    if (is_scalar && wants_matrix) add_scalar(matrix_gradient + first, adds_matrix, diagonal);
    if (differentiates) store_weight_gradient(path, dw);
    if (is_scalar || is_whole) store_outputs(rows, path, sum);
  }

  template <int inputs, int outputs, bool is_scalar, int directions, int gradients>
  __device__ __forceinline__ void multiply(const ChannelPiece& piece, const ChannelPath& path, const T (&x)[inputs][packed], const T (&ax)[directions][packed],
                                           T (&dx)[gradients][packed]) const {
    const int first = path.matrix + (is_scalar ? 0 : piece.first * path.pitch);
    if constexpr (directional)
      with_directions<inputs, outputs, is_scalar>(path, first, piece.count == piece.components, x, ax, dx);
    else if constexpr (pass == WeightedPass::backward)
      backward<inputs, outputs, is_scalar>(path, first, x, dx);
    else
      forward<inputs, outputs, is_scalar>(piece, path, first);
  }
};

template <class T, WeightedPass pass, int packed>
__global__ __launch_bounds__(weighted_threads, 1) void channelwise(const __grid_constant__ ChannelwisePlan<T> plan, const __grid_constant__ WeightedCall<T> a) {
  constexpr bool directional = pass == WeightedPass::directional;
  const int lanes = plan.lanes, lane = int(threadIdx.x) % lanes, group = int(threadIdx.x) / lanes;
  // Of an item: values of the targets, and of their directions; their gradients; M.
  T* const values = dynamic_shared<T>() + group * plan.together * plan.shared;
  T* const directions = values + plan.target_count;
  T* const gradients = directions + plan.target_count;
  T* const matrix = values + targets_of(plan, pass);
  T* const matrix_direction = matrix + plan.matrix_size;
  T* const matrix_gradient = directional ? matrix_direction + plan.matrix_size : matrix_direction;
  const long long set = (long long)blockIdx.x * (blockDim.x / lanes) + group;
#pragma unroll 1
  for (int n = 0; n < a.items; ++n) {
    const WeightedItems items(a, set, n);
#pragma unroll 1
    for (int e = 0; e < items.most; e += plan.together) {
      const WeightedRows<T> rows(a, set, n, items, e);
      const int count = pass != WeightedPass::forward ? 1 : rows.live ? minimum(plan.together, items.count - e) : 0;
      const bool differentiates = pass == WeightedPass::backward || (directional && a.in[z_operand] && (a.out[0] || a.out[1] || a.weight_out));
      const bool wants_matrix = differentiates && (a.out[0] || a.out[1]);
#pragma unroll 1
      for (int k = 0; k < count; ++k) {
        const WeightedRows<T> mine(a, set, n, items, e + k);
        for (int t = lane; t < plan.target_count; t += lanes) {
          const ChannelTarget target = load_table(plan.targets + t).value[0];
          values[k * plan.shared + t] = read(mine.in(target.operand) + target.offset);
          const int direction = target.operand == 0 ? x_direction : y_direction;
          if constexpr (directional) directions[t] = a.in[direction] ? read(mine.in(direction) + target.offset) : T(0);
          if constexpr (pass != WeightedPass::forward) gradients[t] = 0;
        }
      }
#pragma unroll 1
      for (int chunk_index = 0; chunk_index < plan.chunk_count; ++chunk_index) {
        const ChannelChunk chunk = load_table(plan.chunks + chunk_index).value[0];
        __syncwarp();
        for (int i = chunk.entry_begin + lane; i < chunk.entry_end; i += lanes) {
          const WeightedSum entry = load_table(plan.entries + i).value[0];
          for (int at = 0; at < count * plan.shared; at += plan.shared) matrix[at + entry.to] = sum_of(plan.entry_terms, entry.begin, entry.end, [&](int t) { return values[at + t]; });
          if constexpr (directional) matrix_direction[entry.to] = sum_of(plan.entry_terms, entry.begin, entry.end, [&](int t) { return directions[t]; });
        }
        __syncwarp();
#pragma unroll 1
        for (int p = chunk.piece_begin; p < chunk.piece_end; ++p) {
          const ChannelPiece piece = load_table(plan.pieces + p).value[0];
#pragma unroll 1
          for (int begin = 0; begin < piece.mul; begin += lanes * packed) {
            const int c = begin + lane * packed;
            ChannelwiseThread<T, pass, packed> thread{plan,  rows,         matrix,         matrix_direction, matrix_gradient,
                                                            lane, wants_matrix, differentiates, minimum(c, piece.mul - packed), c < piece.mul, begin == 0, items, n, e, count};
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
          if (a.out[target.operand]) write(rows.out(target.operand) + target.offset, gradients[t], target.is_lane || rows.adds(target.operand), rows.is_atomic(target.operand));
        }
      __syncwarp();
    }
  }
}

// ---- host

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

template <class T>
class ChannelwiseKernel final : public WeightedKernel<T> {
 public:
  ChannelwiseKernel(int device, const WeightedForm& form)
      : device_(device), arena_(device), plan_(arena_.build([&](auto& store) { return channelwise_plan<T>(store, form); })) {
    find_packs(form);
    if (!fits()) return;
    for (const Kernel kernel : {forward[0], forward[1], backward[0], backward[1], directional})
      if (kernel) allow_all_shared_memory(device, kernel);
  }
  bool fits() const { return item_bytes(WeightedPass::directional) <= properties(device_).shared_per_block; }

  void launch(const WeightedCall<T>& a, long long sets, cudaStream_t stream) const override {
    const WeightedPass pass = has_directions(a) ? WeightedPass::directional : has_gradients(a) ? WeightedPass::backward : WeightedPass::forward;
    const bool packed = pass != WeightedPass::directional && has_packs_ && is_aligned(a);
    const long long bytes = item_bytes(pass);
    ChannelwisePlan<T> plan = plan_;
    plan.together = pass == WeightedPass::forward && a.is_swept ? int(std::clamp(most_bytes / bytes, 1ll, (long long)edges_at_once)) : 1;
    const Tiling tiling = weighted_tiling(device_, lanes_for(work_, packed ? pack : 1), plan.together * bytes);
    plan.lanes = tiling.threads / tiling.items, plan.shared = int(bytes / (long long)sizeof(T));
    const Kernel kernel = pass == WeightedPass::forward ? forward[packed] : pass == WeightedPass::backward ? backward[packed] : directional;
    check(cuda::launch(kernel, tiling.grid(sets), tiling.threads, tiling.shared_bytes, stream, plan, a), "cudaLaunchKernel");
  }

 private:
  static constexpr int pack = 16 / sizeof(T);
  static constexpr long long most_bytes = 8192;  // of a group's items: registers, and not shared memory, are to limit how many blocks an SM holds

  long long item_bytes(WeightedPass pass) const {
    const int matrices = pass == WeightedPass::forward ? 1 : pass == WeightedPass::backward ? 2 : 3;
    return (targets_of(plan_, pass) + matrices * plan_.matrix_size) * (long long)sizeof(T);
  }

  // Whether a thread can have the channels of 16 bytes: all that it reads and writes begins there, in every item.
  void find_packs(const WeightedForm& form) {
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

  using Kernel = void (*)(ChannelwisePlan<T>, WeightedCall<T>);
  static constexpr Kernel directional_kernel() {
    if constexpr (channelwise_has_directions<T>)
      return channelwise<T, WeightedPass::directional, 1>;
    else
      return nullptr;
  }
  // [one channel a thread, a pack]
  static constexpr Kernel forward[2] = {channelwise<T, WeightedPass::forward, 1>, channelwise<T, WeightedPass::forward, pack>};
  static constexpr Kernel backward[2] = {channelwise<T, WeightedPass::backward, 1>, channelwise<T, WeightedPass::backward, pack>};
  static constexpr Kernel directional = directional_kernel();

  int device_;
  PlanArena arena_;
  ChannelwisePlan<T> plan_;
  bool has_packs_ = true, is_lane_[slot_count] = {};
  std::vector<ChannelWork> work_;
};

}  // namespace

template <class T>
std::unique_ptr<WeightedKernel<T>> make_channelwise(int device, const WeightedForm& form) {
  if (!is_channelwise(form)) return nullptr;
  auto kernel = std::make_unique<ChannelwiseKernel<T>>(device, form);
  return kernel->fits() ? std::move(kernel) : nullptr;
}
template std::unique_ptr<WeightedKernel<float>> make_channelwise(int, const WeightedForm&);
template std::unique_ptr<WeightedKernel<double>> make_channelwise(int, const WeightedForm&);

}  // namespace equitensor::cuda
