// Real spherical harmonics of vectors, their gradient, and the derivatives of both along a direction: core/spherical_harmonics.hpp, one
// vector a thread, staged so that rows are read and written whole.
#include "core/spherical_harmonics.hpp"
#include "core/spherical_harmonics_plan.hpp"
#include "cuda/host.hpp"
#include <type_traits>

namespace equitensor::cuda {
namespace {

// A number, which does not change along a direction.
template <class N, class T>
__device__ __forceinline__ N constant(T value) {
  if constexpr (std::is_same_v<N, T>)
    return value;
  else
    return {value, T(0)};
}

// Orders that the gradient takes, since that of degree l is made of harmonics of degree l - 1; one at least, for a sum that is 0.
template <class T>
__host__ __device__ int gradient_orders(const HarmonicsPlan<T>& plan) { return plan.lmax > 0 ? plan.lmax : 1; }

// Components of a tile: the vectors, directions, rows of harmonics or of their cotangents, and every team's share of the gradient.
template <class T>
long harmonics_components(const HarmonicsPlan<T>& plan, bool has_direction, bool has_gradient) {
  return 3 + (has_direction ? 3 : 0) + plan.dim + (has_gradient ? (has_direction ? 6 : 3) * gradient_orders(plan) : 0);
}

// With a direction the results are derivatives along it. z is null where nobody asked for it. Gradients can take over 85 registers, in float64 or with
// a direction: one block an SM, 19 % of its threads. What hides latency then: every number of a recurrence goes into six independent sums.
template <class T, bool has_direction, bool has_gradient>
__global__ __launch_bounds__(threads, 1) void spherical_harmonics(HarmonicsPlan<T> plan, Rows vectors, Rows harmonics, int items, long long batch,
                                                                  bool accumulate, const T* x, const T* direction, const T* dz, T* dx, T* z) {
  using N = std::conditional_t<has_direction, Dual<T>, T>;
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(batch - first < items ? batch - first : items), orders = plan.lmax + 1;
  const Strip<T> vector = own_strip<T>(items), tangent = vector.from(3);
  const Strip<T> row = tangent.from(has_direction ? 3 : 0);  // the cotangent, then the harmonics
  const Strip<T> vectors_in = first_strip<T>(vector), directions_in = vectors_in.from(3), rows = directions_in.from(has_direction ? 3 : 0);
  load_tile(vectors, x, first, live, vectors_in);
  if constexpr (has_direction) load_tile(vectors, direction, first, live, directions_in);
  if constexpr (has_gradient) load_tile(harmonics, dz, first, live, rows);
  __syncthreads();

  const auto read = [](const auto* p) { return load_table(p).value[0]; };
  const auto point = [&](const Strip<T>& of) { return Point<T>{of[0], of[1], of[2]}; };
  const Point<T> v = point(vector);
  T inverse = 1, slope = 1;
  if (plan.normalize) {
    const T length = sqrt(dot(v, v));
    inverse = 1 / (length > T(1e-12) ? length : T(1e-12));
    slope = length > T(1e-12) ? inverse : T(0);
  }
  Normalised<N> at;
  if constexpr (has_direction) {
    const Point<T> t = point(tangent);
    at = plan.normalize ? normalised(v, t, inverse, slope) : Normalised<N>{along<T>(v, t), {}};
  } else {
    at = plan.normalize ? normalised(v, inverse, slope) : Normalised<N>{v, {}};
  }
  const N squared = dot(at.point, at.point);
  // body(m, Q_mm, Re w^m, Im w^m) for the orders of this team: m, m + teams, ..., each with a recurrence in l.
  const auto for_each_order = [&](int end, auto&& body) {
    N cosine = constant<N>(T(1)), sine{};
    const T* start = plan.recurrence + 2 * orders * orders;
    for (int m = 0, mine = team.index; m < end; ++m, ++start) {
      if (m == mine) body(m, constant<N>(read(start)), cosine, sine), mine += team.count;
      next_power(at.point, cosine, sine);
    }
  };

  if constexpr (has_gradient) {
    for (int l = team.index; l < orders; l += team.count)
      for (int copy = read(plan.degree_begin + l) + 1; copy < read(plan.degree_begin + l + 1); ++copy)
        for (int m = -l; m <= l; ++m) row[read(plan.centre + l) + m] += row[read(plan.copies + copy) + l + m];
    __syncthreads();
    Point<N> sum{};
    for_each_order(plan.lmax, [&](int m, N start, N cosine, N sine) {
      add_gradient(plan, m, start, at.point.y, squared, cosine, sine, row, read, sum);
    });
    const int teams = minimum(team.count, gradient_orders(plan));
    const Strip<N> share = own_strip<N>(items, rows.from(plan.dim).at);
    if (team.index < teams) share[3 * team.index] = sum.x, share[3 * team.index + 1] = sum.y, share[3 * team.index + 2] = sum.z;
    __syncthreads();
    if (team.index == 0) {
      for (int t = 1; t < teams; ++t) sum.x += share[3 * t], sum.y += share[3 * t + 1], sum.z += share[3 * t + 2];
      const Point<T> result = plan.normalize ? normalised_gradient<T>(at, sum) : result_of<T>(sum);
      vector[0] = result.x, vector[1] = result.y, vector[2] = result.z;
    }
  }
  if (z)
    for_each_order(orders, [&](int m, N start, N cosine, N sine) {
      write_order(plan, m, start, at.point.y, squared, cosine, sine, read, [&](int c, T value) { row[c] = value; });
    });
  __syncthreads();
  if constexpr (has_gradient) store_tile(vectors, dx, accumulate, first, live, vectors_in);
  if (z) store_tile(harmonics, z, accumulate, first, live, rows);
}

template <class T>
class SphericalHarmonics final : public Operation {
 public:
  SphericalHarmonics(int device, const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize)
      : Operation(device, sizeof(T) == 8, 3, 0, 0), arena_(device) {
    PassFlops flops;
    plan_ = arena_.build([&](auto& store) { return harmonics_plan<T>(store, degrees, scale, normalize, flops); });
    dim[2] = plan_.dim;
    tiling_for<T>(device, harmonics_components(plan_, false, false), 1, 1);
    for (const auto& with : kernels)
      for (const auto kernel : with) allow_all_shared_memory(device, kernel);
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    const bool has_direction = call.in[x_direction], has_gradient = call.out[0];
    // As of other operations a team for every 48 components: each has the whole way to the normalised vector for itself. (With twelve, L = 2 issued 2,025 instructions a vector.)
    const long components = harmonics_components(plan_, has_direction, has_gradient);
    const Tiling tiling = tiling_for<T>(device, components, Components{components}.teams(), call.batch);
    check(launch(kernels[has_direction][has_gradient], tiling.grid(call.batch), tiling.threads, tiling.shared_bytes, stream, plan_, whole_rows<T>(3, false, tiling.threads),
                 whole_rows<T>(plan_.dim, false, tiling.threads), tiling.items, call.batch, call.accumulate, static_cast<const T*>(call.in[x_operand]),
                 static_cast<const T*>(call.in[x_direction]), static_cast<const T*>(call.in[z_operand]), static_cast<T*>(call.out[0]),
                 static_cast<T*>(call.out[2])),
          "cudaLaunchKernel");
  }

 private:
  static constexpr decltype(&spherical_harmonics<T, false, false>) kernels[2][2] = {
      {spherical_harmonics<T, false, false>, spherical_harmonics<T, false, true>},
      {spherical_harmonics<T, true, false>, spherical_harmonics<T, true, true>}};

  PlanArena arena_;
  HarmonicsPlan<T> plan_{};
};

}  // namespace

std::unique_ptr<Operation> make_spherical_harmonics(int device, bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize) {
  return make<SphericalHarmonics>(is_double, device, degrees, scale, normalize);
}

}  // namespace equitensor::cuda
