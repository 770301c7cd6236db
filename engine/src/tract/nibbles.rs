//! Weights of INT4 and UINT4, two to a byte, as INT8 and UINT8: tract has no type for them. Only where
//! they are dequantised, which is the same of both.

use std::borrow::Cow;
use std::collections::HashSet;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto};

use crate::messages::{bodies, graphs_of};

/// The messages without such weights.
pub(super) fn unpacked(mut proto: Cow<'_, ModelProto>) -> Cow<'_, ModelProto> {
    let Some(graph) = proto.graph.as_ref().filter(|graph| are_in(graph)) else { return proto };
    let mut other_uses = HashSet::new();
    find_other_uses(graph, &mut other_uses);
    if let Some(graph) = &mut proto.to_mut().graph {
        unpack_all(graph, &other_uses);
    }
    proto
}

fn are_in(graph: &GraphProto) -> bool {
    graph.initializer.iter().any(|tensor| datatype(tensor).is_some()) || bodies(graph).any(are_in)
}

/// The values that something else than DequantizeLinear takes.
fn find_other_uses(graph: &GraphProto, uses: &mut HashSet<String>) {
    uses.extend(graph.output.iter().map(|output| output.name.clone()));
    let others = graph.node.iter().filter(|node| node.op_type != "DequantizeLinear");
    uses.extend(others.flat_map(|node| &node.input).cloned());
    bodies(graph).for_each(|body| find_other_uses(body, uses));
}

fn unpack_all(graph: &mut GraphProto, other_uses: &HashSet<String>) {
    let weights = graph.initializer.iter_mut();
    weights.filter(|tensor| !other_uses.contains(&tensor.name)).for_each(unpack);
    for node in &mut graph.node {
        graphs_of(node).for_each(|body| unpack_all(body, other_uses));
    }
}

/// What a packed tensor becomes.
fn datatype(tensor: &TensorProto) -> Option<DataType> {
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int4 => Some(DataType::Int8),
        DataType::Uint4 => Some(DataType::Uint8),
        _ => None,
    }
}

/// Whose length is wrong is left as it is, which is refused.
fn unpack(tensor: &mut TensorProto) {
    let Some(datatype) = datatype(tensor) else { return };
    let size = tensor.dims.iter().try_fold(1usize, |size, &next| {
        usize::try_from(next).ok().and_then(|next| size.checked_mul(next))
    });
    let bytes: Vec<u8> = match tensor.raw_data.is_empty() {
        true => tensor.int32_data.iter().map(|&pair| pair as u8).collect(),
        false => tensor.raw_data.clone(),
    };
    let Some(size) = size.filter(|size| size.div_ceil(2) == bytes.len()) else { return };
    let halves = bytes.iter().flat_map(|pair| [pair & 15, pair >> 4]).take(size);
    tensor.raw_data = match datatype {
        DataType::Int8 => halves.map(|half| if half < 8 { half } else { half | 0xf0 }).collect(),
        _ => halves.collect(),
    };
    tensor.int32_data.clear();
    tensor.data_type = datatype as i32;
}
