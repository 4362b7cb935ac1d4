// tables.cc: the native tables as JavaScript sees them. lib/ keeps typed mirrors; test/contract.test.ts compares.
#include <cmath>

#include "bridge/environment.h"

namespace lapidary {
namespace {

Napi::Value dtypes(const Napi::CallbackInfo& info) {
  Napi::Array table = Napi::Array::New(info.Env());
  for (const DTypeInfo& dtype : kDTypes) {
    Napi::Object row = Napi::Object::New(info.Env());
    row.Set("name", dtype.name);
    row.Set("block", dtype.block);
    row.Set("blockBytes", dtype.block_bytes);
    row.Set("unitRoundoff", dtype.unit_roundoff);
    table.Set(table.Length(), row);
  }
  return table;
}

Napi::Value errors(const Napi::CallbackInfo& info) {
  Napi::Object table = Napi::Object::New(info.Env());
#define LAPIDARY_ERROR(enumerator, code, meaning) table.Set(code, meaning);
#include "core/error_codes.def"
#undef LAPIDARY_ERROR
  return table;
}

Napi::Value ops(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  static const char* const kinds[] = {"number", "integer", "boolean", "choice"};
  Napi::Array table = Napi::Array::New(env);
  for (size_t id = 0; id < size_t(OpId::kCount); ++id) {
    const Contract& op = contract(OpId(id));
    Napi::Object row = Napi::Object::New(env);
    row.Set("name", op.name);
    Napi::Array inputs = Napi::Array::New(env);
    for (int i = 0; i < op.input_count; ++i) {
      const InputSpec& spec = op.inputs[i];
      inputs.Set(uint32_t(i), std::string(spec.name) + (spec.optional ? "?" : "") + (spec.mutated ? "!" : ""));
    }
    row.Set("inputs", inputs);
    Napi::Array attributes = Napi::Array::New(env);
    for (int i = 0; i < op.attribute_count; ++i) {
      const AttributeSpec& spec = op.attributes[i];
      Napi::Object attribute = Napi::Object::New(env);
      attribute.Set("name", spec.name);
      attribute.Set("kind", kinds[size_t(spec.kind)]);
      if (!std::isnan(spec.initial)) attribute.Set("initial", spec.initial);
      if (spec.choices) attribute.Set("choices", spec.choices);
      attributes.Set(uint32_t(i), attribute);
    }
    row.Set("attributes", attributes);
    Napi::Array outputs = Napi::Array::New(env);
    for (int i = 0; i < op.output_count; ++i) outputs.Set(uint32_t(i), op.outputs[i]);
    row.Set("outputs", outputs);
    table.Set(uint32_t(id), row);
  }
  return table;
}

// setErrorClass(class): what native code throws and rejects with; called as new Class(code, message).
void set_error_class(const Napi::CallbackInfo& info) {
  if (info.Length() == 1 && info[0].IsFunction()) {
    Environment::of(info.Env()).error_class = Napi::Persistent(info[0].As<Napi::Function>());
  }
}

}  // namespace

void export_tables(Napi::Env env, Napi::Object exports) {
  exports.Set("dtypes", Napi::Function::New<dtypes>(env));
  exports.Set("errors", Napi::Function::New<errors>(env));
  exports.Set("ops", Napi::Function::New<ops>(env));
  exports.Set("setErrorClass", Napi::Function::New<set_error_class>(env));
}

}  // namespace lapidary
