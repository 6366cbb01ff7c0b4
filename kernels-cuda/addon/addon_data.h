// What the addon keeps for each JavaScript environment: the main thread's, and one a worker thread.
#pragma once

#include <napi.h>

#include <memory>

#include "finished_runs.h"

namespace ortflash {

struct AddonData {
  Napi::FunctionReference session;
  Napi::FunctionReference device_tensor;
  // Made for the first run.
  std::unique_ptr<FinishedRuns> finished_runs;

  static AddonData& Of(Napi::Env env) { return *env.GetInstanceData<AddonData>(); }
};

}  // namespace ortflash
