// What each PTX instruction does ("PTX ISA", 9.7). Only what nvcc makes of cuda/*.cu, and its siblings of other types, which change between two
// versions of a kernel: anything else is an error that names it.
#include "test/emulation/ptx.hpp"
#include <cmath>

namespace emulated::ptx {
namespace {

template <class T>
T get(uint64_t slot) {
  if constexpr (std::is_same_v<T, bool>) return slot != 0;
  else if constexpr (std::is_same_v<T, float>) return std::bit_cast<float>(uint32_t(slot));
  else if constexpr (std::is_same_v<T, double>) return std::bit_cast<double>(slot);
  else return T(slot);
}
// A signed number is extended: a load may name a register that is wider than its type.
template <class T>
uint64_t put(T value) {
  if constexpr (std::is_same_v<T, float>) return std::bit_cast<uint32_t>(value);
  else if constexpr (std::is_same_v<T, double>) return std::bit_cast<uint64_t>(value);
  else return uint64_t(int64_t(value));
}

template <class Visit>
inline void for_each_lane(const Warp& warp, Visit&& visit) {
  if (warp.active == ~0u) {
    for (int lane = 0; lane < 32; ++lane) visit(lane);
  } else {
    for (uint32_t rest = warp.active; rest; rest &= rest - 1) visit(std::countr_zero(rest));
  }
}

// The value of `function` of one to three registers of types A.
template <auto function, class... A>
void compute(Warp& warp, const Instruction& i) {
  [&]<size_t... n>(std::index_sequence<n...>) {
    uint64_t* to = warp.registers[i.operand[0]];
    const uint64_t* from[] = {warp.registers[i.operand[1 + n]]...};
    for_each_lane(warp, [&](int lane) { to[lane] = put(function(get<A>(from[n][lane])...)); });
  }(std::index_sequence_for<A...>());
}

using Forms = std::unordered_map<std::string, Form>;

template <auto function, class... A>
constexpr Form form(uint32_t issued = 1) {
  return {compute<function, A...>, 1 + sizeof...(A), issued};
}

template <class T>
T shift_left(T v, uint32_t by) { return by >= 8 * sizeof(T) ? T(0) : T(v << by); }
template <class T>
T shift_right(T v, uint32_t by) {
  if (by >= 8 * sizeof(T)) return v < 0 ? T(-1) : T(0);
  return T(v >> by);
}

// Machine instructions that ptxas 13.0 makes for sm_90, where they are more than one: the code of a kernel with 24 of the instruction less
// that of one with 8, by 16; where the code is called, with its length. 64-bit integers lie in two registers.
template <class T>
constexpr uint32_t halves = sizeof(T) == 8 ? 2 : 1;
template <class T>
constexpr uint32_t division = sizeof(T) == 8 ? 85 : std::is_signed_v<T> ? 24 : 18;
template <class T>
constexpr uint32_t reciprocal = sizeof(T) == 8 ? 24 : 14;  // division and square root in floating point

template <class T>
T quotient(T a, T b) {
  if (b == 0) return T(-1);
  if constexpr (std::is_signed_v<T>)
    if (b == T(-1)) return T(0 - std::make_unsigned_t<T>(a));
  return T(a / b);
}
template <class T>
T modulo(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>)
    if (b == T(-1)) return T(0);
  return T(a % b);
}

template <class T>
void add_comparisons(Forms& f, const std::string& type, uint32_t issued) {
  const auto add = [&]<class Function>(const std::string& name, Function) {
    f["setp." + name + "." + type] = form<Function{}, T, T>(issued);
  };
  add("eq", [](T a, T b) { return a == b; });
  add("ne", [](T a, T b) { return a < b || a > b || (!std::is_floating_point_v<T> && a != b); });
  add("lt", [](T a, T b) { return a < b; });
  add("le", [](T a, T b) { return a <= b; });
  add("gt", [](T a, T b) { return a > b; });
  add("ge", [](T a, T b) { return a >= b; });
  if constexpr (std::is_floating_point_v<T>) {  // true also where one is NaN
    add("equ", [](T a, T b) { return !(a < b || a > b); });
    add("neu", [](T a, T b) { return a != b; });
    add("ltu", [](T a, T b) { return !(a >= b); });
    add("leu", [](T a, T b) { return !(a > b); });
    add("gtu", [](T a, T b) { return !(a <= b); });
    add("geu", [](T a, T b) { return !(a < b); });
    add("num", [](T a, T b) { return a == a && b == b; });
    add("nan", [](T a, T b) { return a != a || b != b; });
  }
}

template <class T>
void add_moves(Forms& f, const std::string& type) {
  f["mov." + type] = form<[](T a) { return a; }, T>(0);
  f["selp." + type] = form<[](T a, T b, bool c) { return c ? a : b; }, T, T, bool>(halves<T>);
}

template <class T>
void add_integer(Forms& f, const std::string& type) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  using U = std::make_unsigned_t<T>;
  const auto add = [&]<class Function>(const std::string& name, Function, uint32_t issued = halves<T>) {
    f[name + "." + type] = form<Function{}, T, T>(issued);
  };
  add("add", [](T a, T b) { return T(U(a) + U(b)); });
  add("sub", [](T a, T b) { return T(U(a) - U(b)); });
  add("mul.lo", [](T a, T b) { return T(Wide(a) * Wide(b)); }, sizeof(T) == 8 ? 4 : 1);
  add("mul.hi", [](T a, T b) { return T(Wide(a) * Wide(b) >> 8 * sizeof(T)); }, sizeof(T) == 8 ? 7 : 1);
  add("div", [](T a, T b) { return quotient(a, b); }, division<T>);
  add("rem", [](T a, T b) { return modulo(a, b); }, division<T>);
  add("min", [](T a, T b) { return b < a ? b : a; }, sizeof(T) == 8 ? 4 : 1);
  add("max", [](T a, T b) { return a < b ? b : a; }, sizeof(T) == 8 ? 4 : 1);
  f["mad.lo." + type] = form<[](T a, T b, T c) { return T(Wide(a) * Wide(b) + Wide(c)); }, T, T, T>(sizeof(T) == 8 ? 4 : 1);
  f["shr." + type] = form<shift_right<T>, T, uint32_t>(halves<T>);
  if constexpr (std::is_signed_v<T>) {
    f["neg." + type] = form<[](T a) { return T(0 - U(a)); }, T>(halves<T>);
    f["abs." + type] = form<[](T a) { return a < 0 ? T(0 - U(a)) : a; }, T>(halves<T>);
  }
  if constexpr (sizeof(T) < 8) {
    using Double = std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                      std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>>;
    f["mul.wide." + type] = form<[](T a, T b) { return Double(Wide(a) * Wide(b)); }, T, T>();
    f["mad.wide." + type] = form<[](T a, T b, Double c) { return Double(Wide(a) * Wide(b) + Wide(c)); }, T, T, Double>();
  }
  add_comparisons<T>(f, type, halves<T>);
  add_moves<T>(f, type);
}

template <class T>
void add_bits(Forms& f, const std::string& type) {
  const auto add = [&]<class Function>(const std::string& name, Function) { f[name + "." + type] = form<Function{}, T, T>(halves<T>); };
  add("and", [](T a, T b) { return T(a & b); });
  add("or", [](T a, T b) { return T(a | b); });
  add("xor", [](T a, T b) { return T(a ^ b); });
  f["not." + type] = form<[](T a) { return std::is_same_v<T, bool> ? T(!a) : T(~uint64_t(a)); }, T>(halves<T>);
  f["mov." + type] = form<[](T a) { return a; }, T>(0);
  if constexpr (!std::is_same_v<T, bool>) {
    add_moves<T>(f, type);
    add_comparisons<T>(f, type, halves<T>);
    f["shl." + type] = form<shift_left<T>, T, uint32_t>(halves<T>);
    f["shr." + type] = form<shift_right<T>, T, uint32_t>(halves<T>);
  }
}

template <class T>
void add_float(Forms& f, const std::string& type) {
  const auto add = [&]<class Function>(const std::string& name, Function) {
    f[name + "." + type] = form<Function{}, T, T>();
    f[name + ".rn." + type] = form<Function{}, T, T>();
  };
  add("add", [](T a, T b) { return a + b; });
  add("sub", [](T a, T b) { return a - b; });
  add("mul", [](T a, T b) { return a * b; });
  f["fma.rn." + type] = form<[](T a, T b, T c) { return std::fma(a, b, c); }, T, T, T>();
  f["div.rn." + type] = form<[](T a, T b) { return a / b; }, T, T>(reciprocal<T>);
  f["rcp.rn." + type] = form<[](T a) { return 1 / a; }, T>(reciprocal<T>);
  f["sqrt.rn." + type] = form<[](T a) { return std::sqrt(a); }, T>(reciprocal<T>);
  f["rsqrt.approx." + type] = form<[](T a) { return 1 / std::sqrt(a); }, T>();
  // The number where one is NaN; +0 is larger than -0.
  f["min." + type] = form<[](T a, T b) { return a == b ? (std::signbit(a) ? a : b) : std::fmin(a, b); }, T, T>(sizeof(T) == 8 ? 8 : 1);
  f["max." + type] = form<[](T a, T b) { return a == b ? (std::signbit(a) ? b : a) : std::fmax(a, b); }, T, T>(sizeof(T) == 8 ? 8 : 1);
  f["neg." + type] = form<[](T a) { return -a; }, T>();
  f["abs." + type] = form<[](T a) { return std::fabs(a); }, T>();
  add_comparisons<T>(f, type, 1);
  add_moves<T>(f, type);
}

// A narrower integer is the register's lower part, and a zero above it comes from the zero register.
template <class To, class From>
void add_integer_conversion(Forms& f, const std::string& to, const std::string& from) {
  const bool is_free = sizeof(To) <= sizeof(From) ? sizeof(To) >= 4 : !std::is_signed_v<From> && sizeof(From) == 4;
  f["cvt." + to + "." + from] = form<[](From a) { return To(a); }, From>(is_free ? 0 : 1);
}
template <class To>
void add_integer_conversions(Forms& f, const std::string& to) {
  add_integer_conversion<To, uint8_t>(f, to, "u8");
  add_integer_conversion<To, int8_t>(f, to, "s8");
  add_integer_conversion<To, uint16_t>(f, to, "u16");
  add_integer_conversion<To, int16_t>(f, to, "s16");
  add_integer_conversion<To, uint32_t>(f, to, "u32");
  add_integer_conversion<To, int32_t>(f, to, "s32");
  add_integer_conversion<To, uint64_t>(f, to, "u64");
  add_integer_conversion<To, int64_t>(f, to, "s64");
}
template <class Float, class Integer>
void add_float_conversion(Forms& f, const std::string& real, const std::string& integer) {
  f["cvt.rn." + real + "." + integer] = form<[](Integer a) { return Float(a); }, Integer>();
  f["cvt.rzi." + integer + "." + real] = form<[](Float a) {
    // Saturated, and NaN is 0.
    constexpr Float least = Float(std::numeric_limits<Integer>::min()), beyond = Float(std::numeric_limits<Integer>::max() / 2 + 1) * 2;
    if (!(a == a)) return Integer(0);
    return a <= least ? std::numeric_limits<Integer>::min() : a >= beyond ? std::numeric_limits<Integer>::max() : Integer(a);
  }, Float>();
}

uint32_t bit_field_insert(uint32_t a, uint32_t b, uint32_t at, uint32_t bits) {
  at &= 255, bits &= 255;
  if (at >= 32 || bits == 0) return b;
  const uint32_t mask = uint32_t(bits >= 32 ? ~0ull : (1ull << bits) - 1) << at;
  return (b & ~mask) | ((a << at) & mask);
}
uint32_t bit_field_extract(uint32_t a, uint32_t at, uint32_t bits) {
  at &= 255, bits &= 255;
  return at >= 32 ? 0 : uint32_t(a >> at & (bits >= 32 ? ~0ull : (1ull << bits) - 1));
}

// ---- across lanes

// Lanes of `mask` that have not returned must be here: with those that are elsewhere the result is undefined.
void require_together(const Warp& warp, int lane, uint32_t mask) {
  if (!(mask >> lane & 1)) throw Failure{"lane " + std::to_string(lane) + " is not in its own mask"};
  if (mask & warp.live & ~warp.active) throw Failure{"lanes of its mask are elsewhere"};
}
void synchronize_warp(Warp& warp, const Instruction& i) {
  for_each_lane(warp, [&](int lane) { require_together(warp, lane, uint32_t(warp.registers[i.operand[0]][lane])); });
}

enum class Shuffle { up, down, butterfly, index };
// d | p, value, lane or distance, segment, mask
template <Shuffle kind>
void shuffle(Warp& warp, const Instruction& i) {
  uint64_t value[32];
  std::memcpy(value, warp.registers[i.operand[2]], sizeof value);
  for_each_lane(warp, [&](int lane) {
    require_together(warp, lane, uint32_t(warp.registers[i.operand[5]][lane]));
    const int b = int(warp.registers[i.operand[3]][lane] & 31), c = int(warp.registers[i.operand[4]][lane]);
    const int segment = c >> 8 & 31, bound = (lane & segment) | (c & 31 & ~segment);
    int from = kind == Shuffle::up ? lane - b : kind == Shuffle::down ? lane + b : kind == Shuffle::butterfly ? lane ^ b : (lane & segment) | (b & ~segment);
    const bool is_inside = kind == Shuffle::up ? from >= bound : from <= bound;
    if (!is_inside) from = lane;
    if (!(warp.active >> from & 1)) throw Failure{"lane " + std::to_string(lane) + " reads lane " + std::to_string(from) + ", which is inactive"};
    warp.registers[i.operand[0]][lane] = uint32_t(value[from]);
    warp.registers[i.operand[1]][lane] = is_inside;
  });
}

// d, predicate, mask
template <auto function>
void vote(Warp& warp, const Instruction& i) {
  uint32_t votes = 0;
  for_each_lane(warp, [&](int lane) { votes |= uint32_t(warp.registers[i.operand[1]][lane] != 0) << lane; });
  for_each_lane(warp, [&](int lane) {
    const auto mask = uint32_t(warp.registers[i.operand[2]][lane]);
    require_together(warp, lane, mask);
    warp.registers[i.operand[0]][lane] = put(function(votes & mask, mask & warp.active));
  });
}

void take_halves(Warp& warp, const Instruction& i) {
  for_each_lane(warp, [&](int lane) {
    const uint64_t value = warp.registers[i.operand[2]][lane];
    warp.registers[i.operand[0]][lane] = uint32_t(value);
    warp.registers[i.operand[1]][lane] = value >> 32;
  });
}

Forms make_forms() {
  Forms f;
  f["mov.b64 {d,d},a"] = {take_halves, 3, 0};
  f["mov.b64 d,{a,a}"] = form<[](uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; }, uint32_t, uint32_t>(0);
  add_integer<int16_t>(f, "s16"), add_integer<uint16_t>(f, "u16");
  add_integer<int32_t>(f, "s32"), add_integer<uint32_t>(f, "u32");
  add_integer<int64_t>(f, "s64"), add_integer<uint64_t>(f, "u64");
  add_bits<bool>(f, "pred"), add_bits<uint16_t>(f, "b16"), add_bits<uint32_t>(f, "b32"), add_bits<uint64_t>(f, "b64");
  add_float<float>(f, "f32"), add_float<double>(f, "f64");

  add_integer_conversions<uint8_t>(f, "u8"), add_integer_conversions<int8_t>(f, "s8");
  add_integer_conversions<uint16_t>(f, "u16"), add_integer_conversions<int16_t>(f, "s16");
  add_integer_conversions<uint32_t>(f, "u32"), add_integer_conversions<int32_t>(f, "s32");
  add_integer_conversions<uint64_t>(f, "u64"), add_integer_conversions<int64_t>(f, "s64");
  add_float_conversion<float, int32_t>(f, "f32", "s32"), add_float_conversion<float, uint32_t>(f, "f32", "u32");
  add_float_conversion<float, int64_t>(f, "f32", "s64"), add_float_conversion<float, uint64_t>(f, "f32", "u64");
  add_float_conversion<double, int32_t>(f, "f64", "s32"), add_float_conversion<double, uint32_t>(f, "f64", "u32");
  add_float_conversion<double, int64_t>(f, "f64", "s64"), add_float_conversion<double, uint64_t>(f, "f64", "u64");
  f["cvt.rn.f32.f64"] = form<[](double a) { return float(a); }, double>();
  f["cvt.f64.f32"] = form<[](float a) { return double(a); }, float>();
  // Global memory has the same addresses in both spaces.
  f["cvta.to.global.u64"] = form<[](uint64_t a) { return a; }, uint64_t>(0);

  f["bfi.b32"] = form<bit_field_insert, uint32_t, uint32_t, uint32_t, uint32_t>(2);
  f["bfe.u32"] = form<bit_field_extract, uint32_t, uint32_t, uint32_t>(2);
  f["popc.b32"] = form<[](uint32_t a) { return std::popcount(a); }, uint32_t>();
  f["clz.b32"] = form<[](uint32_t a) { return std::countl_zero(a); }, uint32_t>(2);

  f["bar.warp.sync"] = {synchronize_warp, 1};
  f["shfl.sync.up.b32"] = {shuffle<Shuffle::up>, 6};
  f["shfl.sync.down.b32"] = {shuffle<Shuffle::down>, 6};
  f["shfl.sync.bfly.b32"] = {shuffle<Shuffle::butterfly>, 6};
  f["shfl.sync.idx.b32"] = {shuffle<Shuffle::index>, 6};
  f["vote.sync.ballot.b32"] = {vote<[](uint32_t votes, uint32_t) { return votes; }>, 3};
  f["vote.sync.any.pred"] = {vote<[](uint32_t votes, uint32_t) { return votes != 0; }>, 3};
  f["vote.sync.all.pred"] = {vote<[](uint32_t votes, uint32_t mask) { return votes == mask; }>, 3};
  return f;
}

// ---- memory

std::string hexadecimal(uint64_t number) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(number));
  return text;
}

// `begin` as a host address. A piece of memory that was used a moment ago is likely to be used again.
char* resolve(Run& run, const Instruction& i, uint64_t begin, size_t bytes, bool stores) {
  const auto fail = [&](const std::string& where) {
    throw Failure{std::string(stores ? "writes " : "reads ") + std::to_string(bytes) + " bytes at " + hexadecimal(begin) + ", " + where};
  };
  if (begin % bytes) fail("which is not a multiple of its size");
  if (i.space == Space::param) {
    if (begin + bytes > run.parameters->size()) fail("outside the parameters");
    return const_cast<char*>(run.parameters->data()) + begin;
  }
  if (i.space == Space::shared) {
    if (begin + bytes > run.shared_bytes) fail("outside the " + std::to_string(run.shared_bytes) + " bytes of shared memory");
    return run.shared + begin;
  }
  const auto holds = [&](const Piece& piece) { return begin >= piece.begin && begin + bytes <= piece.end; };
  if (run.last_piece >= run.memory.size() || !holds(run.memory[run.last_piece])) {
    const auto next = std::upper_bound(run.memory.begin(), run.memory.end(), begin, [](uint64_t at, const Piece& piece) { return at < piece.begin; });
    if (next == run.memory.begin() || !holds(*std::prev(next))) fail("outside the device's memory");
    run.last_piece = size_t(std::prev(next) - run.memory.begin());
  }
  if (run.counts) {
    const auto* p = reinterpret_cast<const char*>(begin);
    if (run.memory[run.last_piece].is_array) {
      ++(stores ? run.stores : run.loads)[unsigned(bytes)];
      if (stores) count_store(p, bytes);
      else count_load(p, bytes);
    } else {
      count_table(p, bytes);
    }
  }
  return reinterpret_cast<char*>(begin);
}

template <class T, bool stores>
void access(Warp& warp, const Instruction& i) {
  // A 32-bit address is one of shared memory, and wraps as such.
  const uint64_t* base = warp.registers[i.operand[0]];
  const bool is_small = i.space == Space::shared || i.space == Space::param;
  for_each_lane(warp, [&](int lane) {
    const uint64_t at = base[lane] + uint64_t(i.offset);
    char* memory = resolve(*warp.run, i, is_small ? uint32_t(at) : at, sizeof(T) * i.width, stores);
    for (int n = 0; n < i.width; ++n) {
      uint64_t& slot = warp.registers[i.operand[1 + n]][lane];
      T value;
      if constexpr (stores) {
        value = T(slot);
        std::memcpy(memory + n * sizeof(T), &value, sizeof(T));
      } else {
        std::memcpy(&value, memory + n * sizeof(T), sizeof(T));
        slot = put(value);
      }
    }
  });
}

// red.global.add: lane by lane, each atomic.
template <class T>
void add_atomically(Warp& warp, const Instruction& i) {
  for_each_lane(warp, [&](int lane) {
    char* memory = resolve(*warp.run, i, warp.registers[i.operand[0]][lane] + uint64_t(i.offset), sizeof(T) * i.width, true);
    for (int n = 0; n < i.width; ++n) {
      T sum;
      std::memcpy(&sum, memory + n * sizeof(T), sizeof(T));
      sum += get<T>(warp.registers[i.operand[1 + n]][lane]);
      std::memcpy(memory + n * sizeof(T), &sum, sizeof(T));
    }
    if (warp.run->counts) detail::traffic->atomics += i.width;
  });
}

template <class T>
Execute access_of(bool stores) {
  return stores ? access<T, true> : access<T, false>;
}

}  // namespace

const Form* find_form(std::string_view text) {
  static const Forms forms = make_forms();
  const auto found = forms.find(std::string(text));
  return found == forms.end() ? nullptr : &found->second;
}

Execute find_access(std::string_view type, bool stores) {
  if (type == "u8" || type == "b8") return access_of<uint8_t>(stores);
  if (type == "s8") return access_of<int8_t>(stores);
  if (type == "u16" || type == "b16") return access_of<uint16_t>(stores);
  if (type == "s16") return access_of<int16_t>(stores);
  if (type == "u32" || type == "b32" || type == "f32") return access_of<uint32_t>(stores);
  if (type == "s32") return access_of<int32_t>(stores);
  if (type == "u64" || type == "b64" || type == "f64" || type == "s64") return access_of<uint64_t>(stores);
  return nullptr;
}

Execute find_addition(std::string_view type) {
  return type == "f32" ? add_atomically<float> : type == "f64" ? add_atomically<double> : nullptr;
}

}  // namespace emulated::ptx
