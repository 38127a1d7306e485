// Clebsch-Gordan tensor product, as on the CPU: for every pair of irreps the products of its components once, then one sparse map to all of
// its l3; backwards the transposed map once, then a matrix-vector product with either operand. A block owns the whole of its items, so that
// each operand is read once and a gradient is summed without atomics.
#include "core/clebsch_gordan_plan.hpp"
#include "cuda/host.hpp"
#include "cuda/products.cuh"

namespace equitensor::cuda {
namespace {

// First components in a tile. The output and its cotangent are in `compact`, pair by pair.
struct ClebschGordanLayout {
  int in[operand_count], out[2], products, compact;
  long components;
  int teams;
  template <class T>
  ClebschGordanLayout(const ClebschGordanPlan<T>& plan, const Terms& terms) {
    Components tile;
    for (int o = 0; o < operand_count; ++o) in[o] = tile.take(terms.reads[o] && o != z_operand ? plan.dim[slot_of(o)] : 0);
    // Of a square both gradients go to x, which two threads would add to at once: they meet at the end.
    for (int s = 0; s < 2; ++s) out[s] = tile.take(terms.writes[plan.square ? 0 : s] ? plan.dim[s] : 0);
    products = tile.take(plan.max_products), compact = tile.take(plan.max_compact);
    components = tile.count, teams = tile.teams();
  }
};

// What the kernel contracts: the inputs, their gradients and where their rows lie. As a __grid_constant__ it can be indexed at run time
// without a copy in local memory.
template <class T>
struct Contraction {
  Terms terms;
  // What is read and what is written, as lists: to skip an operand that is not takes eight instructions.
  struct Operand {
    int index;
    const T* from;
    Rows rows;
  };
  struct Result {
    int slot;
    bool accumulate;
    T* to;
    Rows rows;
  };
  Operand read[operand_count - 1];
  Result written[slot_count - 1];
  int read_count = 0, written_count = 0;

  // rows(slot, shared).
  template <class RowsOfSlot>
  Contraction(const Call& call, const Terms& terms, const Results<T>& results, RowsOfSlot&& rows) : terms(terms) {
    for (int o = 0; o < operand_count; ++o)
      if (terms.reads[o] && o != z_operand) read[read_count++] = {o, static_cast<const T*>(call.in[o]), rows(slot_of(o), call.shared[slot_of(o)])};
    for (int s = 0; s < 2; ++s)
      if (terms.writes[s]) written[written_count++] = {s, results.accumulates(s), results.rows(s), rows(s, false)};
  }
};

// All inputs into a tile, all gradients out of it; `at`: their first components. In loops at run time, so that the code for one is there once.
template <class C, class T>
__device__ __forceinline__ void load_operands(const Contraction<T>& a, const int* at, long long first, int live, const Strip<C>& tile) {
#pragma unroll 1
  for (int i = 0; i < a.read_count; ++i) {
    const auto& operand = a.read[i];
    load_tile(operand.rows, operand.from, first, live, tile.from(at[operand.index]));
  }
}
template <class C, class T>
__device__ __forceinline__ void store_results(const Contraction<T>& a, const int* at, long long first, int live, const Strip<C>& tile) {
#pragma unroll 1
  for (int i = 0; i < a.written_count; ++i) {
    const auto& result = a.written[i];
    store_tile(result.rows, result.to, result.accumulate, first, live, tile.from(at[result.slot]));
  }
}

// Segments of the output go between the tile and these rows.
template <class T>
struct ClebschGordanOutput {
  T* z;
  const T* dz;
  bool accumulate;
};

// visit(pointer, address in the tile) for the outputs of channels u and v, along the rows that begin at `rows`; `compact` is the first item's
// strip. A thread keeps to its component, 10 instructions a number instead of 27: where it lies is looked up once, and an item further are
// two additions. Offsets within a tile's rows have 32 bits: clebsch_gordan_dim_limit.
template <class T, class N, class Visit>
__device__ __forceinline__ void for_each_output(const PlanPair<T>& pair, int dim, int live, int u, int v, const Strip<T>& compact, N* rows,
                                                Visit&& visit) {
  const int outputs = pair.compact_outputs, step = maximum(1, divide(blockDim.x, pair.by_outputs));
  for (int start = threadIdx.x; start < step * outputs; start += blockDim.x) {
    const int first = divide(start, pair.by_outputs), c = start - first * outputs;
    const PlanPlace place = load_table(pair.places + c).value[0];
    N* row = rows + (first * dim + place.first + u * place.u_step + v * place.v_step);
    unsigned at = compact.from(c).at + first * unsigned(sizeof(T));
    for (int item = first; item < live; item += step, row += step * dim, at += step * unsigned(sizeof(T))) visit(row, at);
  }
}
constexpr int clebsch_gordan_dim_limit = (1 << 30) / 128;

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
__global__ __launch_bounds__(threads, 1) void clebsch_gordan(const __grid_constant__ ClebschGordanPlan<T> plan,
                                                                                        const __grid_constant__ Contraction<T> a,
                                                                                        const __grid_constant__ ClebschGordanLayout layout,
                                                                                        ClebschGordanOutput<T> output, int items, long long batch) {
  using V = Items<T>;
  const int packs = unsigned(items) / V::count;
  const Team team = team_of(packs);
  const long long first = (long long)blockIdx.x * unsigned(items);
  const int live = int(batch - first < items ? batch - first : items);
  const Strip<V> tile = own_strip<V>(packs), products = tile.from(layout.products), compact = tile.from(layout.compact);
  const Strip<T> numbers = first_strip<T>(tile);
  T* const z = output.z + first * plan.dim[2];
  const T* const dz = output.dz + first * plan.dim[2];
  // The term of dx and of dy has the other input, or its direction; in a square one term stands for both.
  int x = -1, y = -1;
  for (int t = 0; t < a.terms.count; ++t) {
    if (a.terms.term[t].out == 0) y = a.terms.term[t].a;
    if (a.terms.term[t].out == (plan.square ? 0 : 1)) x = a.terms.term[t].a;
  }
  load_operands(a, layout.in, first, live, numbers);
#pragma unroll 1
  for (int s = 0; s < 2; ++s)
    for (int c = team.index; (s == 0 ? y : x) >= 0 && c < plan.dim[s]; c += team.count) tile[layout.out[s] + c] = V{};
  __syncthreads();
  for (int i = 0; i < plan.pair_count; ++i) {
    const PlanPair<T>& pair = plan.pairs[i];
    for_each_channel(pair, [&](int u, int v) {
      // The inputs' components of product p, from these on.
      const int x_first = pair.x_offset + u * pair.x_channel, y_first = pair.y_offset + v * pair.y_channel;
      if (pair.triangular) v -= u * (u - 1) / 2;  // in the output's rows
      if (a.terms.writes[2]) {
        if (x >= 0 || y >= 0) __syncthreads();  // the previous pair's products have been read
#pragma unroll 1
        for (int t = 0; t < a.terms.count; ++t) {
          const Term term = a.terms.term[t];
          if (term.out != 2) continue;
          multiply_components(pair, tile.from(layout.in[term.a] + x_first), tile.from(layout.in[term.b] + y_first), products, !term.first, team);
        }
        __syncthreads();
        apply(pair.forward, products, compact, team);
        __syncthreads();
        if (output.accumulate)
          for_each_output(pair, plan.dim[2], live, u, v, numbers.from(layout.compact), z,
                          [&](T* to, unsigned at) { store(to, Pack<T, 1>{load(to).value[0] + load_shared<T>(at)}); });
        else
          for_each_output(pair, plan.dim[2], live, u, v, numbers.from(layout.compact), z,
                          [&](T* to, unsigned at) { store(to, Pack<T, 1>{load_shared<T>(at)}); });
      }
      if (x < 0 && y < 0) return;
      if (a.terms.writes[2]) __syncthreads();  // `compact` has been read
      for_each_output(pair, plan.dim[2], live, u, v, numbers.from(layout.compact), dz,
                      [&](const T* from, unsigned at) { store_shared(at, load(from).value[0]); });
      __syncthreads();
      apply(pair.backward, compact, products, team);
      __syncthreads();
      add_gradients(pair, y >= 0, x >= 0, products, tile.from(layout.in[maximum(0, x)] + x_first), tile.from(layout.in[maximum(0, y)] + y_first),
                    tile.from(layout.out[0] + x_first), tile.from(layout.out[1] + y_first), team);
    });
  }
  __syncthreads();
  if (plan.square && a.terms.writes[0]) {
    for (int c = team.index; c < plan.dim[0]; c += team.count) tile[layout.out[0] + c] += tile[layout.out[1] + c];
    __syncthreads();
  }
  store_results(a, layout.out, first, live, numbers);
}

template <class T>
class ClebschGordan final : public Operation {
 public:
  ClebschGordan(int device, const int (&dims)[3], const std::vector<IrrepsBlock>& in1, const std::vector<IrrepsBlock>& in2,
                const std::vector<ClebschGordanPath>& paths, bool dense, bool square)
      : Operation(device, sizeof(T) == 8, dims[0], dims[1], dims[2]), arena_(device) {
    if (dims[2] > clebsch_gordan_dim_limit)
      throw Error("not_supported", "an output of " + std::to_string(dims[2]) + " components an item is more than " +
                                       std::to_string(clebsch_gordan_dim_limit) + ": use backend 'cpu'");
    PassFlops flops;
    plan_ = arena_.build([&](auto& store) { return clebsch_gordan_plan<T>(store, dims, in1, in2, paths, dense, square, false, flops); });
    tiling_for<Items<T>>(device, ClebschGordanLayout(plan_, backward_terms(square)).components, 1, 1);
    allow_all_shared_memory(device, clebsch_gordan<T>);
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    const Terms terms = terms_of(call, plan_.square);
    const ClebschGordanLayout layout(plan_, terms);
    const Tiling tiling = tiling_for<Items<T>>(device, layout.components, layout.teams, call.batch);
    const Results<T> results(*this, call, terms, stream);
    const Contraction<T> a(call, terms, results, [&](int s, bool shared) { return whole_rows<T>(dim[s], shared, tiling.threads); });
    check(launch(clebsch_gordan<T>, tiling.grid(call.batch), tiling.threads, tiling.shared_bytes, stream, plan_, a, layout,
                 ClebschGordanOutput<T>{results.rows(2), static_cast<const T*>(call.in[z_operand]), results.accumulates(2)}, tiling.items, call.batch),
          "cudaLaunchKernel");
    results.finish();
  }

 private:
  PlanArena arena_;
  ClebschGordanPlan<T> plan_{};
};

}  // namespace

std::unique_ptr<Operation> make_clebsch_gordan(int device, bool is_double, const int (&dims)[3], const std::vector<IrrepsBlock>& in1,
                                               const std::vector<IrrepsBlock>& in2, const std::vector<ClebschGordanPath>& paths,
                                               bool dense, bool square) {
  return make<ClebschGordan>(is_double, device, dims, in1, in2, paths, dense, square);
}

}  // namespace equitensor::cuda
