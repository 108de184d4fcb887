# One source file per instruction set, each with its own compiler flags; core/select_kernels.cc chooses at run time.
set(DELTALLM_KERNEL_SOURCES kernels/scalar.cc kernels/packed_scalar.cc kernels/packed_coding_scalar.cc
  kernels/prefill_scalar.cc)
set(DELTALLM_KERNEL_DEFINITIONS)
# For iOS, and for a Mac of the other architecture, CMAKE_SYSTEM_PROCESSOR is not the target's.
set(processor ${CMAKE_SYSTEM_PROCESSOR})
if(CMAKE_OSX_ARCHITECTURES)
  list(LENGTH CMAKE_OSX_ARCHITECTURES architectures)
  if(architectures GREATER 1)
    message(FATAL_ERROR "CMAKE_OSX_ARCHITECTURES is '${CMAKE_OSX_ARCHITECTURES}': build for one at a time, and join with lipo.")
  endif()
  set(processor ${CMAKE_OSX_ARCHITECTURES})
endif()
if(processor MATCHES "^(x86_64|amd64|AMD64)$")
  list(APPEND DELTALLM_KERNEL_SOURCES kernels/avx2.cc kernels/packed_avx2_tiles.cc kernels/packed_avx2_blocks.cc
    kernels/avx512.cc kernels/packed_avx512_vnni_tiles.cc kernels/packed_avx512_vnni_blocks.cc)
  list(APPEND DELTALLM_KERNEL_SOURCES kernels/prefill_avx512_bf16.cc kernels/packed_coding_avx2.cc kernels/packed_coding_avx512.cc)
  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12's own AVX-512 header passes deliberately undefined registers and warns about it (GCC bug 105593).
    list(APPEND avx512 -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  set_source_files_properties(kernels/avx2.cc kernels/packed_avx2_tiles.cc kernels/packed_avx2_blocks.cc
    kernels/packed_coding_avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set_source_files_properties(kernels/avx512.cc kernels/packed_coding_avx512.cc PROPERTIES COMPILE_OPTIONS "${avx512}")
  set_source_files_properties(kernels/packed_avx512_vnni_tiles.cc kernels/packed_avx512_vnni_blocks.cc PROPERTIES
    COMPILE_OPTIONS "${avx512};-mavx512vnni")
  set_source_files_properties(kernels/prefill_avx512_bf16.cc PROPERTIES
    COMPILE_OPTIONS "${avx512};-mavx512vnni;-mavx512bf16")
  list(APPEND DELTALLM_KERNEL_DEFINITIONS DELTALLM_HAVE_X86_KERNELS)
elseif(processor MATCHES "^(aarch64|arm64)$")
  list(APPEND DELTALLM_KERNEL_SOURCES kernels/neon.cc kernels/packed_neon.cc kernels/packed_neon_dotprod.cc)
  set_source_files_properties(kernels/packed_neon_dotprod.cc PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
  list(APPEND DELTALLM_KERNEL_DEFINITIONS DELTALLM_HAVE_NEON_KERNELS)
endif()
