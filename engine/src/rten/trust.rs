//! What rten answers wrongly, without a word.

use tract_onnx::pb::{self, TensorProto, tensor_proto::DataType};

use crate::LoadError;
use crate::sizes::{Constants, constants};

/// # Errors
/// A node of which rten's answer is known to be wrong.
pub(super) fn check(graph: &pb::GraphProto) -> Result<(), LoadError> {
    check_graph(graph, &constants(graph))
}

fn check_graph(graph: &pb::GraphProto, known: &Constants<'_>) -> Result<(), LoadError> {
    let refused = |node: &pb::NodeProto, what: &str| {
        Err(LoadError(format!("rten is not trusted with {what}, as of node `{}`", node.name)))
    };
    for node in &graph.node {
        let attribute = |name: &str| node.attribute.iter().find(|it| it.name == name);
        match node.op_type.as_str() {
            // Its weights of the pixels around a place are not ONNX's.
            "Resize" if attribute("mode").is_some_and(|mode| mode.s == b"cubic") => {
                return refused(node, "cubic samples");
            }
            // It takes constant weights of INT8 for ones without a zero point, and much of what
            // leads to weights for constant.
            "MatMulInteger" if may_have_zero_point(graph, node) => {
                return refused(node, "weights, of INT8 perhaps, that have a zero point");
            }
            // It counts those from the place after the last.
            "SequenceInsert" if !is_from_start(node.input.get(2), known) => {
                return refused(node, "places of a sequence that count from its end");
            }
            _ => {}
        }
        let bodies = node.attribute.iter().flat_map(|it| it.g.iter().chain(&it.graphs));
        bodies.into_iter().try_for_each(|body| check_graph(body, known))?;
    }
    Ok(())
}

/// Whether the second operand has a zero point that is not known to be zero, and is not known to be
/// of another type than INT8.
fn may_have_zero_point(graph: &pb::GraphProto, node: &pb::NodeProto) -> bool {
    let Some(name) = node.input.get(3).filter(|name| !name.is_empty()) else { return false };
    let constant = |name: &String| graph.initializer.iter().find(|tensor| tensor.name == *name);
    let is_i8 = |tensor: &TensorProto| tensor.data_type == DataType::Int8 as i32;
    let is_zero = |tensor: &TensorProto| {
        let raw = tensor.raw_data.iter().all(|&byte| byte == 0);
        raw && tensor.int32_data.iter().all(|&number| number == 0)
    };
    !constant(name).is_some_and(is_zero) && node.input.get(1).and_then(constant).is_none_or(is_i8)
}

/// Whether a place is not given, or known to count from the start.
fn is_from_start(place: Option<&String>, known: &Constants<'_>) -> bool {
    let Some(name) = place.filter(|name| !name.is_empty()) else { return true };
    known.get(name.as_str()).is_some_and(|place| place.iter().all(|&place| place >= 0.0))
}
