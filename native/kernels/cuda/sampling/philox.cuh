// sampling/philox.cuh: Philox4x32-10, a counter-based random number generator: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "kernels/cuda/device/device.h"

namespace lapidary::cuda {

// A number in [0, 1) of 53 bits: of the first two words for key (seed, 0) and counter (counter, 0, 0, 0), as ops/sampling.h says.
LAPIDARY_DEVICE double random_fraction(uint32_t seed, uint32_t counter) {
  uint32_t a = counter, b = 0, c = 0, d = 0, key0 = seed, key1 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xd2511f53u) * a, product1 = uint64_t(0xcd9e8d57u) * c;
    a = uint32_t(product1 >> 32) ^ b ^ key0;
    b = uint32_t(product1);
    c = uint32_t(product0 >> 32) ^ d ^ key1;
    d = uint32_t(product0);
    key0 += 0x9e3779b9u;  // golden ratio and √3 − 1, in 32 bits
    key1 += 0xbb67ae85u;
  }
  return double(uint64_t(a) << 21 | b >> 11) * 0x1p-53;
}

}  // namespace lapidary::cuda
