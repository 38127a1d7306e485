// The project's own kernels for the sanitizers: every operation, all passes, on arrays of exactly the right size in device
// memory. Prints a hash of all results, which must not depend on the order of the threads. Their numbers are checked by the vitest suite.
#include "core/channels.hpp"
#include "core/clebsch_gordan.hpp"
#include "core/matrix_block.hpp"
#include "core/symmetric_contraction.hpp"
#include "core/weighted.hpp"
#include "cuda/operation.hpp"
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

using namespace equitensor;

std::vector<IrrepsBlock> full_irreps(int lmax, int mul) {
  std::vector<IrrepsBlock> blocks;
  int offset = 0;
  for (int l = 0; l <= lmax; offset += mul * (2 * l + 1), ++l) blocks.push_back({offset, mul, l, 2 * l + 1, 1});
  return blocks;
}
int dim_of(const std::vector<IrrepsBlock>& blocks) {
  int dim = 0;
  for (const IrrepsBlock& b : blocks) dim += b.mul * (2 * b.l + 1);
  return dim;
}
ChannelSlot slot(int lmax, int mul) {
  const std::vector<IrrepsBlock> blocks = full_irreps(lmax, mul);
  return {dim_of(blocks), blocks, std::vector<int>(blocks.size(), 0)};
}

uint64_t hash = 14695981039346656037ull;  // FNV-1a

template <class T>
class Array {
 public:
  Array(long count, unsigned seed) : values_(size_t(count)) {
    for (T& v : values_) v = T((seed = seed * 1664525u + 1013904223u) >> 8) / T(1 << 23) - 1;
    if (values_.empty()) return;
    cuda::check(cudaMalloc(&memory_, bytes()), "cudaMalloc", bytes());
    cuda::check(cudaMemcpy(memory_, values_.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Array() { cudaFree(memory_); }
  void* data() const { return memory_; }
  void take_hash(bool is_part = true) {
    if (values_.empty()) return;
    cuda::check(cudaMemcpy(values_.data(), memory_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    for (const T& v : values_) {
      unsigned char byte[sizeof(T)];
      std::memcpy(byte, &v, sizeof v);
      if (v != v) std::printf("NaN in a result\n"), std::exit(1);
      if (!is_part) continue;
      for (const unsigned char b : byte) hash = (hash ^ b) * 1099511628211ull;
    }
  }

 private:
  size_t bytes() const { return values_.size() * sizeof(T); }
  std::vector<T> values_;
  void* memory_ = nullptr;
};

// 37 items: a whole tile and a part of one.
template <class T>
void run(const cuda::Operation& operation, bool x_shared) {
  const long batch = 37;
  cuda::Stream stream(0);
  Call call{};
  call.batch = batch, call.shared[0] = x_shared;
  const auto numbers = [&](int slot) { return (call.shared[slot] ? 1 : batch) * operation.dim[slot]; };
  Array<T> x(numbers(0), 1), y(numbers(1), 2), z(numbers(2), 3), ax(numbers(0), 4), ay(numbers(1), 5), dx(numbers(0), 6), dy(numbers(1), 7),
      dz(numbers(2), 8);
  const auto contract = [&](std::initializer_list<Array<T>*> results) {
    operation.contract(call, stream.get());
    stream.synchronize();
    for (Array<T>* result : results) result->take_hash();
  };
  call.in[x_operand] = x.data(), call.in[y_operand] = y.data(), call.out[2] = z.data();
  contract({&z});
  call.in[z_operand] = z.data();
  call.out[0] = dx.data(), call.out[1] = dy.data(), call.out[2] = nullptr;
  contract({&dx, &dy});
  call.in[x_direction] = ax.data(), call.in[y_direction] = ay.data();
  call.out[2] = dz.data();
  for (const bool accumulate : {false, true}) {
    call.accumulate = accumulate;
    contract({&dx, &dy, &dz});
  }
}

// With a set of weights for each item, or one for all, whose gradient goes through rows of partial sums.
template <class T>
void run_weighted(const cuda::Operation& operation) {
  const int (&dims)[3] = operation.dim, weights = operation.weights;
  const long batch = 37;
  for (const bool shared : {false, true}) {
    cuda::Stream stream(0);
    Call call{};
    call.batch = batch, call.weight_shared = call.shared[1] = shared;
    const long y_rows = shared ? 1 : batch, w_rows = y_rows;
    Array<T> x(batch * dims[0], 1), y(y_rows * dims[1], 2), z(batch * dims[2], 3), w(w_rows * weights, 4), ax(batch * dims[0], 5),
        ay(y_rows * dims[1], 6), aw(w_rows * weights, 7), dx(batch * dims[0], 8), dy(y_rows * dims[1], 9), dz(batch * dims[2], 10), dw(w_rows * weights, 11);
    const auto contract = [&](std::initializer_list<Array<T>*> results) {
      operation.contract(call, stream.get());
      stream.synchronize();
      for (Array<T>* result : results) result->take_hash();
    };
    call.in[x_operand] = x.data(), call.in[y_operand] = y.data(), call.weight = w.data(), call.out[2] = z.data();
    contract({&z});
    call.in[z_operand] = z.data();
    call.out[0] = dx.data(), call.out[1] = dy.data(), call.weight_out = dw.data(), call.out[2] = nullptr;
    contract({&dx, &dy, &dw});
    call.in[x_direction] = ax.data(), call.out[2] = dz.data();
    contract({&dx, &dy, &dz, &dw});
    call.in[y_direction] = ay.data(), call.weight_direction = aw.data(), call.accumulate = true;
    contract({&dx, &dy, &dz, &dw});
  }
}
template <class T>
void run_weighted(const WeightedForm& form) { run_weighted<T>(*cuda::make_weighted(0, form)); }

// The same of a sum of two products with factors.
template <class T>
void run_factored() {
  const ChannelSlot slots[3] = {slot(2, 3), slot(1, 3), slot(2, 3)};
  run_weighted<T>(*cuda::make_matrix(0, sizeof(T) == 8, 2, 3, slots, {{0, 0, 0}}, 2));
}

// A convolution, node by node and edge by edge: receivers of ten edges, whose atomic sums come from two groups of threads, of one, and of none. Atomic sums are rounded in the order of the threads, and no part
// of the hash.
template <class T>
void run_convolution(const WeightedForm& form) {
  const auto operation = cuda::make_weighted(0, form);
  const int (&dims)[3] = operation->dim, weights = operation->weights;
  using Ints = std::vector<int>;
  const cuda::DeviceMemory by_receiver(0, Ints{0, 10, 10, 11, 12}), its_edges(0, Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}), its_senders(0, Ints{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2});
  const cuda::DeviceMemory itself(0, Ints{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3});
  const cuda::DeviceMemory by_sender(0, Ints{0, 4, 8, 12}), its_other_edges(0, Ints{0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11}), its_receivers(0, Ints{0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3});
  const Sweep receivers{2, 4, by_receiver.as<int>(), its_edges.as<int>(), its_senders.as<int>(), 3, itself.as<int>()};
  const Sweep senders{0, 3, by_sender.as<int>(), its_other_edges.as<int>(), its_receivers.as<int>(), 4};
  for (const bool shared : {false, true})
    for (const bool atomic : {false, true}) {
      cuda::Stream stream(0);
      Call call{};
      call.batch = 12, call.weight_shared = call.shared[1] = shared, call.atomic = atomic;
      const long rows = shared ? 1 : call.batch;
      Array<T> x(3 * dims[0], 1), y(rows * dims[1], 2), z(4 * dims[2], 3), w(rows * weights, 4), ax(3 * dims[0], 5), ay(rows * dims[1], 6), aw(rows * weights, 7),
          dx(3 * dims[0], 8), dy(rows * dims[1], 9), dz(4 * dims[2], 10), dw(rows * weights, 11);
      const auto contract = [&](const Sweep& sweep, std::initializer_list<Array<T>*> results) {
        call.sweep = &sweep;
        operation->contract(call, stream.get());
        stream.synchronize();
        for (Array<T>* result : results) result->take_hash(!atomic);
      };
      call.in[x_operand] = x.data(), call.in[y_operand] = y.data(), call.weight = w.data(), call.out[2] = z.data();
      contract(receivers, {&z});
      call.in[z_operand] = z.data(), call.out[2] = nullptr;
      call.out[0] = dx.data(), call.out[1] = dy.data(), call.weight_out = dw.data();
      contract(atomic ? receivers : senders, {&dx, &dy, &dw});
      call.in[x_direction] = ax.data(), call.in[y_direction] = ay.data(), call.weight_direction = aw.data(), call.accumulate = true;
      if (!atomic) {
        contract(senders, {&dx, &dy, &dw});
        call.out[0] = call.out[1] = call.weight_out = nullptr;
      }
      call.out[2] = dz.data();
      contract(receivers, {&dx, &dy, &dz, &dw});
    }
}

template <class T>
void run_all_weighted() {
  const bool is_double = sizeof(T) == 8;
  // Packs of channels, and single ones; a block whose components are in pieces.
  for (const int mul : {4, 5}) {
    const auto in = full_irreps(1, mul), y = full_irreps(2, 1);
    WeightedForm form{is_double, {dim_of(in), dim_of(y), 0}, 0, {in, y, {}}, {}};
    for (const auto& [l1, l2, l3] : {std::array{0, 0, 0}, {0, 1, 1}, {1, 0, 1}, {1, 2, 1}, {1, 2, 3}}) {
      form.blocks[2].push_back({form.dims[2], mul, l3, 2 * l3 + 1, 1});
      form.instructions.push_back({l1, l2, int(form.blocks[2].size()) - 1, Mode::uvu, form.weights, 1.5});
      form.dims[2] += mul * (2 * l3 + 1), form.weights += mul;
    }
    run_weighted<T>(form);
    run_convolution<T>(form);
  }
  run_weighted<T>({is_double, {9, 6, 9}, 2, {{{0, 1, 4, 9, 1}}, {{0, 2, 1, 3, 1}}, {{0, 1, 4, 9, 1}}}, {{0, 0, 0, Mode::uvu, 0, 1.0}}});
  // All other modes into the same block.
  const std::vector<IrrepsBlock> three = {{0, 3, 1, 3, 1}};
  const WeightedForm others{is_double, {9, 9, 9}, 27 + 9 + 9 + 3 + 9, {three, three, {{0, 3, 1, 3, 1}}},
                            {{0, 0, 0, Mode::uvw, 0, 1.0}, {0, 0, 0, Mode::uvv, 27, 1.0}, {0, 0, 0, Mode::uuw, 36, 1.0}, {0, 0, 0, Mode::uuu, 45, 1.0},
                             {0, 0, 0, Mode::upper, -1, 1.0}, {0, 0, 0, Mode::upper_w, 48, 1.0}}};
  run_weighted<T>(others);
  run_convolution<T>(others);
}

// Two species in three tasks; fewer channels than a tile has, and more; in either layout.
template <class T>
void run_symmetric(int mul, bool innermost) {
  SymmetricForm form{sizeof(T) == 8, {4 * mul, 4 * mul}, mul, 2, full_irreps(1, mul), full_irreps(1, mul), {}};
  for (std::vector<IrrepsBlock>* blocks : {&form.in, &form.out})
    for (IrrepsBlock& b : *blocks)
      if (innermost) b.channel = 1, b.component = mul;
  form.paths = {{0, 3, {0, 1, 1}, 1}, {0, 2, {1, 1, 0}, 0}, {0, 1, {0, 0, 0}, 0}, {1, 3, {1, 1, 1}, 2}, {1, 2, {0, 1, 0}, 0}, {1, 1, {1, 0, 0}, 0}};
  const auto operation = cuda::make_symmetric_contraction(0, form);
  const int batch = 7;
  const std::vector<int> order = {4, 0, 2, 6, 1, 3, 5}, of_species = {0, 2, 3};
  const std::vector<NodeTask> list = {{0, 0, 3}, {0, 3, 4}, {1, 4, 7}};
  const cuda::DeviceMemory orders(0, order), firsts(0, of_species), tasks(0, list);
  const NodeTasks by_species{orders.as<int>(), tasks.as<NodeTask>(), firsts.as<int>(), int(list.size())};
  cuda::Stream stream(0);
  Call call{};
  call.batch = batch, call.weight_shared = true, call.tasks = &by_species;
  Array<T> x(batch * form.dims[0], 1), z(batch * form.dims[1], 2), w(operation->weights, 3), ax(batch * form.dims[0], 4), aw(operation->weights, 5), dx(batch * form.dims[0], 6),
      dw(operation->weights, 7), dz(batch * form.dims[1], 8);
  const auto contract = [&](std::initializer_list<Array<T>*> results) {
    operation->contract(call, stream.get());
    stream.synchronize();
    for (Array<T>* result : results) result->take_hash();
  };
  call.in[x_operand] = x.data(), call.weight = w.data(), call.out[2] = z.data();
  contract({&z});
  call.in[z_operand] = z.data(), call.out[0] = dx.data(), call.weight_out = dw.data(), call.out[2] = nullptr;
  contract({&dx, &dw});
  call.in[x_direction] = ax.data(), call.weight_direction = aw.data(), call.out[2] = dz.data();
  for (const bool accumulate : {false, true}) {
    call.accumulate = accumulate;
    contract({&dx, &dw, &dz});
  }
}

// Factors of one parity and of both, and a power.
template <class T>
void run_factors(const std::vector<ChannelSlot>& slots, int power, int mul, const Grid& grid) {
  const auto operation = cuda::make_gaunt_product(0, sizeof(T) == 8, mul, slots, power, grid);
  const size_t factors = slots.size() - 1;
  const long batch = 37;
  cuda::Stream stream(0);
  Call call{};
  call.batch = batch;
  std::vector<std::unique_ptr<Array<T>>> x, ax, dx;
  for (size_t f = 0; f < factors; ++f)
    for (auto* arrays : {&x, &ax, &dx}) arrays->push_back(std::make_unique<Array<T>>(batch * slots[f].dim, unsigned(3 * f + arrays->size() + 1)));
  Array<T> z(batch * slots.back().dim, 21), dz(batch * slots.back().dim, 22);
  const auto contract = [&](Array<T>* result) {
    operation->contract(call, stream.get());
    stream.synchronize();
    if (result) result->take_hash();
    for (size_t f = 0; f < factors; ++f)
      if (call.factor_out[f]) dx[f]->take_hash();
  };
  for (size_t f = 0; f < factors; ++f) call.factor[f] = x[f]->data();
  call.out[2] = z.data();
  contract(&z);
  call.in[z_operand] = z.data(), call.out[2] = nullptr;
  for (size_t f = 0; f < factors; ++f) call.factor_out[f] = dx[f]->data();
  contract(nullptr);
  call.out[2] = dz.data(), call.factor_direction[0] = ax[0]->data();
  contract(&dz);
  for (size_t f = 0; f < factors; ++f) call.factor_direction[f] = ax[f]->data();
  call.accumulate = true;
  contract(&dz);
}

template <class T>
void run_all_many_body() {
  for (const int mul : {3, 4, 130})
    for (const bool innermost : {false, true}) run_symmetric<T>(mul, innermost);
  for (const int mul : {1, 3}) {
    run_factors<T>({slot(1, mul), slot(2, mul), slot(1, mul), slot(2, mul)}, 0, mul, {4, 7, true});
    run_factors<T>({slot(2, mul), slot(1, mul)}, 3, mul, {4, 8, true});
    ChannelSlot both = slot(1, mul);
    both.parts = {0, 1};
    run_factors<T>({both, both, both}, 0, mul, {2, 4, true});
    run_factors<T>({both, both}, 2, mul, {2, 4, true});
  }
}

template <class T>
void run_all() {
  const bool is_double = sizeof(T) == 8;
  const cuda::OnDevice on(0);
  for (const int mul : {1, 3}) {
    const auto in = full_irreps(2, mul), vectors = full_irreps(1, 1);
    std::vector<ClebschGordanPath> paths;
    int offset = 0;
    for (int i = 0; i <= 2; ++i)
      for (int j = 0; j <= 1; ++j)
        for (int l = std::abs(i - j); l <= i + j; offset += mul * (2 * l + 1), ++l)
          paths.push_back({i, j, Connection::all, l, offset, 2 * l + 1, 2 * l + 1, 1, false, 1.0});
    const int dims[3] = {dim_of(in), dim_of(vectors), offset};
    run<T>(*cuda::make_clebsch_gordan(0, is_double, dims, in, vectors, paths, false, false), mul == 3);
    const ChannelSlot slots[3] = {slot(2, mul), slot(2, mul), slot(4, mul)};
    for (const bool pointwise : {false, true})
      run<T>(*cuda::make_gaunt(0, is_double, 0, mul, slots, {{0, 0, 0}}, {5, 9, pointwise}), false);
    for (const bool fft : {false, true}) run<T>(*cuda::make_fourier(0, is_double, 0, mul, slots, {{0, 0, 0}}, fft), false);
    run<T>(*cuda::make_matrix(0, is_double, 0, mul, slots, {{0, 0, 0}}, 2), false);
    run<T>(*cuda::make_matrix_block(0, is_double, 0, mul, slots, {{0, 0, 0, 1.0}, {1, 1, 0, 2.0}, {1, 2, 3, 3.0}, {2, 1, 3, -1.0}, {0, 1, 1, 1.0}, {2, 2, 2, 1.0}, {2, 2, 4, 1.0}}),
           false);
  }
  // A square: the channels u < v of three vectors, and each with itself.
  const auto three = full_irreps(1, 3);
  const std::vector<ClebschGordanPath> square = {{1, 1, Connection::upper, 1, -3, 3, 3, 1, true, 1.0}, {1, 1, Connection::same, 2, 9, 5, 0, 1, false, 1.0}};
  run<T>(*cuda::make_clebsch_gordan(0, is_double, {dim_of(three), dim_of(three), 24}, three, three, square, false, true), false);
  // The highest output by its own path, and float32 in double.
  const ChannelSlot high[3] = {slot(1, 1), slot(1, 1), slot(2, 1)};
  for (const int k : {6, 9}) run<T>(*cuda::make_matrix(0, is_double, 0, 1, high, {{0, 0, 0}}, k), false);
  run<T>(*cuda::make_spherical_harmonics(0, is_double, {0, 1, 2, 3, 1}, {1, 1, 1, 1}, true), false);
}

}  // namespace

int main() {
  run_all<float>();
  run_all<double>();
  run_all_weighted<float>();
  run_all_weighted<double>();
  run_all_many_body<float>();
  run_all_many_body<double>();
  run_factored<float>();
  run_factored<double>();
  std::printf("%016llx\n", (unsigned long long)hash);
}
