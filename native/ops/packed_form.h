// packed_form.h: a packed tensor that comes from elsewhere (a file), checked before any kernel sees it.
#pragma once
#include "ops/contract.h"

namespace lapidary {

// The versions of ops/weight_panels.h as files keep them: one more for every change of any byte of the layout. A device reads one of
// them, DeviceTraits::panel_layout: panels of lines (CPU), or panels in fragment order (CUDA), which count from 1001.
static constexpr int kPanelLayoutVersion = 1;
static constexpr int kFragmentLayoutVersion = 1001;

// The dtype of the panels that a stored block format becomes: its own, but that CUDA kernels read two formats as wider ones
// that hold the same weights exactly, and need no kernels of their own for them.
DType packed_dtype(const DeviceTraits& device, DType stored);

// Whether kernels of this device read packed weights of this form; ERR_LAYOUT_UNSUPPORTED says what they do not. What
// the bytes hold needs no check: codes and scales of any value are weights.
Status expect_readable_panels(const TensorView& packed, const DeviceTraits& device, const char* what);

}  // namespace lapidary
