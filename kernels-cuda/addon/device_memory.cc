#include "device_memory.h"

#include <dlfcn.h>

#include <string>

#include "failure.h"

namespace ortflash {
namespace {

using CudaMemcpy = int (*)(void*, const void*, size_t, int);
using CudaGetErrorString = const char* (*)(int);

// cudaMemcpyDefault: the driver tells from the addresses which side is where.
constexpr int kCopyDefault = 4;

struct CudaRuntime {
  CudaMemcpy copy = nullptr;
  CudaGetErrorString error_text = nullptr;

  CudaRuntime() {
    // The provider links one of these, so it is in the process whenever a CUDA session is.
    for (const char* name : {"libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"}) {
      void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
      if (library == nullptr) continue;
      copy = reinterpret_cast<CudaMemcpy>(dlsym(library, "cudaMemcpy"));
      error_text = reinterpret_cast<CudaGetErrorString>(dlsym(library, "cudaGetErrorString"));
      if (copy != nullptr) return;
    }
  }
};

}  // namespace

void CopyDeviceMemory(void* target, const void* source, size_t bytes) {
  static const CudaRuntime cuda;
  if (cuda.copy == nullptr) throw Failure("device", "the CUDA runtime library is not loaded");
  if (bytes == 0) return;
  const int status = cuda.copy(target, source, bytes, kCopyDefault);
  if (status == 0) return;
  const char* why = cuda.error_text == nullptr ? nullptr : cuda.error_text(status);
  throw Failure("device", "copying to or from the GPU failed: " +
                              (why == nullptr ? "CUDA error " + std::to_string(status) : std::string(why)));
}

}  // namespace ortflash
