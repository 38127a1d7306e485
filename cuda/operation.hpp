// An operation ready to run on one CUDA device: its plan lies in that device's memory. Host code only.
#pragma once
#include "core/build_plan.hpp"
#include "cuda/runtime.hpp"
#include <memory>
#include <vector>

namespace equitensor::cuda {

// Device pointers of one call, of the operation's dtype. A shared operand is one row for all items.
struct Call {
  const void *x, *y, *z;
  void *x_out, *y_out, *z_out;  // a gradient that nobody asked for is null
  long long batch;
  bool x_shared, y_shared;
};

// Both passes only enqueue on `stream`; they throw cuda::Error. The calling thread's device is the operation's. Several threads may call
// one operation at once.
class Operation {
 public:
  Operation(int device, bool is_double, const int (&dims)[3])
      : is_double(is_double), device(device), dim1(dims[0]), dim2(dims[1]), dim_out(dims[2]) {}
  virtual ~Operation() = default;
  virtual void forward(const Call&, cudaStream_t stream) const = 0;
  virtual void backward(const Call&, cudaStream_t stream) const = 0;

  bool is_double = false;
  int device = 0, dim1 = 0, dim2 = 0, dim_out = 0;
};

// As those of cpu/operation.hpp, on one device.
std::unique_ptr<Operation> make_clebsch_gordan(int device, bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2, const std::vector<ClebschGordanPath>& paths,
                                               bool dense, bool square);
std::unique_ptr<Operation> make_gaunt(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid);
std::unique_ptr<Operation> make_matrix(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k);
std::unique_ptr<Operation> make_matrix_block(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths);
// The vectors are x; y is not read.
std::unique_ptr<Operation> make_spherical_harmonics(int device, bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize);

}  // namespace equitensor::cuda
