# Cross-compiles for 64-bit ARM Linux: cmake -S ops --toolchain ops/cmake/aarch64-linux.cmake
# The compiler is the one in PATH, or the one that scripts/get_arm64.sh unpacked.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
get_filename_component(unpacked ${CMAKE_CURRENT_LIST_DIR}/../../build/arm64 ABSOLUTE)
set(DELTALLM_ARM64 ${unpacked} CACHE PATH "What scripts/get_arm64.sh unpacked")
# try_compile reads this file again, without the cache.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES DELTALLM_ARM64)

find_program(DELTALLM_ARM64_CXX NAMES aarch64-linux-gnu-g++ aarch64-linux-gnu-g++-12
  HINTS ${DELTALLM_ARM64}/tools/bin NO_CMAKE_FIND_ROOT_PATH)
if(NOT DELTALLM_ARM64_CXX)
  message(FATAL_ERROR "There is no aarch64-linux-gnu-g++: run scripts/get_arm64.sh, or install g++-aarch64-linux-gnu.")
endif()
set(CMAKE_CXX_COMPILER ${DELTALLM_ARM64_CXX})

# Programs run here, libraries are the target's; ONNX Runtime's headers are the same for all.
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)

# ctest runs what was built; qemu reads QEMU_CPU (cortex-a53, cortex-a76) itself.
find_program(DELTALLM_QEMU NAMES qemu-aarch64 HINTS ${DELTALLM_ARM64}/tools/bin NO_DEFAULT_PATH)
if(DELTALLM_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${DELTALLM_QEMU} -L ${DELTALLM_ARM64}/root)
endif()
