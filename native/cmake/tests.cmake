# Native tests: every test/native/<name>.cc is an executable of its own, <name>_test: main() returns 0 for success and 77 for
# a machine that lacks what it needs. simd.cc is compiled once per ISA, into simd_test_<isa>, with that ISA's flags and its
# vocabulary included first. scripts/test-native.mjs runs them.
set(LAPIDARY_X86_64_TESTS tiles)
set(LAPIDARY_PARTS_tiles amx_stores)  # a part of tiles; check-amx-objects.sh reads its code too
set(LAPIDARY_ISAS_WITHOUT_VECTORS amx amx_emulated)  # their vectors are avx512_bf16's; their tiles have tiles.cc

set(test_directory ${CMAKE_CURRENT_SOURCE_DIR}/../test/native)
file(GLOB test_sources CONFIGURE_DEPENDS ${test_directory}/*.cc)

add_custom_target(native_tests)
function(lapidary_test name)
  add_executable(${name} EXCLUDE_FROM_ALL ${ARGN})
  add_dependencies(native_tests ${name})
  target_include_directories(${name} PRIVATE ${test_directory})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/tests)
endfunction()

foreach(source IN LISTS test_sources)
  get_filename_component(name ${source} NAME_WE)
  if(name STREQUAL "simd")
    foreach(isa IN LISTS isas)
      set(header kernels/cpu/simd/${isa}.h)
      if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${header} AND NOT isa IN_LIST LAPIDARY_ISAS_WITHOUT_VECTORS)
        lapidary_test(simd_test_${isa} ${source})
        target_compile_options(simd_test_${isa} PRIVATE ${LAPIDARY_FLAGS_${isa}} -include ${header})
      endif()
    endforeach()
  elseif(name MATCHES "^cuda_")
    # Sanitizers do not follow fibres. The kernels' tests run where the compiler does: elsewhere the emulation of a GPU would itself
    # be emulated, and only its switch between fibres, which is assembly, is another.
    if(TARGET cuda_emulation AND NOT LAPIDARY_SANITIZE AND (name STREQUAL "cuda_emulation" OR NOT CMAKE_CROSSCOMPILING))
      lapidary_test(${name}_test ${source})
      target_compile_options(${name}_test PRIVATE -Wno-unknown-pragmas)
      target_link_libraries(${name}_test PRIVATE cuda_emulation Threads::Threads)
    endif()
  elseif(name IN_LIST LAPIDARY_PARTS_tiles OR (name IN_LIST LAPIDARY_X86_64_TESTS AND NOT architecture STREQUAL "x86_64"))
    continue()
  else()
    list(TRANSFORM LAPIDARY_PARTS_${name} REPLACE "(.+)" "${test_directory}/\\1.cc" OUTPUT_VARIABLE parts)
    lapidary_test(${name}_test ${source} ${parts})
    target_link_libraries(${name}_test PRIVATE baseline cpu_kernels Threads::Threads ${CMAKE_DL_LIBS})
  endif()
endforeach()
