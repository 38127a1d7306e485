// A block's items in shared memory, as [component][item]: rows of the caller's arrays in and out, and the sparse maps between.
//
// A thread computes on a pack of neighbouring items. A team is a warp, whose lanes hold the tile's items, one pack each; a block's teams share
// out the components. The pitch between components is one pack more than there are.
#pragma once
#include "core/arithmetic.hpp"
#include "core/plan.hpp"
#include "cuda/device.cuh"
#include <bit>
#include <cmath>
#include <type_traits>

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
  // Not formed before it is known what it is added to. Unrolled, a product of series adds most products to two orders: once formed for both, one
  // would take a multiplication and two additions, instead of two fused multiply-adds.
  struct Product {
    Items a, b;
    __device__ __forceinline__ operator Items() const { EQUITENSOR_EACH(a.item[i] * b.item[i]); }
  };
  __device__ __forceinline__ friend Product operator*(Items a, Items b) { return {a, b}; }
  __device__ __forceinline__ friend Items operator*(T a, Items b) { EQUITENSOR_EACH(a * b.item[i]); }
  __device__ __forceinline__ friend Items operator+(Items a, Product p) { EQUITENSOR_EACH(std::fma(p.a.item[i], p.b.item[i], a.item[i])); }
  __device__ __forceinline__ friend Items operator+(Product p, Items a) { return a + p; }
  __device__ __forceinline__ friend Items operator-(Items a, Product p) { EQUITENSOR_EACH(std::fma(-p.a.item[i], p.b.item[i], a.item[i])); }
#undef EQUITENSOR_EACH
  template <class B>
  __device__ __forceinline__ Items& operator+=(B b) { return *this = *this + b; }
  template <class B>
  __device__ __forceinline__ Items& operator-=(B b) { return *this = *this - b; }
};

__device__ __forceinline__ int divide(int n, Divisor d) { return int(__umulhi(unsigned(n) + 1, d.magic)); }

// Where the components of an operand's virtual items lie. A virtual item is one channel of an item; or all of it, where mul is 1.
struct Rows {
  int dim, components, mul;
  Divisor by_components, by_mul;
  long long stride;        // from item to item; 0: one row for all
  const Strided* channel;  // component c of channel u: first + u * step; null: component c itself
  bool channels_innermost; // neighbouring channels are neighbours in memory: ir_mul
  bool whole;              // rows of components themselves, one behind the other
  unsigned step, step_numbers, step_bytes;  // of those, a turn of the block's threads: packs, numbers, and the distance in a component of the tile
};

// One item's, or one pack's, place in every component of a tile, from one component on. Both in bytes: `at` of the first, `pitch` to the next.
template <class V>
struct Strip {
  unsigned at, pitch;
  __device__ __forceinline__ V& operator[](int component) const { return shared_at<V>(at + component * pitch); }
  __device__ __forceinline__ Strip from(int component) const { return {at + component * pitch, pitch}; }
};

struct Team {
  int index, count;  // this thread's team, and the number of teams
};
// Lanes beyond the last pack have no share of the work: their team comes after all components.
__device__ __forceinline__ Team team_of(int packs) {
  return {int(threadIdx.x % 32) < packs ? int(threadIdx.x / 32) : 1 << 20, int(blockDim.x / 32)};
}
__host__ __device__ inline int pitch_of(int packs) { return packs + 1; }
// The calling thread's pack, of a tile that begins at the address.
template <class V>
__device__ __forceinline__ Strip<V> own_strip(int packs, unsigned begin = dynamic_shared_begin()) {
  return {begin + minimum(int(threadIdx.x % 32), packs - 1) * unsigned(sizeof(V)), pitch_of(packs) * unsigned(sizeof(V))};
}
// The tile's first item.
template <class T, class V>
__device__ __forceinline__ Strip<T> first_strip(const Strip<V>& own) { return {dynamic_shared_begin(), own.pitch}; }

// Calls visit(pointer into the array, {address in the tile, ...}) for the tile's numbers, up to 16 bytes at a time where they are neighbours.
// `first` is a multiple of the tile's items; `tile` is the first item's strip.
template <class N, class C, class Visit>
__device__ __forceinline__ void for_each_pack(const Rows& rows, N* base, long long first, int live, const Strip<C>& tile, Visit&& visit) {
  constexpr int lanes = 16 / sizeof(N);
  const unsigned numbers = live * rows.components;
  const auto place = [&](int c, int item) { return tile.at + c * tile.pitch + item * unsigned(sizeof(C)); };
  if (rows.whole) {
    N* const begin = base + first * rows.dim;
    // Its last bits by themselves: as those of the pointer they would be computed in 64 bits twice, which takes nine instructions more.
    const unsigned last_bits = unsigned(reinterpret_cast<uintptr_t>(base)) + unsigned(first) * rows.dim * unsigned(sizeof(N));
    const unsigned packs = last_bits % 16 == 0 ? numbers / lanes : 0;
    // As many packs as there are components are `lanes` items. A thread goes on by multiples of that and keeps its components: 4 instructions
    // a number instead of 12.
    const unsigned next_item = unsigned(sizeof(C)) - rows.components * tile.pitch;  // at whose first component the numbers go on
    for (unsigned start = threadIdx.x; start < rows.step; start += blockDim.x) {
      unsigned places[lanes];
#pragma unroll
      for (int n = 0; n < lanes; ++n) {
        const int number = start * lanes + n;
        places[n] = tile.at + number * tile.pitch + divide(number, rows.by_components) * next_item;
      }
      N* at = begin + start * lanes;
      for (unsigned i = start; i < packs; i += rows.step, at += rows.step_numbers) {
        visit(at, places);
#pragma unroll
        for (int n = 0; n < lanes; ++n) places[n] += rows.step_bytes;
      }
    }
    for (unsigned i = packs * lanes + threadIdx.x; i < numbers; i += blockDim.x) {
      const int item = divide(i, rows.by_components);
      const unsigned places[1] = {place(i - item * rows.components, item)};
      visit(begin + i, places);
    }
    return;
  }
  const bool aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0;
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
    const unsigned packs = unsigned(live) / lanes;
    for (unsigned i = threadIdx.x; i < packs * rows.components; i += blockDim.x) {
      const int c = i / packs, item = (i - c * packs) * lanes;
      unsigned places[lanes];
#pragma unroll
      for (int n = 0; n < lanes; ++n) places[n] = place(c, item + n);
      visit(base + address(c, item), places);
    }
    return;
  }
  for (int i = threadIdx.x; i < int(numbers); i += blockDim.x) {
    const int item = rows.channels_innermost ? i % live : divide(i, rows.by_components);
    const int c = rows.channels_innermost ? i / live : i - item * rows.components;
    const unsigned places[1] = {place(c, item)};
    visit(base + address(c, item), places);
  }
}

template <class C, class T>
__device__ __forceinline__ void load_tile(const Rows& rows, const T* from, long long first, int live, const Strip<C>& tile) {
  for_each_pack(rows, from, first, live, tile, [&]<int lanes>(const T* at, const unsigned(&places)[lanes]) {
    const Pack<T, lanes> value = load<lanes>(at);
#pragma unroll
    for (int n = 0; n < lanes; ++n) store_shared(places[n], C(value.value[n]));
  });
}
template <class C, class T>
__device__ __forceinline__ void store_tile(const Rows& rows, T* to, bool accumulate, long long first, int live, const Strip<C>& tile) {
  const auto store_all = [&](auto adds) {
    for_each_pack(rows, to, first, live, tile, [&]<int lanes>(T* at, const unsigned(&places)[lanes]) {
      Pack<T, lanes> value{};
      if constexpr (adds) value = load<lanes>(at);
#pragma unroll
      for (int n = 0; n < lanes; ++n) {
        const T number = T(load_shared<C>(places[n]));
        value.value[n] = adds ? value.value[n] + number : number;
      }
      store<lanes>(at, value);
    });
  };
  // Asked for every pack, it is two instructions of seventeen.
  if (accumulate)
    store_all(std::true_type{});
  else
    store_all(std::false_type{});
}

// In a row of a map, whose first number it is.
__device__ __forceinline__ int index_of(float bits) { return std::bit_cast<int>(bits); }
__device__ __forceinline__ int index_of(double bits) { return int(std::bit_cast<long long>(bits)); }

template <class V>
constexpr int items_of = 1;
template <class T>
constexpr int items_of<Items<T>> = Items<T>::count;

// One small dense block of a map: a load of an input for every `outputs` multiply-adds; its index and its coefficients come 16 bytes at a time. Up to 8
// outputs: two inputs a turn of the loop, whose counter and pointer cost 5 instructions; beyond, registers are short and the multiply-adds
// of an input are 36 or more. add: to the outputs that are there.
template <int outputs, bool add, class T, class V>
__device__ __forceinline__ void apply_block(const T* row, int pairs, int odd, const Strip<V>& in, const Strip<V>& out) {
  constexpr int lanes = 16 / sizeof(T), row_packs = (outputs + lanes) / lanes, row_length = row_packs * lanes;
  const auto for_each_output = [&](const T* behind, auto&& visit) {
#pragma unroll
    for (int p = 0; p < (outputs + 3) / 4; ++p) {
      const Pack<int, 4> at = load_table<4>(reinterpret_cast<const int*>(behind) + 4 * p);
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (4 * p + n < outputs) visit(out[at.value[n]], 4 * p + n);
    }
  };
  V sum[outputs] = {};
  if constexpr (add) for_each_output(row + (2 * pairs + odd) * row_length, [&](const V& at, int o) { sum[o] = at; });
  const auto take = [&](const T* row) {
    T value[row_packs * lanes];
#pragma unroll
    for (int p = 0; p < row_packs; ++p) {
      const Pack<T, lanes> pack = load_table<lanes>(row + p * lanes);
#pragma unroll
      for (int n = 0; n < lanes; ++n) value[p * lanes + n] = pack.value[n];
    }
    const V input = in[index_of(value[0])];
#pragma unroll
    for (int o = 0; o < outputs; ++o) sum[o] += value[o + 1] * input;
  };
  constexpr int at_once = outputs <= 8 ? 2 : 1;
  if (at_once == 2 && odd) take(row), row += row_length;
#pragma unroll 1
  for (int n = at_once == 2 ? pairs : 2 * pairs + odd; n > 0; --n, row += at_once * row_length) {
    take(row);
    if constexpr (at_once == 2) take(row + row_length);
  }
  for_each_output(row, [&](V& at, int o) { at = sum[o]; });
}

// out = map(in), or out += map(in), blocks shared out to the teams. Blocks of one number of outputs lie one behind the other.
template <bool add = false, class T, class V>
__device__ __forceinline__ void apply(const PlanMap<T>& map, const Strip<V>& in, const Strip<V>& out, const Team& team) {
  for (int b = team.index; b < map.block_count;) {
    PlanMapBlock block = load_table(map.blocks + b).value[0];
    switch (block.output_count) {
#define EQUITENSOR_CASE(outputs)                                                              \
  case outputs:                                                                               \
    do {                                                                                      \
      apply_block<outputs, add>(map.rows + block.begin, block.pairs, block.odd, in, out);     \
      if ((b += team.count) >= map.block_count) return;                                       \
      block = load_table(map.blocks + b).value[0];                                            \
    } while (block.output_count == outputs);                                                  \
    break;
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

}  // namespace equitensor::cuda
