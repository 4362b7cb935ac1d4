// call.h: one op call as data: what a stream queues, a program captures and a kernel executes.
#pragma once
#include "core/tensor_view.h"

namespace lapidary {

enum class OpId : uint8_t {
#define LAPIDARY_OP(name, stem) name,
#include "ops/ops.def"
#undef LAPIDARY_OP
  kCount
};

static constexpr int kMaxInputs = 14;
static constexpr int kMaxOutputs = 3;
static constexpr int kMaxParamsBytes = 128;

struct Call {
  OpId op = OpId::kCount;
  uint8_t inputs = 0;  // positions in `in`, absent optional ones included
  uint8_t outputs = 0;
  TensorView in[kMaxInputs];
  TensorView out[kMaxOutputs];
  alignas(8) unsigned char params[kMaxParamsBytes] = {};  // the op's own Params struct, written by its plan()

  template <class Params>
  LAPIDARY_MEMBER_INLINE const Params& params_as() const {
    static_assert(sizeof(Params) <= kMaxParamsBytes);
    return *reinterpret_cast<const Params*>(params);
  }
  template <class Params>
  LAPIDARY_MEMBER_INLINE Params& params_as() {
    static_assert(sizeof(Params) <= kMaxParamsBytes);
    return *reinterpret_cast<Params*>(params);
  }
};

}  // namespace lapidary
