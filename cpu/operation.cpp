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

// Of a convolution in the order of the receivers: rows of x's gradient, one an edge, wait in the cache for being added to the senders' rows.
constexpr long scattered_bytes = 256 << 10;

// Some tasks at a time, compute(task, scratch, rows of its edges), and then their rows are added in the order of the edges, each thread a part of every row:
// so the sums do not depend on the number of threads either.
template <class T, class Compute>
void scatter(const Call& call, const std::vector<long>& nodes, T* to, long dim, long scratch_bytes, const Compute& compute, decltype(TypedKernels<T>::add_rows) add_rows) {
  const Sweep& sweep = *call.sweep;
  const long tasks = long(nodes.size()) - 1, at_once = call.threads > 1 ? 4 * call.threads : 1;
  const auto first_edge = [&](long task) { return long(sweep.begin[nodes[size_t(std::min(task, tasks))]]); };
  long most = 0;
  for (long task = 0; task < tasks; task += at_once) most = std::max(most, first_edge(task + at_once) - first_edge(task));
  const std::unique_ptr<T[]> rows(new T[size_t(most * dim)]);
  constexpr long line = 64 / long(sizeof(T));
  const long part = std::max<long>(4, (dim / line + call.threads) / call.threads) * line;
  for (long task = 0; task < tasks; task += at_once) {
    const long first = first_edge(task), count = first_edge(task + at_once) - first;
    parallel_for(call.threads, std::min(at_once, tasks - task), scratch_bytes, [&](long t, void* memory) {
      compute(task + t, memory, rows.get() + (first_edge(task + t) - first) * dim);
    });
    parallel_for(call.threads, (dim + part - 1) / part, 0, [&](long p, void*) {
      add_rows(to, sweep.other + first, rows.get(), count, dim, p * part, std::min(dim, (p + 1) * part));
    });
  }
}

template <class T>
void run(const Operation& operation, const Call& call, const Terms& terms, long streamed_items, long scratch_bytes,
         const std::function<void(const Operands<T>&, long begin, long end, void* scratch)>& kernel, decltype(TypedKernels<T>::add_rows) add_rows = nullptr) {
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
    const long rows = call.sweep && s != 1 ? (s == call.sweep->slot ? call.sweep->nodes : 0) : long(call.batch);
    written += all.terms.writes[s] && !call.shared[s] ? rows * operation.dim[s] : 0;
  }
  all.weight = static_cast<const T*>(call.weight), all.weight_direction = static_cast<const T*>(call.weight_direction);
  all.weight_out = static_cast<T*>(call.weight_out);
  all.weight_stride = call.weight_shared ? 0 : operation.weights;
  all.weight_sum = call.weight_shared && all.weight_out;
  written += all.weight_out && !call.weight_shared ? long(call.batch) * operation.weights : 0;
  all.stream = !call.accumulate && written * long(sizeof(T)) >= stream_from_bytes;

  // Enough tasks for an even load; whole passes when streaming, whole tiles of any variant otherwise; of a convolution ranges of nodes.
  const long batch = long(call.batch), unit = all.stream ? streamed_items : 16;
  const long affordable = all.weight_sum ? std::max<long>(1, largest_sums_bytes / (operation.weights * long(sizeof(T)) + 1)) : many_tasks;
  const bool scatters = call.sweep && call.sweep->slot == 2 && all.out[0];
  const long few = all.sum[0] || all.sum[1] || all.weight_sum || call.cancel ? std::min(many_tasks, affordable) : 4 * call.threads;
  const long dim = operation.dim[0], gathered = batch / std::max<long>(16, scattered_bytes / (dim * long(sizeof(T)))) + 1;
  const long wanted = !scatters ? few : all.weight_sum ? std::min(gathered, affordable) : gathered;
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
  const auto compute = [&](long task, void* scratch, T* gradients) {
    if (call.cancel && *call.cancel) return;
    Operands<T> mine = all;
    if (scatters) mine.out[0] = gradients;
    for (int s = 0; s < slot_count; ++s)
      if (all.sum[s]) mine.out[s] = sums[s].rows.data() + task * operation.dim[s];
    if (all.weight_sum) mine.weight_out = sums[slot_count].rows.data() + task * operation.weights;
    if (call.sweep)
      kernel(mine, nodes[size_t(task)], nodes[size_t(task + 1)], scratch);
    else
      kernel(mine, task * rows, std::min(batch, (task + 1) * rows), scratch);
  };
  if (scatters)
    scatter(call, nodes, all.out[0], dim, scratch_bytes, compute, add_rows);
  else
    parallel_for(call.threads, tasks, scratch_bytes, [&](long task, void* scratch) { compute(task, scratch, nullptr); });
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
    for (int b = 0; b < this->plan_.block_count[0]; ++b) x_by_component_ &= this->plan_.blocks[0][b].by_component;
  }

  // The rows of z are then read once a node, and those of x once an edge; x's gradient is read and written an edge besides.
  bool differentiates_by_receiver(const Call& call) const override {
    const bool doubles = call.in[x_direction] || call.in[y_direction] || call.weight_direction;
    return doubles || this->dim[2] >= (call.out[0] ? 3 : 1) * this->dim[0];
  }

  void contract(const Call& call, const Kernels& kernels) const override {
    if (call.sweep && call.sweep->slot == 2)
      contract_by_receiver(call, kernels);
    else
      Planned<T, WeightedPlan<T>>::contract(call, kernels);
  }

 private:
  // What is read for many edges is brought to lie by component once, and the gradient of x that is added to for each of them is brought back.
  void contract_by_receiver(const Call& given, const Kernels& kernels) const {
    const TypedKernels<T>& k = typed<T>(kernels);
    const WeightedPlan<T>& plan = this->plan_;
    const long senders = given.sweep->others, size = senders * this->dim[0], row_bytes = (this->dim[0] * long(sizeof(T)) / 64 + 1) * 64;
    const auto turn = [&](const T* in, T* out, bool to_components, bool adds) {
      const long each = std::max<long>(16, senders / (4 * given.threads) + 1);
      parallel_for(given.threads, (senders + each - 1) / each, adds ? row_bytes : 0, [&](long task, void* memory) {
        k.turn_rows(plan, in, out, to_components, adds ? static_cast<T*>(memory) : nullptr, task * each, std::min(senders, (task + 1) * each));
      });
    };
    Call call = given;
    std::unique_ptr<T[]> turned[operand_count], gradient;
    for (int o : {x_operand, x_direction}) {
      if (x_by_component_ || !given.in[o]) continue;
      turned[o].reset(new T[size_t(size)]);
      turn(static_cast<const T*>(given.in[o]), turned[o].get(), true, false);
      call.in[o] = turned[o].get();
    }
    if (given.out[0] && !x_by_component_) {
      gradient.reset(new T[size_t(size)]());
      call.out[0] = gradient.get();
    } else if (given.out[0] && !given.accumulate) {
      std::fill_n(static_cast<T*>(given.out[0]), size, T(0));
    }
    run<T>(*this, call, operands_of(call), 16, k.weighted.scratch(plan), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      Operands<T> mine = a;
      mine.x_by_component = true;
      k.weighted.contract(plan, mine, begin, end, scratch);
    }, k.add_rows);
    if (gradient) turn(gradient.get(), static_cast<T*>(given.out[0]), false, given.accumulate);
  }

  bool x_by_component_ = true;

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
std::unique_ptr<Operation> make_spherical_harmonics(bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize) {
  return make<SphericalHarmonics>(is_double, degrees, scale, normalize);
}

}  // namespace equitensor
