// contract.h: what an op promises, independent of any device.
//
// A contract names the op's inputs, attributes and outputs, and has one function, plan(), that runs on the caller's
// thread: it checks every argument, writes the op's Params into the call and describes the outputs. Kernels then trust
// the call. What only device data can tell (a token id, a page number) is checked by the kernel (kernels/cpu/kernel.h).
#pragma once
#include "core/status.h"
#include "ops/call.h"

namespace lapidary {

struct InputSpec {
  const char* name;
  bool optional = false;
  bool mutated = false;  // the op writes into it (KV cache, sampler state)
};

enum class AttributeKind : uint8_t { number, integer, boolean, choice };

struct AttributeSpec {
  const char* name;
  AttributeKind kind;
  double initial;                 // the default; NaN: required
  const char* choices = nullptr;  // choice only: names separated by '|'; the value is the index
};

// What plan() may know of the device: packed layouts and scratch depend on it, results do not.
struct DeviceTraits {
  const char* kind = "cpu";
  const char* isa = "scalar";
  int threads = 1;
  int panel_rows = 16;   // rows that pack_weights interleaves (kernels/cpu/isa.def)
  int panel_layout = 1;  // the layout version of packed weights that the kernels read (ops/packed_form.h)
};

// Bytes that must move and floating-point (or integer) operations that must happen: the benchmark's yardstick.
struct Cost {
  double bytes = 0;
  double operations = 0;
};

struct PlanContext {
  Call& call;                // in: inputs. out: params, outputs (dtype, layout, rank, dims; strides are filled in)
  const double* attributes;  // in the order of Contract::attributes, defaults already applied
  const DeviceTraits& device;
};

struct Contract {
  const char* name;
  const InputSpec* inputs;
  int input_count;
  const AttributeSpec* attributes;
  int attribute_count;
  const char* const* outputs;  // names; a call may produce fewer (plan decides)
  int output_count;
  Status (*plan)(PlanContext&);
  Cost (*cost)(const Call&);
};

// The contract of an op. Each stem defines `contract_<name>()` for its ops in ops/<stem>.cc.
const Contract& contract(OpId op);

// Bytes of memory a contiguous (or packed) tensor with this view's dtype, layout and dims takes.
// Defined for panels by ops/weight_panels.cc. Never overflows: dims are checked against kMaxTensorBytes.
int64_t storage_bytes(const TensorView& view);
static constexpr int64_t kMaxTensorBytes = int64_t(1) << 46;

// "f32 [512, 2560]": a view in an error message.
std::string describe(const TensorView& view);

// Checks that every contract uses. Each returns an error that names the op and the argument, what was expected and what
// came.
Status expect_rank(const PlanContext& context, int input, int rank);
Status expect_dtype(const PlanContext& context, int input, std::initializer_list<DType> allowed);
// A dtype that checkpoints store matrices in: floats, sfp8 and GGUF's blocks.
Status expect_stored_dtype(const PlanContext& context, int input);
// A tensor of two dimensions and such a dtype whose rows kernels read as they are stored: of whole blocks, blocks without gaps.
Status expect_stored_matrix(const PlanContext& context, int input);
Status expect_dim(const PlanContext& context, int input, int axis, int64_t expected, const char* because);
Status expect_contiguous(const PlanContext& context, int input);
// The last dimension has stride 1; leading ones may be strided.
Status expect_inner_contiguous(const PlanContext& context, int input);
Status expect_attribute(const PlanContext& context, int attribute, bool holds, const char* expected);

// Describes output `index` of the call as a contiguous tensor.
void set_output(PlanContext& context, int index, DType dtype, std::initializer_list<int64_t> dims);
void set_output_like(PlanContext& context, int index, DType dtype, const TensorView& shape);

}  // namespace lapidary
