// Matrix tensor product over a direct sum of irreps, by its paths, as on the CPU: products of components, a chunk at a time, and a map that adds them
// up in the outputs; backwards the transposed map, then the gradients through the products. All of it in shared memory.
#include "cuda/host.hpp"
#include "cuda/products.cuh"

namespace equitensor::cuda {
namespace {

template <class T>
struct MatrixBlockTiles {
  T *channel[3], *gradient[2], *products;
  int bytes;
  __host__ __device__ MatrixBlockTiles(const MatrixBlockPlan<T>& plan, T* memory, int pitch, bool backward) {
    T* at = memory;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      channel[s] = at;
      at += plan.slots[s].components * pitch;
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      gradient[s] = at;
      at += backward ? plan.slots[s].components * pitch : 0;
    }
    products = at;
    at += plan.max_products * pitch;
    bytes = int((at - memory) * sizeof(T));
  }
};

template <class T>
__device__ __forceinline__ void clear(T* tile, int components, const Team& team) {
  for (int c = team.index; c < components; c += team.count) tile[c * team.pitch + team.item] = 0;
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void matrix_block_forward(MatrixBlockPlan<T> plan, ChannelRows rows, int items, long long signals,
                                                                const T* x, const T* y, T* z) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), pitch = team.pitch;
  const MatrixBlockTiles<T> tile(plan, dynamic_shared<T>(), pitch, false);
  load_tile(rows.slot[0], x, first, live, tile.channel[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel[1], pitch);
  clear(tile.channel[2], plan.slots[2].components, team);
  __syncthreads();
  for (int i = 0; i < plan.chunk_count; ++i) {
    const PlanProducts<T> chunk = plan.chunks[i];
    multiply_components(chunk, tile.channel[0] + team.item, tile.channel[1] + team.item, tile.products + team.item, team);
    __syncthreads();
    apply<true>(chunk.forward, tile.products + team.item, tile.channel[2] + team.item, team);
    __syncthreads();
  }
  store_tile(rows.slot[2], z, first, live, tile.channel[2], pitch);
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void matrix_block_backward(MatrixBlockPlan<T> plan, ChannelRows rows, ChannelRows gradient_rows,
                                                                 int items, long long signals, const T* x, const T* y, const T* dz, T* dx, T* dy) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(signals - first < items ? signals - first : items), pitch = team.pitch;
  const MatrixBlockTiles<T> tile(plan, dynamic_shared<T>(), pitch, true);
  load_tile(rows.slot[0], x, first, live, tile.channel[0], pitch);
  load_tile(rows.slot[1], y, first, live, tile.channel[1], pitch);
  load_tile(rows.slot[2], dz, first, live, tile.channel[2], pitch);
  clear(tile.gradient[0], plan.slots[0].components, team);
  clear(tile.gradient[1], plan.slots[1].components, team);
  __syncthreads();
  for (int i = 0; i < plan.chunk_count; ++i) {
    const PlanProducts<T> chunk = plan.chunks[i];
    apply(chunk.backward, tile.channel[2] + team.item, tile.products + team.item, team);
    __syncthreads();
    add_gradients(chunk, tile.products + team.item, tile.channel[0] + team.item, tile.channel[1] + team.item, tile.gradient[0] + team.item,
                  tile.gradient[1] + team.item, team);
    __syncthreads();
  }
  if (dx) store_tile(gradient_rows.slot[0], dx, first, live, tile.gradient[0], pitch);
  if (dy) store_tile(gradient_rows.slot[1], dy, first, live, tile.gradient[1], pitch);
}

template <class T>
class MatrixBlock final : public ChannelProduct<T, MatrixBlockPlan<T>> {
 public:
  MatrixBlock(int device, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths)
      : ChannelProduct<T, MatrixBlockPlan<T>>(
            device, slots, matrix_block_forward<T>, matrix_block_backward<T>,
            [&](auto& store) {
              PassFlops flops;
              return matrix_block_plan<T>(store, mul, slots, paths, flops);
            },
            [](const MatrixBlockPlan<T>& plan, int pitch, bool backward) {
              return size_t(MatrixBlockTiles<T>(plan, nullptr, pitch, backward).bytes);
            }) {}
};

}  // namespace

std::unique_ptr<Operation> make_matrix_block(int device, bool is_double, int mul, const ChannelSlot (&slots)[3],
                                             const std::vector<MatrixBlockPath>& paths) {
  return make<MatrixBlock>(is_double, device, mul, slots, paths);
}

}  // namespace equitensor::cuda
