// Weighted tensor product, an item at a time: lanes are channels, which lie side by side in ir_mul and are brought there from mul_ir. Once an
// item a channel of one operand makes the matrices M of its instructions; then t_k = sum_i M_ik x_i for all channels of the other operand, a
// multiply-add a nonzero of M. Backwards h_i = sum_k M_ik dz_k gives the gradients of x, w h, and of the weights, sum_i x_i h_i, and
// dM_ik = sum_u (w x)_i dz_k is contracted with the coefficients once an item.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// ---- vectors of channels

template <class T>
struct Whole {
  EQUITENSOR_INLINE Vector<T> load(const T* p) const { return equitensor::load(p); }
  EQUITENSOR_INLINE void store(T* p, Vector<T> v) const { equitensor::store(p, v); }
};
template <class T>
struct Part {
  int n;
  EQUITENSOR_INLINE Vector<T> load(const T* p) const { return load_partial(p, n); }
  EQUITENSOR_INLINE void store(T* p, Vector<T> v) const { store_partial(p, v, n); }
};
// Calls body(channel, Whole or Part) for every vector of `lanes` channels.
template <class T, class Body>
EQUITENSOR_INLINE void for_each_vector(int lanes, Body&& body) {
  int c = 0;
  for (; c + width<T> <= lanes; c += width<T>) body(c, Whole<T>{});
  if (c < lanes) body(c, Part<T>{lanes - c});
}

// An entry of a matrix that all channels share, or that is a vector of theirs.
template <class T>
EQUITENSOR_INLINE Vector<T> entry(T e) { return splat(e); }
template <class T>
EQUITENSOR_INLINE Vector<T> entry(Vector<T> e) { return e; }

// out[columns][rows] = in[rows][columns]
template <class T>
inline void transpose_matrix(const T* in, long in_pitch, int rows, int columns, T* out, long out_pitch) {
  constexpr int w = width<T>;
  for (int r = 0; r < rows; r += w)
    for (int c = 0; c < columns; c += w) {
      const int height = minimum(w, rows - r), breadth = minimum(w, columns - c);
      Vector<T> block[w];
      for (int i = 0; i < w; ++i) {
        const T* row = in + (r + minimum(i, height - 1)) * in_pitch + c;
        block[i] = breadth == w ? load(row) : load_partial(row, breadth);
      }
      transpose<T>(block);
      for (int i = 0; i < breadth; ++i) {
        T* to = out + (c + i) * out_pitch + r;
        if (height == w)
          store(to, block[i]);
        else
          store_partial(to, block[i], height);
      }
    }
}

// ---- products with M

// Component i of channel c lies at at[i * pitch + c].
template <class T>
struct ChannelView {
  const T* at;
  long pitch;
};

// out (+)= scale * sum over n entries of M, of one output.
template <int n, class T, class M>
EQUITENSOR_NOINLINE void sum_row(const M* matrix, const int* input, ChannelView<T> x, const T* scale, T* out, bool adds, int lanes) {
  if constexpr (n == 0) {
    if (!adds) for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA { part.store(out + c, Vector<T>{}); });
  } else {
    Vector<T> m[n];
    const T* from[n];
#pragma GCC unroll 8
    for (int s = 0; s < n; ++s) m[s] = entry<T>(matrix[s]), from[s] = x.at + input[s] * x.pitch;
    for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
      Vector<T> sum{};
#pragma GCC unroll 8
      for (int s = 0; s < n; ++s) sum += m[s] * part.load(from[s] + c);
      if (scale) sum = part.load(scale + c) * sum;
      if (adds) sum = part.load(out + c) + sum;
      part.store(out + c, sum);
    });
  }
}
// All outputs of one segment.
template <class T, class M>
inline void sum_rows(const PlanInstruction<T>& instruction, const M* matrix, ChannelView<T> x, const T* scale, T* out, long out_pitch, bool adds, int lanes) {
  for (int g = 0; g < instruction.row_groups; ++g) {
    const PlanGroup& group = instruction.rows[g];
    const M* m = matrix + group.first;
    const int* input = instruction.input + group.first;
    T* to = out + group.component * out_pitch;
    const bool add = adds || group.adds;
    switch (group.count) {
      case 0: sum_row<0>(m, input, x, scale, to, add, lanes); break;
      case 1: sum_row<1>(m, input, x, scale, to, add, lanes); break;
      case 2: sum_row<2>(m, input, x, scale, to, add, lanes); break;
      case 3: sum_row<3>(m, input, x, scale, to, add, lanes); break;
      case 4: sum_row<4>(m, input, x, scale, to, add, lanes); break;
      case 5: sum_row<5>(m, input, x, scale, to, add, lanes); break;
      case 6: sum_row<6>(m, input, x, scale, to, add, lanes); break;
      case 7: sum_row<7>(m, input, x, scale, to, add, lanes); break;
      case 8: sum_row<8>(m, input, x, scale, to, add, lanes); break;
    }
  }
}

// Of one input i, for the channels of a segment: h = sum_k M_ik z_k; dx += s h; dw += t h; dM_ik += p z_k.
template <class T>
struct Column {
  const T *s, *t, *p;
  T *dx, *dw;
};
template <int n, bool gradient, bool outer, class T, class M>
EQUITENSOR_NOINLINE void update_column(const M* matrix, const int* entries, const int* outputs, ChannelView<T> z, const Column<T>& a, Vector<T>* dmatrix, int lanes) {
  Vector<T> m[n], sum[n];
  const T* from[n];
#pragma GCC unroll 8
  for (int e = 0; e < n; ++e) {
    from[e] = z.at + outputs[e] * z.pitch;
    if (gradient) m[e] = entry<T>(matrix[entries[e]]);
    if (outer) sum[e] = dmatrix[entries[e]];
  }
  for_each_vector<T>(lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> h{}, p{};
    if (outer) p = part.load(a.p + c);
#pragma GCC unroll 8
    for (int e = 0; e < n; ++e) {
      const Vector<T> value = part.load(from[e] + c);
      if (gradient) h += m[e] * value;
      if (outer) sum[e] += p * value;
    }
    if (gradient) {
      part.store(a.dx + c, part.load(a.dx + c) + part.load(a.s + c) * h);
      part.store(a.dw + c, part.load(a.dw + c) + part.load(a.t + c) * h);
    }
  });
#pragma GCC unroll 8
  for (int e = 0; e < n; ++e)
    if (outer) dmatrix[entries[e]] = sum[e];
}
template <bool gradient, bool outer, class T, class M>
inline void update_group(const PlanInstruction<T>& instruction, const PlanGroup& group, const M* matrix, ChannelView<T> z, const Column<T>& a,
                         Vector<T>* dmatrix, int lanes) {
  const int *entries = instruction.by_input + group.first, *outputs = instruction.by_input_output + group.first;
  switch (group.count) {
    case 1: update_column<1, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 2: update_column<2, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 3: update_column<3, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 4: update_column<4, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 5: update_column<5, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 6: update_column<6, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 7: update_column<7, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
    case 8: update_column<8, gradient, outer>(matrix, entries, outputs, z, a, dmatrix, lanes); break;
  }
}

// ---- products with weights: out (+)= a b, where a[r][d] lies at a[r * a_row + d * a_column].

template <int rows, int vectors, class T>
EQUITENSOR_NOINLINE void multiply_columns(const T* a, long a_row, long a_column, const T* b, long b_pitch, int depth, T* out, long out_pitch, bool adds, int columns) {
  for_each_vector<T>(columns, [&](int c, auto part) EQUITENSOR_LAMBDA {
    Vector<T> sum[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) sum[r] = adds ? part.load(out + r * out_pitch + c) : Vector<T>{};
    for (int d = 0; d < depth; ++d) {
      const Vector<T> right = part.load(b + d * b_pitch + c);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) sum[r] += a[r * a_row + d * a_column] * right;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) part.store(out + r * out_pitch + c, sum[r]);
  });
}
template <class T>
inline void multiply(const T* a, long a_row, long a_column, int rows, const T* b, long b_pitch, int depth, int columns, T* out, long out_pitch, bool adds) {
  for (; rows > 0; rows -= 4, a += 4 * a_row, out += 4 * out_pitch) switch (rows) {
      case 1: multiply_columns<1, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
      case 2: multiply_columns<2, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
      case 3: multiply_columns<3, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
      default: multiply_columns<4, 1>(a, a_row, a_column, b, b_pitch, depth, out, out_pitch, adds, columns); break;
    }
}

// ---- results

// Writes the rows of a result from begin to end. Streamed, every line is written once and whole: what does not fill one waits for what follows.
template <class T>
class RowStream {
 public:
  RowStream(T* to, bool streams, bool accumulates) : to_(to), streams_(streams), accumulates_(accumulates) {
    if (to) head_ = int((64 - reinterpret_cast<uintptr_t>(to) % 64) % 64 / sizeof(T));
  }
  // `line` elements in front of `from` are overwritten.
  void append(T* from, int n) {
    if (!streams_) {
      for_each_vector<T>(n, [&](int c, auto part) EQUITENSOR_LAMBDA {
        part.store(to_ + c, accumulates_ ? part.load(to_ + c) + part.load(from + c) : part.load(from + c));
      });
      to_ += n;
      return;
    }
    for (; head_ > 0 && n > 0; --head_, --n) *to_++ = *from++;  // the line's beginning is somebody else's
    for (int i = 0; i < carried_; ++i) from[i - carried_] = carry_[i];
    from -= carried_, n += carried_;
    for (; n >= line<T>; n -= line<T>, from += line<T>, to_ += line<T>)
#pragma GCC unroll 4
      for (int v = 0; v < line<T>; v += width<T>) stream(to_ + v, load(from + v));
    for (carried_ = 0; carried_ < n; ++carried_) carry_[carried_] = from[carried_];
  }
  void finish() {
    for (int i = 0; i < carried_; ++i) to_[i] = carry_[i];
    to_ += carried_;
    carried_ = 0;
  }

 private:
  T* to_;
  bool streams_, accumulates_;
  int head_ = 0, carried_ = 0;
  T carry_[line<T>];
};

// ---- an item

template <class T>
struct WeightedBuffers {
  T *lanes[operand_count];            // blocks that lie by channel in the row, by component; of z one block at a time
  T *turned, *turned_direction;       // weights, transposed where an instruction wants them so
  T *ones, *zeros, *unused;
  T *matrix, *matrix_direction;
  Vector<T> *matrices, *matrices_direction, *dmatrix;
  T *p, *q, *t, *t_direction, *g, *g_direction;
  T *z, *row;                         // a block of the result, and what is about to be written, `line` elements behind the beginning
  T *gradient[2], *weight_gradient;
  Vector<T>* sums[2];                 // of a matrix operand: the lanes of its gradient are still to be added up
  WeightedBuffers(const WeightedPlan<T>& plan, Scratch<T>& scratch) {
    const auto take = [&](long n) { return reinterpret_cast<T*>(scratch.take((n + width<T> - 1) / width<T> + 1)); };
    for (int o = 0; o < operand_count; ++o) lanes[o] = take(o == z_operand ? plan.max_block : plan.dim[slot_of(o)]);
    turned = take(plan.weights), turned_direction = take(plan.weights);
    for (T** constant : {&ones, &zeros, &unused}) *constant = take(plan.max_lanes);
    matrix = take(plan.max_pitch), matrix_direction = take(plan.max_pitch);
    for (Vector<T>** entries : {&matrices, &matrices_direction, &dmatrix}) *entries = scratch.take(plan.max_entries);
    for (T** staged : {&p, &q, &t, &t_direction, &g, &g_direction}) *staged = take(plan.max_staged);
    z = take(line<T> + plan.max_block) + line<T>;
    row = take(line<T> + maximum(maximum(plan.dim[0], plan.dim[1]), maximum(plan.max_block, plan.weights))) + line<T>;
    for (int s = 0; s < 2; ++s) gradient[s] = take(plan.dim[s]), sums[s] = scratch.take(plan.makes_matrices[s] ? plan.dim[s] : 0);
    weight_gradient = take(plan.weights);
  }
};

template <class T>
class WeightedItem {
 public:
  WeightedItem(const WeightedPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    for (int c = 0; c < plan.max_lanes; ++c) buffer_.ones[c] = 1, buffer_.zeros[c] = 0, buffer_.unused[c] = 0;
    differentiates_ = wants(0) || wants(1) || a.weight_out;
    doubles_ = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
    for (int s = 0; s < 2; ++s) clear_gradient(s);
    clear_weight_gradient();
  }

  void run(long begin, long end) {
    RowStream<T> x = writer(0, begin), y = writer(1, begin), z = writer(2, begin);
    RowStream<T> w(a_.weight_out ? a_.weight_out + begin * a_.weight_stride : nullptr, a_.stream && !a_.weight_sum, a_.accumulate && !a_.weight_sum);
    for (long item = begin; item < end; ++item) {
      take(item, item == begin);
      run_instructions(z);
      const bool last = item + 1 == end;
      if (wants(0) && (last || !a_.sum[0])) write_gradient(0, x);
      if (wants(1) && (last || !a_.sum[1])) write_gradient(1, y);
      if (a_.weight_out && (last || !a_.weight_sum)) write_weight_gradient(w);
    }
    for (RowStream<T>* result : {&x, &y, &z, &w}) result->finish();
  }

 private:
  using Instruction = PlanInstruction<T>;
  using View = ChannelView<T>;

  bool wants(int slot) const { return a_.terms.writes[slot]; }
  RowStream<T> writer(int slot, long begin) const {
    return {wants(slot) ? a_.out[slot] + (a_.sum[slot] ? 0 : begin * a_.stride[slot]) : nullptr, a_.stream && !a_.sum[slot], a_.accumulate && !a_.sum[slot]};
  }

  // Points to the item's rows, and brings what lies by channel to lie by component.
  void take(long item, bool first) {
    for (int o : {x_operand, y_operand, z_operand, x_direction, y_direction}) {
      const int s = slot_of(o);
      if (!a_.in[o]) continue;
      row_[o] = a_.in[o] + item * a_.stride[s];
      if (o == z_operand || (!first && a_.stride[s] == 0)) continue;
      for (int b = 0; b < plan_.block_count[s]; ++b) {
        const PlanBlock& block = plan_.blocks[s][b];
        if (!block.by_component)
          transpose_matrix(row_[o] + block.offset, block.components, block.mul, block.components, buffer_.lanes[o] + block.offset, block.mul);
      }
    }
    if (a_.weight) weight_ = a_.weight + item * a_.weight_stride;
    if (a_.weight_direction) weight_direction_ = a_.weight_direction + item * a_.weight_stride;
    if (!first && a_.weight_stride == 0) return;
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      if (in.weight < 0 || !(in.weight_columns || (in.mixed && differentiates_))) continue;
      turn(in, weight_, buffer_.turned);
      if (weight_direction_) turn(in, weight_direction_, buffer_.turned_direction);
    }
  }
  void turn(const Instruction& in, const T* weights, T* turned) {
    if (in.weight_columns) {
      const int rows = in.weights / in.weight_columns;
      transpose_matrix(weights + in.weight, in.weight_columns, rows, in.weight_columns, turned + in.weight, rows);
    }
    for (int m = 0; m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      transpose_matrix(weights + in.weight + mix.weight, mix.pitch, mix.count, in.mixed, turned + in.weight + mix.first, in.channels);
    }
  }

  View view(int operand, int block_index) const {
    const PlanBlock& block = plan_.blocks[slot_of(operand)][block_index];
    if (!a_.in[operand]) return {buffer_.zeros, 0};
    return {(block.by_component ? row_[operand] : buffer_.lanes[operand]) + block.offset, block.mul};
  }
  View lane_view(const Instruction& in, bool direction) const {
    return view(direction ? (in.lane_operand == 0 ? x_direction : y_direction) : in.lane_operand, in.lane_block);
  }
  View matrix_view(const Instruction& in, bool direction) const {
    return view(direction ? (in.lane_operand == 0 ? y_direction : x_direction) : 1 - in.lane_operand, in.matrix_block);
  }
  // Of a segment: a weight a channel.
  const T* weights_of(const Instruction& in, const PlanChannels& channels) const {
    if (in.weight < 0) return buffer_.ones;
    return (in.weight_columns ? buffer_.turned : weight_) + in.weight + channels.weight;
  }
  const T* weight_directions_of(const Instruction& in, const PlanChannels& channels) const {
    if (in.weight < 0 || !weight_direction_) return buffer_.zeros;
    return (in.weight_columns ? buffer_.turned_direction : weight_direction_) + in.weight + channels.weight;
  }

  template <class Body>
  EQUITENSOR_INLINE void for_each_segment(const Instruction& in, Body&& body) {
    if (in.same_channel) {
      const int mul = in.segments[0].lanes;
      for (int c = 0; c < mul; c += width<T>) body(PlanChannels{0, c, minimum(width<T>, mul - c), c, c, false});
    } else {
      for (int s = 0; s < in.segment_count; ++s) body(in.segments[s]);
    }
  }

  void make_matrix(const Instruction& in, const PlanChannels& channels, View from, T* matrix) const {
    for (int e = 0; e < in.pitch; e += width<T>) {
      Vector<T> sum{};
      for (int j = 0; j < in.matrix_components; ++j) sum += from.at[j * from.pitch + (from.pitch ? channels.matrix_channel : 0)] * load(in.coefficients + j * in.pitch + e);
      store(matrix + e, sum);
    }
  }
  void make_matrix(const Instruction& in, const PlanChannels& channels, View from, Vector<T>* matrix) const {
    for (int e = 0; e < in.entries; ++e) {
      Vector<T> sum{};
      for (int n = in.of_entry[e]; n < in.of_entry[e + 1]; ++n)
        sum += in.of_entry_value[n] * load_channels(from.at + in.of_entry_component[n] * from.pitch + channels.lane, channels.lanes);
      matrix[e] = sum;
    }
  }
  static EQUITENSOR_INLINE Vector<T> load_channels(const T* p, int lanes) { return lanes == width<T> ? load(p) : load_partial(p, lanes); }

  // The gradient of the matrix operand.
  void contract_matrix(const Instruction& in, const PlanChannels& channels) {
    const int slot = 1 - in.lane_operand;
    const PlanBlock& block = plan_.blocks[slot][in.matrix_block];
    for (int j = 0; j < in.matrix_components; ++j) {
      Vector<T>* sums = buffer_.sums[slot] + block.offset + j * block.mul + channels.matrix_channel;
      T* gradient = buffer_.gradient[slot] + block.offset + j * block.mul + channels.lane;
      Vector<T> sum = in.same_channel ? load_channels(gradient, channels.lanes) : *sums;
      for (int n = in.of_component[j]; n < in.of_component[j + 1]; ++n) sum += in.of_component_value[n] * buffer_.dmatrix[in.of_component_entry[n]];
      if (!in.same_channel)
        *sums = sum;
      else if (channels.lanes == width<T>)
        store(gradient, sum);
      else
        store_partial(gradient, sum, channels.lanes);
    }
  }

  // ---- instructions

  void run_instructions(RowStream<T>& result) {
    int next = 0;
    for (int b = 0; b < plan_.block_count[2]; ++b) {
      const PlanBlock& block = plan_.blocks[2][b];
      const int n = block.mul * block.components;
      const bool empty = next == plan_.instruction_count || plan_.instructions[next].out_block != b;
      View z{nullptr, block.mul};
      if (differentiates_ && !empty) {
        z.at = row_[z_operand] + block.offset;
        if (!block.by_component) {
          transpose_matrix(z.at, block.components, block.mul, block.components, buffer_.lanes[z_operand], block.mul);
          z.at = buffer_.lanes[z_operand];
        }
      }
      for (; next < plan_.instruction_count && plan_.instructions[next].out_block == b; ++next) {
        const Instruction& in = plan_.instructions[next];
        if (in.same_channel)
          run_instruction(in, z, buffer_.matrices, buffer_.matrices_direction);
        else
          run_instruction(in, z, buffer_.matrix, buffer_.matrix_direction);
      }
      if (!wants(2)) continue;
      for (int c = 0; empty && c < n; ++c) buffer_.z[c] = 0;
      if (block.by_component) {
        result.append(buffer_.z, n);
      } else {
        transpose_matrix(buffer_.z, block.mul, block.components, block.mul, buffer_.row, block.components);
        result.append(buffer_.row, n);
      }
    }
  }

  template <class M>
  void run_instruction(const Instruction& in, View z, M* matrix, M* matrix_direction) {
    const View x = lane_view(in, false), ax = lane_view(in, true), y = matrix_view(in, false), ay = matrix_view(in, true);
    const bool weighted = in.weight >= 0, directed = weighted && weight_direction_;
    if (in.mixed && differentiates_) {  // the gradient of t: times the weights, and times their direction
      unmix(in, z, weighted ? buffer_.turned + in.weight : buffer_.ones, buffer_.g);
      if (directed) unmix(in, z, buffer_.turned_direction + in.weight, buffer_.g_direction);
    }
    for_each_segment(in, [&](const PlanChannels& s) {
      make_matrix(in, s, y, matrix);
      if (doubles_) make_matrix(in, s, ay, matrix_direction);
      const View xs = segment(x, s), axs = segment(ax, s), zs{z.at + s.out, z.pitch};
      if (differentiates_)
        for (int e = 0; e < in.entries; ++e) buffer_.dmatrix[e] = Vector<T>{};
      if (in.mixed)
        run_mixed(in, s, matrix, matrix_direction, xs, axs, directed);
      else if (doubles_)
        run_doubly(in, s, matrix, matrix_direction, xs, axs, zs);
      else
        run_singly(in, s, matrix, xs, zs);
      if (wants(1 - in.lane_operand)) contract_matrix(in, s);
    });
    if (!in.mixed) return;
    const int mul = plan_.blocks[2][in.out_block].mul;
    const T* t = doubles_ ? buffer_.t_direction : buffer_.t;
    if (wants(2)) {
      mix(in, t, weighted ? weight_ + in.weight : buffer_.ones, mul, in.adds);
      if (directed) mix(in, buffer_.t, weight_direction_ + in.weight, mul, true);
    }
    for (int m = 0; a_.weight_out && m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      T* dw = weighted ? buffer_.weight_gradient + in.weight + mix.weight : buffer_.unused;
      multiply(t + mix.first, 1L, in.channels, mix.count, z.at, z.pitch, in.outputs, in.mixed, dw, mix.pitch, true);
    }
  }
  static EQUITENSOR_INLINE View segment(View x, const PlanChannels& s) { return {x.at + (x.pitch ? s.lane : 0), x.pitch}; }

  template <class M>
  void run_singly(const Instruction& in, const PlanChannels& s, const M* matrix, View x, View z) {
    const T* w = weights_of(in, s);
    if (wants(2)) sum_rows<T>(in, matrix, x, in.weight < 0 ? nullptr : w, buffer_.z + s.out, z.pitch, in.adds || s.adds, s.lanes);
    if (!differentiates_) return;
    for (int i = 0; i < in.inputs; ++i)
      for_each_vector<T>(s.lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
        part.store(buffer_.p + i * s.lanes + c, part.load(w + c) * part.load(x.at + i * x.pitch + c));
      });
    update(in, s, matrix, z, w, x, View{buffer_.p, s.lanes});
  }

  // The sum of the terms with the directions of x, y and w: of z, M p + M' q with p = w ax + aw x and q = w x.
  template <class M>
  void run_doubly(const Instruction& in, const PlanChannels& s, const M* matrix, const M* matrix_direction, View x, View ax, View z) {
    const T *w = weights_of(in, s), *aw = weight_directions_of(in, s);
    const View p{buffer_.p, s.lanes}, q{buffer_.q, s.lanes};
    for (int i = 0; i < in.inputs; ++i)
      for_each_vector<T>(s.lanes, [&](int c, auto part) EQUITENSOR_LAMBDA {
        const Vector<T> value = part.load(x.at + i * x.pitch + c), weight = part.load(w + c);
        part.store(buffer_.q + i * s.lanes + c, weight * value);
        part.store(buffer_.p + i * s.lanes + c, weight * part.load(ax.at + i * ax.pitch + c) + part.load(aw + c) * value);
      });
    if (wants(2)) {
      sum_rows<T>(in, matrix, p, nullptr, buffer_.z + s.out, z.pitch, in.adds || s.adds, s.lanes);
      sum_rows<T>(in, matrix_direction, q, nullptr, buffer_.z + s.out, z.pitch, true, s.lanes);
    }
    if (!differentiates_) return;
    update(in, s, matrix, z, aw, ax, p);
    update(in, s, matrix_direction, z, w, x, View{nullptr, 0});
  }

  template <class M>
  void run_mixed(const Instruction& in, const PlanChannels& s, const M* matrix, const M* matrix_direction, View x, View ax, bool directed) {
    const View ones{buffer_.ones, 0}, g{buffer_.g + s.out, in.channels}, g_direction{buffer_.g_direction + s.out, in.channels};
    const bool wants_t = wants(2) || a_.weight_out;
    if (wants_t && (!doubles_ || directed)) sum_rows<T>(in, matrix, x, nullptr, buffer_.t + s.out, in.channels, false, s.lanes);
    if (wants_t && doubles_) {
      sum_rows<T>(in, matrix, ax, nullptr, buffer_.t_direction + s.out, in.channels, false, s.lanes);
      sum_rows<T>(in, matrix_direction, x, nullptr, buffer_.t_direction + s.out, in.channels, true, s.lanes);
    }
    if (!differentiates_) return;
    if (!doubles_) return update(in, s, matrix, g, ones.at, ones, x);
    if (directed) update(in, s, matrix, g_direction, ones.at, ones, x);
    update(in, s, matrix_direction, g, ones.at, ones, ax);
  }

  // Behind the instruction's segments: the output's channels from those of t, with the weights, and back with the transposed ones.
  void mix(const Instruction& in, const T* t, const T* weights, int mul, bool adds) {
    for (int m = 0; m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      multiply(t + mix.first, in.channels, 1L, in.outputs, weights + mix.weight, mix.pitch, mix.count, in.mixed, buffer_.z, mul, adds || m > 0);
    }
  }
  void unmix(const Instruction& in, View z, const T* turned, T* g) {
    multiply(z.at, z.pitch, 1L, in.outputs, turned, in.channels, in.mixed, in.channels, g, in.channels, false);
  }

  // Of all inputs of a segment: see Column.
  template <class M>
  void update(const Instruction& in, const PlanChannels& s, const M* matrix, View z, const T* scale, View t, View p) {
    const bool gradient = wants(in.lane_operand) || a_.weight_out, outer = wants(1 - in.lane_operand) && p.at;
    const PlanBlock& lane_block = plan_.blocks[in.lane_operand][in.lane_block];
    T* dx = buffer_.gradient[in.lane_operand] + lane_block.offset + s.lane;
    T* dw = in.weight < 0 || in.mixed ? buffer_.unused : buffer_.weight_gradient + in.weight + s.weight;
    for (int g = 0; g < in.column_groups; ++g) {
      const PlanGroup& group = in.columns[g];
      const int i = group.component;
      const Column<T> column{scale, t.at + i * t.pitch, p.at + i * p.pitch, dx + i * lane_block.mul, dw};
      if (gradient && outer)
        update_group<true, true>(in, group, matrix, z, column, buffer_.dmatrix, s.lanes);
      else if (gradient)
        update_group<true, false>(in, group, matrix, z, column, buffer_.dmatrix, s.lanes);
      else if (outer)
        update_group<false, true>(in, group, matrix, z, column, buffer_.dmatrix, s.lanes);
    }
  }

  void clear_gradient(int slot) {
    for (int c = 0; c < plan_.dim[slot]; ++c) buffer_.gradient[slot][c] = 0;
    for (int c = 0; plan_.makes_matrices[slot] && c < plan_.dim[slot]; ++c) buffer_.sums[slot][c] = Vector<T>{};
  }
  void clear_weight_gradient() {
    for (int c = 0; c < plan_.weights; ++c) buffer_.weight_gradient[c] = 0;
  }

  void write_gradient(int slot, RowStream<T>& result) {
    constexpr int w = width<T>;
    const int n = plan_.dim[slot];
    T* gradient = buffer_.gradient[slot];
    for (int c = 0; plan_.makes_matrices[slot] && c < n; c += w) {
      Vector<T> lanes[w];
      for (int i = 0; i < w; ++i) lanes[i] = buffer_.sums[slot][minimum(c + i, n - 1)];
      transpose<T>(lanes);
#pragma GCC unroll 4
      for (int distance = w / 2; distance > 0; distance /= 2)
        for (int i = 0; i < distance; ++i) lanes[i] += lanes[i + distance];
      if (c + w <= n)
        store(gradient + c, load(gradient + c) + lanes[0]);
      else
        store_partial(gradient + c, load_partial(gradient + c, n - c) + lanes[0], n - c);
    }
    for (int b = 0; b < plan_.block_count[slot]; ++b) {
      const PlanBlock& block = plan_.blocks[slot][b];
      T* row = buffer_.row + block.offset;
      if (block.by_component)
        for (int c = 0; c < block.mul * block.components; ++c) row[c] = gradient[block.offset + c];
      else
        transpose_matrix(gradient + block.offset, block.mul, block.components, block.mul, row, block.components);
    }
    result.append(buffer_.row, n);
    clear_gradient(slot);
  }

  void write_weight_gradient(RowStream<T>& result) {
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      if (in.weight < 0 || !in.weight_columns) continue;
      T* gradient = buffer_.weight_gradient + in.weight;
      const int rows = in.weights / in.weight_columns;
      transpose_matrix(gradient, rows, in.weight_columns, rows, buffer_.row, in.weight_columns);
      for (int c = 0; c < in.weights; ++c) gradient[c] = buffer_.row[c];
    }
    for (int c = 0; c < plan_.weights; ++c) buffer_.row[c] = buffer_.weight_gradient[c];
    result.append(buffer_.row, plan_.weights);
    clear_weight_gradient();
  }

  const WeightedPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  WeightedBuffers<T> buffer_;
  bool differentiates_, doubles_;  // results beside z; with directions
  const T* row_[operand_count] = {};
  const T *weight_ = nullptr, *weight_direction_ = nullptr;
};

template <class T>
void weighted(const WeightedPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  WeightedItem<T>(plan, a, memory).run(begin, end);
  stream_fence();
}

template <class T>
long weighted_scratch(const WeightedPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  WeightedBuffers<T> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_weighted(TypedKernels<T>& k) {
  k.weighted = {weighted<T>, weighted_scratch<T>};
}
template void add_weighted(TypedKernels<float>&);
template void add_weighted(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
