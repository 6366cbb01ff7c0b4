// ONNX Runtime's library, opened by path while the process runs.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <string>
#include <vector>

namespace ortflash {

// Opens the library once a process; later calls must name the same one. Thread-safe.
// Throws Failure: `file-access` where it cannot be opened, `unsupported` where it is older than this addon's headers.
void OpenRuntime(const std::string& library, OrtLoggingLevel log_level);

// The environment that all sessions share. Throws Failure `invalid-argument` before OpenRuntime.
const Ort::Env& RuntimeEnvironment();

std::vector<std::string> RuntimeProviders();
std::string RuntimeVersion();

}  // namespace ortflash
