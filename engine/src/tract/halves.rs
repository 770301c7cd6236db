//! A graph of FP16 as one of FP32, which takes and gives FP16 at its door: tract multiplies halves one by
//! one, hundreds of times as slowly, and adds them up in halves. ONNX Runtime computes in FP32, too, and
//! rounds to FP16 on the way from a cast to it to a cast from it: so does this.

use std::borrow::Cow;
use std::collections::HashSet;
use std::mem;

use half::f16;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use tract_onnx::pb::{attribute_proto::AttributeType, type_proto::Value};

use crate::messages::{bodies, free_prefix, graphs_of};

const FP16: i32 = DataType::Float16 as i32;
const FP32: i32 = DataType::Float as i32;

/// Ours, which rounds FP32 to what FP16 holds.
pub(super) const ROUNDED: &str = "wisp.Rounded";

/// Attributes that name a datatype.
const NAMING: [&str; 4] = ["to", "dtype", "output_datatype", "output_dtype"];

/// Operators that give the numbers of their first input, elsewhere.
const MOVING: [&str; 9] = [
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// The messages in FP32.
pub(super) fn widened(proto: Cow<'_, ModelProto>) -> Cow<'_, ModelProto> {
    let mut proto = proto.into_owned();
    let [rounded, prefix] = ["rounded", "wide"].map(|wanted| free_prefix(&proto, wanted));
    if let Some(graph) = &mut proto.graph {
        round(graph, &rounded);
        widen_door(graph, &prefix);
        widen(graph);
    }
    Cow::Owned(proto)
}

/// Whether an operator looks at the bits of what may be halves: then they must stay.
pub(super) fn are_looked_at(proto: &ModelProto) -> bool {
    proto.graph.as_ref().is_some_and(looks_at_bits)
}

fn looks_at_bits(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| node.op_type == "BitCast") || bodies(graph).any(looks_at_bits)
}

/// Whether a graph takes, gives, holds or makes any.
pub(super) fn are_in(graph: &GraphProto) -> bool {
    let is_half = |tensor: &TensorProto| tensor.data_type == FP16;
    let makes = |attribute: &AttributeProto| {
        names_halves(attribute) || attribute.t.iter().chain(&attribute.tensors).any(is_half)
    };
    let mut values = graph.input.iter().chain(&graph.output);
    values.any(|value| element_type(value) == Some(FP16))
        || graph.initializer.iter().any(is_half)
        || graph.node.iter().flat_map(|node| &node.attribute).any(makes)
        || bodies(graph).any(are_in)
}

fn names_halves(attribute: &AttributeProto) -> bool {
    NAMING.contains(&attribute.name.as_str()) && attribute.i == i64::from(FP16)
}

/// Rounds what was cast to FP16 where it is cast on. What is computed of it is computed of all its
/// digits, as ONNX Runtime leaves out a cast before one of its own: infinities would come of large ones.
fn round(graph: &mut GraphProto, prefix: &str) {
    let declared = declared(graph);
    let mut made: HashSet<String> = HashSet::new();
    for mut node in mem::take(&mut graph.node) {
        for inner in graphs_of(&mut node) {
            round(inner, prefix);
        }
        let kind = node.op_type.as_str();
        let takes_made = node.input.first().is_some_and(|name| made.contains(name));
        let like = node.input.get(1).filter(|_| kind == "CastLike");
        let makes = like.is_some_and(|name| declared.contains(name) || made.contains(name))
            || kind != "SequenceEmpty" && node.attribute.iter().any(names_halves);
        if makes || takes_made && MOVING.contains(&kind) {
            made.extend(node.output.iter().filter(|name| !name.is_empty()).cloned());
        } else if takes_made && matches!(kind, "Cast" | "CastLike") {
            let rounded = format!("{prefix}.{}", node.output.first().map_or("", String::as_str));
            graph.node.push(NodeProto {
                input: vec![mem::replace(&mut node.input[0], rounded.clone())],
                output: vec![rounded],
                op_type: ROUNDED.to_owned(),
                ..NodeProto::default()
            });
        }
        graph.node.push(node);
    }
}

/// The values of a graph that it says are FP16.
fn declared(graph: &GraphProto) -> HashSet<String> {
    let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
    let values = values.filter(|value| element_type(value) == Some(FP16)).map(|value| &value.name);
    let tensors = graph.initializer.iter().filter(|tensor| tensor.data_type == FP16);
    values.chain(tensors.map(|tensor| &tensor.name)).cloned().collect()
}

/// Makes singles of what comes in, and halves of what goes out.
fn widen_door(graph: &mut GraphProto, prefix: &str) {
    let is_half = |value: &&ValueInfoProto| element_type(value) == Some(FP16);
    let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs = graph.input.iter().filter(is_half).filter(|input| !is_weight(&input.name));
    let inputs: Vec<String> = inputs.map(|input| input.name.clone()).collect();
    let outputs = graph.output.iter().filter(is_half).filter(|it| !inputs.contains(&it.name));
    let mut outputs: Vec<String> = outputs.map(|output| output.name.clone()).collect();
    outputs.sort_unstable();
    outputs.dedup();
    let wide = |name: &str| format!("{prefix}.{name}");
    let renamed = |name: &str| {
        let is_renamed = |names: &[String]| names.iter().any(|other| other == name);
        (is_renamed(&inputs) || is_renamed(&outputs)).then(|| wide(name))
    };
    for tensor in &mut graph.initializer {
        tensor.name = renamed(&tensor.name).unwrap_or_else(|| tensor.name.clone());
    }
    rename(&mut graph.node, &renamed);
    // Another node may have the name of an output.
    let named = |name: &String, cast| NodeProto { name: format!("{prefix} cast {name}"), ..cast };
    let inputs = inputs.iter().map(|name| named(name, cast(name, &wide(name), FP32)));
    let outputs = outputs.iter().map(|name| named(name, cast(&wide(name), name, FP16)));
    let casts: Vec<NodeProto> = inputs.chain(outputs).collect();
    // Those stay as they are.
    widen_nodes(&mut graph.node);
    graph.node.extend(casts);
}

/// What a graph inside a node has of such a name itself is another.
fn rename(nodes: &mut [NodeProto], renamed: &dyn Fn(&str) -> Option<String>) {
    for node in nodes {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(other) = renamed(name) {
                *name = other;
            }
        }
        for graph in graphs_of(node) {
            let own = own_names(graph);
            let renamed = |name: &str| if own.contains(name) { None } else { renamed(name) };
            rename(&mut graph.node, &renamed);
            for output in &mut graph.output {
                if let Some(other) = renamed(&output.name) {
                    output.name = other;
                }
            }
        }
    }
}

/// What a graph takes, holds and makes, but for what the graphs inside its nodes do.
fn own_names(graph: &GraphProto) -> HashSet<String> {
    let taken = graph.input.iter().map(|value| &value.name);
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    let held = graph.initializer.iter().chain(sparse).map(|tensor| &tensor.name);
    let made = graph.node.iter().flat_map(|node| &node.output);
    taken.chain(held).chain(made).cloned().collect()
}

fn cast(from: &str, to: &str, datatype: i32) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        op_type: "Cast".to_owned(),
        attribute: vec![AttributeProto {
            name: "to".to_owned(),
            r#type: AttributeType::Int as i32,
            i: datatype.into(),
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    }
}

fn element_type(value: &ValueInfoProto) -> Option<i32> {
    match value.r#type.as_ref()?.value.as_ref()? {
        Value::TensorType(tensor) => Some(tensor.elem_type),
    }
}

/// What a graph holds, but for its nodes.
fn widen(graph: &mut GraphProto) {
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|tensor| tensor.values.as_mut());
    graph.initializer.iter_mut().chain(sparse).for_each(widen_tensor);
}

fn widen_nodes(nodes: &mut [NodeProto]) {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        if names_halves(attribute) {
            attribute.i = FP32.into();
        }
        attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(widen_tensor);
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            widen(graph);
            widen_nodes(&mut graph.node);
            let values = graph.input.iter_mut().chain(&mut graph.output);
            for value in values.chain(&mut graph.value_info) {
                let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
                if let Some(Value::TensorType(tensor)) = kind
                    && tensor.elem_type == FP16
                {
                    tensor.elem_type = FP32;
                }
            }
        }
    }
}

/// Halves lie in a tensor as bytes, or each in an integer.
fn widen_tensor(tensor: &mut TensorProto) {
    if tensor.data_type != FP16 {
        return;
    }
    tensor.data_type = FP32;
    let (pairs, _) = tensor.raw_data.as_chunks::<2>();
    let bytes = pairs.iter().map(|&pair| f16::from_le_bytes(pair));
    let bits = tensor.int32_data.iter().map(|&bits| f16::from_bits(bits as u16));
    tensor.float_data = bytes.chain(bits).map(f32::from).collect();
    tensor.raw_data.clear();
    tensor.int32_data.clear();
}
