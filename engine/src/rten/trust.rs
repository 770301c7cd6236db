//! What rten answers wrongly, without a word.

use tract_onnx::pb::{self, TensorProto, tensor_proto::DataType};

use crate::LoadError;
use crate::sizes::{Constants, constants};

/// # Errors
/// A node of which rten's answer is known to be wrong.
pub(super) fn check(proto: &pb::ModelProto) -> Result<(), LoadError> {
    let Some(graph) = &proto.graph else { return Ok(()) };
    let is_standard = |domain: &str| matches!(domain, "" | "ai.onnx");
    let opset = proto.opset_import.iter().find(|opset| is_standard(&opset.domain));
    check_graph(graph, &constants(graph), opset.map_or(0, |opset| opset.version))
}

fn check_graph(graph: &pb::GraphProto, known: &Constants<'_>, opset: i64) -> Result<(), LoadError> {
    let refused = |node: &pb::NodeProto, what: &str| {
        Err(LoadError(format!("rten is not trusted with {what}, as of node `{}`", node.name)))
    };
    for node in &graph.node {
        let attribute = |name: &str| node.attribute.iter().find(|it| it.name == name);
        let integer = |name: &str| attribute(name).map(|it| it.i);
        let has_input = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
        if let Some(name) = node.input.iter().find(|name| is_too_large(graph, node, name)) {
            return refused(node, &format!("numbers of more than 32 bits as `{name}` has"));
        }
        match node.op_type.as_str() {
            // It takes the axis alone, and all after it are one.
            "Softmax" | "LogSoftmax" if opset < 13 && !is_last(graph, node, integer("axis")) => {
                return refused(node, "an axis and all after it, before opset 13");
            }
            // It gives the last of equal ones.
            "ArgMax" | "ArgMin" if integer("select_last_index").unwrap_or(0) == 0 => {
                return refused(node, "the first of the largest or smallest");
            }
            // Which is 1 or -1 to it.
            "Sign" => return refused(node, "the sign of zero"),
            // It passes over it.
            "LSTM" | "GRU" | "RNN" if has_input(4) => {
                return refused(node, "sequences of their own lengths");
            }
            "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool"
                if attribute("auto_pad").is_some_and(|it| it.s == b"SAME_LOWER") =>
            {
                return refused(node, "padding by SAME_LOWER");
            }
            // Of several classes or images it takes one's boxes for another's.
            "NonMaxSuppression" => return refused(node, "boxes of several classes"),
            "Softplus" => return refused(node, "large numbers"),
            "Scatter" | "ScatterElements" => {
                return refused(node, "indices that are fewer than elements along other axes");
            }
            "MatMul" if is_vector(graph, node.input.get(1)) => {
                return refused(node, "the product of many matrices and one vector");
            }
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
        bodies.into_iter().try_for_each(|body| check_graph(body, known, opset))?;
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

/// Whether a node takes constant INT64 numbers that rten, which has 32 bits for them, cuts off. As an
/// end to slice to they do no harm.
fn is_too_large(graph: &pb::GraphProto, node: &pb::NodeProto, name: &str) -> bool {
    let constant = graph.initializer.iter().find(|tensor| tensor.name == name);
    let Some(tensor) = constant.filter(|it| it.data_type == DataType::Int64 as i32) else {
        return false;
    };
    let raw = tensor.raw_data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
    let mut numbers = raw.chain(tensor.int64_data.iter().copied());
    node.op_type != "Slice" && numbers.any(|number| i32::try_from(number).is_err())
}

/// Whether an axis, the second where none is given, is known to be the last one of a node's output.
fn is_last(graph: &pb::GraphProto, node: &pb::NodeProto, axis: Option<i64>) -> bool {
    use pb::type_proto::Value::TensorType;
    let values = graph.output.iter().chain(&graph.value_info);
    let named = values.clone().find(|value| node.output.first() == Some(&value.name));
    let rank = named.and_then(|value| {
        let TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
        Some(tensor.shape.as_ref()?.dim.len() as i64)
    });
    axis == Some(-1) || rank.is_some_and(|rank| axis.unwrap_or(1) == rank - 1)
}

/// Whether it is a constant of one axis.
fn is_vector(graph: &pb::GraphProto, name: Option<&String>) -> bool {
    let constant = graph.initializer.iter().find(|tensor| Some(&tensor.name) == name);
    constant.is_some_and(|tensor| tensor.dims.len() == 1)
}

/// Whether a place is not given, or known to count from the start.
fn is_from_start(place: Option<&String>, known: &Constants<'_>) -> bool {
    let Some(name) = place.filter(|name| !name.is_empty()) else { return true };
    known.get(name.as_str()).is_some_and(|place| place.iter().all(|&place| place >= 0.0))
}
