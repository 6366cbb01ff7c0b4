// Work on a thread of Node's pool that settles a promise.
#pragma once

#include <napi.h>

#include <string>

#include "failure.h"

namespace ortflash {

class PromiseWorker : public Napi::AsyncWorker {
 public:
  explicit PromiseWorker(Napi::Env env)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)) {}

  // Starts the work. The worker deletes itself in the end.
  Napi::Promise Start() {
    const Napi::Promise promise = deferred_.Promise();
    Queue();
    return promise;
  }

 protected:
  // On a thread of the pool, where no JavaScript value may be touched. May throw.
  virtual void Work() = 0;
  // On JavaScript's thread: what the promise resolves to. May throw.
  virtual Napi::Value Result(Napi::Env env) = 0;

  Napi::Promise::Deferred& deferred() { return deferred_; }

  // Settles the promise with what `value` returns or throws.
  template <typename Value>
  void Settle(Value&& value) {
    const Napi::Env env = Env();
    try {
      deferred_.Resolve(Guarded(env, value));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }

 private:
  void Execute() final {
    try {
      Work();
    } catch (const Failure& failure) {
      code_ = failure.code();
      SetError(failure.what());
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }

  void OnOK() override {
    const Napi::HandleScope scope(Env());
    Settle([this] { return Result(Env()); });
  }

  void OnError(const Napi::Error& error) override {
    const Napi::HandleScope scope(Env());
    deferred_.Reject(ToJavaScript(Env(), code_, error.Message()).Value());
  }

  Napi::Promise::Deferred deferred_;
  const char* code_ = "runtime";
};

}  // namespace ortflash
