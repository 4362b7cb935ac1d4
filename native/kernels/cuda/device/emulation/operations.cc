// operations.cc: warp operations and arithmetic of the emulated device layer.
#include <cmath>

#include "kernels/cuda/device/device.h"

namespace lapidary::dev {

using emulation::collective;
using emulation::Operation;

uint32_t warp_ballot(bool holds) {
  uint32_t in = holds, out = 0;
  collective(Operation::ballot, 0, &in, &out, [](const void* const* in, void* const* out, int) {
    uint32_t lanes = 0;
    for (int i = 0; i < kWarp; ++i) lanes |= *static_cast<const uint32_t*>(in[i]) << i;
    for (int i = 0; i < kWarp; ++i) *static_cast<uint32_t*>(out[i]) = lanes;
  });
  return out;
}

// ── matrix units ────────────────────────────────────────────────────────────────────────────────────────────────────
namespace {

template <class Number>
struct Fragments {
  Number* d;
  const uint32_t* a;
  uint32_t b[2];
};

// Lane 4·g + t holds of a: rows g and g + 8, columns 2t, 2t + 1 and those + 8; of b: rows 2t, 2t + 1 and + 8, column g.
template <float (*widen)(uint16_t)>
void multiply_halves(const void* const* in, void* const*, int) {
  float a[16][16], b[16][8];
  for (int i = 0; i < kWarp; ++i) {
    const auto& f = *static_cast<const Fragments<float>*>(in[i]);
    const int g = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 2; ++h) a[g + r % 2 * 8][t * 2 + h + r / 2 * 8] = widen(uint16_t(f.a[r] >> 16 * h));
    }
    for (int r = 0; r < 2; ++r) {
      for (int h = 0; h < 2; ++h) b[t * 2 + h + r * 8][g] = widen(uint16_t(f.b[r] >> 16 * h));
    }
  }
  float products[16][8] = {};
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) products[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int i = 0; i < kWarp; ++i) {
    const auto& f = *static_cast<const Fragments<float>*>(in[i]);
    for (int r = 0; r < 4; ++r) f.d[r] += products[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2];
  }
}

// The same with bytes: four where halves are two.
void multiply_bytes(const void* const* in, void* const*, int) {
  int32_t a[16][32], b[32][8];
  for (int i = 0; i < kWarp; ++i) {
    const auto& f = *static_cast<const Fragments<int32_t>*>(in[i]);
    const int g = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 4; ++h) a[g + r % 2 * 8][t * 4 + h + r / 2 * 16] = int8_t(f.a[r] >> 8 * h);
    }
    for (int r = 0; r < 2; ++r) {
      for (int h = 0; h < 4; ++h) b[t * 4 + h + r * 16][g] = int8_t(f.b[r] >> 8 * h);
    }
  }
  for (int i = 0; i < kWarp; ++i) {
    const auto& f = *static_cast<const Fragments<int32_t>*>(in[i]);
    for (int r = 0; r < 4; ++r) {
      const int m = i / 4 + r / 2 * 8, n = i % 4 * 2 + r % 2;
      uint32_t sum = uint32_t(f.d[r]);
      for (int k = 0; k < 32; ++k) sum += uint32_t(a[m][k] * b[k][n]);
      f.d[r] = int32_t(sum);
    }
  }
}

float widen_bf16(uint16_t bits) { return to_float(Bf16{bits}); }
float widen_f16(uint16_t bits) { return to_float(F16{bits}); }

}  // namespace

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments<float> f{d, a, {b0, b1}};
  collective(Operation::mma_bf16, 0, &f, nullptr, multiply_halves<widen_bf16>);
}
void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments<float> f{d, a, {b0, b1}};
  collective(Operation::mma_f16, 0, &f, nullptr, multiply_halves<widen_f16>);
}
void mma_i8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments<int32_t> f{d, a, {b0, b1}};
  collective(Operation::mma_i8, 0, &f, nullptr, multiply_bytes);
}

namespace {

// Lane i gets of each matrix the pair (i / 4, 2·(i % 4)); transposed, the pair of the transposed matrix.
void load_matrices(const void* const* rows, void* const* out, int detail) {
  const int matrices = detail & 7;
  emulation::count_matrix_load(rows, matrices);
  for (int i = 0; i < kWarp; ++i) {
    for (int m = 0; m < matrices; ++m) {
      const int row = i / 4, column = i % 4 * 2;
      uint16_t pair[2];
      for (int h = 0; h < 2; ++h) {
        pair[h] = detail & 8 ? static_cast<const uint16_t*>(rows[m * 8 + column + h])[row]
                             : static_cast<const uint16_t*>(rows[m * 8 + row])[column + h];
      }
      static_cast<uint32_t*>(out[i])[m] = pair[0] | uint32_t(pair[1]) << 16;
    }
  }
}

void load_matrix(uint32_t* r, const void* row, int detail) {
  if (lane() < 8 * (detail & 7)) emulation::check_shared(row, 16);
  collective(Operation::ldmatrix, detail, row, r, load_matrices);
}

}  // namespace

void ldmatrix_x4(uint32_t (&r)[4], const void* row) { load_matrix(r, row, 4); }
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { load_matrix(r, row, 4 | 8); }
void ldmatrix_x2(uint32_t (&r)[2], const void* row) { load_matrix(r, row, 2); }
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) { load_matrix(r, row, 2 | 8); }

// ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────────────
namespace {

// A factor 1 + e, |e| ≤ limit, that depends on the bits of x alone.
double wrong_by(float x, double limit) {
  uint32_t h = bit_cast<uint32_t>(x) * 0x9E3779B1u;
  h ^= h >> 15;
  h *= 0x85EBCA77u;
  h ^= h >> 13;
  return 1 + limit * (double(h) / 0x80000000u - 1);
}

float flush_to_zero(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// Both factors are exact in double, and so is their product.
template <class Half, Half (*narrow)(float)>
uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (int h = 0; h < 2; ++h) {
    const auto part = [h](uint32_t pair) { return to_float(Half{uint16_t(pair >> 16 * h)}); };
    // Rounded to odd on the way to f32, so that rounding twice is rounding once.
    const double exact = double(part(a)) * part(b) + part(c);
    float rounded = float(exact);
    if (std::isfinite(rounded) && double(rounded) != exact) {
      if (std::fabs(double(rounded)) > std::fabs(exact)) rounded = std::nextafter(rounded, 0.0f);
      rounded = bit_cast<float>(bit_cast<uint32_t>(rounded) | 1);
    }
    d |= uint32_t(narrow(rounded).bits) << 16 * h;
  }
  return d;
}

}  // namespace

namespace detail {
emulation::Dimensions grid() { return emulation::grid_of(*emulation::current); }
}  // namespace detail

// Bounds: PTX ISA 9.0, the instructions' tables of maximum errors.
float exp2_approx(float x) { return flush_to_zero(float(std::exp2(double(flush_to_zero(x))) * wrong_by(x, 0x1p-22))); }
float log2_approx(float x) {
  const double exact = std::log2(double(x));
  return float(std::isfinite(exact) ? exact + (wrong_by(x, 0x1p-22) - 1) : exact);
}
float tanh_approx(float x) {
  const float y = float(std::tanh(double(x)) * wrong_by(x, 0x1p-11));
  return std::fabs(y) > 1 ? std::copysign(1.0f, y) : y;
}
float rcp_approx(float x) { return float(1 / double(x) * wrong_by(x, 0x1p-23)); }
float rsqrt_approx(float x) { return float(1 / std::sqrt(double(x)) * wrong_by(x, 0x1.7p-23)); }

F16 to_f16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(x);
  if (magnitude != magnitude) return {0x7fff};
  if (magnitude >= 65520.0f) return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x1p-14f) return {uint16_t(sign | uint32_t(std::nearbyint(magnitude * 0x1p24f)))};
  uint32_t m = bits & 0x7fffffffu;
  m += 0xfffu + (m >> 13 & 1);
  return {uint16_t(sign | ((m >> 13) - (112u << 10)))};
}

float to_float(F16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) return std::copysign(float(mantissa) * 0x1p-24f, bit_cast<float>(sign | 0x3f800000u));
  return bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_pair<Bf16, to_bf16>(a, b, c); }
uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return fma_pair<F16, to_f16>(a, b, c); }

}  // namespace lapidary::dev
