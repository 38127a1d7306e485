// Real spherical harmonics of vectors, by the recurrences of the CPU's kernel: one vector a thread, staged so that rows are written whole.
#include "cuda/host.hpp"

namespace equitensor::cuda {
namespace {

template <class T>
__global__ __launch_bounds__(threads) void spherical_harmonics_forward(HarmonicsPlan<T> plan, Rows vectors, Rows harmonics, int items,
                                                                       long long batch, const T* x, T* z) {
  const Team team = team_of(items);
  const long long first = (long long)blockIdx.x * items;
  const int live = int(batch - first < items ? batch - first : items), pitch = team.pitch, orders = plan.lmax + 1;
  T* const vector = dynamic_shared<T>();
  T* const out = vector + 3 * pitch;
  load_tile(vectors, x, first, live, vector, pitch);
  __syncthreads();
  // A team takes orders m, m + teams, ...: those of one m share the recurrence in l.
  T vx = vector[team.item], vy = vector[pitch + team.item], vz = vector[2 * pitch + team.item];
  if (plan.normalize) {
    T length = sqrt(vx * vx + vy * vy + vz * vz);
    length = length > T(1e-12) ? length : T(1e-12);
    vx /= length, vy /= length, vz /= length;
  }
  const T squared = vx * vx + vy * vy + vz * vz;
  T cosine = 1, sine = 0;  // Re, Im (z + i x)^m
  for (int m = 0; m < orders; ++m) {
    if (m % team.count == team.index) {
      T value = load_table(plan.recurrence + 2 * orders * orders + m).value[0], previous = 0;
      for (int l = m; l < orders; ++l) {
        if (l > m) {
          const T* ab = plan.recurrence + 2 * (m * orders + l);
          const T next = load_table(ab).value[0] * (vy * value) + load_table(ab + 1).value[0] * (squared * previous);
          previous = value;
          value = next;
        }
        const T scaled = load_table(plan.scale + l).value[0] * value;
        const int end = load_table(plan.degree_begin + l + 1).value[0];
        for (int copy = load_table(plan.degree_begin + l).value[0]; copy < end; ++copy) {
          T* to = out + (load_table(plan.copies + copy).value[0] + l) * pitch + team.item;
          to[m * pitch] = scaled * cosine;
          if (m > 0) to[-m * pitch] = scaled * sine;
        }
      }
    }
    const T next = cosine * vz - sine * vx;
    sine = cosine * vx + sine * vz;
    cosine = next;
  }
  __syncthreads();
  store_tile(harmonics, z, false, first, live, out, pitch);
}

template <class T>
class SphericalHarmonics final : public Operation {
 public:
  SphericalHarmonics(int device, const std::vector<int>& degrees, const std::vector<double>& scale, bool normalize)
      : Operation(device, sizeof(T) == 8, 3, 0, 0), arena_(device) {
    plan_ = arena_.build([&](auto& store) { return harmonics_plan<T>(store, degrees, scale, normalize); });
    dim[2] = plan_.dim;
    tiling_for<T>(device, 3 + plan_.dim, 1, 1);
    allow_all_shared_memory(device, spherical_harmonics_forward<T>);
  }

  void contract(const Call& call, cudaStream_t stream) const override {
    const Tiling tiling = tiling_for<T>(device, 3 + plan_.dim, threads / 32, call.batch);
    check(launch(spherical_harmonics_forward<T>, tiling.grid(call.batch), tiling.threads, tiling.shared_bytes, stream, plan_,
                 whole_rows(3, call.shared[0]), whole_rows(plan_.dim, false), tiling.items, call.batch, static_cast<const T*>(call.in[x_operand]),
                 static_cast<T*>(call.out[2])),
          "cudaLaunchKernel");
  }

 private:
  PlanArena arena_;
  HarmonicsPlan<T> plan_{};
};

}  // namespace

std::unique_ptr<Operation> make_spherical_harmonics(int device, bool is_double, const std::vector<int>& degrees,
                                                    const std::vector<double>& scale, bool normalize) {
  return make<SphericalHarmonics>(is_double, device, degrees, scale, normalize);
}

}  // namespace equitensor::cuda
