// An operation ready to run on the CPU: its plan, and the division of a batch into tasks.
#pragma once
#include "core/build_plan.hpp"
#include "cpu/plan.hpp"
#include <memory>

namespace equitensor {

// Arrays of one call, of the operation's dtype. Strides are in elements; 0 shares one row between all items.
struct Call {
  const void *x, *y, *z;
  long x_stride, y_stride, z_stride;
  void *x_out, *y_out, *z_out;
  long batch;
  int threads;
};

class Operation {
 public:
  virtual ~Operation() = default;
  virtual void forward(const Call&, const Kernels&) const = 0;
  virtual void backward(const Call&, const Kernels&) const = 0;

  bool is_double = false;
  int dim1 = 0, dim2 = 0, dim_out = 0;
  PassFlops flops;
};

// dims: components of an item of both inputs and of the output.
std::unique_ptr<Operation> make_clebsch_gordan(bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2,
                                               const std::vector<ClebschGordanPath>& paths, bool dense, bool square);
std::unique_ptr<Operation> make_gaunt(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid);
std::unique_ptr<Operation> make_matrix(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k);
std::unique_ptr<Operation> make_matrix_block(bool is_double, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths);
// Vectors (batch, 3) as x; degrees[i] fills the next 2 degrees[i] + 1 components. scale: factor of each degree 0 .. lmax on
// harmonics whose mean square over the sphere is 1.
std::unique_ptr<Operation> make_spherical_harmonics(bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize);

}  // namespace equitensor
