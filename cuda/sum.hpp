// out = a + b, for gradients that are sums of two passes. Only enqueues.
#pragma once
#ifndef EQUITENSOR_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace equitensor::cuda {

// Aligned as arrays of their dtype are; out may be a or b.
cudaError_t enqueue_sum(bool is_double, const void* a, const void* b, void* out, long long count, cudaStream_t stream);

}  // namespace equitensor::cuda
