/** Makes the small messages that every model is put together from. */
import Long from 'long';
import { type DataTypeName, dataTypeOf } from './data-type.js';
import { OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto } from './proto.js';

/** A size, the name of a size that the run tells, or null where nothing is said. */
export type Dimension = number | string | null;

/** Describes a tensor: an input or output of a graph, or a value in it. Without a shape, its rank is left open. */
export function tensorInfo(
  name: string,
  type: DataTypeName | number,
  shape?: readonly Dimension[] | undefined,
): ValueInfoProto {
  const dim = shape?.map((size) =>
    TensorShapeProto.Dimension.create(
      typeof size === 'number' ? { dim_value: Long.fromNumber(size) } : size === null ? {} : { dim_param: size },
    ),
  );
  const tensor = TypeProto.Tensor.create({
    elem_type: typeof type === 'number' ? type : dataTypeOf(type),
    ...(dim === undefined ? {} : { shape: TensorShapeProto.create({ dim }) }),
  });
  return ValueInfoProto.create({ name, type: TypeProto.create({ tensor_type: tensor }) });
}

/** What a model imports: the version of each domain's operators, ai.onnx being `''`. */
export function opsetImports(versions: Readonly<Record<string, number>>): OperatorSetIdProto[] {
  return Object.entries(versions).map(([domain, version]) =>
    OperatorSetIdProto.create({ domain, version: Long.fromNumber(version) }),
  );
}
