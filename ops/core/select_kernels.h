// Which kernels run: the best set the processor and the operating system support, or the one that is asked for.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace deltallm {

/// True if this processor can run the named set and it was compiled in. The names are "scalar", "avx2", "avx512",
/// "avx512_vnni", "neon" and "neon_dotprod".
bool IsaSupported(const std::string& isa);

/// The kernels named by `isa`; empty or null means the best supported set.
/// Throws Refusal for an unknown name and for a set that this processor cannot run.
const Kernels& SelectKernels(const char* isa);

}  // namespace deltallm
