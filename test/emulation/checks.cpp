// Runs one check by name; without a name, lists all.
#include "checks.hpp"
#include <cstring>
#include <utility>

int main(int argument_count, char** arguments) {
  const std::pair<const char*, const std::vector<Check>&> kinds[] = {
      {"good", good_checks}, {"broken", broken_checks}, {"measurement", measurements}};
  for (const auto& [kind, checks] : kinds) {
    for (const Check& check : checks) {
      if (argument_count < 2) {
        std::printf("%s %s\n", kind, check.name);
      } else if (!std::strcmp(arguments[1], check.name)) {
        return check.run() ? 0 : 1;
      }
    }
  }
  return argument_count < 2 ? 0 : 2;
}
