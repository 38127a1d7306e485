// Gaunt tensor product, as on the CPU: seminaive transform of both signals to the rings of a Gauss-Legendre grid, product ring by ring,
// transform back, in one kernel. Rings lie in shared memory; nothing between operands and result is in global memory. Each gradient is the
// same product with another slot as its output.
#include "core/series.hpp"
#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

struct Contraction {
  int a, b, out;  // slots
};
__host__ __device__ inline int part_of(const PlanProduct& product, int slot) {
  return slot == 0 ? product.part1 : slot == 1 ? product.part2 : product.part_out;
}

// The product of values at angles is there to check the other one by: few teams are enough.
constexpr int pointwise_teams = 4;
template <class T>
__host__ __device__ inline long ring_values(const GauntPlan<T>& plan) {
  return long(plan.slots[0].parts + plan.slots[1].parts + plan.slots[2].parts) * plan.angles;
}

template <class T>
struct GauntTiles {
  T *channel[3], *rings_in[3], *rings_out[3];
  T* values;  // pointwise product: on one ring, [team][slot][part][angle]
  int bytes;
  __host__ __device__ GauntTiles(const GauntPlan<T>& plan, T* memory, int pitch, bool backward) {
    T* at = memory;
    const auto take = [&](long components) {
      T* piece = at;
      at += components * pitch;
      return piece;
    };
    const long half = (plan.rings + 1) / 2;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      const bool is_input = backward || s < 2, is_output = backward ? s < 2 : s == 2;
      const long rings = half * plan.slots[s].parts * 2 * (2 * plan.slots[s].degree + 1);
      channel[s] = take(plan.slots[s].components);
      rings_in[s] = take(is_input ? rings : 0);
      rings_out[s] = take(is_output ? rings : 0);
    }
    values = take(plan.pointwise ? pointwise_teams * ring_values(plan) : 0);
    bytes = int((at - memory) * long(sizeof(T)));
  }
};

// Even and odd halves to their sum and difference, for every mirrored ring; its own inverse up to the factor in the analysis.
template <class T>
__device__ __forceinline__ void fold_rings(const GauntPlan<T>& plan, int s, T* rings, const Team& team) {
  const int orders = 2 * plan.slots[s].degree + 1, pairs = plan.rings / 2 * plan.slots[s].parts;
  for (int i = team.index; i < pairs * orders; i += team.count) {
    const int pair = i / orders, m = i - pair * orders;
    T& even = rings[(pair * 2 * orders + m) * team.pitch + team.item];
    T& odd = rings[((pair * 2 + 1) * orders + m) * team.pitch + team.item];
    butterfly(even, odd);
  }
}

// Unrolled, a product of degrees f and g keeps both rings in registers: one load a coefficient instead of two a multiply-add.
template <int df, int dg, int dh, class T>
__device__ __forceinline__ void multiply_unrolled(const Strip<T>& f, const Strip<T>& g, const Strip<T>& h, bool first) {
  T a[2 * df + 1], b[2 * dg + 1];
#pragma unroll
  for (int m = -df; m <= df; ++m) a[df + m] = f[m];
#pragma unroll
  for (int m = -dg; m <= dg; ++m) b[dg + m] = g[m];
  const T *af = a + df, *bg = b + dg;
  multiply_series<T>(af, af, Int<df>{}, bg, bg, Int<dg>{}, h, Int<dh>{}, first);
}
template <class T>
__device__ __forceinline__ void multiply_ring(const Strip<T>& f, int df, const Strip<T>& g, int dg, const Strip<T>& h, int dh, bool first) {
#define EQUITENSOR_CASE(d)                                                                                  \
  if (df == d && dg == d && dh == 2 * d) return multiply_unrolled<d, d, 2 * d, T>(f, g, h, first);          \
  if (df == d && dg == 2 * d && dh == d) return multiply_unrolled<d, 2 * d, d, T>(f, g, h, first);
  EQUITENSOR_CASE(1) EQUITENSOR_CASE(2) EQUITENSOR_CASE(3) EQUITENSOR_CASE(4)
#undef EQUITENSOR_CASE
  multiply_series<T>(f, f, df, g, g, dg, h, dh, first);
}

// Values at the angles 2 pi j / n: even parts at [0, n / 2], odd parts behind them, to sums at j and n - j; and back.
template <class T>
__device__ __forceinline__ void unfold_angles(const Strip<T>& values, int n) {
  for (int j = 1; j <= (n - 1) / 2; ++j) butterfly(values[j], values[n / 2 + j]);
}
// One team, one ring. ring(rings, slot, part): the ring's coefficients, from order -degree on.
template <class T, class Ring>
__device__ __forceinline__ void multiply_pointwise(const GauntPlan<T>& plan, const GauntTiles<T>& tile, const Contraction& c, const Team& team,
                                                   Ring&& ring) {
  const int n = plan.angles;
  const Team alone{team.item, 0, 1, team.items, team.pitch};
  const auto values = [&](int s, int part) {
    const int before = (s > 0 ? plan.slots[0].parts : 0) + (s > 1 ? plan.slots[1].parts : 0);
    return Strip<T>{tile.values + (team.index * ring_values(plan) + (before + part) * n) * team.pitch + team.item, team.pitch};
  };
#pragma unroll 1
  for (int input = 0; input < 2; ++input) {
    const int s = input ? c.b : c.a;
    for (int part = 0; part < plan.slots[s].parts; ++part) {
      apply(plan.slots[s].to_angles, ring(choose(tile.rings_in, s), s, part).at, values(s, part).at, alone);
      unfold_angles(values(s, part), n);
    }
  }
  unsigned written = 0;
  for (int p = 0; p < plan.product_count; ++p) {
    const PlanProduct product = load_table(plan.products + p).value[0];
    const int part = part_of(product, c.out);
    const Strip<T> f = values(c.a, part_of(product, c.a)), g = values(c.b, part_of(product, c.b)), h = values(c.out, part);
    for (int j = 0; j < n; ++j) h[j] = written >> part & 1 ? h[j] + f[j] * g[j] : f[j] * g[j];
    written |= 1u << part;
  }
  for (int part = 0; part < plan.slots[c.out].parts; ++part) {
    unfold_angles(values(c.out, part), n);
    apply(plan.slots[c.out].from_angles, values(c.out, part).at, ring(choose(tile.rings_out, c.out), c.out, part).at, alone);
  }
}

template <class T>
__device__ __forceinline__ void contract_rings(const GauntPlan<T>& plan, const GauntTiles<T>& tile, const Contraction& c, const Team& team) {
  const auto ring = [&](T* rings, int s, int at, int part, int sign) {
    const GauntSlot<T>& slot = plan.slots[s];
    const int orders = 2 * slot.degree + 1;
    return Strip<T>{rings + (((at * slot.parts + part) * 2 + sign) * orders + slot.degree) * team.pitch + team.item, team.pitch};
  };
  if (plan.pointwise) {
    const int teams = team.count < pointwise_teams ? team.count : pointwise_teams;
    for (int r = teams > team.index ? team.index : plan.rings; r < plan.rings; r += teams) {
      const int half = (plan.rings + 1) / 2, sign = r >= half, at = sign ? r - half : r;
      multiply_pointwise(plan, tile, c, team, [&](T* rings, int s, int part) {
        const Strip<T> centre = ring(rings, s, at, part, sign);
        return Strip<T>{centre.at - plan.slots[s].degree * team.pitch, team.pitch};
      });
    }
    return;
  }
  // Northern rings, then their mirror images.
  for (int r = team.index; r < plan.rings; r += team.count) {
    const int half = (plan.rings + 1) / 2, sign = r >= half, at = sign ? r - half : r;
    unsigned written = 0;
    for (int p = 0; p < plan.product_count; ++p) {
      const PlanProduct product = load_table(plan.products + p).value[0];
      const int part = part_of(product, c.out);
      multiply_ring(ring(choose(tile.rings_in, c.a), c.a, at, part_of(product, c.a), sign), plan.slots[c.a].degree,
                    ring(choose(tile.rings_in, c.b), c.b, at, part_of(product, c.b), sign), plan.slots[c.b].degree,
                    ring(choose(tile.rings_out, c.out), c.out, at, part, sign), plan.slots[c.out].degree, !(written >> part & 1));
      written |= 1u << part;
    }
  }
}

template <class T>
__device__ __forceinline__ void synthesize(const GauntPlan<T>& plan, const GauntTiles<T>& tile, int s, const Team& team) {
  apply(plan.slots[s].synthesis, choose(tile.channel, s) + team.item, choose(tile.rings_in, s) + team.item, team);
}
// The synthesis leaves ring coefficients that no component reaches as they are.
template <class T>
__device__ __forceinline__ void clear_rings(const GauntPlan<T>& plan, int s, T* rings, const Team& team) {
  const int numbers = (plan.rings + 1) / 2 * plan.slots[s].parts * 2 * (2 * plan.slots[s].degree + 1);
  for (int i = team.index; i < numbers; i += team.count) rings[i * team.pitch + team.item] = 0;
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void gaunt_forward(GauntPlan<T> plan, ChannelRows rows, int items, long long signals, const T* x,
                                                         const T* y, T* z) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), pitch = team.pitch;
  const GauntTiles<T> tile(plan, dynamic_shared<T>(), pitch, false);
  load_tile(rows.slot[0], x, first, live, tile.channel[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel[1], pitch);
#pragma unroll 1
  for (int s = 0; s < 2; ++s) clear_rings(plan, s, choose(tile.rings_in, s), team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) synthesize(plan, tile, s, team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) fold_rings(plan, s, choose(tile.rings_in, s), team);
  __syncthreads();
  contract_rings(plan, tile, {0, 1, 2}, team);
  __syncthreads();
  fold_rings(plan, 2, tile.rings_out[2], team);
  __syncthreads();
  apply(plan.slots[2].analysis, tile.rings_out[2] + team.item, tile.channel[2] + team.item, team);
  __syncthreads();
  store_tile(rows.slot[2], z, first, live, tile.channel[2], pitch);
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void gaunt_backward(GauntPlan<T> plan, ChannelRows rows, ChannelRows gradient_rows, int items,
                                                          long long signals, const T* x, const T* y, const T* dz, T* dx, T* dy) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), pitch = team.pitch;
  const GauntTiles<T> tile(plan, dynamic_shared<T>(), pitch, true);
  load_tile(rows.slot[0], x, first, live, tile.channel[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel[1], pitch);
  load_tile(rows.slot[2], dz, first, live, tile.channel[2], pitch);
#pragma unroll 1
  for (int s = 0; s < 3; ++s) clear_rings(plan, s, choose(tile.rings_in, s), team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 3; ++s) synthesize(plan, tile, s, team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 3; ++s) fold_rings(plan, s, choose(tile.rings_in, s), team);
  __syncthreads();
#pragma unroll 1
  for (int out = 0; out < 2; ++out) contract_rings(plan, tile, {1 - out, 2, out}, team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) fold_rings(plan, s, choose(tile.rings_out, s), team);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < 2; ++s) apply(plan.slots[s].analysis, choose(tile.rings_out, s) + team.item, choose(tile.channel, s) + team.item, team);
  __syncthreads();
  if (dx) store_tile(gradient_rows.slot[0], dx, first, live, tile.channel[0], pitch);
  if (dy) store_tile(gradient_rows.slot[1], dy, first, live, tile.channel[1], pitch);
}

template <class T>
class Gaunt final : public ChannelProduct<T, GauntPlan<T>> {
 public:
  Gaunt(int device, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, const Grid& grid)
      : ChannelProduct<T, GauntPlan<T>>(
            device, slots, gaunt_forward<T>, gaunt_backward<T>,
            [&](auto& store) {
              PassFlops flops;
              return gaunt_plan<T>(store, mul, slots, products, grid, flops);
            },
            [](const GauntPlan<T>& plan, int pitch, bool backward) { return size_t(GauntTiles<T>(plan, nullptr, pitch, backward).bytes); }) {}
};

}  // namespace

std::unique_ptr<Operation> make_gaunt(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid) {
  return make<Gaunt>(is_double, device, mul, slots, products, grid);
}

}  // namespace equitensor::cuda
