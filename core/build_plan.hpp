// What the builders of plans (plan.hpp) share; every operation's is in a file of its own, core/<operation>_plan.hpp. Every builder takes a store, which owns what a
// plan points to: on the CPU the process's memory, for CUDA a device's. It has
//   const int* ints(std::vector<int>)   const T* values<T>(std::vector<double>)   const Item* items(std::vector<Item>)
//   static constexpr bool on_device     and there row_bytes, to whose multiples rows of coefficients are padded
#pragma once
#include "channels.hpp"
#include "complex_products.hpp"
#include "plan.hpp"
#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

namespace equitensor {

// Operations an item; a multiply-add counts two.
struct PassFlops {
  long forward = 0, backward = 0, double_backward = 0;
  // Those of forward in products that are unrolled on the CPU and run at its peak, where everything else waits for loads and stores.
  long unrolled = 0;
  long result = 0;  // of a product: what the result takes beside the gradients, in one call

  void add(long times, const PassFlops& each) {
    result += times * each.result;
    forward += times * each.forward, backward += times * each.backward, double_backward += times * each.double_backward;
  }
};

inline Divisor divisor(int d) { return {~0u / unsigned(d)}; }

template <class T, class Store>
PlanMap<T> build_map(Store& store, const BlockMap& map) {
  std::map<std::pair<size_t, size_t>, std::vector<const MapBlock*>> shapes;
  for (const MapBlock& b : map.blocks) shapes[{b.outputs.size(), b.sources.size()}].push_back(&b);
  PlanMap<T> result{};
  if constexpr (Store::on_device) {
    std::vector<PlanMapBlock> list;
    std::vector<T> rows;
    // Room for so many bytes behind what is there.
    const auto take = [&](size_t bytes) {
      const size_t at = rows.size();
      rows.resize(at + (bytes + Store::row_bytes - 1) / Store::row_bytes * (Store::row_bytes / sizeof(T)));
      return &rows[at];
    };
    for (const auto& [shape, blocks] : shapes)
      for (const MapBlock* b : blocks) {
        list.push_back({int(rows.size()), int(shape.second / 2), int(shape.second % 2), int(shape.first)});
        for (size_t s = 0; s < shape.second; ++s) {
          T* const row = take((shape.first + 1) * sizeof(T));
          std::memcpy(row, &b->sources[s], sizeof(int));
          std::copy_n(b->coefficients.begin() + long(s * shape.first), shape.first, row + 1);
        }
        std::memcpy(take(shape.first * sizeof(int)), b->outputs.data(), shape.first * sizeof(int));
      }
    result.block_count = int(list.size());
    result.blocks = store.items(std::move(list));
    result.rows = store.items(std::move(rows));
  } else {
    std::vector<PlanRun<T>> runs;
    for (const auto& [shape, blocks] : shapes) {
      std::vector<double> coefficients;
      std::vector<int> sources, outputs;
      for (const MapBlock* b : blocks) {
        coefficients.insert(coefficients.end(), b->coefficients.begin(), b->coefficients.end());
        sources.insert(sources.end(), b->sources.begin(), b->sources.end());
        outputs.insert(outputs.end(), b->outputs.begin(), b->outputs.end());
      }
      runs.push_back({int(blocks.size()), int(shape.second), int(shape.first), store.template values<T>(coefficients),
                      store.ints(sources), store.ints(outputs)});
    }
    result.count = int(runs.size());
    result.runs = store.items(std::move(runs));
  }
  return result;
}

// The components of opposite orders, of one more irrep.
inline void append_opposite(std::vector<int>& opposite, int components) {
  const int first = int(opposite.size());
  for (int c = components; c-- > 0;) opposite.push_back(first + c);
}

// On a device a complex product always pays, since it loads half of what four products do.
template <class Store>
inline constexpr int least_saved = Store::on_device ? 0 : entries_worth_folding;

// Operations on the products of one pair of channels: to form them, to add more, and for the gradients of both operands.
struct ProductFlops {
  long form = 0, add = 0, gradients = 0;
  explicit ProductFlops(const FoldedProducts& folded) {
    const long complex = long(folded.complex.size()), others = long(folded.products.size());
    form = 10 * complex + others, add = 16 * complex + 2 * others;
    gradients = 20 * complex + 4 * others;
  }
};

// flops: of one pair of channels.
template <class T, class Store>
PlanProducts<T> build_products(Store& store, const FoldedProducts& folded, const BlockMap& forward, const BlockMap& backward, PassFlops& flops) {
  PlanProducts<T> plan{};
  // Numbers of products, sorted by row, as rows and as columns.
  const auto index = [&](size_t count, auto&& row_of, auto&& column_of, const int*& row_begin, int& row_count, const int*& column_begin, const int*& column_product,
                         int& column_count) {
    std::vector<int> rows, columns, products;
    std::map<int, std::vector<int>> by_column;
    for (size_t p = 0; p < count; ++p) {
      if (p == 0 || row_of(p) != row_of(p - 1)) rows.push_back(int(p));
      by_column[column_of(p)].push_back(int(p));
    }
    for (const auto& [j, column] : by_column) {
      columns.push_back(int(products.size()));
      products.insert(products.end(), column.begin(), column.end());
    }
    row_count = int(rows.size()), column_count = int(columns.size());
    rows.push_back(int(count)), columns.push_back(int(count));
    row_begin = store.ints(rows), column_begin = store.ints(columns), column_product = store.ints(products);
  };
  const auto& complex = folded.complex;
  const auto& others = folded.products;
  index(complex.size(), [&](size_t p) { return complex[p].x[0]; }, [&](size_t p) { return complex[p].y[0]; }, plan.complex_row_begin, plan.complex_rows,
        plan.complex_column_begin, plan.complex_column_product, plan.complex_columns);
  index(others.size(), [&](size_t p) { return others[p].first; }, [&](size_t p) { return others[p].second; }, plan.row_begin, plan.rows, plan.column_begin,
        plan.column_product, plan.columns);
  std::vector<int> x, y;
  for (const auto& [i, j] : others) x.push_back(i), y.push_back(j);
  plan.complex_count = int(complex.size()), plan.count = int(others.size()), plan.products = 4 * plan.complex_count + plan.count;
  plan.complex = store.items(complex), plan.x_component = store.ints(x), plan.y_component = store.ints(y);
  const ProductFlops each(folded);
  flops.forward += each.form + 2 * forward.multiply_adds;
  flops.backward += each.gradients + 2 * backward.multiply_adds;
  flops.double_backward += each.form + each.add + each.gradients + 2 * (forward.multiply_adds + backward.multiply_adds);
  flops.result += each.form + 2 * forward.multiply_adds;
  plan.forward = build_map<T>(store, forward), plan.backward = build_map<T>(store, backward);
  return plan;
}

// What the Gaunt and the matrix product share: the components of a channel, in the order of the blocks.
template <class Component, class Store>
std::vector<Component> slot_components(PlanSlot& plan, const ChannelSlot& slot, Store& store) {
  std::vector<Component> components;
  std::vector<Strided> places;
  plan.direct = true;
  for (size_t b = 0; b < slot.blocks.size(); ++b) {
    const IrrepsBlock& block = slot.blocks[b];
    for (int m = 0; m <= 2 * block.l; ++m) {
      plan.direct &= block.mul == 1 && block.at(0, m) == int(places.size());
      components.push_back({block.l, m - block.l, slot.parts[b]});
      places.push_back({block.at(0, m), block.channel});
    }
  }
  plan.dim = slot.dim;
  plan.components = int(components.size());
  plan.channel = store.items(std::move(places));
  return components;
}

// Parts of a slot that products have. Another part of an input is there for nothing: its gradient is zero, and is not to be read off what no product has written.
struct ReachedParts {
  std::set<int> parts;
  ReachedParts(const std::vector<PlanProduct>& products, int slot) {
    for (const PlanProduct& p : products) parts.insert(slot == 0 ? p.part1 : slot == 1 ? p.part2 : p.part_out);
  }
  long count() const { return long(parts.size()); }
  // Entries into components of other parts.
  template <class Component>
  void keep(std::vector<MapEntry>& entries, const std::vector<Component>& components) const {
    std::erase_if(entries, [&](const MapEntry& e) { return parts.count(components[size_t(e.output)].part) == 0; });
  }
};

// Whether a slot's signals are folded: plan.hpp.
template <class Store, class Component>
bool folds(const std::vector<Component>& components) {
  return !Store::on_device || std::any_of(components.begin(), components.end(), [&](const Component& c) { return c.l != components[0].l; });
}

}  // namespace equitensor
