// The plan of a matrix product over a direct sum of irreps.
#pragma once
#include "build_plan.hpp"
#include "matrix.hpp"
#include "matrix_block.hpp"

namespace equitensor {

template <class T, class Store>
MatrixBlockPlan<T> matrix_block_plan(Store& store, int mul, const ChannelSlot (&slots)[3], const std::vector<MatrixBlockPath>& paths,
                                     PassFlops& flops) {
  MatrixBlockPlan<T> plan{};
  plan.mul = mul;
  for (int s = 0; s < 3; ++s) slot_components<MatrixComponent>(plan.slots[s], slots[s], store);
  PassFlops each;
  std::vector<int> opposite[2];
  for (int s = 0; s < 2; ++s)
    for (const IrrepsBlock& b : slots[s].blocks) append_opposite(opposite[s], 2 * b.l + 1);
  std::vector<PlanProducts<T>> chunks;
  for (const MatrixBlockChunk& chunk : matrix_block_chunks(slots, paths)) {
    const FoldedProducts folded = fold_orders(chunk.products, chunk.entries, false, least_saved<Store>, [&](int i) { return opposite[0][size_t(i)]; },
                                              [&](int j) { return opposite[1][size_t(j)]; });
    const BlockMap forward = make_block_map(plan.slots[2].components, folded.entries, Missing::untouched);
    const BlockMap backward = make_block_map(int(chunk.products.size()), transposed(folded.entries));
    chunks.push_back(build_products<T>(store, folded, forward, backward, each));
    plan.max_products = std::max(plan.max_products, chunks.back().products);
  }
  flops.add(mul, each);
  plan.chunk_count = int(chunks.size());
  plan.chunks = store.items(std::move(chunks));
  return plan;
}

}  // namespace equitensor
