# CPU kernels: one object per (stem, ISA), compiled with that ISA's flags, from a generated translation unit of three
# lines. Stems come from ops/ops.def, ISAs from kernels/cpu/isa.def; nothing generated is committed.
#
# An ISA either compiles every stem's generic source, <stem>.inl.h (LAPIDARY_STEMS_<isa> = all), or only what it
# overrides: <stem>_<isa>.inl.h where that file exists, and the generic source of the stems in LAPIDARY_STEMS_<isa>.

# Scalar kernels are the reference on every machine and the way out on old ones. -O3 unrolls their loops over the lanes of a
# vector: matmul then takes 69 s of one processor to compile instead of 22, and 1.7 MB instead of 0.5 (GCC 12, x64).
if(LAPIDARY_SANITIZE)
  set(LAPIDARY_FLAGS_scalar "")
else()
  set(LAPIDARY_FLAGS_scalar -O2)
endif()
set(LAPIDARY_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(LAPIDARY_FLAGS_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mfma -mf16c
    -mprefer-vector-width=512)
set(LAPIDARY_FLAGS_avx512_bf16 ${LAPIDARY_FLAGS_avx512} -mavx512bf16)
set(LAPIDARY_FLAGS_amx ${LAPIDARY_FLAGS_avx512_bf16} -mamx-tile -mamx-int8 -mamx-bf16)
set(LAPIDARY_FLAGS_amx_emulated ${LAPIDARY_FLAGS_avx512_bf16})  # the AMX sources over tiles in memory
set(LAPIDARY_FLAGS_neon "")
set(LAPIDARY_FLAGS_i8mm -march=armv8.2-a+dotprod+i8mm)

set(LAPIDARY_STEMS_scalar all)
set(LAPIDARY_STEMS_avx2 all)
set(LAPIDARY_STEMS_avx512 all)
set(LAPIDARY_STEMS_neon all)
set(LAPIDARY_STEMS_i8mm matmul)  # the same source; its vocabulary multiplies bytes with smmla

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(architecture x86_64)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(architecture aarch64)
else()
  set(architecture any)
endif()

set(ops_def ${CMAKE_CURRENT_SOURCE_DIR}/ops/ops.def)
set(isa_def ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cpu/isa.def)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ops_def} ${isa_def})

set(stems "")
file(STRINGS ${ops_def} lines REGEX "^LAPIDARY_OP\\(")
foreach(line IN LISTS lines)
  string(REGEX MATCH "^LAPIDARY_OP\\( *([a-z0-9_]+) *, *([a-z0-9_]+) *\\)" matched "${line}")
  list(APPEND stems ${CMAKE_MATCH_2})
endforeach()
list(REMOVE_DUPLICATES stems)

set(isas "")
file(STRINGS ${isa_def} lines REGEX "^LAPIDARY_ISA\\(")
foreach(line IN LISTS lines)
  string(REGEX MATCH "^LAPIDARY_ISA\\( *([a-z0-9_]+) *, *([a-z0-9_]+) *," matched "${line}")
  set(isa ${CMAKE_MATCH_1})
  if(CMAKE_MATCH_2 STREQUAL "any")
    list(APPEND isas ${isa})
  elseif(CMAKE_MATCH_2 STREQUAL architecture AND (LAPIDARY_ISAS STREQUAL "all" OR isa IN_LIST LAPIDARY_ISAS))
    list(APPEND isas ${isa})
  endif()
endforeach()

# The file name of the kernel that `isa` compiles for `stem`; empty: none.
function(lapidary_kernel_source stem isa result)
  string(REPLACE "_emulated" "" overriding ${isa})
  set(source "")
  if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cpu/${stem}_${overriding}.inl.h)
    set(source ${stem}_${overriding}.inl.h)
  elseif("all" IN_LIST LAPIDARY_STEMS_${isa} OR stem IN_LIST LAPIDARY_STEMS_${isa})
    set(source ${stem}.inl.h)
  endif()
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

file(GLOB kernel_sources CONFIGURE_DEPENDS kernels/cpu/*.inl.h kernels/cpu/simd/*.h)  # new ones re-run this file

add_library(cpu_kernels INTERFACE)
set(declarations "")
set(entries "")
set(count 0)
foreach(isa IN LISTS isas)
  set(units "")
  set(simd kernels/cpu/simd/${isa}.h)
  foreach(stem IN LISTS stems)
    lapidary_kernel_source(${stem} ${isa} source)
    if(source AND (LAPIDARY_STEMS STREQUAL "all" OR stem IN_LIST LAPIDARY_STEMS))
      set(set lapidary_${stem}_${isa})
      set(unit ${CMAKE_CURRENT_BINARY_DIR}/kernels/${stem}_${isa}.cc)
      file(CONFIGURE OUTPUT ${unit} @ONLY CONTENT [[
#include "@simd@"
#include "kernels/cpu/@source@"
extern "C" {
extern const lapidary::KernelSet @set@;
const lapidary::KernelSet @set@ = {lapidary::kKernels, int(sizeof lapidary::kKernels / sizeof *lapidary::kKernels)};
}
]])
      list(APPEND units ${unit})
      string(APPEND declarations "extern const lapidary::KernelSet ${set};\n")
      string(APPEND entries "    {\"${isa}\", \"${stem}\", &${set}},\n")
      math(EXPR count "${count} + 1")
    endif()
  endforeach()
  if(units)
    add_library(kernels_${isa} OBJECT ${units})
    target_compile_options(kernels_${isa} PRIVATE ${LAPIDARY_FLAGS_${isa}})
    target_link_libraries(cpu_kernels INTERFACE kernels_${isa} $<TARGET_OBJECTS:kernels_${isa}>)
  endif()
endforeach()

file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/kernels/cpu_kernel_sets.cc @ONLY CONTENT [[
#include "backends/cpu/kernel_sets.h"
extern "C" {
@declarations@}
namespace lapidary {
const IsaKernelSet lapidary_kernel_sets[] = {
@entries@    {nullptr, nullptr, nullptr},
};
const int lapidary_kernel_set_count = @count@;
}  // namespace lapidary
]])
target_sources(baseline PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/kernels/cpu_kernel_sets.cc)
