//! Outputs that are lists of maps, class by score, as scikit-learn's converters make them unless told
//! otherwise. The protocol has tensors, and there was one: it is the output, the scores in the order of
//! the classes.

use std::collections::HashSet;
use std::mem;

use tract_onnx::pb::{self, tensor_proto::DataType};

/// Makes tensors of such outputs, and returns whether there were any.
pub(crate) fn strip(graph: &mut pb::GraphProto) -> bool {
    if !graph.node.iter().any(is_zip_map) {
        return false;
    }
    let mut consumed = HashSet::new();
    consumed_in(graph, &mut consumed);
    let mut has_stripped = false;
    for node in graph.node.iter_mut().filter(|node| is_zip_map(node)) {
        let [name] = &*node.output else { continue };
        // To another node it is a list of maps, which no engine here gives.
        let output = graph.output.iter_mut().find(|output| output.name == *name);
        let Some(output) = output.filter(|_| !consumed.contains(name)) else { continue };
        let tensor = pb::type_proto::Tensor { elem_type: DataType::Float as i32, shape: None };
        let value = Some(pb::type_proto::Value::TensorType(tensor));
        output.r#type = Some(pb::TypeProto { value, ..pb::TypeProto::default() });
        has_stripped = true;
        let (input, output) = (mem::take(&mut node.input), mem::take(&mut node.output));
        let (name, op_type) = (mem::take(&mut node.name), "Identity".to_owned());
        *node = pb::NodeProto { input, output, name, op_type, ..pb::NodeProto::default() };
    }
    has_stripped
}

/// Names of what nodes take, in a graph and those in it.
fn consumed_in(graph: &pb::GraphProto, names: &mut HashSet<String>) {
    for node in &graph.node {
        names.extend(node.input.iter().cloned());
        for body in node.attribute.iter().flat_map(|it| it.g.iter().chain(&it.graphs)) {
            names.extend(body.output.iter().map(|output| output.name.clone()));
            consumed_in(body, names);
        }
    }
}

fn is_zip_map(node: &pb::NodeProto) -> bool {
    node.op_type == "ZipMap" && node.domain == "ai.onnx.ml"
}
