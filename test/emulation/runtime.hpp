// The part of CUDA's runtime API that launches need. A launch is enqueued; without streams that means: runs at once.
#pragma once
#include <functional>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
using cudaStream_t = struct CUstream_st*;

namespace emulated {
inline cudaError_t enqueue(cudaStream_t, std::function<cudaError_t()> work) { return work(); }
}  // namespace emulated
