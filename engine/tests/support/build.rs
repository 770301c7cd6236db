//! Small ONNX graphs in a line or two.

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

use crate::encode::encode;

pub const FLOAT: i32 = 1;
const INT8: i32 = 3;
pub const INT64: i32 = 7;
pub const STRING: i32 = 8;
pub const BOOL: i32 = 9;
pub const FP16: i32 = 10;
pub const BF16: i32 = 16;
pub const INT4: i32 = 22;

/// The numbers of `AttributeProto.AttributeType`.
const KIND_FLOAT: i32 = 1;
const KIND_INT: i32 = 2;
const KIND_STRING: i32 = 3;
const KIND_TENSOR: i32 = 4;
const KIND_GRAPH: i32 = 5;
const KIND_FLOATS: i32 = 6;
const KIND_INTS: i32 = 7;
const KIND_STRINGS: i32 = 8;

pub fn node(
    operator: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[AttributeProto],
) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        input: names(inputs),
        output: names(outputs),
        op_type: operator.into(),
        attribute: attributes.to_vec(),
        ..NodeProto::default()
    }
}

/// A node of `ai.onnx.ml`.
pub fn ml(
    operator: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[AttributeProto],
) -> NodeProto {
    NodeProto { domain: "ai.onnx.ml".into(), ..node(operator, inputs, outputs, attributes) }
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind, ..AttributeProto::default() }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, KIND_INT) }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attribute(name, KIND_FLOAT) }
}

pub fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: s.into(), ..attribute(name, KIND_STRING) }
}

pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.into(), ..attribute(name, KIND_INTS) }
}

pub fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { floats: floats.into(), ..attribute(name, KIND_FLOATS) }
}

pub fn texts(name: &str, strings: &[&str]) -> AttributeProto {
    let strings = strings.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { strings, ..attribute(name, KIND_STRINGS) }
}

pub fn tensor(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(t), ..attribute(name, KIND_TENSOR) }
}

pub fn graph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), ..attribute(name, KIND_GRAPH) }
}

pub fn raw(name: &str, data_type: i32, dims: &[i64], raw_data: &[u8]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type,
        dims: dims.into(),
        raw_data: raw_data.into(),
        ..TensorProto::default()
    }
}

pub fn longs(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    raw(name, INT64, dims, &bytes)
}

pub fn singles(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    raw(name, FLOAT, dims, &bytes)
}

/// A tensor at a graph's door; a negative size is free.
pub fn value(name: &str, elem_type: i32, sizes: &[i64]) -> ValueInfoProto {
    let dim = sizes.iter().map(|&size| Dimension {
        value: (size >= 0).then_some(dimension::Value::DimValue(size)),
        ..Dimension::default()
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor = type_proto::Tensor { elem_type, shape };
    let kind =
        TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.into(), r#type: Some(kind), ..ValueInfoProto::default() }
}

pub fn body(
    inputs: &[ValueInfoProto],
    outputs: &[ValueInfoProto],
    initializer: &[TensorProto],
    nodes: Vec<NodeProto>,
) -> GraphProto {
    GraphProto {
        name: "graph".into(),
        node: nodes,
        input: inputs.to_vec(),
        output: outputs.to_vec(),
        initializer: initializer.to_vec(),
        ..GraphProto::default()
    }
}

pub fn model(graph: GraphProto) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset("", 18), opset("ai.onnx.ml", 3)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

/// A file with `x`, of these sizes, for its input and `y`, of as many axes, for its output.
pub fn file(sizes: &[i64], initializer: &[TensorProto], nodes: Vec<NodeProto>) -> Vec<u8> {
    let free = vec![-1; sizes.len()];
    let (x, y) = (value("x", FLOAT, sizes), value("y", FLOAT, &free));
    encode(&model(body(&[x], &[y], initializer, nodes)))
}

/// A product of matrices in eight bits, as dynamic quantisation writes it.
pub fn quantised() -> Vec<u8> {
    let weights =
        [raw("w", INT8, &[4, 2], &[1, 255, 2, 254, 3, 253, 4, 252]), raw("z", INT8, &[], &[0])];
    let nodes = vec![
        node("DynamicQuantizeLinear", &["x"], &["q", "scale", "zero"], &[]),
        node("MatMulInteger", &["q", "w", "zero", "z"], &["sums"], &[]),
        node("Cast", &["sums"], &["wide"], &[int("to", FLOAT.into())]),
        node("Mul", &["wide", "scale"], &["y"], &[]),
    ];
    file(&[2, 4], &weights, nodes)
}
