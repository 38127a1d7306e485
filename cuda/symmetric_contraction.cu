// Symmetric contraction (core/symmetric_contraction.hpp), as on the CPU: pairs C (x, x), their weighted sums y, and z = C (y, x), with everything between x and z in
// shared memory. A block of threads goes through a task, nodes of one species, so that the weights of the basis are made once, and their gradient is
// summed there. Its tile is up to 128 channels of a node, or all channels of several; a lane has four neighbouring ones, of which nobody else needs to know.
//
// A sum of products a_i b_j is formed without storing the products: most of MACE's go into one sum only.
//
// A double backward, or a jvp, is the same on dual numbers, as in cpu/symmetric_contraction.cpp.
#include "core/symmetric_contraction_plan.hpp"
#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

// out_to = sum of value a_i b_j
template <class T>
struct alignas(16) SymmetricEntry {
  T value;
  int a, b;
};
struct alignas(16) SymmetricSum {
  int to, begin, end;
};
template <class T>
struct SymmetricList {
  const SymmetricSum* sums;
  const SymmetricEntry<T>* entries;
  int count;
};
// `count` components from `at` on, and the weighted terms into or from them. Of `begin` to `end` each has a row of the weights.
struct alignas(16) SymmetricPiece {
  int at, count, begin, end;
};
struct alignas(8) SymmetricTerm {
  int row, at;
};
template <class T>
struct alignas(2 * sizeof(T)) SymmetricShare {
  T value;
  int of;
};
// Components are numbered in their region of the tile: x with the pairs behind it; y with z, or its gradient, behind it.
template <class T>
struct SymmetricTable {
  int mul, inputs, pairs, sums, outputs, rows, paths, dim[2];
  const Strided* places[2];  // component c of channel u of x, and of z
  SymmetricList<T> squares, products;                     // x x -> pairs, y x -> z
  SymmetricList<T> to_y, to_x, squares_to_x;              // x dz -> dy, y dz -> dx, dpairs x -> dx
  const SymmetricPiece *into, *from;                      // of y and z, by their terms; of x and the pairs
  int pieces_into_sums, pieces_into, groups;
  const int* group;                                       // pieces of one block of x or of the pairs
  const SymmetricTerm *terms_into, *terms_from;
  const SymmetricSum *row_sums, *path_sums;               // rows of the basis from paths, and back
  const SymmetricShare<T>*row_shares, *path_shares;
};

enum class SymmetricPass { forward, backward, directional };

// First components in a tile.
struct SymmetricLayout {
  int x, ax, y, ay, dx, weights, weight_directions, weight_gradients;
  long components;
  template <class T>
  SymmetricLayout(const SymmetricTable<T>& table, SymmetricPass pass, bool weights_move) {
    const bool directional = pass == SymmetricPass::directional, differentiates = pass != SymmetricPass::forward;
    const int sources = table.inputs + table.pairs, targets = table.sums + table.outputs;
    Components tile;
    x = tile.take(sources), ax = tile.take(directional ? sources : 0);
    y = tile.take(targets), ay = tile.take(directional ? targets : 0);
    dx = tile.take(differentiates ? table.inputs : 0);
    weights = tile.take(table.rows), weight_directions = tile.take(weights_move ? table.rows : 0), weight_gradients = tile.take(differentiates ? table.rows : 0);
    components = tile.count;
  }
};

template <class T>
struct SymmetricCall {
  const T *x, *ax, *dz, *weight, *weight_direction;
  T *z, *dx, *weight_sums;   // weight_sums: [task][row][channel]
  NodeTasks tasks;
  int channels, nodes;       // of a tile
  Divisor by_channels;
  int chunks;                // of all channels
  int packs;
  bool packed;               // the numbers of a pack are neighbours in memory
  bool accumulate;
};

// A lane's numbers of a tile: where they are, and which of them there are.
template <class T>
struct SymmetricLane {
  static constexpr int count = Items<T>::count;
  const SymmetricCall<T>& a;
  const Team& team;
  int slot[count], channel[count], node[count];  // node: -1 for none

  __device__ __forceinline__ SymmetricLane(const SymmetricCall<T>& a, const Team& team, int first_channel, int mul) : a(a), team(team) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int item = int(threadIdx.x % 32) * count + i;
      slot[i] = divide(item, a.by_channels), channel[i] = first_channel + item - slot[i] * a.channels;
      if (slot[i] >= a.nodes || channel[i] >= mul) slot[i] = 1 << 30;
    }
  }
  __device__ __forceinline__ bool has(int i) const { return slot[i] < a.nodes; }
  __device__ __forceinline__ void take_nodes(int first, int end) {
#pragma unroll
    for (int i = 0; i < count; ++i) node[i] = has(i) && slot[i] < end - first ? load_table(a.tasks.order + first + slot[i]).value[0] : -1;
  }

  // Of a component of the rows.
  __device__ __forceinline__ Items<T> load_from(const T* rows, int dim, Strided place) const {
    Items<T> v{};
    if (a.packed) {
      if (node[0] < 0) return v;
      const Pack<T, count> pack = load<count>(rows + (long long)node[0] * dim + (place.first + channel[0]));
#pragma unroll
      for (int i = 0; i < count; ++i) v.item[i] = pack.value[i];
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i)
        if (node[i] >= 0) v.item[i] = load(rows + (long long)node[i] * dim + (place.first + channel[i] * place.step)).value[0];
    }
    return v;
  }
  __device__ __forceinline__ void store_to(T* rows, int dim, Strided place, Items<T> v) const {
    if (a.packed) {
      if (node[0] < 0) return;
      T* const to = rows + (long long)node[0] * dim + (place.first + channel[0]);
      Pack<T, count> pack{};
      if (a.accumulate) pack = load<count>(to);
#pragma unroll
      for (int i = 0; i < count; ++i) pack.value[i] += v.item[i];
      store<count>(to, pack);
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        if (node[i] < 0) continue;
        T* const to = rows + (long long)node[i] * dim + (place.first + channel[i] * place.step);
        store(to, Pack<T, 1>{a.accumulate ? load(to).value[0] + v.item[i] : v.item[i]});
      }
    }
  }
  // All components. The loads of four in flight, 16 bytes each: that hides the latency of memory. Without rows they are zero.
  __device__ __forceinline__ void load_rows(const T* rows, int dim, const Strided* places, int components, const Strip<Items<T>>& to) const {
    constexpr int at_once = 4;
    for (int first = team.index; first < components; first += at_once * team.count) {
      Items<T> v[at_once] = {};
#pragma unroll
      for (int n = 0; n < at_once; ++n)
        if (const int c = first + n * team.count; rows && c < components) v[n] = load_from(rows, dim, load_table(places + c).value[0]);
#pragma unroll
      for (int n = 0; n < at_once; ++n)
        if (const int c = first + n * team.count; c < components) to[c] = v[n];
    }
  }
  __device__ __forceinline__ void store_rows(T* rows, int dim, const Strided* places, int components, const Strip<Items<T>>& from) const {
    for (int c = team.index; c < components; c += team.count) store_to(rows, dim, load_table(places + c).value[0], from[c]);
  }

  // Rows of the basis' weights from those of a species.
  __device__ __forceinline__ void load_weights(const SymmetricTable<T>& table, const T* set, const Strip<Items<T>>& to) const {
    for (int r = team.index; r < table.rows; r += team.count) {
      const SymmetricSum row = load_table(table.row_sums + r).value[0];
      Items<T> sum{};
      for (int n = row.begin; n < row.end; ++n) {
        const SymmetricShare<T> share = load_table(table.row_shares + n).value[0];
        const T* const from = set + (long long)share.of * table.mul;
        Items<T> w{};
        if (a.packed) {
          if (has(0)) {
            const Pack<T, count> pack = load<count>(from + channel[0]);
#pragma unroll
            for (int i = 0; i < count; ++i) w.item[i] = pack.value[i];
          }
        } else {
#pragma unroll
          for (int i = 0; i < count; ++i)
            if (has(i)) w.item[i] = load(from + channel[i]).value[0];
        }
        sum += share.value * w;
      }
      to[row.to] = sum;
    }
  }
};

// Sums of the list, to[...] = sum or to[...] += sum, of value a_i b_j; if `dual` also a2_i b2_j.
template <bool add, bool dual, class T, class V>
__device__ __forceinline__ void contract(const SymmetricList<T>& list, const Team& team, const Strip<V>& to, const Strip<V>& a, const Strip<V>& b, const Strip<V>& a2, const Strip<V>& b2) {
  for (int s = team.index; s < list.count; s += team.count) {
    const SymmetricSum place = load_table(list.sums + s).value[0];
    V sum{};
    if (add) sum = to[place.to];
#pragma unroll 2
    for (int n = place.begin; n < place.end; ++n) {
      const SymmetricEntry<T> e = load_table(list.entries + n).value[0];
      sum += (e.value * a[e.a]) * b[e.b];
      if (dual) sum += (e.value * a2[e.a]) * b2[e.b];
    }
    to[place.to] = sum;
  }
}
// Two of them, with a and with a2, of the same b.
template <class T, class V>
__device__ __forceinline__ void contract_both(const SymmetricList<T>& list, const Team& team, const Strip<V>& to, const Strip<V>& to2, const Strip<V>& a, const Strip<V>& a2, const Strip<V>& b) {
  for (int s = team.index; s < list.count; s += team.count) {
    const SymmetricSum place = load_table(list.sums + s).value[0];
    V sum{}, sum2{};
#pragma unroll 2
    for (int n = place.begin; n < place.end; ++n) {
      const SymmetricEntry<T> e = load_table(list.entries + n).value[0];
      const V right = e.value * b[e.b];
      sum += a[e.a] * right, sum2 += a2[e.a] * right;
    }
    to[place.to] = sum, to2[place.to] = sum2;
  }
}

template <class T>
struct SymmetricStrips {
  Strip<Items<T>> x, ax, y, ay, dx, weights, weight_directions, weight_gradients;
  bool weights_move, wants_weights;
};

// Weighted sums of x and the pairs into `n` components of y or z.
template <int n, bool directional, class T>
__device__ __forceinline__ void add_terms(const SymmetricTable<T>& table, const SymmetricStrips<T>& s, const SymmetricPiece& piece) {
  using V = Items<T>;
  V sum[n] = {}, moved[n] = {};
#pragma unroll 1
  for (int t = piece.begin; t < piece.end; ++t) {
    const SymmetricTerm term = load_table(table.terms_into + t).value[0];
    const V w = s.weights[term.row];
    const Strip<V> x = s.x.from(term.at), ax = s.ax.from(term.at);
#pragma unroll
    for (int m = 0; m < n; ++m) {
      sum[m] += w * x[m];
      if (directional) moved[m] += w * ax[m];
    }
    if (directional && s.weights_move) {
      const V aw = s.weight_directions[term.row];
#pragma unroll
      for (int m = 0; m < n; ++m) moved[m] += aw * x[m];
    }
  }
  // Behind the sums of a directional pass is dz.
  if (!directional || piece.at < table.sums) {
#pragma unroll
    for (int m = 0; m < n; ++m) s.y[piece.at + m] = sum[m];
  }
#pragma unroll
  for (int m = 0; directional && m < n; ++m) s.ay[piece.at + m] = moved[m];
}

// Back: gradients of the terms' weights, and of `n` components of x, to which they are added, or of the pairs, which they take the place of.
template <int n, bool directional, class T>
__device__ __forceinline__ void differentiate_terms(const SymmetricTable<T>& table, const SymmetricStrips<T>& s, const SymmetricPiece& piece) {
  using V = Items<T>;
  // Seven components of x and of its direction, beside as many of the sums, are more than there are registers for.
  constexpr bool holds = !directional || n < 7;
  const bool is_pair = piece.at >= table.inputs;
  const Strip<V> xs = s.x.from(piece.at), axs = s.ax.from(piece.at);
  V x[n], ax[n] = {}, sum[n] = {}, moved[n] = {};
#pragma unroll
  for (int m = 0; holds && m < n; ++m) {
    x[m] = xs[m];
    if (directional) ax[m] = axs[m];
  }
#pragma unroll 1
  for (int t = piece.begin; t < piece.end; ++t) {
    const SymmetricTerm term = load_table(table.terms_from + t).value[0];
    const Strip<V> y = s.y.from(term.at), ay = s.ay.from(term.at);
    const V w = s.weights[term.row];
    V gradient{}, aw{};
    if (s.wants_weights) gradient = s.weight_gradients[term.row];
    if (directional && s.weights_move) aw = s.weight_directions[term.row];
    // Of a directional pass y is the gradient of the part of e.
#pragma unroll
    for (int m = 0; m < n; ++m) {
      const V g = y[m];
      if constexpr (directional) {
        const V c = ay[m];
        gradient += (holds ? ax[m] : axs[m]) * g, gradient += (holds ? x[m] : xs[m]) * c;
        sum[m] += w * c, moved[m] += w * g;
        if (s.weights_move) sum[m] += aw * g;
      } else {
        gradient += x[m] * g, sum[m] += w * g;
      }
    }
    if (s.wants_weights) s.weight_gradients[term.row] = gradient;
  }
#pragma unroll
  for (int m = 0; m < n; ++m) {
    if (is_pair) {
      xs[m] = sum[m];
      if (directional) axs[m] = moved[m];
    } else {
      s.dx[piece.at + m] += sum[m];
    }
  }
}

template <class T, SymmetricPass pass>
__global__ __launch_bounds__(threads, 1) void symmetric_contraction(const __grid_constant__ SymmetricTable<T> table, const __grid_constant__ SymmetricCall<T> a,
                                                                    const __grid_constant__ SymmetricLayout layout) {
  using V = Items<T>;
  constexpr bool directional = pass == SymmetricPass::directional, differentiates = pass != SymmetricPass::forward;
  const Team team = team_of(a.packs);
  const int block_task = int(blockIdx.x) / a.chunks, chunk = int(blockIdx.x) - block_task * a.chunks;
  const NodeTask task = load_table(a.tasks.tasks + block_task).value[0];
  const unsigned pitch = a.packs * unsigned(sizeof(V));
  const Strip<V> tile{dynamic_shared_begin() + minimum(int(threadIdx.x % 32), a.packs - 1) * unsigned(sizeof(V)), pitch};
  SymmetricLane<T> lane(a, team, chunk * a.channels, table.mul);
  const SymmetricStrips<T> s{tile.from(layout.x),       tile.from(layout.ax),      tile.from(layout.y),
                             tile.from(layout.ay),      tile.from(layout.dx),      tile.from(layout.weights),
                             tile.from(layout.weight_directions), tile.from(layout.weight_gradients), a.weight_direction != nullptr, a.weight_sums != nullptr};
  const Strip<V> dz = s.y.from(table.sums), az = s.ay.from(table.sums), pairs = s.x.from(table.inputs), apairs = s.ax.from(table.inputs);
  const long long set = (long long)task.species * table.paths * table.mul;
  lane.load_weights(table, a.weight + set, s.weights);
  if (directional && a.weight_direction) lane.load_weights(table, a.weight_direction + set, s.weight_directions);
  if (differentiates)
    for (int r = team.index; r < table.rows; r += team.count) s.weight_gradients[r] = V{};

#pragma unroll 1
  for (int first = task.begin; first < task.end; first += a.nodes) {
    lane.take_nodes(first, task.end);
    lane.load_rows(a.x, table.dim[0], table.places[0], table.inputs, s.x);
    if (directional) lane.load_rows(a.ax, table.dim[0], table.places[0], table.inputs, s.ax);
    if (differentiates) lane.load_rows(a.dz, table.dim[1], table.places[1], table.outputs, dz);
    __syncthreads();
    contract<false, false>(table.squares, team, pairs, s.x, s.x, s.x, s.x);
    if (directional) contract<false, true>(table.squares, team, apairs, s.ax, s.x, s.x, s.ax);
    __syncthreads();
    for (int p = team.index; p < (pass == SymmetricPass::backward ? table.pieces_into_sums : table.pieces_into); p += team.count) {
      const SymmetricPiece piece = load_table(table.into + p).value[0];
      switch (piece.count) {
        case 1: add_terms<1, directional>(table, s, piece); break;
        case 3: add_terms<3, directional>(table, s, piece); break;
        case 5: add_terms<5, directional>(table, s, piece); break;
        case 7: add_terms<7, directional>(table, s, piece); break;
      }
    }
    __syncthreads();
    if (a.z) contract<true, directional>(table.products, team, directional ? az : dz, directional ? s.ay : s.y, s.x, s.y, s.ax);
    const bool wants_gradients = a.dx || a.weight_sums;
    if (differentiates && wants_gradients) contract<false, false>(table.to_x, team, s.dx, directional ? s.ay : s.y, s.y, s.y, s.y);
    __syncthreads();
    if (a.z) lane.store_rows(a.z, table.dim[1], table.places[1], table.outputs, directional ? az : dz);
    if (!differentiates || !wants_gradients) continue;
    if (directional) {
      // Terms of x alone into z have no gradient of z itself.
      for (int c = team.index; c < table.outputs; c += team.count) az[c] = V{};
      contract_both(table.to_y, team, s.y, s.ay, s.x, s.ax, dz);
    } else {
      contract<false, false>(table.to_y, team, s.y, s.x, dz, dz, dz);
    }
    __syncthreads();
    for (int g = team.index; g < table.groups; g += team.count) {
      const int begin = load_table(table.group + g).value[0], end = load_table(table.group + g + 1).value[0];
      for (int p = begin; p < end; ++p) {
        const SymmetricPiece piece = load_table(table.from + p).value[0];
        switch (piece.count) {
          case 1: differentiate_terms<1, directional>(table, s, piece); break;
          case 3: differentiate_terms<3, directional>(table, s, piece); break;
          case 5: differentiate_terms<5, directional>(table, s, piece); break;
          case 7: differentiate_terms<7, directional>(table, s, piece); break;
        }
      }
    }
    __syncthreads();
    if (!a.dx) continue;
    contract<true, directional>(table.squares_to_x, team, s.dx, s.x, s.x, s.ax, s.ax);
    __syncthreads();
    lane.store_rows(a.dx, table.dim[0], table.places[0], table.inputs, s.dx);
  }

  if (!differentiates || !a.weight_sums) return;
  __syncthreads();
  // Of each channel, the sum over the nodes of a tile.
  T* const to = a.weight_sums + (long long)block_task * table.rows * table.mul + chunk * a.channels;
  const int here = minimum(a.channels, table.mul - chunk * a.channels);
  const unsigned gradients = dynamic_shared_begin() + layout.weight_gradients * pitch;
  for (int r = threadIdx.x / 32; r < table.rows; r += blockDim.x / 32)
    for (int u = threadIdx.x % 32; u < here; u += 32) {
      T sum = 0;
      for (int n = 0; n < a.nodes; ++n) sum += shared_at<T>(gradients + r * pitch + (n * a.channels + u) * unsigned(sizeof(T)));
      store(to + (long long)r * table.mul + u, Pack<T, 1>{sum});
    }
}

// Gradients of the species' sets: sums over their tasks in order, from rows of the basis to paths. A block has a set's next 32 channels.
constexpr int gradient_threads = 256;
template <class T>
__global__ __launch_bounds__(gradient_threads) void symmetric_weight_gradient(const __grid_constant__ SymmetricTable<T> table, const T* weight_sums, T* out, NodeTasks tasks, int chunks,
                                                                              bool accumulate) {
  const int species = int(blockIdx.x) / chunks, warp = threadIdx.x / 32, warps = gradient_threads / 32;
  const int lane = threadIdx.x % 32, u = (int(blockIdx.x) - species * chunks) * 32 + lane;
  const int begin = load_table(tasks.of_species + species).value[0], end = load_table(tasks.of_species + species + 1).value[0];
  T* const sums = dynamic_shared<T>();
  for (int r = warp; r < table.rows; r += warps) {
    T sum = 0;
    for (int t = begin; t < end && u < table.mul; ++t) sum += load(weight_sums + ((long long)t * table.rows + r) * table.mul + u).value[0];
    sums[r * 32 + lane] = sum;
  }
  __syncthreads();
  for (int p = warp; p < table.paths && u < table.mul; p += warps) {
    const SymmetricSum path = load_table(table.path_sums + p).value[0];
    T sum = 0;
    for (int n = path.begin; n < path.end; ++n) {
      const SymmetricShare<T> share = load_table(table.path_shares + n).value[0];
      sum += share.value * sums[share.of * 32 + lane];
    }
    T* const to = out + ((long long)species * table.paths + path.to) * table.mul + u;
    store(to, Pack<T, 1>{accumulate ? load(to).value[0] + sum : sum});
  }
}

// ---- the host's side

// Lists by the place of their sum, the longest first: they are dealt out to the teams.
template <class Item>
struct SymmetricLists {
  std::map<int, std::vector<Item>> of;
  template <class Store>
  int build(Store& store, const SymmetricSum*& sums, const Item*& items) const {
    std::vector<const std::pair<const int, std::vector<Item>>*> sorted;
    for (const auto& list : of) sorted.push_back(&list);
    std::stable_sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return a->second.size() > b->second.size(); });
    std::vector<SymmetricSum> all;
    std::vector<Item> flat;
    for (const auto* list : sorted) {
      all.push_back({list->first, int(flat.size()), int(flat.size() + list->second.size())});
      flat.insert(flat.end(), list->second.begin(), list->second.end());
    }
    sums = store.items(all), items = store.items(flat);
    return int(all.size());
  }
};
template <class T>
struct SymmetricEntries : SymmetricLists<SymmetricEntry<T>> {
  void add(int to, int a, int b, double value) { this->of[to].push_back({T(value), a, b}); }
  template <class Store>
  SymmetricList<T> list(Store& store) const {
    SymmetricList<T> result{};
    result.count = this->build(store, result.sums, result.entries);
    return result;
  }
};

// body(first, count) for pieces of 1, 3, 5 and 7 of an odd number of components, which a thread has registers for: an odd number of them, as even as can be.
template <class Body>
void for_each_piece(int components, Body&& body) {
  const int pieces = (components + 6) / 7 | 1;
  const auto begin = [&](int piece) { return piece + 2 * ((components - pieces) / 2 * piece / pieces); };
  for (int p = 0; p < pieces; ++p) body(begin(p), begin(p + 1) - begin(p));
}

template <class T, class Store>
SymmetricTable<T> symmetric_table(Store& store, const SymmetricForm& form, SymmetricBasis& basis) {
  const SymmetricTables from(form, basis);
  SymmetricTable<T> table{};
  table.mul = form.mul, table.rows = int(basis.rows.size()), table.paths = int(form.paths.size());
  table.inputs = from.inputs, table.pairs = from.pairs, table.sums = from.sums, table.outputs = from.outputs;
  for (int s = 0; s < 2; ++s) {
    std::vector<Strided> places;
    for (const IrrepsBlock& b : s == 0 ? form.in : form.out)
      for (int m = 0; m <= 2 * b.l; ++m) places.push_back({b.at(0, m), b.channel});
    table.dim[s] = form.dims[s], table.places[s] = store.items(places);
  }

  SymmetricEntries<T> squares, products, to_y, to_x, squares_to_x;
  for (const auto& [pair, outputs] : from.squares.of)
    for (const auto& [k, value] : outputs) {
      const auto [i, j] = pair;
      if (absolute(value) <= 1e-13) continue;
      squares.add(k, i, j, value);
      squares_to_x.add(i, from.inputs + k, j, i == j ? 2 * value : value);
      if (i != j) squares_to_x.add(j, from.inputs + k, i, value);
    }
  for (int k = 0; k < from.pairs; ++k) squares.of[k];  // each is written
  for (const auto& [pair, outputs] : from.products.of)
    for (const auto& [k, value] : outputs) {
      const auto [j, i] = pair;
      if (absolute(value) <= 1e-13) continue;
      products.add(k, j, i, value);
      to_y.add(j, i, k, value);
      to_x.add(i, j, from.sums + k, value);
    }
  for (int j = 0; j < from.sums; ++j) to_y.of[j];
  for (int i = 0; i < from.inputs; ++i) to_x.of[i];
  table.squares = squares.list(store), table.products = products.list(store);
  table.to_y = to_y.list(store), table.to_x = to_x.list(store), table.squares_to_x = squares_to_x.list(store);

  // Terms by the block of y or z that they go into, and by that of x or the pairs that they come from: row, the other block, components.
  struct Block {
    int count = 0;
    std::vector<SymmetricTerm> terms;
  };
  std::map<int, Block> into, out_of;
  int row = 0, first = from.sums;
  for (const IrrepsBlock& b : form.out) into[std::exchange(first, first + 2 * b.l + 1)].count = 2 * b.l + 1;
  const auto add = [&](const PlanSymmetricTerm& term, int target) {
    into[target].count = out_of[term.source].count = term.count;
    into[target].terms.push_back({row, term.source}), out_of[term.source].terms.push_back({row++, target});
  };
  for (const PlanSymmetricTerm& term : from.terms) add(term, term.target);
  for (const PlanSymmetricTerm& term : from.linear) add(term, from.sums + term.target);
  const auto build = [&](const std::map<int, Block>& blocks, bool all_first, const SymmetricPiece*& pieces, const SymmetricTerm*& terms, const int** groups) {
    std::vector<const std::pair<const int, Block>*> sorted;
    for (const auto& block : blocks) sorted.push_back(&block);
    const auto is_late = [&](auto* block) { return all_first && block->first >= from.sums; };
    std::stable_sort(sorted.begin(), sorted.end(), [&](auto* a, auto* b) {
      return std::pair(is_late(a), b->second.count * b->second.terms.size()) < std::pair(is_late(b), a->second.count * a->second.terms.size());
    });
    std::vector<SymmetricPiece> list;
    std::vector<SymmetricTerm> flat;
    std::vector<int> begins;
    for (const auto* block : sorted) {
      begins.push_back(int(list.size()));
      for_each_piece(block->second.count, [&](int begin, int count) {
        list.push_back({block->first + begin, count, int(flat.size()), int(flat.size() + block->second.terms.size())});
        for (const SymmetricTerm& term : block->second.terms) flat.push_back({term.row, term.at + begin});
        if (all_first && block->first < from.sums) table.pieces_into_sums = int(list.size());
      });
    }
    begins.push_back(int(list.size()));
    if (groups) *groups = store.ints(begins), table.groups = int(sorted.size());
    const int count = int(list.size());
    pieces = store.items(list), terms = store.items(flat);
    return count;
  };
  table.pieces_into = build(into, true, table.into, table.terms_into, nullptr);
  build(out_of, false, table.from, table.terms_from, &table.group);

  SymmetricLists<SymmetricShare<T>> rows, paths;
  for (int r = 0; r < table.rows; ++r) rows.of[r];
  for (int p = 0; p < table.paths; ++p) paths.of[p];
  for (const SymmetricExpansion& e : basis.expansions) rows.of[e.row].push_back({T(e.value), e.path}), paths.of[e.path].push_back({T(e.value), e.row});
  rows.build(store, table.row_sums, table.row_shares), paths.build(store, table.path_sums, table.path_shares);
  return table;
}

template <class T>
class SymmetricContraction final : public Operation {
 public:
  SymmetricContraction(int device, const SymmetricForm& form, SymmetricBasis& basis)
      : Operation(device, sizeof(T) == 8, form.dims[0], 0, form.dims[1]), arena_(device), species_(form.species) {
    weights = form.species * int(form.paths.size()) * form.mul;
    table_ = arena_.build([&](auto& store) { return symmetric_table<T>(store, form, basis); });
    for (const std::vector<IrrepsBlock>& blocks : {form.in, form.out})
      for (const IrrepsBlock& b : blocks) innermost_ &= b.channel == 1 && form.mul % Items<T>::count == 0;
    packs_for(SymmetricLayout(table_, SymmetricPass::directional, true));
    for (const auto kernel : kernels) allow_all_shared_memory(device, kernel);
    allow_all_shared_memory(device, symmetric_weight_gradient<T>);
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    const bool directional = call.in[x_direction] || call.weight_direction, differentiates = call.out[0] || call.weight_out;
    if (!directional && differentiates && call.out[2]) {
      // In a tile z's gradient has the place of z.
      Call part = call;
      part.out[0] = part.weight_out = nullptr;
      contract(part, stream);
      part = call, part.out[2] = nullptr;
      return contract(part, stream);
    }
    const SymmetricPass pass = directional ? SymmetricPass::directional : differentiates ? SymmetricPass::backward : SymmetricPass::forward;
    const SymmetricLayout layout(table_, pass, call.weight_direction);
    SymmetricCall<T> a{};
    const auto in = [](const void* p) { return static_cast<const T*>(p); };
    a.x = in(call.in[x_operand]), a.ax = in(call.in[x_direction]), a.dz = in(call.in[z_operand]), a.weight = in(call.weight), a.weight_direction = in(call.weight_direction);
    a.z = static_cast<T*>(call.out[2]), a.dx = static_cast<T*>(call.out[0]);
    a.tasks = *call.tasks, a.accumulate = call.accumulate;
    a.packs = packs_for(layout);
    // All channels of some nodes, or of one node as many at a time.
    const int items = a.packs * Items<T>::count, each = Items<T>::count;
    a.chunks = (table_.mul + items - 1) / items;
    a.channels = a.chunks == 1 ? table_.mul : ((table_.mul + a.chunks - 1) / a.chunks + each - 1) / each * each;
    a.nodes = std::max(1, items / a.channels), a.by_channels = divisor(a.channels);
    a.packs = (a.nodes * a.channels + each - 1) / each;
    a.packed = innermost_;
    for (const void* p : {call.in[x_operand], call.in[x_direction], call.in[z_operand], call.weight, call.weight_direction, (const void*)call.out[0], (const void*)call.out[2]})
      a.packed &= reinterpret_cast<uintptr_t>(p) % 16 == 0;
    std::optional<Workspace> sums;
    if (call.weight_out) {
      sums.emplace(device, size_t(a.tasks.count) * table_.rows * table_.mul * sizeof(T), stream);
      a.weight_sums = static_cast<T*>(sums->data());
    }
    const size_t bytes = size_t(layout.components) * a.packs * sizeof(Items<T>);
    // What an SM's shared memory has room for is 16 warps together, but for a tile that fills it.
    const int warps = int(std::clamp<size_t>(16 * bytes / size_t(properties(device).shared_per_block) + 1, 4, threads / 32));
    check(launch(kernels[int(pass)], dim3(unsigned(a.tasks.count) * unsigned(a.chunks)), warps * 32, bytes, stream, table_, a, layout), "cudaLaunchKernel");
    if (!call.weight_out) return;
    const int chunks = (table_.mul + 31) / 32;
    check(launch(symmetric_weight_gradient<T>, dim3(unsigned(species_) * unsigned(chunks)), gradient_threads, size_t(table_.rows) * 32 * sizeof(T), stream, table_, a.weight_sums,
                 static_cast<T*>(call.weight_out), a.tasks, chunks, call.accumulate),
          "cudaLaunchKernel");
  }

 private:
  int packs_for(const SymmetricLayout& layout) const {
    const long long bytes = layout.components * (long long)sizeof(Items<T>), most = properties(device).shared_per_block;
    if (bytes > most || (long long)table_.rows * 32 * (long long)sizeof(T) > most)
      throw Error("not_supported", "a channel of this operation takes " + std::to_string(bytes / Items<T>::count) + " bytes of shared memory, four of them more than the device has in a block: use backend 'cpu'");
    return int(std::min<long long>(32, most / bytes));
  }

  static constexpr void (*kernels[3])(SymmetricTable<T>, SymmetricCall<T>, SymmetricLayout) = {
      symmetric_contraction<T, SymmetricPass::forward>, symmetric_contraction<T, SymmetricPass::backward>, symmetric_contraction<T, SymmetricPass::directional>};

  PlanArena arena_;
  SymmetricTable<T> table_{};
  int species_;
  bool innermost_ = true;
};

}  // namespace

std::unique_ptr<Operation> make_symmetric_contraction(int device, const SymmetricForm& form) {
  SymmetricBasis basis(form);
  if (form.is_double) return std::make_unique<SymmetricContraction<double>>(device, form, basis);
  return std::make_unique<SymmetricContraction<float>>(device, form, basis);
}

}  // namespace equitensor::cuda
