//! Whether each row of a graph's tensors stands for itself.

use tract_onnx::pb;

/// The first operator that takes a scale from all of a tensor.
pub(crate) fn mixing(proto: &pb::ModelProto) -> Option<&'static str> {
    proto.graph.as_ref().and_then(mixing_in)
}

fn mixing_in(graph: &pb::GraphProto) -> Option<&'static str> {
    const MIXING: [&str; 3] =
        ["DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"];
    graph.node.iter().find_map(|node| {
        let inner = || {
            node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
        };
        MIXING
            .into_iter()
            .find(|name| node.op_type == *name)
            .or_else(|| inner().find_map(mixing_in))
    })
}
