#include "cpu/operation.hpp"
#include "cpu/pool.hpp"
#include <deque>
#include <set>
#include <stdexcept>

namespace equitensor {
namespace {

// Streaming pays once the outputs would not stay in the cache for whoever reads them next.
constexpr long stream_from_bytes = 512 << 10;

// Owns what a plan points to.
template <class T>
class PlanStore {
 public:
  const int* ints(std::vector<int> v) { return ints_.emplace_back(std::move(v)).data(); }
  const T* values(const std::vector<double>& v) { return values_.emplace_back(v.begin(), v.end()).data(); }
  template <class Item>
  const Item* items(std::vector<Item> v) {
    auto kept = std::make_shared<std::vector<Item>>(std::move(v));
    others_.push_back(kept);
    return kept->data();
  }
  PlanMap<T> map(const BlockMap& map) {
    std::map<std::pair<size_t, size_t>, std::vector<const MapBlock*>> shapes;
    for (const MapBlock& b : map.blocks) shapes[{b.outputs.size(), b.sources.size()}].push_back(&b);
    std::vector<PlanRun<T>> runs;
    for (const auto& [shape, blocks] : shapes) {
      std::vector<double> coefficients;
      std::vector<int> sources, outputs;
      for (const MapBlock* b : blocks) {
        coefficients.insert(coefficients.end(), b->coefficients.begin(), b->coefficients.end());
        sources.insert(sources.end(), b->sources.begin(), b->sources.end());
        outputs.insert(outputs.end(), b->outputs.begin(), b->outputs.end());
      }
      runs.push_back({int(blocks.size()), int(shape.second), int(shape.first), values(coefficients), ints(sources), ints(outputs)});
    }
    const int count = int(runs.size());
    return {items(std::move(runs)), count};
  }

 private:
  std::deque<std::vector<int>> ints_;
  std::deque<std::vector<T>> values_;
  std::vector<std::shared_ptr<void>> others_;
};

template <class T>
const TypedKernels<T>& typed(const Kernels& k) {
  if constexpr (sizeof(T) == 4)
    return k.f32;
  else
    return k.f64;
}

// A task's share of the rows, or of an output that is summed over the batch: those are written a row a task and added up in
// order, so that the result depends neither on the number of threads nor on their timing.
constexpr long tasks_when_summing = 64;

enum class Pass { forward, backward };

template <class T>
void run(const Operation& operation, const Call& call, const TypedKernels<T>& kernels, Pass pass, long scratch_bytes,
         const std::function<void(const Operands<T>&, long begin, long end, void* scratch)>& kernel) {
  const long out_dim = pass == Pass::forward ? operation.dim_out : operation.dim1 + operation.dim2;
  Operands<T> all{};
  all.x = static_cast<const T*>(call.x), all.y = static_cast<const T*>(call.y), all.z = static_cast<const T*>(call.z);
  all.x_stride = call.x_stride, all.y_stride = call.y_stride, all.z_stride = call.z_stride;
  all.x_out = static_cast<T*>(call.x_out), all.y_out = static_cast<T*>(call.y_out), all.z_out = static_cast<T*>(call.z_out);
  all.stream = call.batch * out_dim * long(sizeof(T)) >= stream_from_bytes;
  all.sum_x = pass == Pass::backward && call.x_stride == 0 && all.x_out;
  all.sum_y = pass == Pass::backward && call.y_stride == 0 && all.y_out;

  // Enough tasks for an even load; whole passes when streaming, whole tiles of any variant otherwise.
  const long unit = all.stream ? kernels.rows_per_task : 16;
  const long wanted = all.sum_x || all.sum_y ? tasks_when_summing : 4 * call.threads;
  const long rows = std::max<long>(unit, (call.batch + wanted * unit - 1) / (wanted * unit) * unit);
  const long tasks = (call.batch + rows - 1) / rows;
  std::vector<T> x_rows(all.sum_x ? tasks * operation.dim1 : 0), y_rows(all.sum_y ? tasks * operation.dim2 : 0);
  parallel_for(call.threads, tasks, scratch_bytes, [&](long task, void* scratch) {
    Operands<T> mine = all;
    if (all.sum_x) mine.x_out = x_rows.data() + task * operation.dim1;
    if (all.sum_y) mine.y_out = y_rows.data() + task * operation.dim2;
    kernel(mine, task * rows, std::min(call.batch, (task + 1) * rows), scratch);
  });
  const auto add_rows = [&](const std::vector<T>& from, int dim, T* to) {
    for (int c = 0; c < dim; ++c) {
      double sum = 0;
      for (long task = 0; task < tasks; ++task) sum += double(from[task * dim + c]);
      to[c] = T(sum);
    }
  };
  if (all.sum_x) add_rows(x_rows, operation.dim1, all.x_out);
  if (all.sum_y) add_rows(y_rows, operation.dim2, all.y_out);
}

template <class T>
class ClebschGordan final : public Operation {
 public:
  ClebschGordan(const int (&dims)[3], const std::vector<IrrepsBlock>& in1, const std::vector<IrrepsBlock>& in2,
                const std::vector<ClebschGordanPath>& paths, bool dense) {
    is_double = sizeof(T) == 8;
    dim1 = dims[0], dim2 = dims[1], dim_out = dims[2];
    std::vector<PlanPair<T>> pairs;
    for (const ClebschGordanPair& form : clebsch_gordan_pairs(in1, in2, paths, dense)) {
      const IrrepsBlock &b1 = in1[form.in1], &b2 = in2[form.in2];
      PlanPair<T> pair{};
      pair.mul1 = b1.mul, pair.mul2 = b2.mul, pair.same_channel = form.same_channel;
      pair.x_offset = b1.offset, pair.x_channel = b1.channel;
      pair.y_offset = b2.offset, pair.y_channel = b2.channel;
      std::vector<int> x, y, rows;
      for (const auto& [i, j] : form.products) {
        if (x.empty() || x.back() != i * b1.component) rows.push_back(int(x.size()));
        x.push_back(i * b1.component);
        y.push_back(j * b2.component);
      }
      pair.rows = int(rows.size()), pair.products = int(x.size());
      rows.push_back(pair.products);
      const long channels = form.same_channel ? b1.mul : long(b1.mul) * b2.mul;
      pair.direct = channels == 1;
      std::vector<PlanSegment> segments;
      std::vector<int> in_row;
      for (const ClebschGordanPath& path : form.paths) {
        segments.push_back({pair.compact_outputs, 2 * path.l3 + 1, {path.offset, path.component}, path.u_step, path.v_step});
        pair.compact_outputs += 2 * path.l3 + 1;
        for (int k = 0; k <= 2 * path.l3; ++k) in_row.push_back(path.offset + k * path.component);
      }
      BlockMap forward = make_block_map(pair.compact_outputs, form.entries);
      BlockMap backward = make_block_map(pair.products, transposed(form.entries));
      if (pair.direct) {
        for (MapBlock& b : forward.blocks)
          for (int& o : b.outputs) o = in_row[o];
        for (MapBlock& b : backward.blocks)
          for (int& s : b.sources) s = in_row[s];
      }
      forward_flops += channels * (pair.products + 2 * forward.multiply_adds);
      backward_flops += channels * (4 * pair.products + 2 * backward.multiply_adds);
      pair.forward = store_.map(forward), pair.backward = store_.map(backward);
      pair.x_component = store_.ints(x), pair.y_component = store_.ints(y), pair.row_begin = store_.ints(rows);
      pair.segment_count = int(segments.size());
      pair.segments = store_.items(std::move(segments));
      plan_.max_products = std::max(plan_.max_products, pair.products);
      plan_.max_compact = std::max(plan_.max_compact, pair.compact_outputs);
      pairs.push_back(pair);
    }
    plan_.dim1 = dim1, plan_.dim2 = dim2, plan_.dim_out = dim_out;
    plan_.pair_count = int(pairs.size());
    plan_.pairs = store_.items(std::move(pairs));
  }

  void forward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::forward, k.clebsch_gordan_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.clebsch_gordan_forward(plan_, a, begin, end, scratch);
    });
  }
  void backward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::backward, k.clebsch_gordan_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.clebsch_gordan_backward(plan_, a, begin, end, scratch);
    });
  }

 private:
  ClebschGordanPlan<T> plan_{};
  PlanStore<T> store_;
};

// What the Gaunt and the matrix product share: the components of a channel, in the order of the blocks.
template <class T, class Component>
std::vector<Component> slot_components(PlanSlot& plan, const ChannelSlot& slot, PlanStore<T>& store) {
  std::vector<Component> components;
  std::vector<Strided> places;
  plan.direct = true;
  for (size_t b = 0; b < slot.blocks.size(); ++b) {
    const IrrepsBlock& block = slot.blocks[b];
    for (int m = 0; m <= 2 * block.l; ++m) {
      plan.direct &= block.mul == 1 && block.at(0, m) == int(places.size());
      components.push_back({block.l, m - block.l, slot.parts[b]});
      places.push_back({block.at(0, m), block.channel});
    }
  }
  plan.dim = slot.dim;
  plan.components = int(components.size());
  plan.channel = store.items(std::move(places));
  return components;
}

template <class T>
class Gaunt final : public Operation {
 public:
  Gaunt(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, const Grid& grid) {
    is_double = sizeof(T) == 8;
    plan_.mul = mul, plan_.rings = grid.rings, plan_.angles = grid.angles, plan_.pointwise = grid.pointwise;
    plan_.product_count = int(products.size());
    plan_.products = store_.items(products);
    long synthesis[3], analysis[3], to_angles[3], from_angles[3];
    for (int s = 0; s < 3; ++s) {
      GauntSlot<T>& slot = plan_.slots[s];
      const auto components = slot_components<T, GridComponent>(slot, slots[s], store_);
      const GauntSlotForm form = gaunt_slot_form(components, grid.rings, grid.angles);
      slot.degree = form.degree, slot.parts = form.parts;
      const BlockMap in = make_block_map(form.rings_size, form.synthesis, Missing::untouched);
      const BlockMap out = make_block_map(slot.components, form.analysis);
      const BlockMap to = make_block_map(grid.angles, form.to_angles);
      const BlockMap from = make_block_map(2 * form.degree + 1, form.from_angles);
      slot.synthesis = store_.map(in), slot.analysis = store_.map(out);
      slot.to_angles = store_.map(to), slot.from_angles = store_.map(from);
      synthesis[s] = 2 * in.multiply_adds, analysis[s] = 2 * out.multiply_adds;
      to_angles[s] = 2 * to.multiply_adds, from_angles[s] = 2 * from.multiply_adds;
    }
    dim1 = plan_.slots[0].dim, dim2 = plan_.slots[1].dim, dim_out = plan_.slots[2].dim;

    const long mirrored = grid.rings / 2, n = long(products.size());
    const auto& slot = plan_.slots;
    const bool plain = !grid.pointwise && n == 1 && slot[0].parts == 1 && slot[1].parts == 1 && slot[2].parts == 1;
    const auto orders = [&](int s) { return 2 * slot[s].degree + 1; };
    const auto folds = [&](int s) { return mirrored * 2 * slot[s].parts * orders(s); };
    // Unrolled products unfold their inputs each by itself; the others share the unfolded ones.
    const int d = slot[0].degree;
    const bool unrolled = plain && d >= 1 && d <= gaunt_unrolled_degree && slot[1].degree == d && slot[2].degree == 2 * d;
    const long angle_fold = 2 * ((grid.angles - 1) / 2);
    const auto input = [&](int s) {
      const long angular = grid.pointwise ? long(grid.rings) * slot[s].parts * (to_angles[s] + angle_fold) : 0;
      return synthesis[s] + folds(s) + angular;
    };
    const auto contraction = [&](int a, int b, int out) {
      const long added = n - slot[out].parts;  // the first product of a part is not added to anything
      const long ring = grid.pointwise
                            ? n * grid.angles + added * grid.angles + slot[out].parts * (angle_fold + from_angles[out])
                            : n * series_product_operations(slot[a].degree, slot[b].degree, slot[out].degree) + added * orders(out);
      return grid.rings * ring + folds(out) + analysis[out];
    };
    forward_flops = mul * (input(0) + input(1) + contraction(0, 1, 2));
    backward_flops = mul * (input(0) + input(1) + input(2) + contraction(1, 2, 0) + contraction(0, 2, 1) +
                           (unrolled ? folds(2) : 0));
  }

  void forward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::forward, k.gaunt_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.gaunt_forward(plan_, a, begin, end, scratch);
    });
  }
  void backward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::backward, k.gaunt_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.gaunt_backward(plan_, a, begin, end, scratch);
    });
  }

 private:
  GauntPlan<T> plan_{};
  PlanStore<T> store_;
};

template <class T>
class Matrix final : public Operation {
 public:
  Matrix(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, int k) {
    is_double = sizeof(T) == 8;
    const int size = 2 * k + 1;
    plan_.mul = mul, plan_.size = size;
    plan_.product_count = int(products.size());
    plan_.products = store_.items(products);
    std::vector<MatrixComponent> components[3];
    for (int s = 0; s < 3; ++s) components[s] = slot_components<T, MatrixComponent>(plan_.slots[s], slots[s], store_);
    const bool in_float = sizeof(T) == 4 && k <= largest_direct_k;
    const long direct_flops = in_float && k > largest_float_k ? compute_top_directly(components, products, k) : 0;
    long to[3], from[3];
    for (int s = 0; s < 3; ++s) {
      MatrixSlot<T>& slot = plan_.slots[s];
      slot.parts = 1;
      for (int part : slots[s].parts) slot.parts = std::max(slot.parts, part + 1);
      const std::vector<MapEntry> entries = matrix_entries(components[s], k);
      std::vector<MapEntry> reverse = transposed(entries);
      if (s == 2) std::erase_if(reverse, [&](const MapEntry& e) { return direct_outputs_.count(e.output) > 0; });
      const BlockMap to_matrix = make_block_map(slot.parts * size * size, entries);
      const BlockMap from_matrix = make_block_map(slot.components, reverse);
      slot.to_matrix = store_.map(to_matrix), slot.from_matrix = store_.map(from_matrix);
      const long folds = slot.parts * fold_additions(k);
      to[s] = 2 * to_matrix.multiply_adds + folds, from[s] = 2 * from_matrix.multiply_adds + folds;
    }
    dim1 = plan_.slots[0].dim, dim2 = plan_.slots[1].dim, dim_out = plan_.slots[2].dim;
    const long multiply = 2 * long(products.size()) * size * size * size;
    forward_flops = mul * (to[0] + to[1] + multiply + from[2] + direct_flops);
    backward_flops = mul * (to[0] + to[1] + to[2] + 2 * multiply + from[0] + from[1]);
    if (sizeof(T) == 4 && k > largest_direct_k) in_double_ = std::make_unique<Matrix<double>>(mul, slots, products, k);
  }

  void forward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    if (in_double_) return run_in_double(call, kernels, Pass::forward);
    run<T>(*this, call, k, Pass::forward, k.matrix_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.matrix_forward(plan_, a, begin, end, scratch);
    });
  }
  void backward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    if (in_double_) return run_in_double(call, kernels, Pass::backward);
    run<T>(*this, call, k, Pass::backward, k.matrix_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.matrix_backward(plan_, a, begin, end, scratch);
    });
  }

 private:
  // The highest outputs are small differences of large matrix entries: read off a float32 matrix, l3 = 2k is wrong by 2e-6 of its block's
  // largest value at k = 4, 7e-6 at k = 5, 1e-5 at k = 6, 2e-5 at k = 8 (l3 = 15: 3e-6), 1e-4 at k = 10. So from k = 6 on l3 = l1 + l2 is
  // computed by its only path, and from k = 9 on float32 operands are multiplied in double, a few tiles at a time.
  static constexpr int largest_float_k = 5, largest_direct_k = 8;

  // Returns the operations that it takes.
  long compute_top_directly(const std::vector<MatrixComponent> (&components)[3], const std::vector<PlanProduct>& products, int k) {
    const auto mirror = [](std::vector<double> scale) {
      for (int i = 0, l = int(scale.size()) / 2; i <= 2 * l; ++i)
        if ((i - l) % 2) scale[i] = -scale[i];
      return scale;
    };
    std::vector<PlanTop<T>> tops;
    long flops = 0;
    for (const PlanProduct& p : products) {
      const std::optional<MatrixTop> top = matrix_top(components[0], components[1], components[2], p.part1, p.part2, p.part_out, k);
      if (!top) continue;
      const int l1 = top->l1, l2 = top->l2, l3 = l1 + l2;
      const bool first = direct_outputs_.insert(top->out_first).second;
      for (int m = 1; m <= 2 * l3; ++m) direct_outputs_.insert(top->out_first + m);
      tops.push_back({l1, l2, top->x_first, top->y_first, top->out_first, first, store_.values(top->scale1),
                      store_.values(mirror(top->scale1)), store_.values(top->scale2), store_.values(mirror(top->scale2)),
                      store_.values(top->scale_out)});
      flops += series_product_operations(l1, l2, l3) + 2 * (2 * l1 + 1) + 2 * (2 * l2 + 1) + (first ? 1 : 2) * (2 * l3 + 1);
    }
    plan_.top_count = int(tops.size());
    plan_.tops = store_.items(std::move(tops));
    return flops;
  }
  std::set<int> direct_outputs_;  // components of a channel of the output
  static constexpr long converted_items = 64;

  void run_in_double(const Call& call, const Kernels& kernels, Pass pass) const {
    const TypedKernels<double>& k = kernels.f64;
    const MatrixPlan<double>& plan = in_double_->plan_;
    const long dims[3] = {dim1, dim2, dim_out};
    const long rows = converted_items * (dim1 + dim2 + dim_out), kernel_bytes = k.matrix_scratch(plan);
    run<T>(*this, call, typed<T>(kernels), pass, kernel_bytes + 2 * rows * long(sizeof(double)),
           [&](const Operands<T>& a, long begin, long end, void* scratch) {
             double* memory = reinterpret_cast<double*>(static_cast<char*>(scratch) + kernel_bytes);
             const T* in[3] = {a.x, a.y, pass == Pass::backward ? a.z : nullptr};
             T* out[3] = {a.x_out, a.y_out, a.z_out};
             const long strides[3] = {a.x_stride, a.y_stride, a.z_stride};
             const bool summed[3] = {a.sum_x, a.sum_y, false};
             for (long first = begin; first < end; first += converted_items) {
               const long items = std::min(converted_items, end - first);
               double *ins[3], *outs[3], *at = memory;
               for (int s = 0; s < 3; at += converted_items * dims[s], ++s) {
                 ins[s] = at;
                 for (long i = 0; in[s] && i < (strides[s] ? items : 1) * dims[s]; ++i) at[i] = double(in[s][first * strides[s] + i]);
               }
               for (int s = 0; s < 3; at += converted_items * dims[s], ++s) outs[s] = out[s] ? at : nullptr;
               const Operands<double> part{ins[0],  ins[1],  ins[2],  strides[0], strides[1], strides[2],
                                           outs[0], outs[1], outs[2], a.sum_x,    a.sum_y,    false};
               (pass == Pass::forward ? k.matrix_forward : k.matrix_backward)(plan, part, 0, items, scratch);
               for (int s = 0; s < 3; ++s) {
                 if (!out[s]) continue;
                 if (summed[s])
                   for (long i = 0; i < dims[s]; ++i) out[s][i] = T(outs[s][i]) + (first == begin ? T(0) : out[s][i]);
                 else
                   for (long i = 0; i < items * dims[s]; ++i) out[s][first * dims[s] + i] = T(outs[s][i]);
               }
             }
           });
  }

  MatrixPlan<T> plan_{};
  PlanStore<T> store_;
  std::unique_ptr<Matrix<double>> in_double_;
  template <class>
  friend class Matrix;
};

template <class T>
class SphericalHarmonics final : public Operation {
 public:
  SphericalHarmonics(const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize) {
    is_double = sizeof(T) == 8;
    const int lmax = int(scale.size()) - 1, orders = lmax + 1;
    std::vector<int> begin, copies;
    for (int l = 0; l <= lmax; ++l) {
      begin.push_back(int(copies.size()));
      int at = 0;
      for (int d : degrees) {
        if (d == l) copies.push_back(at);
        at += 2 * d + 1;
      }
      dim_out = at;
    }
    begin.push_back(int(copies.size()));
    // core/legendre.hpp's recurrence, next = a (y value - b r^2 previous), with a and -a b stored.
    std::vector<double> recurrence(2 * orders * orders + orders);
    for (int m = 0; m <= lmax; ++m) {
      for (int l = m + 1; l <= lmax; ++l) {
        const double a = square_root((4.0 * l * l - 1) / (double(l) * l - double(m) * m));
        const double b = square_root(((l - 1.0) * (l - 1.0) - double(m) * m) / (4.0 * (l - 1.0) * (l - 1.0) - 1));
        recurrence[2 * (m * orders + l)] = a;
        recurrence[2 * (m * orders + l) + 1] = -a * b;
      }
      double diagonal = m > 0 ? square_root(2.0) : 1;
      for (int k = 1; k <= m; ++k) diagonal *= square_root((2 * k + 1.0) / (2 * k));
      recurrence[2 * orders * orders + m] = diagonal;
    }
    dim1 = 3;
    plan_ = {lmax, dim_out, normalize, store_.ints(begin), store_.ints(copies), store_.values(recurrence), store_.values(scale)};
  }

  void forward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::forward, k.harmonics_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.harmonics_forward(plan_, a, begin, end, scratch);
    });
  }
  void backward(const Call&, const Kernels&) const override {
    throw std::logic_error("spherical harmonics have no backward kernel");
  }

 private:
  HarmonicsPlan<T> plan_{};
  PlanStore<T> store_;
};

template <template <class> class Kind, class... Arguments>
std::unique_ptr<Operation> make(bool is_double, const Arguments&... arguments) {
  if (is_double) return std::make_unique<Kind<double>>(arguments...);
  return std::make_unique<Kind<float>>(arguments...);
}

}  // namespace

std::unique_ptr<Operation> make_clebsch_gordan(bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2,
                                               const std::vector<ClebschGordanPath>& paths, bool dense) {
  return make<ClebschGordan>(is_double, dims, in1, in2, paths, dense);
}
std::unique_ptr<Operation> make_gaunt(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid) {
  return make<Gaunt>(is_double, mul, slots, products, grid);
}
std::unique_ptr<Operation> make_matrix(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k) {
  return make<Matrix>(is_double, mul, slots, products, k);
}
std::unique_ptr<Operation> make_spherical_harmonics(bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize) {
  return make<SphericalHarmonics>(is_double, degrees, scale, normalize);
}

}  // namespace equitensor
