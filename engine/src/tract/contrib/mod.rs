//! ONNX Runtime's own operators, which its quantisation and its optimiser write: each is written with
//! ONNX's. What tract has of them is left to it.

mod attention;
mod body;
mod fused;
mod quantized;

use std::borrow::Cow;
use std::collections::HashSet;
use std::mem;

use tract_onnx::pb::tensor_proto::DataType;
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

/// Ours, which make quantised values: of sums of products of whole numbers, of means, and of the sum
/// and the product of two tensors.
pub(super) const SUMS: &str = "wisp.Requantized";
pub(super) const MEANS: &str = "wisp.QuantizedMeans";
pub(super) const SUM: &str = "wisp.QuantizedSum";
pub(super) const PRODUCT: &str = "wisp.QuantizedProduct";

/// ONNX's operators on whole numbers, which our kernels compute as floats: those hold sums of 24 bits,
/// as whatever comes of them does.
const OF_INTEGERS: [&str; 4] = ["ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"];

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
    let prefix = free_prefix(graph, "part");
    let is_recent = proto.opset_import.iter().any(|it| it.domain.is_empty() && it.version >= 13);
    let mut exact = HashSet::new();
    exact_values(graph, &mut exact);
    let exact = exact.into_iter().map(str::to_owned).collect();
    let mut writer = Writer { exact, prefix, is_recent, written: 0 };
    let mut proto = proto.clone();
    if let Some(graph) = &mut proto.graph {
        let written = writer.write_out(graph);
        written.map_err(|reason| LoadError(format!("cannot be read: {reason}")))?;
    }
    Ok(Cow::Owned(proto))
}

fn is_plain(graph: &GraphProto) -> bool {
    let mut inner = graph.node.iter().flat_map(|node| &node.attribute);
    graph.node.iter().all(is_plain_node)
        && inner.all(|attribute| attribute.g.iter().chain(&attribute.graphs).all(is_plain))
}

fn is_plain_node(node: &NodeProto) -> bool {
    DOMAINS.contains(&node.domain.as_str()) && !is_of_integers(node)
}

fn is_of_integers(node: &NodeProto) -> bool {
    matches!(&*node.domain, "" | "ai.onnx") && OF_INTEGERS.contains(&&*node.op_type)
}

/// Adds the values that are needed as what they are: not only as floats, by a Cast.
fn exact_values<'a>(graph: &'a GraphProto, exact: &mut HashSet<&'a str>) {
    exact.extend(graph.output.iter().map(|output| output.name.as_str()));
    for node in &graph.node {
        let to = node.attribute.iter().find(|attribute| attribute.name == "to");
        let is_cast = node.op_type == "Cast" && to.is_some_and(|to| to.i == DataType::Float as i64);
        if !is_cast {
            exact.extend(node.input.iter().map(String::as_str));
        }
        for attribute in &node.attribute {
            attribute
                .g
                .iter()
                .chain(&attribute.graphs)
                .for_each(|inner| exact_values(inner, exact));
        }
    }
}

struct Writer {
    /// Of the whole file; what it takes for two values of one name is all the same.
    exact: HashSet<String>,
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
            let is_summed = matches!(&*node.op_type, "ConvInteger" | "MatMulInteger");
            let is_exact = is_summed && node.output.iter().any(|name| self.exact.contains(name));
            if is_plain_node(&node) || is_of_integers(&node) && is_exact {
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
    if is_of_integers(node) {
        match node.op_type.as_str() {
            "ConvInteger" => quantized::convolution_of_integers(body)?,
            "MatMulInteger" => quantized::product_of_integers(body)?,
            "QLinearConv" => quantized::convolution(body)?,
            _ => quantized::quantized_product(body)?,
        }
        return Ok(true);
    }
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
        "QLinearAdd" => quantized::of_two(body, SUM)?,
        "QLinearAveragePool" => quantized::average_pool(body)?,
        "QLinearConcat" => quantized::concat(body)?,
        "QLinearConv" => quantized::convolution(body)?,
        "QLinearGlobalAveragePool" => quantized::global_average_pool(body)?,
        "QLinearLeakyRelu" => quantized::leaky_relu(body)?,
        "QLinearMul" => quantized::of_two(body, PRODUCT)?,
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
