#include "cpu/dispatch.hpp"
#include <cstdlib>

namespace equitensor {

namespace baseline { const Kernels& kernels(); }
#if defined(EQUITENSOR_HAS_AVX2)
namespace avx2 { const Kernels& kernels(); }
#endif
#if defined(EQUITENSOR_HAS_AVX512)
namespace avx512 { const Kernels& kernels(); }
#endif
namespace counted { const Kernels& kernels(); }

namespace {
std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found{&baseline::kernels()};
#if defined(EQUITENSOR_HAS_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels());
#endif
#if defined(EQUITENSOR_HAS_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&avx512::kernels());
#endif
  return found;
}
}  // namespace

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const Kernels* k : runnable()) names.push_back(k->name);
  return names;
}

const Kernels* find_kernels(const std::string& variant) {
  if (variant == "counted") return &counted::kernels();
  const std::vector<const Kernels*> found = runnable();
  const char* preferred = std::getenv("EQUITENSOR_CPU");
  const std::string name = !variant.empty() ? variant : preferred ? preferred : "";
  if (name.empty()) return found.back();
  for (const Kernels* k : found)
    if (name == k->name) return k;
  return nullptr;
}

}  // namespace equitensor
