"""A case whose door has datatypes that the protocol lacks, as wisp tells its users to have it: with a
Cast in the graph for each of them, from and to FLOAT, INT8 or UINT8, which hold all of their numbers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# What the protocol lacks, and what stands for it.
SERVED = {
    TensorProto.FLOAT4E2M1: TensorProto.FLOAT,
    TensorProto.FLOAT8E4M3FN: TensorProto.FLOAT,
    TensorProto.FLOAT8E4M3FNUZ: TensorProto.FLOAT,
    TensorProto.FLOAT8E5M2: TensorProto.FLOAT,
    TensorProto.FLOAT8E5M2FNUZ: TensorProto.FLOAT,
    TensorProto.FLOAT8E8M0: TensorProto.FLOAT,
    TensorProto.INT2: TensorProto.INT8,
    TensorProto.INT4: TensorProto.INT8,
    TensorProto.UINT2: TensorProto.UINT8,
    TensorProto.UINT4: TensorProto.UINT8,
}


def element_type(info):
    return info.type.tensor_type.elem_type


def is_lacking(info):
    return element_type(info) in SERVED


def widened(model):
    """The model with Casts; the names at its door stay. Nothing if it needs none."""
    graph = model.graph
    if not any(map(is_lacking, [*graph.input, *graph.output])):
        return None
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    inputs, outputs = ([it for it in ends if is_lacking(it)] for ends in (graph.input, graph.output))
    inner = {it.name: f"{it.name} as {TensorProto.DataType.Name(element_type(it))}" for it in [*inputs, *outputs]}
    for node in graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), "a graph inside a node"
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    # An infinity that does not saturate stays one.
    before = [cast(it.name, inner[it.name], element_type(it), saturate=0) for it in inputs]
    after = [cast(inner[it.name], it.name, SERVED[element_type(it)]) for it in outputs]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for it in [*inputs, *outputs]:
        it.type.tensor_type.elem_type = SERVED[element_type(it)]
    return model


def cast(before, after, to, **more):
    return helper.make_node("Cast", [before], [after], to=to, **more)


def widened_tensor(info, content):
    """A tensor's bytes as the model with Casts takes or gives it."""
    if not is_lacking(info):
        return content
    tensor = onnx.load_tensor_from_string(content)
    to = helper.tensor_dtype_to_np_dtype(SERVED[element_type(info)])
    numbers = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(numbers.astype(to), tensor.name).SerializeToString()
