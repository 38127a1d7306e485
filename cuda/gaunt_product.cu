// Gaunt product of up to four signals, or a power of one, as on the CPU: by values on a grid, with everything between operands and results in shared memory. A team
// has a northern ring and its mirror image to itself, and goes along the angles: two at a time, with those that mirror them, are eight points. There it sums
// the rings' coefficients to values, multiplies, and adds the results' values to their coefficients. The values of a power are in registers.
//
// Coefficients of a ring are [part][even, odd][order]; those of the orders m and -m multiply cos(m alpha) and sin(m alpha).
#include "core/gaunt_plan.hpp"
#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

constexpr int angles_at_once = 2, points = 4 * angles_at_once;

template <class T>
struct GauntProductSlot : PlanSlot {
  int degree, parts;
  PlanMap<T> synthesis, analysis;
};
// Of two angles; further ones are zero.
template <class T>
struct alignas(16) GauntAngles {
  T cosine[angles_at_once], sine[angles_at_once];
};
template <class T>
struct GauntProductTable {
  int mul, rings, factors, power, parts;  // rings: northern ones and the equator
  int angles, orders;                     // pairs of angles, and from one to the next in the tables
  GauntProductSlot<T> slots[max_factors + 1];
  __host__ __device__ bool in_registers() const { return power && parts == 1; }
  const GauntAngles<T>*to_angles, *from_angles;  // [pair][order], from order 0; back with the quadrature's weights
};

// Quantities: the factors, their directions if there are any, z's gradient. A result has the place of its operand: a gradient that of the factor, z that of its gradient.
constexpr int most_quantities = 2 * max_factors + 1;
template <class T>
struct GauntProductCall {
  const T* from[most_quantities];
  T* to[max_factors + 1];
  int quantities;
  bool doubles, differentiates, accumulate;
  Rows rows[max_factors + 1];  // of the slots
  template <class Table>
  __host__ __device__ int slot_of(const Table& table, int quantity) const { return quantity + 1 == quantities ? table.factors : quantity % table.factors; }
};

// First components in a tile.
struct GauntProductLayout {
  int channel_in[most_quantities], rings_in[most_quantities], channel_out[max_factors + 1], rings_out[max_factors + 1];
  int values;  // [team][quantity][part][point]
  long components;
  int teams;
  template <class T>
  GauntProductLayout(const GauntProductTable<T>& table, const GauntProductCall<T>& a) {
    const auto rings = [&](int s) { return long(table.rings) * table.slots[s].parts * 2 * (2 * table.slots[s].degree + 1); };
    // The operands' components lie where the results' rings will be, and the results' components where the operands' rings were.
    Components results, operands;
    for (int r = 0; r <= table.factors; ++r) rings_out[r] = results.take(a.to[r] ? rings(r) : 0);
    for (int q = 0; q < a.quantities; ++q) channel_in[q] = operands.take(a.from[q] ? table.slots[a.slot_of(table, q)].components : 0);
    Components later{std::max(results.count, operands.count)}, outputs = later;
    for (int q = 0; q < a.quantities; ++q) rings_in[q] = later.take(a.from[q] ? rings(a.slot_of(table, q)) : 0);
    for (int r = 0; r <= table.factors; ++r) channel_out[r] = outputs.take(a.to[r] ? table.slots[r].components : 0);
    Components tile{std::max(later.count, outputs.count)};
    teams = std::min(table.rings, threads / 32);
    values = tile.take(table.in_registers() ? 0 : long(teams) * a.quantities * table.parts * points);
    components = tile.count;
  }
};

template <class V, int parts>
struct PointValue {
  V part[parts];
};
template <class V, int parts>
__device__ __forceinline__ PointValue<V, parts> operator*(const PointValue<V, parts>& a, const PointValue<V, parts>& b) {
  if constexpr (parts == 1)
    return {a.part[0] * b.part[0]};
  else
    return {V(a.part[0] * b.part[0]) + a.part[1] * b.part[1], V(a.part[0] * b.part[1]) + a.part[1] * b.part[0]};
}
template <class V, int parts>
__device__ __forceinline__ PointValue<V, parts> operator+(PointValue<V, parts> a, const PointValue<V, parts>& b) {
#pragma unroll
  for (int p = 0; p < parts; ++p) a.part[p] += b.part[p];
  return a;
}
template <class T>
__device__ __forceinline__ Items<T> scaled(T factor, const Items<T>& a) { return factor * a; }
template <class T, class V, int parts>
__device__ __forceinline__ PointValue<V, parts> scaled(T factor, PointValue<V, parts> a) {
#pragma unroll
  for (int p = 0; p < parts; ++p) a.part[p] = factor * a.part[p];
  return a;
}

// Number by number: a choice between two structs would be one between two places in memory.
template <class V, int parts>
__device__ __forceinline__ PointValue<V, parts> either(bool first, const PointValue<V, parts>& a, const PointValue<V, parts>& b) {
  PointValue<V, parts> r;
#pragma unroll
  for (int p = 0; p < parts; ++p)
#pragma unroll
    for (int i = 0; i < V::count; ++i) r.part[p].item[i] = first ? a.part[p].item[i] : b.part[p].item[i];
  return r;
}

// The values of a team's quantities at some points.
template <class T, int parts>
class GauntPoints {
 public:
  using V = Items<T>;
  using Value = PointValue<V, parts>;
  const GauntProductTable<T>& table;
  const GauntProductCall<T>& a;
  const Strip<V> values;

  // Values at the points of two angles from a ring's coefficients, for [north, south][plus, minus].
  __device__ __forceinline__ void evaluate(const Strip<V>& even, int degree, int pair, V (&to)[points]) const {
    const Strip<V> odd = even.from(2 * degree + 1);
    V ec[angles_at_once], es[angles_at_once] = {}, oc[angles_at_once], os[angles_at_once] = {};
#pragma unroll
    for (int j = 0; j < angles_at_once; ++j) ec[j] = even[0], oc[j] = odd[0];
#pragma unroll 1
    for (int m = 1; m <= degree; ++m) {
      const GauntAngles<T> c = load_table(table.to_angles + pair * table.orders + m).value[0];
      const V e = even[m], f = even[-m], o = odd[m], p = odd[-m];
#pragma unroll
      for (int j = 0; j < angles_at_once; ++j) ec[j] += c.cosine[j] * e, es[j] += c.sine[j] * f, oc[j] += c.cosine[j] * o, os[j] += c.sine[j] * p;
    }
#pragma unroll
    for (int j = 0; j < angles_at_once; ++j) {
      const V nc = ec[j] + oc[j], ns = es[j] + os[j], sc = ec[j] - oc[j], ss = es[j] - os[j];
      to[4 * j] = nc + ns, to[4 * j + 1] = nc - ns, to[4 * j + 2] = sc + ss, to[4 * j + 3] = sc - ss;
    }
  }
  // And back, added to the coefficients but for the first angles.
  __device__ __forceinline__ void project(const V (&from)[points], const Strip<V>& even, int degree, int pair) const {
    const Strip<V> odd = even.from(2 * degree + 1);
    V ec[angles_at_once], es[angles_at_once], oc[angles_at_once], os[angles_at_once];
#pragma unroll
    for (int j = 0; j < angles_at_once; ++j) {
      const V np = from[4 * j], nm = from[4 * j + 1], sp = from[4 * j + 2], sm = from[4 * j + 3];
      const V nc = np + nm, ns = np - nm, sc = sp + sm, ss = sp - sm;
      ec[j] = nc + sc, es[j] = ns + ss, oc[j] = nc - sc, os[j] = ns - ss;
    }
    const GauntAngles<T>* angles = table.from_angles + pair * table.orders;
    const GauntAngles<T> mean = load_table(angles).value[0];
    V e{}, o{};
    if (pair > 0) e = even[0], o = odd[0];
#pragma unroll
    for (int j = 0; j < angles_at_once; ++j) e += mean.cosine[j] * ec[j], o += mean.cosine[j] * oc[j];
    even[0] = e, odd[0] = o;
#pragma unroll 1
    for (int m = 1; m <= degree; ++m) {
      const GauntAngles<T> c = load_table(angles + m).value[0];
      V e{}, f{}, o{}, p{};
      if (pair > 0) e = even[m], o = odd[m], f = even[-m], p = odd[-m];
#pragma unroll
      for (int j = 0; j < angles_at_once; ++j) e += c.cosine[j] * ec[j], f += c.sine[j] * es[j], o += c.cosine[j] * oc[j], p += c.sine[j] * os[j];
      even[-m] = f, odd[-m] = p, even[m] = e, odd[m] = o;
    }
  }
  __device__ __forceinline__ void put(int quantity, int part, const V (&from)[points]) const {
#pragma unroll
    for (int point = 0; point < points; ++point) values[(quantity * parts + part) * points + point] = from[point];
  }
  __device__ __forceinline__ void get(int quantity, int part, V (&to)[points]) const {
#pragma unroll
    for (int point = 0; point < points; ++point) to[point] = values[(quantity * parts + part) * points + point];
  }
  __device__ __forceinline__ void clear(int quantity) const {
    for (int c = 0; c < parts * points; ++c) values[quantity * parts * points + c] = V{};
  }

  __device__ __forceinline__ void multiply() const {
#pragma unroll 1
    for (int point = 0; point < points; ++point) {
      if (!table.power) {
        // With both parts four factors and their directions are too many for registers.
        if constexpr (parts == 2)
          multiply(point);
        else
          switch (table.factors) {
            case 2: multiply<2>(point); break;
            case 3: multiply<3>(point); break;
            case 4: multiply<4>(point); break;
          }
      } else {
        const int z = a.quantities - 1;
        Value v = take(0, point), w{}, g{};
        if (a.doubles) w = take(1, point);
        if (a.differentiates) g = take(z, point);
        const Value product = raise(v, w, g);
        if (a.differentiates) give(0, point, g);
        if (a.to[1]) give(z, point, product);
      }
    }
  }
  // v^n, and of g n v^(n-1) g; with a direction n v^(n-1) w and n (n - 1) v^(n-2) w g.
  template <class Number>
  __device__ __forceinline__ Number raise(const Number& v, const Number& w, Number& g) const {
    const int n = table.power;
    Number power = v;  // v^(n-2), from n = 3 on
    for (int f = 3; f < n; ++f) power = power * v;
    Number next = v;
    if (n > 2) next = power * v;
    if (!a.doubles) {
      if (a.differentiates) g = next * g, g = scaled(T(n), g);
      return next * v;
    }
    if (a.differentiates) {
      g = w * g;
      if (n > 2) g = power * g;
      g = scaled(T(n * (n - 1)), g);
    }
    next = next * w;
    return scaled(T(n), next);
  }

 private:
  __device__ __forceinline__ Value take(int quantity, int point) const {
    Value value;
#pragma unroll
    for (int p = 0; p < parts; ++p) value.part[p] = values[(quantity * parts + p) * points + point];
    return value;
  }
  __device__ __forceinline__ void give(int quantity, int point, const Value& value) const {
#pragma unroll
    for (int p = 0; p < parts; ++p) values[(quantity * parts + p) * points + point] = value.part[p];
  }

  // As on the CPU, from the products of the factors before one and behind it.
  template <int n>
  __device__ __forceinline__ void multiply(int point) const {
    const int z = a.quantities - 1;
    Value v[n], w[n] = {}, before[n], moved[n] = {};
#pragma unroll
    for (int f = 0; f < n; ++f) {
      v[f] = take(f, point);
      if (a.doubles) w[f] = take(n + f, point);
    }
    before[0] = v[0], moved[0] = w[0];
#pragma unroll
    for (int f = 1; f < n; ++f) {
      before[f] = before[f - 1] * v[f];
      if (a.doubles) moved[f] = moved[f - 1] * v[f] + before[f - 1] * w[f];
    }
    if (a.differentiates) {
      const Value g = take(z, point);
      Value after = v[n - 1], after_moved = w[n - 1];
      if (a.to[n - 1]) give(n - 1, point, either(a.doubles, moved[n - 2], before[n - 2]) * g);
#pragma unroll
      for (int f = n - 2; f > 0; --f) {
        if (a.to[f]) {
          Value others = before[f - 1] * either(a.doubles, after_moved, after);
          if (a.doubles) others = others + moved[f - 1] * after;
          give(f, point, others * g);
        }
        if (a.doubles) after_moved = w[f] * after + v[f] * after_moved;
        after = v[f] * after;
      }
      if (a.to[0]) give(0, point, either(a.doubles, after_moved, after) * g);
    }
    if (a.to[n]) give(z, point, either(a.doubles, moved[n - 1], before[n - 1]));
  }
  // Product of the factors but for one, or along the directions its derivative.
  __device__ __forceinline__ Value others(int without, int point) const {
    Value value{}, tangent{};
    bool first = true;
#pragma unroll 1
    for (int f = 0; f < table.factors; ++f) {
      if (f == without) continue;
      const Value v = take(f, point);
      if (a.doubles) {
        const Value w = take(table.factors + f, point);
        tangent = first ? w : tangent * v + value * w;
      }
      value = first ? v : value * v;
      first = false;
    }
    return a.doubles ? tangent : value;
  }
  __device__ __forceinline__ void multiply(int point) const {
    const int z = a.quantities - 1;
    Value gradient[max_factors] = {}, product{};
    if (a.to[table.factors]) product = others(-1, point);
    if (a.differentiates) {
      const Value g = take(z, point);
#pragma unroll
      for (int f = 0; f < max_factors; ++f)
        if (f < table.factors && a.to[f]) gradient[f] = others(f, point) * g;
#pragma unroll
      for (int f = 0; f < max_factors; ++f)
        if (f < table.factors && a.to[f]) give(f, point, gradient[f]);
    }
    if (a.to[table.factors]) give(z, point, product);
  }
};

template <class T, int parts>
__global__ __launch_bounds__(threads, 1) void gaunt_product(const __grid_constant__ GauntProductTable<T> table, const __grid_constant__ GauntProductCall<T> a,
                                                            const __grid_constant__ GauntProductLayout layout, int items, long long signals) {
  using V = Items<T>;
  const Team team = team_of(items / V::count);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items);
  const Strip<V> tile = own_strip<V>(items / V::count);
  const Strip<T> numbers = first_strip<T>(tile);
  // At run time, so that the code for an operand is there once.
#pragma unroll 1
  for (int q = 0; q < a.quantities; ++q)
    if (a.from[q]) load_tile(a.rows[a.slot_of(table, q)], a.from[q], first, live, numbers.from(layout.channel_in[q]));
  __syncthreads();
#pragma unroll 1
  for (int q = 0; q < a.quantities; ++q)
    if (a.from[q]) apply(table.slots[a.slot_of(table, q)].synthesis, tile.from(layout.channel_in[q]), tile.from(layout.rings_in[q]), team);
  __syncthreads();
  if (team.index < layout.teams) {
    const GauntPoints<T, parts> at{table, a, tile.from(layout.values + team.index * a.quantities * parts * points)};
    // A part that a signal lacks, and a direction that is not given, are zero.
#pragma unroll 1
    for (int q = 0; q < a.quantities && !table.in_registers(); ++q)
      if (parts == 2 || !a.from[q]) at.clear(q);
#pragma unroll 1
    for (int ring = team.index; ring < table.rings; ring += minimum(team.count, layout.teams)) {
      const auto coefficients = [&](int begin, int s, int part) {
        const int orders = 2 * table.slots[s].degree + 1;
        return tile.from(begin + (ring * table.slots[s].parts + part) * 2 * orders + table.slots[s].degree);
      };
#pragma unroll 1
      for (int pair = 0; pair < table.angles; ++pair) {
        if (parts == 1 && table.power) {
          const int degree = table.slots[0].degree, degree_out = table.slots[1].degree;
          V v[points], w[points] = {}, g[points] = {};
          at.evaluate(coefficients(layout.rings_in[0], 0, 0), degree, pair, v);
          if (a.doubles) at.evaluate(coefficients(layout.rings_in[1], 0, 0), degree, pair, w);
          if (a.differentiates) at.evaluate(coefficients(layout.rings_in[a.quantities - 1], 1, 0), degree_out, pair, g);
#pragma unroll
          for (int point = 0; point < points; ++point) v[point] = at.raise(v[point], w[point], g[point]);
          if (a.to[1]) at.project(v, coefficients(layout.rings_out[1], 1, 0), degree_out, pair);
          if (a.differentiates) at.project(g, coefficients(layout.rings_out[0], 0, 0), degree, pair);
          continue;
        }
        V held[points];
#pragma unroll 1
        for (int q = 0; q < a.quantities; ++q) {
          if (!a.from[q]) continue;
          const int s = a.slot_of(table, q), degree = table.slots[s].degree;
#pragma unroll 1
          for (int part = 0; part < table.slots[s].parts; ++part) {
            at.evaluate(coefficients(layout.rings_in[q], s, part), degree, pair, held);
            at.put(q, part, held);
          }
        }
        at.multiply();
#pragma unroll 1
        for (int r = 0; r <= table.factors; ++r) {
          if (!a.to[r]) continue;
          const int degree = table.slots[r].degree, q = r == table.factors ? a.quantities - 1 : r;
#pragma unroll 1
          for (int part = 0; part < table.slots[r].parts; ++part) {
            at.get(q, part, held);
            at.project(held, coefficients(layout.rings_out[r], r, part), degree, pair);
          }
          // What a part that its operand lacks had as a result is in the operand's place.
          if (parts == 2 && table.slots[r].parts == 1) at.clear(q);
        }
      }
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int r = 0; r <= table.factors; ++r)
    if (a.to[r]) apply(table.slots[r].analysis, tile.from(layout.rings_out[r]), tile.from(layout.channel_out[r]), team);
  __syncthreads();
#pragma unroll 1
  for (int r = 0; r <= table.factors; ++r)
    if (a.to[r]) store_tile(a.rows[r], a.to[r], a.accumulate, first, live, numbers.from(layout.channel_out[r]));
}

template <class T, class Store>
GauntProductTable<T> gaunt_product_table(Store& store, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid) {
  GauntProductTable<T> table{};
  table.mul = mul, table.rings = (grid.rings + 1) / 2, table.power = power;
  table.factors = int(slots.size()) - 1, table.parts = 1;
  for (size_t s = 0; s < slots.size(); ++s) {
    GauntProductSlot<T>& slot = table.slots[s];
    const auto components = slot_components<GridComponent>(slot, slots[s], store);
    GauntSlotForm form = gaunt_slot_form(components, grid.rings, grid.angles, true);
    slot.degree = form.degree, slot.parts = form.parts;
    table.parts = std::max(table.parts, form.parts), table.orders = std::max(table.orders, form.degree + 1);
    const int orders = 2 * form.degree + 1;
    for (MapEntry& e : form.synthesis)
      if (e.output % orders != form.degree) e.value *= 2;
    // The equator's values come twice.
    for (MapEntry& e : form.analysis)
      if (2 * (e.input / (form.parts * 2 * orders)) + 1 == grid.rings) e.value /= 2;
    slot.synthesis = build_map<T>(store, make_block_map(form.rings_size, form.synthesis));
    slot.analysis = build_map<T>(store, make_block_map(slot.components, form.analysis));
  }
  std::vector<GauntAngles<T>> to, from;
  table.angles = (grid.angles / 2 + angles_at_once) / angles_at_once;
  for (int pair = 0; pair < table.angles; ++pair)
    for (int m = 0; m < table.orders; ++m) {
      to.emplace_back(), from.emplace_back();
      for (int n = 0; n < angles_at_once; ++n) {
        const int j = pair * angles_at_once + n;
        if (2 * j > grid.angles) continue;
        const double weight = (j == 0 || 2 * j == grid.angles ? 0.5 : 1.0) / grid.angles, cosine = cosine_pi(2L * m * j, grid.angles), sine = sine_pi(2L * m * j, grid.angles);
        to.back().cosine[n] = T(cosine), to.back().sine[n] = T(sine);
        from.back().cosine[n] = T(weight * cosine), from.back().sine[n] = T(weight * sine);
      }
    }
  table.to_angles = store.items(to), table.from_angles = store.items(from);
  return table;
}

template <class T>
class GauntProduct final : public Operation {
 public:
  GauntProduct(int device, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid)
      : Operation(device, sizeof(T) == 8, 0, 0, slots.back().dim), arena_(device) {
    for (const ChannelSlot& slot : slots) innermost_ &= are_innermost(slot);
    table_ = arena_.build([&](auto& store) { return gaunt_product_table<T>(store, mul, slots, power, grid); });
    Call call{};
    for (int f = 0; f < table_.factors; ++f) call.factor[f] = call.factor_direction[f] = call.factor_out[f] = &call;
    call.in[z_operand] = call.out[2] = &call;
    tiling_for<Items<T>>(device, GauntProductLayout(table_, call_of(call)).components, 1, 1);
    allow_all_shared_memory(device, gaunt_product<T, 1>), allow_all_shared_memory(device, gaunt_product<T, 2>);
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    GauntProductCall<T> a = call_of(call);
    const GauntProductLayout layout(table_, a);
    const long long signals = call.batch * table_.mul;
    const Tiling tiling = tiling_for<Items<T>>(device, layout.components, layout.teams, signals);
    for (int s = 0; s <= table_.factors; ++s) a.rows[s] = channel_rows<T, T>(table_.slots[s], table_.mul, false, innermost_, tiling.threads);
    const auto kernel = table_.parts == 2 ? gaunt_product<T, 2> : gaunt_product<T, 1>;
    check(launch(kernel, tiling.grid(signals), tiling.threads, tiling.shared_bytes, stream, table_, a, layout, tiling.items, signals), "cudaLaunchKernel");
  }

 private:
  GauntProductCall<T> call_of(const Call& call) const {
    GauntProductCall<T> a{};
    for (int f = 0; f < table_.factors; ++f) a.doubles |= call.factor_direction[f] != nullptr, a.differentiates |= call.factor_out[f] != nullptr;
    a.quantities = table_.factors * (a.doubles ? 2 : 1) + 1;
    for (int f = 0; f < table_.factors; ++f) {
      a.from[f] = static_cast<const T*>(call.factor[f]);
      if (a.doubles) a.from[table_.factors + f] = static_cast<const T*>(call.factor_direction[f]);
      a.to[f] = static_cast<T*>(call.factor_out[f]);
    }
    if (a.differentiates) a.from[a.quantities - 1] = static_cast<const T*>(call.in[z_operand]);
    a.to[table_.factors] = static_cast<T*>(call.out[2]);
    a.accumulate = call.accumulate;
    return a;
  }

  PlanArena arena_;
  GauntProductTable<T> table_{};
  bool innermost_ = true;
};

}  // namespace

std::unique_ptr<Operation> make_gaunt_product(int device, bool is_double, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid) {
  return make<GauntProduct>(is_double, device, mul, slots, power, grid);
}

}  // namespace equitensor::cuda
