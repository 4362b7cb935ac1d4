// simd/math.h: elementary functions over the vocabulary of whichever simd/<isa>.h was included before.
//
// Polynomials and rational functions are minimax fits (weighted linear programming on Chebyshev nodes, coefficients
// then rounded to f32). Errors are the largest found over every f32 of the stated domain, against double precision;
// test/native/simd.cc checks them on every ISA. ulp: units in the last place of the exact result.
#pragma once

namespace lapidary {
namespace {
namespace simd {

// e^r − 1 for |r| ≤ 0.3468 (ln 2 / 2): r + r²·q(r). Relative error of 1 + result: 3.1e-9 before rounding.
LAPIDARY_INLINE F32 expm1_reduced(F32 r) {
  F32 q = set1(0x1.6a23cep-10f);
  q = fma(q, r, set1(0x1.123a2p-7f));
  q = fma(q, r, set1(0x1.5558f2p-5f));
  q = fma(q, r, set1(0x1.555492p-3f));
  q = fma(q, r, set1(0x1.fffffcp-2f));
  return fma(mul(r, r), q, r);
}
// x − n · ln 2, with ln 2 as the sum of two floats (Cody and Waite, 1980): exact to 2⁻⁴² for |n| ≤ 2¹⁵.
LAPIDARY_INLINE F32 reduce_ln2(F32 x, F32 n) { return fnma(n, set1(-0x1.05c61p-29f), fnma(n, set1(0x1.62e43p-1f), x)); }

// e^x. 0 below −103.98, through the subnormals; infinite above 88.72; NaN stays. Error: 1.01 ulp.
LAPIDARY_INLINE F32 exp(F32 x) {
  x = min(set1(89.f), max(set1(-105.f), x));
  const F32 n = round(mul(x, set1(0x1.715476p0f)));
  const F32 p = expm1_reduced(reduce_ln2(x, n));
  return scale_exp2(add(set1(1.f), p), n);
}

// 2^x. 0 below −150, through the subnormals; infinite from 128 on; NaN stays. Error: 0.95 ulp.
LAPIDARY_INLINE F32 exp2(F32 x) {
  x = min(set1(129.f), max(set1(-151.f), x));
  const F32 n = round(x);
  const F32 f = sub(x, n);
  F32 p = set1(0x1.41fbap-13f);
  p = fma(p, f, set1(0x1.5f3e8p-10f));
  p = fma(p, f, set1(0x1.3b2d4ep-7f));
  p = fma(p, f, set1(0x1.c6aee8p-5f));
  p = fma(p, f, set1(0x1.ebfbdcp-3f));
  p = fma(p, f, set1(0x1.62e43p-1f));
  p = fma(p, f, set1(1.f));
  return scale_exp2(p, n);
}

// 2^x for x ≤ 127, relative error 7.6e-5: for probabilities that are rounded to bf16 (3.9e-3) or summed. 0 below
// −125.5, so that the result is never subnormal; 2^−∞ = 0; NaN stays.
LAPIDARY_INLINE F32 exp2_fast(F32 x) {
  const F32 bounded = max(set1(-126.f), x);
  const F32 n = round(bounded);
  const F32 f = sub(bounded, n);
  F32 p = set1(0x1.c3f5fap-5f);
  p = fma(p, f, set1(0x1.f0e094p-3f));
  p = fma(p, f, set1(0x1.62f32ap-1f));
  p = fma(p, f, set1(0x1.fff68ap-1f));
  return select(less(x, set1(-125.5f)), zero(), scale_exp2_normal(p, n));
}

// tanh x = m / (m + 2) with m = e^2|x| − 1, which keeps the relative accuracy of small x. Odd; NaN stays. Error: 2.61
// ulp.
LAPIDARY_INLINE F32 tanh(F32 x) {
  const F32 twice = min(set1(20.f), abs(add(x, x)));
  const F32 n = round(mul(twice, set1(0x1.715476p0f)));
  const F32 p = expm1_reduced(reduce_ln2(twice, n));
  const F32 power = scale_exp2_normal(set1(1.f), n);
  const F32 m = fma(power, p, sub(power, set1(1.f)));
  return copy_sign(div(m, add(m, set1(2.f))), x);
}

// tanh x for soft caps of attention logits: x · P(x²) / Q(x²). Relative error 4.3e-6 up to |x| = 5.5; beyond it stays
// at tanh 5.5, an absolute error of 3.8e-5. Odd; NaN stays.
LAPIDARY_INLINE F32 tanh_fast(F32 x) {
  x = min(set1(5.5f), max(set1(-5.5f), x));
  const F32 t = mul(x, x);
  F32 p = set1(1.57598457e-03f);
  p = fma(p, t, set1(1.15749227e-01f));
  p = fma(p, t, set1(9.99995937e-01f));
  F32 q = set1(6.02847073e-05f);
  q = fma(q, t, set1(1.79639058e-02f));
  q = fma(q, t, set1(4.49052835e-01f));
  q = fma(q, t, set1(1.f));
  return div(mul(x, p), q);
}

// 1 / (1 + e^−x). NaN stays. Error: 2.49 ulp for x ≥ −87; below −88.7 it is 0.
LAPIDARY_INLINE F32 sigmoid(F32 x) { return div(set1(1.f), add(set1(1.f), exp(sub(zero(), x)))); }

// GELU in its tanh form (Hendrycks and Gimpel, 2016, arXiv 1606.08415):
//   ½ · x · (1 + tanh u) = x / (1 + e^−2u),  u = √(2/π) · (x + 0.044715 · x³)
// The right-hand side has no cancellation for negative x. The rounding of 2u is an absolute error of the exponent, so
// the relative error grows with |u|: 5 · (1 + |u|) · 2⁻²⁴ where x < 0, 1.92 ulp where x ≥ 0. Results below 2⁻¹²⁴ in
// magnitude (x < −9.9) may be 0. −∞ gives NaN, as the formula does.
LAPIDARY_INLINE F32 gelu_tanh(F32 x) {
  // −2u · log2(e) = x · (linear + cubic · x²)
  const F32 linear = set1(float(-2 * 0.79788456080286536 * 1.4426950408889634));
  const F32 cubic = set1(float(-2 * 0.79788456080286536 * 1.4426950408889634 * 0.044715));
  const F32 exponent = mul(x, fma(mul(x, x), cubic, linear));
  return div(x, add(set1(1.f), exp2(exponent)));
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
