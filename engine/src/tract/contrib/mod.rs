//! ONNX Runtime's own operators, which its quantisation and its optimiser write: each is written with
//! ONNX's. What tract has of them is left to it.

mod attention;
mod body;
mod fused;
mod quantized;

use std::borrow::Cow;
use std::mem;

use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

use crate::functions::{free_prefix, graphs_of};
use crate::graph::LoadError;
use crate::sound::MAX_NODES;
use body::Body;

/// Of ONNX Runtime's own operators.
const DOMAIN: &str = "com.microsoft";

/// Ours, which makes of a mask of any of its forms what is added to the scores.
pub(super) const MASK: &str = "wisp.AttentionMask";

/// Ours, which makes numbers of weights of a few bits.
pub(super) const UNPACKED: &str = "wisp.Unpacked";

/// The attribute of an LSTM that rounds its states as DynamicQuantizeLSTM does.
pub(super) const ROUNDS_STATES: &str = "wisp.rounds_states";

/// Its operators that tract has and computes as it does, or ours of the same name do.
const KNOWN: [&str; 14] = [
    "BiasGelu",
    "CDist",
    "DequantizeLinear",
    "ExpandDims",
    "FastGelu",
    "GatherBlockQuantized",
    "GatherND",
    "Gelu",
    "Inverse",
    "QuantizeLinear",
    "QuickGelu",
    "SimplifiedLayerNormalization",
    "Tokenizer",
    "Trilu",
];

/// The operator sets that tract's operators are of, beside ONNX Runtime's.
const DOMAINS: [&str; 5] =
    ["", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"];

/// The messages without such operators.
///
/// # Errors
/// An operator, or a use of one, that is not known: tract would take it for ONNX's of that name.
pub(super) fn written_out(proto: &ModelProto) -> Result<Cow<'_, ModelProto>, LoadError> {
    let Some(graph) = proto.graph.as_ref().filter(|graph| !is_plain(graph)) else {
        return Ok(Cow::Borrowed(proto));
    };
    let (mut proto, prefix) = (proto.clone(), free_prefix(graph, "part"));
    let is_recent = proto.opset_import.iter().any(|it| it.domain.is_empty() && it.version >= 13);
    let mut writer = Writer { prefix, is_recent, written: 0 };
    if let Some(graph) = &mut proto.graph {
        let written = writer.write_out(graph);
        written.map_err(|reason| LoadError(format!("cannot be read: {reason}")))?;
    }
    Ok(Cow::Owned(proto))
}

fn is_plain(graph: &GraphProto) -> bool {
    let mut inner = graph.node.iter().flat_map(|node| &node.attribute);
    graph.node.iter().all(|node| DOMAINS.contains(&node.domain.as_str()))
        && inner.all(|attribute| attribute.g.iter().chain(&attribute.graphs).all(is_plain))
}

struct Writer {
    /// What no value's name starts with.
    prefix: String,
    is_recent: bool,
    written: usize,
}

impl Writer {
    fn write_out(&mut self, graph: &mut GraphProto) -> Result<(), String> {
        for mut node in mem::take(&mut graph.node) {
            for inner in graphs_of(&mut node) {
                self.write_out(inner)?;
            }
            if DOMAINS.contains(&node.domain.as_str()) {
                graph.node.push(node);
                continue;
            }
            self.written += 1;
            let prefix = format!("{}{}.", self.prefix, self.written);
            let mut body = Body::new(&node, &prefix, self.is_recent);
            let written = body_of(&node, &mut body);
            let written = written.map_err(|reason| {
                let NodeProto { domain, op_type, name, .. } = &node;
                format!("the node `{name}` ({domain} {op_type}): {reason}")
            })?;
            let mut nodes = body.nodes();
            match written {
                true => graph.node.append(&mut nodes),
                false => graph.node.push(node),
            }
        }
        match graph.node.len() > MAX_NODES {
            true => Err(format!("a graph of more than {MAX_NODES} nodes is not served")),
            false => Ok(()),
        }
    }
}

/// Writes a node out, and returns whether that was needed.
fn body_of(node: &NodeProto, body: &mut Body<'_>) -> Result<bool, String> {
    if node.domain != DOMAIN {
        return Err("an operator set that tract lacks".to_owned());
    }
    match node.op_type.as_str() {
        "Attention" => attention::attention(body)?,
        "DynamicQuantizeLSTM" => quantized::lstm(body)?,
        "DynamicQuantizeMatMul" => quantized::dynamic_product(body)?,
        "EmbedLayerNormalization" => fused::embedding(body)?,
        "FusedConv" => fused::convolution(body)?,
        "FusedGemm" => fused::gemm(body)?,
        "FusedMatMul" | "TransposeMatMul" => fused::product(body)?,
        "MatMulIntegerToFloat" => quantized::product(body)?,
        "MatMulNBits" => quantized::product_of_bits(body)?,
        "MultiHeadAttention" => attention::of_heads(body)?,
        "NhwcMaxPool" => quantized::max_pool(body)?,
        "QAttention" => attention::quantized(body)?,
        "QGemm" => quantized::gemm(body)?,
        "QLinearAdd" => quantized::of_two(body, "Add")?,
        "QLinearAveragePool" => quantized::average_pool(body)?,
        "QLinearConcat" => quantized::concat(body)?,
        "QLinearConv" => quantized::convolution(body)?,
        "QLinearGlobalAveragePool" => quantized::global_average_pool(body)?,
        "QLinearLeakyRelu" => quantized::leaky_relu(body)?,
        "QLinearMul" => quantized::of_two(body, "Mul")?,
        "QLinearSigmoid" => quantized::sigmoid(body)?,
        "QLinearSoftmax" => quantized::softmax(body)?,
        "QLinearWhere" => quantized::choice(body)?,
        "SkipLayerNormalization" => fused::skip(body, "LayerNormalization", 4)?,
        "SkipSimplifiedLayerNormalization" => fused::skip(body, "SimplifiedLayerNormalization", 3)?,
        known if KNOWN.contains(&known) => return Ok(false),
        _ => return Err("an operator, or a use of it, that tract lacks".to_owned()),
    }
    Ok(true)
}
