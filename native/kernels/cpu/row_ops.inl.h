// row_ops: operations on the rows of a tensor that are bound by memory: norms, residual adds, activations, soft cap,
// casts. Formulas and contracts: ops/row_ops.h; algorithms and their sources: row_ops/norms.h and
// row_ops/elementwise.h.
//
//   float_rows.h    where rows begin, and their elements as f32 whatever their dtype
//   norms.h         a thread owns whole rows: a sum over a row decides what becomes of each element
//   elementwise.h   a thread owns stretches of rows
//   means.h         a thread owns stretches of the columns of a sequence
//   columns.h       a thread owns stretches of rows
//
// Cost: every element is read once and written once, for 1 (add) to 25 (geglu) f32 operations. Time, two threads of a
// Zen 5 with avx512, beside a copy loop over the same bytes:
//   rms_norm [512, 2560] f32         10.5 MB   0.059 ms   copy 0.058
//   add_rms_norm [512, 2560] f32     21.0 MB   0.116 ms   copy 0.12 to 0.13
//   geglu [512, 2 · 10240] f32       62.9 MB   0.64 ms    copy 0.54; its arithmetic alone takes 0.46
// Stores that bypass the cache would save a fifth of geglu's time where the result does not fit it, and cost the next
// op the cached copy where it does; no kernel can tell the two apart from here, so none uses them. Software prefetch
// changes nothing.
#pragma once
#include "kernels/cpu/row_ops/columns.h"
#include "kernels/cpu/row_ops/elementwise.h"
#include "kernels/cpu/row_ops/means.h"
#include "kernels/cpu/row_ops/norms.h"

namespace lapidary {
namespace {

static const Kernel kKernels[] = {
    {OpId::rms_norm, rms_norm, nullptr},     {OpId::add_rms_norm, add_rms_norm, nullptr},
    {OpId::layer_norm, layer_norm, nullptr}, {OpId::gelu, gelu, nullptr},
    {OpId::geglu, geglu, nullptr},           {OpId::add, add, nullptr},
    {OpId::softcap, softcap, nullptr},       {OpId::cast, cast, nullptr},
    {OpId::mean_rows, mean_rows, nullptr},   {OpId::gather_columns, gather_columns, nullptr},
};

}  // namespace
}  // namespace lapidary
