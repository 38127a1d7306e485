// Weighted tensor product, an item at a time: lanes are channels, which lie side by side in ir_mul and are brought there from mul_ir. Every
// channel of one operand makes a matrix M_ik = sum_j C_ijk y_j an instruction; then t_k = sum_i M_ik x_i for all channels of the other operand.
// Backwards h_i = sum_k M_ik dz_k gives the gradients of x, w h, and of the weights, sum_i x_i h_i: N multiply-adds instead of two times N for a
// matrix of N entries. dM_ik = sum_u (w x)_i dz_k is contracted with the coefficients once an item.
#include "cpu/channelwise.hpp"
#include "cpu/kernels.hpp"
#include "cpu/weighted_products.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
struct WeightedBuffers {
  T *lanes[operand_count];            // blocks that lie by channel in the row, by component; of z one block at a time, but for nodes
  T *turned, *turned_direction;       // weights of instructions that want them transposed
  T *ones, *zeros, *unused;
  T *matrix, *matrix_direction, *edge_matrices, *edge_matrix_directions;
  Vector<T> *matrices, *matrices_direction, *dmatrix;
  T *t, *t_direction, *g, *g_direction;
  T *z, *row;                         // a block of the result, and what is about to be written
  long weight_pitch;
  T* node;                            // of a convolution: the result that is summed over a node's edges, by component
  T *gradient[2], *weight_gradient;   // of weights a row for every edge of a group
  Vector<T>* sums[2];                 // of a matrix operand: the lanes of its gradient are still to be added up; of y for every edge
  T *x_rows, *ax_rows, *dx_rows;      // of a group's edges, aligned
  long x_pitch;
  T* entry_sums;                      // dM of a group's edges, its lanes added up
  ChannelwisePath<T>* paths;
  WeightedBuffers(const WeightedPlan<T>& plan, Scratch<T>& scratch) {
    const auto vectors = [](long n) { return (n + width<T> - 1) / width<T>; };
    const auto take = [&](long n) { return reinterpret_cast<T*>(scratch.take(vectors(n) + 1)); };
    for (int o = 0; o < operand_count; ++o) lanes[o] = take(plan.dim[slot_of(o)]);
    turned = take(plan.weights), turned_direction = take(plan.weights);
    for (T** constant : {&ones, &zeros, &unused}) *constant = take(plan.max_lanes);
    constexpr int edges = EdgeGroup<T>::most;
    matrix = take(plan.max_pitch), matrix_direction = take(plan.max_pitch);
    for (T** of_edges : {&edge_matrices, &edge_matrix_directions, &entry_sums}) *of_edges = take(edges * long(plan.max_pitch));
    for (Vector<T>** entries : {&matrices, &matrices_direction}) *entries = scratch.take(plan.max_entries);
    dmatrix = scratch.take(edges * long(plan.max_entries));
    for (T** staged : {&t, &t_direction, &g, &g_direction}) *staged = take(plan.max_staged);
    z = take(plan.max_block), node = take(plan.dim[2]);
    row = take(maximum(maximum(plan.dim[0], plan.dim[1]), maximum(plan.max_block, plan.weights)));
    for (int s = 0; s < 2; ++s) gradient[s] = take(plan.dim[s]), sums[s] = scratch.take(plan.makes_matrices[s] ? (s == 1 ? edges : 1) * plan.dim[s] : 0);
    x_pitch = vectors(plan.dim[0]) * width<T>;
    for (T** of_edges : {&x_rows, &ax_rows, &dx_rows}) *of_edges = take((plan.mixes ? 0 : edges) * x_pitch);
    paths = take_paths(plan, scratch);
    weight_pitch = vectors(plan.weights) * width<T>;
    weight_gradient = take((plan.mixes ? 1 : edges) * weight_pitch);
  }
};

template <class T>
class WeightedItem {
 public:
  WeightedItem(const WeightedPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    for (int c = 0; c < plan.max_lanes; ++c) buffer_.ones[c] = 1, buffer_.zeros[c] = 0, buffer_.unused[c] = 0;
    differentiates_ = wants(0) || wants(1) || a.weight_out;
    doubles_ = a.in[x_direction] || a.in[y_direction] || a.weight_direction;
    gradient_adds_[0] = a.sum[0], gradient_adds_[1] = a.sum[1];
    // Results beside z go by groups of edges in the order of the receivers, and where x's channels are the lanes.
    groups_ = a.sweep && !plan.mixes && (differentiates_ ? a.sweep->slot == 2 : !doubles_);
    for (int i = 0; i < plan.instruction_count; ++i) {
      const Instruction& in = plan.instructions[i];
      groups_ &= !in.mixed && !in.same_channel && !in.weight_columns && (!differentiates_ || in.lane_operand == 0);
    }
    for (int s = 0; s < 2; ++s)
      for (int b = 0; b < plan.block_count[s]; ++b) groups_ &= by_component(s, plan.blocks[s][b]);
    if constexpr (has_constants<T>) {
      has_paths_ = groups_ && plan.channelwise && !a.weight_sum && a.weight && a.in[x_operand] && a.in[y_operand] && (!differentiates_ || a.in[z_operand]);
      if (has_paths_) make_paths(plan, doubles_ ? PathPass::double_backward : differentiates_ ? PathPass::backward : PathPass::sum, buffer_.paths);
      static_assert(ItemGroup<T>::most >= EdgeGroup<T>::most);
      edges_.z_sum = buffer_.node, edges_.by_component = true;
      edges_.wants_y = wants(1), edges_.wants_weight = a.weight_out;
      edges_.dw = buffer_.unused, edges_.zeros = buffer_.zeros;
      for (int n = 0; has_paths_ && differentiates_ && n < EdgeGroup<T>::most; ++n) {
        edges_.x[n] = edges_.x_next[n] = buffer_.x_rows + n * buffer_.x_pitch, edges_.ax[n] = edges_.ax_next[n] = buffer_.ax_rows + n * buffer_.x_pitch;
        edges_.dx[n] = buffer_.dx_rows + n * buffer_.x_pitch, edges_.z[n] = buffer_.lanes[z_operand];
        if (!a.in[x_direction]) clear(buffer_.ax_rows + n * buffer_.x_pitch, plan.dim[0]);
      }
    }
    const int edges = groups_ ? EdgeGroup<T>::most : 1;
    for (int s = 0; s < 2; ++s) clear(buffer_.gradient[s], plan.dim[s]), clear_sums(s, s == 1 ? edges : 1);
    if (a.sweep) clear(buffer_.node, plan.dim[2]);
    clear(buffer_.weight_gradient, int(edges * buffer_.weight_pitch));
  }

  void run(long begin, long end) {
    RowStream<T> x = writer(0, begin), y = writer(1, begin), z = writer(2, begin);
    RowStream<T> w(a_.weight_out ? a_.weight_out + begin * a_.weight_stride : nullptr, a_.stream && !a_.weight_sum, a_.accumulate && !a_.weight_sum);
    for (long item = begin; item < end; ++item) {
      take(item_at(item), item_at(item + 1));
      run_instructions(&z);
      const bool last = item + 1 == end;
      if (wants(0) && (last || !a_.sum[0])) write_gradient(0, x);
      if (wants(1) && (last || !a_.sum[1])) write_gradient(1, y);
      if (a_.weight_out && (last || !a_.weight_sum)) write_weight_gradient(w);
    }
    for (RowStream<T>* result : {&x, &y, &z, &w}) result->finish();
  }

  // Items are the edges of these nodes. What is summed over the edges of one stays in L1 and is written once.
  void sweep(long begin, long end) {
    const Sweep& sweep = *a_.sweep;
    const bool by_sender = sweep.slot == 0;
    RowStream<T> nodes = writer(sweep.slot, begin);
    const int last = sweep.begin[end];
    for (int node = int(begin), e = sweep.begin[begin]; node < end; ++node) {
      const int first = e, next = sweep.begin[node + 1];
      const int most = doubles_ ? EdgeGroup<T>::most_doubly : EdgeGroup<T>::most;
      for (int groups = (next - e + most - 1) / most; groups_ && groups > 0; --groups) {
        const int count = (next - e + groups - 1) / groups;
        const bool asks_ahead = e + 2 * count <= last;
        if (differentiates_)
          differentiate_group(node, e, count, asks_ahead, e > first, e - sweep.begin[begin]);
        else
          sum_group(e, count, asks_ahead, e > first);
        e += count;
      }
      for (; e < next; ++e) {
        z_adds_ = e > first, gradient_adds_[0] = by_sender && e > first;
        const Rows at = edge_at(node, e);
        take(at, e + 1 < next ? edge_at(node, e + 1) : e + 1 < last ? edge_at(node_behind(node), e + 1) : at);
        run_instructions(nullptr);
        if (wants(0) && !by_sender) write_row(0, a_.adds_by_sender ? a_.out[0] + at.slot[0] : a_.out[0] + (e - sweep.begin[begin]) * plan_.dim[0], a_.adds_by_sender);
        if (wants(1) && !a_.sum[1]) write_row(1, a_.out[1] + at.slot[1], a_.accumulate);
        if (a_.weight_out && !a_.weight_sum) write_weight_row(at);
      }
      if (wants(2)) write_node(nodes, e == first);
      if (wants(0) && by_sender) {
        if (e == first) clear(buffer_.gradient[0], plan_.dim[0]);
        write_gradient(0, nodes);
      }
    }
    nodes.finish();
    if (a_.sum[1]) write_row(1, a_.out[1], false);
    if (a_.weight_sum) write_weight_row(Rows{});
  }

 private:
  using Instruction = PlanInstruction<T>;
  static constexpr int weights_ahead = 16 * line<T>;  // that kernels of paths ask for before they read them, of an edge
  using View = ChannelView<T>;

  bool wants(int slot) const { return a_.terms.writes[slot]; }
  RowStream<T> writer(int slot, long begin) const {
    return {wants(slot) ? a_.out[slot] + (a_.sum[slot] ? 0 : begin * a_.stride[slot]) : nullptr, a_.stream && !a_.sum[slot], a_.accumulate && !a_.sum[slot]};
  }

  // Where an item's rows begin, in elements.
  struct Rows {
    long slot[slot_count], weight;
  };
  Rows item_at(long item) const { return {{item * a_.stride[0], item * a_.stride[1], item * a_.stride[2]}, item * a_.weight_stride}; }
  Rows edge_at(int node, int e) const {
    const Sweep& sweep = *a_.sweep;
    const long row = sweep.edge[e], other = sweep.other[e];
    const long sender = sweep.slot == 0 ? node : other, receiver = sweep.slot == 0 ? other : node;
    return {{sender * a_.stride[0], row * a_.stride[1], receiver * a_.stride[2]}, row * a_.weight_stride};
  }
  // The next node that has edges; there is one.
  int node_behind(int node) const {
    do ++node;
    while (a_.sweep->begin[node] == a_.sweep->begin[node + 1]);
    return node;
  }

  // Points to the item's rows, and brings what lies by channel to lie by component.
  void take(const Rows& at, const Rows& next) {
    for (int o : {x_operand, y_operand, z_operand, x_direction, y_direction}) {
      const int s = slot_of(o);
      if (!a_.in[o]) continue;
      const T* const row = a_.in[o] + at.slot[s];
      const bool again = row == row_[o];
      row_[o] = row;
      ahead_[s] = next.slot[s] - at.slot[s];
      if (o != z_operand) prefetch_row(row + ahead_[s], plan_.dim[s] <= 4 * line<T> ? plan_.dim[s] : 0);
      if (again || (o == z_operand && !z_of_node())) continue;
      for (int b = 0; b < plan_.block_count[s]; ++b) {
        const PlanBlock& block = plan_.blocks[s][b];
        T* const lanes = buffer_.lanes[o] + block.offset;
        if (by_component(s, block)) {
          if (o == z_operand) copy_row(row + block.offset, lanes, block.mul * block.components);
          continue;
        }
        prefetch_row(row + block.offset + ahead_[s], block.mul * block.components);
        turn_block<true>(row + block.offset, block, lanes);
      }
    }
    const T* const weight = a_.weight ? a_.weight + at.weight : nullptr;
    const bool again = weight == weight_;
    weight_ = weight, weight_ahead_ = next.weight - at.weight;
    if (a_.weight_direction) weight_direction_ = a_.weight_direction + at.weight;
    if (again) return;
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      if (in.weight < 0 || !in.weight_columns) continue;
      turn(in, weight_, buffer_.turned);
      if (weight_direction_) turn(in, weight_direction_, buffer_.turned_direction);
    }
  }
  bool by_component(int slot, const PlanBlock& block) const { return block.by_component || (slot == 0 && a_.x_by_component); }
  // The row of z is the same for the edges that follow each other.
  bool z_of_node() const { return a_.sweep && a_.sweep->slot == 2; }
  // Of the next item: what the kernels do not ask for themselves.
  static void prefetch_row(const T* row, int n) {
    for (int c = 0; c < n; c += line<T>) __builtin_prefetch(row + c, 0, 2);
  }
  void turn(const Instruction& in, const T* weights, T* turned) {
    const int rows = in.weights / in.weight_columns;
    transpose_matrix(weights + in.weight, in.weight_columns, rows, in.weight_columns, turned + in.weight, rows);
  }

  View view(int operand, int block_index) const {
    const PlanBlock& block = plan_.blocks[slot_of(operand)][block_index];
    if (!a_.in[operand]) return {buffer_.zeros, 0};
    if (!by_component(slot_of(operand), block)) return {buffer_.lanes[operand] + block.offset, block.mul};
    return {row_[operand] + block.offset, block.mul, ahead_[slot_of(operand)]};
  }
  View lane_view(const Instruction& in, bool direction) const {
    View found = view(direction ? (in.lane_operand == 0 ? x_direction : y_direction) : in.lane_operand, in.lane_block);
    if (!in.asks_ahead) found.ahead = 0;
    return found;
  }
  View matrix_view(const Instruction& in, bool direction) const {
    return view(direction ? (in.lane_operand == 0 ? y_direction : x_direction) : 1 - in.lane_operand, in.matrix_block);
  }
  // Of a segment: a weight a channel.
  View weights_of(const Instruction& in, const PlanChannels& channels) const {
    if (in.weight < 0) return {buffer_.ones, 0};
    if (in.weight_columns) return {buffer_.turned + in.weight + channels.weight, 0};
    return {weight_ + in.weight + channels.weight, 0, weight_ahead_};
  }
  View weight_directions_of(const Instruction& in, const PlanChannels& channels) const {
    if (in.weight < 0 || !weight_direction_) return {buffer_.zeros, 0};
    if (in.weight_columns) return {buffer_.turned_direction + in.weight + channels.weight, 0};
    return {weight_direction_ + in.weight + channels.weight, 0, weight_ahead_};
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
    const T* y = from.at + (from.pitch ? channels.matrix_channel : 0);
    int first = 0;
    const auto add = [&]<int count>(Int<count>) EQUITENSOR_LAMBDA {
      Vector<T> value[count];
#pragma GCC unroll 15
      for (int j = 0; j < count; ++j) value[j] = in_register(splat(y[(first + j) * from.pitch]));
      const T* const coefficients = in.coefficients + first * in.pitch;
      for (int e = 0; e < in.pitch; e += width<T>) {
        Vector<T> sum = first > 0 ? load(matrix + e) : Vector<T>{};
#pragma GCC unroll 15
        for (int j = 0; j < count; ++j) sum += value[j] * load(coefficients + j * in.pitch + e);
        store(matrix + e, sum);
      }
      first += count;
    };
    switch (in.matrix_components) {
      case 1: return add(Int<1>{});
      case 3: return add(Int<3>{});
      case 5: return add(Int<5>{});
      case 7: return add(Int<7>{});
      case 9: return add(Int<9>{});
      case 11: return add(Int<11>{});
      case 13: return add(Int<13>{});
      case 15: return add(Int<15>{});
      default:
        while (first < in.matrix_components) add(Int<1>{});
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

  // The gradient of the matrix operand: of every channel by itself, or in lanes that write_gradient adds up.
  void contract_matrix(const Instruction& in, const PlanChannels& channels) {
    const int slot = 1 - in.lane_operand;
    const PlanBlock& block = plan_.blocks[slot][in.matrix_block];
    if (in.same_channel) {
      for (int j = 0; j < in.matrix_components; ++j) {
        T* gradient = buffer_.gradient[slot] + block.offset + j * block.mul + channels.lane;
        Vector<T> sum = load_channels(gradient, channels.lanes);
        for (int n = in.of_component[j]; n < in.of_component[j + 1]; ++n) sum += in.of_component_value[n] * buffer_.dmatrix[in.of_component_entry[n]];
        if (channels.lanes == width<T>)
          store(gradient, sum);
        else
          store_partial(gradient, sum, channels.lanes);
      }
      return;
    }
    Vector<T>* sums = buffer_.sums[slot] + block.offset + channels.matrix_channel;
    if (in.by_nonzeros) {
      for (int j = 0; j < in.matrix_components; ++j) {
        Vector<T> sum = sums[j * block.mul];
        for (int n = in.of_component[j]; n < in.of_component[j + 1]; ++n) sum += in.of_component_value[n] * buffer_.dmatrix[in.of_component_entry[n]];
        sums[j * block.mul] = sum;
      }
      return;
    }
    const auto contract = [&]<int count>(Int<count>) EQUITENSOR_LAMBDA {
      Vector<T> sum[count];
#pragma GCC unroll 5
      for (int j = 0; j < count; ++j) sum[j] = sums[j * block.mul];
      for (int e = 0; e < in.entries; ++e) {
        const Vector<T> value = buffer_.dmatrix[e];
#pragma GCC unroll 5
        for (int j = 0; j < count; ++j) sum[j] += in.coefficients[j * in.pitch + e] * value;
      }
#pragma GCC unroll 5
      for (int j = 0; j < count; ++j) sums[j * block.mul] = sum[j];
    };
    switch (in.matrix_components) {
      case 1: return contract(Int<1>{});
      case 3: return contract(Int<3>{});
      case 5: return contract(Int<5>{});
    }
  }

  // ---- instructions

  // result: where z's rows go; null where they are summed over a node's edges.
  void run_instructions(RowStream<T>* result) {
    int next = 0;
    for (int b = 0; b < plan_.block_count[2]; ++b) {
      const PlanBlock& block = plan_.blocks[2][b];
      const int n = block.mul * block.components;
      const bool empty = next == plan_.instruction_count || plan_.instructions[next].out_block != b;
      View z{nullptr, block.mul};
      if (differentiates_ && !empty) {
        z.at = row_[z_operand] + block.offset, z.ahead = ahead_[2];
        if (z_of_node()) {
          z.at = buffer_.lanes[z_operand] + block.offset, z.ahead = 0;
        } else if (!block.by_component) {
          prefetch_row(z.at + ahead_[2], n);
          turn_block<true>(z.at, block, buffer_.lanes[z_operand]);
          z.at = buffer_.lanes[z_operand], z.ahead = 0;
        }
      }
      z_ = result || !wants(2) ? buffer_.z : buffer_.node + block.offset;
      for (; next < plan_.instruction_count && plan_.instructions[next].out_block == b; ++next) {
        const Instruction& in = plan_.instructions[next];
        // An output that one segment makes goes straight to memory.
        const bool only = next + 1 == plan_.instruction_count || plan_.instructions[next + 1].out_block != b;
        const bool whole = block.by_component || (in.copies == 1 && in.outputs <= 7);
        straight_ = result && !doubles_ && wants(2) && result->streams() && block.mul % width<T> == 0 && whole && !in.adds && only && !in.mixed && !in.same_channel && in.segment_count == 1
                        ? result
                        : nullptr;
        if (in.same_channel)
          run_instruction(in, z, buffer_.matrices, buffer_.matrices_direction);
        else
          run_instruction(in, z, buffer_.matrix, buffer_.matrix_direction);
      }
      if (!wants(2) || !result) continue;
      if (!empty && straight_) continue;
      for (int c = 0; empty && c < n; ++c) buffer_.z[c] = 0;
      append_block(*result, block, buffer_.z);
    }
  }
  void append_block(RowStream<T>& result, const PlanBlock& block, const T* from) {
    if (!block.by_component) {
      turn_block<false>(from, block, buffer_.row);
      from = buffer_.row;
    }
    result.append(from, block.mul * block.components);
  }
  // Blocks that no instruction writes have been cleared once and for all.
  void write_node(RowStream<T>& result, bool isolated) {
    if (isolated) clear(buffer_.node, plan_.dim[2]);
    for (int b = 0; b < plan_.block_count[2]; ++b) append_block(result, plan_.blocks[2][b], buffer_.node + plan_.blocks[2][b].offset);
  }

  // Edges e, ..., e + count - 1 of one node. asks_ahead: as many behind them come next.
  void sum_group(int e, int count, bool asks_ahead, bool adds) {
    EdgeGroup<T> group;
    group.count = count, group.matrices = buffer_.edge_matrices;
    Rows rows[EdgeGroup<T>::most], ahead[EdgeGroup<T>::most];
    for (int n = 0; n < count; ++n) {
      rows[n] = edge_at(0, e + n), ahead[n] = asks_ahead ? edge_at(0, e + count + n) : rows[n];
      if (a_.in[y_operand]) prefetch_row(a_.in[y_operand] + ahead[n].slot[1], plan_.dim[1] <= 4 * line<T> ? plan_.dim[1] : 0);
    }
    const auto view_of = [&](int slot, int block_index, int n) EQUITENSOR_LAMBDA {
      const PlanBlock& block = plan_.blocks[slot][block_index];
      return View{a_.in[slot] + rows[n].slot[slot] + block.offset, block.mul, ahead[n].slot[slot] - rows[n].slot[slot]};
    };
    if constexpr (has_constants<T>)
      if (has_paths_) {
        edges_.count = count, edges_.z_adds = adds;
        for (int n = 0; n < count; ++n) {
          edges_.x[n] = a_.in[x_operand] + rows[n].slot[0], edges_.x_next[n] = a_.in[x_operand] + ahead[n].slot[0], edges_.y[n] = a_.in[y_operand] + rows[n].slot[1];
          edges_.w[n] = a_.weight + rows[n].weight, edges_.w_next[n] = a_.weight + ahead[n].weight;
        }
        for (int i = 0; i < plan_.instruction_count; ++i) buffer_.paths[i].run(buffer_.paths[i], edges_);
        return;
      }
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      const PlanBlock& block = plan_.blocks[2][in.out_block];
      T* const z = buffer_.node + block.offset;
      group.pitch = in.pitch;
      for (int k = 0; k < in.segment_count; ++k) {
        const PlanChannels& s = in.segments[k];
        for (int n = 0; n < count; ++n) {
          make_matrix(in, s, view_of(1 - in.lane_operand, in.matrix_block, n), buffer_.edge_matrices + n * in.pitch);
          group.x[n] = segment(view_of(in.lane_operand, in.lane_block, n), s);
          if (!in.asks_ahead) group.x[n].ahead = 0;
          group.w[n] = in.weight < 0 ? View{buffer_.ones, 0} : View{a_.weight + rows[n].weight + in.weight + s.weight, 0, ahead[n].weight - rows[n].weight};
        }
        for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
          const int entry = first_entry(in, first);
          sum_edges<outputs>(inputs, row, group, entry, in.copies > 1 ? first * group.x[0].pitch : 0, z + s.out + first * block.mul, block.mul, adds || in.adds || s.adds, s.lanes);
        });
      }
    }
  }

  // The gradients of these edges, `number` from the task's first one. Path by path, whose block of z stays in L1, and then edge by edge.
  // What the kernels read again and again lies aligned: from where callers' arrays begin, every vector would be of two lines.
  void differentiate_group(int node, int e, int count, bool asks_ahead, bool adds, long number) {
    constexpr int most = EdgeGroup<T>::most;
    Rows rows[most], ahead[most];
    const int dim = plan_.dim[0];
    const long entry_pitch = a_.sum[1] ? 0 : plan_.dim[1], weight_pitch = a_.weight_sum ? 0 : buffer_.weight_pitch;
    for (int n = 0; n < count; ++n) {
      rows[n] = edge_at(node, e + n), ahead[n] = asks_ahead ? edge_at(node, e + count + n) : rows[n];
      for (int o : {y_operand, y_direction})
        if (a_.in[o]) prefetch_row(a_.in[o] + ahead[n].slot[1], plan_.dim[1] <= 4 * line<T> ? plan_.dim[1] : 0);
      if (a_.in[x_operand]) copy_row(a_.in[x_operand] + rows[n].slot[0], buffer_.x_rows + n * buffer_.x_pitch, dim);
      if (a_.in[x_direction]) copy_row(a_.in[x_direction] + rows[n].slot[0], buffer_.ax_rows + n * buffer_.x_pitch, dim);
      for (int b = 0; wants(0) && b < plan_.block_count[0]; ++b) {
        const PlanBlock& block = plan_.blocks[0][b];
        for (int c = 0; !block.gradient_made && c < block.mul * block.components; ++c) buffer_.dx_rows[n * buffer_.x_pitch + block.offset + c] = 0;
      }
    }
    take(rows[0], rows[0]);  // z
    // Rows of x, and of its gradient where it is added to, are asked for a part an instruction.
    const auto ask = [&](int i) EQUITENSOR_LAMBDA {
      // Of the lines of so many numbers those that this instruction asks for.
      const auto for_each_line = [&](long numbers, auto&& body) EQUITENSOR_LAMBDA {
        const long lines = (numbers + line<T> - 1) / line<T>;
        for (long l = lines * i / plan_.instruction_count; l < lines * (i + 1) / plan_.instruction_count; ++l) body(l * line<T>);
      };
      for (int n = 0; n < count; ++n) {
        for_each_line(dim, [&](long c) EQUITENSOR_LAMBDA {
          if (a_.adds_by_sender) __builtin_prefetch(a_.out[0] + rows[n].slot[0] + c, 1, 2);
          for (int o : {x_operand, x_direction})
            if (a_.in[o]) __builtin_prefetch(a_.in[o] + ahead[n].slot[0] + c, 0, 2);
        });
        // Kernels of paths ask for their edges' weights themselves, but for the first ones.
        if (has_paths_)
          for_each_line(minimum(weights_ahead, plan_.weights), [&](long c) EQUITENSOR_LAMBDA {
            for (const T* weights : {a_.weight, a_.weight_direction})
              if (weights) __builtin_prefetch(weights + ahead[n].weight + c, 0, 2);
          });
      }
      if (has_paths_) return;
      // Of weights those of the next instruction: they are read once, and are to leave the caches to the rows of nodes.
      const bool last = i + 1 == plan_.instruction_count;
      const Instruction& next = plan_.instructions[last ? 0 : i + 1];
      for (const T* weights : {a_.weight, a_.weight_direction})
        for (int n = 0; weights && next.weight >= 0 && n < count; ++n)
          for (int c = 0; c < next.weights; c += line<T>) __builtin_prefetch(weights + (last ? ahead : rows)[n].weight + next.weight + c, 0, 0);
    };
    const auto y_of = [&](int operand, int block_index, int n) EQUITENSOR_LAMBDA -> View {
      const PlanBlock& block = plan_.blocks[1][block_index];
      if (!a_.in[operand]) return {buffer_.zeros, 0};
      return {a_.in[operand] + rows[n].slot[1] + block.offset, block.mul};
    };
    const auto x_of = [&](int operand, T* of_edges, const Instruction& in, const PlanChannels& s, int n) EQUITENSOR_LAMBDA -> View {
      const PlanBlock& block = plan_.blocks[0][in.lane_block];
      if (!a_.in[operand]) return {buffer_.zeros, 0};
      return {of_edges + n * buffer_.x_pitch + block.offset + s.lane, block.mul};
    };
    const auto weights_of = [&](const T* weights, const Instruction& in, const PlanChannels& s, int n, T* otherwise) EQUITENSOR_LAMBDA -> View {
      if (in.weight < 0 || !weights) return {otherwise, 0};
      return {weights + rows[n].weight + in.weight + s.weight, 0};
    };
    const bool has_rows = a_.weight_out && !a_.weight_sum, has_parts = has_rows && plan_.weights_in_order;
    // Lines that rows share are stored to, not streamed: what waits for one of them holds up all others.
    for (int n = 0; has_rows && n < count; ++n)
      for (long c : {0, plan_.weights}) __builtin_prefetch(a_.weight_out + rows[n].weight + c, 1, 3);
    RowStream<T>* const weight_rows = edges_.w_out;
    for (int n = 0; n < count; ++n) weight_rows[n] = weight_row(rows[n]);
    if constexpr (has_constants<T>)
      if (has_paths_) {
        edges_.count = count, edges_.z_adds = adds;
        for (int n = 0; n < count; ++n) {
          edges_.y[n] = a_.in[y_operand] + rows[n].slot[1], edges_.ay[n] = a_.in[y_direction] ? a_.in[y_direction] + rows[n].slot[1] : nullptr;
          edges_.w[n] = a_.weight + rows[n].weight, edges_.w_next[n] = edges_.w[n] + weights_ahead;
          edges_.aw[n] = a_.weight_direction ? a_.weight_direction + rows[n].weight : nullptr, edges_.aw_next[n] = edges_.aw[n] + weights_ahead;
          edges_.dy[n] = buffer_.sums[1] + n * entry_pitch;
        }
      }
    for (int i = 0; i < plan_.instruction_count; ++i) {
      const Instruction& in = plan_.instructions[i];
      const PlanBlock &block = plan_.blocks[2][in.out_block], &lane_block = plan_.blocks[0][in.lane_block];
      ask(i);
      if (has_paths_) {
        buffer_.paths[i].run(buffer_.paths[i], edges_);
        continue;
      }
      for (int k = 0; k < in.segment_count; ++k) {
        const PlanChannels& s = in.segments[k];
        for (int n = 0; n < count; ++n) {
          make_matrix(in, s, y_of(y_operand, in.matrix_block, n), buffer_.edge_matrices + n * in.pitch);
          if (doubles_) make_matrix(in, s, y_of(y_direction, in.matrix_block, n), buffer_.edge_matrix_directions + n * in.pitch);
        }
        const View z{buffer_.lanes[z_operand] + block.offset + s.out, block.mul};
        for_each_rows(in, block.mul, [&](int first, auto outputs, const MatrixRows& matrix_rows) EQUITENSOR_LAMBDA {
          for (int n = 0; n < count; ++n) {
            const View w = weights_of(a_.weight, in, s, n, buffer_.ones), z_part{z.at + first * z.pitch, z.pitch};
            const View x = x_of(x_operand, buffer_.x_rows, in, s, n);
            T* const dw = in.weight < 0 || !a_.weight_out ? buffer_.unused : buffer_.weight_gradient + n * weight_pitch + (has_parts ? 0 : in.weight) + s.weight;
            T* const to = buffer_.dx_rows + n * buffer_.x_pitch + lane_block.offset + s.lane;
            const T* const matrix = buffer_.edge_matrices + n * in.pitch + first;
            Vector<T>* const dmatrix = buffer_.dmatrix + n * in.entries + first;
            const bool dx_adds = adds_gradient(in, s, first), dw_adds = a_.weight_sum || first > 0;
            if (doubles_) {
              const View ax = x_of(x_direction, buffer_.ax_rows, in, s, n), aw = weights_of(a_.weight_direction, in, s, n, buffer_.zeros);
              const Directional<T> a{w, aw, x, ax, z_part, buffer_.node + block.offset + s.out + first * z.pitch, z.pitch, adds || n > 0 || in.adds || s.adds,
                                     to, lane_block.mul, dw, dx_adds, dw_adds, dmatrix};
              direct_rows<outputs>(matrix_rows, matrix, buffer_.edge_matrix_directions + n * in.pitch + first, a, s.lanes);
            } else {
              const Gradient<T> a{w, x, z_part, to, lane_block.mul, dw, dx_adds, dw_adds, dmatrix};
              if (wants(1))
                differentiate_rows<outputs, true>(matrix_rows, matrix, a, s.lanes);
              else
                differentiate_rows<outputs, false>(matrix_rows, matrix, a, s.lanes);
            }
          }
        });
        if (k + 1 == in.segment_count && has_parts)
          for (int n = 0; n < count; ++n) weight_rows[n].append(buffer_.weight_gradient + n * weight_pitch, in.weights);
        if (!wants(1)) continue;
        const int entries = count * in.entries;
        for (int first = 0; first < entries; first += width<T>) store(buffer_.entry_sums + first, add_up<T>(buffer_.dmatrix, first, entries));
        const PlanBlock& y_block = plan_.blocks[1][in.matrix_block];
        for (int n = 0; n < count; ++n) {
          Vector<T>* const sums = buffer_.sums[1] + n * entry_pitch + y_block.offset + s.matrix_channel;
          const T* const of_edge = buffer_.entry_sums + n * in.entries;
          for_each_vector<T>(in.entries, [&](int entry, auto part) EQUITENSOR_LAMBDA {
            const Vector<T> value = part.load(of_edge + entry);
            for (int j = 0; j < in.matrix_components; ++j) sums[j * y_block.mul] += load(in.coefficients + j * in.pitch + entry) * value;
          });
        }
      }
    }
    for (int n = 0; n < count; ++n) {
      if (wants(1) && !a_.sum[1]) write_sums(buffer_.sums[1] + n * entry_pitch, plan_.dim[1], a_.out[1] + rows[n].slot[1], a_.accumulate);
      if (has_rows && !has_parts) weight_rows[n].append(buffer_.weight_gradient + n * weight_pitch, plan_.weights);
      if (has_rows) weight_rows[n].finish();
      if (!wants(0)) continue;
      T* const to = a_.out[0] + (a_.adds_by_sender ? rows[n].slot[0] : (number + n) * dim);
      const T* const from = buffer_.dx_rows + n * buffer_.x_pitch;
      for_each_vector<T>(dim, [&](int c, auto part) EQUITENSOR_LAMBDA {
        part.store(to + c, a_.adds_by_sender ? part.load(to + c) + part.load(from + c) : part.load(from + c));
      });
    }
  }
  // Their lanes added up, and cleared.
  void write_sums(Vector<T>* sums, int count, T* to, bool accumulates) {
    for_each_vector<T>(count, [&](int c, auto part) EQUITENSOR_LAMBDA {
      const Vector<T> sum = add_up<T>(sums, c, count);
      part.store(to + c, accumulates ? part.load(to + c) + sum : sum);
    });
    for (int c = 0; c < count; ++c) sums[c] = Vector<T>{};
  }

  template <class M>
  void run_instruction(const Instruction& in, View z, M* matrix, M* matrix_direction) {
    const View x = lane_view(in, false), y = matrix_view(in, false);
    View ax, ay;
    if (doubles_) ax = lane_view(in, true), ay = matrix_view(in, true);
    const bool weighted = in.weight >= 0, directed = weighted && weight_direction_;
    if (in.mixed && differentiates_) {  // the gradient of t: times the weights, and times their direction
      unmix(in, z, weighted ? weight_ + in.weight : buffer_.ones, buffer_.g);
      if (directed) unmix(in, z, weight_direction_ + in.weight, buffer_.g_direction);
    }
    for_each_segment(in, [&](const PlanChannels& s) {
      make_matrix(in, s, y, matrix);
      if (doubles_) make_matrix(in, s, ay, matrix_direction);
      const View xs = segment(x, s), axs = segment(ax, s), zs{z.at + s.out, z.pitch, z.ahead};
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
      mix(in, t, weighted ? weight_ + in.weight : buffer_.ones, mul, in.adds || z_adds_);
      if (directed) mix(in, buffer_.t, weight_direction_ + in.weight, mul, true);
    }
    for (int m = 0; a_.weight_out && weighted && m < in.mix_count; ++m) {
      const PlanMix& mix = in.mixes[m];
      T* dw = buffer_.weight_gradient + in.weight + mix.weight;
      add_weight_products(t + mix.first, in.channels, z.at, z.pitch, in.outputs, mix.count, in.mixed, dw, mix.pitch, a_.weight_sum);
    }
  }
  static EQUITENSOR_INLINE View segment(View x, const PlanChannels& s) { return {x.at + (x.pitch ? s.lane : 0), x.pitch, x.ahead}; }

  // Calls body(inputs, row, copy, first output, outputs) for the shapes of an instruction: see for_each_shape. A scalar's matrix is a multiple of
  // the identity, and so one entry for as many copies as there are components.
  template <class Body>
  EQUITENSOR_INLINE void for_each_part(const Instruction& in, Body&& body) {
    if (in.copies > 1)
      for (int copy = 0; copy < in.copies; ++copy) body(Int<1>{}, copy, Int<1>{}, Int<1>{});
    else
      for_each_shape<T>(in.inputs, in.outputs, body);
  }
  static EQUITENSOR_INLINE int first_entry(const Instruction& in, int first) { return in.copies > 1 ? 0 : first; }
  static EQUITENSOR_INLINE View inputs_of(const Instruction& in, View x, int first) { return {x.at + (in.copies > 1 ? first * x.pitch : 0), x.pitch, x.ahead}; }

  template <class M>
  void multiply_by(const Instruction& in, const M* matrix, View x, View scale, T* out, long out_pitch, bool adds, int lanes) {
    for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
      multiply_matrix<outputs>(inputs, row, matrix + first_entry(in, first), inputs_of(in, x, first), scale, out + first * out_pitch, out_pitch, adds, lanes);
    });
  }

  // The same for kernels that take rows of M one after the other: body(first output, outputs, rows).
  template <class Body>
  EQUITENSOR_INLINE void for_each_rows(const Instruction& in, long z_pitch, Body&& body) {
    if (in.copies > 1)
      body(0, Int<1>{}, MatrixRows{in.copies, 0, z_pitch});
    else
      for_each_outputs(in.outputs, [&](int first, auto outputs) EQUITENSOR_LAMBDA { body(first, outputs, MatrixRows{in.inputs, in.outputs, 0}); });
  }

  // Of the lane operand, the weights and M, with z the gradient of M's product.
  template <class M>
  void differentiate_by(const Instruction& in, const PlanChannels& s, const M* matrix, View z, View scale, View t, bool again = false) {
    const bool outer = wants(1 - in.lane_operand);
    const long pitch = plan_.blocks[in.lane_operand][in.lane_block].mul;
    for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
      const int e = first_entry(in, first);
      const Gradient<T> a{scale, inputs_of(in, t, first), {z.at + first * z.pitch, z.pitch, z.ahead}, lane_gradient(in, s) + (in.copies > 1 ? first * pitch : 0), pitch,
                          weight_gradient(in, s), again || adds_gradient(in, s, first), again || a_.weight_sum || first > 0, buffer_.dmatrix + e};
      if (outer)
        differentiate<outputs, true>(inputs, row, matrix + e, a, s.lanes);
      else
        differentiate<outputs, false>(inputs, row, matrix + e, a, s.lanes);
    });
  }
  T* lane_gradient(const Instruction& in, const PlanChannels& s) const {
    return buffer_.gradient[in.lane_operand] + plan_.blocks[in.lane_operand][in.lane_block].offset + s.lane;
  }
  // The others find the gradient of their block cleared, or written.
  bool adds_gradient(const Instruction& in, const PlanChannels& s, int first) const {
    return gradient_adds_[in.lane_operand] || !in.makes_gradient || s.matrix_channel > 0 || (in.copies == 1 && first > 0);
  }
  T* weight_gradient(const Instruction& in, const PlanChannels& s) const {
    return in.weight < 0 || in.mixed ? buffer_.unused : buffer_.weight_gradient + in.weight + s.weight;
  }

  template <class M>
  void run_singly(const Instruction& in, const PlanChannels& s, const M* matrix, View x, View z) {
    const View w = weights_of(in, s), scale = in.weight < 0 ? View{} : w;
    if (straight_)
      for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
        if (plan_.blocks[2][in.out_block].by_component)
          stream_matrix<outputs>(inputs, row, matrix + first_entry(in, first), inputs_of(in, x, first), scale, *straight_, s.lanes);
        else
          stream_turned<outputs>(inputs, row, matrix, x, scale, *straight_, s.lanes);
      });
    else if (wants(2))
      multiply_by(in, matrix, x, scale, z_ + s.out, z.pitch, in.adds || s.adds || z_adds_, s.lanes);
    if (differentiates_) differentiate_by(in, s, matrix, z, w, x);
  }

  template <class M>
  void run_doubly(const Instruction& in, const PlanChannels& s, const M* matrix, const M* matrix_direction, View x, View ax, View z) {
    const View w = weights_of(in, s), aw = weight_directions_of(in, s);
    const long pitch = plan_.blocks[in.lane_operand][in.lane_block].mul;
    for_each_part(in, [&](auto inputs, int first, auto outputs, auto row) EQUITENSOR_LAMBDA {
      const int e = first_entry(in, first);
      const Directional<T> a{w, aw, inputs_of(in, x, first), inputs_of(in, ax, first), {z.at + first * z.pitch, z.pitch, z.ahead},
                             z_ + s.out + first * z.pitch, z.pitch, in.adds || s.adds || z_adds_, lane_gradient(in, s) + (in.copies > 1 ? first * pitch : 0), pitch,
                             weight_gradient(in, s), adds_gradient(in, s, first), a_.weight_sum || first > 0, buffer_.dmatrix + e};
      if (differentiates_)
        direct_matrix<outputs, true>(inputs, row, matrix + e, matrix_direction + e, a, s.lanes);
      else
        direct_matrix<outputs, false>(inputs, row, matrix + e, matrix_direction + e, a, s.lanes);
    });
  }

  template <class M>
  void run_mixed(const Instruction& in, const PlanChannels& s, const M* matrix, const M* matrix_direction, View x, View ax, bool directed) {
    const View ones{buffer_.ones, 0}, g{buffer_.g + s.out, in.channels}, g_direction{buffer_.g_direction + s.out, in.channels};
    T *t = buffer_.t + s.out, *t_direction = buffer_.t_direction + s.out;
    const bool wants_t = wants(2) || (a_.weight_out && in.weight >= 0);
    if (wants_t && (!doubles_ || directed)) multiply_by(in, matrix, x, View{}, t, in.channels, false, s.lanes);
    if (wants_t && doubles_) {
      multiply_by(in, matrix, ax, View{}, t_direction, in.channels, false, s.lanes);
      multiply_by(in, matrix_direction, x, View{}, t_direction, in.channels, true, s.lanes);
    }
    if (!differentiates_) return;
    if (!doubles_) return differentiate_by(in, s, matrix, g, ones, x);
    if (directed) differentiate_by(in, s, matrix, g_direction, ones, x);
    differentiate_by(in, s, matrix_direction, g, ones, ax, directed);
  }

  // Behind the instruction's segments: the output's channels from those of t, with the weights, and back.
  void mix(const Instruction& in, const T* t, const T* weights, int mul, bool adds) {
    for (int m = 0; m < in.mix_count; ++m)
      mix_weights(t + in.mixes[m].first, in.channels, in.outputs, weights_of(in, in.mixes[m], weights), z_, mul, adds || m > 0);
  }
  void unmix(const Instruction& in, View z, const T* weights, T* g) {
    for (int m = 0; m < in.mix_count; ++m)
      unmix_weights(z.at, z.pitch, in.outputs, weights_of(in, in.mixes[m], weights), g + in.mixes[m].first, in.channels);
  }
  MixWeights<T> weights_of(const Instruction& in, const PlanMix& mix, const T* weights) const {
    return {weights + mix.weight, mix.pitch, in.weight < 0 ? 0 : weight_ahead_, mix.count, in.mixed};
  }

  void clear(T* from, int n) {
    for (int c = 0; c < n; c += width<T>) store(from + c, Vector<T>{});
  }
  void clear_sums(int slot, int rows = 1) {
    for (int c = 0; plan_.makes_matrices[slot] && c < rows * plan_.dim[slot]; ++c) buffer_.sums[slot][c] = Vector<T>{};
  }

  void write_gradient(int slot, RowStream<T>& result) {
    const int n = plan_.dim[slot];
    T* gradient = buffer_.gradient[slot];
    for (int c = 0; plan_.makes_matrices[slot] && c < n; c += width<T>) store(gradient + c, load(gradient + c) + add_up<T>(buffer_.sums[slot], c, n));
    bool made = true;
    for (int b = 0; b < plan_.block_count[slot]; ++b) made &= by_component(slot, plan_.blocks[slot][b]);
    if (!made) turn_row<false>(plan_.blocks[slot], plan_.block_count[slot], gradient, buffer_.row);
    result.append(made ? gradient : buffer_.row, n);
    for (int b = 0; b < plan_.block_count[slot]; ++b) {
      const PlanBlock& block = plan_.blocks[slot][b];
      for (int c = 0; !block.gradient_made && c < block.mul * block.components; ++c) gradient[block.offset + c] = 0;
    }
    clear_sums(slot);
  }

  // Rows by themselves: in no order, or the only one. Streamed where they are several lines.
  void write_row(int slot, T* to, bool accumulates) {
    RowStream<T> row(to, false, accumulates);
    write_gradient(slot, row);
  }
  void write_weight_row(const Rows& at) {
    RowStream<T> row = weight_row(at);
    write_weight_gradient(row);
    row.finish();
  }
  RowStream<T> weight_row(const Rows& at) const {
    return {a_.weight_out ? a_.weight_out + at.weight : nullptr, a_.stream && !a_.weight_sum && plan_.weights >= 8 * line<T>, a_.accumulate && !a_.weight_sum};
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
    result.append(buffer_.weight_gradient, plan_.weights);
  }

  const WeightedPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  WeightedBuffers<T> buffer_;
  RowStream<T>* straight_ = nullptr;  // where the instruction's output goes, if it is not staged
  bool differentiates_, doubles_;  // results beside z; with directions
  bool groups_;                    // a convolution whose edges go several at a time
  bool has_paths_ = false;         // in kernels of cpu/channelwise.cpp
  ItemGroup<T> edges_;
  const T* row_[operand_count] = {};
  const T *weight_ = nullptr, *weight_direction_ = nullptr;
  long ahead_[slot_count] = {}, weight_ahead_ = 0;  // from these rows to the next item's
  T* z_ = nullptr;                                  // where the block of z at hand is summed
  bool z_adds_ = false, gradient_adds_[2];          // to what items before have put there
};

template <class T>
void weighted(const WeightedPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  if constexpr (has_constants<T>)
    if (is_channelwise(plan, a)) {
      channelwise(plan, a, begin, end, memory);
      return stream_fence();
    }
  WeightedItem<T> item(plan, a, memory);
  if (a.sweep)
    item.sweep(begin, end);
  else
    item.run(begin, end);
  stream_fence();
}

template <class T>
long weighted_scratch(const WeightedPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  WeightedBuffers<T> measured(plan, scratch);
  if constexpr (has_constants<T>) return std::max(scratch.bytes(), channelwise_scratch(plan));
  return scratch.bytes();
}

template <class T>
void turn_rows(const WeightedPlan<T>& plan, const T* in, T* out, bool to_components, T* row, long begin, long end) {
  const int dim = plan.dim[0];
  for (long r = begin; r < end; ++r) {
    T* const to = row ? row : out + r * dim;
    if (to_components)
      turn_row<true>(plan.blocks[0], plan.block_count[0], in + r * dim, to);
    else
      turn_row<false>(plan.blocks[0], plan.block_count[0], in + r * dim, to);
    if (!row) continue;
    for_each_vector<T>(dim, [&](int c, auto part) EQUITENSOR_LAMBDA { part.store(out + r * dim + c, part.load(out + r * dim + c) + part.load(row + c)); });
  }
}

template <class T>
void scatter_rows(T* to, const int* index, const T* rows, long count, long dim, long begin, long end) {
  for (long r = 0; r < count; ++r) {
    T* const sum = to + index[r] * dim;
    const T* const row = rows + r * dim;
    const long ahead = (index[r + 1 < count ? r + 1 : r] - long(index[r])) * dim;
    for (long c = begin; c < end; c += line<T>) __builtin_prefetch(sum + ahead + c, 1, 2);
    for_each_vector<T>(int(end - begin), [&](int c, auto part) EQUITENSOR_LAMBDA {
      part.store(sum + begin + c, part.load(sum + begin + c) + part.load(row + begin + c));
    });
  }
}

template <class T>
void add_weighted(TypedKernels<T>& k) {
  k.weighted = {weighted<T>, weighted_scratch<T>};
  k.turn_rows = turn_rows<T>, k.scatter_rows = scatter_rows<T>;
}
template void add_weighted(TypedKernels<float>&);
template void add_weighted(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
