/** The messages of onnx.proto, compiled at build time, under the names that the standard gives them. */
import { onnx } from './generated/onnx.js';

export const AttributeProto = onnx.AttributeProto;
export type AttributeProto = onnx.AttributeProto;
export const AttributeType = onnx.AttributeProto.AttributeType;
export const FunctionProto = onnx.FunctionProto;
export type FunctionProto = onnx.FunctionProto;
export const GraphProto = onnx.GraphProto;
export type GraphProto = onnx.GraphProto;
export const ModelProto = onnx.ModelProto;
export type ModelProto = onnx.ModelProto;
export const NodeProto = onnx.NodeProto;
export type NodeProto = onnx.NodeProto;
export const OperatorSetIdProto = onnx.OperatorSetIdProto;
export type OperatorSetIdProto = onnx.OperatorSetIdProto;
export const StringStringEntryProto = onnx.StringStringEntryProto;
export type StringStringEntryProto = onnx.StringStringEntryProto;
export const TensorProto = onnx.TensorProto;
export type TensorProto = onnx.TensorProto;
export const DataType = onnx.TensorProto.DataType;
export const DataLocation = onnx.TensorProto.DataLocation;
export const TypeProto = onnx.TypeProto;
export type TypeProto = onnx.TypeProto;
export const ValueInfoProto = onnx.ValueInfoProto;
export type ValueInfoProto = onnx.ValueInfoProto;
