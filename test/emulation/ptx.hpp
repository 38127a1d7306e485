// Runs what nvcc made of the kernels: their PTX, on the emulated device's memory, a warp at a time. It checks nvcc's own output where no GPU
// is, and counts what a GPU would issue.
//
// A register is 32 slots of 64 bits, one a lane, of which an instruction reads as many bits as its type has. Immediates, special registers
// and addresses of variables are registers that nobody writes, so that an instruction's operands are register numbers only. Lanes that a
// branch parts go one way, then the other, and meet where all ways meet: at the branch's immediate postdominator, where ptxas has them
// meet as well. The warps of a block run one after another from barrier to barrier, blocks in order.
#pragma once
#include "test/emulation/block.hpp"
#include "test/emulation/runtime.hpp"
#include <limits>
#include <map>
#include <stdexcept>
#include <string_view>
#include <unordered_map>

namespace emulated::ptx {

// ---- what a text is made of

enum class Space : uint8_t { generic, global, shared, param };
enum class Control : uint8_t { none, branch, barrier, exit };

struct Warp;
struct Instruction;
using Execute = void (*)(Warp&, const Instruction&);

constexpr uint32_t no_register = ~0u;
constexpr int most_operands = 6;

// In the C++ sources, where nvcc was given -lineinfo.
struct Place {
  uint32_t file = 0, line = 0;
};

struct Instruction {
  Execute execute = nullptr;
  Control control = Control::none;
  Space space = Space::generic;
  uint8_t width = 1;  // numbers that a load or store moves
  bool negated = false;
  bool ends_block = false;
  uint32_t predicate = no_register;
  uint32_t operand[most_operands] = {};  // destinations first; of a load or store the address first
  int64_t offset = 0;                    // of a load or store
  uint32_t target = 0;                   // of a branch
  uint32_t kind = 0;                     // its text's number in Kernel::kinds
  uint32_t issued = 1;                   // machine instructions
  uint32_t line = 0;     // of the text
  Place place;
};

// Instructions with one way in and one way out; `meet` is the first instruction of its immediate postdominator.
struct BasicBlock {
  uint32_t begin, end, meet;
};

struct Kernel {
  struct Parameter {
    size_t at, bytes;
  };
  std::string name;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t static_bytes = 0;  // of shared memory; the dynamic one lies behind
  std::vector<Instruction> code;  // the last one is an exit
  std::vector<BasicBlock> blocks;
  std::vector<uint32_t> block_of;  // by instruction
  uint32_t registers = 0;
  std::vector<std::pair<uint32_t, uint64_t>> constants;   // register, value
  std::vector<std::pair<uint32_t, std::string>> special;  // register, name
  std::vector<std::string> kinds;                         // "fma.rn.f32"
  std::vector<std::string> source;                        // by instruction, for messages
  std::map<uint32_t, std::string> files;                  // by their number in Place
};

// All kernels of a text.
std::vector<Kernel> parse(const std::string& text);

// How an instruction is written, and what it does: "d" is a register that it writes, "a" one that it reads, "|" joins two destinations.
struct Form {
  Execute execute;
  uint32_t operands;
  uint32_t issued = 1;
};
// By the instruction's text; null if it is not known. Loads, stores and what decides about the way through the kernel are not among them.
const Form* find_form(std::string_view text);
// Of ld and st: by type and whether it stores.
Execute find_access(std::string_view type, bool stores);
// Of red.global.add, by type.
Execute find_addition(std::string_view type);

// ---- a launch

// What a thread's register of that name says; null: not known.
using Special = uint64_t (*)(unsigned thread, uint3 block, const Launch&);
Special special_register(std::string_view name);

struct Failure {  // thrown by instructions
  std::string what;
};

struct Piece {
  uintptr_t begin, end;
  bool is_array;
};

// What the warps of a launch share.
struct Run {
  const Kernel* kernel;
  const std::vector<char>* parameters;
  char* shared;
  size_t shared_bytes;
  std::vector<Piece> memory;  // of the device, by address
  size_t last_piece = 0;
  bool counts = false;
  std::map<unsigned, uint64_t> loads, stores;
};

struct Way {
  uint32_t at, lanes, meet;  // next instruction; where it ends
};

struct Warp {
  Run* run = nullptr;
  uint64_t (*registers)[32] = nullptr;
  uint32_t active = 0, live = 0;
  unsigned first_thread = 0;
  bool at_barrier = false;
  std::vector<Way> ways;  // the last one runs
};

}  // namespace emulated::ptx
