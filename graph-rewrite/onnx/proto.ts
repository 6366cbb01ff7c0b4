/** The messages of onnx.proto, under the names that the standard gives them. Table and types are made at build time. */
import type { onnx } from './generated/onnx.js';
import { schema } from './generated/schema.js';
import { defineMessages } from './message.js';

const messages = defineMessages(schema) as unknown as typeof onnx;

export const AttributeProto = messages.AttributeProto;
export type AttributeProto = onnx.AttributeProto;
export const AttributeType = messages.AttributeProto.AttributeType;
export type AttributeType = onnx.AttributeProto.AttributeType;
export const FunctionProto = messages.FunctionProto;
export type FunctionProto = onnx.FunctionProto;
export const GraphProto = messages.GraphProto;
export type GraphProto = onnx.GraphProto;
export const ModelProto = messages.ModelProto;
export type ModelProto = onnx.ModelProto;
export const NodeProto = messages.NodeProto;
export type NodeProto = onnx.NodeProto;
export const OperatorSetIdProto = messages.OperatorSetIdProto;
export type OperatorSetIdProto = onnx.OperatorSetIdProto;
export const StringStringEntryProto = messages.StringStringEntryProto;
export type StringStringEntryProto = onnx.StringStringEntryProto;
export const TensorProto = messages.TensorProto;
export type TensorProto = onnx.TensorProto;
export const DataType = messages.TensorProto.DataType;
export type DataType = onnx.TensorProto.DataType;
export const DataLocation = messages.TensorProto.DataLocation;
export type DataLocation = onnx.TensorProto.DataLocation;
export const SparseTensorProto = messages.SparseTensorProto;
export type SparseTensorProto = onnx.SparseTensorProto;
export const TrainingInfoProto = messages.TrainingInfoProto;
export type TrainingInfoProto = onnx.TrainingInfoProto;
export const TensorShapeProto = messages.TensorShapeProto;
export type TensorShapeProto = onnx.TensorShapeProto;
export const TypeProto = messages.TypeProto;
export type TypeProto = onnx.TypeProto;
export const ValueInfoProto = messages.ValueInfoProto;
export type ValueInfoProto = onnx.ValueInfoProto;
