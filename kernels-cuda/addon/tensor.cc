#include "tensor.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "addon_data.h"
#include "device_memory.h"
#include "element_type.h"
#include "failure.h"
#include "promise_worker.h"

namespace ortflash {
namespace {

constexpr napi_type_tag kDeviceTensorTag = {0x6f72742d666c6173, 0x682d74656e736f72};
// From here on inputs are read where they lie: less is copied sooner than it is held on to.
constexpr uint64_t kLendBytes = 1 << 16;
// From here on memory for outputs is not cleared first. Node's Buffer takes no more than 4 GiB.
constexpr size_t kUnclearedBytes = 1 << 12;
constexpr size_t kMostUnclearedBytes = size_t{1} << 31;
// The largest integer that a JavaScript number holds exactly.
constexpr uint64_t kMaxElements = (uint64_t{1} << 53) - 1;

[[noreturn]] void Refuse(const std::string& name, const std::string& why) {
  throw Failure("invalid-tensor", "input " + name + " " + why);
}

std::vector<int64_t> ReadDimensions(const std::string& name, const Napi::Value& value) {
  if (!value.IsArray()) Refuse(name, "has no dims");
  const Napi::Array items = value.As<Napi::Array>();
  std::vector<int64_t> dimensions;
  for (uint32_t i = 0; i < items.Length(); ++i) {
    const Napi::Value item = items.Get(i);
    const double size = item.IsNumber() ? item.As<Napi::Number>().DoubleValue() : -1;
    if (!(size >= 0 && size <= static_cast<double>(kMaxElements)) || size != std::floor(size))
      Refuse(name, "has a dimension that is no whole number from 0 on");
    dimensions.push_back(static_cast<int64_t>(size));
  }
  return dimensions;
}

uint64_t CountElements(const std::string& name, const std::vector<int64_t>& dimensions) {
  uint64_t count = 1;
  for (const int64_t size : dimensions) {
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(size), &count) || count > kMaxElements)
      Refuse(name, "has more elements than a tensor can have");
  }
  return count;
}

// Bytes of `count` elements, types of less than 8 bits packed. `count` is below 2^53, so the product fits.
uint64_t CountBytes(uint64_t count, unsigned bits) {
  return bits >= 8 ? count * (bits / 8) : (count * bits + 7) / 8;
}

void CheckAgainstModel(const SessionState& session, const std::string& name, const ElementType& type) {
  const ValueDescription* input = FindDescription(session.inputs(), name);
  if (input == nullptr) {
    if (session.IsOverridable(name)) return;
    Refuse(name, "is none of the model's inputs");
  }
  if (input->kind != ONNX_TYPE_TENSOR) Refuse(name, "of the model is no tensor, which this session cannot feed");
  if (input->type != type.id)
    Refuse(name, "has type " + std::string(type.name) + ", the model expects " +
                     std::string(ElementTypeName(input->type)));
}

void FillStrings(const std::string& name, const Napi::Value& data, uint64_t count, Ort::Value& value) {
  if (!data.IsArray()) Refuse(name, "has type string, so its data must be an array of strings");
  const Napi::Array items = data.As<Napi::Array>();
  if (items.Length() != count)
    Refuse(name, "has " + std::to_string(items.Length()) + " strings, its dims make " + std::to_string(count));
  for (uint32_t i = 0; i < count; ++i) {
    const Napi::Value item = items.Get(i);
    if (!item.IsString()) Refuse(name, "has an element " + std::to_string(i) + " that is no string");
    const std::string text = item.As<Napi::String>().Utf8Value();
    char* target = value.GetResizedStringTensorElementBuffer(i, text.size());
    std::memcpy(target, text.data(), text.size());
  }
}

Napi::Array StringsOf(Napi::Env env, const Ort::Value& value) {
  const size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  Napi::Array strings = Napi::Array::New(env, count);
  for (size_t i = 0; i < count; ++i) {
    const Napi::HandleScope scope(env);
    strings.Set(static_cast<uint32_t>(i), Napi::String::New(env, value.GetStringTensorElement(i)));
  }
  return strings;
}

// Copies a tensor from the GPU on another thread, into memory that nobody else knows yet.
class DownloadWorker : public PromiseWorker {
 public:
  DownloadWorker(Napi::Env env, std::shared_ptr<DeviceTensor> tensor)
      : PromiseWorker(env), tensor_(std::move(tensor)), bytes_(TensorByteLength(tensor_->value)) {
    Napi::ArrayBuffer buffer = OutputMemory(env, bytes_);
    data_ = buffer.Data();
    buffer_ = Napi::Persistent(buffer);
  }

 protected:
  void Work() override { CopyDeviceMemory(data_, tensor_->value.GetTensorRawData(), bytes_); }

  Napi::Value Result(Napi::Env) override { return buffer_.Value(); }

 private:
  std::shared_ptr<DeviceTensor> tensor_;
  size_t bytes_;
  void* data_ = nullptr;
  Napi::Reference<Napi::ArrayBuffer> buffer_;
};

}  // namespace

Napi::Function DeviceTensorObject::Define(Napi::Env env) {
  return DefineClass(env, "DeviceTensor",
                     {InstanceMethod("download", &DeviceTensorObject::Download),
                      InstanceMethod("dispose", &DeviceTensorObject::Dispose)});
}

DeviceTensorObject::DeviceTensorObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceTensorObject>(info) {
  info.This().As<Napi::Object>().TypeTag(&kDeviceTensorTag);
}

Napi::Object DeviceTensorObject::Create(Napi::Env env, std::shared_ptr<SessionState> session, Ort::Value value) {
  auto tensor = std::make_shared<DeviceTensor>();
  tensor->session = std::move(session);
  tensor->value = std::move(value);
  const Napi::Object object = AddonData::Of(env).device_tensor.New({});
  Unwrap(object)->tensor_ = std::move(tensor);
  return object;
}

std::shared_ptr<DeviceTensor> DeviceTensorObject::From(const Napi::Value& value, const std::string& name) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kDeviceTensorTag))
    Refuse(name, "is no tensor of this session's GPU");
  auto tensor = Unwrap(value.As<Napi::Object>())->tensor_;
  if (!tensor) Refuse(name, "was disposed of");
  return tensor;
}

Napi::Value DeviceTensorObject::Download(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    if (!tensor_) throw Failure("invalid-tensor", "the tensor was disposed of");
    return (new DownloadWorker(info.Env(), tensor_))->Start();
  });
}

void DeviceTensorObject::Dispose(const Napi::CallbackInfo&) { tensor_.reset(); }

Feed ReadFeed(SessionState& session, const Napi::Array& record) {
  Feed feed;
  feed.name = record.Get(uint32_t{0}).ToString().Utf8Value();
  if (record.Length() == 2) {
    feed.resident = DeviceTensorObject::From(record.Get(1), feed.name);
    const auto type = FindElementType(feed.resident->value.GetTensorTypeAndShapeInfo().GetElementType());
    if (type) CheckAgainstModel(session, feed.name, *type);
    return feed;
  }
  const std::string type_name = record.Get(1).ToString().Utf8Value();
  const auto type = FindElementType(type_name);
  if (!type) Refuse(feed.name, "has type " + type_name + ", which ONNX does not have");
  CheckAgainstModel(session, feed.name, *type);
  const std::vector<int64_t> shape = ReadDimensions(feed.name, record.Get(2));
  const uint64_t count = CountElements(feed.name, shape);
  const Napi::Value data = record.Get(3);
  if (type->bits == 0) {
    feed.owned = Ort::Value::CreateTensor(Ort::AllocatorWithDefaultOptions(), shape.data(), shape.size(), type->id);
    FillStrings(feed.name, data, count, feed.owned);
    return feed;
  }
  if (!data.IsTypedArray() || data.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    Refuse(feed.name, "must give its bytes");
  const auto bytes = data.As<Napi::Uint8Array>();
  const uint64_t expected = CountBytes(count, type->bits);
  if (bytes.ByteLength() != expected)
    Refuse(feed.name, "has " + std::to_string(bytes.ByteLength()) + " bytes of data, its type and dims make " +
                          std::to_string(expected));
  feed.upload = session.IsOnGpu(feed.name);
  const bool is_aligned = reinterpret_cast<uintptr_t>(bytes.Data()) % std::max(1u, type->bits / 8) == 0;
  if (is_aligned && expected >= kLendBytes) {
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    feed.owned = Ort::Value::CreateTensor(memory, const_cast<uint8_t*>(bytes.Data()), expected, shape.data(),
                                          shape.size(), type->id);
    feed.lent = Napi::Persistent(bytes);
    return feed;
  }
  OrtAllocator* const allocator = feed.upload ? session.pinned_allocator() : session.cpu_allocator();
  feed.owned = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type->id);
  if (feed.owned.GetTensorSizeInBytes() != expected)
    Refuse(feed.name, "takes another number of bytes in ONNX Runtime than " + std::to_string(expected));
  if (expected > 0) std::memcpy(feed.owned.GetTensorMutableRawData(), bytes.Data(), expected);
  return feed;
}

Napi::ArrayBuffer OutputMemory(Napi::Env env, size_t bytes) {
  if (bytes >= kUnclearedBytes && bytes <= kMostUnclearedBytes) {
    const auto buffer = Napi::Buffer<uint8_t>::New(env, bytes);
    Napi::ArrayBuffer memory = buffer.ArrayBuffer();
    // It is never part of a larger one as yet, but Node does not promise that.
    if (buffer.ByteOffset() == 0 && memory.ByteLength() == bytes) return memory;
  }
  return Napi::ArrayBuffer::New(env, bytes);
}

size_t TensorByteLength(const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING || info.GetElementCount() == 0) return 0;
  return value.GetTensorSizeInBytes();
}

Napi::Array CreateResult(Napi::Env env, const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  const ONNXTensorElementDataType type = info.GetElementType();
  const std::vector<int64_t> shape = info.GetShape();
  Napi::Array dimensions = Napi::Array::New(env, shape.size());
  for (size_t i = 0; i < shape.size(); ++i)
    dimensions.Set(static_cast<uint32_t>(i), Napi::Number::New(env, static_cast<double>(shape[i])));
  Napi::Array result = Napi::Array::New(env);
  result.Set(uint32_t{0}, Napi::String::New(env, std::string(ElementTypeName(type))));
  result.Set(1, dimensions);
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) result.Set(kResultData, StringsOf(env, value));
  return result;
}

}  // namespace ortflash
