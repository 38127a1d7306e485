// An operation ready to run on one CUDA device: its plan lies in that device's memory. Host code only.
#pragma once
#include "core/clebsch_gordan.hpp"
#include "core/gaunt.hpp"
#include "core/matrix.hpp"
#include "cuda/runtime.hpp"
#include <memory>

namespace equitensor::cuda {

// Device pointers of one call, of the operation's dtype. A shared operand is one row for all items.
struct Call {
  const void *x, *y, *z;
  void *x_out, *y_out, *z_out;
  long long batch;
  bool x_shared, y_shared;
};

// Both passes only enqueue on `stream`; they throw cuda::Error.
class Operation {
 public:
  virtual ~Operation() = default;
  virtual void forward(const Call&, cudaStream_t stream) const = 0;
  virtual void backward(const Call&, cudaStream_t stream) const = 0;

  bool is_double = false;
  int device = 0, dim1 = 0, dim2 = 0, dim_out = 0;
};

}  // namespace equitensor::cuda
