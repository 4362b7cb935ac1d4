// sampling/philox.h: Philox4x32-10, a counter-based random number generator: J. K. Salmon, M. A. Moraes, R. O. Dror, D.
// E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A bijection of the 128-bit counter for every 64-bit
// key: no state to carry, and any row's next number is had without the ones before it.
#pragma once
#include <cstdint>

#include "core/inline.h"

namespace lapidary {
namespace {

struct Words4 {
  uint32_t word[4];
};

Words4 philox4x32(Words4 counter, uint32_t key0, uint32_t key1) {
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t(0xd2511f53u) * counter.word[0];
    const uint64_t product1 = uint64_t(0xcd9e8d57u) * counter.word[2];
    counter = {{uint32_t(product1 >> 32) ^ counter.word[1] ^ key0, uint32_t(product1),
                uint32_t(product0 >> 32) ^ counter.word[3] ^ key1, uint32_t(product0)}};
    key0 += 0x9e3779b9u;  // golden ratio and √3 − 1, in 32 bits
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// A number in [0, 1) of the first 53 bits.
double uniform_fraction(Words4 random) {
  return double((uint64_t(random.word[0]) << 21) | (random.word[1] >> 11)) * 0x1p-53;
}

}  // namespace
}  // namespace lapidary
