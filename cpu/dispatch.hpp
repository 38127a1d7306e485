// The kernels that this processor can run.
#pragma once
#include "cpu/plan.hpp"
#include <string>
#include <vector>

namespace equitensor {

// Variants that this binary has and this processor can run, the fastest last; without "counted".
std::vector<std::string> variants();

// By name, "" for the fastest; null if there is none of that name here. EQUITENSOR_CPU in the environment names the default.
const Kernels* find_kernels(const std::string& variant);

}  // namespace equitensor
