//! Weights of INT4 and UINT4, two to a byte, as INT8 and UINT8: tract has no type for them. Only where
//! they are dequantised, which is the same of both: by DequantizeLinear, or GatherBlockQuantized, to
//! which UINT8 is packed and INT8 is neither.

use std::borrow::Cow;
use std::collections::HashSet;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto};

use crate::messages::{bodies, graphs_of};

/// The messages without such weights.
pub(super) fn unpacked(mut proto: Cow<'_, ModelProto>) -> Cow<'_, ModelProto> {
    let Some(graph) = proto.graph.as_ref().filter(|graph| are_in(graph)) else { return proto };
    let mut uses = Uses::default();
    uses.find(graph);
    if let Some(graph) = &mut proto.to_mut().graph {
        unpack_all(graph, &uses);
    }
    proto
}

fn are_in(graph: &GraphProto) -> bool {
    graph.initializer.iter().any(is_packed) || bodies(graph).any(are_in)
}

fn is_packed(tensor: &TensorProto) -> bool {
    let data_type = DataType::try_from(tensor.data_type);
    matches!(data_type, Ok(DataType::Int4 | DataType::Uint4))
}

/// The values that GatherBlockQuantized takes, DequantizeLinear, and something else.
#[derive(Default)]
struct Uses {
    gathered: HashSet<String>,
    dequantized: HashSet<String>,
    others: HashSet<String>,
}

impl Uses {
    fn find(&mut self, graph: &GraphProto) {
        self.others.extend(graph.output.iter().map(|output| output.name.clone()));
        for NodeProto { op_type, input, .. } in &graph.node {
            let uses = match op_type.as_str() {
                "GatherBlockQuantized" => &mut self.gathered,
                "DequantizeLinear" => &mut self.dequantized,
                _ => &mut self.others,
            };
            uses.extend(input.iter().cloned());
        }
        bodies(graph).for_each(|body| self.find(body));
    }

    /// What a packed tensor becomes; `None` where it stays as it is.
    fn datatype(&self, tensor: &TensorProto) -> Option<DataType> {
        let is_in = |uses: &HashSet<String>| uses.contains(&tensor.name);
        let is_signed = tensor.data_type == DataType::Int4 as i32;
        match (is_in(&self.gathered), is_in(&self.dequantized)) {
            _ if !is_packed(tensor) || is_in(&self.others) => None,
            (true, true) => is_signed.then_some(DataType::Int8),
            (true, false) => Some(DataType::Int8),
            (false, _) => Some(if is_signed { DataType::Int8 } else { DataType::Uint8 }),
        }
    }
}

fn unpack_all(graph: &mut GraphProto, uses: &Uses) {
    for tensor in &mut graph.initializer {
        if let Some(datatype) = uses.datatype(tensor) {
            unpack(tensor, datatype);
        }
    }
    for node in &mut graph.node {
        graphs_of(node).for_each(|body| unpack_all(body, uses));
    }
}

/// Whose length is wrong is left as it is, which is refused.
fn unpack(tensor: &mut TensorProto, datatype: DataType) {
    let size = tensor.dims.iter().try_fold(1usize, |size, &next| {
        usize::try_from(next).ok().and_then(|next| size.checked_mul(next))
    });
    let bytes: Vec<u8> = match tensor.raw_data.is_empty() {
        true => tensor.int32_data.iter().map(|&pair| pair as u8).collect(),
        false => tensor.raw_data.clone(),
    };
    let Some(size) = size.filter(|size| size.div_ceil(2) == bytes.len()) else { return };
    let halves = bytes.iter().flat_map(|pair| [pair & 15, pair >> 4]).take(size);
    tensor.raw_data = match tensor.data_type == DataType::Int4 as i32 {
        true => halves.map(|half| if half < 8 { half } else { half | 0xf0 }).collect(),
        false => halves.collect(),
    };
    tensor.int32_data.clear();
    tensor.data_type = datatype as i32;
}
