// Clebsch-Gordan tensor product, as on the CPU: for every pair of irreps the products of its components once, then one sparse map to all of
// its l3; backwards the transposed map once, then a matrix-vector product with either operand. A block owns the whole of its items, so that
// each operand is read once and a gradient is summed without atomics.
#include "cuda/host.hpp"
#include "cuda/products.cuh"

namespace equitensor::cuda {
namespace {

template <class T>
struct ClebschGordanTiles {
  T *x, *y, *dx, *dy, *products, *compact;
  __device__ ClebschGordanTiles(const ClebschGordanPlan<T>& plan, int pitch, bool backward) {
    T* at = dynamic_shared<T>();
    const auto take = [&](int components) {
      T* piece = at;
      at += components * pitch;
      return piece;
    };
    x = take(plan.dim1), y = plan.square ? x : take(plan.dim2);
    dx = take(backward ? plan.dim1 : 0), dy = take(backward ? plan.dim2 : 0);
    products = take(plan.max_products), compact = take(plan.max_compact);
  }
};
template <class T>
size_t tile_bytes(const ClebschGordanPlan<T>& plan, int items, bool backward) {
  const int rows = plan.dim1 + (plan.square ? 0 : plan.dim2) + (backward ? plan.dim1 + plan.dim2 : 0);
  return sizeof(T) * pitch_of(items) * size_t(rows + plan.max_products + plan.max_compact);
}

// visit(address, place in the compact tile) for the outputs of one channel; a warp goes along a row.
template <class T, class Visit>
__device__ __forceinline__ void for_each_output(const PlanPair<T>& pair, int dim, long long first, int live, int u, int v, int pitch,
                                                Visit&& visit) {
  for (int item = threadIdx.x / 32; item < live; item += blockDim.x / 32)
    for (int c = threadIdx.x % 32; c < pair.compact_outputs; c += 32) {
      const PlanPlace place = load_table(pair.places + c).value[0];
      const int component = place.first + u * place.u_step - u * (u - 1) / 2 * place.u_shrink + v * place.v_step;
      visit((first + item) * dim + component, c * pitch + item);
    }
}

// body(u, v) for the channels that the pair connects.
template <class T, class Body>
__device__ __forceinline__ void for_each_channel(const PlanPair<T>& pair, Body&& body) {
  for (int u = 0; u < pair.mul1; ++u) {
    const int begin = pair.connection == Connection::same ? u : pair.connection == Connection::upper ? u + 1 : 0;
    const int end = pair.connection == Connection::same ? u + 1 : pair.mul2;
    for (int v = begin; v < end; ++v) body(u, v);
  }
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void clebsch_gordan_forward(ClebschGordanPlan<T> plan, Rows x_rows, Rows y_rows, int items,
                                                                  long long batch, const T* x, const T* y, T* z) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(batch - first < items ? batch - first : items), pitch = team.pitch;
  const ClebschGordanTiles<T> tile(plan, pitch, false);
  load_tile(x_rows, x, first, live, tile.x, pitch);
  if (!plan.square) load_tile(y_rows, y, first, live, tile.y, pitch);
  __syncthreads();
  for (int i = 0; i < plan.pair_count; ++i) {
    const PlanPair<T> pair = plan.pairs[i];
    for_each_channel(pair, [&](int u, int v) {
      const T* xu = tile.x + (pair.x_offset + u * pair.x_channel) * pitch + team.item;
      const T* yv = tile.y + (pair.y_offset + v * pair.y_channel) * pitch + team.item;
      multiply_components(pair, xu, yv, tile.products + team.item, team);
      __syncthreads();
      apply(pair.forward, tile.products + team.item, tile.compact + team.item, team);
      __syncthreads();
      for_each_output(pair, plan.dim_out, first, live, u, v, pitch,
                      [&](long long at, int place) { store(z + at, Pack<T, 1>{tile.compact[place]}); });
    });
  }
}

template <class T>
__global__ __launch_bounds__(threads, blocks_per_multiprocessor<T>) void clebsch_gordan_backward(ClebschGordanPlan<T> plan, Rows x_rows, Rows y_rows, Rows dx_rows,
                                                                   Rows dy_rows, int items, long long batch, const T* x, const T* y,
                                                                   const T* dz, T* dx, T* dy) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(batch - first < items ? batch - first : items), pitch = team.pitch;
  const ClebschGordanTiles<T> tile(plan, pitch, true);
  load_tile(x_rows, x, first, live, tile.x, pitch);
  if (!plan.square) load_tile(y_rows, y, first, live, tile.y, pitch);
  for (int c = team.index; c < plan.dim1; c += team.count) tile.dx[c * pitch + team.item] = 0;
  for (int c = team.index; c < plan.dim2; c += team.count) tile.dy[c * pitch + team.item] = 0;
  for (int i = 0; i < plan.pair_count; ++i) {
    const PlanPair<T> pair = plan.pairs[i];
    for_each_channel(pair, [&](int u, int v) {
      for_each_output(pair, plan.dim_out, first, live, u, v, pitch,
                      [&](long long at, int place) { tile.compact[place] = load(dz + at).value[0]; });
      __syncthreads();
      apply(pair.backward, tile.compact + team.item, tile.products + team.item, team);
      __syncthreads();
      const int x_first = (pair.x_offset + u * pair.x_channel) * pitch + team.item;
      const int y_first = (pair.y_offset + v * pair.y_channel) * pitch + team.item;
      add_gradients(pair, tile.products + team.item, tile.x + x_first, tile.y + y_first, tile.dx + x_first, tile.dy + y_first, team);
    });
  }
  __syncthreads();
  if (plan.square) {
    for (int c = team.index; c < plan.dim1; c += team.count) tile.dx[c * pitch + team.item] += tile.dy[c * pitch + team.item];
    __syncthreads();
  }
  if (dx) store_tile(dx_rows, dx, first, live, tile.dx, pitch);
  if (dy) store_tile(dy_rows, dy, first, live, tile.dy, pitch);
}

template <class T>
class ClebschGordan final : public Operation {
 public:
  ClebschGordan(int device, const int (&dims)[3], const std::vector<IrrepsBlock>& in1, const std::vector<IrrepsBlock>& in2,
                const std::vector<ClebschGordanPath>& paths, bool dense, bool square)
      : Operation(device, sizeof(T) == 8, dims), arena_(device) {
    PassFlops flops;
    plan_ = arena_.build([&](auto& store) { return clebsch_gordan_plan<T>(store, dims, in1, in2, paths, dense, square, false, flops); });
    forward_ = configure(device, clebsch_gordan_forward<T>, [&](int items) { return tile_bytes(plan_, items, false); });
    backward_ = configure(device, clebsch_gordan_backward<T>, [&](int items) { return tile_bytes(plan_, items, true); });
  }

  void forward(const Call& call, cudaStream_t stream) const override {
    if (call.batch == 0) return;
    check(launch(clebsch_gordan_forward<T>, forward_.grid(call.batch), threads, forward_.shared_bytes, stream, plan_,
                 whole_rows(dim1, call.x_shared), whole_rows(dim2, call.y_shared), forward_.items, call.batch,
                 static_cast<const T*>(call.x), static_cast<const T*>(call.y), static_cast<T*>(call.z_out)),
          "cudaLaunchKernel");
  }
  void backward(const Call& call, cudaStream_t stream) const override {
    const Gradient<T> dx(call.x_out, call.x_shared, device, dim1, call.batch, stream);
    const Gradient<T> dy(call.y_out, call.y_shared, device, dim2, call.batch, stream);
    if (call.batch > 0)
      check(launch(clebsch_gordan_backward<T>, backward_.grid(call.batch), threads, backward_.shared_bytes, stream, plan_,
                   whole_rows(dim1, call.x_shared), whole_rows(dim2, call.y_shared), whole_rows(dim1, false), whole_rows(dim2, false),
                   backward_.items, call.batch, static_cast<const T*>(call.x), static_cast<const T*>(call.y),
                   static_cast<const T*>(call.z), dx.rows(), dy.rows()),
            "cudaLaunchKernel");
    dx.finish(), dy.finish();
  }

 private:
  PlanArena arena_;
  ClebschGordanPlan<T> plan_{};
  Tiling forward_, backward_;
};

}  // namespace

std::unique_ptr<Operation> make_clebsch_gordan(int device, bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2, const std::vector<ClebschGordanPath>& paths,
                                               bool dense, bool square) {
  return make<ClebschGordan>(is_double, device, dims, in1, in2, paths, dense, square);
}

}  // namespace equitensor::cuda
