// An operation ready to run on one CUDA device: its plan lies in that device's memory. Host code only.
#pragma once
#include "core/call.hpp"
#include "core/forms.hpp"
#include "core/irreps.hpp"
#include "cuda/runtime.hpp"
#include <memory>
#include <vector>

namespace equitensor::cuda {

// contract() only enqueues on `stream`, for a call of device pointers; it throws cuda::Error. The calling thread's device is the operation's. Several
// threads may call one operation at once.
class Operation {
 public:
  Operation(int device, bool is_double, int dim1, int dim2, int dim_out)
      : is_double(is_double), device(device), dim{dim1, dim2, dim_out} {}
  virtual ~Operation() = default;
  virtual void contract(const Call&, cudaStream_t stream) const = 0;

  bool is_double = false;
  int device = 0, dim[slot_count], weights = 0;
};

// As those of cpu/operation.hpp, on one device.
std::unique_ptr<Operation> make_clebsch_gordan(int device, bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2, const std::vector<ClebschGordanPath>& paths,
                                               bool dense, bool square);
std::unique_ptr<Operation> make_weighted(int device, const WeightedForm& form);
std::unique_ptr<Operation> make_gaunt(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid);
std::unique_ptr<Operation> make_fourier(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                        const std::vector<PlanProduct>& products, bool fft);
std::unique_ptr<Operation> make_matrix(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k);
std::unique_ptr<Operation> make_matrix_block(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths);
// slots: of the factors, and the result. power: of the one factor; otherwise 0. Calls have factors in place of x and y.
std::unique_ptr<Operation> make_gaunt_product(int device, bool is_double, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid);
// Calls have `tasks`, and no y; all sets of weights, one a species, are one row.
std::unique_ptr<Operation> make_symmetric_contraction(int device, const SymmetricForm& form);
// The vectors are x; y is not read.
std::unique_ptr<Operation> make_spherical_harmonics(int device, bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize);

}  // namespace equitensor::cuda
