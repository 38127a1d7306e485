#include "cpu/operation.hpp"
#include "core/clebsch_gordan_plan.hpp"
#include "core/fourier_plan.hpp"
#include "core/gaunt_plan.hpp"
#include "core/matrix_plan.hpp"
#include "core/matrix_block_plan.hpp"
#include "core/spherical_harmonics_plan.hpp"
#include "core/symmetric_contraction_plan.hpp"
#include "core/weighted_plan.hpp"
#include "cpu/pool.hpp"
#include <array>
#include <utility>

namespace equitensor {
namespace {

// Streaming pays once the outputs would not stay in the cache for whoever reads them next.
constexpr long stream_from_bytes = 512 << 10;

// Owns what a plan points to.
class PlanStore {
 public:
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

// With threads, some tasks at a time, compute(task, scratch, rows of its edges), and then their rows are added in the order of the edges, each thread a part of every row:
// so the sums do not depend on the number of threads either.
template <class T, class Compute>
void scatter(const Call& call, const std::vector<long>& nodes, T* to, long dim, long scratch_bytes, const Compute& compute, decltype(TypedKernels<T>::scatter_rows) scatter_rows) {
  const Sweep& sweep = *call.sweep;
  const long tasks = long(nodes.size()) - 1, at_once = 4 * call.threads;
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
      scatter_rows(to, sweep.other + first, rows.get(), count, dim, p * part, std::min(dim, (p + 1) * part));
    });
  }
}

template <class T>
void run(const Operation& operation, const Call& call, const Terms& terms, long streamed_items, long scratch_bytes,
         const std::function<void(const Operands<T>&, long begin, long end, void* scratch)>& kernel, decltype(TypedKernels<T>::scatter_rows) scatter_rows = nullptr) {
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
  const bool scatters = call.sweep && call.sweep->slot == 2 && all.out[0];
  const long few = all.sum[0] || all.sum[1] || all.weight_sum || call.cancel ? std::min(many_tasks, affordable) : 4 * call.threads;
  const long dim = operation.dim[0], gathered = scatters ? batch / std::max<long>(16, scattered_bytes / (dim * long(sizeof(T)))) + 1 : 0;
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
    if (gradients) mine.out[0] = gradients;
    for (int s = 0; s < slot_count; ++s)
      if (all.sum[s]) mine.out[s] = sums[s].rows.data() + task * operation.dim[s];
    if (all.weight_sum) mine.weight_out = sums[slot_count].rows.data() + task * operation.weights;
    if (call.sweep)
      kernel(mine, nodes[size_t(task)], nodes[size_t(task + 1)], scratch);
    else
      kernel(mine, task * rows, std::min(batch, (task + 1) * rows), scratch);
  };
  // One thread adds each row when it has it, in the same order.
  all.adds_by_sender = scatters && call.threads == 1;
  if (scatters && !all.adds_by_sender)
    scatter(call, nodes, all.out[0], dim, scratch_bytes, compute, scatter_rows);
  else
    parallel_for(call.threads, tasks, scratch_bytes, [&](long task, void* scratch) { compute(task, scratch, nullptr); });
  for (const Sum& sum : sums)
    for (long c = 0; sum.wanted && c < sum.dim; ++c) {
      double total = call.accumulate ? double(sum.to[c]) : 0;
      for (long task = 0; task < tasks; ++task) total += double(sum.rows[size_t(task * sum.dim + c)]);
      sum.to[c] = T(total);
    }
}

// An operation that goes through its items task by task.
template <class T>
class ItemOperation : public Operation {
 public:
  void contract(const Call& call, const Kernels& kernels) const override {
    run<T>(*this, call, terms(call), streamed_items(typed<T>(kernels)), scratch_bytes(kernels),
           [&](const Operands<T>& a, long begin, long end, void* scratch) { contract_items(kernels, a, begin, end, scratch); });
  }
  virtual long scratch_bytes(const Kernels&) const = 0;
  virtual void contract_items(const Kernels&, const Operands<T>&, long begin, long end, void* scratch) const = 0;

 protected:
  virtual Terms terms(const Call& call) const { return terms_of(call); }
  // A multiple of what one streaming pass covers.
  virtual long streamed_items(const TypedKernels<T>& kernels) const { return kernels.rows_per_task; }
};

// A plan and the kernel for it.
template <class T, class Plan>
class Planned : public ItemOperation<T> {
 public:
  explicit Planned(Kernel<Plan, T> TypedKernels<T>::*kernel) : kernel_(kernel) {}

  long scratch_bytes(const Kernels& kernels) const override { return (typed<T>(kernels).*kernel_).scratch(plan_); }
  void contract_items(const Kernels& kernels, const Operands<T>& a, long begin, long end, void* scratch) const override {
    (typed<T>(kernels).*kernel_).contract(plan_, a, begin, end, scratch);
  }

 protected:
  void set_dims(int dim1, int dim2, int dim_out) { this->dim[0] = dim1, this->dim[1] = dim2, this->dim[2] = dim_out; }

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
    else if (!call.sweep && call.weight_shared && this->plan_.mixes && call.batch >= least_tiled)
      contract_tiles(call, kernels);
    else
      Planned<T, WeightedPlan<T>>::contract(call, kernels);
  }

 private:
  // A tile of fewer takes as long as one of 16 items, and they by themselves take their share of it.
  static constexpr long least_tiled = 8;
  void contract_tiles(const Call& call, const Kernels& kernels) const {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, operands_of(call), k.rows_per_task, k.weighted_tiles.scratch(this->plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.weighted_tiles.contract(this->plan_, a, begin, end, scratch);
    });
  }

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
    }, k.scatter_rows);
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

  long scratch_bytes(const Kernels& kernels) const override {
    if (!in_double_) return Planned<T, MatrixPlan<T>>::scratch_bytes(kernels);
    const long rows = converted_items * (3 * (this->dim[0] + this->dim[1]) + 2 * this->dim[2]);
    return in_double_->scratch_bytes(kernels) + rows * long(sizeof(double));
  }
  void contract_items(const Kernels& kernels, const Operands<T>& a, long begin, long end, void* scratch) const override {
    if (!in_double_) return Planned<T, MatrixPlan<T>>::contract_items(kernels, a, begin, end, scratch);
    const auto& dim = this->dim;
    double* memory = reinterpret_cast<double*>(static_cast<char*>(scratch) + in_double_->scratch_bytes(kernels));
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
      for (int s = 0; s < slot_count; at += converted_items * dim[s], ++s) part.out[s] = at, part.stride[s] = a.stride[s], part.sum[s] = a.sum[s];
      in_double_->contract_items(kernels, part, 0, items, scratch);
      for (int s = 0; s < slot_count; ++s) {
        if (!a.terms.writes[s]) continue;
        const bool add = a.sum[s] ? first != begin : a.accumulate;
        T* to = a.out[s] + (a.sum[s] ? 0 : first * dim[s]);
        for (long i = 0; i < (a.sum[s] ? 1 : items) * dim[s]; ++i) to[i] = T(part.out[s][i]) + (add ? to[i] : T(0));
      }
    }
  }

 private:
  static constexpr long converted_items = 64;

  std::unique_ptr<Matrix<double>> in_double_;
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

// Sum over r of c_r T(a_r x, b_r y), with factors a, b and c for each irrep and channel: weights [r][a | b | c]. Items go through it in chunks that stay in the
// cache: scaled on the way in, the product's own kernel, scaled on the way out. With X = a x, Y = b y, Z = c z, and X' = a' x + a x' and so on along directions,
//   backward         dx = a T(., Y, Z),  da = sum over a channel's components of x T(., Y, Z),  and so on
//   double backward  A = T(., Y', Z) + T(., Y, Z'),  C = T(., Y, Z):  dx = a A + a' C,  da = sum of x A + x' C,
//                    dz = c (T(X', Y, .) + T(X, Y', .)) + c' T(X, Y, .)
template <class T>
class Factored final : public ItemOperation<T> {
 public:
  Factored(std::unique_ptr<ItemOperation<T>> product, int mul, const ChannelSlot (&slots)[3], int rank) : product_(std::move(product)), rank_(rank) {
    long total = 0;
    for (int s = 0; s < slot_count; ++s) {
      this->dim[s] = slots[s].dim, total += slots[s].dim;
      factor_of_[s].resize(size_t(slots[s].dim));
      for (const IrrepsBlock& block : slots[s].blocks) {
        for (int u = 0; u < mul; ++u)
          for (int m = 0; m <= 2 * block.l; ++m) factor_of_[s][size_t(block.at(u, m))] = factors_[s] + u;
        factors_[s] += mul;
      }
    }
    this->weights = rank * (factors_[0] + factors_[1] + factors_[2]);
    // A multiple of a tile of any variant. Of every slot there are up to eight rows an item.
    chunk_ = std::max<long>(16, std::min<long>(256, (256 << 10) / (8 * total * long(sizeof(T))) / 16 * 16));
    const PassFlops& each = product_->flops;
    const long d[3] = {slots[0].dim, slots[1].dim, slots[2].dim}, r = rank;
    this->flops.unrolled = r * each.unrolled;
    this->flops.forward = r * (d[0] + d[1] + each.forward) + (2 * r - 1) * d[2];
    this->flops.backward = r * (2 * total + each.backward + each.result) + (2 * r - 1) * (d[0] + d[1]);
    this->flops.double_backward = r * (total + 3 * (d[0] + d[1]) + d[2] + each.double_backward + 2 * each.backward + each.result + 4 * (d[0] + d[1]) + d[2]) +
                                  (4 * r - 1) * total;
  }

  long scratch_bytes(const Kernels& kernels) const override {
    const long rows = this->dim[0] + this->dim[1] + this->dim[2];
    return aligned(product_->scratch_bytes(kernels)) + long(sizeof(T)) * (row_kinds * chunk_ + rank_) * rows;
  }

  void contract_items(const Kernels& kernels, const Operands<T>& a, long begin, long end, void* scratch) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    T* at = reinterpret_cast<T*>(static_cast<char*>(scratch) + aligned(product_->scratch_bytes(kernels)));
    const auto take = [&](int s, long rows) { return std::exchange(at, at + rows * this->dim[s]); };
    T *factor[3], *factor_direction[3], *scaled[3], *direction[3], *first_result[3], *second_result[3], *gradient[3];
    for (int s = 0; s < slot_count; ++s) {
      for (T** rows : {&factor[s], &factor_direction[s], &scaled[s], &direction[s], &first_result[s], &second_result[s]}) *rows = take(s, chunk_);
      gradient[s] = take(s, a.weight_sum ? rank_ : chunk_);
      if (a.weight_sum) std::fill(gradient[s], gradient[s] + rank_ * this->dim[s], T(0));
    }
    const bool per_item = a.weight_stride > 0, directed = a.weight_direction, doubles = directed || a.in[x_direction] || a.in[y_direction];
    const bool wants_weights = a.weight_out, differentiates = a.terms.writes[0] || a.terms.writes[1] || wants_weights;
    constexpr Operand operand[3] = {x_operand, y_operand, z_operand}, along[2] = {x_direction, y_direction};

    for (long first = begin; first < end; first += chunk_) {
      const long items = std::min(chunk_, end - first);
      for (int r = 0; r < rank_; ++r) {
        const auto of_item = [&](T* rows, int s, long i) { return rows + (per_item ? i * this->dim[s] : 0); };
        const auto in = [&](int o, long i) { return a.in[o] + (first + i) * a.stride[slot_of(o)]; };
        const auto each = [&](int s, const auto& body) {
          for (long i = 0; i < items; ++i) body(i, i * long(this->dim[s]));
        };
        // rows (+)= f operand
        const auto scale = [&](int s, int o, T* f, T* rows, bool add) {
          each(s, [&](long i, long row) { k.multiply_rows(of_item(f, s, i), in(o, i), rows + row, this->dim[s], add); });
        };
        // results += f rows
        const auto give = [&](int s, T* f, const T* rows, bool first_term) {
          if (!a.terms.writes[s]) return;
          each(s, [&](long i, long row) {
            const bool add = !first_term || r > 0 || (a.sum[s] ? first != begin || i > 0 : a.accumulate);
            k.multiply_rows(of_item(f, s, i), rows + row, a.out[s] + (a.sum[s] ? 0 : (first + i) * this->dim[s]), this->dim[s], add);
          });
        };
        const auto give_factors = [&](int s, int o, const T* rows, bool first_term) {
          if (!wants_weights || !a.in[o]) return;
          each(s, [&](long i, long row) {
            k.multiply_rows(in(o, i), rows + row, gradient[s] + (a.weight_sum ? r : i) * long(this->dim[s]), this->dim[s], a.weight_sum || !first_term);
          });
        };

        for (int s = 0; s < slot_count; ++s)
          for (long i = 0; i < (per_item ? items : 1); ++i) {
            spread(k, a.weight + (first + i) * a.weight_stride, s, r, of_item(factor[s], s, i));
            if (directed) spread(k, a.weight_direction + (first + i) * a.weight_stride, s, r, of_item(factor_direction[s], s, i));
          }
        const bool needs[3] = {a.terms.writes[0] || wants_weights, a.terms.writes[1] || wants_weights, a.terms.writes[2] || wants_weights};
        for (int s = 0; s < (differentiates ? 3 : 2); ++s) scale(s, operand[s], factor[s], scaled[s], false);
        const T* z = differentiates ? scaled[2] : nullptr;
        const auto result = [&](T* const (&rows)[3], int s, bool wanted = true) { return wanted && needs[s] ? rows[s] : nullptr; };
        if (!doubles) {
          call(kernels, scratch, items, {scaled[0], scaled[1], z}, {}, {result(first_result, 0), result(first_result, 1), result(first_result, 2)});
          for (int s = 0; s < slot_count; ++s) give(s, factor[s], first_result[s], true);
          for (int s = 0; s < slot_count && wants_weights; ++s) give_factors(s, operand[s], first_result[s], true);
        } else {
          bool moves[2];
          for (int s = 0; s < 2; ++s) {
            moves[s] = directed || a.in[along[s]];
            if (directed) scale(s, operand[s], factor_direction[s], direction[s], false);
            if (a.in[along[s]]) scale(s, along[s], factor[s], direction[s], directed);
          }
          call(kernels, scratch, items, {scaled[0], scaled[1], z}, {moves[0] ? direction[0] : nullptr, moves[1] ? direction[1] : nullptr},
               {result(first_result, 0), result(first_result, 1), result(first_result, 2)});
          if (directed && differentiates) {
            scale(2, z_operand, factor_direction[2], direction[2], false);
            call(kernels, scratch, items, {scaled[0], scaled[1], direction[2]}, {}, {result(second_result, 0), result(second_result, 1), nullptr});
            for (int s = 0; s < 2; ++s)
              if (needs[s]) k.add_rows(second_result[s], first_result[s], items * this->dim[s]);
          }
          if (directed || wants_weights)
            call(kernels, scratch, items, {scaled[0], scaled[1], z}, {}, {result(second_result, 0), result(second_result, 1), result(second_result, 2, directed)});
          for (int s = 0; s < slot_count; ++s) {
            give(s, factor[s], first_result[s], true);
            if (directed) give(s, factor_direction[s], second_result[s], false);
          }
          for (int s = 0; s < slot_count && wants_weights; ++s) give_factors(s, operand[s], first_result[s], true);
          for (int s = 0; s < 2 && wants_weights; ++s) give_factors(s, along[s], second_result[s], false);
        }
        for (long i = 0; wants_weights && !a.weight_sum && i < items; ++i) gather(gradient, i, r, a.weight_out + (first + i) * a.weight_stride, a.accumulate);
      }
    }
    for (int r = 0; a.weight_sum && r < rank_; ++r) gather(gradient, r, r, a.weight_out, false);
  }

 protected:
  Terms terms(const Call& call) const override { return operands_of(call); }
  // Nothing is written past the cache.
  long streamed_items(const TypedKernels<T>&) const override { return 16; }

 private:
  static constexpr int row_kinds = 7;
  static long aligned(long bytes) { return (bytes + 63) / 64 * 64; }
  int first_factor(int s, int r) const { return r * (factors_[0] + factors_[1] + factors_[2]) + (s > 0 ? factors_[0] : 0) + (s > 1 ? factors_[1] : 0); }

  // An item's factors, one a component.
  void spread(const TypedKernels<T>& k, const T* weights, int s, int r, T* row) const {
    k.spread_row(weights + first_factor(s, r), factors_[s], factor_of_[s].data(), row, this->dim[s]);
  }
  // And back: the sum over the components.
  void gather(T* const (&rows)[3], long row, int r, T* weights, bool accumulate) const {
    for (int s = 0; s < slot_count; ++s) {
      T* to = weights + first_factor(s, r);
      if (!accumulate) std::fill(to, to + factors_[s], T(0));
      for (int c = 0; c < this->dim[s]; ++c) to[factor_of_[s][size_t(c)]] += rows[s][row * this->dim[s] + c];
    }
  }

  // One pass of the product over a chunk.
  void call(const Kernels& kernels, void* scratch, long items, std::array<const T*, 3> in, std::array<const T*, 2> along, std::array<T*, 3> out) const {
    Call call{};
    for (int s = 0; s < slot_count; ++s) call.in[s] = in[size_t(s)], call.out[s] = out[size_t(s)];
    call.in[x_direction] = along[0], call.in[y_direction] = along[1];
    Operands<T> part{};
    part.terms = terms_of(call);
    for (int o = 0; o < operand_count; ++o) part.in[o] = static_cast<const T*>(call.in[o]);
    for (int s = 0; s < slot_count; ++s) part.stride[s] = this->dim[s], part.out[s] = part.terms.writes[s] ? out[size_t(s)] : nullptr;
    if (part.terms.count > 0) product_->contract_items(kernels, part, 0, items, scratch);
    for (int s = 0; s < slot_count; ++s)  // that no term reaches
      if (out[size_t(s)] && !part.terms.writes[s]) std::fill(out[size_t(s)], out[size_t(s)] + items * this->dim[s], T(0));
  }

  std::unique_ptr<ItemOperation<T>> product_;
  std::vector<int> factor_of_[3];  // of a component of a row
  int factors_[3] = {}, rank_;
  long chunk_;
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

// rank: 0 without factors.
template <template <class> class Kind, class... Arguments>
std::unique_ptr<Operation> make_with_factors(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3], const Arguments&... arguments) {
  const auto of = [&]<class T>(T) -> std::unique_ptr<Operation> {
    auto product = std::make_unique<Kind<T>>(mul, slots, arguments...);
    if (rank == 0) return product;
    return std::make_unique<Factored<T>>(std::move(product), mul, slots, rank);
  };
  return is_double ? of(double()) : of(float());
}

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
std::unique_ptr<Operation> make_gaunt(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid) {
  return make_with_factors<Gaunt>(is_double, rank, mul, slots, products, grid);
}
std::unique_ptr<Operation> make_gaunt_product(bool is_double, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid) {
  return make<GauntProduct>(is_double, mul, slots, power, grid);
}
std::unique_ptr<Operation> make_fourier(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                        const std::vector<PlanProduct>& products, bool fft) {
  return make_with_factors<Fourier>(is_double, rank, mul, slots, products, fft);
}
std::unique_ptr<Operation> make_matrix(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k) {
  return make_with_factors<Matrix>(is_double, rank, mul, slots, products, k);
}
std::unique_ptr<Operation> make_matrix_block(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths) {
  return make_with_factors<MatrixBlock>(is_double, rank, mul, slots, paths);
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
