// How arguments from lib/, which has checked them, are read.
#pragma once
#include "core/call.hpp"
#include "core/channels.hpp"
#include "core/clebsch_gordan.hpp"
#include "core/matrix_block.hpp"
#include "core/symmetric_contraction.hpp"
#include "core/weighted.hpp"
#include <algorithm>
#include <napi.h>
#include <optional>
#include <vector>

namespace equitensor {

inline std::vector<int> ints(const Napi::Value& value) {
  const auto array = value.As<Napi::Int32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}
inline std::vector<double> doubles(const Napi::Value& value) {
  const auto array = value.As<Napi::Float64Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}
inline int integer(const Napi::Object& o, const char* key) { return o.Get(key).As<Napi::Number>().Int32Value(); }
inline bool boolean(const Napi::Object& o, const char* key) { return o.Get(key).ToBoolean().Value(); }

// Null for anything else than a typed array.
inline void* data_of(const Napi::Value& value) {
  if (!value.IsTypedArray()) return nullptr;
  void* data = nullptr;  // of shared memory too, which Napi::TypedArray::ArrayBuffer() does not accept
  napi_get_typedarray_info(value.Env(), value, nullptr, nullptr, &data, nullptr, nullptr);
  return data;
}

// [offset, mul, l, channel, component] of each block, flat.
inline std::vector<IrrepsBlock> blocks(const Napi::Value& value) {
  const std::vector<int> flat = ints(value);
  std::vector<IrrepsBlock> result;
  for (size_t i = 0; i + 4 < flat.size(); i += 5)
    result.push_back({flat[i], flat[i + 1], flat[i + 2], flat[i + 3], flat[i + 4]});
  return result;
}

struct ClebschGordanForm {
  bool is_double, dense, square;
  int dims[3];
  std::vector<IrrepsBlock> in1, in2;
  std::vector<ClebschGordanPath> paths;
};
inline ClebschGordanForm read_clebsch_gordan(const Napi::Object& o) {
  const std::vector<int> dims = ints(o.Get("dims"));
  const std::vector<int> flat = ints(o.Get("paths"));  // the fields of ClebschGordanPath before its coefficient
  const std::vector<double> coefficients = doubles(o.Get("coefficients"));
  std::vector<ClebschGordanPath> paths;
  for (size_t p = 0; p < coefficients.size(); ++p) {
    const int* f = flat.data() + 9 * p;
    paths.push_back({f[0], f[1], Connection(f[2]), f[3], f[4], f[5], f[6], f[7], f[8] != 0, coefficients[p]});
  }
  return {boolean(o, "isDouble"), boolean(o, "dense"), boolean(o, "square"), {dims[0], dims[1], dims[2]}, blocks(o.Get("in1")), blocks(o.Get("in2")), paths};
}

inline WeightedForm read_weighted(const Napi::Object& o) {
  const std::vector<int> dims = ints(o.Get("dims"));
  const std::vector<int> flat = ints(o.Get("instructions"));  // the fields of WeightedInstruction before its coefficient
  const std::vector<double> coefficients = doubles(o.Get("coefficients"));
  std::vector<WeightedInstruction> instructions;
  for (size_t i = 0; i < coefficients.size(); ++i) {
    const int* f = flat.data() + 5 * i;
    instructions.push_back({f[0], f[1], f[2], Mode(f[3]), f[4], coefficients[i]});
  }
  return {boolean(o, "isDouble"), {dims[0], dims[1], dims[2]}, integer(o, "weightNumel"),
          {blocks(o.Get("in1")), blocks(o.Get("in2")), blocks(o.Get("out"))}, instructions};
}

inline SymmetricForm read_symmetric_contraction(const Napi::Object& o) {
  const std::vector<int> dims = ints(o.Get("dims")), flat = ints(o.Get("paths"));  // the fields of SymmetricPath
  SymmetricForm form{boolean(o, "isDouble"), {dims[0], dims[1]}, integer(o, "mul"), integer(o, "numSpecies"), blocks(o.Get("in")), blocks(o.Get("out")), {}};
  for (size_t p = 0; p + 5 < flat.size(); p += 6) {
    const int* f = flat.data() + p;
    form.paths.push_back({f[0], f[1], {f[2], f[3], f[4]}, f[5]});
  }
  return form;
}

struct ChannelForm {
  bool is_double;
  int mul;
  ChannelSlot slots[3];
  std::vector<PlanProduct> products;
};
inline ChannelForm read_channel_product(const Napi::Object& o) {
  ChannelForm form{boolean(o, "isDouble"), integer(o, "mul"), {}, {}};
  const std::vector<int> dims = ints(o.Get("dims"));
  const char* names[3] = {"in1", "in2", "out"};
  const char* parts[3] = {"parts1", "parts2", "partsOut"};
  for (int s = 0; s < 3; ++s) form.slots[s] = {dims[size_t(s)], blocks(o.Get(names[s])), ints(o.Get(parts[s]))};
  const std::vector<int> flat = ints(o.Get("products"));
  for (size_t p = 0; p + 2 < flat.size(); p += 3) form.products.push_back({flat[p], flat[p + 1], flat[p + 2]});
  return form;
}
struct FactorsForm {
  bool is_double;
  int mul;
  std::vector<ChannelSlot> slots;  // of the factors, and the result
};
inline FactorsForm read_factors(const Napi::Object& o) {
  FactorsForm form{boolean(o, "isDouble"), integer(o, "mul"), {}};
  const auto slots = o.Get("slots").As<Napi::Array>();
  for (uint32_t s = 0; s < slots.Length(); ++s) {
    const auto slot = slots.Get(s).As<Napi::Object>();
    form.slots.push_back({integer(slot, "dim"), blocks(slot.Get("blocks")), ints(slot.Get("parts"))});
  }
  return form;
}
inline std::vector<MatrixBlockPath> read_block_paths(const Napi::Object& o) {
  const std::vector<int> flat = ints(o.Get("paths"));  // the blocks of each
  const std::vector<double> coefficients = doubles(o.Get("coefficients"));
  std::vector<MatrixBlockPath> paths;
  for (size_t p = 0; p < coefficients.size(); ++p) paths.push_back({flat[3 * p], flat[3 * p + 1], flat[3 * p + 2], coefficients[p]});
  return paths;
}

// Of a call: { x, y, z, ax, ay, w, aw, species, xOut, yOut, zOut, wOut, batch, xShared, yShared, wShared, accumulate, threads, sweeps, atomic }, and of
// a product of many factors (factors: true) f1, f2, ..., their directions af1, ... and results f1Out, ... .
inline constexpr int weight_operand = operand_count, weight_direction_operand = operand_count + 1, species_operand = operand_count + 2;
inline constexpr int factor_operand = operand_count + 3, factor_direction_operand = factor_operand + max_factors;
inline constexpr int operand_arrays = factor_direction_operand + max_factors;
inline constexpr int weight_result = slot_count, factor_result = slot_count + 1, result_arrays = factor_result + max_factors;
inline constexpr const char* operand_names[operand_arrays] = {"x",  "y",  "z",  "ax", "ay",  "w",   "aw",  "species",
                                                                "f1", "f2", "f3", "f4", "af1", "af2", "af3", "af4"};
inline constexpr const char* result_names[result_arrays] = {"xOut", "yOut", "zOut", "wOut", "f1Out", "f2Out", "f3Out", "f4Out"};

// All but the arrays.
inline Call read_call(const Napi::Object& o) {
  Call call{};
  call.shared[0] = boolean(o, "xShared"), call.shared[1] = boolean(o, "yShared"), call.weight_shared = boolean(o, "wShared");
  call.accumulate = boolean(o, "accumulate"), call.atomic = boolean(o, "atomic");
  call.batch = o.Get("batch").As<Napi::Number>().Int64Value();
  return call;
}

inline void put_arrays(Call& call, const void* const (&in)[operand_arrays], void* const (&out)[result_arrays]) {
  for (int i = 0; i < operand_count; ++i) call.in[i] = in[i];
  for (int s = 0; s < slot_count; ++s) call.out[s] = out[s];
  call.weight = in[weight_operand], call.weight_direction = in[weight_direction_operand], call.weight_out = out[weight_result];
  for (int f = 0; f < max_factors; ++f) {
    call.factor[f] = in[factor_operand + f], call.factor_direction[f] = in[factor_direction_operand + f];
    call.factor_out[f] = out[factor_result + f];
  }
}

// Of a symmetric contraction: nodes by species, in tasks of up to so many that there are a thousand, but whole `units`, the nodes that a block of threads
// takes at once, and four of them: with each task the weights of the basis are made again.
struct SpeciesTasks {
  std::vector<int> order, of_species;
  std::vector<NodeTask> tasks;
};
inline SpeciesTasks tasks_of(const int* species, int nodes, int sets, int unit) {
  SpeciesTasks result{std::vector<int>(size_t(nodes)), std::vector<int>(size_t(sets) + 1), {}};
  std::vector<int> begin(size_t(sets) + 1);
  for (int n = 0; n < nodes; ++n) ++begin[size_t(species[n]) + 1];
  for (int s = 0; s < sets; ++s) begin[size_t(s) + 1] += begin[size_t(s)];
  std::vector<int> next(begin.begin(), begin.end() - 1);
  for (int n = 0; n < nodes; ++n) result.order[size_t(next[size_t(species[n])]++)] = n;
  constexpr int most_tasks = 1024, least_units = 4;
  const int most = std::max(least_units, (nodes / unit + most_tasks - 1) / most_tasks) * unit;
  for (int s = 0; s < sets; ++s) {
    const int end = begin[size_t(s) + 1];
    result.of_species[size_t(s)] = int(result.tasks.size());
    for (int at = begin[size_t(s)]; at < end; at += std::min(most, end - at)) result.tasks.push_back({s, at, at + std::min(most, end - at)});
  }
  result.of_species[size_t(sets)] = int(result.tasks.size());
  return result;
}

// Of a convolution, call.sweeps: { senders, receivers }, each { begin, edge, other }, Int32Arrays. See Sweep of core/call.hpp.
struct GraphSweeps {
  Sweep senders, receivers;
};
inline Sweep read_sweep(int slot, const Napi::Object& o) {
  const auto array = [&](const char* key) { return static_cast<const int*>(data_of(o.Get(key))); };
  return {slot, int(o.Get("begin").As<Napi::Int32Array>().ElementLength()) - 1, array("begin"), array("edge"), array("other"), 0};
}
inline GraphSweeps sweeps_of(const Napi::Object& o) {
  GraphSweeps sweeps{read_sweep(0, o.Get("senders").As<Napi::Object>()), read_sweep(2, o.Get("receivers").As<Napi::Object>())};
  sweeps.senders.others = sweeps.receivers.nodes, sweeps.receivers.others = sweeps.senders.nodes;
  return sweeps;
}
inline std::optional<GraphSweeps> read_sweeps(const Napi::Object& call) {
  const Napi::Value value = call.Get("sweeps");
  return value.IsObject() ? std::optional(sweeps_of(value.As<Napi::Object>())) : std::nullopt;
}
// Calls run(call) as it is, or for each sweep with the results that it computes. by_receiver: that of the receivers computes all.
template <class Run>
void for_each_sweep(const Call& call, const std::optional<GraphSweeps>& sweeps, bool by_receiver, Run&& run) {
  if (!sweeps) return run(call);
  Call part = call;
  part.sweep = &sweeps->receivers;
  if (by_receiver) return run(part);
  part.out[0] = part.out[1] = part.weight_out = nullptr;
  if (part.out[2]) run(part);
  part = call;
  part.sweep = &sweeps->senders, part.out[2] = nullptr;
  if (part.out[0] || part.out[1] || part.weight_out) run(part);
}

inline Grid read_grid(const Napi::Object& o) { return {integer(o, "rings"), integer(o, "angles"), boolean(o, "pointwise")}; }

}  // namespace equitensor
