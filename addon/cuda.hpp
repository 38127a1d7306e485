// The CUDA half of the addon, in binaries that have one.
#pragma once
#include <napi.h>

namespace equitensor::cuda {

// Adds `cuda`, an object with the functions that lib/native.ts describes.
void register_cuda(Napi::Env env, Napi::Object exports);

}  // namespace equitensor::cuda
