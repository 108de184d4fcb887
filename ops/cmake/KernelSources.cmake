# One source file per instruction set, each with its own compiler flags; core/select_kernels.cc chooses at run time.
set(DELTALLM_KERNEL_SOURCES kernels/scalar.cc)
set(DELTALLM_KERNEL_DEFINITIONS)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  list(APPEND DELTALLM_KERNEL_SOURCES kernels/avx2.cc kernels/avx512.cc)
  set_source_files_properties(kernels/avx2.cc PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  # GCC 12's own AVX-512 header passes deliberately undefined registers and warns about it (GCC bug 105593).
  set_source_files_properties(kernels/avx512.cc PROPERTIES
    COMPILE_OPTIONS
      "-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mfma;-mf16c;-Wno-maybe-uninitialized;-Wno-uninitialized")
  list(APPEND DELTALLM_KERNEL_DEFINITIONS DELTALLM_HAVE_X86_KERNELS)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  list(APPEND DELTALLM_KERNEL_SOURCES kernels/neon.cc)
  list(APPEND DELTALLM_KERNEL_DEFINITIONS DELTALLM_HAVE_NEON_KERNELS)
endif()
