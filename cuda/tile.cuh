// A block's items in shared memory, as [component][item]: rows of the caller's arrays in and out, and the sparse maps between.
//
// A thread computes on a pack of neighbouring items. A team is a warp, whose lanes hold the tile's items, one pack each; a block's teams share
// out the components. The pitch between components is one pack more than there are.
#pragma once
#include "core/arithmetic.hpp"
#include "core/plan.hpp"
#include "cuda/device.cuh"

namespace equitensor::cuda {

// The numbers of 16 bytes of items: four (two in float64) share every load of a coefficient and of an index, and every address. Counted for
// CGTP at L = 4, that is a fifth of the instructions that one item a thread takes.
template <class T>
struct alignas(16) Items {
  static constexpr int count = 16 / sizeof(T);
  T item[count];

#define EQUITENSOR_EACH(expression)                 \
  Items r;                                          \
  _Pragma("unroll") for (int i = 0; i < count; ++i) \
    r.item[i] = expression;                         \
  return r
  __device__ __forceinline__ friend Items operator+(Items a, Items b) { EQUITENSOR_EACH(a.item[i] + b.item[i]); }
  __device__ __forceinline__ friend Items operator-(Items a, Items b) { EQUITENSOR_EACH(a.item[i] - b.item[i]); }
  __device__ __forceinline__ friend Items operator*(Items a, Items b) { EQUITENSOR_EACH(a.item[i] * b.item[i]); }
  __device__ __forceinline__ friend Items operator*(T a, Items b) { EQUITENSOR_EACH(a * b.item[i]); }
#undef EQUITENSOR_EACH
  __device__ __forceinline__ Items& operator+=(Items b) { return *this = *this + b; }
  __device__ __forceinline__ Items& operator-=(Items b) { return *this = *this - b; }
};

__device__ __forceinline__ int divide(int n, Divisor d) { return int(__umulhi(unsigned(n) + 1, d.magic)); }

// Where the components of an operand's virtual items lie. A virtual item is one channel of an item; or all of it, where mul is 1.
struct Rows {
  int dim, components, mul;
  Divisor by_components, by_mul;
  long long stride;        // from item to item; 0: one row for all
  const Strided* channel;  // component c of channel u: first + u * step; null: component c itself
  bool channels_innermost; // neighbouring channels are neighbours in memory: ir_mul
};

struct Team {
  int item, index, count;  // this thread's pack of items, its team, and the number of teams
  int pitch;               // in packs
};
// Lanes beyond the last pack have no share of the work: their team comes after all components.
__device__ __forceinline__ Team team_of(int packs) {
  const int lane = int(threadIdx.x) % 32;
  return {minimum(lane, packs - 1), lane < packs ? int(threadIdx.x) / 32 : 1 << 20, int(blockDim.x) / 32, packs + 1};
}
inline int pitch_of(int packs) { return packs + 1; }

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
__device__ __forceinline__ void store_tile(const Rows& rows, T* to, bool accumulate, long long first, int live, const C* tile, int pitch) {
  for_each_pack(rows, to, first, live, pitch, [&]<int lanes>(long long at, const int(&place)[lanes]) {
    Pack<T, lanes> value{};
    if (accumulate) value = load<lanes>(to + at);
#pragma unroll
    for (int n = 0; n < lanes; ++n) value.value[n] += T(tile[place[n]]);
    store<lanes>(to + at, value);
  });
}

template <class V>
constexpr int items_of = 1;
template <class T>
constexpr int items_of<Items<T>> = Items<T>::count;

// A tile by its numbers.
template <class T>
__device__ __forceinline__ T* numbers_of(Items<T>* tile) { return reinterpret_cast<T*>(tile); }

// One small dense block of a map: a load of an input for every `outputs` multiply-adds, coefficients 16 bytes at a time. add: to the outputs
// that are there.
template <int outputs, bool add, class T, class V>
__device__ __forceinline__ void apply_block(const T* coefficients, const int* source, int source_count, const V* in, V* out, int pitch) {
  constexpr int lanes = 16 / sizeof(T), packs = (outputs + lanes - 1) / lanes;
  const int* output = source + source_count;
  V sum[outputs] = {};
#pragma unroll
  for (int o = 0; add && o < outputs; ++o) sum[o] = out[load_table(output + o).value[0] * pitch];
#pragma unroll 1
  for (int s = 0; s < source_count; ++s, coefficients += packs * lanes) {
    const V value = in[load_table(source + s).value[0] * pitch];
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

// out = map(in), or out += map(in), blocks shared out to the teams. in and out are the calling thread's pack of the tiles.
template <bool add = false, class T, class V>
__device__ __forceinline__ void apply(const PlanMap<T>& map, const V* in, V* out, const Team& team) {
  for (int b = team.index; b < map.block_count; b += team.count) {
    const PlanMapBlock block = load_table(map.blocks + b).value[0];
    const T* coefficients = map.coefficients + block.coefficients;
    const int* source = map.indices + block.sources;
    switch (block.output_count) {
#define EQUITENSOR_CASE(outputs) \
  case outputs: apply_block<outputs, add>(coefficients, source, block.source_count, in, out, team.pitch); break;
      EQUITENSOR_CASE(1) EQUITENSOR_CASE(2) EQUITENSOR_CASE(3) EQUITENSOR_CASE(4) EQUITENSOR_CASE(5) EQUITENSOR_CASE(6)
      EQUITENSOR_CASE(7) EQUITENSOR_CASE(8) EQUITENSOR_CASE(9) EQUITENSOR_CASE(10) EQUITENSOR_CASE(11) EQUITENSOR_CASE(12)
#undef EQUITENSOR_CASE
    }
  }
}

// The part of a slot that a product of signals has.
__device__ __forceinline__ int part_of(const PlanProduct& product, int slot) {
  return slot == 0 ? product.part1 : slot == 1 ? product.part2 : product.part_out;
}

// A component's place in a tile, indexed like a pointer: by orders from -degree to degree, or by matrix entries.
template <class T>
struct Strip {
  T* at;
  int pitch;
  __device__ __forceinline__ T& operator[](int i) const { return at[i * pitch]; }
};

}  // namespace equitensor::cuda
