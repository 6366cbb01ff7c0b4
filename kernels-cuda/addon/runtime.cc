#include "runtime.h"

#include <dlfcn.h>

#include <memory>
#include <mutex>

#include "failure.h"

namespace ortflash {
namespace {

struct Runtime {
  std::string library;
  std::string version;
  Ort::Env environment{nullptr};
};

std::mutex mutex;
// Never destroyed: ONNX Runtime's own threads and the other addons that share its library may outlive static
// destructors, and the process ends anyway.
Runtime* runtime = nullptr;

const OrtApiBase* LoadApiBase(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    throw Failure("file-access", "cannot load ONNX Runtime: " + std::string(why == nullptr ? library : why));
  }
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) throw Failure("file-access", library + " is not ONNX Runtime: it has no OrtGetApiBase");
  const OrtApiBase* base = get_base();
  if (base->GetApi(ORT_API_VERSION) == nullptr) {
    throw Failure("unsupported", library + " is ONNX Runtime " + base->GetVersionString() +
                                     "; this addon needs 1." + std::to_string(ORT_API_VERSION) + " or later");
  }
  return base;
}

}  // namespace

void OpenRuntime(const std::string& library, OrtLoggingLevel log_level) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (runtime != nullptr) {
    if (runtime->library == library) return;
    throw Failure("invalid-argument", "ONNX Runtime is already loaded from " + runtime->library);
  }
  const OrtApiBase* base = LoadApiBase(library);
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  auto opened = std::make_unique<Runtime>();
  opened->library = library;
  opened->version = base->GetVersionString();
  opened->environment = Ort::Env(log_level, "ort-flash");
  runtime = opened.release();
}

const Ort::Env& RuntimeEnvironment() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (runtime == nullptr) throw Failure("invalid-argument", "ONNX Runtime is not loaded yet: call initialize first");
  return runtime->environment;
}

std::vector<std::string> RuntimeProviders() { return Ort::GetAvailableProviders(); }

std::string RuntimeVersion() {
  const std::lock_guard<std::mutex> lock(mutex);
  return runtime == nullptr ? std::string() : runtime->version;
}

}  // namespace ortflash
