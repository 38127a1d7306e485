// Matrix tensor product over a direct sum of irreps, by its paths, as on the CPU: products of components, a chunk at a time, and a map that adds them
// up in the outputs; backwards the transposed map, then the gradients through the products. All of it in shared memory.
#include "core/matrix_block_plan.hpp"
#include "cuda/channel_product.cuh"
#include "cuda/products.cuh"

namespace equitensor::cuda {
namespace {

// First components in a tile.
struct MatrixBlockLayout {
  int channel_in[operand_count], channel_out[slot_count], products;
  int components;
  int teams, least_teams = 1, work;
  MatrixBlockLayout() = default;
  template <class T>
  MatrixBlockLayout(const MatrixBlockPlan<T>& plan, const Terms& terms) {
    Components tile;
    for (int o = 0; o < operand_count; ++o) channel_in[o] = tile.take(terms.reads[o] ? plan.slots[slot_of(o)].components : 0);
    for (int s = 0; s < slot_count; ++s) channel_out[s] = tile.take(terms.writes[s] ? plan.slots[s].components : 0);
    products = tile.take(plan.max_products);
    components = int(tile.count), teams = tile.teams();
    // Both gradients share one transform of the products.
    work = transforms_of(terms) + 2 * (terms.writes[2] + (terms.writes[0] || terms.writes[1]));
  }
};

template <class T>
__device__ __forceinline__ void multiply_signals(const MatrixBlockPlan<T>& plan, const Step<MatrixBlockLayout>& step, const Strip<Items<T>>& tile, const Team& team) {
  const MatrixBlockLayout& layout = step.layout;
  const auto products = tile.from(layout.products);
  // The term of dx and of dy has the other input, or its direction.
  int x = -1, y = -1;
  for (int t = 0; t < step.terms.count; ++t) {
    if (step.terms.term[t].out == 0) y = step.terms.term[t].a;
    if (step.terms.term[t].out == 1) x = step.terms.term[t].a;
  }
#pragma unroll 1
  for (int s = 0; s < slot_count; ++s)
    for (int c = team.index; step.terms.writes[s] && c < plan.slots[s].components; c += team.count) tile[layout.channel_out[s] + c] = Items<T>{};
  __syncthreads();
  for (int i = 0; i < plan.chunk_count; ++i) {
    const PlanProducts<T> chunk = plan.chunks[i];
    if (step.terms.writes[2]) {
#pragma unroll 1
      for (int t = 0; t < step.terms.count; ++t) {
        const Term term = step.terms.term[t];
        if (term.out != 2) continue;
        multiply_components(chunk, tile.from(layout.channel_in[term.a]), tile.from(layout.channel_in[term.b]), products, !term.first, team);
      }
      __syncthreads();
      apply<true>(chunk.forward, products, tile.from(layout.channel_out[2]), team);
      __syncthreads();
    }
    if (x < 0 && y < 0) continue;
    apply(chunk.backward, tile.from(layout.channel_in[z_operand]), products, team);
    __syncthreads();
    add_gradients(chunk, y >= 0, x >= 0, products, tile.from(layout.channel_in[maximum(0, x)]), tile.from(layout.channel_in[maximum(0, y)]), tile.from(layout.channel_out[0]),
                  tile.from(layout.channel_out[1]), team);
    __syncthreads();
  }
}

template <class T>
__global__ __launch_bounds__(threads, 1) void matrix_block(const __grid_constant__ MatrixBlockPlan<T> plan, const __grid_constant__ Steps<T, MatrixBlockLayout> steps, int items, long long signals) {
  for_each_step(plan, steps, items, signals);
}

template <class T>
class MatrixBlock final : public ChannelProduct<T, T, MatrixBlockPlan<T>, MatrixBlockLayout> {
 public:
  MatrixBlock(int device, int rank, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths)
      : ChannelProduct<T, T, MatrixBlockPlan<T>, MatrixBlockLayout>(device, rank, slots, matrix_block<T>, [&](auto& store) {
          PassFlops flops;
          return matrix_block_plan<T>(store, mul, slots, paths, flops);
        }) {}
};

}  // namespace

std::unique_ptr<Operation> make_matrix_block(int device, bool is_double, int rank, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths) {
  return make<MatrixBlock>(is_double, device, rank, mul, slots, paths);
}

}  // namespace equitensor::cuda
