#include "cpu/operation.hpp"
#include "cpu/pool.hpp"

namespace equitensor {
namespace {

// Streaming pays once the outputs would not stay in the cache for whoever reads them next.
constexpr long stream_from_bytes = 512 << 10;

// Owns what a plan points to.
class PlanStore {
 public:
  static constexpr int row_bytes = 1;
  static constexpr bool on_device = false;
  const int* ints(std::vector<int> v) { return items(std::move(v)); }
  template <class T>
  const T* values(const std::vector<double>& v) { return items(std::vector<T>(v.begin(), v.end())); }
  template <class Item>
  const Item* items(std::vector<Item> v) {
    auto kept = std::make_shared<std::vector<Item>>(std::move(v));
    kept_.push_back(kept);
    return kept->data();
  }

 private:
  std::vector<std::shared_ptr<void>> kept_;
};

template <class T>
const TypedKernels<T>& typed(const Kernels& k) {
  if constexpr (sizeof(T) == 4)
    return k.f32;
  else
    return k.f64;
}

// When outputs are summed over the batch: they are written a row a task and added up in order, so that the result depends neither on the
// number of threads nor on their timing. When a call can be cancelled: it stops between tasks.
constexpr long many_tasks = 64;
// A row of weights can be long: then fewer tasks, whatever the number of threads.
constexpr long largest_sums_bytes = 64 << 20;

// Where tasks begin, and the last one ends: nodes of as many edges each, so far as that goes. A node counts as an edge more, for its row.
std::vector<long> node_tasks(const Sweep& sweep, long wanted) {
  const auto work = [&](long node) { return node + sweep.begin[node]; };
  const long all = work(sweep.nodes), each = std::max<long>(16, (all + wanted - 1) / wanted);
  std::vector<long> begins{0};
  for (long node = 1; node < sweep.nodes; ++node)
    if (work(node) - work(begins.back()) >= each) begins.push_back(node);
  if (sweep.nodes > 0) begins.push_back(sweep.nodes);
  return begins;
}

template <class T>
void run(const Operation& operation, const Call& call, const Terms& terms, long streamed_items, long scratch_bytes,
         const std::function<void(const Operands<T>&, long begin, long end, void* scratch)>& kernel) {
  Operands<T> all{};
  all.terms = terms;
  all.accumulate = call.accumulate;
  all.sweep = call.sweep;
  for (int o = 0; o < operand_count; ++o) all.in[o] = static_cast<const T*>(call.in[o]);
  long written = 0;
  for (int s = 0; s < slot_count; ++s) {
    all.stride[s] = call.shared[s] ? 0 : operation.dim[s];
    all.out[s] = static_cast<T*>(call.out[s]);
    all.sum[s] = call.shared[s] && all.terms.writes[s];
    const long rows = call.sweep && s == call.sweep->slot ? call.sweep->nodes : long(call.batch);
    written += all.terms.writes[s] && !call.shared[s] ? rows * operation.dim[s] : 0;
  }
  all.weight = static_cast<const T*>(call.weight), all.weight_direction = static_cast<const T*>(call.weight_direction);
  all.weight_out = static_cast<T*>(call.weight_out);
  for (int f = 0; f < max_factors; ++f) {
    all.factor[f] = static_cast<const T*>(call.factor[f]), all.factor_direction[f] = static_cast<const T*>(call.factor_direction[f]);
    all.factor_out[f] = static_cast<T*>(call.factor_out[f]);
  }
  all.weight_stride = call.weight_shared ? 0 : operation.weights;
  all.weight_sum = call.weight_shared && all.weight_out;
  written += all.weight_out && !call.weight_shared ? long(call.batch) * operation.weights : 0;
  all.stream = !call.accumulate && written * long(sizeof(T)) >= stream_from_bytes;

  // Enough tasks for an even load; whole passes when streaming, whole tiles of any variant otherwise; of a convolution ranges of nodes.
  const long batch = long(call.batch), unit = all.stream ? streamed_items : 16;
  const long affordable = all.weight_sum ? std::max<long>(1, largest_sums_bytes / (operation.weights * long(sizeof(T)) + 1)) : many_tasks;
  const long wanted = all.sum[0] || all.sum[1] || all.weight_sum || call.cancel ? std::min(many_tasks, affordable) : 4 * call.threads;
  const long rows = std::max<long>(unit, (batch + wanted * unit - 1) / (wanted * unit) * unit);
  const std::vector<long> nodes = call.sweep ? node_tasks(*call.sweep, wanted) : std::vector<long>();
  const long tasks = call.sweep ? long(nodes.size()) - 1 : (batch + rows - 1) / rows;
  struct Sum {
    bool wanted;
    long dim;
    T* to;
    std::vector<T> rows;
  };
  Sum sums[slot_count + 1];
  for (int s = 0; s < slot_count; ++s) sums[s] = {all.sum[s], operation.dim[s], all.out[s], {}};
  sums[slot_count] = {all.weight_sum, operation.weights, all.weight_out, {}};
  for (Sum& sum : sums) sum.rows.resize(sum.wanted ? size_t(tasks * sum.dim) : 0);
  parallel_for(call.threads, tasks, scratch_bytes, [&](long task, void* scratch) {
    if (call.cancel && *call.cancel) return;
    Operands<T> mine = all;
    for (int s = 0; s < slot_count; ++s)
      if (all.sum[s]) mine.out[s] = sums[s].rows.data() + task * operation.dim[s];
    if (all.weight_sum) mine.weight_out = sums[slot_count].rows.data() + task * operation.weights;
    if (call.sweep)
      kernel(mine, nodes[size_t(task)], nodes[size_t(task + 1)], scratch);
    else
      kernel(mine, task * rows, std::min(batch, (task + 1) * rows), scratch);
  });
  for (const Sum& sum : sums)
    for (long c = 0; sum.wanted && c < sum.dim; ++c) {
      double total = call.accumulate ? double(sum.to[c]) : 0;
      for (long task = 0; task < tasks; ++task) total += double(sum.rows[size_t(task * sum.dim + c)]);
      sum.to[c] = T(total);
    }
}

// A plan and the kernel for it.
template <class T, class Plan>
class Planned : public Operation {
 public:
  explicit Planned(Kernel<Plan, T> TypedKernels<T>::*kernel) : kernel_(kernel) {}

  void contract(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& typed_kernels = typed<T>(kernels);
    const Kernel<Plan, T>& kernel = typed_kernels.*kernel_;
    run<T>(*this, call, terms(call), streamed_items(typed_kernels), kernel.scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      kernel.contract(plan_, a, begin, end, scratch);
    });
  }

 protected:
  virtual Terms terms(const Call& call) const { return terms_of(call); }
  // A multiple of what one streaming pass covers.
  virtual long streamed_items(const TypedKernels<T>& kernels) const { return kernels.rows_per_task; }
  void set_dims(int dim1, int dim2, int dim_out) { dim[0] = dim1, dim[1] = dim2, dim[2] = dim_out; }

  PlanStore store_;
  Plan plan_{};

 private:
  Kernel<Plan, T> TypedKernels<T>::*kernel_;
};

template <class T>
class ClebschGordan final : public Planned<T, ClebschGordanPlan<T>> {
 public:
  ClebschGordan(const int (&dims)[3], const std::vector<IrrepsBlock>& in1, const std::vector<IrrepsBlock>& in2,
                const std::vector<ClebschGordanPath>& paths, bool dense, bool square)
      : Planned<T, ClebschGordanPlan<T>>(&TypedKernels<T>::clebsch_gordan) {
    this->plan_ = clebsch_gordan_plan<T>(this->store_, dims, in1, in2, paths, dense, square, true, this->flops);
    this->set_dims(dims[0], dims[1], dims[2]);
  }

 protected:
  Terms terms(const Call& call) const override { return terms_of(call, this->plan_.square); }
};

template <class T>
class Weighted final : public Planned<T, WeightedPlan<T>> {
 public:
  explicit Weighted(const WeightedForm& form) : Planned<T, WeightedPlan<T>>(&TypedKernels<T>::weighted) {
    this->plan_ = weighted_plan<T>(this->store_, form, this->flops);
    this->set_dims(form.dims[0], form.dims[1], form.dims[2]);
    this->weights = form.weights;
  }

 protected:
  Terms terms(const Call& call) const override { return operands_of(call); }
  // Items are written one behind the other.
  long streamed_items(const TypedKernels<T>&) const override { return 16; }
};

template <class T>
class Fourier final : public Planned<T, FourierPlan<T>> {
 public:
  Fourier(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, bool fft)
      : Planned<T, FourierPlan<T>>(&TypedKernels<T>::fourier) {
    this->plan_ = fourier_plan<T>(this->store_, mul, slots, products, fft, this->flops);
    this->set_dims(slots[0].dim, slots[1].dim, slots[2].dim);
  }
};

template <class T>
class Gaunt final : public Planned<T, GauntPlan<T>> {
 public:
  Gaunt(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, const Grid& grid)
      : Planned<T, GauntPlan<T>>(&TypedKernels<T>::gaunt) {
    this->plan_ = gaunt_plan<T>(this->store_, mul, slots, products, grid, this->flops);
    this->set_dims(slots[0].dim, slots[1].dim, slots[2].dim);
  }
};

template <class T>
class GauntProduct final : public Planned<T, GauntProductPlan<T>> {
 public:
  GauntProduct(int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid)
      : Planned<T, GauntProductPlan<T>>(&TypedKernels<T>::gaunt_product) {
    this->plan_ = gaunt_product_plan<T>(this->store_, mul, slots, power, grid, this->flops);
    // Of a call only z is in a slot; what streams is judged by it.
    this->set_dims(0, 0, slots.back().dim);
  }

 protected:
  Terms terms(const Call& call) const override { return operands_of(call); }
};

template <class T>
class Matrix final : public Planned<T, MatrixPlan<T>> {
 public:
  Matrix(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, int k)
      : Planned<T, MatrixPlan<T>>(&TypedKernels<T>::matrix) {
    this->plan_ = matrix_plan<T>(this->store_, mul, slots, products, k, this->flops);
    this->set_dims(slots[0].dim, slots[1].dim, slots[2].dim);
    if (sizeof(T) == 4 && k > matrix_largest_float_k) in_double_ = std::make_unique<Matrix<double>>(mul, slots, products, k);
  }

  void contract(const Call& call, const Kernels& kernels) const override {
    if (in_double_)
      contract_in_double(call, kernels);
    else
      Planned<T, MatrixPlan<T>>::contract(call, kernels);
  }

 private:
  static constexpr long converted_items = 64;

  void contract_in_double(const Call& call, const Kernels& kernels) const {
    const Kernel<MatrixPlan<double>, double>& kernel = kernels.f64.matrix;
    const MatrixPlan<double>& plan = in_double_->plan_;
    const auto& dim = this->dim;
    const long rows = converted_items * (3 * (dim[0] + dim[1]) + 2 * dim[2]), kernel_bytes = kernel.scratch(plan);
    run<T>(*this, call, terms_of(call), typed<T>(kernels).rows_per_task, kernel_bytes + rows * long(sizeof(double)),
           [&](const Operands<T>& a, long begin, long end, void* scratch) {
             double* memory = reinterpret_cast<double*>(static_cast<char*>(scratch) + kernel_bytes);
             for (long first = begin; first < end; first += converted_items) {
               const long items = std::min(converted_items, end - first);
               Operands<double> part{};
               part.terms = a.terms;
               double* at = memory;
               for (int o = 0; o < operand_count; at += converted_items * dim[slot_of(o)], ++o) {
                 const long stride = a.stride[slot_of(o)];
                 if (!a.terms.reads[o]) continue;
                 for (long i = 0; i < (stride ? items : 1) * dim[slot_of(o)]; ++i) at[i] = double(a.in[o][first * stride + i]);
                 part.in[o] = at;
               }
               for (int s = 0; s < slot_count; at += converted_items * dim[s], ++s)
                 part.out[s] = at, part.stride[s] = a.stride[s], part.sum[s] = a.sum[s];
               kernel.contract(plan, part, 0, items, scratch);
               for (int s = 0; s < slot_count; ++s) {
                 if (!a.terms.writes[s]) continue;
                 const bool add = a.sum[s] ? first != begin : a.accumulate;
                 T* to = a.out[s] + (a.sum[s] ? 0 : first * dim[s]);
                 for (long i = 0; i < (a.sum[s] ? 1 : items) * dim[s]; ++i) to[i] = T(part.out[s][i]) + (add ? to[i] : T(0));
               }
             }
           });
  }

  std::unique_ptr<Matrix<double>> in_double_;
  template <class>
  friend class Matrix;
};

template <class T>
class MatrixBlock final : public Planned<T, MatrixBlockPlan<T>> {
 public:
  MatrixBlock(int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths)
      : Planned<T, MatrixBlockPlan<T>>(&TypedKernels<T>::matrix_block) {
    this->plan_ = matrix_block_plan<T>(this->store_, mul, slots, paths, this->flops);
    this->set_dims(slots[0].dim, slots[1].dim, slots[2].dim);
  }
};

// Nodes are taken species by species, so that a task has one set of weights. The sets are brought to the basis of the plan at the call's
// beginning, and the gradient, summed over the tasks of a species in their order, back to the paths at its end.
template <class T>
class SymmetricContraction final : public Operation {
 public:
  SymmetricContraction(const SymmetricForm& form, SymmetricBasis basis) : species_(form.species), paths_(int(form.paths.size())) {
    plan_ = symmetric_plan<T>(store_, form, basis, flops);
    rows_ = int(basis.rows.size()), expansions_ = std::move(basis.expansions);
    dim[0] = form.dims[0], dim[2] = form.dims[1];
    weights = species_ * paths_ * form.mul;
  }

  void contract(const Call& call, const Kernels& kernels) const override {
    const Kernel<SymmetricPlan<T>, T>& kernel = typed<T>(kernels).symmetric_contraction;
    const long nodes = long(call.batch), mul = plan_.mul, set = paths_ * mul, rows = rows_ * mul;
    std::vector<long> begin(size_t(species_) + 1);
    const auto species_of = [&](long node) { return call.species ? call.species[node] : 0; };
    for (long n = 0; n < nodes; ++n) ++begin[size_t(species_of(n)) + 1];
    for (int s = 0; s < species_; ++s) begin[size_t(s) + 1] += begin[size_t(s)];
    std::vector<int> order(static_cast<size_t>(nodes));
    std::vector<long> next(begin.begin(), begin.end() - 1);
    for (long n = 0; n < nodes; ++n) order[size_t(next[size_t(species_of(n))]++)] = int(n);

    struct Task {
      int set;
      long begin, end;
    };
    std::vector<Task> tasks;
    std::vector<int> present;  // species that have nodes
    const long most = std::max<long>(8, (nodes + many_tasks - 1) / many_tasks);
    for (int s = 0; s < species_; ++s) {
      for (long at = begin[size_t(s)]; at < begin[size_t(s) + 1]; at += most) tasks.push_back({int(present.size()), at, std::min(begin[size_t(s) + 1], at + most)});
      if (begin[size_t(s)] < begin[size_t(s) + 1]) present.push_back(s);
    }

    std::vector<T> sets(call.weight ? present.size() * size_t(rows) : 0), directions(call.weight_direction ? present.size() * size_t(rows) : 0);
    parallel_for(call.threads, long(present.size()), 0, [&](long p, void*) {
      for (auto [from, to] : {std::pair(call.weight, &sets), std::pair(call.weight_direction, &directions)}) {
        if (!from) continue;
        const T* weight = static_cast<const T*>(from) + present[size_t(p)] * set;
        for (const SymmetricExpansion& e : expansions_)
          for (long u = 0; u < mul; ++u) (*to)[size_t(p * rows + e.row * mul + u)] += T(e.value) * weight[e.path * mul + u];
      }
    });

    Operands<T> all{};
    all.terms = operands_of(call);
    all.accumulate = call.accumulate;
    all.order = order.data();
    for (int o = 0; o < operand_count; ++o) all.in[o] = static_cast<const T*>(call.in[o]);
    for (int s = 0; s < slot_count; ++s) all.out[s] = static_cast<T*>(call.out[s]);
    std::vector<T> gradients(call.weight_out ? tasks.size() * size_t(rows) : 0);
    parallel_for(call.threads, long(tasks.size()), kernel.scratch(plan_), [&](long t, void* scratch) {
      if (call.cancel && *call.cancel) return;
      const Task& task = tasks[size_t(t)];
      Operands<T> mine = all;
      mine.weight = sets.data() + task.set * rows;
      if (call.weight_direction) mine.weight_direction = directions.data() + task.set * rows;
      if (call.weight_out) mine.weight_out = gradients.data() + t * rows;
      kernel.contract(plan_, mine, task.begin, task.end, scratch);
    });
    if (!call.weight_out) return;

    T* out = static_cast<T*>(call.weight_out);
    if (!call.accumulate) std::fill(out, out + species_ * set, T(0));
    parallel_for(call.threads, long(present.size()), 0, [&](long p, void*) {
      std::vector<double> sums(static_cast<size_t>(rows)), of_paths(static_cast<size_t>(set));
      for (size_t t = 0; t < tasks.size(); ++t)
        for (long i = 0; tasks[t].set == p && i < rows; ++i) sums[size_t(i)] += double(gradients[t * size_t(rows) + size_t(i)]);
      for (const SymmetricExpansion& e : expansions_)
        for (long u = 0; u < mul; ++u) of_paths[size_t(e.path * mul + u)] += e.value * sums[size_t(e.row * mul + u)];
      for (long i = 0; i < set; ++i) out[present[size_t(p)] * set + i] += T(of_paths[size_t(i)]);
    });
  }

 private:
  PlanStore store_;
  SymmetricPlan<T> plan_{};
  int species_, paths_, rows_ = 0;
  std::vector<SymmetricExpansion> expansions_;
};

template <class T>
class SphericalHarmonics final : public Planned<T, HarmonicsPlan<T>> {
 public:
  SphericalHarmonics(const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize)
      : Planned<T, HarmonicsPlan<T>>(&TypedKernels<T>::harmonics) {
    this->plan_ = harmonics_plan<T>(this->store_, degrees, scale, normalize, this->flops);
    this->set_dims(3, 0, this->plan_.dim);
  }

 protected:
  Terms terms(const Call& call) const override { return operands_of(call); }
};

template <template <class> class Kind, class... Arguments>
std::unique_ptr<Operation> make(bool is_double, const Arguments&... arguments) {
  if (is_double) return std::make_unique<Kind<double>>(arguments...);
  return std::make_unique<Kind<float>>(arguments...);
}

}  // namespace

std::unique_ptr<Operation> make_clebsch_gordan(bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2,
                                               const std::vector<ClebschGordanPath>& paths, bool dense, bool square) {
  return make<ClebschGordan>(is_double, dims, in1, in2, paths, dense, square);
}
std::unique_ptr<Operation> make_weighted(const WeightedForm& form) { return make<Weighted>(form.is_double, form); }
std::unique_ptr<Operation> make_gaunt(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid) {
  return make<Gaunt>(is_double, mul, slots, products, grid);
}
std::unique_ptr<Operation> make_gaunt_product(bool is_double, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid) {
  return make<GauntProduct>(is_double, mul, slots, power, grid);
}
std::unique_ptr<Operation> make_fourier(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                        const std::vector<PlanProduct>& products, bool fft) {
  return make<Fourier>(is_double, mul, slots, products, fft);
}
std::unique_ptr<Operation> make_matrix(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k) {
  return make<Matrix>(is_double, mul, slots, products, k);
}
std::unique_ptr<Operation> make_matrix_block(bool is_double, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths) {
  return make<MatrixBlock>(is_double, mul, slots, paths);
}
std::unique_ptr<Operation> make_symmetric_contraction(const SymmetricForm& form, std::vector<int>& ranks) {
  const SymmetricBasis basis(form);
  ranks.assign(form.out.size(), 0);
  for (const SymmetricPath& row : basis.rows) ++ranks[size_t(row.out)];
  return make<SymmetricContraction>(form.is_double, form, basis);
}
std::unique_ptr<Operation> make_spherical_harmonics(bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize) {
  return make<SphericalHarmonics>(is_double, degrees, scale, normalize);
}

}  // namespace equitensor
