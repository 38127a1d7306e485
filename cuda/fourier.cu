// Gaunt tensor product in the Fourier basis, as on the CPU: coefficients of both signals on the torus, their product term by term (or as values, by
// fast transforms along both axes), and the components read off, in one kernel. Everything between operands and result lies in shared memory. A
// gradient is the transpose.
#include "core/fourier_terms.hpp"
#include "core/matrix_fold.hpp"
#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

struct Contraction {
  int a, b, out;  // slots
};
__host__ __device__ inline int part_of(const PlanProduct& product, int slot) {
  return slot == 0 ? product.part1 : slot == 1 ? product.part2 : product.part_out;
}

// Each takes room for the values of a ring.
constexpr int ring_teams = 4;
template <class T>
__host__ __device__ inline long ring_values(const FourierPlan<T>& plan) {
  return long(plan.slots[0].parts + plan.slots[1].parts + plan.slots[2].parts) * plan.angles;
}

// What one phase reads is not needed in the next but one: two halves of the memory, each for the larger of its guests.
template <class T>
struct FourierTiles {
  T *channel_in[3], *coefficients[3], *product[3], *channel_out[3];
  T *rings_in[3], *rings_out[3], *values;  // FFT; values: on one ring, [team][slot][part][angle]
  int bytes;
  __host__ __device__ FourierTiles(const FourierPlan<T>& plan, T* memory, int pitch, bool backward) {
    T *at = memory, *end = memory;
    const auto take = [&](long numbers) {
      T* piece = at;
      at += numbers * pitch;
      if (at > end) end = at;
      return piece;
    };
    const auto is_input = [&](int s) { return backward || s < 2; };
    const auto is_output = [&](int s) { return backward ? s < 2 : s == 2; };
    const auto ring_numbers = [&](int s) { return long(plan.rings) * plan.slots[s].parts * (2 * plan.slots[s].degree + 1); };
#pragma unroll
    for (int s = 0; s < 3; ++s) channel_in[s] = take(is_input(s) ? plan.slots[s].components : 0);
    if (plan.fft) {
      at = memory;
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        rings_in[s] = take(is_input(s) ? ring_numbers(s) : 0);
        rings_out[s] = take(is_output(s) ? ring_numbers(s) : 0);
      }
      values = take(ring_teams * ring_values(plan));
    }
    at = memory;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      channel_out[s] = product[s] = take(is_output(s) ? (plan.fft ? plan.slots[s].components : plan.slots[s].coefficients) : 0);
    }
    T* const half = at = end;
#pragma unroll
    for (int s = 0; s < 3; ++s) coefficients[s] = take(is_input(s) ? plan.slots[s].coefficients : 0);
    at = half;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      T* const other = take(is_output(s) ? (plan.fft ? plan.slots[s].coefficients : plan.slots[s].components) : 0);
      plan.fft ? product[s] = other : channel_out[s] = other;
    }
    bytes = int((end - memory) * long(sizeof(T)));
  }
};

template <class T, TermKind kind, bool negative>
__device__ __forceinline__ void add_run(const T* a, const T* b, const int* factors, int count, int pitch, T& cosine, T& sine) {
  for (int i = 0; i < count; ++i) {
    const Pack<int, 2> pair = load_table<2>(factors + 2 * i);
    add_term<kind, negative>(Strip<const T>{a + pair.value[0] * pitch, pitch}, Strip<const T>{b + pair.value[1] * pitch, pitch}, cosine, sine);
  }
}
template <class T>
__device__ __forceinline__ void multiply_terms(const PlanTerms& terms, const T* a, const T* b, T* out, const Team& team) {
  for (int i = team.index; i < terms.count; i += team.count) {
    const PlanTermSum sum = load_table(terms.sums + i).value[0];
    T cosine = 0, sine = 0;
    for (int r = sum.run_begin; r < sum.run_end; ++r) {
      const PlanTermRun run = load_table(terms.runs + r).value[0];
      const int* factors = terms.factors + 2 * run.begin;
#define EQUITENSOR_CASE(kind)                                                                                                          \
  case 2 * int(TermKind::kind): add_run<T, TermKind::kind, false>(a, b, factors, run.count, team.pitch, cosine, sine); break;          \
  case 2 * int(TermKind::kind) + 1: add_run<T, TermKind::kind, true>(a, b, factors, run.count, team.pitch, cosine, sine); break;
      switch (run.kind) {
        EQUITENSOR_CASE(product) EQUITENSOR_CASE(conjugate_b) EQUITENSOR_CASE(conjugate_a)
        EQUITENSOR_CASE(real_a) EQUITENSOR_CASE(real_b) EQUITENSOR_CASE(dot) EQUITENSOR_CASE(real)
      }
#undef EQUITENSOR_CASE
      for (int d = 0; d < run.doublings; ++d) cosine += cosine, sine += sine;
    }
    out[sum.out * team.pitch] = cosine;
    if (!sum.real) out[(sum.out + 1) * team.pitch] = sine;
  }
}

template <bool reversed, class T>
__device__ __forceinline__ void apply_butterflies(const PlanButterflies& b, const Strip<T>& values) {
  for (int i = 0; i < b.count; ++i) {
    const Pack<int, 2> pair = load_table<2>(b.pairs + 2 * (reversed ? b.count - 1 - i : i));
    butterfly(values[pair.value[0]], values[pair.value[1]]);
  }
}
// A team takes an order of a part.
template <bool reversed, class T>
__device__ __forceinline__ void fold_rings(const FourierPlan<T>& plan, int s, T* rings, const Team& team) {
  const int orders = 2 * plan.slots[s].degree + 1, columns = plan.slots[s].parts * orders;
  for (int i = team.index; i < columns; i += team.count) {
    apply_butterflies<reversed>(plan.ring_butterflies[(i % orders + plan.slots[s].degree) % 2],
                                Strip<T>{rings + i * team.pitch + team.item, columns * team.pitch});
  }
}

template <class T>
__device__ __forceinline__ void multiply_values(const FourierPlan<T>& plan, const FourierTiles<T>& tile, const Contraction& c, const Team& team) {
  const int n = plan.angles;
  const Team alone{team.item, 0, 1, team.items, team.pitch};
  const auto values = [&](int s, int part) {
    const int before = (s > 0 ? plan.slots[0].parts : 0) + (s > 1 ? plan.slots[1].parts : 0);
    return Strip<T>{tile.values + (team.index * ring_values(plan) + (before + part) * n) * team.pitch + team.item, team.pitch};
  };
  const auto ring = [&](T* rings, int s, int at, int part) {
    return rings + (at * plan.slots[s].parts + part) * (2 * plan.slots[s].degree + 1) * team.pitch + team.item;
  };
  const int teams = team.count < ring_teams ? team.count : ring_teams;
  for (int r = teams > team.index ? team.index : plan.rings; r < plan.rings; r += teams) {
#pragma unroll 1
    for (int input = 0; input < 2; ++input) {
      const int s = input ? c.b : c.a;
      for (int part = 0; part < plan.slots[s].parts; ++part) {
        apply(plan.slots[s].to_angles, ring(choose(tile.rings_in, s), s, r, part), values(s, part).at, alone);
        apply_butterflies<false>(plan.angle_butterflies, values(s, part));
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
      apply_butterflies<true>(plan.angle_butterflies, values(c.out, part));
      apply(plan.slots[c.out].from_angles, values(c.out, part).at, ring(choose(tile.rings_out, c.out), c.out, r, part), alone);
    }
  }
}

// Components in tile.channel_in to those in tile.channel_out; slots [0, inputs) are multiplied into slots [out_begin, out_end).
template <class T>
__device__ __forceinline__ void multiply_signals(const FourierPlan<T>& plan, const FourierTiles<T>& tile, int inputs, int out_begin, int out_end,
                                                 const Team& team) {
  const auto contraction = [](int out) { return Contraction{out == 0 ? 1 : 0, out == 2 ? 1 : 2, out}; };
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < inputs; ++s)
    apply(plan.slots[s].synthesis, choose(tile.channel_in, s) + team.item, choose(tile.coefficients, s) + team.item, team);
  __syncthreads();
  if (!plan.fft) {
#pragma unroll 1
    for (int out = out_begin; out < out_end; ++out) {
      const Contraction c = contraction(out);
      multiply_terms(plan.terms[out], choose(tile.coefficients, c.a) + team.item, choose(tile.coefficients, c.b) + team.item,
                     choose(tile.product, out) + team.item, team);
    }
  } else {
#pragma unroll 1
    for (int s = 0; s < inputs; ++s)
      apply(plan.slots[s].to_rings, choose(tile.coefficients, s) + team.item, choose(tile.rings_in, s) + team.item, team);
    __syncthreads();
#pragma unroll 1
    for (int s = 0; s < inputs; ++s) fold_rings<false>(plan, s, choose(tile.rings_in, s), team);
    __syncthreads();
#pragma unroll 1
    for (int out = out_begin; out < out_end; ++out) multiply_values(plan, tile, contraction(out), team);
    __syncthreads();
#pragma unroll 1
    for (int s = out_begin; s < out_end; ++s) fold_rings<true>(plan, s, choose(tile.rings_out, s), team);
    __syncthreads();
#pragma unroll 1
    for (int s = out_begin; s < out_end; ++s)
      apply(plan.slots[s].from_rings, choose(tile.rings_out, s) + team.item, choose(tile.product, s) + team.item, team);
  }
  __syncthreads();
#pragma unroll 1
  for (int s = out_begin; s < out_end; ++s)
    apply(plan.slots[s].analysis, choose(tile.product, s) + team.item, choose(tile.channel_out, s) + team.item, team);
  __syncthreads();
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void fourier_forward(FourierPlan<T> plan, ChannelRows rows, int items, long long signals,
                                                                                        const T* x, const T* y, T* z) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), pitch = team.pitch;
  const FourierTiles<T> tile(plan, dynamic_shared<T>(), pitch, false);
  load_tile(rows.slot[0], x, first, live, tile.channel_in[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel_in[1], pitch);
  multiply_signals(plan, tile, 2, 2, 3, team);
  store_tile(rows.slot[2], z, first, live, tile.channel_out[2], pitch);
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void fourier_backward(FourierPlan<T> plan, ChannelRows rows, ChannelRows gradient_rows,
                                                                                         int items, long long signals, const T* x, const T* y, const T* dz,
                                                                                         T* dx, T* dy) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), pitch = team.pitch;
  const FourierTiles<T> tile(plan, dynamic_shared<T>(), pitch, true);
  load_tile(rows.slot[0], x, first, live, tile.channel_in[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel_in[1], pitch);
  load_tile(rows.slot[2], dz, first, live, tile.channel_in[2], pitch);
  multiply_signals(plan, tile, 3, 0, 2, team);
  if (dx) store_tile(gradient_rows.slot[0], dx, first, live, tile.channel_out[0], pitch);
  if (dy) store_tile(gradient_rows.slot[1], dy, first, live, tile.channel_out[1], pitch);
}

template <class T>
class Fourier final : public ChannelProduct<T, FourierPlan<T>> {
 public:
  Fourier(int device, int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, bool fft)
      : ChannelProduct<T, FourierPlan<T>>(
            device, slots, fourier_forward<T>, fourier_backward<T>,
            [&](auto& store) {
              PassFlops flops;
              return fourier_plan<T>(store, mul, slots, products, fft, flops);
            },
            [](const FourierPlan<T>& plan, int pitch, bool backward) { return size_t(FourierTiles<T>(plan, nullptr, pitch, backward).bytes); }) {}
};

}  // namespace

std::unique_ptr<Operation> make_fourier(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                        const std::vector<PlanProduct>& products, bool fft) {
  return make<Fourier>(is_double, device, mul, slots, products, fft);
}

}  // namespace equitensor::cuda
