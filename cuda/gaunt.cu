// Gaunt tensor product, as on the CPU: seminaive transform of both signals to the rings of a Gauss-Legendre grid, product ring by ring,
// transform back, in one kernel. Rings lie in shared memory; nothing between operands and result is in global memory. Every term is the same
// product with another slot as its output.
#include "core/gaunt_plan.hpp"
#include "core/matrix_fold.hpp"
#include "core/series.hpp"
#include "cuda/channel_product.cuh"

namespace equitensor::cuda {
namespace {

// The product of values at angles is there to check the other one by: few teams are enough.
constexpr int pointwise_teams = 4;
template <class T>
__host__ __device__ inline int ring_values(const GauntPlan<T>& plan) {
  return (plan.slots[0].parts + plan.slots[1].parts + plan.slots[2].parts) * plan.angles;
}

// First components in a tile.
struct GauntLayout {
  int channel_in[operand_count], rings_in[operand_count], channel_out[slot_count], rings_out[slot_count];
  int first_rings;  // northern rings that are multiplied first
  int values;  // pointwise product: on one ring, [team][slot][part][angle]
  Divisor by_orders[slot_count];
  int components;
  int teams, least_teams = 1, work;
  GauntLayout() = default;
  template <class T>
  GauntLayout(const GauntPlan<T>& plan, const Terms& terms) {
    const int half = (plan.rings + 1) / 2;
    first_rings = (half + 1) / 2;
    const auto rings = [&](int s, int n) { return long(n) * plan.slots[s].parts * 2 * (2 * plan.slots[s].degree + 1); };
    // The operands' components lie where the results' rings will be, and the results' components behind those, where the operands' rings were.
    // The later rings of the last result lie where the earlier rings of the first operand were: 610 components instead of 714 at L = 6.
    Components results, operands;
    long written_first = 0, read_first = 0;
    for (int s = 0; s < slot_count; ++s) {
      rings_out[s] = results.take(terms.writes[s] ? rings(s, half) : 0);
      if (terms.writes[s]) written_first = rings_out[s] + rings(s, first_rings);
    }
    for (int o = operand_count - 1; o >= 0; --o)
      if (terms.reads[o]) read_first = rings(slot_of(o), first_rings);
    for (int o = 0; o < operand_count; ++o) channel_in[o] = operands.take(terms.reads[o] ? plan.slots[slot_of(o)].components : 0);
    Components later{std::max({written_first, results.count - read_first, operands.count})};
    for (int o = 0; o < operand_count; ++o) rings_in[o] = later.take(terms.reads[o] ? rings(slot_of(o), half) : 0);
    for (int s = 0; s < slot_count; ++s) channel_out[s] = results.take(terms.writes[s] ? plan.slots[s].components : 0);
    Components tile{std::max(results.count, later.count)};
    values = tile.take(plan.pointwise ? pointwise_teams * ring_values(plan) : 0);
    for (int s = 0; s < slot_count; ++s) by_orders[s] = divisor(2 * plan.slots[s].degree + 1);
    components = int(tile.count), teams = tile.teams(), work = transforms_of(terms);
  }
};

// Even and odd halves to their sum and difference, for every mirrored ring; its own inverse up to the factor in the analysis.
template <class T, class V>
__device__ __forceinline__ void fold_rings(const GauntPlan<T>& plan, const GauntLayout& layout, int s, const Strip<V>& rings, const Team& team) {
  const int orders = 2 * plan.slots[s].degree + 1, pairs = plan.rings / 2 * plan.slots[s].parts;
  for (int i = team.index; i < pairs * orders; i += team.count) {
    const int pair = divide(i, layout.by_orders[s]), even = pair * orders + i;
    butterfly(rings[even], rings[even + orders]);
  }
}

// Unrolled, a product of degrees f and g keeps both rings in registers: one load a coefficient instead of two a multiply-add.
template <int df, int dg, int dh, class V>
__device__ __forceinline__ void multiply_unrolled(const Strip<V>& f, const Strip<V>& g, const Strip<V>& h, bool first) {
  V a[2 * df + 1], b[2 * dg + 1];
#pragma unroll
  for (int m = -df; m <= df; ++m) a[df + m] = f[m];
#pragma unroll
  for (int m = -dg; m <= dg; ++m) b[dg + m] = g[m];
  const V *af = a + df, *bg = b + dg;
  multiply_series<V>(af, af, Int<df>{}, bg, bg, Int<dg>{}, h, Int<dh>{}, first);
}
template <class V>
__device__ __forceinline__ void multiply_ring(const Strip<V>& f, int df, const Strip<V>& g, int dg, const Strip<V>& h, int dh, bool first) {
#define EQUITENSOR_CASE(d)                                                                                  \
  if (df == d && dg == d && dh == 2 * d) return multiply_unrolled<d, d, 2 * d>(f, g, h, first);             \
  if (df == d && dg == 2 * d && dh == d) return multiply_unrolled<d, 2 * d, d>(f, g, h, first);             \
  if (df == d && dg == d && dh == d) return multiply_unrolled<d, d, d>(f, g, h, first);
  EQUITENSOR_CASE(1) EQUITENSOR_CASE(2) EQUITENSOR_CASE(3)
#undef EQUITENSOR_CASE
  multiply_series<V>(f, f, df, g, g, dg, h, dh, first);
}

// Values at the angles 2 pi j / n: even parts at [0, n / 2], odd parts behind them, to sums at j and n - j; and back.
template <class V>
__device__ __forceinline__ void unfold_angles(const Strip<V>& values, int n) {
  for (int j = 1; j <= (n - 1) / 2; ++j) butterfly(values[j], values[n / 2 + j]);
}
// One team, one ring: all terms of one result. ring(first component of the rings, slot, part): the ring's coefficients.
template <class T, class V, class Ring>
__device__ __forceinline__ void multiply_pointwise(const GauntPlan<T>& plan, const Terms& terms, const GauntLayout& layout, const Strip<V>& tile,
                                                   int out, const Team& team, Ring&& ring) {
  const int n = plan.angles;
  const Team alone{0, 1};
  // Operands of slots of their own in every term: the product of one term is formed before the next one's values.
  const auto values = [&](int s, int part) {
    const int before = (s > 0 ? plan.slots[0].parts : 0) + (s > 1 ? plan.slots[1].parts : 0);
    return tile.from(layout.values + team.index * ring_values(plan) + (before + part) * n);
  };
  for (int t = 0; t < terms.count; ++t) {
    const Term term = terms.term[t];
    if (term.out != out) continue;
    const int sa = slot_of(term.a), sb = slot_of(term.b);
#pragma unroll 1
    for (int input = 0; input < 2; ++input) {
      const int s = input ? sb : sa, operand = input ? term.b : term.a;
      for (int part = 0; part < plan.slots[s].parts; ++part) {
        apply(plan.slots[s].to_angles, ring(layout.rings_in[operand], s, part).from(-plan.slots[s].degree), values(s, part), alone);
        unfold_angles(values(s, part), n);
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
    unfold_angles(values(out, part), n);
    apply(plan.slots[out].from_angles, values(out, part), ring(layout.rings_out[out], out, part).from(-plan.slots[out].degree), alone);
  }
}

template <class T, class V>
__device__ __forceinline__ void contract_rings(const GauntPlan<T>& plan, const Terms& terms, const GauntLayout& layout, const Strip<V>& tile,
                                               const Team& team) {
  // A northern ring, its mirror image, the next one.
  const auto ring = [&](int first, int s, int r, int part) {
    const GauntSlot<T>& slot = plan.slots[s];
    const int orders = 2 * slot.degree + 1, at = r >> 1, sign = r & 1;
    return tile.from(first + ((at * slot.parts + part) * 2 + sign) * orders + slot.degree);
  };
  const int teams = plan.pointwise ? minimum(team.count, pointwise_teams) : team.count;
#pragma unroll 1
  for (int later = 0; later < 2; ++later) {
    if (later) __syncthreads();  // the earlier rings of the operands are not needed any more
    const int begin = later ? 2 * layout.first_rings : 0, end = later ? plan.rings : minimum(2 * layout.first_rings, plan.rings);
    for (int r = teams > team.index ? begin + team.index : end; r < end; r += teams) {
      if (plan.pointwise) {
#pragma unroll 1
        for (int out = 0; out < slot_count; ++out)
          if (terms.writes[out])
            multiply_pointwise(plan, terms, layout, tile, out, team, [&](int first, int s, int part) { return ring(first, s, r, part); });
        continue;
      }
#pragma unroll 1
      for (int t = 0; t < terms.count; ++t) {
        const Term term = terms.term[t];
        const int a = slot_of(term.a), b = slot_of(term.b);
        unsigned written = term.first ? 0 : ~0u;
        for (int p = 0; p < plan.product_count; ++p) {
          const PlanProduct product = load_table(plan.products + p).value[0];
          const int part = part_of(product, term.out);
          multiply_ring(ring(layout.rings_in[term.a], a, r, part_of(product, a)), plan.slots[a].degree,
                        ring(layout.rings_in[term.b], b, r, part_of(product, b)), plan.slots[b].degree,
                        ring(layout.rings_out[term.out], term.out, r, part), plan.slots[term.out].degree, !(written >> part & 1));
          written |= 1u << part;
        }
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void multiply_signals(const GauntPlan<T>& plan, const Step<GauntLayout>& step, const Strip<Items<T>>& tile, const Team& team) {
  const GauntLayout& layout = step.layout;
#pragma unroll 1
  for (int i = 0; i < step.read_count; ++i) {
    const int o = step.read[i].index, s = step.read[i].slot;
    apply(plan.slots[s].synthesis, tile.from(layout.channel_in[o]), tile.from(layout.rings_in[o]), team);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < step.read_count; ++i) {
    const int o = step.read[i].index, s = step.read[i].slot;
    if (plan.slots[s].folded) fold_rings(plan, layout, s, tile.from(layout.rings_in[o]), team);
  }
  __syncthreads();
  contract_rings(plan, step.terms, layout, tile, team);
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < step.written_count; ++i) {
    const int s = step.written[i].slot;
    if (plan.slots[s].folded) fold_rings(plan, layout, s, tile.from(layout.rings_out[s]), team);
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < step.written_count; ++i) {
    const int s = step.written[i].slot;
    apply(plan.slots[s].analysis, tile.from(layout.rings_out[s]), tile.from(layout.channel_out[s]), team);
  }
}

template <class T>
__global__ __launch_bounds__(threads, 1) void gaunt(const __grid_constant__ GauntPlan<T> plan, const __grid_constant__ Steps<T, GauntLayout> steps, int items, long long signals) {
  for_each_step(plan, steps, items, signals);
}

template <class T>
class Gaunt final : public ChannelProduct<T, T, GauntPlan<T>, GauntLayout> {
 public:
  Gaunt(int device, int rank, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, const Grid& grid)
      : ChannelProduct<T, T, GauntPlan<T>, GauntLayout>(device, rank, slots, gaunt<T>, [&](auto& store) {
          PassFlops flops;
          return gaunt_plan<T>(store, mul, slots, products, grid, flops);
        }) {}
};

}  // namespace

std::unique_ptr<Operation> make_gaunt(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid) {
  return make<Gaunt>(is_double, device, rank, mul, slots, products, grid);
}

}  // namespace equitensor::cuda
