//! What a file says of a graph as a whole: whether it is all there, and whether each row of its
//! tensors stands for itself. Engines differ in what they do with weights that are said to lie
//! elsewhere; one would read them from the server's own folder.

use tract_onnx::pb;

use crate::LoadError;

/// Refuses a graph with a tensor in another file; and one with functions of its own, whose
/// attributes may have such tensors as defaults, where the messages read here do not show them.
///
/// # Errors
/// The text names the tensor or the function.
pub(crate) fn check(proto: &pb::ModelProto) -> Result<(), LoadError> {
    if let Some(function) = proto.functions.first() {
        let name = function.name.as_deref().unwrap_or_default();
        return Err(LoadError(format!("functions of its own, as `{name}`, are not served")));
    }
    proto.graph.iter().try_for_each(check_graph)
}

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

fn check_graph(graph: &pb::GraphProto) -> Result<(), LoadError> {
    graph.initializer.iter().try_for_each(check_tensor)?;
    graph.sparse_initializer.iter().try_for_each(check_sparse)?;
    graph.node.iter().try_for_each(check_node)
}

fn check_node(node: &pb::NodeProto) -> Result<(), LoadError> {
    node.attribute.iter().try_for_each(|attribute| {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(check_tensor)?;
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        sparse.into_iter().try_for_each(check_sparse)?;
        attribute.g.iter().chain(&attribute.graphs).try_for_each(check_graph)
    })
}

fn check_sparse(tensor: &pb::SparseTensorProto) -> Result<(), LoadError> {
    tensor.values.iter().chain(&tensor.indices).try_for_each(check_tensor)
}

fn check_tensor(tensor: &pb::TensorProto) -> Result<(), LoadError> {
    let elsewhere = tensor.data_location == Some(pb::tensor_proto::DataLocation::External as i32);
    match elsewhere || !tensor.external_data.is_empty() {
        true => Err(LoadError(format!("the weights of `{}` are in another file", tensor.name))),
        false => Ok(()),
    }
}
