// A block's items in shared memory, as [component][item]: rows of the caller's arrays in and out, and the sparse maps between.
//
// A team is the `items` threads that hold a tile's items, one each; a block's teams share out the components. With 32 items a team is a
// warp. The pitch between components is odd, so that a warp meets no bank conflict whether its lanes are items or components.
#pragma once
#include "core/plan.hpp"
#include "cuda/device.cuh"

namespace equitensor::cuda {

// Division of numbers below 2^16 by a divisor below 2^16: a multiplication.
struct Divisor {
  unsigned divisor, magic;
};
inline Divisor divisor(int d) { return {unsigned(d), d == 1 ? 0u : unsigned(((1ull << 32) + d - 1) / d)}; }
__device__ __forceinline__ int divide(int n, Divisor d) { return d.magic ? int(__umulhi(unsigned(n), d.magic)) : n; }

// Where the components of an operand's virtual items lie. A virtual item is one channel of an item; or all of it, where mul is 1.
struct Rows {
  int dim, components, mul;
  Divisor by_components, by_mul;
  long long stride;        // from item to item; 0: one row for all
  const Strided* channel;  // component c of channel u: first + u * step; null: component c itself
  bool channels_innermost; // neighbouring channels are neighbours in memory: ir_mul
};

struct Team {
  int item, index, count;  // this thread's item, its team, and the number of teams
  int items, pitch;
};
__device__ __forceinline__ Team team_of(int items) {
  return {int(threadIdx.x) % items, int(threadIdx.x) / items, int(blockDim.x) / items, items, items + 1};
}
inline int pitch_of(int items) { return items + 1; }

// Calls visit(address in the array, {place in the tile, ...}) for the tile's numbers, up to 16 bytes at a time where they are neighbours.
// `first` is a multiple of the tile's items.
template <class T, class Visit>
__device__ __forceinline__ void for_each_pack(const Rows& rows, const T* base, long long first, int live, int pitch, Visit&& visit) {
  constexpr int lanes = 16 / sizeof(T);
  const bool aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  const int numbers = live * rows.components;
  if (rows.mul == 1 && !rows.channel && rows.stride == rows.dim) {
    const long long begin = first * rows.dim;
    const int packed = aligned && begin % lanes == 0 ? numbers / lanes * lanes : 0;
    for (int i = threadIdx.x * lanes; i < packed; i += blockDim.x * lanes) {
      int place[lanes];
#pragma unroll
      for (int n = 0; n < lanes; ++n) {
        const int item = divide(i + n, rows.by_components);
        place[n] = (i + n - item * rows.components) * pitch + item;
      }
      visit(begin + i, place);
    }
    for (int i = packed + threadIdx.x; i < numbers; i += blockDim.x) {
      const int item = divide(i, rows.by_components);
      const int place[1] = {(i - item * rows.components) * pitch + item};
      visit(begin + i, place);
    }
    return;
  }
  const long long first_item = rows.mul == 1 ? first : first / rows.mul;
  const int first_channel = rows.mul == 1 ? 0 : int(first - first_item * rows.mul);
  const auto address = [&](int c, int item) {
    const int channels = first_channel + item, further = rows.mul == 1 ? channels : divide(channels, rows.by_mul);
    const long long row = (first_item + further) * rows.stride;
    if (!rows.channel) return row + c;
    const Strided at = load_table(rows.channel + c).value[0];
    return row + at.first + (channels - further * rows.mul) * at.step;
  };
  if (rows.channels_innermost && aligned && rows.mul % lanes == 0 && live % lanes == 0) {
    const int packs = live / lanes;
    for (int i = threadIdx.x; i < packs * rows.components; i += blockDim.x) {
      const int c = i / packs, item = (i - c * packs) * lanes;
      int place[lanes];
#pragma unroll
      for (int n = 0; n < lanes; ++n) place[n] = c * pitch + item + n;
      visit(address(c, item), place);
    }
    return;
  }
  for (int i = threadIdx.x; i < numbers; i += blockDim.x) {
    const int item = rows.channels_innermost ? i % live : divide(i, rows.by_components);
    const int c = rows.channels_innermost ? i / live : i - item * rows.components;
    const int place[1] = {c * pitch + item};
    visit(address(c, item), place);
  }
}

template <class C, class T>
__device__ __forceinline__ void load_tile(const Rows& rows, const T* from, long long first, int live, C* tile, int pitch) {
  for_each_pack(rows, from, first, live, pitch, [&]<int lanes>(long long at, const int(&place)[lanes]) {
    const Pack<T, lanes> value = load<lanes>(from + at);
#pragma unroll
    for (int n = 0; n < lanes; ++n) tile[place[n]] = C(value.value[n]);
  });
}
template <class C, class T>
__device__ __forceinline__ void store_tile(const Rows& rows, T* to, long long first, int live, const C* tile, int pitch) {
  for_each_pack(rows, to, first, live, pitch, [&]<int lanes>(long long at, const int(&place)[lanes]) {
    Pack<T, lanes> value;
#pragma unroll
    for (int n = 0; n < lanes; ++n) value.value[n] = T(tile[place[n]]);
    store<lanes>(to + at, value);
  });
}

// One small dense block of a map: a load of an input for every `outputs` multiply-adds, coefficients 16 bytes at a time. add: to the outputs
// that are there.
template <int outputs, bool add, class T>
__device__ __forceinline__ void apply_block(const PlanRun<T>& run, int block, const T* in, T* out, int pitch) {
  constexpr int lanes = 16 / sizeof(T), packs = (outputs + lanes - 1) / lanes;
  const T* coefficients = run.coefficients + long(block) * run.source_count * packs * lanes;
  const int *source = run.sources + block * run.source_count, *output = run.outputs + block * outputs;
  T sum[outputs];
#pragma unroll
  for (int o = 0; o < outputs; ++o) sum[o] = add ? out[load_table(output + o).value[0] * pitch] : T(0);
  // Two sources at a time: four cost registers that sm_75 and sm_80 do not have.
#pragma unroll 2
  for (int s = 0; s < run.source_count; ++s, coefficients += packs * lanes) {
    const T value = in[load_table(source + s).value[0] * pitch];
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const Pack<T, lanes> c = load_table<lanes>(coefficients + p * lanes);
#pragma unroll
      for (int n = 0; n < lanes; ++n)
        if (p * lanes + n < outputs) sum[p * lanes + n] += c.value[n] * value;
    }
  }
#pragma unroll
  for (int o = 0; o < outputs; ++o) out[load_table(output + o).value[0] * pitch] = sum[o];
}

// out = map(in), blocks shared out to the teams. in and out are the calling thread's item of the tiles.
template <bool add = false, class T>
__device__ __forceinline__ void apply(const PlanMap<T>& map, const T* in, T* out, const Team& team) {
  int block = team.index;
  for (int r = 0; r < map.count; ++r) {
    const PlanRun<T> run = map.runs[r];
    for (; block < run.blocks; block += team.count) {
      switch (run.output_count) {
        case 1: apply_block<1, add>(run, block, in, out, team.pitch); break;
        case 2: apply_block<2, add>(run, block, in, out, team.pitch); break;
        case 3: apply_block<3, add>(run, block, in, out, team.pitch); break;
        case 4: apply_block<4, add>(run, block, in, out, team.pitch); break;
        case 5: apply_block<5, add>(run, block, in, out, team.pitch); break;
        case 6: apply_block<6, add>(run, block, in, out, team.pitch); break;
        case 7: apply_block<7, add>(run, block, in, out, team.pitch); break;
        case 8: apply_block<8, add>(run, block, in, out, team.pitch); break;
        case 9: apply_block<9, add>(run, block, in, out, team.pitch); break;
        case 10: apply_block<10, add>(run, block, in, out, team.pitch); break;
        case 11: apply_block<11, add>(run, block, in, out, team.pitch); break;
        case 12: apply_block<12, add>(run, block, in, out, team.pitch); break;
      }
    }
    block -= run.blocks;
  }
}

// One of three by a number that is known at run time only, without an array in local memory: so that code for a slot is there once.
template <class P>
__host__ __device__ __forceinline__ P* choose(P* const (&of)[3], int s) {
  return s == 0 ? of[0] : s == 1 ? of[1] : of[2];
}

// A component's place in a tile, indexed like a pointer: by orders from -degree to degree, or by matrix entries.
template <class T>
struct Strip {
  T* at;
  int pitch;
  __device__ __forceinline__ T& operator[](int i) const { return at[i * pitch]; }
};

}  // namespace equitensor::cuda
