// Runs models with the custom-op library through ONNX Runtime's C API and compares their outputs.
//
//   session ONNXRUNTIME LIBRARY cpu|tf32|cuda|optimize FOLDER...
//
// "optimize" runs on the CPU and also writes the graph that ONNX Runtime made of the model, fused but for no device in
// particular, to FOLDER/optimized.onnx, and what it tells of the outputs' shapes to FOLDER/shapes.txt.
//
// Each folder holds model.onnx and tensors.txt, a line a tensor: "input|output NAME TYPE TOLERANCE FILE RANK SIZES...",
// TYPE a number of ONNX's TensorProto, FILE its raw little-endian data. An output may differ from its file by TOLERANCE,
// absolute and relative; NaN never passes. Prints a line a folder; exits with 1 where one fails.
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace {

const OrtApi *api;

struct Failure {
  std::string why;
};

void check(OrtStatus *status) {
  if (!status) return;
  const std::string why = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw Failure{why};
}

struct Tensor {
  bool is_input;
  std::string name;
  int type;
  double tolerance;
  std::vector<int64_t> shape;
  std::vector<char> data;
};

std::vector<char> read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Failure{"cannot read " + path};
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<Tensor> read_tensors(const std::string &folder) {
  std::ifstream list(folder + "/tensors.txt");
  std::vector<Tensor> tensors;
  for (std::string line; std::getline(list, line);) {
    std::istringstream words(line);
    std::string role, file;
    Tensor tensor;
    size_t rank;
    words >> role >> tensor.name >> tensor.type >> tensor.tolerance >> file >> rank;
    tensor.is_input = role == "input";
    tensor.shape.resize(rank);
    for (auto &size : tensor.shape) words >> size;
    if (!words) throw Failure{"cannot read this line of tensors.txt: " + line};
    tensor.data = read_file(folder + "/" + file);
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

double number(const Tensor &like, const char *data, size_t n) {
  if (like.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    float x;
    std::memcpy(&x, data + 4 * n, 4);
    return x;
  }
  uint16_t bits;
  std::memcpy(&bits, data + 2 * n, 2);
  if (like.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                           : exponent == 31 ? (fraction ? NAN : INFINITY)
                                            : std::ldexp(1024 + fraction, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

double compare(const Tensor &expected, const OrtValue *value) {
  OrtTensorTypeAndShapeInfo *info;
  check(api->GetTensorTypeAndShape(value, &info));
  size_t rank, count;
  ONNXTensorElementDataType type;
  check(api->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api->GetDimensions(info, shape.data(), rank));
  check(api->GetTensorShapeElementCount(info, &count));
  check(api->GetTensorElementType(info, &type));
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (shape != expected.shape) throw Failure{expected.name + " has another shape"};
  if (type != expected.type) throw Failure{expected.name + " has another type"};
  void *data;
  check(api->GetTensorMutableData(const_cast<OrtValue *>(value), &data));
  double largest = 0;
  for (size_t n = 0; n < count; ++n) {
    const double got = number(expected, static_cast<const char *>(data), n);
    const double wanted = number(expected, expected.data.data(), n);
    const double error = got == wanted ? 0 : std::fabs(got - wanted);
    if (!(error <= expected.tolerance * (1 + std::fabs(wanted)))) {
      throw Failure{expected.name + "[" + std::to_string(n) + "] is " + std::to_string(got) + ", expected " +
                    std::to_string(wanted)};
    }
    largest = std::fmax(largest, error);
  }
  return largest;
}

// Writes what the session tells of its outputs' shapes, a line an output: dimensions as numbers or names, "?" for neither.
void write_shapes(const OrtSession *session, const std::string &file) {
  size_t outputs;
  check(api->SessionGetOutputCount(session, &outputs));
  std::ofstream list(file);
  for (size_t n = 0; n < outputs; ++n) {
    OrtTypeInfo *type;
    const OrtTensorTypeAndShapeInfo *info;
    size_t rank;
    check(api->SessionGetOutputTypeInfo(session, n, &type));
    check(api->CastTypeInfoToTensorInfo(type, &info));
    check(api->GetDimensionsCount(info, &rank));
    std::vector<int64_t> sizes(rank);
    std::vector<const char *> names(rank, "");
    check(api->GetDimensions(info, sizes.data(), rank));
    check(api->GetSymbolicDimensions(info, names.data(), rank));
    for (size_t d = 0; d < rank; ++d) {
      list << (d ? " " : "") << (*names[d] ? names[d] : sizes[d] < 0 ? "?" : std::to_string(sizes[d]));
    }
    list << "\n";
    api->ReleaseTypeInfo(type);
  }
}

double run_model(OrtEnv *env, const std::string &folder, const char *library, const std::string &mode) {
  auto tensors = read_tensors(folder);
  OrtSessionOptions *options;
  check(api->CreateSessionOptions(&options));
  if (mode == "tf32") check(api->AddSessionConfigEntry(options, "ortflash.allow_tf32", "1"));
  check(api->RegisterCustomOpsLibrary_V2(options, library));
  if (mode == "optimize") {
    check(api->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_EXTENDED));
    check(api->SetOptimizedModelFilePath(options, (folder + "/optimized.onnx").c_str()));
  }
  if (mode == "cuda") {
    OrtCUDAProviderOptionsV2 *provider;
    check(api->CreateCUDAProviderOptions(&provider));
    check(api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, provider));
    api->ReleaseCUDAProviderOptions(provider);
  }
  OrtSession *session;
  check(api->CreateSession(env, (folder + "/model.onnx").c_str(), options, &session));
  if (mode == "optimize") write_shapes(session, folder + "/shapes.txt");
  OrtMemoryInfo *memory;
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  std::vector<const char *> input_names, output_names;
  std::vector<OrtValue *> inputs;
  for (auto &tensor : tensors) {
    if (!tensor.is_input) {
      output_names.push_back(tensor.name.c_str());
      continue;
    }
    input_names.push_back(tensor.name.c_str());
    inputs.push_back(nullptr);
    check(api->CreateTensorWithDataAsOrtValue(memory, tensor.data.data(), tensor.data.size(), tensor.shape.data(),
                                              tensor.shape.size(), static_cast<ONNXTensorElementDataType>(tensor.type),
                                              &inputs.back()));
  }
  std::vector<OrtValue *> outputs(output_names.size());
  check(api->Run(session, nullptr, input_names.data(), inputs.data(), inputs.size(), output_names.data(),
                 output_names.size(), outputs.data()));
  double largest = 0;
  size_t n = 0;
  for (const auto &tensor : tensors) {
    if (!tensor.is_input) largest = std::fmax(largest, compare(tensor, outputs[n++]));
  }
  for (OrtValue *value : inputs) api->ReleaseValue(value);
  for (OrtValue *value : outputs) api->ReleaseValue(value);
  api->ReleaseMemoryInfo(memory);
  api->ReleaseSession(session);
  api->ReleaseSessionOptions(options);
  return largest;
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 4) {
    std::fprintf(stderr, "usage: session ONNXRUNTIME LIBRARY cpu|cuda|optimize FOLDER...\n");
    return 2;
  }
  void *runtime = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
  if (!runtime) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  api = reinterpret_cast<const OrtApiBase *(*)()>(dlsym(runtime, "OrtGetApiBase"))()->GetApi(18);
  OrtEnv *env;
  int failures = 0;
  try {
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "session", &env));
    for (int n = 4; n < count; ++n) {
      try {
        const double largest = run_model(env, arguments[n], arguments[2], arguments[3]);
        std::printf("ok %s %.3g\n", arguments[n], largest);
      } catch (const Failure &failure) {
        std::printf("failed %s %s\n", arguments[n], failure.why.c_str());
        ++failures;
      }
    }
  } catch (const Failure &failure) {
    std::fprintf(stderr, "%s\n", failure.why.c_str());
    return 2;
  }
  api->ReleaseEnv(env);
  return failures != 0;
}
