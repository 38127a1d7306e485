// Symmetric contraction (core/symmetric_contraction.hpp), a node and a vector of channels at a time: lanes are channels, which lie side by side in ir_mul
// and are brought there from mul_ir. Everything between x and z stays in L1: the pairs C (x, x), their weighted sums y, and the products y x.
// All nodes of a task have the same weights, so that those of a vector of channels, and their gradient, stay there as well.
//
// A double backward, or a jvp, is the same on dual numbers x + x' e, e^2 = 0, with the weights w + w' e: of z the part of e is wanted, and of the gradients
// of its product with dz those of x and w. A cotangent of a number's e part is `b`, one of the number itself `c`.
#include "cpu/block_map.hpp"
#include "cpu/kernels.hpp"
#include "cpu/products.hpp"
#include "cpu/rows.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T, class V>
struct SymmetricBuffers {
  static constexpr long vectors_of = sizeof(V) / sizeof(Vector<T>);
  V *weights, *weight_directions, *weight_gradients;
  V *x, *x_direction;  // with the pairs behind them
  V *squares, *squares_direction, *y, *y_direction, *products, *z;
  V *dx, *dx_direction, *dy, *dy_direction;  // as x and y
  SymmetricBuffers(const SymmetricPlan<T>& plan, Scratch<T>& vectors) {
    struct {
      Scratch<T>& vectors;
      V* take(long n) { return reinterpret_cast<V*>(vectors.take(n * vectors_of)); }
    } scratch{vectors};
    for (V** rows : {&weights, &weight_directions, &weight_gradients}) *rows = scratch.take(plan.term_count + plan.linear_count);
    for (V** sources : {&x, &x_direction, &dx, &dx_direction}) *sources = scratch.take(plan.inputs + plan.pairs);
    for (V** sums : {&y, &y_direction, &dy, &dy_direction}) *sums = scratch.take(plan.sums);
    squares = scratch.take(plan.squares.products), squares_direction = scratch.take(plan.squares.products);
    products = scratch.take(plan.products.products);
    z = scratch.take(plan.outputs);
  }
};

template <class T, class V>
class SymmetricNodes {
 public:
  SymmetricNodes(const SymmetricPlan<T>& plan, const Operands<T>& a, void* memory) : plan_(plan), a_(a), scratch_(memory), buffer_(plan, scratch_) {
    doubles_ = a.in[x_direction] || a.weight_direction;
  }

  // For channels from first to last: whole ones, if V is more than a vector.
  void run(long begin, long end, int first, int last) {
    const int rows = plan_.term_count + plan_.linear_count;
    for (int c = first; c < last; c += channels_of) {
      channel_ = c, lanes_ = minimum(channels_of, last - c);
      for (int r = 0; r < rows; ++r) {
        buffer_.weights[r] = load_lanes(a_.weight + r * plan_.mul + c);
        buffer_.weight_directions[r] = a_.weight_direction ? load_lanes(a_.weight_direction + r * plan_.mul + c) : V{};
        buffer_.weight_gradients[r] = V{};
      }
      if (!a_.in[x_direction]) clear(buffer_.x_direction, plan_.inputs);
      for (long i = begin; i < end; ++i) {
        if (i + 1 < end) prefetch(a_.order[i + 1]);
        run_node(a_.order[i]);
      }
      for (int r = 0; a_.weight_out && r < rows; ++r) store_lanes(a_.weight_out + r * plan_.mul + c, buffer_.weight_gradients[r]);
    }
  }

 private:
  static constexpr int vectors_of = SymmetricBuffers<T, V>::vectors_of, channels_of = vectors_of * width<T>;
  static EQUITENSOR_INLINE Vector<T>* vectors(V* v) { return reinterpret_cast<Vector<T>*>(v); }
  static EQUITENSOR_INLINE const Vector<T>* vectors(const V* v) { return reinterpret_cast<const Vector<T>*>(v); }
  EQUITENSOR_INLINE V load_lanes(const T* p) const {
    V v;
    for (int h = 0; h < vectors_of; ++h) vectors(&v)[h] = vectors_of > 1 || lanes_ == width<T> ? load(p + h * width<T>) : load_partial(p, lanes_);
    return v;
  }
  EQUITENSOR_INLINE void store_lanes(T* p, V v) const {
    for (int h = 0; h < vectors_of; ++h) {
      if (vectors_of > 1 || lanes_ == width<T>)
        store(p + h * width<T>, vectors(&v)[h]);
      else
        store_partial(p, vectors(&v)[h], lanes_);
    }
  }
  static void clear(V* at, int n) {
    for (int c = 0; c < n; ++c) at[c] = V{};
  }
  // Of a vector.
  Tile channels(int h) const { return {h * width<T>, 1, minimum(width<T>, lanes_ - h * width<T>), 0}; }
  static constexpr int most_components = 45;

  // These channels of a row: a line a component, in an order that the hardware does not foresee.
  void prefetch(long node) const {
    for (int o : {x_operand, z_operand, x_direction}) {
      const int s = slot_of(o) == 2;
      for (int b = 0; a_.in[o] && b < plan_.block_count[s]; ++b) {
        const PlanBlock& block = plan_.blocks[s][b];
        const T* row = a_.in[o] + node * plan_.dim[s] + block.offset;
        for (int m = 0; m < block.components; ++m)
          __builtin_prefetch(block.by_component ? row + m * block.mul + channel_ : row + channel_ * block.components + m * lanes_, 0, 2);
      }
    }
  }
  void take(const T* rows, long node, int s, V* to) const {
    for (int b = 0; b < plan_.block_count[s]; to += plan_.blocks[s][b].components, ++b) {
      const PlanBlock& block = plan_.blocks[s][b];
      const T* row = rows + node * plan_.dim[s] + block.offset;
      if (block.by_component)
        for (int m = 0; m < block.components; ++m) to[m] = load_lanes(row + m * block.mul + channel_);
      else
        for (int h = 0; h < vectors_of; ++h) {
          Vector<T> turned[most_components];
          load_rows<T, false>(row + channel_ * block.components, block.components, block.components, channels(h), turned);
          for (int m = 0; m < block.components; ++m) vectors(to + m)[h] = turned[m];
        }
    }
  }
  void give(T* rows, long node, int s, const V* from) const {
    for (int b = 0; b < plan_.block_count[s]; from += plan_.blocks[s][b].components, ++b) {
      const PlanBlock& block = plan_.blocks[s][b];
      T* row = rows + node * plan_.dim[s] + block.offset;
      for (int m = 0; block.by_component && m < block.components; ++m) {
        T* to = row + m * block.mul + channel_;
        store_lanes(to, a_.accumulate ? load_lanes(to) + from[m] : from[m]);
      }
      for (int h = 0; !block.by_component && h < vectors_of; ++h) {
        Vector<T> turned[most_components];
        for (int m = 0; m < block.components; ++m) turned[m] = vectors(from + m)[h];
        store_rows(row + channel_ * block.components, block.components, 0, block.components, channels(h), turned, a_.accumulate);
      }
    }
  }

  void run_node(long node) {
    take(a_.in[x_operand], node, 0, buffer_.x);
    if (a_.in[x_direction]) take(a_.in[x_direction], node, 0, buffer_.x_direction);
    make_sums();
    if (a_.terms.writes[2]) {
      doubles_ ? make_output_direction() : make_output();
      give(a_.out[2], node, 1, buffer_.z);
    }
    if (!a_.terms.writes[0] && !a_.weight_out) return;
    take(a_.in[z_operand], node, 1, buffer_.z);
    doubles_ ? differentiate_direction() : differentiate();
    if (a_.terms.writes[0]) give(a_.out[0], node, 0, buffer_.dx);
  }

  // y, and y's e part
  void make_sums() {
    V *x = buffer_.x, *ax = buffer_.x_direction;
    multiply_components<false>(plan_.squares, x, x, buffer_.squares);
    apply(plan_.squares.forward, buffer_.squares, x + plan_.inputs);
    if (doubles_) {
      multiply_components<false>(plan_.squares, ax, x, buffer_.squares_direction);
      multiply_components<true>(plan_.squares, x, ax, buffer_.squares_direction);
      apply(plan_.squares.forward, buffer_.squares_direction, ax + plan_.inputs);
    }
    for (int t = 0; t < plan_.term_count; ++t) {
      const PlanSymmetricTerm& term = plan_.terms[t];
      const V w = buffer_.weights[t], aw = buffer_.weight_directions[t];
      const V*from = x + term.source, *from_direction = ax + term.source;
      V*y = buffer_.y + term.target, *ay = buffer_.y_direction + term.target;
      for (int m = 0; m < term.count; ++m) y[m] = term.first ? w * from[m] : y[m] + w * from[m];
      for (int m = 0; doubles_ && m < term.count; ++m) {
        const V sum = term.first ? aw * from[m] : ay[m] + aw * from[m];
        ay[m] = sum + w * from_direction[m];
      }
    }
  }
  void make_output() {
    multiply_components<false>(plan_.products, buffer_.y, buffer_.x, buffer_.products);
    apply(plan_.products.forward, buffer_.products, buffer_.z);
    for (int t = 0; t < plan_.linear_count; ++t) add_scaled(plan_.linear[t], buffer_.weights[plan_.term_count + t], buffer_.x, buffer_.z);
  }
  void make_output_direction() {
    multiply_components<false>(plan_.products, buffer_.y_direction, buffer_.x, buffer_.products);
    multiply_components<true>(plan_.products, buffer_.y, buffer_.x_direction, buffer_.products);
    apply(plan_.products.forward, buffer_.products, buffer_.z);
    for (int t = 0; t < plan_.linear_count; ++t) {
      add_scaled(plan_.linear[t], buffer_.weight_directions[plan_.term_count + t], buffer_.x, buffer_.z);
      add_scaled(plan_.linear[t], buffer_.weights[plan_.term_count + t], buffer_.x_direction, buffer_.z);
    }
  }
  // to += w from
  static void add_scaled(const PlanSymmetricTerm& term, V w, const V* from, V* to) {
    for (int m = 0; m < term.count; ++m) to[term.target + m] += w * from[term.source + m];
  }
  // from += w to, and the gradient of the weight
  static void add_scaled_back(const PlanSymmetricTerm& term, V w, const V* to, V* from) {
    for (int m = 0; m < term.count; ++m) from[term.source + m] += w * to[term.target + m];
  }
  void add_weight_gradient(int row, const PlanSymmetricTerm& term, const V* from, const V* to) {
    V sum = buffer_.weight_gradients[row];
    for (int m = 0; m < term.count; ++m) sum += from[term.source + m] * to[term.target + m];
    buffer_.weight_gradients[row] = sum;
  }

  void differentiate() {
    clear(buffer_.dx, plan_.inputs + plan_.pairs), clear(buffer_.dy, plan_.sums);
    apply(plan_.products.backward, buffer_.z, buffer_.products);
    add_gradients<true, true>(plan_.products, buffer_.products, buffer_.y, buffer_.x, buffer_.dy, buffer_.dx);
    const auto back = [&](int row, const PlanSymmetricTerm& term, const V* to) {
      add_weight_gradient(row, term, buffer_.x, to);
      add_scaled_back(term, buffer_.weights[row], to, buffer_.dx);
    };
    for (int t = 0; t < plan_.term_count; ++t) back(t, plan_.terms[t], buffer_.dy);
    for (int t = 0; t < plan_.linear_count; ++t) back(plan_.term_count + t, plan_.linear[t], buffer_.z);
    apply(plan_.squares.backward, buffer_.dx + plan_.inputs, buffer_.squares);
    add_gradients<true, true>(plan_.squares, buffer_.squares, buffer_.x, buffer_.x, buffer_.dx, buffer_.dx);
  }

  void differentiate_direction() {
    V *b = buffer_.dx_direction, *c = buffer_.dx, *b_y = buffer_.dy_direction, *c_y = buffer_.dy;
    const V *x = buffer_.x, *ax = buffer_.x_direction;
    for (V* gradient : {b, c}) clear(gradient, plan_.inputs + plan_.pairs);
    for (V* gradient : {b_y, c_y}) clear(gradient, plan_.sums);
    apply(plan_.products.backward, buffer_.z, buffer_.products);
    add_gradients<true, false>(plan_.products, buffer_.products, buffer_.y, x, b_y, c);
    add_gradients<true, true>(plan_.products, buffer_.products, buffer_.y_direction, ax, c_y, c);
    for (int t = 0; t < plan_.term_count; ++t) {
      const PlanSymmetricTerm& term = plan_.terms[t];
      add_weight_gradient(t, term, ax, b_y);
      add_weight_gradient(t, term, x, c_y);
      add_scaled_back(term, buffer_.weight_directions[t], b_y, c);
      add_scaled_back(term, buffer_.weights[t], c_y, c);
      if (term.source >= plan_.inputs) add_scaled_back(term, buffer_.weights[t], b_y, b);
    }
    for (int t = 0; t < plan_.linear_count; ++t) {
      add_weight_gradient(plan_.term_count + t, plan_.linear[t], ax, buffer_.z);
      add_scaled_back(plan_.linear[t], buffer_.weight_directions[plan_.term_count + t], buffer_.z, c);
    }
    apply(plan_.squares.backward, b + plan_.inputs, buffer_.squares_direction);
    apply(plan_.squares.backward, c + plan_.inputs, buffer_.squares);
    add_gradients<true, true>(plan_.squares, buffer_.squares_direction, ax, ax, c, c);
    add_gradients<true, true>(plan_.squares, buffer_.squares, x, x, c, c);
  }

  const SymmetricPlan<T>& plan_;
  const Operands<T>& a_;
  Scratch<T> scratch_;
  SymmetricBuffers<T, V> buffer_;
  bool doubles_;  // with directions
  int channel_ = 0, lanes_ = 0;
};

template <class T>
void symmetric_contraction(const SymmetricPlan<T>& plan, const Operands<T>& a, long begin, long end, void* memory) {
  int whole = 0;  // channels in pairs of vectors
  if constexpr (tiles_at_once == 2) {
    whole = plan.mul / (2 * width<T>) * (2 * width<T>);
    SymmetricNodes<T, VectorPair<T>>(plan, a, memory).run(begin, end, 0, whole);
  }
  SymmetricNodes<T, Vector<T>>(plan, a, memory).run(begin, end, whole, plan.mul);
}

template <class T>
long symmetric_contraction_scratch(const SymmetricPlan<T>& plan) {
  Scratch<T> scratch(nullptr);
  SymmetricBuffers<T, std::conditional_t<tiles_at_once == 2, VectorPair<T>, Vector<T>>> measured(plan, scratch);
  return scratch.bytes();
}

template <class T>
void add_symmetric_contraction(TypedKernels<T>& k) {
  k.symmetric_contraction = {symmetric_contraction<T>, symmetric_contraction_scratch<T>};
}
template void add_symmetric_contraction(TypedKernels<float>&);
template void add_symmetric_contraction(TypedKernels<double>&);

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
