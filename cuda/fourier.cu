// Gaunt tensor product in the Fourier basis, as on the CPU: coefficients of both signals on the torus, their product term by term (or as values, by
// fast transforms along both axes), and the components read off, in one kernel. Everything between operands and result lies in shared memory.
// Every term is the same product with another slot as its output.
#include "core/fourier_plan.hpp"
#include "core/fourier_terms.hpp"
#include "core/matrix_fold.hpp"
#include "cuda/channel_product.cuh"

namespace equitensor::cuda {
namespace {

// Each takes room for the values of a ring.
constexpr int ring_teams = 4;
template <class T>
__host__ __device__ inline int ring_values(const FourierPlan<T>& plan) {
  return (plan.slots[0].parts + plan.slots[1].parts + plan.slots[2].parts) * plan.angles;
}

// First components in a tile.
struct FourierLayout {
  int channel_in[operand_count], coefficients[operand_count], product[slot_count], channel_out[slot_count];
  int rings_in[operand_count], rings_out[slot_count];
  int values;  // FFT: on one ring, [team][slot][part][angle]
  Divisor by_orders[slot_count];
  int components;
  int teams, least_teams = 1, work;
  FourierLayout() = default;
  template <class T>
  FourierLayout(const FourierPlan<T>& plan, const Terms& terms) {
    const auto rings = [&](int s) { return plan.fft ? long(plan.rings) * plan.slots[s].parts * (2 * plan.slots[s].degree + 1) : 0; };
    const auto channel = [&](int s) { return plan.slots[s].components; };
    const auto series = [&](int s) { return plan.slots[s].coefficients; };
    // What one phase reads is not needed in the next but one: two halves of the tile, each for the larger of its guests.
    Components operands, torus, results;
    for (int o = 0; o < operand_count; ++o) {
      channel_in[o] = operands.take(terms.reads[o] ? channel(slot_of(o)) : 0);
      rings_in[o] = torus.take(terms.reads[o] ? rings(slot_of(o)) : 0);
    }
    for (int s = 0; s < slot_count; ++s) {
      rings_out[s] = torus.take(terms.writes[s] ? rings(s) : 0);
      (plan.fft ? channel_out : product)[s] = results.take(terms.writes[s] ? (plan.fft ? channel(s) : series(s)) : 0);
    }
    values = torus.take(plan.fft ? ring_teams * ring_values(plan) : 0);
    Components first{std::max({operands.count, torus.count, results.count})}, second = first;
    for (int o = 0; o < operand_count; ++o) coefficients[o] = first.take(terms.reads[o] ? series(slot_of(o)) : 0);
    for (int s = 0; s < slot_count; ++s) (plan.fft ? product : channel_out)[s] = second.take(terms.writes[s] ? (plan.fft ? series(s) : channel(s)) : 0);
    for (int s = 0; s < slot_count; ++s) by_orders[s] = divisor(2 * plan.slots[s].degree + 1);
    const Components tile{std::max(first.count, second.count)};
    components = int(tile.count), teams = tile.teams(), work = transforms_of(terms);
  }
};

template <TermKind kind, bool negative, class V>
__device__ __forceinline__ void add_run(const Strip<V>& a, const Strip<V>& b, const int* factors, int count, V& cosine, V& sine) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Pack<int, 2> pair = load_table<2>(factors + 2 * i);
    add_term<kind, negative>(a.from(pair.value[0]), b.from(pair.value[1]), cosine, sine);
  }
}
template <class V>
__device__ __forceinline__ void multiply_terms(const PlanTerms& terms, const Strip<V>& a, const Strip<V>& b, const Strip<V>& out, bool first,
                                               const Team& team) {
  for (int i = team.index; i < terms.count; i += team.count) {
    const PlanTermSum sum = load_table(terms.sums + i).value[0];
    V cosine{}, sine{};
    for (int r = sum.run_begin; r < sum.run_end; ++r) {
      const PlanTermRun run = load_table(terms.runs + r).value[0];
      const int* factors = terms.factors + 2 * run.begin;
#define EQUITENSOR_CASE(kind)                                                                                           \
  case 2 * int(TermKind::kind): add_run<TermKind::kind, false>(a, b, factors, run.count, cosine, sine); break;          \
  case 2 * int(TermKind::kind) + 1: add_run<TermKind::kind, true>(a, b, factors, run.count, cosine, sine); break;
      switch (run.kind) {
        EQUITENSOR_CASE(product) EQUITENSOR_CASE(conjugate_b) EQUITENSOR_CASE(conjugate_a)
        EQUITENSOR_CASE(real_a) EQUITENSOR_CASE(real_b) EQUITENSOR_CASE(dot) EQUITENSOR_CASE(real)
      }
#undef EQUITENSOR_CASE
      for (int d = 0; d < run.doublings; ++d) cosine += cosine, sine += sine;
    }
    const Strip<V> to = out.from(sum.out);
    to[0] = first ? cosine : to[0] + cosine;
    if (!sum.real) to[1] = first ? sine : to[1] + sine;
  }
}

template <bool reversed, class V>
__device__ __forceinline__ void apply_butterflies(const PlanButterflies& b, const Strip<V>& values) {
  for (int i = 0; i < b.count; ++i) {
    const Pack<int, 2> pair = load_table<2>(b.pairs + 2 * (reversed ? b.count - 1 - i : i));
    butterfly(values[pair.value[0]], values[pair.value[1]]);
  }
}
// A team takes an order of a part.
template <bool reversed, class T, class V>
__device__ __forceinline__ void fold_rings(const FourierPlan<T>& plan, const FourierLayout& layout, int s, const Strip<V>& rings, const Team& team) {
  const int orders = 2 * plan.slots[s].degree + 1, columns = plan.slots[s].parts * orders;
  for (int i = team.index; i < columns; i += team.count) {
    const int order = i - divide(i, layout.by_orders[s]) * orders - plan.slots[s].degree;
    apply_butterflies<reversed>(plan.ring_butterflies[order & 1], Strip<V>{rings.from(i).at, columns * rings.pitch});
  }
}

// One team, one ring: all terms of one result.
template <class T, class V>
__device__ __forceinline__ void multiply_values(const FourierPlan<T>& plan, const Terms& terms, const FourierLayout& layout, const Strip<V>& tile,
                                                int out, int r, const Team& team) {
  const int n = plan.angles;
  const Team alone{0, 1};
  // Operands of slots of their own in every term: the product of one term is formed before the next one's values.
  const auto values = [&](int s, int part) {
    const int before = (s > 0 ? plan.slots[0].parts : 0) + (s > 1 ? plan.slots[1].parts : 0);
    return tile.from(layout.values + team.index * ring_values(plan) + (before + part) * n);
  };
  const auto ring = [&](int first, int s, int part) {
    return tile.from(first + (r * plan.slots[s].parts + part) * (2 * plan.slots[s].degree + 1));
  };
  for (int t = 0; t < terms.count; ++t) {
    const Term term = terms.term[t];
    if (term.out != out) continue;
    const int sa = slot_of(term.a), sb = slot_of(term.b);
#pragma unroll 1
    for (int input = 0; input < 2; ++input) {
      const int s = input ? sb : sa, operand = input ? term.b : term.a;
      for (int part = 0; part < plan.slots[s].parts; ++part) {
        apply(plan.slots[s].to_angles, ring(layout.rings_in[operand], s, part), values(s, part), alone);
        apply_butterflies<false>(plan.angle_butterflies, values(s, part));
      }
    }
    unsigned written = term.first ? 0 : ~0u;
    for (int p = 0; p < plan.product_count; ++p) {
      const PlanProduct product = load_table(plan.products + p).value[0];
      const int part = part_of(product, out);
      const Strip<V> f = values(sa, part_of(product, sa)), g = values(sb, part_of(product, sb)), h = values(out, part);
      for (int j = 0; j < n; ++j) h[j] = written >> part & 1 ? h[j] + f[j] * g[j] : f[j] * g[j];
      written |= 1u << part;
    }
  }
  for (int part = 0; part < plan.slots[out].parts; ++part) {
    apply_butterflies<true>(plan.angle_butterflies, values(out, part));
    apply(plan.slots[out].from_angles, values(out, part), ring(layout.rings_out[out], out, part), alone);
  }
}

// Coefficients on the torus to those of the products, through values.
template <class T, class V>
__device__ __forceinline__ void multiply_by_values(const FourierPlan<T>& plan, const Terms& terms, const FourierLayout& layout, const Strip<V>& tile,
                                                   const Team& team) {
#pragma unroll 1
  for (int o = 0; o < operand_count; ++o)
    if (terms.reads[o]) apply(plan.slots[slot_of(o)].to_rings, tile.from(layout.coefficients[o]), tile.from(layout.rings_in[o]), team);
  __syncthreads();
#pragma unroll 1
  for (int o = 0; o < operand_count; ++o)
    if (terms.reads[o]) fold_rings<false>(plan, layout, slot_of(o), tile.from(layout.rings_in[o]), team);
  __syncthreads();
  const int teams = team.count < ring_teams ? team.count : ring_teams;
  for (int r = teams > team.index ? team.index : plan.rings; r < plan.rings; r += teams)
#pragma unroll 1
    for (int out = 0; out < slot_count; ++out)
      if (terms.writes[out]) multiply_values(plan, terms, layout, tile, out, r, team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < slot_count; ++s)
    if (terms.writes[s]) fold_rings<true>(plan, layout, s, tile.from(layout.rings_out[s]), team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < slot_count; ++s)
    if (terms.writes[s]) apply(plan.slots[s].from_rings, tile.from(layout.rings_out[s]), tile.from(layout.product[s]), team);
}

template <class T>
__device__ __forceinline__ void multiply_signals(const FourierPlan<T>& plan, const Step<FourierLayout>& step, const Strip<Items<T>>& tile, const Team& team) {
  const FourierLayout& layout = step.layout;
#pragma unroll 1
  for (int i = 0; i < step.read_count; ++i) {
    const int o = step.read[i].index, s = step.read[i].slot;
    apply(plan.slots[s].synthesis, tile.from(layout.channel_in[o]), tile.from(layout.coefficients[o]), team);
  }
  __syncthreads();
  if (plan.fft) {
    multiply_by_values(plan, step.terms, layout, tile, team);
  } else {
#pragma unroll 1
    for (int t = 0; t < step.terms.count; ++t) {
      const Term term = step.terms.term[t];
      multiply_terms(plan.terms[term.out], tile.from(layout.coefficients[term.a]), tile.from(layout.coefficients[term.b]),
                     tile.from(layout.product[term.out]), term.first, team);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < step.written_count; ++i) {
    const int s = step.written[i].slot;
    apply(plan.slots[s].analysis, tile.from(layout.product[s]), tile.from(layout.channel_out[s]), team);
  }
}

template <class T>
__global__ __launch_bounds__(threads, 1) void fourier(const __grid_constant__ FourierPlan<T> plan, const __grid_constant__ Steps<T, FourierLayout> steps, int items, long long signals) {
  for_each_step(plan, steps, items, signals);
}

template <class T>
class Fourier final : public ChannelProduct<T, T, FourierPlan<T>, FourierLayout> {
 public:
  Fourier(int device, int rank, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, bool fft)
      : ChannelProduct<T, T, FourierPlan<T>, FourierLayout>(device, rank, slots, fourier<T>, [&](auto& store) {
          PassFlops flops;
          return fourier_plan<T>(store, mul, slots, products, fft, flops);
        }) {}
};

}  // namespace

std::unique_ptr<Operation> make_fourier(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                        const std::vector<PlanProduct>& products, bool fft) {
  return make<Fourier>(is_double, device, rank, mul, slots, products, fft);
}

}  // namespace equitensor::cuda
