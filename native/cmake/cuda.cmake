# The CUDA kernels, twice from the same sources:
#
#   lapidary_cuda           liblapidary_cuda.so, by nvcc: where LAPIDARY_CUDA asks for it. Ships beside the addon.
#   lapidary_cuda_emulated  liblapidary_cuda_emulated.so, by the C++ compiler over the host emulation. For tests; not in `all`.
#
# Stems are those of ops/ops.def that have a kernels/cuda/<stem>.cu.

set(LAPIDARY_CUDA "off" CACHE STRING "The CUDA library: off, auto (where nvcc 13.0 or newer is found) or on")
set(LAPIDARY_CUDA_ARCHITECTURES "80;90a" CACHE STRING "Architectures to compile for, without sm_; all: what ships")
set(LAPIDARY_CUDA_EVERY_ARCHITECTURE 80 86 89 90a 100f 120f)

set(chosen_architectures ${LAPIDARY_CUDA_ARCHITECTURES})
if(chosen_architectures STREQUAL "all")
  set(chosen_architectures ${LAPIDARY_CUDA_EVERY_ARCHITECTURE})
endif()
set(code_flags "")
foreach(name IN LISTS chosen_architectures)
  list(APPEND code_flags -gencode arch=compute_${name},code=sm_${name})
endforeach()
if(LAPIDARY_CUDA_ARCHITECTURES STREQUAL "all")
  # For what comes after the list: the driver compiles it at first use.
  list(APPEND code_flags -gencode arch=compute_80,code=compute_80)
endif()
list(JOIN chosen_architectures " " architecture_text)

file(GLOB cuda_sources CONFIGURE_DEPENDS kernels/cuda/*.cu)
set(cuda_stems "")
set(cuda_declarations "")
set(cuda_entries "")
foreach(stem IN LISTS stems)
  if("${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/${stem}.cu" IN_LIST cuda_sources)
    list(APPEND cuda_stems ${stem})
    string(APPEND cuda_declarations "extern \"C\" const lapidary::cuda::KernelSet lapidary_cuda_${stem};\n")
    string(APPEND cuda_entries "    &lapidary_cuda_${stem},\n")
  endif()
endforeach()
list(LENGTH cuda_stems cuda_stem_count)
set(cuda_kernel_sets ${CMAKE_CURRENT_BINARY_DIR}/cuda/kernel_sets.cu)
file(CONFIGURE OUTPUT ${cuda_kernel_sets} @ONLY CONTENT [[
#include "kernels/cuda/kernel_sets.h"
@cuda_declarations@
namespace lapidary::cuda {
const KernelSet* const kernel_sets[] = {
@cuda_entries@    nullptr,
};
const int kernel_set_count = @cuda_stem_count@;
#if defined(__CUDACC__)
const char* const architectures = "@architecture_text@";
#else
const char* const architectures = "emulated";
#endif
}  // namespace lapidary::cuda
]])

# ── over the emulation ──────────────────────────────────────────────────────────────────────────────────────────────
if(architecture MATCHES "x86_64|aarch64")
  file(GLOB emulation_sources CONFIGURE_DEPENDS kernels/cuda/device/emulation/*.cc)
  add_library(cuda_emulation OBJECT EXCLUDE_FROM_ALL ${emulation_sources})
  set(units "")
  foreach(name IN LISTS cuda_stems ITEMS library kernel_sets)
    set(unit ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}_emulated.cc)
    set(source kernels/cuda/${name}.cu)
    if(name STREQUAL "kernel_sets")
      set(source ${cuda_kernel_sets})
    endif()
    file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"${source}\"\n" @ONLY)
    list(APPEND units ${unit})
  endforeach()
  # The contracts say which inputs a call may write.
  file(GLOB contract_sources CONFIGURE_DEPENDS ops/*.cc)
  add_library(lapidary_cuda_emulated MODULE EXCLUDE_FROM_ALL ${units} ${contract_sources} core/status.cc)
  target_link_libraries(lapidary_cuda_emulated PRIVATE cuda_emulation Threads::Threads)
  # -O2: templates by the dozen, and the time goes into switching fibres.
  target_compile_options(lapidary_cuda_emulated PRIVATE -O2 -Wno-unknown-pragmas)
  set_target_properties(lapidary_cuda_emulated PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${LAPIDARY_OUTPUT_DIRECTORY})
endif()

# ── by nvcc ─────────────────────────────────────────────────────────────────────────────────────────────────────────
if(LAPIDARY_CUDA STREQUAL "off")
  return()
endif()
find_program(LAPIDARY_NVCC nvcc HINTS $ENV{CUDA_PATH} /usr/local/cuda PATH_SUFFIXES bin)
set(nvcc_version 0)
if(LAPIDARY_NVCC)
  execute_process(COMMAND ${LAPIDARY_NVCC} --version OUTPUT_VARIABLE nvcc_text)
  if(nvcc_text MATCHES "release ([0-9.]+)")
    set(nvcc_version ${CMAKE_MATCH_1})
  endif()
endif()
if(nvcc_version VERSION_LESS 13.0)
  set(why "The CUDA library needs nvcc 13.0 or newer; found: ${LAPIDARY_NVCC} ${nvcc_version}")
  if(LAPIDARY_CUDA STREQUAL "on")
    message(FATAL_ERROR "${why}")
  endif()
  message(NOTICE "${why}. It is left out.")
  return()
endif()

# The compiler's report of every kernel, which scripts/check-cuda.mjs reads, is kept beside the object.
set(cuda_objects "")
foreach(name IN LISTS cuda_stems ITEMS library kernel_sets)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/${name}.cu)
  if(name STREQUAL "kernel_sets")
    set(source ${cuda_kernel_sets})
  endif()
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
  add_custom_command(OUTPUT ${object}
    COMMAND ${CMAKE_COMMAND} -DOUTPUT=${object}.txt -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/run_logged.cmake --
      ${CMAKE_CXX_COMPILER_LAUNCHER} ${LAPIDARY_NVCC} -std=c++20 -O3 -Xptxas -v ${code_flags} -compress-mode=size
      -Xcompiler=-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-gnu-unique,-Wall,-Wno-unknown-pragmas
      -DNDEBUG -I${CMAKE_CURRENT_SOURCE_DIR}
      -MD -MF ${object}.d -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d VERBATIM COMMENT "nvcc ${name}.cu (${architecture_text})")
  list(APPEND cuda_objects ${object})
endforeach()
# As the addon: against an older C library where there is one (scripts/sysroot.mjs).
add_library(cuda_compatibility OBJECT EXCLUDE_FROM_ALL cmake/glibc_compat.cc)
set(sysroot_flags "")
if(CMAKE_SYSROOT)
  list(APPEND sysroot_flags -Xcompiler=--sysroot=${CMAKE_SYSROOT})
  foreach(folder IN LISTS sysroot_folders)
    list(APPEND sysroot_flags -Xcompiler=-B${CMAKE_SYSROOT}/${folder},-L${CMAKE_SYSROOT}/${folder})
  endforeach()
endif()
add_custom_command(OUTPUT ${LAPIDARY_OUTPUT_DIRECTORY}/liblapidary_cuda.so
  COMMAND ${LAPIDARY_NVCC} -shared -cudart static ${cuda_objects} $<TARGET_OBJECTS:cuda_compatibility> ${sysroot_flags}
    -Xlinker=--exclude-libs,ALL -Xlinker=--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports.map -Xlinker=--gc-sections -Xcompiler=-static-libstdc++ -Xlinker=-s
    -o ${LAPIDARY_OUTPUT_DIRECTORY}/liblapidary_cuda.so
  DEPENDS ${cuda_objects} cuda_compatibility $<TARGET_OBJECTS:cuda_compatibility> VERBATIM
  COMMENT "liblapidary_cuda.so")
add_custom_target(lapidary_cuda ALL DEPENDS ${LAPIDARY_OUTPUT_DIRECTORY}/liblapidary_cuda.so)
