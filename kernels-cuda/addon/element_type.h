// The element types of ONNX tensors: ONNX Runtime's number, the name that JavaScript uses, and the size.
#pragma once

#include <onnxruntime_c_api.h>

#include <optional>
#include <string_view>

namespace ortflash {

struct ElementType {
  ONNXTensorElementDataType id;
  std::string_view name;
  // Bits an element; 0 for strings, which have no fixed size.
  unsigned bits;
};

inline constexpr ElementType kElementTypes[] = {
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32", 32},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, "uint8", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, "int8", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16, "uint16", 16},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, "int16", 16},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, "int32", 32},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "int64", 64},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, "string", 0},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, "bool", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, "float16", 16},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, "float64", 64},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32, "uint32", 32},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, "uint64", 64},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64, "complex64", 64},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128, "complex128", 128},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, "bfloat16", 16},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN, "float8e4m3fn", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ, "float8e4m3fnuz", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2, "float8e5m2", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ, "float8e5m2fnuz", 8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4, "uint4", 4},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4, "int4", 4},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1, "float4e2m1", 4},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT2, "uint2", 2},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT2, "int2", 2},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E8M0, "float8e8m0", 8},
};

inline std::optional<ElementType> FindElementType(std::string_view name) {
  for (const ElementType& type : kElementTypes)
    if (type.name == name) return type;
  return std::nullopt;
}

inline std::optional<ElementType> FindElementType(ONNXTensorElementDataType id) {
  for (const ElementType& type : kElementTypes)
    if (type.id == id) return type;
  return std::nullopt;
}

// The type's name, or "undefined" for one that this table does not know.
inline std::string_view ElementTypeName(ONNXTensorElementDataType id) {
  const auto type = FindElementType(id);
  return type ? type->name : std::string_view("undefined");
}

}  // namespace ortflash
