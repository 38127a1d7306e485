// An operation ready to run on the CPU: its plan, and the division of a batch into tasks.
#pragma once
#include "core/build_plan.hpp"
#include "core/forms.hpp"
#include "cpu/plan.hpp"
#include <memory>

namespace equitensor {

class Operation {
 public:
  virtual ~Operation() = default;
  virtual void contract(const Call&, const Kernels&) const = 0;
  // Of a convolution: whether a sweep of the receivers computes the gradients of x, y and the weights as well, and faster than one of the senders.
  virtual bool differentiates_by_receiver(const Call&) const { return false; }

  int dim[slot_count] = {}, weights = 0;
  PassFlops flops;
};

// dims: components of an item of both inputs and of the output.
std::unique_ptr<Operation> make_clebsch_gordan(bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2,
                                               const std::vector<ClebschGordanPath>& paths, bool dense, bool square);
std::unique_ptr<Operation> make_weighted(const WeightedForm& form);
// rank, of products channel by channel: of their factors for each irrep and channel, the weights; 0: there are none.
std::unique_ptr<Operation> make_gaunt(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                      const std::vector<PlanProduct>& products, const Grid& grid);
// slots: of the factors, and the result. power: of the one factor; otherwise 0. Calls have factors in place of x and y.
std::unique_ptr<Operation> make_gaunt_product(bool is_double, int mul, const std::vector<ChannelSlot>& slots, int power, const Grid& grid);
std::unique_ptr<Operation> make_fourier(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                        const std::vector<PlanProduct>& products, bool fft);
std::unique_ptr<Operation> make_matrix(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                       const std::vector<PlanProduct>& products, int k);
std::unique_ptr<Operation> make_matrix_block(bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths);
// Calls have no y; all sets of weights, one a species, are one row. ranks: of each output block, how many of its paths are independent.
std::unique_ptr<Operation> make_symmetric_contraction(const SymmetricForm& form, std::vector<int>& ranks);
// Vectors (batch, 3) as x; degrees[i] fills the next 2 degrees[i] + 1 components. scale: factor of each degree 0 .. lmax on
// harmonics whose mean square over the sphere is 1.
std::unique_ptr<Operation> make_spherical_harmonics(bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize);

}  // namespace equitensor
