// From nvcc's text to kernels. nvcc writes one statement a line, which is what is read here; "PTX ISA", 4 and 5.
#include "test/emulation/ptx.hpp"
#include <charconv>
#include <optional>
#include <unordered_set>

namespace emulated::ptx {
namespace {

constexpr uint32_t no_block = ~0u;

[[noreturn]] void fail(const std::string& where, const std::string& what) { throw std::runtime_error("PTX of " + where + ": " + what); }

// "a.b.c" to its parts.
std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; (at = text.find_first_not_of(separators, at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(separators, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end;
  }
  return parts;
}

// ".align 16 .b8 name[1024]" or ".u64 name": a variable in shared memory, or a parameter.
struct Variable {
  std::string name;
  size_t bytes = 0, align = 1;
};
Variable read_variable(std::string_view text) {
  Variable v;
  const auto words = split(text, " \t,;");
  size_t element = 0;
  for (size_t w = 0; w < words.size(); ++w) {
    if (words[w] == ".align") {
      std::from_chars(words[w + 1].begin(), words[w + 1].end(), v.align);
      ++w;
    } else if (words[w].size() > 2 && words[w][0] == '.' && std::isdigit(words[w][2])) {
      size_t bits = 0;
      std::from_chars(words[w].begin() + 2, words[w].end(), bits);
      element = bits / 8;
    } else if (words[w][0] != '.') {
      const size_t bracket = words[w].find('[');
      v.name = words[w].substr(0, bracket);
      size_t count = 1;
      if (bracket != words[w].npos) count = std::strtoull(std::string(words[w].substr(bracket + 1)).c_str(), nullptr, 10);  // 0 for "[]"
      v.bytes = count * element;
    }
  }
  v.align = std::max(v.align, element);
  return v;
}

class Reader {
 public:
  Reader(std::string name, const std::vector<Variable>& shared) : shared_(shared) { kernel_.name = std::move(name); }

  void parameter(std::string_view text) {
    const Variable v = read_variable(text);
    const size_t at = place(kernel_.parameter_bytes, v);
    kernel_.parameters.push_back({at, v.bytes});
    addresses_[v.name] = at;
  }
  void label(std::string_view name) { labels_[std::string(name)] = uint32_t(kernel_.code.size()); }
  // ".loc 3 107 12": what follows is of line 107 of the third file.
  void location(std::string_view text) {
    const auto words = split(text, " \t,");
    std::from_chars(words[1].begin(), words[1].end(), place_.file);
    std::from_chars(words[2].begin(), words[2].end(), place_.line);
  }
  // ".reg .f32 %f<39>": %f1 to %f38
  void registers(std::string_view text) {
    const size_t name = text.find('%');
    declared_.emplace(text.substr(name, text.find('<') - name));
  }
  void shared_variable(std::string_view text) {
    const Variable v = read_variable(text);
    addresses_[v.name] = place(kernel_.static_bytes, v);
  }

  void statement(std::string_view text, uint32_t line) {
    Instruction i;
    i.line = line;
    i.place = place_;
    kernel_.source.emplace_back(text);
    std::vector<std::string_view> words = split(text, " \t,;{}|");
    if (words.empty()) unknown(line);
    size_t next = 0;
    if (words[0][0] == '@') {
      i.negated = words[0][1] == '!';
      i.predicate = operand(words[0].substr(i.negated ? 2 : 1), line);
      ++next;
    }
    const std::string_view name = words[next++];
    const std::vector<std::string_view> operands(words.begin() + long(next), words.end());
    const auto parts = split(name, ".");
    if (name == "bra" || name == "bra.uni") {
      i.control = Control::branch;
      if (operands.size() != 1) unknown(line);
      jumps_.emplace_back(kernel_.code.size(), operands[0]);
    } else if (name == "ret" || name == "exit") {
      i.control = Control::exit;
    } else if (name == "bar.sync") {
      i.control = Control::barrier;
      if (operands.size() != 1 || operands[0] != "0" || i.predicate != no_register) unknown(line);
    } else if (parts[0] == "ld" || parts[0] == "st" || name.starts_with("red.global.add.")) {
      access(i, parts, operands, line);
    } else {
      // Of the two halves of a register of 64 bits, which are in braces.
      const bool has_halves = name == "mov.b64" && operands.size() == 3;
      const Form* form = find_form(!has_halves ? name : text.data() + text.find('{') < operands[0].data() ? "mov.b64 {d,d},a" : "mov.b64 d,{a,a}");
      if (!form || form->operands != operands.size()) unknown(line);
      i.execute = form->execute;
      i.issued = form->issued;
      for (size_t n = 0; n < operands.size(); ++n) i.operand[n] = operand(operands[n], line);
    }
    const auto [kind, is_new] = kinds_.emplace(name, uint32_t(kernel_.kinds.size()));
    if (is_new) kernel_.kinds.emplace_back(name);
    i.kind = kind->second;
    kernel_.code.push_back(i);
  }

  Kernel finish() {
    if (kernel_.code.empty() || kernel_.code.back().control != Control::exit) statement("ret;", 0);
    for (const auto& [at, label] : jumps_) {
      const auto found = labels_.find(std::string(label));
      if (found == labels_.end()) fail(kernel_.name, "no label " + std::string(label));
      kernel_.code[at].target = found->second;
    }
    // Behind the static ones, as aligned as device.cuh declares it.
    for (const uint32_t c : dynamic_) kernel_.constants.emplace_back(c, kernel_.static_bytes = (kernel_.static_bytes + 15) / 16 * 16);
    make_blocks();
    return std::move(kernel_);
  }

 private:
  static size_t place(size_t& bytes, const Variable& v) {
    const size_t at = (bytes + v.align - 1) / v.align * v.align;
    bytes = at + v.bytes;
    return at;
  }
  [[noreturn]] void unknown(uint32_t line) const {
    fail(kernel_.name, "line " + std::to_string(line) + ": the interpreter does not know '" + kernel_.source.back() + "'");
  }

  // The register that holds an operand.
  uint32_t operand(std::string_view text, uint32_t line) {
    const auto [found, is_new] = registers_.emplace(text, kernel_.registers);
    if (!is_new) return found->second;
    const uint32_t number = kernel_.registers++;
    if (text[0] == '%') {
      if (declared_.contains(std::string(text.substr(0, text.find_last_not_of("0123456789") + 1)))) return number;
      if (!special_register(text)) unknown(line);
      kernel_.special.emplace_back(number, text);
    } else if (std::isdigit(text[0]) || text[0] == '-') {
      kernel_.constants.emplace_back(number, immediate(std::string(text)));
    } else if (const auto address = addresses_.find(std::string(text)); address != addresses_.end()) {
      kernel_.constants.emplace_back(number, address->second);
    } else {
      const auto variable = std::find_if(shared_.begin(), shared_.end(), [&](const Variable& v) { return v.name == text; });
      if (variable == shared_.end()) unknown(line);
      if (variable->bytes == 0) dynamic_.push_back(number);
      else kernel_.constants.emplace_back(number, addresses_[variable->name] = place(kernel_.static_bytes, *variable));
    }
    return number;
  }
  static uint64_t immediate(const std::string& text) {
    if (text.starts_with("0f") || text.starts_with("0d")) return std::strtoull(text.c_str() + 2, nullptr, 16);
    return text[0] == '-' ? uint64_t(std::strtoll(text.c_str(), nullptr, 0)) : std::strtoull(text.c_str(), nullptr, 0);
  }

  // ld[.space][.cache][.v2].type {d, ...}, [address]; st and red.global.add the other way round
  void access(Instruction& i, const std::vector<std::string_view>& parts, std::vector<std::string_view> operands, uint32_t line) {
    const bool stores = parts[0] != "ld", adds = parts[0] == "red";
    for (size_t p = 1; p + 1 < parts.size(); ++p) {
      if (parts[p] == "global") i.space = Space::global;
      else if (parts[p] == "shared") i.space = Space::shared;
      else if (parts[p] == "param") i.space = Space::param;
      else if (parts[p] == "v2") i.width = 2;
      else if (parts[p] == "v4") i.width = 4;
      else if (parts[p] != "nc" && parts[p] != "cs" && parts[p] != "cg" && !(adds && parts[p] == "add")) unknown(line);
    }
    i.execute = adds ? find_addition(parts.back()) : find_access(parts.back(), stores);
    if (!i.execute || operands.size() != i.width + 1u || (stores && i.space == Space::param)) unknown(line);
    if (!stores) std::rotate(operands.begin(), operands.end() - 1, operands.end());
    std::string_view address = operands[0];
    if (address.size() < 3 || address.front() != '[' || address.back() != ']') unknown(line);
    address = address.substr(1, address.size() - 2);
    const size_t plus = address.find('+');
    if (plus != address.npos) i.offset = int64_t(immediate(std::string(address.substr(plus + 1))));
    i.operand[0] = operand(address.substr(0, plus), line);
    for (size_t n = 1; n < operands.size(); ++n) i.operand[n] = operand(operands[n], line);
    if (i.space == Space::param) i.issued = 0;
  }

  void make_blocks() {
    auto& code = kernel_.code;
    const auto size = uint32_t(code.size());
    std::vector<bool> begins(size + 1);
    begins[0] = true;
    for (uint32_t at = 0; at < size; ++at) {
      if (code[at].control == Control::none) continue;
      begins[at + 1] = true;
      if (code[at].control == Control::branch) begins[code[at].target] = true;
    }
    for (uint32_t at = 0; at < size; ++at) {
      if (begins[at]) kernel_.blocks.push_back({at, at, size});
      kernel_.block_of.push_back(uint32_t(kernel_.blocks.size() - 1));
      kernel_.blocks.back().end = at + 1;
      code[at].ends_block = begins[at + 1];
    }
    // Immediate postdominators, after Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm": dominators of the reversed graph, whose
    // root is the end of the kernel.
    const auto end = uint32_t(kernel_.blocks.size());
    std::vector<std::vector<uint32_t>> after(end + 1), before(end + 1);
    for (uint32_t b = 0; b < end; ++b) {
      const Instruction& last = code[kernel_.blocks[b].end - 1];
      const bool goes_on = last.control == Control::none || last.control == Control::barrier || last.predicate != no_register;
      if (last.control == Control::branch) after[b].push_back(kernel_.block_of[last.target]);
      if (last.control == Control::exit) after[b].push_back(end);
      if (goes_on) after[b].push_back(kernel_.blocks[b].end < size ? b + 1 : end);
      for (const uint32_t a : after[b]) before[a].push_back(b);
    }
    std::vector<uint32_t> order, number(end + 1, no_block), meet(end + 1, no_block);
    std::vector<std::pair<uint32_t, size_t>> path = {{end, 0}};
    std::vector<bool> seen(end + 1);
    seen[end] = true;
    while (!path.empty()) {
      auto& [b, visited] = path.back();
      if (visited < before[b].size()) {
        const uint32_t next = before[b][visited++];
        if (!seen[next]) seen[next] = true, path.emplace_back(next, 0);
      } else {
        number[b] = uint32_t(order.size());
        order.push_back(b);
        path.pop_back();
      }
    }
    meet[end] = end;
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t o = order.size() - 1; o-- > 0;) {
        const uint32_t b = order[o];
        uint32_t found = no_block;
        for (uint32_t a : after[b]) {
          if (number[a] == no_block || meet[a] == no_block) continue;
          if (found == no_block) found = a;
          while (found != a) {
            while (number[found] < number[a]) found = meet[found];
            while (number[a] < number[found]) a = meet[a];
          }
        }
        if (meet[b] != found) meet[b] = found, changed = true;
      }
    }
    for (uint32_t b = 0; b < end; ++b)
      if (meet[b] != no_block && meet[b] != end) kernel_.blocks[b].meet = kernel_.blocks[meet[b]].begin;
  }

  Kernel kernel_;
  Place place_;
  const std::vector<Variable>& shared_;
  std::unordered_map<std::string, size_t> addresses_;
  std::unordered_set<std::string> declared_;
  std::unordered_map<std::string, uint32_t> labels_, kinds_, registers_;
  std::vector<std::pair<size_t, std::string>> jumps_;
  std::vector<uint32_t> dynamic_;  // registers with the address of dynamic shared memory
};

}  // namespace

std::vector<Kernel> parse(const std::string& text) {
  std::vector<Kernel> kernels;
  std::vector<Variable> shared;  // of the whole text; without a size: the dynamic one
  std::map<uint32_t, std::string> files;
  std::optional<Reader> reader;
  bool in_body = false;
  uint32_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    ++number;
    line = line.substr(0, line.find("//"));
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == line.npos) continue;
    line = line.substr(first, line.find_last_not_of(" \t\r") + 1 - first);

    if (!reader) {
      if (line.starts_with(".file")) {  // 3 "path"
        const auto words = split(line, " \t\"");
        files[uint32_t(std::strtoul(std::string(words[1]).c_str(), nullptr, 10))] = words[2];
      } else if (const size_t entry = line.find(".entry "); entry != line.npos) {
        const std::string_view name = line.substr(entry + 7, line.find('(') - entry - 7);
        reader.emplace(std::string(name), shared);
        in_body = false;
      } else if (line.find(".shared ") != line.npos) {
        shared.push_back(read_variable(line));
      }
    } else if (!in_body) {
      if (line.starts_with(".param")) reader->parameter(line.substr(6));
      in_body = line == "{";
    } else if (line == "}") {
      kernels.push_back(reader->finish());
      reader.reset();
    } else if (line.back() == ':') {
      reader->label(line.substr(0, line.size() - 1));
    } else if (line.starts_with(".shared")) {
      reader->shared_variable(line.substr(7));
    } else if (line.starts_with(".reg")) {
      reader->registers(line);
    } else if (line.starts_with(".loc\t")) {
      reader->location(line);
    } else if (!line.starts_with(".pragma")) {
      reader->statement(line, number);
    }
  }
  for (Kernel& kernel : kernels) kernel.files = files;
  return kernels;
}

}  // namespace emulated::ptx
