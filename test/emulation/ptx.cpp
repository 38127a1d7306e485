#include "test/emulation/ptx.hpp"
#include <dlfcn.h>
#include <elf.h>
#include <fstream>
#include <iterator>
#include <memory>

namespace emulated::ptx {
namespace {

// ---- kernels by their address

// nvcc and g++ name the unnamed namespace differently, and so kernels inside it: "41_GLOBAL__N__7aed1aae_9_matrix_cu_13099754" and "12_GLOBAL__N_1".
std::string without_namespace(std::string name) {
  const size_t at = name.find("_GLOBAL__N_");
  if (at == name.npos) return name;
  size_t digits = at;
  while (digits > 0 && std::isdigit(name[digits - 1])) --digits;
  return name.erase(digits, at - digits + std::strtoull(name.c_str() + digits, nullptr, 10));
}

// The functions of the binary that this is part of. Kernels are local, so the loader does not know them: the file's symbol table does.
std::unordered_map<std::string, const void*> own_functions() {
  Dl_info self;
  if (!dladdr(reinterpret_cast<const void*>(own_functions), &self)) throw std::runtime_error("the binary cannot be found");
  std::ifstream stream(self.dli_fname, std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(stream), {}};
  const auto read = [&]<class T>(T value, size_t at) {
    if (at + sizeof(T) > file.size()) throw std::runtime_error(std::string(self.dli_fname) + " is no ELF file");
    std::memcpy(&value, file.data() + at, sizeof(T));
    return value;
  };
  std::unordered_map<std::string, const void*> functions;
  const auto header = read(Elf64_Ehdr{}, 0);
  for (size_t s = 0; s < header.e_shnum; ++s) {
    const auto table = read(Elf64_Shdr{}, header.e_shoff + s * sizeof(Elf64_Shdr));
    if (table.sh_type != SHT_SYMTAB) continue;
    const auto names = read(Elf64_Shdr{}, header.e_shoff + table.sh_link * sizeof(Elf64_Shdr));
    for (size_t at = 0; at < table.sh_size; at += sizeof(Elf64_Sym)) {
      const auto symbol = read(Elf64_Sym{}, table.sh_offset + at);
      if (ELF64_ST_TYPE(symbol.st_info) == STT_FUNC)
        functions[without_namespace(file.data() + names.sh_offset + symbol.st_name)] = static_cast<const char*>(self.dli_fbase) + symbol.st_value;
    }
  }
  return functions;
}

std::mutex kernels_mutex;
std::unordered_map<const void*, std::shared_ptr<const Kernel>> kernels;

std::shared_ptr<const Kernel> find(const void* address) {
  const std::lock_guard lock(kernels_mutex);
  const auto found = kernels.find(address);
  return found == kernels.end() ? nullptr : found->second;
}

// ---- a block

// Executed how often, and by how many lanes.
struct BlockCount {
  uint64_t warps = 0, lanes = 0;
};

class Grid {
 public:
  Grid(const Kernel& kernel, const Launch& launch, std::span<const Argument> arguments) : kernel_(kernel), launch_(launch), counts_(kernel.blocks.size()) {
    if (arguments.size() != kernel.parameters.size()) throw Failure{"takes " + std::to_string(kernel.parameters.size()) + " parameters in PTX"};
    parameters_.resize(kernel.parameter_bytes);
    for (size_t p = 0; p < arguments.size(); ++p) {
      if (arguments[p].bytes != kernel.parameters[p].bytes) throw Failure{"takes another parameter " + std::to_string(p) + " in PTX"};
      std::memcpy(parameters_.data() + kernel.parameters[p].at, arguments[p].data, arguments[p].bytes);
    }
    shared_.resize(kernel.static_bytes + launch.shared_bytes);
    if (shared_.size() > launch.shared_limit) throw Failure{"takes more shared memory than is allowed"};
    run_.kernel = &kernel;
    run_.parameters = &parameters_;
    run_.shared = shared_.data();
    run_.shared_bytes = shared_.size();
    for (const DeviceMemory& m : device_memory()) {
      const auto begin = reinterpret_cast<uintptr_t>(m.begin);
      run_.memory.push_back({begin, begin + m.bytes, m.from_pool});
    }
    run_.counts = detail::traffic != nullptr;

    const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
    warps_.resize((threads + 31) / 32);
    registers_.resize(warps_.size() * kernel.registers * 32);
    for (size_t w = 0; w < warps_.size(); ++w) {
      Warp& warp = warps_[w];
      warp.run = &run_;
      warp.registers = reinterpret_cast<uint64_t(*)[32]>(registers_.data() + w * kernel.registers * 32);
      warp.first_thread = unsigned(w) * 32;
      for (const auto& [number, value] : kernel.constants) std::fill_n(warp.registers[number], 32, value);
    }
  }

  void run_block(uint3 index) {
    std::fill(shared_.begin(), shared_.end(), char(0xff));
    const unsigned threads = launch_.block.x * launch_.block.y * launch_.block.z;
    for (Warp& warp : warps_) {
      const unsigned lanes = std::min(32u, threads - warp.first_thread);
      for (const auto& [number, name] : kernel_.special)
        for (unsigned lane = 0; lane < lanes; ++lane) warp.registers[number][lane] = special_register(name)(warp.first_thread + lane, index, launch_);
      warp.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
      warp.ways = {{0, warp.live, uint32_t(kernel_.code.size())}};
    }
    for (bool goes_on = true; goes_on;) {
      goes_on = false;
      for (Warp& warp : warps_) {
        warp.at_barrier = false;
        if (!warp.ways.empty()) run_warp(warp, index);
        goes_on |= warp.at_barrier;
      }
      barriers += goes_on;
    }
  }

  // What ran, to the counters.
  void report(CountedLaunch& counted) const {
    counted.barriers = barriers;
    if (!run_.counts) return;
    for (size_t b = 0; b < counts_.size(); ++b) {
      for (uint32_t at = kernel_.blocks[b].begin; at < kernel_.blocks[b].end && counts_[b].warps; ++at) {
        const Instruction& i = kernel_.code[at];
        if (i.issued == 0) continue;
        counted.instructions.warp += i.issued * counts_[b].warps;
        counted.instructions.thread += i.issued * counts_[b].lanes;
        counted.instructions.kinds[kernel_.kinds[i.kind]] += i.issued * counts_[b].warps;
        if (const auto file = kernel_.files.find(i.place.file); file != kernel_.files.end())
          counted.instructions.lines[file->second + ':' + std::to_string(i.place.line)] += i.issued * counts_[b].warps;
      }
    }
    counted.accesses = {run_.loads, run_.stores};
  }

  uint64_t barriers = 0;

 private:
  // To the next barrier, or to the end.
  void run_warp(Warp& warp, uint3 block) {
    const Instruction* code = kernel_.code.data();
    while (!warp.ways.empty()) {
      Way& way = warp.ways.back();
      way.lanes &= warp.live;
      if (way.at == way.meet || way.lanes == 0) {
        warp.ways.pop_back();
        continue;
      }
      BlockCount& count = counts_[kernel_.block_of[way.at]];
      ++count.warps;
      count.lanes += unsigned(std::popcount(way.lanes));
      // One basic block.
      for (const Instruction* i = code + way.at;; ++i) {
        ++way.at;
        warp.active = way.lanes;
        if (i->predicate != no_register) {
          uint32_t holds = 0;
          for (int lane = 0; lane < 32; ++lane) holds |= uint32_t(warp.registers[i->predicate][lane] != 0) << lane;
          warp.active &= i->negated ? ~holds : holds;
        }
        if (i->control == Control::none) {
          try {
            if (warp.active) i->execute(warp, *i);
          } catch (const Failure& failure) {
            throw Failure{at(*i, warp, block) + ": " + failure.what};
          }
        } else if (i->control == Control::exit) {
          warp.live &= ~warp.active;
        } else if (i->control == Control::barrier) {
          if (way.lanes != warp.live) throw Failure{at(*i, warp, block) + ": barrier divergence: other lanes of the warp are elsewhere"};
          warp.at_barrier = true;
          return;
        } else if (warp.active == way.lanes) {
          way.at = i->target;
        } else if (warp.active) {
          part(warp, *i, kernel_.blocks[kernel_.block_of[size_t(i - code)]].meet);
        }
        if (i->ends_block) break;
      }
    }
  }

  // The active lanes jump, the others go on, and both meet again.
  static void part(Warp& warp, const Instruction& branch, uint32_t meet) {
    Way& way = warp.ways.back();
    const Way stays{way.at, way.lanes & ~warp.active, meet}, jumps{branch.target, warp.active, meet};
    way.at = meet;
    if (way.at == way.meet) warp.ways.pop_back();
    for (const Way& next : {stays, jumps})
      if (next.at != meet) warp.ways.push_back(next);
  }

  std::string at(const Instruction& i, const Warp& warp, uint3 block) const {
    return "line " + std::to_string(i.line) + ", '" + kernel_.source[size_t(&i - kernel_.code.data())] + "', warp " + std::to_string(warp.first_thread / 32) + " of block (" +
           std::to_string(block.x) + "," + std::to_string(block.y) + "," + std::to_string(block.z) + ")";
  }

  const Kernel& kernel_;
  const Launch& launch_;
  std::vector<char> parameters_, shared_;
  Run run_;
  std::vector<Warp> warps_;
  std::vector<uint64_t> registers_;
  std::vector<BlockCount> counts_;
};

std::optional<bool> run(const void* address, const Launch& launch, std::span<const Argument> arguments) {
  const std::shared_ptr<const Kernel> kernel = find(address);
  if (!kernel) return std::nullopt;
  CountedLaunch counted;
  try {
    Grid grid(*kernel, launch, arguments);
    const dim3 size = launch.grid;
    const uint64_t blocks = uint64_t(size.x) * size.y * size.z, last = device.last_blocks;
    for (uint64_t b = last && last < blocks ? blocks - last : 0; b < blocks; ++b)
      grid.run_block({unsigned(b % size.x), unsigned(b / size.x % size.y), unsigned(b / size.x / size.y)});
    grid.report(counted);
    return true;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "PTX of %s: %s\n", kernel->name.c_str(), failure.what.c_str());
    return false;
  }
}

}  // namespace

Special special_register(std::string_view name) {
  if (name == "%tid.x") return [](unsigned t, uint3, const Launch& l) { return uint64_t(t % l.block.x); };
  if (name == "%tid.y") return [](unsigned t, uint3, const Launch& l) { return uint64_t(t / l.block.x % l.block.y); };
  if (name == "%tid.z") return [](unsigned t, uint3, const Launch& l) { return uint64_t(t / l.block.x / l.block.y); };
  if (name == "%laneid") return [](unsigned t, uint3, const Launch&) { return uint64_t(t % 32); };
  if (name == "%ntid.x") return [](unsigned, uint3, const Launch& l) { return uint64_t(l.block.x); };
  if (name == "%ntid.y") return [](unsigned, uint3, const Launch& l) { return uint64_t(l.block.y); };
  if (name == "%ntid.z") return [](unsigned, uint3, const Launch& l) { return uint64_t(l.block.z); };
  if (name == "%ctaid.x") return [](unsigned, uint3 b, const Launch&) { return uint64_t(b.x); };
  if (name == "%ctaid.y") return [](unsigned, uint3 b, const Launch&) { return uint64_t(b.y); };
  if (name == "%ctaid.z") return [](unsigned, uint3 b, const Launch&) { return uint64_t(b.z); };
  if (name == "%nctaid.x") return [](unsigned, uint3, const Launch& l) { return uint64_t(l.grid.x); };
  if (name == "%nctaid.y") return [](unsigned, uint3, const Launch& l) { return uint64_t(l.grid.y); };
  if (name == "%nctaid.z") return [](unsigned, uint3, const Launch& l) { return uint64_t(l.grid.z); };
  return nullptr;
}

}  // namespace emulated::ptx

namespace emulated {

void interpret(const std::string& text) {
  static const auto functions = ptx::own_functions();
  std::unordered_map<const void*, std::shared_ptr<const ptx::Kernel>> found;
  for (ptx::Kernel& kernel : ptx::parse(text)) {
    const auto function = functions.find(ptx::without_namespace(kernel.name));
    if (function == functions.end()) throw std::runtime_error("PTX of " + kernel.name + ": the binary has no such kernel");
    found[function->second] = std::make_shared<ptx::Kernel>(std::move(kernel));
  }
  const std::lock_guard lock(ptx::kernels_mutex);
  for (auto& [address, kernel] : found) ptx::kernels[address] = std::move(kernel);
  detail::interpreter = ptx::run;
}

void forget_ptx() {
  const std::lock_guard lock(ptx::kernels_mutex);
  ptx::kernels.clear();
  detail::interpreter = nullptr;
}

}  // namespace emulated
