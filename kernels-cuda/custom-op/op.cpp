// The operator ortflash::FlashAttention, version 1, as a custom op for ONNX Runtime's CUDA provider, on ONNX Runtime's C
// API: one registration entry, RegisterCustomOps, which every language binding can load ("register custom ops library").
//
// One variant an element type; each takes the nodes of every overload. What the kernels do not serve is refused when a
// session is created, with a status that says why.
#include <onnxruntime_c_api.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace ortflash {
namespace {

// What this file needs of ONNX Runtime is in its API since 1.18, so the library loads into that and every later release. From
// 1.24 on it also infers shapes.
constexpr uint32_t kApiVersion = 18;
constexpr const char *kDomain = "ortflash";
constexpr const char *kName = "FlashAttention";
// TensorProto::DOUBLE: a softmax in double precision, which the kernels do not have.
constexpr int64_t kDoublePrecision = 11;
// Of the session that the library is registered with: "1" lets float32 nodes round to tf32 what they multiply.
constexpr const char *kAllowTf32 = "ortflash.allow_tf32";

#ifdef ORTFLASH_ON_CPU  // a build for tests, with a reference implementation in place of the kernels
constexpr const char *kProvider = nullptr;
#else
constexpr const char *kProvider = "CUDAExecutionProvider";
#endif

// A status that ONNX Runtime gave, on its way to the caller.
struct StatusError {
  OrtStatus *status;
};

void check(OrtStatus *status) {
  if (status) throw StatusError{status};
}

// Runs a callback's body; what it throws becomes the status.
template <typename Body>
OrtStatus *guarded(const OrtApi &api, Body &&body) {
  try {
    body();
    return nullptr;
  } catch (const StatusError &error) {
    return error.status;
  } catch (const std::invalid_argument &error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::exception &error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

std::vector<int64_t> shape_of(const OrtApi &api, const OrtTensorTypeAndShapeInfo *info) {
  size_t rank;
  check(api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api.GetDimensions(info, shape.data(), rank));
  return shape;
}

ONNXTensorElementDataType type_of(const OrtApi &api, const OrtTensorTypeAndShapeInfo *info) {
  ONNXTensorElementDataType type;
  check(api.GetTensorElementType(info, &type));
  return type;
}

// Reads attributes of a node through `get_float`, `get_int` and `get_string`, which return false for one that is not set.
template <typename GetFloat, typename GetInt, typename GetString>
Attributes read_attributes(GetFloat &&get_float, GetInt &&get_int, GetString &&get_string) {
  Attributes a;
  get_float("scale", a.scale);
  get_float("softcap", a.softcap);
  get_float("masked_value", a.masked_value);
  get_int("is_causal", a.is_causal);
  get_int("q_num_heads", a.query_heads);
  get_int("kv_num_heads", a.key_heads);
  get_int("left_window_size", a.left_window);
  get_int("right_window_size", a.right_window);
  get_int("align_end", a.align_end);
  get_int("attn_mask_period", a.mask_period);
  get_int("softmax_precision", a.softmax_precision);
  const auto layout = [&](const char *name) {
    std::string text = "BHSD";
    get_string(name, text);
    return parse_layout(text);
  };
  a.query_layout = layout("q_layout");
  a.key_layout = layout("k_layout");
  a.value_layout = layout("v_layout");
  a.output_layout = layout("y_layout");
  return a;
}

Attributes read_attributes(const OrtApi &api, const OrtKernelInfo *info) {
  // A missing attribute is an error status here; every one has a default.
  const auto found = [&](OrtStatus *status) {
    if (status) api.ReleaseStatus(status);
    return status == nullptr;
  };
  return read_attributes(
      [&](const char *name, float &value) {
        float given;
        if (found(api.KernelInfoGetAttribute_float(info, name, &given))) value = given;
      },
      [&](const char *name, int64_t &value) {
        int64_t given;
        if (found(api.KernelInfoGetAttribute_int64(info, name, &given))) value = given;
      },
      [&](const char *name, std::string &value) {
        size_t size = 0;
        if (!found(api.KernelInfoGetAttribute_string(info, name, nullptr, &size)) || size == 0) return;
        std::string given(size, '\0');
        check(api.KernelInfoGetAttribute_string(info, name, given.data(), &size));
        given.resize(size - 1);  // without the final zero
        value = given;
      });
}

Attributes read_attributes(const OrtApi &api, const OrtShapeInferContext *context) {
  const auto read = [&](const char *name, OrtOpAttrType type, void *data, size_t bytes, size_t &size) {
    const OrtOpAttr *attribute = nullptr;
    OrtStatus *status = api.ShapeInferContext_GetAttribute(context, name, &attribute);
    if (!status && attribute) status = api.ReadOpAttr(attribute, type, data, bytes, &size);
    const bool found = !status && attribute;
    if (status) api.ReleaseStatus(status);
    return found;
  };
  return read_attributes(
      [&](const char *name, float &value) {
        float given;
        size_t size;
        if (read(name, ORT_OP_ATTR_FLOAT, &given, sizeof given, size)) value = given;
      },
      [&](const char *name, int64_t &value) {
        int64_t given;
        size_t size;
        if (read(name, ORT_OP_ATTR_INT, &given, sizeof given, size)) value = given;
      },
      [&](const char *name, std::string &value) {
        std::array<char, 512> given;
        size_t size = 0;
        if (read(name, ORT_OP_ATTR_STRING, given.data(), given.size(), size)) value.assign(given.data(), size);
      });
}

class Kernel {
 public:
  Kernel(const OrtApi &api, const OrtKernelInfo *info, int32_t element, bool allow_tf32)
      : api_(api), element_(element), allow_tf32_(allow_tf32), attributes_(read_attributes(api, info)) {
    if (attributes_.softmax_precision == kDoublePrecision)
      throw std::invalid_argument("FlashAttention: a softmax in double precision is not supported on CUDA");
    if (const char *wrong = ortflash_device_check()) throw std::runtime_error(std::string("FlashAttention: ") + wrong);
    check(api.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
    check(api.AllocatorGetInfo(allocator_, &memory_));
  }
  Kernel(const Kernel &) = delete;
  Kernel &operator=(const Kernel &) = delete;
  ~Kernel() { api_.ReleaseAllocator(allocator_); }

  void compute(OrtKernelContext *context) const {
    size_t count;
    check(api_.KernelContext_GetInputCount(context, &count));
    std::optional<TensorDescription> inputs[kInputs];
    const void *data[kInputs] = {};
    for (size_t i = 0; i < count && i < kInputs; ++i) {
      const OrtValue *value = nullptr;
      check(api_.KernelContext_GetInput(context, i, &value));
      if (value) inputs[i] = describe(value, static_cast<Input>(i), data[i]);
    }
    Problem problem = resolve_problem(attributes_, inputs);
    OrtFlashAttention &call = problem.call;
    call.element = element_;
    call.allow_tf32 = allow_tf32_;
    const auto at = [&](const void *base, int64_t offset) {
      return const_cast<char *>(static_cast<const char *>(base)) + offset * element_bytes();
    };
    call.query.data = at(data[kQuery], problem.query_offset);
    call.key.data = at(data[kKey], problem.key_offset);
    call.value.data = at(data[kValue], problem.value_offset);
    call.mask.data = data[kMask];
    call.past_key = data[kPastKey];
    call.past_value = data[kPastValue];
    call.key_lengths = static_cast<const int64_t *>(data[kKeyLengths]);
    call.sink = data[kSink];
    call.output.data = output(context, 0, problem.output_shape);
    size_t outputs;
    check(api_.KernelContext_GetOutputCount(context, &outputs));
    if (inputs[kPastKey]) {
      if (outputs > 1) call.present_key = output(context, 1, problem.present_key_shape);
      if (outputs > 2) call.present_value = output(context, 2, problem.present_value_shape);
    }
    run(context, call);
  }

 private:
  size_t element_bytes() const { return element_ == ORTFLASH_FLOAT32 ? 4 : 2; }

  TensorDescription describe(const OrtValue *value, Input input, const void *&data) const {
    OrtTensorTypeAndShapeInfo *info;
    check(api_.GetTensorTypeAndShape(value, &info));
    const auto release = [&](OrtTensorTypeAndShapeInfo *held) { api_.ReleaseTensorTypeAndShapeInfo(held); };
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> held(info, release);
    TensorDescription description{shape_of(api_, info)};
    const auto type = type_of(api_, info);
    description.is_boolean = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    if (input == kMask && !description.is_boolean && type != own_type())
      throw std::invalid_argument("FlashAttention: attn_mask must be bool or of the type of Q");
    void *pointer;
    check(api_.GetTensorMutableData(const_cast<OrtValue *>(value), &pointer));
    data = pointer;
    return description;
  }

  ONNXTensorElementDataType own_type() const {
    return element_ == ORTFLASH_FLOAT32   ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
           : element_ == ORTFLASH_FLOAT16 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                          : ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  }

  // Data of an output, made in this shape; null for one that the node leaves out.
  void *output(OrtKernelContext *context, size_t index, const std::vector<int64_t> &shape) const {
    OrtValue *value = nullptr;
    check(api_.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
    if (!value) return nullptr;
    void *data;
    check(api_.GetTensorMutableData(value, &data));
    return data;
  }

  // Memory for the kernels, null where they need none. The arena knows which stream it is used on: freed at once, it is given
  // to that stream alone until the kernels are done. Runs at the same time have a stream each.
  void *allocate(const OrtKernelContext *context, size_t bytes) const {
    void *memory = nullptr;
    if (bytes == 0) return memory;
    if (kProvider) check(api_.KernelContext_GetScratchBuffer(context, memory_, bytes, &memory));
    else check(api_.AllocatorAlloc(allocator_, bytes, &memory));
    return memory;
  }

  // Enqueues on the run's stream.
  void run(const OrtKernelContext *context, const OrtFlashAttention &call) const {
    const auto fail_with = [](const char *wrong) {
      if (wrong) throw std::runtime_error(std::string("FlashAttention: ") + wrong);
    };
    size_t bytes;
    fail_with(ortflash_attention_workspace(&call, &bytes));
    void *stream = nullptr;
    if (kProvider) check(api_.KernelContext_GetGPUComputeStream(context, &stream));
    void *workspace = allocate(context, bytes);
    const char *wrong = ortflash_attention_run(&call, workspace, stream);
    if (workspace) check(api_.AllocatorFree(allocator_, workspace));
    fail_with(wrong);
  }

  const OrtApi &api_;
  const int32_t element_;
  const bool allow_tf32_;
  const Attributes attributes_;
  OrtAllocator *allocator_ = nullptr;
  const OrtMemoryInfo *memory_ = nullptr;  // of the allocator
};

// What a model tells of a tensor's shape. One that it does not tell at all looks like that of a scalar.
std::vector<Extent> extents_of(const OrtApi &api, const OrtTensorTypeAndShapeInfo *info) {
  const auto sizes = shape_of(api, info);
  std::vector<const char *> names(sizes.size(), "");
  check(api.GetSymbolicDimensions(info, names.data(), names.size()));
  std::vector<Extent> extents;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] >= 0) extents.push_back({sizes[d], ""});
    else extents.push_back({std::nullopt, names[d]});
  }
  return extents;
}

// ONNX Runtime lets no single dimension of an output open: without a name it is the number given, even −1. So it gets a
// name that stands nowhere else, in this process or in a model that another one wrote.
std::string unused_name() {
  static const uint64_t origin = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  static std::atomic<uint64_t> count{0};
  return "ortflash_" + std::to_string(origin) + "_" + std::to_string(++count);
}

OrtStatus *set_output(const OrtApi &api, OrtShapeInferContext *context, size_t index, ONNXTensorElementDataType type,
                      const std::vector<Extent> &shape) {
  std::vector<int64_t> sizes;
  std::vector<std::string> names;
  for (const Extent &extent : shape) {
    sizes.push_back(extent.size.value_or(-1));
    names.push_back(extent.size ? "" : extent.name.empty() ? unused_name() : extent.name);
  }
  std::vector<const char *> texts;
  for (const auto &name : names) texts.push_back(name.c_str());
  OrtTensorTypeAndShapeInfo *info;
  if (OrtStatus *status = api.CreateTensorTypeAndShapeInfo(&info)) return status;
  OrtStatus *status = api.SetTensorElementType(info, type);
  if (!status) status = api.SetDimensions(info, sizes.data(), sizes.size());
  if (!status) status = api.SetSymbolicDimensions(info, texts.data(), texts.size());
  if (!status) status = api.ShapeInferContext_SetOutputTypeShape(context, index, info);
  api.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

// The call's shapes are checked already here where all are known.
void check_known_shapes(const Attributes &attributes, const std::optional<std::vector<Extent>> (&extents)[kInputs]) {
  std::optional<TensorDescription> inputs[kInputs];
  for (size_t i = 0; i < kInputs; ++i) {
    if (!extents[i]) continue;
    if (extents[i]->empty()) return;
    inputs[i].emplace();
    for (const Extent &extent : *extents[i]) {
      if (!extent.size) return;
      inputs[i]->shape.push_back(*extent.size);
    }
  }
  resolve_problem(attributes, inputs);
}

void infer_shapes(const OrtApi &api, OrtShapeInferContext *context) {
  size_t count;
  check(api.ShapeInferContext_GetInputCount(context, &count));
  std::optional<std::vector<Extent>> inputs[kInputs];
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  for (size_t i = 0; i < count && i < kInputs; ++i) {
    OrtTensorTypeAndShapeInfo *info = nullptr;
    check(api.ShapeInferContext_GetInputTypeShape(context, i, &info));
    if (!info || type_of(api, info) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) continue;  // left out
    if (i == kQuery) type = type_of(api, info);
    inputs[i] = extents_of(api, info);
  }
  if (!inputs[kQuery] || !inputs[kKey] || !inputs[kValue]) return;
  const Attributes attributes = read_attributes(api, context);
  check_known_shapes(attributes, inputs);
  const OutputExtents outputs = infer_outputs(attributes, inputs);
  check(set_output(api, context, 0, type, outputs.output));
  if (!inputs[kPastKey]) return;
  // The node may leave these outputs out, and then there is nothing to set.
  for (const auto &[index, shape] : {std::pair{1, outputs.present_key}, {2, outputs.present_value}}) {
    if (OrtStatus *status = set_output(api, context, index, type, shape)) api.ReleaseStatus(status);
  }
}

struct Operator : OrtCustomOp {
  const OrtApi *api;
  int32_t element;
  ONNXTensorElementDataType type;
  bool allow_tf32;

  Operator(int32_t own_element, ONNXTensorElementDataType own_type, bool tf32 = false)
      : OrtCustomOp{}, api(nullptr), element(own_element), type(own_type), allow_tf32(tf32) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp *) { return kName; };
    GetExecutionProviderType = [](const OrtCustomOp *) { return kProvider; };
    GetInputTypeCount = [](const OrtCustomOp *) { return size_t{kInputs}; };
    GetInputType = [](const OrtCustomOp *op, size_t index) {
      // A mask is bool or of the type of Q; the kernel checks which.
      if (index == kMask) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      if (index == kKeyLengths) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
      return static_cast<const Operator *>(op)->type;
    };
    GetInputMemoryType = [](const OrtCustomOp *, size_t) { return OrtMemTypeDefault; };
    GetInputCharacteristic = [](const OrtCustomOp *, size_t index) {
      return index < kMask ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
    GetOutputTypeCount = [](const OrtCustomOp *) { return size_t{3}; };
    GetOutputType = [](const OrtCustomOp *op, size_t) { return static_cast<const Operator *>(op)->type; };
    GetOutputCharacteristic = [](const OrtCustomOp *, size_t index) {
      return index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
    CreateKernelV2 = [](const OrtCustomOp *op, const OrtApi *, const OrtKernelInfo *info, void **kernel) {
      const auto &own = *static_cast<const Operator *>(op);
      return guarded(*own.api, [&] { *kernel = new Kernel(*own.api, info, own.element, own.allow_tf32); });
    };
    KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
      const auto &own = *static_cast<const Kernel *>(kernel);
      return guarded(*global_api, [&] { own.compute(context); });
    };
    KernelDestroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp *op, OrtShapeInferContext *context) {
      const auto &own = *static_cast<const Operator *>(op);
      return guarded(*own.api, [&] { infer_shapes(*own.api, context); });
    };
    GetStartVersion = [](const OrtCustomOp *) { return 1; };
    GetEndVersion = [](const OrtCustomOp *) { return 1; };
    GetVariadicInputMinArity = [](const OrtCustomOp *) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp *) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp *) { return 0; };
  }

  static inline const OrtApi *global_api = nullptr;
};

// Before 1.24, ONNX Runtime crashes where shapes are inferred for a node that leaves out an input before its last.
bool infers_safely(const OrtApiBase *base) {
  int major = 0, minor = 0;
  return std::sscanf(base->GetVersionString(), "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= 24);
}

// Operators and domain live as long as the library: sessions keep pointers to them.
OrtCustomOpDomain *make_domain(const OrtApi *api, const OrtApiBase *base, Operator (&operators)[3]) {
  OrtCustomOpDomain *made;
  check(api->CreateCustomOpDomain(kDomain, &made));
  for (Operator &op : operators) {
    op.api = api;
    if (!infers_safely(base)) op.InferOutputShapeFn = nullptr;
    check(api->CustomOpDomain_Add(made, &op));
  }
  Operator::global_api = api;
  return made;
}

bool allows_tf32(const OrtApi *api, const OrtSessionOptions *options) {
  int has = 0;
  check(api->HasSessionConfigEntry(options, kAllowTf32, &has));
  if (!has) return false;
  char value[8];
  size_t size = sizeof value;
  check(api->GetSessionConfigEntry(options, kAllowTf32, value, &size));
  const std::string text = value;
  if (text != "0" && text != "1") throw std::invalid_argument(std::string(kAllowTf32) + " is 0 or 1, not " + text);
  return text == "1";
}

}  // namespace
}  // namespace ortflash

// Adds the operator to the session options. ONNX Runtime calls it where the library is registered with it.
extern "C" ORTFLASH_EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  using namespace ortflash;
  const OrtApi *api = base->GetApi(kApiVersion);
  if (!api) {
    const OrtApi *oldest = base->GetApi(1);
    return oldest->CreateStatus(ORT_FAIL, "ortflash: ONNX Runtime 1.18 or later is needed");
  }
  constexpr auto kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, kFloat32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                 kBfloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  static Operator exact[] = {{ORTFLASH_FLOAT16, kFloat16}, {ORTFLASH_BFLOAT16, kBfloat16}, {ORTFLASH_FLOAT32, kFloat32}};
  static Operator rounding[] = {
      {ORTFLASH_FLOAT16, kFloat16}, {ORTFLASH_BFLOAT16, kBfloat16}, {ORTFLASH_FLOAT32, kFloat32, true}};
  return guarded(*api, [&] {
    static OrtCustomOpDomain *const exact_domain = make_domain(api, base, exact);
    static OrtCustomOpDomain *const rounding_domain = make_domain(api, base, rounding);
    check(api->AddCustomOpDomain(options, allows_tf32(api, options) ? rounding_domain : exact_domain));
  });
}
