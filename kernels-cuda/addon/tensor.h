// Tensors on their way between JavaScript and ONNX Runtime.
//
// A run reads large inputs where they lie, and holds on to them until it ends, as Node's own fs.write does: the caller
// must neither change nor transfer them before. Small inputs are copied, which costs less. Outputs are copies.
#pragma once

#include <napi.h>
#include <onnxruntime_cxx_api.h>

#include <memory>
#include <string>
#include <vector>

#include "session_state.h"

namespace ortflash {

// A tensor that stays on the GPU; keeps its session, whose memory it lies in.
struct DeviceTensor {
  std::shared_ptr<SessionState> session;
  Ort::Value value{nullptr};
};

// The JavaScript object that stands for a DeviceTensor: download(): Promise<ArrayBuffer>, dispose().
class DeviceTensorObject : public Napi::ObjectWrap<DeviceTensorObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  static Napi::Object Create(Napi::Env env, std::shared_ptr<SessionState> session, Ort::Value value);
  // Throws Failure `invalid-tensor` where the value is no such object or was disposed of.
  static std::shared_ptr<DeviceTensor> From(const Napi::Value& value, const std::string& name);

  // One that JavaScript makes is like one that was disposed of.
  explicit DeviceTensorObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Download(const Napi::CallbackInfo& info);
  void Dispose(const Napi::CallbackInfo& info);

  std::shared_ptr<DeviceTensor> tensor_;
};

// One input of a run.
struct Feed {
  std::string name;
  Ort::Value owned{nullptr};
  // `owned` is to be copied to the GPU before the run, from page-locked memory. ONNX Runtime itself would not copy that:
  // its kernels would read it across the bus, again and again.
  bool upload = false;
  // Set instead of `owned` for a tensor that lies on the GPU.
  std::shared_ptr<DeviceTensor> resident;
  // The JavaScript array whose memory `owned` is; empty where it is a copy. Made and freed on JavaScript's thread.
  Napi::Reference<Napi::Uint8Array> lent;

  const Ort::Value& value() const { return resident ? resident->value : owned; }
};

// Reads [name, type, dims, data] or [name, device]. `data` is a Uint8Array of the tensor's bytes, or an array of
// strings. Arrays, because looking properties up by name is much of what a small run costs. Throws Failure `invalid-tensor` where it does not fit itself or the model.
Feed ReadFeed(SessionState& session, const Napi::Array& record);

// A result [type, dims] of JavaScript, for a tensor of strings also its data.
Napi::Array CreateResult(Napi::Env env, const Ort::Value& value);

// Where a result's data goes.
constexpr uint32_t kResultData = 2;

// An ArrayBuffer for an output. It holds anything, and must be filled, all of it, before anybody sees it.
Napi::ArrayBuffer OutputMemory(Napi::Env env, size_t bytes);

// Bytes of the elements; 0 for strings.
size_t TensorByteLength(const Ort::Value& value);

}  // namespace ortflash
