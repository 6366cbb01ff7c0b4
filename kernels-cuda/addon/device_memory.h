// Copies between GPU and CPU memory through the CUDA runtime that ONNX Runtime's provider has loaded.
#pragma once

#include <cstddef>

namespace ortflash {

// Copies `bytes` bytes between any two addresses of the CPU and the GPUs, and waits for the end.
// Throws Failure `device` where no CUDA runtime is loaded or the copy fails.
void CopyDeviceMemory(void* target, const void* source, size_t bytes);

}  // namespace ortflash
