# Finds ONNX Runtime's C headers. Only headers are needed: nothing links against libonnxruntime.
function(deltallm_find_ort_headers result)
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
    HINTS $ENV{ONNXRUNTIME_INCLUDE_DIR}
    PATH_SUFFIXES onnxruntime include include/onnxruntime onnxruntime/core/session include/onnxruntime/core/session)
  if(NOT ONNXRUNTIME_INCLUDE_DIR)
    message(FATAL_ERROR
      "ONNX Runtime's headers were not found: run scripts/get_ort_headers.sh and set the environment variable "
      "ONNXRUNTIME_INCLUDE_DIR to the folder it prints into build/ort-headers/.ready, or pass "
      "-DONNXRUNTIME_INCLUDE_DIR=<the folder that holds onnxruntime_c_api.h>.")
  endif()
  file(STRINGS ${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h version_line REGEX "#define ORT_API_VERSION")
  string(REGEX MATCH "[0-9]+" version "${version_line}")
  # 17: KernelContext_ParallelFor and shape inference through the C API.
  if(NOT version OR version LESS 17)
    message(FATAL_ERROR
      "The headers in ${ONNXRUNTIME_INCLUDE_DIR} are of ONNX Runtime 1.${version}: 1.17 or newer is needed.")
  endif()
  message(STATUS "ONNX Runtime headers: ${ONNXRUNTIME_INCLUDE_DIR} (1.${version})")
  set(${result} ${ONNXRUNTIME_INCLUDE_DIR} PARENT_SCOPE)
endfunction()
