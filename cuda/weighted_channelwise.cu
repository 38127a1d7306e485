// The weighted tensor product of the modes uvu, uvv and uvuv: a thread keeps its channels' x and dx in registers while it goes through their paths, and every
// number of x, of the weights and of z is read or written once, straight from global memory.
#include "cuda/weighted.cuh"
#include <array>
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
// Calls access(address, count, first number), the numbers being [channel][component] if the last of all arguments is true, and [component][channel] otherwise.
template <int packed, int n, class T, class Access>
__device__ __forceinline__ void for_each_access(T* at, const Place& place, bool is_whole, Access&& access) {
  if (packed == 1 || place.channel == 1) {
    each(Int<0>{}, Int<n - 1>{}, [&](auto i) { access(at + (long long)i * place.component, Int<packed>{}, Int<i * packed>{}, std::false_type{}); });
  } else if (is_whole) {
    each(Int<0>{}, Int<n - 1>{}, [&](auto q) { access(at + q * packed, Int<packed>{}, Int<q * packed>{}, std::true_type{}); });
  } else {
    each(Int<0>{}, Int<packed - 1>{}, [&](auto p) {
      T* const channel = at + (long long)p * place.channel;
      each(Int<0>{}, Int<n - 1>{}, [&](auto i) { access(channel + i, Int<1>{}, Int<i * packed + p>{}, std::false_type{}); });
    });
  }
}
template <int n, class T, int room, int packed>
__device__ __forceinline__ void load_channels(const T* at, const Place& place, bool is_whole, T (&v)[room][packed]) {
  for_each_access<packed, n>(at, place, is_whole, [&](const T* from, auto count, auto first, auto by_channel) {
    const Pack<T, count> pack = load<count>(from);
    each(Int<0>{}, Int<count - 1>{}, [&](auto p) {
      constexpr int f = first + p;
      v[by_channel ? f % n : f / packed][by_channel ? f / n : f % packed] = pack.value[p];
    });
  });
}
template <int n, class T, int room, int packed, class Store>
__device__ __forceinline__ void store_each(T* at, const Place& place, bool is_whole, const T (&v)[room][packed], Store&& store) {
  for_each_access<packed, n>(at, place, is_whole, [&](T* to, auto count, auto first, auto by_channel) {
    Pack<T, count> pack;
    each(Int<0>{}, Int<count - 1>{}, [&](auto p) {
      constexpr int f = first + p;
      pack.value[p] = v[by_channel ? f % n : f / packed][by_channel ? f / n : f % packed];
    });
    store(to, pack, count);
  });
}
template <int n, class T, int room, int packed>
__device__ __forceinline__ void store_channels(T* at, const Place& place, bool is_whole, bool adds, const T (&v)[room][packed], bool is_atomic = false) {
  if (is_atomic) {
    store_each<n>(at, place, is_whole, v, [](T* to, const auto& pack, auto count) { add_atomically<count>(to, pack); });
  } else if (adds) {
    store_each<n>(at, place, is_whole, v, [](T* to, auto& pack, auto count) {
      const Pack<T, count> before = load<count>(to);
      each(Int<0>{}, Int<count - 1>{}, [&](auto p) { pack.value[p] += before.value[p]; });
      store<count>(to, pack);
    });
  } else {
    store_each<n>(at, place, is_whole, v, [](T* to, const auto& pack, auto count) { store<count>(to, pack); });
  }
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
template <class T, WeightedPass pass, int packed>
struct ChannelwiseThread {
  static constexpr bool directional = pass == WeightedPass::directional;
  const ChannelwisePlan<T>& plan;
  const WeightedRows<T>& rows;  // of the item; forward of the first one
  const T *matrix, *matrix_direction;
  T* matrix_gradient;
  int lane;
  bool wants_matrix, differentiates;
  int c;
  bool active;
  // Forward: items e to e + count - 1 of set n's, with M `plan.shared` apart.
  const WeightedItems& items;
  int n, e, count;

  static __device__ __forceinline__ int direction_of(const ChannelPiece& piece) { return piece.operand == 0 ? x_direction : y_direction; }
  __device__ __forceinline__ int offset_of(const ChannelPiece& piece) const {
    return piece.place.offset + c * piece.place.channel + piece.first * piece.place.component;
  }
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
      load_channels<1>(rows.weights(weights) + path.weight + c * path.weight_step, {0, path.weight_step, 0}, false, w);
    }
#pragma unroll
    for (int p = 0; p < packed; ++p) w[0][p] = active ? w[0][p] : T(0);
  }
  __device__ __forceinline__ void store_weight_gradient(const ChannelPath& path, const T (&dw)[1][packed]) const {
    if (!rows.a.weight_out || path.weight < 0 || !active || !rows.live) return;
    store_channels<1>(rows.weight_out() + path.weight + c * path.weight_step, {0, path.weight_step, 0}, false, rows.adds_weight() || path.adds_weight, dw);
  }

  // Row `i` of the path's gradient of M: sum over the channels of t_i z_k.
  template <int n>
  __device__ __forceinline__ void add_row(T* to, const T (&t)[packed], const T (&z)[n][packed]) const {
    T sum[n];
#pragma unroll
    for (int k = 0; k < n; ++k) {
      sum[k] = t[0] * z[k][0];
#pragma unroll
      for (int p = 1; p < packed; ++p) sum[k] += t[p] * z[k][p];
    }
    sum_over_lanes(sum, lane, plan.lanes, [&](int k, T total) { to[k] += total; });
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
      store_channels<outputs>(to.out(2) + path.out.offset + c * path.out.channel, path.out, path.is_whole, rows.adds(2) || path.adds, sum, rows.is_atomic(2));
  }
  // The gradient of M that is a number times the identity: the sum over its diagonal.
  __device__ __forceinline__ void add_scalar(T* to, const T (&diagonal)[1][packed]) const {
    T ones[packed];
#pragma unroll
    for (int p = 0; p < packed; ++p) ones[p] = 1;
    add_row(to, ones, diagonal);
  }

  template <int outputs>
  static __device__ __forceinline__ void clear(T (&sum)[outputs][packed]) {
#pragma unroll
    for (int k = 0; k < outputs; ++k)
#pragma unroll
      for (int p = 0; p < packed; ++p) sum[k][p] = 0;
  }

  // ---- forward

  // Path by path, and x is read again for each: it is in the cache, where sums would have to go, and come from, at every item. Of a block in pieces the first one's
  // paths take all of it, so that their outputs are stored once.
  __device__ __forceinline__ void run_forward(const ChannelPiece& piece) const {
#pragma unroll 1
    for (int n = piece.path_begin; n < piece.path_end; ++n) {
      const ChannelPath path = load_table(plan.paths + n).value[0];
      if (path.is_scalar || piece.first == 0) with_components(path.outputs, [&](auto outputs) { sum_items<outputs>(piece, path); });
    }
  }
  template <int outputs>
  __device__ __forceinline__ void sum_items(const ChannelPiece& piece, const ChannelPath& path) const {
    T sum[outputs][packed] = {};
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      const WeightedRows<T> mine = rows_at(k);
      const T* const m = matrix + k * plan.shared + path.matrix;
      T w[1][packed];
      load_weights(mine, mine.a.weight, path, T(1), w);
      if (path.is_scalar)
        add_outputs<outputs, true>(piece, path, mine, m, w, sum);
      else if (piece.count < piece.components)
        add_outputs_of_pieces(piece, path, mine, m, nullptr, w, w, sum);
      else
        with_components(piece.count, [&](auto inputs) { add_outputs<inputs, false>(piece, path, mine, m, w, sum); });
      if (is_last(k, mine.receiver)) store_outputs(mine, path, sum), clear(sum);
    }
  }
  template <int inputs, bool is_scalar, int outputs>
  __device__ __forceinline__ void add_outputs(const ChannelPiece& piece, const ChannelPath& path, const WeightedRows<T>& mine, const T* m, const T (&w)[1][packed],
                                              T (&sum)[outputs][packed]) const {
    T x[inputs][packed];
    load_channels<inputs>(mine.in(piece.operand) + offset_of(piece), piece.place, piece.count == piece.components, x);
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      T row[outputs];
      load_entries<is_scalar>(m, path, i, row);
#pragma unroll
      for (int p = 0; p < packed; ++p) {
        const T t = w[0][p] * x[i][p];
#pragma unroll
        for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) sum[k][p] += row[k] * t;
      }
    }
  }
  // Component by component of a block in pieces.
  template <int outputs>
  __device__ __forceinline__ void add_outputs_of_pieces(const ChannelPiece& piece, const ChannelPath& path, const WeightedRows<T>& mine, const T* m, const T* md,
                                                        const T (&w)[1][packed], const T (&aw)[1][packed], T (&sum)[outputs][packed]) const {
    const int at = piece.place.offset + c * piece.place.channel, d = direction_of(piece);
#pragma unroll 1
    for (int i = 0; i < piece.components; ++i) {
      T x[1][packed], ax[1][packed] = {}, row[outputs], direction_row[outputs];
      load_channels<1>(mine.in(piece.operand) + at + i * piece.place.component, piece.place, false, x);
      load_row(m + i * path.pitch, row);
      if constexpr (directional) {
        if (mine.a.in[d]) load_channels<1>(mine.in(d) + at + i * piece.place.component, piece.place, false, ax);
        load_row(md + i * path.pitch, direction_row);
      }
#pragma unroll
      for (int p = 0; p < packed; ++p) {
        const T t = directional ? w[0][p] * ax[0][p] + aw[0][p] * x[0][p] : w[0][p] * x[0][p];
#pragma unroll
        for (int k = 0; k < outputs; ++k) {
          sum[k][p] += row[k] * t;
          if constexpr (directional) sum[k][p] += direction_row[k] * (w[0][p] * x[0][p]);
        }
      }
    }
  }

  // ---- backward and with directions

  // What goes through all of the piece's paths is as long as the longest piece, of which the others leave the rest alone: asked for its length only where
  // numbers are used, all that is compiled for every pair of lengths is the products. (With a copy of the loads and stores for each pair nvcc took twice as long.)
  static constexpr int longest = 7;
  __device__ __forceinline__ void run(const ChannelPiece& piece) const {
    const int s = piece.operand, at = offset_of(piece);
    const bool is_whole = piece.count == piece.components;
    T x[longest][packed], ax[directional ? longest : 1][packed] = {}, dx[longest][packed] = {};
    with_components(piece.count, [&](auto inputs) {
      load_channels<inputs>(rows.in(s) + at, piece.place, is_whole, x);
      if constexpr (directional)
        if (rows.a.in[direction_of(piece)]) load_channels<inputs>(rows.in(direction_of(piece)) + at, piece.place, is_whole, ax);
    });
#pragma unroll 1
    for (int n = piece.path_begin; n < piece.path_end; ++n) {
      const ChannelPath path = load_table(plan.paths + n).value[0];
      T w[1][packed], aw[1][packed], dw[1][packed] = {};
      load_weights(rows, rows.a.weight, path, T(1), w);
      if constexpr (directional) load_weights(rows, rows.a.weight_direction, path, T(0), aw);
      with_components(path.outputs, [&](auto outputs) {
        T z[outputs][packed], sum[directional ? outputs : 1][packed] = {};
        if (differentiates) load_channels<outputs>(rows.in(z_operand) + path.out.offset + c * path.out.channel, path.out, path.is_whole, z);
        if (path.is_scalar)
          multiply<outputs, true>(piece, path, x, ax, w, aw, z, sum, dx, dw);
        else
          with_components(piece.count, [&](auto inputs) { multiply<inputs, false>(piece, path, x, ax, w, aw, z, sum, dx, dw); });
        if constexpr (directional) {
          if (!path.is_scalar && !is_whole) {
            if (piece.first > 0 || !rows.a.out[2]) return;
            clear(sum), add_outputs_of_pieces(piece, path, rows, matrix + path.matrix, matrix_direction + path.matrix, w, aw, sum);
          }
          store_outputs(rows, path, sum);
        }
      });
      if (differentiates) store_weight_gradient(path, dw);
    }
    if (rows.a.out[s] && active && rows.live)
      with_components(piece.count, [&](auto inputs) { store_channels<inputs>(rows.out(s) + at, piece.place, is_whole, rows.adds(s), dx, rows.is_atomic(s)); });
  }
  template <int inputs, bool is_scalar, int directions, int outputs, int sums>
  __device__ __forceinline__ void multiply(const ChannelPiece& piece, const ChannelPath& path, const T (&x)[longest][packed], const T (&ax)[directions][packed],
                                           const T (&w)[1][packed], const T (&aw)[1][packed], const T (&z)[outputs][packed], T (&sum)[sums][packed],
                                           T (&dx)[longest][packed], T (&dw)[1][packed]) const {
    const int first = path.matrix + (is_scalar ? 0 : piece.first * path.pitch);
    T diagonal[1][packed] = {};
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
      T m[outputs], md[outputs], t[packed];  // t: of M's gradient
      load_entries<is_scalar>(matrix + first, path, i, m);
      if constexpr (directional) load_entries<is_scalar>(matrix_direction + first, path, i, md);
#pragma unroll
      for (int p = 0; p < packed; ++p) {
        if constexpr (directional) {
          t[p] = w[0][p] * ax[i][p] + aw[0][p] * x[i][p];
#pragma unroll
          for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) sum[k][p] += m[k] * t[p] + md[k] * (w[0][p] * x[i][p]);
        } else {
          t[p] = w[0][p] * x[i][p];
        }
        if (directional && !differentiates) continue;
        T h = 0, hd = 0;
#pragma unroll
        for (int k = row_begin<is_scalar>(i); k < row_end<is_scalar>(i, outputs); ++k) {
          h += m[k] * z[k][p];
          if constexpr (directional) hd += md[k] * z[k][p];
        }
        dx[i][p] += directional ? aw[0][p] * h + w[0][p] * hd : w[0][p] * h;
        dw[0][p] += directional ? ax[i][p] * h + x[i][p] * hd : x[i][p] * h;
        if constexpr (is_scalar) diagonal[0][p] += t[p] * z[i][p];
      }
      if (!is_scalar && wants_matrix) add_row(matrix_gradient + first + i * path.pitch, t, z);
    }
    if (is_scalar && wants_matrix) add_scalar(matrix_gradient + first, diagonal);
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
        if constexpr (pass != WeightedPass::forward)
          for (int i = lane; wants_matrix && i < plan.matrix_size; i += lanes) matrix_gradient[i] = 0;
        __syncwarp();
#pragma unroll 1
        for (int p = chunk.piece_begin; p < chunk.piece_end; ++p) {
          const ChannelPiece piece = load_table(plan.pieces + p).value[0];
#pragma unroll 1
          for (int begin = 0; begin < piece.mul; begin += lanes * packed) {
            const int c = begin + lane * packed;
            const ChannelwiseThread<T, pass, packed> thread{plan,  rows,         matrix,         matrix_direction, matrix_gradient,
                                                            lane, wants_matrix, differentiates, minimum(c, piece.mul - packed), c < piece.mul, items, n, e, count};
            if constexpr (pass == WeightedPass::forward)
              thread.run_forward(piece);
            else
              thread.run(piece);
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
            const auto add = [&](int first_output, int count_of_outputs, int entry, bool again) {
              Place place = place_of(out);
              place.offset += segment.out * out.channel + first_output * out.component;
              const int weight = in.weight < 0 ? -1 : in.weight + (connection.weight_columns ? int(v) : segment.weight);
              paths.push_back({place, count_of_outputs, matrices[n][v] + entry, pitch, count_of_outputs == outputs, is_scalar, weight, connection.weight_columns ? connection.weight_columns : 1,
                               writer != &in || segment.adds, again});
            };
            if (is_scalar) {
              add(first, count, 0, p > 0);
            } else {
              for (int q = 0; q < pieces_of(outputs); ++q) {
                const int begin = piece_begin(outputs, q);
                add(begin, piece_begin(outputs, q + 1) - begin, place_in_row(outputs, begin), p > 0 || q > 0);
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
    for (const auto& both : {kernels<WeightedPass::forward>, kernels<WeightedPass::backward>, kernels<WeightedPass::directional>})
      for (const Kernel kernel : both) allow_all_shared_memory(device, kernel);
  }
  bool fits() const { return item_bytes(WeightedPass::directional) <= properties(device_).shared_per_block; }

  void launch(const WeightedCall<T>& a, long long sets, cudaStream_t stream) const override {
    const WeightedPass pass = has_directions(a) ? WeightedPass::directional : has_gradients(a) ? WeightedPass::backward : WeightedPass::forward;
    const bool packed = has_packs_ && is_aligned(a);
    const long long bytes = item_bytes(pass);
    ChannelwisePlan<T> plan = plan_;
    plan.together = pass == WeightedPass::forward && a.is_swept ? int(std::clamp(most_bytes / bytes, 1ll, (long long)edges_at_once)) : 1;
    const Tiling tiling = weighted_tiling(device_, lanes_for(work_, channels_of(pass, packed)), plan.together * bytes);
    plan.lanes = tiling.threads / tiling.items, plan.shared = int(bytes / (long long)sizeof(T));
    const auto& both = pass == WeightedPass::forward    ? kernels<WeightedPass::forward>
                       : pass == WeightedPass::backward ? kernels<WeightedPass::backward>
                                                        : kernels<WeightedPass::directional>;
    check(cuda::launch(both[packed], tiling.grid(sets), tiling.threads, tiling.shared_bytes, stream, plan, a), "cudaLaunchKernel");
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

  // Passes of one channel a thread, and of as many as fill an access; with directions of half of them, for the registers.
  static constexpr int channels_of(WeightedPass pass, bool packed) { return !packed ? 1 : pass == WeightedPass::directional ? pack / 2 : pack; }
  using Kernel = void (*)(ChannelwisePlan<T>, WeightedCall<T>);
  template <WeightedPass pass>
  static constexpr std::array<Kernel, 2> kernels = {channelwise<T, pass, channels_of(pass, false)>, channelwise<T, pass, channels_of(pass, true)>};

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
