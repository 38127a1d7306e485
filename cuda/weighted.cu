// Weighted tensor product. Two kernels: `channelwise` (cuda/weighted_channelwise.cu) is for uvu, uvv and uvuv. `weighted`, here, is for all modes, with sums in
// shared memory. The operation chooses.
#include "cuda/weighted.cuh"

namespace equitensor::cuda {
namespace {

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
        T row[outputs];
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
          sum_over_lanes(row, lane, lanes, [&](int k, T total) { dmatrix[i * in.outputs + first + k] += total; });
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
    __syncwarp();
    if (!in.same_channel) {
      make_matrix(1 - in.lane_operand, s.matrix_channel, shared + layout.matrix);
      if constexpr (directional) make_matrix(matrix_direction(), s.matrix_channel, shared + layout.matrix_direction);
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
        const int c = active ? first + lane : end - 1;
        take<directional>(s, c, s.lane + c, begin, active);
      }
      if (!in.mixed) continue;
      __syncwarp();
      mix<directional>(s, begin, end);
      __syncwarp();
    }
    __syncwarp();
    if (differentiates && wants_matrix && !in.same_channel) contract(s);
  }

  // Channel c of z, or of the t that the mix makes z of, and of its derivative; and what the gradient of z, or that of t, which `unmix` has made, says of x, y, M and w. The terms take
  // turns, since every copy of `multiply` and `differentiate` has code for each number of outputs: with six and four of them nvcc took 51 s a card instead of 13.
  template <bool directional>
  __device__ __forceinline__ void take(const WeightedSegment& s, int c, int u, int begin, bool active) const {
    const bool mixed = in.mixed > 0;
    const int x = in.lane_operand, y = 1 - in.lane_operand, ax = lane_direction(), ay = matrix_direction();
    const int block_place = (s.out + c) * in.outputs, staged_place = (c - begin) * in.outputs;
    const T *const matrix = shared + layout.matrix, *const md = shared + layout.matrix_direction;
    const T w = mixed ? T(1) : weight_of(rows.a.weight, s, c, T(1)), aw = directional && !mixed ? weight_of(rows.a.weight_direction, s, c, T(0)) : T(0);
    if (active && (rows.a.out[2] || (mixed && rows.a.weight_out))) {
#pragma unroll 1
      for (int n = 0; n < (directional ? 3 : 1); ++n) {
        // M x, M ax, M' x
        T* const staged = shared + (n > 0 ? layout.t_direction : layout.t) + staged_place;
        multiply(n == 2 ? md : matrix, n == 2 ? ay : y, n == 1 ? ax : x, u, directional && !mixed && n == 0 ? aw : w, mixed ? staged : shared + layout.z + block_place, !mixed || n == 2);
      }
    }
    if (!differentiates) return;
    T dw = 0;
#pragma unroll 1
    for (int n = 0; n < (directional ? 2 : 1); ++n) {
      // M, M'; of z the gradient of the other one's product with x
      const T* const z = shared + (!mixed ? layout.dz + block_place : (directional && n == 0 ? layout.g_direction : layout.g) + staged_place);
      const int outer = n > 0 ? ax : x, inner = directional && !mixed ? (n > 0 ? x : ax) : outer;
      dw += differentiate(n > 0 ? md : matrix, n > 0 ? ay : y, u, active, z, active ? (directional && !mixed && n == 0 ? aw : w) : T(0), outer, inner);
    }
    if (!mixed && rows.a.weight_out && in.weighted && active && rows.live) write(rows.weight_out() + s.weight + c * s.weight_pitch, dw, rows.adds_weight());
  }
  // Gradients of channels [begin, end) of t: g_c = sum_w W_cw dz_w. A lane has its channels c; or its w, whose sums are added up, where channels are few.
  __device__ __forceinline__ void unmix(const WeightedSegment& s, int begin, int end, const T* weights, T missing, T* to) const {
    const T* const dz = shared + layout.dz;
    const bool are_few = 2 * (end - begin) < lanes;
    const int first_c = are_few ? 0 : lane, step_c = are_few ? 1 : lanes, first_w = are_few ? lane : 0, step_w = are_few ? lanes : 1;
    const T* const row = weights && in.weighted ? rows.weights(weights) + s.weight + begin * s.weight_pitch : nullptr;
    for_each_piece(in.outputs, [&](auto outputs, int first) {
#pragma unroll 1
      for (int c = first_c; c < end - begin; c += step_c) {
        T sum[outputs] = {};
#pragma unroll 1
        for (int w = first_w; w < in.mixed; w += step_w) {
          const T weight = row ? read(row + c * s.weight_pitch + w) : missing;
#pragma unroll
          for (int k = 0; k < outputs; ++k) sum[k] += weight * dz[w * in.outputs + first + k];
        }
        T* const g = to + c * in.outputs + first;
        if (are_few) {
          sum_over_lanes(sum, lane, lanes, [&](int k, T total) { g[k] = total; });
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
          for (int i = lane; i < numbers; i += lanes) write(rows.out(2) + at(i), shared[layout.z + i], rows.adds(2), rows.is_atomic(2));
        __syncwarp();
      }
#pragma unroll 1
      for (int s = 0; s < 2; ++s)
        for (int c = lane; differentiates && rows.a.out[s] && rows.live && c < plan.dim[s]; c += lanes) write(rows.out(s) + c, shared[layout.gradient[s] + c], rows.adds(s), rows.is_atomic(s));
      __syncwarp();
    }
  }
}

// ---- host

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

template <class T>
class GeneralKernel final : public WeightedKernel<T> {
 public:
  GeneralKernel(int device, const WeightedForm& form) : device_(device), arena_(device), plan_(arena_.build([&](auto& store) { return general_plan<T>(store, form); })) {
    tiling(WeightedLayout(plan_, true, true));
    for (const auto kernel : kernels) allow_all_shared_memory(device, kernel);
  }

  void launch(const WeightedCall<T>& a, long long sets, cudaStream_t stream) const override {
    const bool directional = has_directions(a);
    const WeightedLayout layout(plan_, has_gradients(a), directional);
    const Tiling tiling = this->tiling(layout);
    GeneralPlan<T> plan = plan_;
    plan.lanes = tiling.threads / tiling.items;
    check(cuda::launch(kernels[directional], tiling.grid(sets), tiling.threads, tiling.shared_bytes, stream, plan, a, layout), "cudaLaunchKernel");
  }

 private:
  Tiling tiling(const WeightedLayout& layout) const { return weighted_tiling(device_, plan_.lanes, layout.count * (long long)sizeof(T)); }

  using Kernel = void (*)(GeneralPlan<T>, WeightedCall<T>, WeightedLayout);
  static constexpr Kernel kernels[2] = {weighted<T, false>, weighted<T, true>};

  int device_;
  PlanArena arena_;
  GeneralPlan<T> plan_;
};

template <class T>
class Weighted final : public Operation {
 public:
  Weighted(int device, const WeightedForm& form)
      : Operation(device, sizeof(T) == 8, form.dims[0], form.dims[1], form.dims[2]), kernel_(make_channelwise<T>(device, form)) {
    weights = form.weights;
    if (!kernel_) kernel_ = std::make_unique<GeneralKernel<T>>(device, form);
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
    a.is_swept = call.sweep, a.span = call.atomic ? edges_at_once : 0;
    if (call.sweep) a.sweep = *call.sweep;
    const long long items = !call.sweep ? call.batch : call.atomic ? (call.batch + edges_at_once - 1) / edges_at_once : call.sweep->nodes;
    a.items = int(summed ? items_of_a_sum(items, summed) : 1);
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
      for (const int s : {0, 2})
        if (T* const nodes = static_cast<T*>(call.out[s])) clear(nodes, (long long)(s == call.sweep->slot ? call.sweep->nodes : call.sweep->others) * dim[s]);
    for (int s = 0; s < slot_count; ++s) a.out[s] = place(s, call.out[s], a.summed[s], dim[s]);
    a.weight_out = place(slot_count, call.weight_out, a.weight_summed, weights);
    kernel_->launch(a, rows, stream);
    for (int s = 0; s < slot_count; ++s)
      if (a.summed[s]) sum_rows(a.out[s], static_cast<T*>(call.out[s]), call.accumulate, dim[s], rows, stream);
    if (a.weight_summed) sum_rows(a.weight_out, static_cast<T*>(call.weight_out), call.accumulate, weights, rows, stream);
  }

 private:
  std::unique_ptr<WeightedKernel<T>> kernel_;
};

}  // namespace

std::unique_ptr<Operation> make_weighted(int device, const WeightedForm& form) { return make<Weighted>(form.is_double, device, form); }

}  // namespace equitensor::cuda