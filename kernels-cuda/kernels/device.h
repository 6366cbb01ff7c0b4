// What planning has to know of a device.
#pragma once
#include <cuda_runtime_api.h>

namespace ortflash {

struct Device {
  int id = -1;
  int major = 0, multiprocessors = 0, l2_bytes = 0;
  int shared_bytes = 0;  // that one block can have
};

// The current device. A thread asks the driver again only when it has changed devices.
cudaError_t read_device(Device &device);

}  // namespace ortflash
