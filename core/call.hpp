// What an operation is asked for. Every product is a trilinear form T(x, y, z) in its two inputs and its output's cotangent, and every
// pass is a sum of T with one slot left open:
//   forward          z = T(x, y, .)
//   backward         x = T(., y, z), y = T(x, ., z)
//   double backward  x = T(., ay, z), y = T(ax, ., z), z = T(ax, y, .) + T(x, ay, .)      for the directions ax of x and ay of y
// So a call needs no name: the results that it has a place for, and whether it has directions, say what it is.
// With weights the form is T(x, y, w, z), and likewise
//   backward         w = T(x, y, ., z)
//   double backward  the sum s = T(ax, y, w, z) + T(x, ay, w, z) + T(x, y, aw, z) with one of x, y, w, z left open
#pragma once
#include "unroll.hpp"
#include <atomic>

namespace equitensor {

enum Operand : int { x_operand, y_operand, z_operand, x_direction, y_direction, operand_count };
inline constexpr int slot_count = 3;
inline constexpr int max_factors = 4;
inline namespace EQUITENSOR_VARIANT {
EQUITENSOR_INLINE constexpr int slot_of(int operand) { return operand % slot_count; }
}  // namespace EQUITENSOR_VARIANT

// out += T with a and b in their slots. `first`: of the terms of this output, so that it is written and not added to.
struct Term {
  int a, b, out;
  bool first;
};
struct Terms {
  Term term[4];
  int count;
  bool reads[operand_count], writes[slot_count];
};

// Of a convolution over a graph: an item of the batch is an edge, with rows of y and of the weights of its own; x has a row a sender, z a row
// a receiver. A sweep goes through the edges node by node, and sums over a node's edges what goes to that node's row of its slot; of the other
// one of both slots it only reads. So forward and the double backward's z take the sweep of the receivers, all other results that of the senders.
struct Sweep {
  int slot;           // whose rows are the nodes: 0, senders, or 2, receivers
  int nodes;
  const int* begin;   // nodes + 1; the edges of node n, in the order of the sweep, are those from begin[n] to begin[n + 1]
  const int* edge;    // their rows of y and of the weights
  const int* other;   // their rows of the other slot
  int others;         // how many of those there are
  const int* node = nullptr;  // on a device, of the receivers: whose edges they are
};

// Nodes of a symmetric contraction by species, in tasks of nodes of one species, on a device: one of them is a block of threads' work.
struct NodeTask {
  int species, begin, end;  // nodes order[begin], ..., order[end - 1]
};
struct NodeTasks {
  const int* order;
  const NodeTask* tasks;   // by species
  const int* of_species;   // species + 1; the tasks of species s are those from of_species[s] to of_species[s + 1]
  int count;
};

// Arrays of the operation's dtype, null where there is none. A shared slot is one row for all items: its operands are, and its
// result is the sum over the items.
struct Call {
  const void* in[operand_count];
  void* out[slot_count];
  bool shared[slot_count];
  // Of an operation with weights: a row for every item, or one for all, whose gradient is the sum over the items.
  const void *weight, *weight_direction;
  void* weight_out;
  bool weight_shared;
  const int* species;  // of a symmetric contraction: of every item, whose set of weights it takes; null: 0
  const NodeTasks* tasks;  // and on a device, in the place of that
  // Of a product of many factors, which take the place of x and y.
  const void *factor[max_factors], *factor_direction[max_factors];
  void* factor_out[max_factors];
  bool accumulate;  // add to what the results hold
  long long batch;
  const Sweep* sweep;  // of a convolution, whose batch is the number of its edges; otherwise null
  bool atomic;  // on a device, of a convolution: edge by edge, with atomic sums
  // CPU only: the number of threads, and what is not 0 once nobody wants the results, in which case the work stops where it is.
  int threads;
  const std::atomic<int>* cancel;
};

// Of a product. Results that no term reaches are left out: they are zero. square: T(x, x, z), so that y and its direction are x and its, and the
// gradient of x is that of both slots together, whose operands are the same.
inline Terms terms_of(const Call& call, bool square = false) {
  Terms terms{};
  const auto add = [&](int a, int b, int out) {
    if (square && out == 1) return;
    if (square && slot_of(a) == 1) a -= y_operand;
    if (square && slot_of(b) == 1) b -= y_operand;
    if (!call.in[a] || !call.in[b] || !call.out[out]) return;
    terms.term[terms.count++] = {a, b, out, !terms.writes[out]};
    terms.reads[a] = terms.reads[b] = terms.writes[out] = true;
  };
  if (call.in[x_direction] || call.in[y_direction]) {
    add(y_direction, z_operand, 0);
    add(x_direction, z_operand, 1);
    add(x_direction, y_operand, 2);
    add(x_operand, y_direction, 2);
  } else {
    add(y_operand, z_operand, 0);
    add(x_operand, z_operand, 1);
    add(x_operand, y_operand, 2);
  }
  return terms;
}

// Of an operation whose kernel sees from the call what it is asked for: what is there is read and written.
inline Terms operands_of(const Call& call) {
  Terms terms{};
  for (int o = 0; o < operand_count; ++o) terms.reads[o] = call.in[o] != nullptr;
  for (int s = 0; s < slot_count; ++s) terms.writes[s] = call.out[s] != nullptr;
  return terms;
}

}  // namespace equitensor
