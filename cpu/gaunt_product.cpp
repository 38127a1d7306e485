// Gaunt product of up to four signals, or a power of one, by their values on a grid that is exact for all of it: nothing leaves the grid between
// the factors. The gradient of a factor is the product of the others with dz. A double backward, or a jvp, is the same with dual numbers v + a e, e^2 = 0, as values.
//
// Where parities would mix a value has two parts, even and odd under inversion of the irreps, which multiply as even and odd numbers add.
#include "cpu/gaunt_rings.hpp"
#include "cpu/kernels.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T, int parts>
struct PointValue {
  Vector<T> part[parts];
};
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> operator*(const PointValue<T, parts>& a, const PointValue<T, parts>& b) {
  if constexpr (parts == 1)
    return {a.part[0] * b.part[0]};
  else
    return {a.part[0] * b.part[0] + a.part[1] * b.part[1], a.part[0] * b.part[1] + a.part[1] * b.part[0]};
}
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> operator+(PointValue<T, parts> a, const PointValue<T, parts>& b) {
  for (int p = 0; p < parts; ++p) a.part[p] += b.part[p];
  return a;
}
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> scaled(T factor, PointValue<T, parts> a) {
  for (int p = 0; p < parts; ++p) a.part[p] = factor * a.part[p];
  return a;
}
template <class T, int parts>
struct DualValue {
  PointValue<T, parts> value, tangent;
};
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> tangent_of_product(const DualValue<T, parts>& a, const DualValue<T, parts>& b) {
  return a.value * b.tangent + a.tangent * b.value;
}
template <class T, int parts>
EQUITENSOR_INLINE DualValue<T, parts> operator*(const DualValue<T, parts>& a, const DualValue<T, parts>& b) {
  return {a.value * b.value, tangent_of_product(a, b)};
}
// What of a product is wanted.
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> result_of(const PointValue<T, parts>& a) { return a; }
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> result_of(const DualValue<T, parts>& a) { return a.tangent; }
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> result_of_product(const PointValue<T, parts>& a, const PointValue<T, parts>& b) { return a * b; }
template <class T, int parts>
EQUITENSOR_INLINE PointValue<T, parts> result_of_product(const DualValue<T, parts>& a, const DualValue<T, parts>& b) { return tangent_of_product(a, b); }

// An operand or a result on its way between a channel and the grid.
template <class T>
struct GridSignal {
  const GauntSlot<T>* slot = nullptr;
  Vector<T>*tile = nullptr, *channel = nullptr, *folded = nullptr, *ring = nullptr, *values = nullptr;

  GridSignal() = default;
  GridSignal(const GauntProductPlan<T>& plan, int s, bool is_result, Scratch<T>& scratch) : slot(plan.slots + s) {
    const long orders = slot->parts * 2L * (2 * slot->degree + 1);
    tile = scratch.take(is_result ? RowWriter<T>::buffer_vectors(slot->dim) : slot->dim);
    channel = scratch.take(slot->components);
    folded = scratch.take(folded_size(plan)), ring = scratch.take(orders), values = scratch.take(values_size(plan));
  }
  long ring_size() const { return slot->parts * 2L * (2 * slot->degree + 1); }
  long folded_size(const GauntProductPlan<T>& plan) const { return ring_size() * ((plan.rings + 1) / 2); }
  long values_size(const GauntProductPlan<T>& plan) const { return long(plan.parts) * plan.angles; }
};

template <class T>
struct GauntProductBuffers {
  GridSignal<T> factor[max_factors], direction[max_factors], gradient[max_factors], z, out;
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

template <class T>
class GauntProductItems {
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
      for (int u = 0; u < plan_.mul; ++u) {
        for (int o = 0; o < operand_count_; ++o) {
          const GridSignal<T>& s = *operands_[o].signal;
          if (operands_[o].from) apply(s.slot->synthesis, gather_channel<T>(*s.slot, s.tile, u, s.channel), s.folded);
        }
        const int mirrored = plan_.rings / 2, all = (plan_.rings + 1) / 2;
        for (int ring = 0; ring < all; ++ring) ring < mirrored ? contract_ring<2>(ring) : contract_ring<1>(ring);
        for (int r = 0; r < result_count_; ++r) {
          const GridSignal<T>& s = *results_[r].signal;
          apply(s.slot->analysis, s.folded, s.slot->direct ? writers[r].tile() : s.channel);
          scatter_channel<T>(*s.slot, writers[r].tile(), u, s.channel);
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
  void add_operand(GridSignal<T>& signal, const T* from) {
    // The synthesis leaves coefficients that no component reaches as they are, and a signal without odd irreps its odd values.
    for (long i = 0; i < signal.folded_size(plan_); ++i) signal.folded[i] = Vector<T>{};
    for (long i = 0; i < signal.values_size(plan_); ++i) signal.values[i] = Vector<T>{};
    operands_[operand_count_++] = {&signal, from};
  }

  template <int signs>
  void contract_ring(int ring) {
    const int n = plan_.angles;
    for (int o = 0; o < operand_count_; ++o) {
      const GridSignal<T>& s = *operands_[o].signal;
      if (operands_[o].from) unfold_ring<signs>(*s.slot, s.folded + ring * s.ring_size(), s.ring);
    }
    for (int sign = 0; sign < signs; ++sign) {
      for (int o = 0; o < operand_count_; ++o) {
        const GridSignal<T>& s = *operands_[o].signal;
        for (int part = 0; operands_[o].from && part < s.slot->parts; ++part)
          ring_to_angles(*s.slot, s.ring + (2 * part + sign) * (2 * s.slot->degree + 1), n, s.values + part * n);
      }
      if (plan_.parts == 2)
        multiply_points<2>();
      else
        multiply_points<1>();
      for (int r = 0; r < result_count_; ++r) {
        const GridSignal<T>& s = *results_[r].signal;
        for (int part = 0; part < s.slot->parts; ++part)
          angles_to_ring(*s.slot, s.values + part * n, n, s.ring + (2 * part + sign) * (2 * s.slot->degree + 1));
      }
    }
    for (int r = 0; r < result_count_; ++r) {
      const GridSignal<T>& s = *results_[r].signal;
      fold_ring<signs>(*s.slot, s.ring, s.folded + ring * s.ring_size());
    }
  }

  template <int parts>
  EQUITENSOR_INLINE PointValue<T, parts> take(const GridSignal<T>& signal, int j) const {
    PointValue<T, parts> value;
    for (int p = 0; p < parts; ++p) value.part[p] = signal.values[p * plan_.angles + j];
    return value;
  }
  template <int parts>
  EQUITENSOR_INLINE void give(const GridSignal<T>& signal, int j, const PointValue<T, parts>& value) const {
    for (int p = 0; p < parts; ++p) signal.values[p * plan_.angles + j] = value.part[p];
  }

  template <int parts>
  void multiply_points() {
    for (int j = 0; j < plan_.angles; ++j) {
      if (plan_.power) {
        raise_point<parts>(j);
      } else if (doubles_) {
        multiply_point<parts, DualValue<T, parts>>(j, [&](int f) EQUITENSOR_LAMBDA -> DualValue<T, parts> {
          return {take<parts>(buffer_.factor[f], j), take<parts>(buffer_.direction[f], j)};
        });
      } else {
        multiply_point<parts, PointValue<T, parts>>(j, [&](int f) EQUITENSOR_LAMBDA { return take<parts>(buffer_.factor[f], j); });
      }
    }
  }
  template <int parts, class Value, class Factor>
  EQUITENSOR_INLINE void multiply_point(int j, Factor&& factor) {
    const int n = plan_.factors;
    Value before[max_factors];  // the product of the factors up to f
    before[0] = factor(0);
    for (int f = 1; f + 1 < n; ++f) before[f] = before[f - 1] * factor(f);
    if (a_.out[2]) give<parts>(buffer_.out, j, result_of_product(before[n - 2], factor(n - 1)));
    if (!differentiates_) return;
    const PointValue<T, parts> g = take<parts>(buffer_.z, j);
    if (a_.factor_out[n - 1]) give<parts>(buffer_.gradient[n - 1], j, result_of(before[n - 2]) * g);
    Value after = factor(n - 1);
    for (int f = n - 2; f > 0; --f) {
      if (a_.factor_out[f]) give<parts>(buffer_.gradient[f], j, result_of_product(before[f - 1], after) * g);
      after = factor(f) * after;
    }
    if (a_.factor_out[0]) give<parts>(buffer_.gradient[0], j, result_of(after) * g);
  }
  // v^n and n v^(n-1) g; with a direction n v^(n-1) a and n (n - 1) v^(n-2) a g.
  template <int parts>
  EQUITENSOR_INLINE void raise_point(int j) {
    const int n = plan_.power;
    const PointValue<T, parts> v = take<parts>(buffer_.factor[0], j);
    PointValue<T, parts> power = v;  // v^(n-2), from n = 3 on
    for (int f = 3; f < n; ++f) power = power * v;
    const PointValue<T, parts> next = n > 2 ? power * v : v;
    if (!doubles_) {
      if (a_.out[2]) give<parts>(buffer_.out, j, next * v);
      if (differentiates_) give<parts>(buffer_.gradient[0], j, scaled<T>(T(n), next * take<parts>(buffer_.z, j)));
      return;
    }
    const PointValue<T, parts> a = take<parts>(buffer_.direction[0], j);
    if (a_.out[2]) give<parts>(buffer_.out, j, scaled<T>(T(n), next * a));
    if (!differentiates_) return;
    const PointValue<T, parts> ag = a * take<parts>(buffer_.z, j);
    give<parts>(buffer_.gradient[0], j, scaled<T>(T(n * (n - 1)), n > 2 ? power * ag : ag));
  }

  struct Operand {
    GridSignal<T>* signal;
    const T* from;
  };
  struct Result {
    GridSignal<T>* signal;
    T* to;
  };
  const GauntProductPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  GauntProductBuffers<T> buffer_;
  Operand operands_[2 * max_factors + 1];
  Result results_[max_factors + 1];
  int operand_count_ = 0, result_count_ = 0;
  bool doubles_ = false, differentiates_ = false;  // with directions; gradients of factors are wanted
};

template <class T>
void gaunt_product(const GauntProductPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  GauntProductItems<T>(plan, a, memory).run(begin, end);
}

template <class T>
long gaunt_product_scratch(const GauntProductPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  GauntProductBuffers<T> measured(plan, scratch);
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
