// Products of components in the form in which their map to outputs is smallest: the real and imaginary parts of complex products.
//
// Orders m and -m of a degree are the real and imaginary part of x_m. Of the four products of (x_a, x_-a) and (y_b, y_-b) the sums and differences that are
// the parts of x y and of conj(x) y couple to orders +-(a + b) and +-|a - b| alone, where each of the four couples to both. So a map of them has half the entries:
// of degrees 0 .. 5 with themselves a CGTP takes 14,222 operations instead of 21,438.
#pragma once
#include "arithmetic.hpp"
#include "block_map.hpp"
#include "plan.hpp"
#include <set>
#include <utility>

namespace equitensor {

struct FoldedProducts {
  // Sorted by x. Their numbers are x0 y0 - x1 y1, x0 y1 + x1 y0, x0 y0 + x1 y1, x1 y0 - x0 y1; entries name these first,
  std::vector<ComplexProduct> complex;
  std::vector<std::pair<int, int>> products;  // and then the products of these components, sorted
  std::vector<MapEntry> entries;
};

// What a complex product has to save to be formed: it takes 10 operations where four products take 4, and an entry of the map 2.
inline constexpr int entries_worth_folding = 4;

// A complex product where it saves `least_saved` entries. products: components of x and y, of a square's x_i x_j in either order. opposite_x(c): the component
// of the opposite order, which is c itself at order 0.
template <class OppositeX, class OppositeY>
FoldedProducts fold_orders(const std::vector<std::pair<int, int>>& products, const std::vector<MapEntry>& entries, bool square, int least_saved,
                           OppositeX&& opposite_x, OppositeY&& opposite_y) {
  std::map<std::pair<int, int>, std::map<int, double>> left;  // the products not yet taken, with their entries
  for (const auto& product : products) left[product];
  for (const MapEntry& e : entries) left[products[size_t(e.input)]][e.output] += e.value;
  const auto find = [&](int x, int y) {
    const auto found = left.find({x, y});
    return found == left.end() && square ? left.find({y, x}) : found;
  };

  FoldedProducts folded;
  for (const auto& [x, y] : products) {
    const int x1 = opposite_x(x), y1 = opposite_y(y);
    // Positive orders come behind negative ones. In a square x_a x_-a is one product, and the four are not four.
    if (x1 >= x || y1 >= y || (square && x == y)) continue;
    const decltype(left.end()) four[] = {find(x, y), find(x1, y1), find(x, y1), find(x1, y)};
    if (std::find(four, four + 4, left.end()) != four + 4) continue;
    std::set<int> outputs;
    double scale = 0;
    int saved = 0;
    for (const auto& product : four) {
      saved += int(product->second.size());
      for (const auto& [output, value] : product->second) outputs.insert(output), scale = std::max(scale, absolute(value));
    }
    const int first = int(4 * folded.complex.size());
    std::vector<MapEntry> entries_of_four;
    for (int output : outputs) {
      double c[4];
      for (int i = 0; i < 4; ++i) {
        const auto found = four[i]->second.find(output);
        c[i] = found == four[i]->second.end() ? 0 : found->second;
      }
      const double parts[] = {(c[0] - c[1]) / 2, (c[2] + c[3]) / 2, (c[0] + c[1]) / 2, (c[3] - c[2]) / 2};
      // What cancels leaves a few ulp.
      for (int i = 0; i < 4; ++i)
        if (absolute(parts[i]) > 1e-13 * scale) entries_of_four.push_back({first + i, output, parts[i]});
    }
    if (saved - int(entries_of_four.size()) < least_saved) continue;
    folded.entries.insert(folded.entries.end(), entries_of_four.begin(), entries_of_four.end());
    folded.complex.push_back({{x, x1}, {y, y1}});
    for (const auto& product : four) left.erase(product);
  }
  for (const auto& [product, to] : left) {
    const int input = int(4 * folded.complex.size() + folded.products.size());
    for (const auto& [output, value] : to) folded.entries.push_back({input, output, value});
    folded.products.push_back(product);
  }
  return folded;
}

}  // namespace equitensor
