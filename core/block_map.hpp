// A sparse linear map cut into small dense blocks: the shape that every operation's coefficients take.
//
// Outputs that read (nearly) the same inputs form a block, so that an input is loaded once for all of them while their
// sums stay in registers. For a Clebsch-Gordan pair the blocks are the orders m3 (all l3 of one parity at once), for a
// Legendre transform they are the orders m (all rings at once). Compared with one multiply-add an entry through a list of
// (input, output, value), this needs 1.2 loads a multiply-add instead of 2 or 3.
#pragma once
#include <algorithm>
#include <map>
#include <vector>

namespace equitensor {

struct MapEntry {
  int input, output;
  double value;
};

struct MapBlock {
  std::vector<int> sources, outputs;
  std::vector<double> coefficients;  // [source][output]
};

struct BlockMap {
  std::vector<MapBlock> blocks;
  long multiply_adds = 0;
};

// Outputs without an entry are in a block without sources, and written as zero; or they are left as they are.
enum class Missing { zero, untouched };
inline BlockMap make_block_map(int outputs, const std::vector<MapEntry>& entries, Missing missing = Missing::zero) {
  constexpr int max_outputs = 12;
  std::vector<std::map<int, double>> rows(outputs);
  for (const MapEntry& e : entries) rows[e.output][e.input] += e.value;

  struct Group {
    std::vector<int> outputs;
    std::map<int, int> sources;  // input -> number of entries
    size_t entries = 0;
  };
  std::vector<Group> groups;
  for (int o = 0; o < outputs; ++o) {
    if (missing == Missing::untouched && rows[o].empty()) continue;
    Group* best = nullptr;
    for (Group& g : groups) {
      if (int(g.outputs.size()) >= max_outputs || g.sources.empty() != rows[o].empty()) continue;
      size_t added = 0;
      for (const auto& [input, value] : rows[o]) added += !g.sources.count(input);
      const size_t area = (g.sources.size() + added) * (g.outputs.size() + 1);
      // Accidental zeros (about 1 % of the Clebsch-Gordan entries) may be multiplied rather than break up a block.
      if (area - (g.entries + rows[o].size()) <= area / 8) {
        best = &g;
        break;
      }
    }
    if (!best) best = &groups.emplace_back();
    best->outputs.push_back(o);
    best->entries += rows[o].size();
    for (const auto& [input, value] : rows[o]) ++best->sources[input];
  }

  BlockMap map;
  for (const Group& g : groups) {
    MapBlock block;
    block.outputs = g.outputs;
    for (const auto& [input, count] : g.sources) {
      block.sources.push_back(input);
      for (int o : g.outputs) {
        auto found = rows[o].find(input);
        block.coefficients.push_back(found == rows[o].end() ? 0 : found->second);
      }
    }
    map.multiply_adds += long(block.coefficients.size());
    map.blocks.push_back(std::move(block));
  }
  return map;
}

inline std::vector<MapEntry> transposed(std::vector<MapEntry> entries) {
  for (MapEntry& e : entries) std::swap(e.input, e.output);
  return entries;
}

}  // namespace equitensor
