// ONNX Runtime as a peer of bench/cuda-attention.py, in its process: sessions of one model each on the caller's stream and
// memory. A library without dependencies of its own:
//
//   g++ -std=c++17 -O2 -shared -fPIC -I INCLUDE -o ort-peer.so bench/ort-peer.cpp -ldl
//
// with INCLUDE holding onnxruntime_c_api.h. Functions that can fail return null where all went well, and the reason
// otherwise, which lasts until the next call.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdint>
#include <string>

namespace {

const OrtApi *api;
OrtEnv *env;
std::string reason;

struct Failure {
  std::string why;
};

void check(OrtStatus *status) {
  if (!status) return;
  const std::string why = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Failure{why};
}

// The reason why it failed, or null.
template <typename Body>
const char *attempt(Body &&body) {
  try {
    body();
    return nullptr;
  } catch (const Failure &failure) {
    reason = failure.why;
    return reason.c_str();
  }
}

struct Session {
  OrtSession *session = nullptr;
  OrtIoBinding *binding = nullptr;
  OrtRunOptions *run_options = nullptr;
  OrtMemoryInfo *memory = nullptr;
  ~Session() {
    if (binding) api->ReleaseIoBinding(binding);
    if (run_options) api->ReleaseRunOptions(run_options);
    if (memory) api->ReleaseMemoryInfo(memory);
    if (session) api->ReleaseSession(session);
  }
};

void use_cuda(OrtSessionOptions *options, void *stream) {
  OrtCUDAProviderOptionsV2 *provider;
  check(api->CreateCUDAProviderOptions(&provider));
  check(api->UpdateCUDAProviderOptionsWithValue(provider, "user_compute_stream", stream));
  check(api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, provider));
  api->ReleaseCUDAProviderOptions(provider);
}

}  // namespace

// Loads ONNX Runtime's library.
extern "C" const char *ort_peer_start(const char *library) {
  return attempt([&] {
    void *runtime = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    if (!runtime) throw Failure{dlerror()};
    const auto base = reinterpret_cast<const OrtApiBase *(*)()>(dlsym(runtime, "OrtGetApiBase"));
    if (!base) throw Failure{"not ONNX Runtime's library"};
    api = base()->GetApi(18);
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bench", &env));
  });
}

// A session of a model; on the GPU and `stream`, which is not the default one, or on the CPU where that is null.
extern "C" const char *ort_peer_open(const void *model, size_t bytes, void *stream, Session **opened) {
  return attempt([&] {
    auto made = new Session;
    *opened = made;
    OrtSessionOptions *options;
    check(api->CreateSessionOptions(&options));
    if (stream) use_cuda(options, stream);
    check(api->CreateSessionFromArray(env, model, bytes, options, &made->session));
    api->ReleaseSessionOptions(options);
    check(api->CreateIoBinding(made->session, &made->binding));
    check(api->CreateRunOptions(&made->run_options));
    // Runs are enqueued and not waited for.
    check(api->AddRunConfigEntry(made->run_options, "disable_synchronize_execution_providers", "1"));
    check(stream ? api->CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &made->memory)
                 : api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &made->memory));
  });
}

// Where an input or output lies. `type`: a number of ONNX's TensorProto.
extern "C" const char *ort_peer_bind(Session *session, int is_output, const char *name, void *data, size_t bytes, int type,
                                     const int64_t *shape, size_t rank) {
  return attempt([&] {
    OrtValue *value;
    check(api->CreateTensorWithDataAsOrtValue(session->memory, data, bytes, shape, rank,
                                              static_cast<ONNXTensorElementDataType>(type), &value));
    OrtStatus *status =
        is_output ? api->BindOutput(session->binding, name, value) : api->BindInput(session->binding, name, value);
    api->ReleaseValue(value);
    check(status);
  });
}

// Enqueues a run.
extern "C" const char *ort_peer_run(Session *session) {
  return attempt([&] { check(api->RunWithBinding(session->session, session->run_options, session->binding)); });
}

extern "C" void ort_peer_close(Session *session) { delete session; }
