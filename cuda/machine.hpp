// What a card can do at best, for `compare --backend cuda` to set against: its copy bandwidth and its multiply-add peak. Both only
// enqueue; the caller times them with events.
#pragma once
#ifndef EQUITENSOR_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace equitensor::cuda {

// Both pointers are aligned to 16 bytes.
cudaError_t enqueue_copy(const void* from, void* to, long long bytes, cudaStream_t stream);

// Independent chains of dependent multiply-adds in every thread of a grid that fills so many multiprocessors. `out` holds one number of
// the dtype, which tends to 1.
cudaError_t enqueue_fma_chain(bool is_double, int multiprocessors, long long iterations, void* out, cudaStream_t stream);
// Multiply-adds of such a call.
long long fma_chain_operations(int multiprocessors, long long iterations);

}  // namespace equitensor::cuda
