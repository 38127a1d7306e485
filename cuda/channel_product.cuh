// What products of signals, channel by channel, have around what each computes by itself: the steps of a call, and factors for each irrep and channel.
//
// A step forms some results in a tile. A block of threads takes its tile through all steps of a launch: what a later one reads again, or adds to, is in L2
// still, so that every array is read from memory once and written once. All results at once need the fewest transforms; where they leave a tile less than a pack
// a lane, a step for each is faster, or for each term. (Double backward at L = 6: GTP 265,031 instructions an item at once, 124,461 term by term; MTP
// 145,293 and 58,872.)
//
// With factors a call is the sum over r of c_r T(a_r x, b_r y), weights [r][a | b | c]. Operands are scaled in the tile before a step, results behind it;
// with X = a x and X' = a' x + a x', as cpu/operation.cpp's Factored,
//   backward         A = T(., Y, Z):  dx = a A,  da = sum over a channel's components of x A
//   double backward  A = T(., Y', Z) + T(., Y, Z'),  C = T(., Y, Z):  dx = a A + a' C,  da = sum of x A + x' C
#pragma once
#include "cuda/host.hpp"
#include <limits>

namespace equitensor::cuda {

// Components of an irrep, of one channel, which have one factor.
struct alignas(16) FactorBlock {
  int slot, first, count, unused;
};
struct Factors {
  int count = 0, rank = 1;  // of a channel, in all slots; 0: there are none, and one product
  const FactorBlock* blocks = nullptr;
  int at = 0, direction_at = -1, gradient_at = -1;  // in the tile; -1: not given, not wanted
};

// Rows in global memory, by number: of operands, behind them weights and their directions; of results, behind them the gradient of weights. of_rank: from
// one product of a sum of products to the next; 0: all have the same operand, and all add to the same result.
constexpr int weight_operand = operand_count, weight_result = slot_count;
template <class N>
struct Place {
  N* rows_begin;
  int of_rank;
  Rows rows;
};
// `at`: first component in the tile.
struct OperandInTile {
  int index, slot, at;
};
struct ResultInTile {
  int slot, at;
  bool accumulate;
};
// Transforms and products of a step, about equal parts of a kernel's work.
inline int transforms_of(const Terms& terms) {
  int transforms = terms.count;
  for (const bool reads : terms.reads) transforms += reads;
  for (const bool writes : terms.writes) transforms += writes;
  return transforms;
}

template <class Layout>
struct Step {
  Terms terms;
  Layout layout;
  // The product's operands are the first read_count of those that are loaded; behind them an input of which only the direction is read, and factors. Of results
  // the first written_count are the product's, and those from store_begin to store_end stored: not what only gradients of factors are made of, but these.
  OperandInTile read[operand_count + 2], raw[slot_count];  // raw: operands as they are, loaded behind the product, for the gradients of factors
  ResultInTile written[slot_count + 1];
  int read_count, load_count, written_count, store_begin, store_end, raw_count;
  // With factors: c' z takes the place of c z; results are multiplied with the directions of factors, and the inputs' directions with results.
  bool z_along, along;
  int in_at[slot_count], raw_at[slot_count];  // of operands and raw ones; -1: there is none
};
// Of one launch. As many as the 4096 bytes of parameters have room for that a toolkit before 12.1 allows.
constexpr int most_steps = 5;
template <class T, class Layout>
struct Steps {
  Factors factors;
  bool given[2];  // directions of x and y
  Place<const T> from[weight_operand + 2];
  Place<T> to[weight_result + 1];
  int count, total;  // of every product, of all in the sum
  Step<Layout> step[most_steps];
};

template <class C, class T, class Layout>
__device__ __forceinline__ void load_operand(const Steps<T, Layout>& steps, const OperandInTile& operand, int rank, long long first, int live, const Strip<C>& tile) {
  const auto& place = steps.from[operand.index];
  const T* from = place.rows_begin;
  if (rank > 0) from += rank * place.of_rank;
  load_tile(place.rows, from, first, live, tile.from(operand.at));
}

// The step's operands, in the places of x, y, z and their directions.
template <class T, class Layout, class V>
__device__ __forceinline__ void scale_operands(const Steps<T, Layout>& steps, const Step<Layout>& step, const Strip<V>& tile, const Team& team) {
  const Factors& factors = steps.factors;
  const bool directed = factors.direction_at >= 0;
  for (int k = team.index; k < factors.count; k += team.count) {
    const FactorBlock block = load_table(factors.blocks + k).value[0];
    const int s = block.slot, direction = s + x_direction;
    const bool reads = step.in_at[s] >= 0, moves = s < 2 && step.terms.reads[direction], given = moves && steps.given[s];
    const V factor = tile[factors.at + k], change = directed ? tile[factors.direction_at + k] : V{}, scale = s == 2 && step.z_along ? change : factor;
    const Strip<V> in = tile.from(reads ? step.in_at[s] + block.first : 0), along = tile.from(moves ? step.layout.channel_in[direction] + block.first : 0);
    for (int m = 0; m < block.count; ++m) {
      const V value = reads ? in[m] : V{};
      if (moves) {
        V sum{};
        if (given) sum = factor * along[m];
        if (directed) sum += change * value;
        along[m] = sum;
      }
      if (reads) in[m] = scale * value;
    }
  }
}
// And its results: gradients of factors, and what is to be stored.
template <class Layout, class V>
__device__ __forceinline__ void scale_results(const Factors& factors, const Step<Layout>& step, bool first, const Strip<V>& tile, const Team& team) {
  for (int k = team.index; k < factors.count; k += team.count) {
    const FactorBlock block = load_table(factors.blocks + k).value[0];
    const int s = block.slot;
    const bool has_raw = step.raw_at[s] >= 0, writes = step.terms.writes[s];
    const Strip<V> out = tile.from(writes ? step.layout.channel_out[s] + block.first : 0), raw = tile.from(has_raw ? step.raw_at[s] + block.first : 0);
    const int factor_at = step.along ? factors.direction_at : factors.at;
    const V factor = factor_at >= 0 ? tile[factor_at + k] : V{};
    V gradient{};
    for (int m = 0; writes && m < block.count; ++m) {
      const V value = out[m];
      if (has_raw) gradient += raw[m] * value;
      out[m] = factor * value;
    }
    if (factors.gradient_at >= 0) tile[factors.gradient_at + k] = first ? gradient : tile[factors.gradient_at + k] + gradient;
  }
}

// A kernel, but for its own part: multiply_signals(plan, step, tile, team), from components of the operands to those of the results, with a barrier
// before and behind it. (A function and no lambda: nvcc 13.0 calls a lambda so large, with its captures in local memory.)
template <template <class> class Plan, class C, class T, class Layout>
__device__ __forceinline__ void for_each_step(const Plan<C>& plan, const Steps<T, Layout>& steps, int items, long long signals) {
  using V = Items<C>;
  const int packs = unsigned(items) / V::count;
  const Team team = team_of(packs);
  const long long first = (long long)blockIdx.x * unsigned(items);
  const int live = int(signals - first < items ? signals - first : items);
  const Strip<V> tile = own_strip<V>(packs);
  const Strip<C> numbers = first_strip<C>(tile);
  const Step<Layout>* at = steps.step;
  for (int rest = steps.total, rank = 0, i = 0;;) {
    const Step<Layout>& step = *at;
#pragma unroll 1
    for (int n = 0; n < step.load_count; ++n) load_operand(steps, step.read[n], rank, first, live, numbers);
    __syncthreads();
    if (steps.factors.count) {
      scale_operands(steps, step, tile, team);
      __syncthreads();
    }
    multiply_signals(plan, step, tile, team);
    __syncthreads();
    if (steps.factors.count) {
#pragma unroll 1
      for (int n = 0; n < step.raw_count; ++n) load_operand(steps, step.raw[n], rank, first, live, numbers);
      __syncthreads();
      scale_results(steps.factors, step, i == 0, tile, team);
      __syncthreads();
    }
#pragma unroll 1
    for (int n = step.store_begin; n < step.store_end; ++n) {
      const ResultInTile& result = step.written[n];
      const auto& place = steps.to[result.slot];
      T* to = place.rows_begin;
      bool accumulate = result.accumulate;
      if (rank > 0) to += rank * place.of_rank, accumulate = accumulate || place.of_rank == 0;
      store_tile(place.rows, to, accumulate, first, live, numbers.from(result.at));
    }
    if (--rest == 0) return;
    __syncthreads();  // results have been stored
    ++at;
    if (++i == steps.count) at = steps.step, i = 0, ++rank;
  }
}

// The host's side: a plan and the kernel for it. Layout(plan, terms) says where in a tile of `components` the kernel's parts lie: channel_in and
// channel_out, components of operands and of results, of which only the latter are in use when the kernel's part is done; and what `work` a step is,
// as transforms_of counts it. C: type of the computation and of the plan, T: of the arrays.
template <class T, class C, class Plan, class Layout>
class ChannelProduct : public Operation {
 public:
  void contract(const Call& call, cudaStream_t stream) const override {
    const Form form = form_of(call);
    const auto clear = [&](void* out, size_t numbers) {
      if (out && !call.accumulate) check(cudaMemsetAsync(out, 0, numbers * sizeof(T), stream), "cudaMemsetAsync", numbers * sizeof(T));
    };
    const auto clear_others = [&] {
      for (int s = 0; s < slot_count; ++s)
        if (!form.stored.writes[s]) clear(call.out[s], size_t(dim[s]) * (call.shared[s] ? 1 : call.batch));
    };
    if (form.steps.empty()) return clear_others(), clear(call.weight_out, size_t(weights) * (call.weight_shared ? 1 : call.batch));

    const long long signals = call.batch * plan_.mul;
    const Tiling tiling = tiling_for<Items<C>>(device, form.components, form.teams, signals, form.least_teams);
    const Results<T> results(*this, call, form.stored, stream);
    const bool sums_weights = call.weight_out && call.weight_shared;
    std::optional<Workspace> weight_sums;
    if (sums_weights) weight_sums.emplace(device, size_t(call.batch) * weights * sizeof(T), stream);
    T* const weight_rows = static_cast<T*>(sums_weights ? weight_sums->data() : call.weight_out);

    clear_others();
    Steps<T, Layout> steps;
    steps.factors = form.factors;
    const auto rows = [&](int s, bool shared) { return channel_rows<T, C>(plan_.slots[s], plan_.mul, shared, innermost_, tiling.threads); };
    for (int o = 0; o < operand_count; ++o) {
      // A direction that is made of the factors' alone is a row of x or y until then.
      const void* from = call.in[o] ? call.in[o] : call.in[slot_of(o)];
      steps.from[o] = {static_cast<const T*>(from), 0, rows(slot_of(o), call.shared[slot_of(o)])};
    }
    for (int s = 0; s < 2; ++s) steps.given[s] = call.in[s + x_direction];
    for (int s = 0; s < slot_count; ++s) steps.to[s] = {results.rows(s), 0, rows(s, false)};
    if (factors_.count) {
      const int pitch = factors_.count * plan_.mul;
      const auto rows_of_weights = [&](bool shared) {
        Rows of = rows_of<T, C>(weights, factors_.count, plan_.mul, shared, plan_.mul == 1 ? nullptr : factor_channels_, plan_.mul > 1, tiling.threads);
        of.whole = of.whole && factors_.rank == 1;
        return of;
      };
      steps.from[weight_operand] = {static_cast<const T*>(call.weight), pitch, rows_of_weights(call.weight_shared)};
      steps.from[weight_operand + 1] = {static_cast<const T*>(call.weight_direction), pitch, rows_of_weights(call.weight_shared)};
      steps.to[weight_result] = {weight_rows, pitch, rows_of_weights(false)};
    }
    bool written[slot_count + 1];
    for (int s = 0; s < slot_count; ++s) written[s] = results.accumulates(s);
    written[weight_result] = call.accumulate && !sums_weights;
    for (size_t begin = 0; begin < form.steps.size(); begin += most_steps) {
      steps.count = int(std::min<size_t>(most_steps, form.steps.size() - begin));
      std::copy_n(form.steps.begin() + long(begin), steps.count, steps.step);
      steps.total = steps.count * factors_.rank;
      if (weight_rows) {
        Step<Layout>& last = steps.step[steps.count - 1];
        last.written[last.store_end++] = {weight_result, form.factors.gradient_at, false};
      }
      for (int i = 0; i < steps.count; ++i)
        for (int n = steps.step[i].store_begin; n < steps.step[i].store_end; ++n) {
          ResultInTile& result = steps.step[i].written[n];
          result.accumulate = std::exchange(written[result.slot], true);
        }
      check(launch(kernel_, tiling.grid(signals), tiling.threads, tiling.shared_bytes, stream, plan_, steps, tiling.items, signals), "cudaLaunchKernel");
    }
    results.finish();
    if (sums_weights) sum_rows(weight_rows, static_cast<T*>(call.weight_out), call.accumulate, weights, call.batch, stream);
  }

 protected:
  using Kernel = void (*)(Plan, Steps<T, Layout>, int items, long long signals);
  static_assert(sizeof(Plan) + sizeof(Steps<T, Layout>) + 16 <= 4096);

  // build(store) makes the plan. rank: how many products with factors are summed; 0: one without.
  template <class Build>
  ChannelProduct(int device, int rank, const ChannelSlot (&slots)[3], Kernel kernel, Build&& build)
      : Operation(device, sizeof(T) == 8, slots[0].dim, slots[1].dim, slots[2].dim), arena_(device), innermost_(are_innermost(slots[0]) && are_innermost(slots[1]) && are_innermost(slots[2])),
        plan_(arena_.build(build)), kernel_(kernel) {
    if (rank > 0) {
      std::vector<FactorBlock> blocks;
      std::vector<Strided> channels;
      for (int s = 0; s < slot_count; ++s)
        for (int b = 0, first = 0; b < int(slots[s].blocks.size()); first = blocks.back().first + blocks.back().count, ++b) {
          channels.push_back({int(blocks.size()) * plan_.mul, 1});
          blocks.push_back({s, first, 2 * slots[s].blocks[size_t(b)].l + 1, 0});
        }
      factors_.count = int(blocks.size()), factors_.rank = rank, weights = rank * factors_.count * plan_.mul;
      factors_.blocks = arena_.build([&](auto& store) { return store.items(blocks); });
      factor_channels_ = arena_.build([&](auto& store) { return store.items(channels); });
    }
    Call call{};
    call.in[x_operand] = call.in[y_operand] = call.out[2] = &call;
    tiling_for<Items<C>>(device, form_of(call).components, 1, 1);
    call.in[z_operand] = call.out[0] = call.out[1] = call.weight_out = &call, call.out[2] = nullptr;
    tiling_for<Items<C>>(device, form_of(call).components, 1, 1);
    allow_all_shared_memory(device, kernel);
  }

 private:
  // A call, as steps and a tile for all of them.
  struct Form {
    std::vector<Step<Layout>> steps;
    Factors factors;
    Terms stored{};  // writes: by some step
    long components = 0;
    int teams = 1, least_teams = 1;
    double work = 0;
  };
  enum class Grain { call, result, term };  // of a step, at most: all results, all terms of a result, one term

  // Whose sum of products with a slot's result is the gradient of the slot's factors; -1: nothing's.
  static int raw_operand(int s, bool along) { return !along ? s : s < 2 ? s + x_direction : -1; }

  // That of the least work, of those that have room. It depends on the call's kind only, so that the results' bits do not depend on the batch.
  Form form_of(const Call& call) const {
    Form best = form_of(call, Grain::call);
    for (const Grain grain : {Grain::result, Grain::term}) {
      Form form = form_of(call, grain);
      if (form.work <= best.work) best = std::move(form);
    }
    return best;
  }
  Form form_of(const Call& call, Grain grain) const {
    Form form;
    form.factors = factors_;
    const bool directed = factors_.count && call.weight_direction, doubles = directed || call.in[x_direction] || call.in[y_direction];
    const bool wants_weights = factors_.count && call.weight_out;
    const auto add_step = [&](const Terms& terms, bool z_along, bool along) {
      Step<Layout> step{terms, Layout(plan_, terms), {}, {}, {}, 0, 0, 0, 0, 0, 0, z_along, along, {-1, -1, -1}, {-1, -1, -1}};
      long behind = 0;
      for (int o = 0; o < operand_count; ++o) {
        if (!terms.reads[o]) continue;
        step.read[step.read_count++] = {o, slot_of(o), step.layout.channel_in[o]};
        behind = std::max<long>(behind, step.layout.channel_in[o] + plan_.slots[slot_of(o)].components);
        if (o < slot_count) step.in_at[o] = step.layout.channel_in[o];
      }
      step.load_count = step.read_count;
      // A direction of factors takes the operand too.
      for (int s = 0; directed && s < 2; ++s) {
        if (terms.reads[s] || !terms.reads[s + x_direction]) continue;
        step.in_at[s] = int(std::exchange(behind, behind + plan_.slots[s].components));
        step.read[step.load_count++] = {s, s, step.in_at[s]};
      }
      long begin = step.layout.components, end = 0, raws = 0;
      for (const bool stored : {false, true}) {
        step.store_begin = step.written_count;
        for (int s = 0; s < slot_count; ++s) {
          if (!terms.writes[s] || (call.out[s] && (!along || directed)) != stored) continue;
          form.stored.writes[s] = form.stored.writes[s] || stored;
          step.written[step.written_count++] = {s, step.layout.channel_out[s], false};
          begin = std::min<long>(begin, step.layout.channel_out[s]), end = std::max<long>(end, step.layout.channel_out[s] + plan_.slots[s].components);
          const int o = raw_operand(s, along);
          if (!wants_weights || o < 0 || !call.in[o]) continue;
          step.raw[step.raw_count++] = {o, s, int(raws)};
          raws += plan_.slots[s].components;
        }
      }
      step.store_end = step.written_count;
      // Before the results or behind them.
      const long first = raws <= begin ? 0 : end;
      for (int n = 0; n < step.raw_count; ++n) step.raw_at[step.raw[n].slot] = step.raw[n].at += int(first);
      form.components = std::max<long>({form.components, step.layout.components, behind, first + raws});
      form.work += step.layout.work;
      form.teams = std::max(form.teams, step.layout.teams), form.least_teams = std::max(form.least_teams, step.layout.least_teams);
      form.steps.push_back(step);
    };
    // The products of these operands, as steps.
    const auto add = [&](Call part, bool z_along, bool along) {
      for (int s = 0; s < slot_count; ++s) {
        const int o = raw_operand(s, along);
        const bool for_weights = wants_weights && o >= 0 && call.in[o], for_results = call.out[s] && (!along || directed);
        part.out[s] = (for_weights || for_results) && !(z_along && s == 2) ? &form : nullptr;
      }
      const Terms all = terms_of(part);
      for (int t = 0; t < all.count;) {
        Terms terms{};
        do {
          const Term& term = all.term[t++];
          terms.term[terms.count++] = {term.a, term.b, term.out, !terms.writes[term.out]};
          terms.reads[term.a] = terms.reads[term.b] = terms.writes[term.out] = true;
        } while (t < all.count && (grain == Grain::call || (grain == Grain::result && all.term[t].out == all.term[t - 1].out)));
        add_step(terms, z_along, along);
      }
    };
    Call plain = call;
    plain.in[x_direction] = plain.in[y_direction] = nullptr;
    if (doubles) {
      Call moved = call;
      for (const int o : {x_direction, y_direction})
        if (directed) moved.in[o] = &form;
      add(moved, false, false);
      if (directed && call.in[z_operand]) add(plain, true, false);
      if (factors_.count) add(plain, false, true);
    } else {
      add(plain, false, false);
    }
    if (form.steps.empty()) return form;
    if (factors_.count) {
      const auto take = [&](bool wanted) { return wanted ? int(std::exchange(form.components, form.components + factors_.count)) : -1; };
      Factors& factors = form.factors;
      factors.at = take(true), factors.direction_at = take(directed), factors.gradient_at = take(wants_weights);
      for (Step<Layout>& step : form.steps) {
        step.read[step.load_count++] = {weight_operand, weight_result, factors.at};
        if (directed) step.read[step.load_count++] = {weight_operand + 1, weight_result, factors.direction_at};
      }
    }
    const long long packs = packs_with_room<Items<C>>(device, form.components);
    form.work = packs < 1 ? std::numeric_limits<double>::infinity() : form.work / double(std::min<long long>(packs, 32));
    return form;
  }

  PlanArena arena_;
  bool innermost_;
  Plan plan_;
  Kernel kernel_;
  Factors factors_;
  const Strided* factor_channels_ = nullptr;
};

}  // namespace equitensor::cuda
