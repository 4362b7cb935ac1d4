#include "ops/packed_form.h"

#include <cstring>

#include "ops/weight_panels.h"

namespace lapidary {
namespace {

bool has_panels(DType dtype) { return dtype != DType::i32 && dtype != DType::u8; }

}  // namespace

DType packed_dtype(const DeviceTraits& device, DType stored) {
  if (std::strcmp(device.kind, "cuda") != 0) return stored;
  return stored == DType::q3_k ? DType::q6_k : stored == DType::iq4_nl ? DType::q8_0 : stored;
}

Status expect_readable_panels(const TensorView& packed, const DeviceTraits& device, const char* what) {
  const auto refuse = [&](const char* field, const char* expected, long long got) {
    return error(Code::kLayoutUnsupported, "%s: form: %s: expected %s for %s, got %lld", what, field, expected,
                 describe(packed).c_str(), got);
  };
  if (packed.rank != 2 || packed.dims[0] < 1 || packed.dims[1] < 1 || !has_panels(packed.dtype)) {
    return error(Code::kLayoutUnsupported, "%s: form: expected a matrix of a packed dtype, got %s", what,
                 describe(packed).c_str());
  }
  const DType readable = packed_dtype(device, packed.dtype);
  if (readable != packed.dtype) {
    return error(Code::kLayoutUnsupported, "%s: form: dtype: expected %s, as %s kernels read %s, got %s", what,
                 info(readable).name, device.isa, info(packed.dtype).name, describe(packed).c_str());
  }
  if (packed.panel_rows != device.panel_rows) {
    return error(Code::kLayoutUnsupported, "%s: form: panelRows: expected %d, as %s kernels read them, got %d", what,
                 device.panel_rows, device.isa, packed.panel_rows);
  }
  const bool grouped = packed.dtype == DType::i4 && packed.group != 0;
  if (packed.group != 0 && !(grouped && (packed.group == 32 || packed.group == 64 || packed.group == 128)))
    return refuse("groupSize", "0, or with i4 32, 64 or 128", packed.group);
  if (grouped && packed.dims[1] % packed.group != 0)
    return refuse("groupSize", "a divisor of the columns", packed.group);
  const DType scales = DType(packed.scale_dtype);
  if (grouped ? scales != DType::f16 && scales != DType::bf16 : scales != DType::f32)
    return refuse("scaleDtype", "f16 or bf16 with groups, f32 without", packed.scale_dtype);
  if (packed.flags & ~(kPanelGateUp | kPanelSymmetric)) return refuse("flags", "no others", packed.flags);
  if ((packed.flags & kPanelSymmetric) && !(grouped && packed.group == 32))
    return refuse("symmetric", "groups of 32", packed.group);
  if ((packed.flags & kPanelGateUp) && packed.dims[0] % (2 * packed.panel_rows) != 0)
    return refuse("gateUp", "whole panels of gate and of up", packed.dims[0]);
  return {};
}

}  // namespace lapidary
