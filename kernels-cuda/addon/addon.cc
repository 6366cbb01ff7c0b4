// The addon's entry: initialize(library, logLevel) and createSession(model, options); node-addon.ts has their types.
#include <napi.h>

#include "addon_data.h"
#include "failure.h"
#include "runtime.h"
#include "session.h"
#include "tensor.h"

namespace ortflash {
namespace {

// initialize(library: string, logSeverityLevel: number): { version: string, providers: string[] }
Napi::Value Initialize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Guarded(env, [&] {
    if (!info[0].IsString() || !info[1].IsNumber())
      throw Failure("invalid-argument", "initialize takes a path and a log severity level");
    const int level = info[1].As<Napi::Number>().Int32Value();
    if (level < ORT_LOGGING_LEVEL_VERBOSE || level > ORT_LOGGING_LEVEL_FATAL)
      throw Failure("invalid-argument", "the log severity level must be from 0 to 4");
    OpenRuntime(info[0].As<Napi::String>().Utf8Value(), static_cast<OrtLoggingLevel>(level));
    Napi::Array providers = Napi::Array::New(env);
    for (const std::string& provider : RuntimeProviders()) providers.Set(providers.Length(), provider);
    Napi::Object result = Napi::Object::New(env);
    result.Set("version", RuntimeVersion());
    result.Set("providers", providers);
    return result;
  });
}

// Of what this file exports and the objects behind it: INTERFACE_VERSION of node-addon.ts, which takes no other.
constexpr int kInterfaceVersion = 2;

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto* data = new AddonData();
  data->session = Napi::Persistent(SessionObject::Define(env));
  data->device_tensor = Napi::Persistent(DeviceTensorObject::Define(env));
  env.SetInstanceData(data);
  exports.Set("interfaceVersion", Napi::Number::New(env, kInterfaceVersion));
  exports.Set("initialize", Napi::Function::New(env, Initialize));
  exports.Set("createSession", Napi::Function::New(env, SessionObject::Open));
  return exports;
}

}  // namespace
}  // namespace ortflash

static Napi::Object InitAddon(Napi::Env env, Napi::Object exports) { return ortflash::Init(env, exports); }

NODE_API_MODULE(ort_flash_node, InitAddon)
