// Errors that reach JavaScript: an ErrorCode of graph-rewrite/errors.ts, and a message.
#pragma once

#include <napi.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace ortflash {

class Failure : public std::runtime_error {
 public:
  Failure(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }

 private:
  const char* code_;
};

inline Napi::Error ToJavaScript(Napi::Env env, const char* code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

// Runs `body` and turns what it throws into a JavaScript exception; a JavaScript exception passes through.
template <typename Body>
auto Guarded(Napi::Env env, Body&& body) -> decltype(body()) {
  try {
    return std::forward<Body>(body)();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Failure& failure) {
    throw ToJavaScript(env, failure.code(), failure.what());
  } catch (const std::exception& error) {
    throw ToJavaScript(env, "runtime", error.what());
  }
}

}  // namespace ortflash
