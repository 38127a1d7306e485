// Matrix tensor product over a direct sum of irreps, by its paths, as on the CPU: products of components, a chunk at a time, and a map that adds them
// up in the outputs; backwards the transposed map, then the gradients through the products. All of it in shared memory.
#include "core/matrix_block_plan.hpp"
#include "cuda/host.hpp"
#include "cuda/products.cuh"

namespace equitensor::cuda {
namespace {

// First components in a tile.
struct MatrixBlockLayout {
  int in[operand_count], out[slot_count], products;
  long components;
  int teams, least_teams = 1;
  template <class T>
  MatrixBlockLayout(const MatrixBlockPlan<T>& plan, const Terms& terms) {
    Components tile;
    for (int o = 0; o < operand_count; ++o) in[o] = tile.take(terms.reads[o] ? plan.slots[slot_of(o)].components : 0);
    for (int s = 0; s < slot_count; ++s) out[s] = tile.take(terms.writes[s] ? plan.slots[s].components : 0);
    products = tile.take(plan.max_products);
    components = tile.count, teams = tile.teams();
  }
};

template <class T>
__global__ __launch_bounds__(threads, 1) void matrix_block(const __grid_constant__ MatrixBlockPlan<T> plan, const __grid_constant__ Contraction<T> a,
                                                        const __grid_constant__ MatrixBlockLayout layout, int items, long long signals) {
  using V = Items<T>;
  const int packs = unsigned(items) / V::count;
  const Team team = team_of(packs);
  const long long first = (long long)blockIdx.x * unsigned(items);
  const int live = int(signals - first < items ? signals - first : items);
  const Strip<V> tile = own_strip<V>(packs), products = tile.from(layout.products);
  const Strip<T> numbers = first_strip<T>(tile);
  // The term of dx and of dy has the other input, or its direction.
  int x = -1, y = -1;
  for (int t = 0; t < a.terms.count; ++t) {
    if (a.terms.term[t].out == 0) y = a.terms.term[t].a;
    if (a.terms.term[t].out == 1) x = a.terms.term[t].a;
  }
  load_operands(a, layout.in, first, live, numbers);
#pragma unroll 1
  for (int s = 0; s < slot_count; ++s)
    for (int c = team.index; a.terms.writes[s] && c < plan.slots[s].components; c += team.count) tile[layout.out[s] + c] = V{};
  __syncthreads();
  for (int i = 0; i < plan.chunk_count; ++i) {
    const PlanProducts<T> chunk = plan.chunks[i];
    if (a.terms.writes[2]) {
#pragma unroll 1
      for (int t = 0; t < a.terms.count; ++t) {
        const Term term = a.terms.term[t];
        if (term.out != 2) continue;
        multiply_components(chunk, tile.from(layout.in[term.a]), tile.from(layout.in[term.b]), products, !term.first, team);
      }
      __syncthreads();
      apply<true>(chunk.forward, products, tile.from(layout.out[2]), team);
      __syncthreads();
    }
    if (x < 0 && y < 0) continue;
    apply(chunk.backward, tile.from(layout.in[z_operand]), products, team);
    __syncthreads();
    add_gradients(chunk, y >= 0, x >= 0, products, tile.from(layout.in[maximum(0, x)]), tile.from(layout.in[maximum(0, y)]), tile.from(layout.out[0]),
                  tile.from(layout.out[1]), team);
    __syncthreads();
  }
  store_results(a, layout.out, first, live, numbers);
}

template <class T>
class MatrixBlock final : public ChannelProduct<T, T, MatrixBlockPlan<T>, MatrixBlockLayout> {
 public:
  MatrixBlock(int device, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths)
      : ChannelProduct<T, T, MatrixBlockPlan<T>, MatrixBlockLayout>(device, slots, matrix_block<T>, [&](auto& store) {
          PassFlops flops;
          return matrix_block_plan<T>(store, mul, slots, paths, flops);
        }) {}
};

}  // namespace

std::unique_ptr<Operation> make_matrix_block(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths) {
  return make<MatrixBlock>(is_double, device, mul, slots, paths);
}

}  // namespace equitensor::cuda
