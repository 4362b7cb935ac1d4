// simd.cc: every function of the SIMD vocabulary (native/kernels/cpu/simd/scalar.h) and of simd/math.h against plain
// loops.
//
// One executable per instruction set, which `-include` chooses, with that set's flags from native/CMakeLists.txt:
//   g++ -std=c++20 -O2 -ffp-contract=off <flags> -I native -include kernels/cpu/simd/<isa>.h -o simd_test_<isa>
//       test/native/simd.cc
// arm64 executables run under qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu.
//
//   simd_test_<isa> [stride]    math functions visit every stride-th f32 bit pattern (default 4099; 1: all of them)
// Prints one line per function; exits with 1 if one of them failed, with 77 if the machine lacks the instructions.
#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/simd/math.h"

namespace simd = lapidary::simd;
using simd::Bytes;
using simd::F32;
using simd::I32;
using simd::kLanes;
using simd::Mask;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
int failures = 0;

void report(const char* name, long checks, long wrong, const char* detail = "") {
  printf("%-20s %10ld checks  %s %s\n", name, checks, wrong ? "FAILED" : "ok", detail);
  failures += wrong != 0;
}

uint64_t random_bits() {  // splitmix64
  static uint64_t state = 20;
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
// The same bits, or both NaN.
bool same(float a, float b) { return (a != a && b != b) || to_bits(a) == to_bits(b); }

std::vector<float> awkward_floats() {
  std::vector<float> list = {0.f,
                             1.f,
                             1.5f,
                             2.f,
                             2.5f,
                             3.5f,
                             0.5f,
                             0x1p-126f,
                             0x1p-149f,
                             0x1.fffffcp-127f,
                             0x1.fffffep127f,
                             kInfinity,
                             kNaN,
                             65504.f,
                             65519.99f,
                             65520.f,
                             65536.f,
                             0x1p-14f,
                             0x1p-24f,
                             0x1p-25f,
                             0x1.000002p-25f,
                             0x1.8p-24f,
                             0x1.ffcp-15f,
                             0x1.ffep-15f,
                             0x1.002p0f,
                             0x1.006p0f,
                             0x1.01p0f,
                             0x1.03p0f,
                             0x1.010002p0f,
                             0x1.fffp0f,
                             0x1.ffp0f,
                             0x1.ff8p127f,
                             8388607.5f,
                             8388608.f,
                             88.72f,
                             88.73f,
                             87.3f,
                             103.9f,
                             104.1f,
                             2147483520.f,
                             127.f,
                             128.f,
                             3.14159265f,
                             1e-20f,
                             1e20f};
  const size_t count = list.size();
  for (size_t i = 0; i < count; ++i) list.push_back(-list[i]);
  return list;
}
// Awkward values, arbitrary bit patterns, and values of ordinary size, in turn.
float any_float() {
  static const std::vector<float> awkward = awkward_floats();
  const uint64_t bits = random_bits();
  switch (bits % 3) {
    case 0: return awkward[(bits >> 8) % awkward.size()];
    case 1: return from_bits(uint32_t(bits >> 32));
    default: return (float(bits >> 40) / 0x1p23f - 1.f) * 20.f;
  }
}
float bounded_float(float bound) { return (float(random_bits() >> 40) / 0x1p23f - 1.f) * bound; }

constexpr int kTrials = 20000;

template <class Vector, class Plain, class Generator>
void check_unary(const char* name, Vector vector, Plain plain, Generator generate) {
  long wrong = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    float a[kLanes], r[kLanes];
    for (float& x : a) x = generate();
    simd::store(r, vector(simd::load(a)));
    for (int i = 0; i < kLanes; ++i) wrong += !same(r[i], plain(a[i]));
  }
  report(name, long(kTrials) * kLanes, wrong);
}
template <class Vector, class Plain, class First, class Second>
void check_binary(const char* name, Vector vector, Plain plain, First first, Second second) {
  long wrong = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    float a[kLanes], b[kLanes], r[kLanes];
    for (float& x : a) x = first();
    for (float& x : b) x = second();
    simd::store(r, vector(simd::load(a), simd::load(b)));
    for (int i = 0; i < kLanes; ++i) wrong += !same(r[i], plain(a[i], b[i]));
  }
  report(name, long(kTrials) * kLanes, wrong);
}
template <class Vector, class Plain>
void check_binary(const char* name, Vector vector, Plain plain) {
  check_binary(name, vector, plain, any_float, any_float);
}

// Memory whose last byte is followed by an unreadable page: an access past the end is a crash.
struct Fence {
  unsigned char* page;
  static constexpr size_t kPage = 1 << 16;  // a multiple of every page size
  Fence() {
    page = static_cast<unsigned char*>(
        mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(page + kPage, kPage, PROT_NONE);
  }
  template <class T>
  T* last(int count) {
    return reinterpret_cast<T*>(page + kPage) - count;
  }
};

double bf16_value(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }
double f16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? kNaN : sign * kInfinity;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}
// Whether `bits` is the 16-bit float nearest to x (ties to the even one), by comparing it with its two neighbours.
bool is_nearest(float x, uint16_t bits, double (*value)(uint16_t), uint16_t infinity) {
  if (x != x) return value(bits) != value(bits);
  if (std::signbit(x) != bool(bits & 0x8000)) return false;
  const uint16_t magnitude = bits & 0x7fff;
  if (magnitude > infinity) return false;
  const double target = std::fabs(double(x));
  if (std::isinf(target)) return magnitude == infinity;
  // Beyond the largest value, "infinity" stands for the next number of the grid.
  auto grid = [&](int m) { return m == infinity ? 2 * value(infinity - 1) - value(infinity - 2) : value(uint16_t(m)); };
  const double error = std::fabs(grid(magnitude) - target);
  if (magnitude == infinity) return target >= (grid(infinity) + grid(infinity - 1)) / 2;
  if (magnitude > 0) {
    const double below = std::fabs(grid(magnitude - 1) - target);
    if (below < error || (below == error && (magnitude & 1))) return false;
  }
  const double above = std::fabs(grid(magnitude + 1) - target);
  return above > error || (above == error && !(magnitude & 1));
}

void check_memory() {
  Fence fence;
  long wrong = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const int n = int(random_bits() % (kLanes + 1));
    float source[kLanes], r[kLanes];
    for (float& x : source) x = any_float();
    float* p = fence.last<float>(n);
    memcpy(p, source, size_t(n) * 4);
    simd::store(r, simd::load_first(p, n));
    for (int i = 0; i < kLanes; ++i) wrong += !same(r[i], i < n ? source[i] : 0.f);
  }
  report("load_first", long(kTrials) * kLanes, wrong);

  wrong = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const int n = int(random_bits() % (kLanes + 1));
    float source[kLanes];
    for (float& x : source) x = any_float();
    float* p = fence.last<float>(n);
    const float before = n < kLanes ? p[-1] : 0.f;
    simd::store_first(p, simd::load(source), n);
    for (int i = 0; i < n; ++i) wrong += !same(p[i], source[i]);
    wrong += n < kLanes && !same(p[-1], before);
  }
  report("store_first", kTrials, wrong);
  float r[kLanes];
  simd::store(r, simd::zero());
  wrong = 0;
  for (float x : r) wrong += to_bits(x) != 0;
  simd::store(r, simd::set1(-1.25f));
  for (float x : r) wrong += x != -1.25f;
  report("zero, set1", 2 * kLanes, wrong);
}

template <class Load, class LoadFirst, class Store, class StoreFirst>
void check_16_bit(const char* name, Load load, LoadFirst load_first, Store store, StoreFirst store_first,
                  float (*widen)(uint16_t), uint16_t (*narrow)(float), double (*value)(uint16_t), uint16_t infinity) {
  Fence fence;
  long wrong = 0, checks = 0;
  for (int base = 0; base < 65536; base += kLanes) {  // every pattern
    uint16_t source[kLanes];
    float r[kLanes], first[kLanes];
    for (int i = 0; i < kLanes; ++i) source[i] = uint16_t(base + i);
    simd::store(r, load(source));
    const int n = (base / kLanes) % (kLanes + 1);
    memcpy(fence.last<uint16_t>(n), source, size_t(n) * 2);
    simd::store(first, load_first(fence.last<uint16_t>(n), n));
    for (int i = 0; i < kLanes; ++i) {
      wrong += !same(r[i], float(value(source[i])));
      wrong += !same(widen(source[i]), float(value(source[i])));
      wrong += !same(first[i], i < n ? r[i] : 0.f);
      checks += 3;
    }
  }
  for (int trial = 0; trial < 10 * kTrials; ++trial) {
    float source[kLanes];
    uint16_t r[kLanes];
    for (float& x : source) x = any_float();
    if (trial & 1) {  // near the middle between two neighbours
      for (float& x : source) {
        const uint16_t bits = uint16_t(random_bits() % (infinity - 1));
        const float middle = float((value(bits) + value(uint16_t(bits + 1))) / 2);
        x = from_bits(to_bits(middle) + uint32_t(random_bits() % 3) - (middle > 0));
      }
    }
    store(r, simd::load(source));
    const int n = trial % (kLanes + 1);
    store_first(fence.last<uint16_t>(n), simd::load(source), n);
    for (int i = 0; i < kLanes; ++i) {
      wrong += !is_nearest(source[i], r[i], value, infinity);
      wrong += !is_nearest(source[i], narrow(source[i]), value, infinity);
      wrong += i < n && fence.last<uint16_t>(n)[i] != r[i];
      checks += 3;
    }
  }
  report(name, checks, wrong);
}

void check_16_bits() {
  check_16_bit(
      "bf16", [](const uint16_t* p) { return simd::load_bf16(p); },
      [](const uint16_t* p, int n) { return simd::load_bf16_first(p, n); },
      [](uint16_t* p, F32 a) { simd::store_bf16(p, a); },
      [](uint16_t* p, F32 a, int n) { simd::store_bf16_first(p, a, n); },
      [](uint16_t bits) { return simd::bf16_to_f32(bits); }, [](float x) { return simd::f32_to_bf16(x); }, bf16_value,
      0x7f80);
  check_16_bit(
      "f16", [](const uint16_t* p) { return simd::load_f16(p); },
      [](const uint16_t* p, int n) { return simd::load_f16_first(p, n); },
      [](uint16_t* p, F32 a) { simd::store_f16(p, a); },
      [](uint16_t* p, F32 a, int n) { simd::store_f16_first(p, a, n); },
      [](uint16_t bits) { return simd::f16_to_f32(bits); }, [](float x) { return simd::f32_to_f16(x); }, f16_value,
      0x7c00);
}

void check_arithmetic() {
  check_binary(
      "add", [](F32 a, F32 b) { return simd::add(a, b); }, [](float a, float b) { return a + b; });
  check_binary(
      "sub", [](F32 a, F32 b) { return simd::sub(a, b); }, [](float a, float b) { return a - b; });
  check_binary(
      "mul", [](F32 a, F32 b) { return simd::mul(a, b); }, [](float a, float b) { return a * b; });
  check_binary(
      "div", [](F32 a, F32 b) { return simd::div(a, b); }, [](float a, float b) { return a / b; });
  check_binary(
      "max", [](F32 a, F32 b) { return simd::max(a, b); }, [](float a, float b) { return a > b ? a : b; });
  check_binary(
      "min", [](F32 a, F32 b) { return simd::min(a, b); }, [](float a, float b) { return a < b ? a : b; });
  check_binary(
      "fma", [](F32 a, F32 b) { return simd::fma(a, b, simd::add(a, b)); },
      [](float a, float b) { return std::fma(a, b, a + b); });
  check_binary(
      "fnma", [](F32 a, F32 b) { return simd::fnma(a, b, simd::mul(a, b)); },
      [](float a, float b) { return std::fma(-a, b, a * b); });
  check_binary(
      "copy_sign", [](F32 a, F32 b) { return simd::copy_sign(a, b); },
      [](float a, float b) { return std::copysign(a, b); });
  check_unary(
      "abs", [](F32 a) { return simd::abs(a); }, [](float a) { return std::fabs(a); }, any_float);
  check_unary(
      "sqrt", [](F32 a) { return simd::sqrt(a); }, [](float a) { return std::sqrt(a); }, any_float);
  check_unary(
      "round", [](F32 a) { return simd::round(a); }, [](float a) { return std::nearbyint(a); }, any_float);
  auto exponent = [](float bound) { return [=] { return std::nearbyint(bounded_float(bound)); }; };
  auto scaled = [] {
    static const float special[] = {0.f, -0.f, kInfinity, -kInfinity, kNaN};
    const uint64_t bits = random_bits();
    return bits % 8 ? std::ldexp(bounded_float(2.f), int(bits >> 8) % 98) : special[(bits >> 8) % 5];
  };
  auto power = [](float a, float n) { return std::ldexp(a, int(n)); };
  check_binary(
      "scale_exp2", [](F32 a, F32 n) { return simd::scale_exp2(a, n); }, power, scaled, exponent(252.f));
  auto one_to_two = [] { return 1.f + std::fabs(bounded_float(0.999f)); };
  check_binary(
      "scale_exp2_normal", [](F32 a, F32 n) { return simd::scale_exp2_normal(a, n); }, power, one_to_two,
      exponent(126.f));

  long wrong_sum = 0, wrong_max = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    float a[kLanes], largest = -kInfinity;
    double sum = 0, magnitude = 0;
    for (float& x : a) {
      x = trial % 2 ? bounded_float(100.f) : std::ldexp(bounded_float(1.f), int(random_bits() % 40));
      sum += x, magnitude += std::fabs(x), largest = std::fmax(largest, x);
    }
    wrong_sum += !(std::fabs(simd::reduce_add(simd::load(a)) - sum) <= kLanes * 0x1p-24 * magnitude);
    wrong_max += simd::reduce_max(simd::load(a)) != largest;
  }
  report("reduce_add", kTrials, wrong_sum);
  report("reduce_max", kTrials, wrong_max);
}

void check_masks() {
  auto choose = [](Mask m) { return simd::select(m, simd::set1(1.f), simd::set1(2.f)); };
  check_binary(
      "less", [=](F32 a, F32 b) { return choose(simd::less(a, b)); },
      [](float a, float b) { return a < b ? 1.f : 2.f; });
  check_binary(
      "less_equal", [=](F32 a, F32 b) { return choose(simd::less_equal(a, b)); },
      [](float a, float b) { return a <= b ? 1.f : 2.f; });
  check_binary(
      "mask_and, select",
      [](F32 a, F32 b) { return simd::select(simd::mask_and(simd::less(a, b), simd::less(simd::zero(), b)), a, b); },
      [](float a, float b) { return a < b && 0.f < b ? a : b; });
  long wrong = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    float a[kLanes];
    const int set = int(random_bits() % (kLanes + 1));  // kLanes: none
    for (int i = 0; i < kLanes; ++i) a[i] = i == set ? -1.f : 1.f;
    wrong += simd::any(simd::less(simd::load(a), simd::zero())) != (set < kLanes);
  }
  report("any", kTrials, wrong);
}

void check_integers() {
  long wrong_arithmetic = 0, wrong_convert = 0, wrong_less = 0, wrong_bytes = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    int32_t a[kLanes], b[kLanes], sum[kLanes], difference[kLanes], product[kLanes], rounded[kLanes];
    float f[kLanes], wide[kLanes], chosen[kLanes];
    int8_t narrow[kLanes], signed_bytes[16];
    uint8_t unsigned_bytes[16];
    for (int i = 0; i < kLanes; ++i) {
      a[i] = int32_t(random_bits() >> (random_bits() % 30 + 32)) * (random_bits() & 1 ? 1 : -1);
      b[i] = i % 3 ? int32_t(random_bits()) : a[i];
      f[i] = trial % 2 ? bounded_float(2147483520.f) : float(int(random_bits() % 2000) - 1000) * 0.5f;
    }
    for (int i = 0; i < 16; ++i) signed_bytes[i] = int8_t(unsigned_bytes[i] = uint8_t(random_bits()));
    const I32 va = simd::load_i32(a), vb = simd::load_i32(b);
    simd::store_i32(sum, simd::add(va, vb));
    simd::store_i32(difference, simd::sub(va, vb));
    simd::store_i32(product, simd::mul(va, vb));
    simd::store_i32(rounded, simd::to_i32(simd::load(f)));
    simd::store(wide, simd::to_f32(va));
    simd::store(chosen, simd::select(simd::less(va, vb), simd::set1(1.f), simd::zero()));
    simd::store_i8(narrow, va);
    for (int i = 0; i < kLanes; ++i) {
      wrong_arithmetic += uint32_t(sum[i]) != uint32_t(a[i]) + uint32_t(b[i]);
      wrong_arithmetic += uint32_t(difference[i]) != uint32_t(a[i]) - uint32_t(b[i]);
      wrong_arithmetic += uint32_t(product[i]) != uint32_t(a[i]) * uint32_t(b[i]);
      wrong_convert += rounded[i] != int32_t(std::nearbyint(double(f[i])));
      wrong_convert += wide[i] != float(a[i]);
      wrong_less += chosen[i] != (a[i] < b[i] ? 1.f : 0.f);
      wrong_bytes += narrow[i] != (a[i] < -128 ? -128 : a[i] > 127 ? 127 : a[i]);
    }
    simd::store_i32(sum, simd::load_u8_i32(unsigned_bytes));
    simd::store_i32(difference, simd::load_i8_i32(signed_bytes));
    simd::store(wide, simd::load_i8(signed_bytes));
    for (int i = 0; i < kLanes; ++i) {
      wrong_bytes += sum[i] != unsigned_bytes[i];
      wrong_bytes += difference[i] != signed_bytes[i];
      wrong_bytes += wide[i] != float(signed_bytes[i]);
    }
  }
  report("I32 add, sub, mul", kTrials, wrong_arithmetic);
  report("I32 less", kTrials, wrong_less);
  report("to_f32, to_i32", kTrials, wrong_convert);
  report("store_i8, load_?8", kTrials, wrong_bytes);
  int32_t r[kLanes];
  long wrong = 0;
  simd::store_i32(r, simd::iota());
  for (int i = 0; i < kLanes; ++i) wrong += r[i] != i;
  simd::store_i32(r, simd::zero_i32());
  for (int32_t x : r) wrong += x != 0;
  simd::store_i32(r, simd::set1_i32(-7));
  for (int32_t x : r) wrong += x != -7;
  report("iota, set1_i32", kLanes, wrong);
}

void check_bytes() {
  constexpr int kBytes = 4 * kLanes;
  long wrong_logic = 0, wrong_bits = 0, wrong_pairs = 0, wrong_table = 0, wrong_broadcast = 0, wrong_u7 = 0,
       wrong_u8 = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    uint8_t a[kBytes], b[kBytes], low[kBytes], high[kBytes], either[kBytes], bits[kBytes], pairs[kBytes], four[kBytes];
    uint8_t table[16], found[kBytes];
    for (uint8_t& entry : table) entry = uint8_t(random_bits());
    for (int i = 0; i < kBytes; ++i) {
      a[i] = trial == 0 ? 255 : uint8_t(random_bits());  // trial 0: the extremes of the dot products
      b[i] = trial == 0 ? 128 : trial == 1 ? 127 : uint8_t(random_bits());
    }
    const Bytes va = simd::load_bytes(a), vb = simd::load_bytes(b);
    const uint8_t value = uint8_t(random_bits());
    const int pair = trial % 4;
    simd::store_bytes(low, simd::low_nibbles(va));
    simd::store_bytes(high, simd::high_nibbles(va));
    simd::store_bytes(either, simd::or_bytes(va, vb));
    simd::store_bytes(bits, simd::bits_to_bytes(a, value));
    simd::store_bytes(pairs, simd::bit_pairs_high(va, pair));
    simd::store_bytes(found, simd::look_up(simd::low_nibbles(va), table));
    simd::store_bytes(four, simd::broadcast4(b + 1));
    for (int i = 0; i < kBytes; ++i) {
      wrong_logic += low[i] != (a[i] & 15) || high[i] != a[i] >> 4 || either[i] != (a[i] | b[i]);
      wrong_bits += bits[i] != ((a[i / 8] >> (i % 8)) & 1 ? value : 0);
      wrong_pairs += pairs[i] != ((a[i] >> (2 * pair)) & 3) << 4;
      wrong_table += found[i] != table[a[i] & 15];
      wrong_broadcast += four[i] != b[1 + i % 4];
    }
    int32_t start[kLanes], u7[kLanes], u8[kLanes];
    uint8_t small[kBytes];
    for (int32_t& x : start) x = int32_t(random_bits()) >> 4;
    for (int i = 0; i < kBytes; ++i) small[i] = a[i] & 127;
    simd::store_i32(u7, simd::dot_u7(simd::load_i32(start), simd::load_bytes(small), vb));
    simd::store_i32(u8, simd::dot_u8(simd::load_i32(start), va, vb));
    for (int i = 0; i < kLanes; ++i) {
      int32_t expected_u7 = start[i], expected_u8 = start[i];
      for (int j = 4 * i; j < 4 * i + 4; ++j) {
        expected_u7 += small[j] * int8_t(b[j]);
        expected_u8 += a[j] * int8_t(b[j]);
      }
      wrong_u7 += u7[i] != expected_u7;
      wrong_u8 += u8[i] != expected_u8;
    }
  }
  report("nibbles, or_bytes", kTrials, wrong_logic);
  report("bits_to_bytes", kTrials, wrong_bits);
  report("bit_pairs_high", kTrials, wrong_pairs);
  report("look_up", kTrials, wrong_table);
  report("broadcast4", kTrials, wrong_broadcast);
  report("dot_u7", kTrials, wrong_u7);
  report("dot_u8", kTrials, wrong_u8);
}

#ifdef __AVX512BF16__
void check_avx512_bf16() {
  long wrong_pack = 0, wrong_dot = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    float low[16], high[16], acc[16], r[16];
    uint16_t a[32], b[32];
    for (int i = 0; i < 16; ++i) {
      low[i] = any_float(), high[i] = any_float();
      if (std::fpclassify(low[i]) == FP_SUBNORMAL) low[i] = 0;
      if (std::fpclassify(high[i]) == FP_SUBNORMAL) high[i] = 0;
      acc[i] = bounded_float(4.f);
    }
    simd::store_bytes(a, simd::pack_bf16(simd::load(high), simd::load(low)));
    for (int i = 0; i < 32; ++i) wrong_pack += !is_nearest(i < 16 ? low[i] : high[i - 16], a[i], bf16_value, 0x7f80);
    for (int i = 0; i < 32; ++i)
      a[i] = simd::f32_to_bf16(bounded_float(4.f)), b[i] = simd::f32_to_bf16(bounded_float(4.f));
    simd::store(r, simd::dot_bf16(simd::load(acc), simd::load_bytes(a), simd::load_bytes(b)));
    for (int i = 0; i < 16; ++i) {
      const double first = bf16_value(a[2 * i]) * bf16_value(b[2 * i]);
      const double second = bf16_value(a[2 * i + 1]) * bf16_value(b[2 * i + 1]);
      const double magnitude = std::fabs(first) + std::fabs(second) + std::fabs(acc[i]);
      wrong_dot += !(std::fabs(r[i] - (acc[i] + first + second)) <= 2 * 0x1p-24 * magnitude);
    }
  }
  report("pack_bf16", long(kTrials) * 32, wrong_pack);
  report("dot_bf16", long(kTrials) * 16, wrong_dot);
}
#endif

// The largest error of `vector` over every stride-th float of [low, high], in the unit that `unit(x, exact)` gives.
template <class Vector, class Exact, class Unit>
void check_math(const char* name, uint32_t stride, float low, float high, double bound, Vector vector, Exact exact,
                Unit unit) {
  double worst = 0;
  float worst_x = 0;
  long checks = 0;
  float a[kLanes] = {}, r[kLanes];
  int filled = 0;
  auto flush = [&] {
    simd::store(r, vector(simd::load(a)));
    for (int i = 0; i < filled; ++i) {
      const double expected = exact(double(a[i]));
      double got = r[i];
      if (std::isinf(got) && !std::isinf(expected)) got = std::copysign(0x1p128, got);
      if (got == expected) continue;
      double error = std::fabs(got - expected) / unit(a[i], expected);
      if (!(error <= 1e30)) error = 1e30;  // NaN
      if (error > worst) worst = error, worst_x = a[i];
    }
    checks += filled;
    filled = 0;
  };
  auto visit = [&](float x) {
    if (!(x >= low && x <= high)) return;
    a[filled++] = x;
    if (filled == kLanes) flush();
  };
  for (uint64_t bits = 0; bits < 0x100000000; bits += stride) visit(from_bits(uint32_t(bits)));
  for (float x : awkward_floats()) visit(x);
  visit(low), visit(high);
  flush();
  float nan[kLanes];
  simd::store(nan, vector(simd::set1(kNaN)));
  char detail[128];
  snprintf(detail, sizeof detail, "error %.4g (bound %g) at %a", worst, bound, double(worst_x));
  report(name, checks, !(worst <= bound) || nan[kLanes - 1] == nan[kLanes - 1], detail);
}

// One unit in the last place of an f32 result.
double ulp(float, double exact) {
  return std::ldexp(1.0, std::max(std::ilogb(exact == 0 ? 0x1p-149 : exact), -126) - 23);
}
double relative(float, double exact) { return std::max(std::fabs(exact), 0x1p-126); }

void check_functions(uint32_t stride) {
  constexpr double kRoot = 0.7978845608028654;  // √(2/π)
  check_math(
      "exp", stride, -kInfinity, kInfinity, 1.01, [](F32 x) { return simd::exp(x); },
      [](double x) { return std::exp(x) >= 0x1p128 ? HUGE_VAL : std::exp(x); }, ulp);
  check_math(
      "exp2", stride, -kInfinity, kInfinity, 0.95, [](F32 x) { return simd::exp2(x); },
      [](double x) { return x >= 128 ? HUGE_VAL : std::exp2(x); }, ulp);
  check_math(
      "exp2_fast", stride, -125.5f, 127.f, 7.7e-5, [](F32 x) { return simd::exp2_fast(x); },
      [](double x) { return std::exp2(x); }, relative);
  check_math(
      "exp2_fast, zero", stride, -kInfinity, -125.50001f, 0, [](F32 x) { return simd::exp2_fast(x); },
      [](double) { return 0.0; }, ulp);
  check_math(
      "tanh", stride, -kInfinity, kInfinity, 2.61, [](F32 x) { return simd::tanh(x); },
      [](double x) { return std::tanh(x); }, ulp);
  check_math(
      "tanh_fast", stride, -5.5f, 5.5f, 4.5e-6, [](F32 x) { return simd::tanh_fast(x); },
      [](double x) { return std::tanh(x); }, relative);
  check_math(
      "tanh_fast, far", stride, -kInfinity, kInfinity, 4e-5, [](F32 x) { return simd::tanh_fast(x); },
      [](double x) { return std::tanh(x); }, [](float, double) { return 1.0; });
  check_math(
      "sigmoid", stride, -87.f, kInfinity, 2.5, [](F32 x) { return simd::sigmoid(x); },
      [](double x) { return 1 / (1 + std::exp(-x)); }, ulp);
  auto gelu = [](double x) { return x / (1 + std::exp(-2 * kRoot * (x + 0.044715 * x * x * x))); };
  check_math(
      "gelu_tanh, x >= 0", stride, 0.f, kInfinity, 1.92, [](F32 x) { return simd::gelu_tanh(x); }, gelu, ulp);
  check_math(
      "gelu_tanh, x < 0", stride, -9.9f, 0.f, 1.0, [](F32 x) { return simd::gelu_tanh(x); }, gelu,
      [](float x, double exact) {
        const double u = kRoot * std::fabs(x + 0.044715 * x * x * double(x));
        return 5 * (1 + u) * 0x1p-24 * std::fabs(exact) + 0x1p-149;
      });
}

int run(uint32_t stride) {
  check_memory();
  check_16_bits();
  check_arithmetic();
  check_masks();
  check_integers();
  check_bytes();
#ifdef __AVX512BF16__
  check_avx512_bf16();
#endif
  check_functions(stride);
  printf("%d lanes: %s\n", kLanes, failures ? "FAILED" : "all ok");
  return failures != 0;
}

bool supported() {
#if defined(__AVX512BF16__)
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
#elif defined(__AVX512F__)
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#elif defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (!supported()) {
    printf("skipped: this machine lacks the instruction set\n");
    return 77;
  }
  return run(count > 1 ? uint32_t(atoi(arguments[1])) : 4099);
}
