// math.h: elementary functions that are accurate to a few units in the last place, for kernels whose contract says so; the approximate
// instructions (exp2_approx, tanh_approx) are for the others. The same polynomials as kernels/cpu/simd/math.h, where their errors come
// from; NaN stays NaN.
#pragma once
#include "device.h"

namespace lapidary::dev {

namespace detail {

// e^r − 1 for |r| ≤ ln 2 / 2.
LAPIDARY_DEVICE float expm1_reduced(float r) {
  float q = 0x1.6a23cep-10f;
  q = fma(q, r, 0x1.123a2p-7f);
  q = fma(q, r, 0x1.5558f2p-5f);
  q = fma(q, r, 0x1.555492p-3f);
  q = fma(q, r, 0x1.fffffcp-2f);
  return fma(r * r, q, r);
}
// x − n · ln 2, with ln 2 as the sum of two floats.
LAPIDARY_DEVICE float reduce_ln2(float x, float n) { return fma(-n, -0x1.05c61p-29f, fma(-n, 0x1.62e43p-1f, x)); }
// 2^n, −126 ≤ n ≤ 127.
LAPIDARY_DEVICE float power_of_two(int n) { return bit_cast<float>(uint32_t(n + 127) << 23); }

}  // namespace detail

// 2^x. 0 below −150, through the subnormals; infinite from 128 on. 0.95 ulp.
LAPIDARY_DEVICE float exp2(float x) {
  const float bounded = min(129.0f, max(-151.0f, x));
  const float n = round_even(bounded);
  const float f = bounded - n;
  float p = 0x1.41fbap-13f;
  p = fma(p, f, 0x1.5f3e8p-10f);
  p = fma(p, f, 0x1.3b2d4ep-7f);
  p = fma(p, f, 0x1.c6aee8p-5f);
  p = fma(p, f, 0x1.ebfbdcp-3f);
  p = fma(p, f, 0x1.62e43p-1f);
  p = fma(p, f, 1.0f);
  // In two factors, the first of which is exact: a subnormal result is rounded once.
  const int half = int(n) / 2;
  const float y = p * detail::power_of_two(half) * detail::power_of_two(int(n) - half);
  return x != x ? x : y;
}

// e^x. 0 below −103.98, through the subnormals; infinite above 88.72. 1.01 ulp.
LAPIDARY_DEVICE float exp(float x) {
  const float bounded = min(89.0f, max(-105.0f, x));
  const float n = round_even(bounded * 0x1.715476p0f);
  const float p = 1.0f + detail::expm1_reduced(detail::reduce_ln2(bounded, n));
  const int half = int(n) / 2;
  const float y = p * detail::power_of_two(half) * detail::power_of_two(int(n) - half);
  return x != x ? x : y;
}

// tanh x = m / (m + 2) with m = e^2|x| − 1, which keeps the relative accuracy of small x. 2.61 ulp.
LAPIDARY_DEVICE float tanh(float x) {
  const float twice = min(20.0f, abs(x + x));
  const float n = round_even(twice * 0x1.715476p0f);
  const float p = detail::expm1_reduced(detail::reduce_ln2(twice, n));
  const float power = detail::power_of_two(int(n));
  const float m = fma(power, p, power - 1.0f);
  const float y = div(m, m + 2.0f);
  return x != x ? x : bit_cast<float>(bit_cast<uint32_t>(y) | (bit_cast<uint32_t>(x) & 0x80000000u));
}

// ½ · x · (1 + tanh u) = x / (1 + e^−2u), u = √(2/π) · (x + 0.044715 · x³). 1.92 ulp for x ≥ 0.
LAPIDARY_DEVICE float gelu_tanh(float x) {
  // −2u · log2(e) = x · (linear + cubic · x²)
  constexpr float linear = float(-2 * 0.79788456080286536 * 1.4426950408889634);
  constexpr float cubic = float(-2 * 0.79788456080286536 * 1.4426950408889634 * 0.044715);
  return div(x, 1.0f + exp2(x * fma(x * x, cubic, linear)));
}

}  // namespace lapidary::dev
