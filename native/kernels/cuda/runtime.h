// runtime.h: the CUDA runtime, or the part of it that we use over the host emulation.
#pragma once
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "kernels/cuda/device/emulation/runtime.h"
#endif
