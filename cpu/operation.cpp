#include "cpu/operation.hpp"
#include "cpu/pool.hpp"
#include <stdexcept>

namespace equitensor {
namespace {

// Streaming pays once the outputs would not stay in the cache for whoever reads them next.
constexpr long stream_from_bytes = 512 << 10;

// Owns what a plan points to.
class PlanStore {
 public:
  static constexpr int row_bytes = 1;
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
                const std::vector<ClebschGordanPath>& paths, bool dense, bool square) {
    is_double = sizeof(T) == 8;
    dim1 = dims[0], dim2 = dims[1], dim_out = dims[2];
    plan_ = clebsch_gordan_plan<T>(store_, dims, in1, in2, paths, dense, square, true, flops);
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
  PlanStore store_;
};

template <class T>
class Gaunt final : public Operation {
 public:
  Gaunt(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, const Grid& grid) {
    is_double = sizeof(T) == 8;
    plan_ = gaunt_plan<T>(store_, mul, slots, products, grid, flops);
    dim1 = slots[0].dim, dim2 = slots[1].dim, dim_out = slots[2].dim;
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
  PlanStore store_;
};

template <class T>
class Matrix final : public Operation {
 public:
  Matrix(int mul, const ChannelSlot (&slots)[3], const std::vector<PlanProduct>& products, int k) {
    is_double = sizeof(T) == 8;
    plan_ = matrix_plan<T>(store_, mul, slots, products, k, flops);
    dim1 = slots[0].dim, dim2 = slots[1].dim, dim_out = slots[2].dim;
    if (sizeof(T) == 4 && k > matrix_largest_float_k) in_double_ = std::make_unique<Matrix<double>>(mul, slots, products, k);
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
  PlanStore store_;
  std::unique_ptr<Matrix<double>> in_double_;
  template <class>
  friend class Matrix;
};

template <class T>
class MatrixBlock final : public Operation {
 public:
  MatrixBlock(int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths) {
    is_double = sizeof(T) == 8;
    plan_ = matrix_block_plan<T>(store_, mul, slots, paths, flops);
    dim1 = slots[0].dim, dim2 = slots[1].dim, dim_out = slots[2].dim;
  }

  void forward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::forward, k.matrix_block_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.matrix_block_forward(plan_, a, begin, end, scratch);
    });
  }
  void backward(const Call& call, const Kernels& kernels) const override {
    const TypedKernels<T>& k = typed<T>(kernels);
    run<T>(*this, call, k, Pass::backward, k.matrix_block_scratch(plan_), [&](const Operands<T>& a, long begin, long end, void* scratch) {
      k.matrix_block_backward(plan_, a, begin, end, scratch);
    });
  }

 private:
  MatrixBlockPlan<T> plan_{};
  PlanStore store_;
};

template <class T>
class SphericalHarmonics final : public Operation {
 public:
  SphericalHarmonics(const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize) {
    is_double = sizeof(T) == 8;
    plan_ = harmonics_plan<T>(store_, degrees, scale, normalize);
    dim1 = 3, dim_out = plan_.dim;
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
  PlanStore store_;
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
std::unique_ptr<Operation> make_gaunt(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid) {
  return make<Gaunt>(is_double, mul, slots, products, grid);
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
