// Gaunt product of up to four signals, or a power of one, by their values on a grid that is exact for all of it: nothing leaves the grid between
// the factors. The gradient of a factor is the product of the others with dz. A double backward, or a jvp, is the same with dual numbers v + a e, e^2 = 0, as values.
//
// Where parities would mix a value has two parts, even and odd under inversion of the irreps, which multiply as even and odd numbers add.
#include "cpu/gaunt_rings.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// V: a vector of items, or two of them, of two channels.
template <class V, int parts>
struct PointValue {
  V part[parts];
};
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> operator*(const PointValue<V, parts>& a, const PointValue<V, parts>& b) {
  if constexpr (parts == 1)
    return {a.part[0] * b.part[0]};
  else
    return {a.part[0] * b.part[0] + a.part[1] * b.part[1], a.part[0] * b.part[1] + a.part[1] * b.part[0]};
}
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> operator+(PointValue<V, parts> a, const PointValue<V, parts>& b) {
  for (int p = 0; p < parts; ++p) a.part[p] += b.part[p];
  return a;
}
template <class T, class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> scaled(T factor, PointValue<V, parts> a) {
  for (int p = 0; p < parts; ++p) a.part[p] = factor * a.part[p];
  return a;
}
template <class V, int parts>
struct DualValue {
  PointValue<V, parts> value, tangent;
};
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> tangent_of_product(const DualValue<V, parts>& a, const DualValue<V, parts>& b) {
  return a.value * b.tangent + a.tangent * b.value;
}
template <class V, int parts>
EQUITENSOR_INLINE DualValue<V, parts> operator*(const DualValue<V, parts>& a, const DualValue<V, parts>& b) {
  return {a.value * b.value, tangent_of_product(a, b)};
}
// What of a product is wanted.
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> result_of(const PointValue<V, parts>& a) { return a; }
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> result_of(const DualValue<V, parts>& a) { return a.tangent; }
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> result_of_product(const PointValue<V, parts>& a, const PointValue<V, parts>& b) { return a * b; }
template <class V, int parts>
EQUITENSOR_INLINE PointValue<V, parts> result_of_product(const DualValue<V, parts>& a, const DualValue<V, parts>& b) { return tangent_of_product(a, b); }

// Values at the angles of a ring, part by part.
template <class V, int parts>
struct Points {
  V* values;
  int angles;
  EQUITENSOR_INLINE PointValue<V, parts> operator[](int j) const {
    PointValue<V, parts> value;
    for (int p = 0; p < parts; ++p) value.part[p] = values[p * angles + j];
    return value;
  }
  EQUITENSOR_INLINE void store(int j, const PointValue<V, parts>& value) const {
    for (int p = 0; p < parts; ++p) values[p * angles + j] = value.part[p];
  }
};

// An operand or a result on its way between channels and the grid.
template <class T, class V>
struct GridSignal {
  static constexpr long vectors_of = sizeof(V) / sizeof(Vector<T>);
  const GauntSlot<T>* slot = nullptr;
  Vector<T>* tile = nullptr;
  V *channel = nullptr, *folded = nullptr, *ring = nullptr, *values = nullptr;

  GridSignal() = default;
  GridSignal(const GauntProductPlan<T>& plan, int s, bool is_result, Scratch<T>& scratch) : slot(plan.slots + s) {
    const auto take = [&](long n) { return reinterpret_cast<V*>(scratch.take(n * vectors_of)); };
    tile = scratch.take(is_result ? RowWriter<T>::buffer_vectors(slot->dim) : slot->dim);
    channel = take(slot->components);
    folded = take(folded_size(plan)), ring = take(ring_size()), values = take(values_size(plan));
  }
  long ring_size() const { return slot->parts * 2L * (2 * slot->degree + 1); }
  long folded_size(const GauntProductPlan<T>& plan) const { return ring_size() * ((plan.rings + 1) / 2); }
  long values_size(const GauntProductPlan<T>& plan) const { return long(plan.parts) * plan.angles; }

  // Of the channels from u on; behind the last one it stands again.
  const V* gather(int mul, int u) const {
    if constexpr (vectors_of == 1) {
      return gather_channel<T>(*slot, tile, u, channel);
    } else {
      const int v = minimum(u + 1, mul - 1);
      for (int c = 0; c < slot->components; ++c) {
        const Vector<T>* const from = tile + slot->channel[c].first;
        channel[c] = {from[u * slot->channel[c].step], from[v * slot->channel[c].step]};
      }
      return channel;
    }
  }
  void scatter(int mul, int u, Vector<T>* tile) const {
    if constexpr (vectors_of == 1) {
      scatter_channel<T>(*slot, tile, u, channel);
    } else {
      const int v = minimum(u + 1, mul - 1);
      for (int c = 0; c < slot->components; ++c) {
        Vector<T>* const to = tile + slot->channel[c].first;
        to[u * slot->channel[c].step] = channel[c].half[0], to[v * slot->channel[c].step] = channel[c].half[1];
      }
    }
  }
};

template <class T, class V>
struct GauntProductBuffers {
  GridSignal<T, V> factor[max_factors], direction[max_factors], gradient[max_factors], z, out;
  GauntProductBuffers(const GauntProductPlan<T>& plan, Scratch<T>& scratch) {
    for (int f = 0; f < plan.factors; ++f) {
      factor[f] = {plan, f, false, scratch};
      direction[f] = {plan, f, false, scratch};
      gradient[f] = {plan, f, true, scratch};
    }
    z = {plan, plan.factors, false, scratch};
    out = {plan, plan.factors, true, scratch};
  }
};

template <class T, class V>
class GauntProductItems {
  using Signal = GridSignal<T, V>;

 public:
  GauntProductItems(const GauntProductPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    for (int f = 0; f < plan.factors; ++f) {
      doubles_ |= a.factor_direction[f] != nullptr;
      differentiates_ |= a.factor_out[f] != nullptr;
    }
    for (int f = 0; f < plan.factors; ++f) {
      add_operand(buffer_.factor[f], a.factor[f]);
      if (doubles_) add_operand(buffer_.direction[f], a.factor_direction[f]);
      if (a.factor_out[f]) results_[result_count_++] = {&buffer_.gradient[f], a.factor_out[f]};
    }
    if (differentiates_) add_operand(buffer_.z, a.in[z_operand]);
    if (a.out[2]) results_[result_count_++] = {&buffer_.out, a.out[2]};
  }

  void run(long begin, long end) {
    RowWriter<T> writers[] = {writer(0), writer(1), writer(2), writer(3), writer(4)};
    for_each_tile<T>(begin, end, a_.stream, [&](const Tile& tile, bool first, bool last) {
      for (int o = 0; o < operand_count_; ++o) {
        const int dim = operands_[o].signal->slot->dim;
        if (operands_[o].from) load_rows(operands_[o].from, dim, dim, tile, operands_[o].signal->tile);
      }
      for (int u = 0; u < plan_.mul; u += int(Signal::vectors_of)) {
        for (int o = 0; o < operand_count_; ++o) {
          const Signal& s = *operands_[o].signal;
          if (operands_[o].from) apply(s.slot->synthesis, s.gather(plan_.mul, u), s.folded);
        }
        const int mirrored = plan_.rings / 2, all = (plan_.rings + 1) / 2;
        for (int ring = 0; ring < all; ++ring) ring < mirrored ? contract_ring<2>(ring) : contract_ring<1>(ring);
        for (int r = 0; r < result_count_; ++r) {
          const Signal& s = *results_[r].signal;
          if constexpr (Signal::vectors_of == 1)
            apply(s.slot->analysis, s.folded, s.slot->direct ? writers[r].tile() : s.channel);
          else
            apply(s.slot->analysis, s.folded, s.channel);
          s.scatter(plan_.mul, u, writers[r].tile());
        }
      }
      for (int r = 0; r < result_count_; ++r) writers[r].write(tile, first, last);
    });
    for (int r = 0; r < result_count_; ++r) writers[r].finish();
    stream_fence();
  }

 private:
  // Of a result, or of nothing behind the last one.
  RowWriter<T> writer(int r) const {
    Operands<T> row = a_;
    row.terms.writes[0] = r < result_count_, row.sum[0] = false;
    if (r >= result_count_) return {row, 0, 0, nullptr};
    row.out[0] = results_[r].to;
    return {row, 0, results_[r].signal->slot->dim, results_[r].signal->tile};
  }

  // Without an array it is zero.
  void add_operand(Signal& signal, const T* from) {
    // The synthesis leaves coefficients that no component reaches as they are, and a signal without odd irreps its odd values.
    for (long i = 0; i < signal.folded_size(plan_); ++i) signal.folded[i] = V{};
    for (long i = 0; i < signal.values_size(plan_); ++i) signal.values[i] = V{};
    operands_[operand_count_++] = {&signal, from};
  }

  template <int signs>
  void contract_ring(int ring) {
    const int n = plan_.angles;
    for (int o = 0; o < operand_count_; ++o) {
      const Signal& s = *operands_[o].signal;
      if (operands_[o].from) unfold_ring<signs>(*s.slot, s.folded + ring * s.ring_size(), s.ring);
    }
    for (int sign = 0; sign < signs; ++sign) {
      for (int o = 0; o < operand_count_; ++o) {
        const Signal& s = *operands_[o].signal;
        for (int part = 0; operands_[o].from && part < s.slot->parts; ++part)
          ring_to_angles(*s.slot, s.ring + (2 * part + sign) * (2 * s.slot->degree + 1), n, s.values + part * n);
      }
      if (plan_.parts == 2)
        multiply_points<2>();
      else
        multiply_points<1>();
      for (int r = 0; r < result_count_; ++r) {
        const Signal& s = *results_[r].signal;
        for (int part = 0; part < s.slot->parts; ++part)
          angles_to_ring(*s.slot, s.values + part * n, n, s.ring + (2 * part + sign) * (2 * s.slot->degree + 1));
      }
    }
    for (int r = 0; r < result_count_; ++r) {
      const Signal& s = *results_[r].signal;
      fold_ring<signs>(*s.slot, s.ring, s.folded + ring * s.ring_size());
    }
  }

  template <int parts>
  Points<V, parts> points(const Signal& signal) const { return {signal.values, plan_.angles}; }

  template <int parts>
  void multiply_points() {
    switch (plan_.power) {
      case 2: return raise_points<parts, 2>();
      case 3: return raise_points<parts, 3>();
      case 4: return raise_points<parts, 4>();
    }
    static_assert(max_factors == 4);
    Points<V, parts> factor[max_factors], direction[max_factors];
    for (int f = 0; f < plan_.factors; ++f) factor[f] = points<parts>(buffer_.factor[f]), direction[f] = points<parts>(buffer_.direction[f]);
    for (int j = 0; j < plan_.angles; ++j) {
      if (doubles_)
        multiply_point<parts, DualValue<V, parts>>(j, [&](int f) EQUITENSOR_LAMBDA -> DualValue<V, parts> { return {factor[f][j], direction[f][j]}; });
      else
        multiply_point<parts, PointValue<V, parts>>(j, [&](int f) EQUITENSOR_LAMBDA { return factor[f][j]; });
    }
  }
  template <int parts, class Value, class Factor>
  EQUITENSOR_INLINE void multiply_point(int j, Factor&& factor) {
    const int n = plan_.factors;
    Value before[max_factors];  // the product of the factors up to f
    before[0] = factor(0);
    for (int f = 1; f + 1 < n; ++f) before[f] = before[f - 1] * factor(f);
    if (a_.out[2]) points<parts>(buffer_.out).store(j, result_of_product(before[n - 2], factor(n - 1)));
    if (!differentiates_) return;
    const PointValue<V, parts> g = points<parts>(buffer_.z)[j];
    const auto give = [&](int f, const PointValue<V, parts>& value) EQUITENSOR_LAMBDA { points<parts>(buffer_.gradient[f]).store(j, value); };
    if (a_.factor_out[n - 1]) give(n - 1, result_of(before[n - 2]) * g);
    Value after = factor(n - 1);
    for (int f = n - 2; f > 0; --f) {
      if (a_.factor_out[f]) give(f, result_of_product(before[f - 1], after) * g);
      after = factor(f) * after;
    }
    if (a_.factor_out[0]) give(0, result_of(after) * g);
  }
  // v^n and n v^(n-1) g; with a direction n v^(n-1) a and n (n - 1) v^(n-2) a g.
  template <int parts, int n>
  void raise_points() {
    const Points<V, parts> factor = points<parts>(buffer_.factor[0]), direction = points<parts>(buffer_.direction[0]), cotangent = points<parts>(buffer_.z),
                           out = points<parts>(buffer_.out), gradient = points<parts>(buffer_.gradient[0]);
    const bool wants_out = a_.out[2], doubles = doubles_, differentiates = differentiates_;
    for (int j = 0; j < factor.angles; ++j) {
      const PointValue<V, parts> v = factor[j];
      PointValue<V, parts> power = v;  // v^(n-2), from n = 3 on
      if (n == 4) power = power * v;
      const PointValue<V, parts> next = n > 2 ? power * v : v;
      if (!doubles) {
        if (wants_out) out.store(j, next * v);
        if (differentiates) gradient.store(j, scaled(T(n), next * cotangent[j]));
        continue;
      }
      const PointValue<V, parts> a = direction[j];
      if (wants_out) out.store(j, scaled(T(n), next * a));
      if (!differentiates) continue;
      const PointValue<V, parts> ag = a * cotangent[j];
      gradient.store(j, scaled(T(n * (n - 1)), n > 2 ? power * ag : ag));
    }
  }

  struct Operand {
    Signal* signal;
    const T* from;
  };
  struct Result {
    Signal* signal;
    T* to;
  };
  const GauntProductPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  GauntProductBuffers<T, V> buffer_;
  Operand operands_[2 * max_factors + 1];
  Result results_[max_factors + 1];
  int operand_count_ = 0, result_count_ = 0;
  bool doubles_ = false, differentiates_ = false;  // with directions; gradients of factors are wanted
};

// Calls body with a V: two channels go at once where there are several, and registers for them.
template <class T, class Body>
EQUITENSOR_INLINE void with_channels(const GauntProductPlan<T>& plan, Body&& body) {
  if constexpr (tiles_at_once == 2)
    if (plan.mul > 1) return body(VectorPair<T>{});
  body(Vector<T>{});
}

template <class T>
void gaunt_product(const GauntProductPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  with_channels(plan, [&]<class V>(V) { GauntProductItems<T, V>(plan, a, memory).run(begin, end); });
}

template <class T>
long gaunt_product_scratch(const GauntProductPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  with_channels(plan, [&]<class V>(V) { GauntProductBuffers<T, V> measured(plan, scratch); });
  return scratch.bytes();
}

template <class T>
void add_gaunt_product(TypedKernels<T>& k) {
  k.gaunt_product = {gaunt_product<T>, gaunt_product_scratch<T>};
}
template void add_gaunt_product(TypedKernels<float>&);
template void add_gaunt_product(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
