// The JavaScript object that stands for a session.
#pragma once

#include <napi.h>

#include <memory>

#include "session_state.h"

namespace ortflash {

// NativeSession of node-addon.ts: inputs, outputs, run(), endProfiling(), release().
class SessionObject : public Napi::ObjectWrap<SessionObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  // createSession(model: string | Uint8Array, options: object): Promise<NativeSession>
  static Napi::Value Open(const Napi::CallbackInfo& info);

  static Napi::Object Create(Napi::Env env, std::shared_ptr<SessionState> state);

  // One that JavaScript makes is like one that was released.
  explicit SessionObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<SessionObject>(info) {}

 private:
  Napi::Value Inputs(const Napi::CallbackInfo& info);
  Napi::Value Outputs(const Napi::CallbackInfo& info);
  Napi::Value Run(const Napi::CallbackInfo& info);
  Napi::Value EndProfiling(const Napi::CallbackInfo& info);
  Napi::Value Release(const Napi::CallbackInfo& info);

  // Throws Failure `invalid-argument` where the session was released.
  std::shared_ptr<SessionState> State() const;

  std::shared_ptr<SessionState> state_;
};

}  // namespace ortflash
