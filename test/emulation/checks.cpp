// Runs one check by name; without a name, lists all.
#include "checks.hpp"
#include <cstring>

int main(int argument_count, char** arguments) {
  for (const auto* checks : {&good_checks, &broken_checks}) {
    for (const Check& check : *checks) {
      if (argument_count < 2) {
        std::printf("%s %s\n", checks == &good_checks ? "good" : "broken", check.name);
      } else if (!std::strcmp(arguments[1], check.name)) {
        return check.run() ? 0 : 1;
      }
    }
  }
  return argument_count < 2 ? 0 : 2;
}
