// numbers.h: what both back ends of the device layer share: register-sized vectors, and the 16-bit floats as bits.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LAPIDARY_DEVICE __device__ __forceinline__
#define LAPIDARY_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LAPIDARY_DEVICE inline
#define LAPIDARY_HOST_DEVICE inline
#endif

namespace lapidary::dev {

static constexpr int kWarp = 32;

// What one instruction loads: 8 and 16 bytes.
struct alignas(8) Words2 {
  uint32_t word[2];
};
struct alignas(16) Words4 {
  uint32_t word[4];
};

template <class To, class From>
LAPIDARY_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// bf16 as stored: the upper half of an f32.
struct Bf16 {
  uint16_t bits;
};
// f16 as stored: IEEE 754 binary16.
struct F16 {
  uint16_t bits;
};

LAPIDARY_HOST_DEVICE float to_float(Bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
LAPIDARY_HOST_DEVICE float to_float(float x) { return x; }

// Lower half and upper half of a word of two bf16.
LAPIDARY_HOST_DEVICE float low_bf16(uint32_t pair) { return bit_cast<float>(pair << 16); }
LAPIDARY_HOST_DEVICE float high_bf16(uint32_t pair) { return bit_cast<float>(pair & 0xffff0000u); }

}  // namespace lapidary::dev
