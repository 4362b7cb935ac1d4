// simd/amx.h: AVX-512 with BF16, and tiles by AMX instructions.
#pragma once
#include "kernels/cpu/simd/avx512_bf16.h"
#include "kernels/cpu/simd/bf16_pairs.h"
#include "kernels/cpu/simd/tiles_amx.h"
