// Keeps the library loadable by the C library that ONNX Runtime's own wheels ask for (glibc 2.27).

extern "C" {

/// What libstdc++, linked in, reads to leave out atomic instructions in a process with one thread; glibc has it since
/// 2.32. This one is false, "there may be others", and hidden, so that nobody else's libstdc++ finds it.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
