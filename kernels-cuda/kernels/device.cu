// What the host asks of the driver, once each.
#include <map>
#include <mutex>
#include <utility>

#include "device.h"
#include "launch.h"

namespace ortflash {

cudaError_t allow_launch(const void *function, int shared_bytes) {
  constexpr int kAlwaysAllowed = 48 * 1024;
  if (shared_bytes <= kAlwaysAllowed) return cudaSuccess;
  static std::mutex mutex;
  // Never destroyed: other threads may still launch while the process ends.
  static auto &allowed = *new std::map<std::pair<const void *, int>, int>;
  int device;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  int &most = allowed[{function, device}];
  if (shared_bytes <= most) return cudaSuccess;
  error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) most = shared_bytes;
  return error;
}

cudaError_t read_device(Device &device) {
  thread_local Device last;
  int id;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess && id != last.id) {
    Device asked;
    const auto read = [&](int &value, cudaDeviceAttr attribute) {
      if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, id);
    };
    read(asked.major, cudaDevAttrComputeCapabilityMajor);
    read(asked.multiprocessors, cudaDevAttrMultiProcessorCount);
    read(asked.l2_bytes, cudaDevAttrL2CacheSize);
    read(asked.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    asked.id = id;
    if (error == cudaSuccess) last = asked;
  }
  device = last;
  return error;
}

}  // namespace ortflash
