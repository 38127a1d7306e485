// Weighted tensor product of mixed channels (uvw, uuw, u<vw) with one set of weights for all items: a matrix product whose columns are the components of a tile
// of items, one a lane. For the pairs of channels c of all instructions into a block, t_c = M_c x_c as weighted.cpp forms it, z_w = sum_c W_cw t_c, and backwards
// g_c = sum_w W_cw z_w and dW_cw = sum over items and components of t_c z_w. A weight that is loaded serves a tile, and neither layout is turned but with the tile.
#include "cpu/kernels.hpp"
#include "cpu/weighted_products.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Sums in registers: 8 rows of 3 columns leave AVX-512 room for the operands, 4 rows others.
inline constexpr int mixed_rows = sizeof(Vector<float>) == 64 ? 8 : 4;

// z_w (+)= sum_c W_cw t_c of `rows` w and n components. Row c of the weights begins at row[c].
template <int rows, int n, class T>
EQUITENSOR_NOINLINE void mix_channels(const T* weights, const long* row, int channels, const Vector<T>* t, long t_pitch, Vector<T>* z, long z_row, long z_component, bool adds) {
  Vector<T> sum[rows][n]{};
#pragma GCC unroll 8
  for (int r = 0; adds && r < rows; ++r)
#pragma GCC unroll 3
    for (int k = 0; k < n; ++k) sum[r][k] = z[r * z_row + k * z_component];
  for (int c = 0; c < channels; ++c, t += t_pitch) {
    const T* const w = weights + row[c];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vector<T> weight = n > 1 ? in_register(splat(w[r])) : splat(w[r]);
#pragma GCC unroll 3
      for (int k = 0; k < n; ++k) sum[r][k] += weight * t[k];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
    for (int k = 0; k < n; ++k) z[r * z_row + k * z_component] = sum[r][k];
}
// g_c = sum_w W_cw z_w of `rows` c and n components.
template <int rows, int n, class T>
EQUITENSOR_NOINLINE void unmix_channels(const T* weights, const long* row, int channels, const Vector<T>* z, long z_row, long z_component, Vector<T>* g, long g_pitch) {
  Vector<T> sum[rows][n]{};
  const T* at[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) at[r] = weights + row[r];
  for (int w = 0; w < channels; ++w, z += z_row) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vector<T> weight = n > 1 ? in_register(splat(at[r][w])) : splat(at[r][w]);
#pragma GCC unroll 3
      for (int k = 0; k < n; ++k) sum[r][k] += weight * z[k * z_component];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
    for (int k = 0; k < n; ++k) g[r * g_pitch + k] = sum[r][k];
}
// dW_cw += sum over items and components of t_c z_w, of `rows` c and some vectors of w. Row `item` of z has component k of channel w at k * z_component + w.
template <int rows, int vectors, class T, class Vectors>
EQUITENSOR_INLINE void add_outer(const T* t, const T* z, long z_item, long z_component, int items, int components, T* dw, const long* row, Vectors part) {
  constexpr int w = width<T>;
  Vector<T> sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) sum[r][v] = part.load(dw + row[r] + v * w);
  for (int item = 0; item < items; ++item)
    for (int k = 0; k < components; ++k) {
      const T *const from = z + item * z_item + k * z_component, *const left = t + k * w + item;
      Vector<T> right[vectors];
#pragma GCC unroll 3
      for (int v = 0; v < vectors; ++v) right[v] = part.load(from + v * w);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const T value = left[r * components * w];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; ++v) sum[r][v] += value * right[v];
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < vectors; ++v) part.store(dw + row[r] + v * w, sum[r][v]);
}
template <int rows, class T>
EQUITENSOR_NOINLINE void add_outer_rows(const T* t, const T* z, long z_item, long z_component, int items, int components, T* dw, const long* row, int columns) {
  constexpr int w = width<T>;
  int c = 0;
  for (; c + 2 * w <= columns; c += 2 * w) add_outer<rows, 2>(t, z + c, z_item, z_component, items, components, dw + c, row, Whole<T>{});
  for (; c + w <= columns; c += w) add_outer<rows, 1>(t, z + c, z_item, z_component, items, components, dw + c, row, Whole<T>{});
  if (c < columns) add_outer<rows, 1>(t, z + c, z_item, z_component, items, components, dw + c, row, Part<T>{columns - c});
}

// Channels of the lane operand, or of its gradient, and what M makes of them: component i of channel u at u * channel + i * component, all outputs of a channel together.
struct LaneChannels {
  int count, inputs, outputs;
  long channel, component;
};
// t_k (+)= sum_i M_ik x_i of n outputs.
template <class T, int n>
EQUITENSOR_NOINLINE void multiply_lanes(const LaneChannels& at, const Vector<T>* matrix, const Vector<T>* x, Vector<T>* t, bool adds) {
  for (int u = 0; u < at.count; ++u, x += at.channel, t += at.outputs) {
    Vector<T> sum[n]{};
#pragma GCC unroll 8
    for (int k = 0; adds && k < n; ++k) sum[k] = t[k];
    for (int i = 0; i < at.inputs; ++i) {
      const Vector<T> value = x[i * at.component];
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) sum[k] += matrix[i * at.outputs + k] * value;
    }
#pragma GCC unroll 8
    for (int k = 0; k < n; ++k) t[k] = sum[k];
  }
}
// dx_i += sum_k M_ik g_k; dM_ik += x_i g_k
template <class T, int n, bool outer>
EQUITENSOR_NOINLINE void differentiate_lanes(const LaneChannels& at, const Vector<T>* matrix, const Vector<T>* g, const Vector<T>* x, Vector<T>* dx, Vector<T>* dmatrix) {
  for (int u = 0; u < at.count; ++u, x += at.channel, dx += at.channel, g += at.outputs) {
    Vector<T> right[n];
#pragma GCC unroll 8
    for (int k = 0; k < n; ++k) right[k] = g[k];
    for (int i = 0; i < at.inputs; ++i) {
      const Vector<T>* const row = matrix + i * at.outputs;
      Vector<T> h = dx[i * at.component];
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) h += row[k] * right[k];
      dx[i * at.component] = h;
      if (!outer) continue;
      const Vector<T> value = x[i * at.component];
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) dmatrix[i * at.outputs + k] += value * right[k];
    }
  }
}

template <class T>
struct WeightedTileBuffers {
  static constexpr int most_pairs = 128, most_vectors = 384;  // of t, at once: 24 kB
  Vector<T>* operand[operand_count];
  Vector<T>* result[slot_count];
  Vector<T>*t, *t_direction, *g, *g_direction;
  Vector<T>*matrix, *matrix_direction, *dmatrix;
  T* rows;  // of a block of z, by component

  static int most_pairs_of(int components) { return minimum(most_pairs, most_vectors / components / mixed_rows * mixed_rows); }
  WeightedTileBuffers(const WeightedPlan<T>& plan, Scratch<T>& scratch) {
    for (int o = 0; o < operand_count; ++o) operand[o] = scratch.take(plan.dim[slot_of(o)]);
    for (int s = 0; s < slot_count; ++s) result[s] = scratch.take(RowWriter<T>::buffer_vectors(plan.dim[s]));
    for (Vector<T>** staged : {&t, &t_direction, &g, &g_direction}) *staged = scratch.take(most_vectors);
    for (Vector<T>** entries : {&matrix, &matrix_direction, &dmatrix}) *entries = scratch.take(plan.max_entries);
    rows = reinterpret_cast<T*>(scratch.take(plan.max_block + 1));
  }
};

template <class T>
class WeightedTile {
 public:
  WeightedTile(const WeightedPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    doubles_ = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
    differentiates_ = wants(0) || wants(1) || a.weight_out;
    for (int o : {x_direction, y_direction})
      for (int c = 0; doubles_ && !a.in[o] && c < plan.dim[slot_of(o)]; ++c) buffer_.operand[o][c] = Vector<T>{};
  }

  void run(long begin, long end) {
    for (long c = 0; a_.weight_out && c < plan_.weights; ++c) a_.weight_out[c] = 0;
    RowWriter<T> x(a_, 0, plan_.dim[0], buffer_.result[0]), y(a_, 1, plan_.dim[1], buffer_.result[1]), z(a_, 2, plan_.dim[2], buffer_.result[2]);
    gradient_[0] = x.tile(), gradient_[1] = y.tile(), z_ = z.tile();
    for_each_tile<T>(begin, end, a_.stream, [&](const Tile& tile, bool first, bool last) {
      tile_ = tile;
      for (int o = 0; o < operand_count; ++o)
        if (a_.in[o] && (o != z_operand || differentiates_)) load_rows(a_.in[o], a_.stride[slot_of(o)], plan_.dim[slot_of(o)], tile, buffer_.operand[o]);
      for (int s = 0; s < 2; ++s)
        for (int c = 0; differentiates_ && c < plan_.dim[s]; ++c) gradient_[s][c] = Vector<T>{};
      int next = 0;
      for (int b = 0; b < plan_.block_count[2]; ++b) next = run_block(plan_.blocks[2][b], b, next);
      for (RowWriter<T>* writer : {&x, &y, &z}) writer->write(tile, first, last);
    });
    for (RowWriter<T>* writer : {&x, &y, &z}) writer->finish();
  }

 private:
  using Instruction = PlanInstruction<T>;
  static constexpr int most_pairs = WeightedTileBuffers<T>::most_pairs;

  bool wants(int slot) const { return a_.terms.writes[slot]; }

  // Where component i of channel u of a block is in a tile: first + u * channel + i * component.
  struct Place {
    int first, channel, component;
    explicit Place(const PlanBlock& block) : first(block.offset), channel(block.by_component ? 1 : block.components), component(block.by_component ? block.mul : 1) {}
  };
  // Channels of the lane operand, and one of the matrix operand, with whose matrix they are multiplied.
  struct Run {
    const Instruction* in;
    int matrix, lane, lanes;
  };

  // Returns the first instruction of a block behind.
  int run_block(const PlanBlock& block, int index, int next) {
    const int most = WeightedTileBuffers<T>::most_pairs_of(block.components);
    adds_ = false, turned_ = false, count_ = 0, run_count_ = 0;
    for (; next < plan_.instruction_count && plan_.instructions[next].out_block == index; ++next) {
      const Instruction& in = plan_.instructions[next];
      const PlanMix* mix = in.mixes;
      for (int s = 0; s < in.segment_count; ++s) {
        const PlanChannels& channels = in.segments[s];
        while (channels.out >= mix->first + mix->count) ++mix;
        for (int u = 0; u < channels.lanes;) {
          const int lanes = in.same_channel ? 1 : minimum(channels.lanes - u, most - count_);
          runs_[run_count_++] = {&in, in.same_channel ? channels.lane + u : channels.matrix_channel, channels.lane + u, lanes};
          for (const int end = u + lanes; u < end; ++u) row_[count_++] = in.weight + mix->weight + long(channels.out + u - mix->first) * mix->pitch;
          if (count_ == most) run_channels(block);
        }
      }
    }
    if (count_ > 0) run_channels(block);
    for (int c = 0; !adds_ && wants(2) && c < block.mul * block.components; ++c) z_[block.offset + c] = Vector<T>{};
    return next;
  }

  void run_channels(const PlanBlock& block) {
    if (wants(0) || wants(1)) {
      unmix(a_.weight, block, buffer_.g);
      if (a_.weight_direction) unmix(a_.weight_direction, block, buffer_.g_direction);
    }
    long at = 0;
    for (int r = 0; r < run_count_; at += long(runs_[r++].lanes) * block.components) {
      make(*runs_[r].in, runs_[r].matrix);
      multiply_run(runs_[r], at);
      if (wants(1 - runs_[r].in->lane_operand)) contract(*runs_[r].in, runs_[r].matrix);
    }
    const Vector<T>* const t = doubles_ ? buffer_.t_direction : buffer_.t;
    if (wants(2)) mix(a_.weight, t, block, adds_);
    if (wants(2) && a_.weight_direction) mix(a_.weight_direction, buffer_.t, block, true);
    if (a_.weight_out) add_weight_gradient(t, block);
    adds_ = true, count_ = 0, run_count_ = 0;
  }

  void make(const Instruction& in, int channel) {
    const Place place(plan_.blocks[1 - in.lane_operand][in.matrix_block]);
    const auto matrix_of = [&](int operand, Vector<T>* matrix) {
      const Vector<T>* const y = buffer_.operand[operand] + place.first + channel * place.channel;
      const int* component = in.two_components;
      const T* value = in.two_values;
      for (int e = 0; e < in.entries; ++e, component += 2, value += 2)
        matrix[e] = value[0] * y[component[0] * place.component] + value[1] * y[component[1] * place.component];
    };
    matrix_of(1 - in.lane_operand, buffer_.matrix);
    if (doubles_) matrix_of(in.lane_operand == 0 ? y_direction : x_direction, buffer_.matrix_direction);
    for (int e = 0; differentiates_ && e < in.entries; ++e) buffer_.dmatrix[e] = Vector<T>{};
  }
  void contract(const Instruction& in, int channel) {
    const Place place(plan_.blocks[1 - in.lane_operand][in.matrix_block]);
    Vector<T>* const y = gradient_[1 - in.lane_operand] + place.first + channel * place.channel;
    for (int j = 0; j < in.matrix_components; ++j) {
      Vector<T> sum = y[j * place.component];
      for (int n = in.of_component[j]; n < in.of_component[j + 1]; ++n) sum += in.of_component_value[n] * buffer_.dmatrix[in.of_component_entry[n]];
      y[j * place.component] = sum;
    }
  }

  // t_c and, from g_c, the gradients of the lane operand and of M.
  void multiply_run(const Run& run, long at) {
    const Instruction& in = *run.in;
    const Place place(plan_.blocks[in.lane_operand][in.lane_block]);
    const LaneChannels channels{run.lanes, in.inputs, in.outputs, place.channel, place.component};
    const long first = place.first + run.lane * place.channel;
    const Vector<T>* const x = buffer_.operand[in.lane_operand] + first;
    const Vector<T>* const ax = buffer_.operand[in.lane_operand == 0 ? x_direction : y_direction] + first;
    if (wants(2) || a_.weight_out) {
      if (!doubles_ || a_.weight_direction) multiply(in, channels, buffer_.matrix, x, buffer_.t + at, false);
      if (doubles_) multiply(in, channels, buffer_.matrix, ax, buffer_.t_direction + at, false);
      if (doubles_) multiply(in, channels, buffer_.matrix_direction, x, buffer_.t_direction + at, true);
    }
    if (!wants(0) && !wants(1)) return;
    Vector<T>* const dx = gradient_[in.lane_operand] + first;
    if (!doubles_) return differentiate(in, channels, buffer_.matrix, buffer_.g + at, x, dx);
    if (a_.weight_direction) differentiate(in, channels, buffer_.matrix, buffer_.g_direction + at, x, dx);
    differentiate(in, channels, buffer_.matrix_direction, buffer_.g + at, ax, dx);
  }
  // A scalar's matrix is a multiple of the identity: one entry.
  static void multiply(const Instruction& in, const LaneChannels& channels, const Vector<T>* matrix, const Vector<T>* x, Vector<T>* t, bool adds) {
    if (in.copies == 1)
      return for_each_outputs(in.outputs, [&](int first, auto n) EQUITENSOR_LAMBDA { multiply_lanes<T, n>(channels, matrix + first, x, t + first, adds); });
    for (int u = 0; u < channels.count; ++u, x += channels.channel, t += in.copies)
      for (int k = 0; k < in.copies; ++k) t[k] = adds ? t[k] + matrix[0] * x[k * channels.component] : matrix[0] * x[k * channels.component];
  }
  void differentiate(const Instruction& in, const LaneChannels& channels, const Vector<T>* matrix, const Vector<T>* g, const Vector<T>* x, Vector<T>* dx) {
    Vector<T>* const dmatrix = buffer_.dmatrix;
    const bool outer = wants(1 - in.lane_operand);
    if (in.copies == 1)
      return for_each_outputs(in.outputs, [&](int first, auto n) EQUITENSOR_LAMBDA {
        if (outer)
          differentiate_lanes<T, n, true>(channels, matrix + first, g + first, x, dx, dmatrix + first);
        else
          differentiate_lanes<T, n, false>(channels, matrix + first, g + first, x, dx, dmatrix);
      });
    for (int u = 0; u < channels.count; ++u, x += channels.channel, dx += channels.channel, g += in.copies)
      for (int k = 0; k < in.copies; ++k) dx[k * channels.component] += matrix[0] * g[k], dmatrix[0] += x[k * channels.component] * g[k];
  }

  // Calls body(first, rows) with constants, of rows that share what they are multiplied by.
  template <class Body>
  static EQUITENSOR_INLINE void for_each_rows(int count, Body&& body) {
    int r = 0;
    for (; r + mixed_rows <= count; r += mixed_rows) body(r, Int<mixed_rows>{});
    for (; r + 4 <= count; r += 4) body(r, Int<4>{});
    for (; r + 2 <= count; r += 2) body(r, Int<2>{});
    if (r < count) body(r, Int<1>{});
  }
  // Likewise of 3, 2, or a single component.
  template <class Body>
  static EQUITENSOR_INLINE void for_each_columns(int count, Body&& body) {
    int k = 0;
    for (; count - k == 3 || count - k > 4; k += 3) body(k, Int<3>{});
    for (; count - k >= 2; k += 2) body(k, Int<2>{});
    if (k < count) body(k, Int<1>{});
  }
  void mix(const T* weights, const Vector<T>* t, const PlanBlock& block, bool adds) {
    const Place place(block);
    for_each_rows(block.mul, [&](int w, auto rows) EQUITENSOR_LAMBDA {
      for_each_columns(block.components, [&](int k, auto n) EQUITENSOR_LAMBDA {
        mix_channels<rows, n>(weights + w, row_, count_, t + k, block.components, z_ + place.first + w * place.channel + k * place.component, place.channel, place.component, adds);
      });
    });
  }
  void unmix(const T* weights, const PlanBlock& block, Vector<T>* g) {
    const Place place(block);
    for_each_rows(count_, [&](int c, auto rows) EQUITENSOR_LAMBDA {
      for_each_columns(block.components, [&](int k, auto n) EQUITENSOR_LAMBDA {
        unmix_channels<rows, n>(weights, row_ + c, block.mul, buffer_.operand[z_operand] + place.first + k * place.component, place.channel, place.component,
                                g + c * block.components + k, block.components);
      });
    });
  }
  void add_weight_gradient(const Vector<T>* t, const PlanBlock& block) {
    const T* z = a_.in[z_operand] + tile_.first * a_.stride[2] + block.offset;
    long step = tile_.step * a_.stride[2];
    if (!block.by_component) {
      const long n = long(block.components) * block.mul;
      for (int lane = 0; !turned_ && lane < tile_.count; ++lane) turn_block<true>(z + lane * step, block, buffer_.rows + lane * n);
      turned_ = true, z = buffer_.rows, step = n;
    }
    for_each_rows(count_, [&](int c, auto rows) EQUITENSOR_LAMBDA {
      add_outer_rows<rows>(reinterpret_cast<const T*>(t + c * block.components), z, step, block.mul, tile_.count, block.components, a_.weight_out, row_ + c, block.mul);
    });
  }

  const WeightedPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  WeightedTileBuffers<T> buffer_;
  bool doubles_, differentiates_;  // with directions; results beside z
  Tile tile_;
  Vector<T> *gradient_[2], *z_;
  // Of the block at hand: pairs of channels that wait, and where their rows of weights begin; whether there were some before, and buffer_.rows holds the block of z.
  Run runs_[most_pairs];
  long row_[most_pairs];
  int run_count_, count_;
  bool adds_, turned_;
};

template <class T>
void weighted_tiles(const WeightedPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  WeightedTile<T>(plan, a, memory).run(begin, end);
  stream_fence();
}
template <class T>
long weighted_tiles_scratch(const WeightedPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  WeightedTileBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_weighted_tiles(TypedKernels<T>& k) { k.weighted_tiles = {weighted_tiles<T>, weighted_tiles_scratch<T>}; }
template void add_weighted_tiles(TypedKernels<float>&);
template void add_weighted_tiles(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
