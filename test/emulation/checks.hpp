// A check runs one kernel and returns false, with the reason on stderr, if the emulation or the result says that it is wrong.
#pragma once
#include "cuda/device.cuh"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

struct Check {
  const char* name;
  bool (*run)();
};
extern const std::vector<Check> good_checks, broken_checks, measurements;

inline bool expect(bool condition, const char* what) {
  if (!condition) std::fprintf(stderr, "failed: %s\n", what);
  return condition;
}
inline bool succeeded(cudaError_t error) {
  if (error) std::fprintf(stderr, "launch returned %d\n", static_cast<int>(error));
  return !error;
}
// Numbers in [-0.5, 0.5).
inline std::vector<float> random_floats(size_t count) {
  std::vector<float> v(count);
  for (float& x : v) x = static_cast<float>(std::rand() / (RAND_MAX + 1.0) - 0.5);
  return v;
}
// Sums of up to 2000 such numbers or their products in float: 2000 * 2^-24 is about 1e-4.
inline bool is_close(double value, double reference) {
  if (std::isnan(value)) std::fprintf(stderr, "NaN in the result\n");
  return std::abs(value - reference) < 1e-4;
}
