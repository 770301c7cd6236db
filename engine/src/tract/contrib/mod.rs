//! ONNX Runtime's own operators, which its quantisation and its optimiser write: each is written with
//! ONNX's, and some of ONNX's with others. What tract has of them is left to it.

mod attention;
mod body;
mod fused;
mod newer;
mod quantized;

use std::borrow::Cow;
use std::collections::HashSet;
use std::mem;

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

use crate::graph::LoadError;
use crate::messages::{bodies, free_prefix, graphs_in, graphs_of, is_onnx};
use crate::sound::MAX_NODES;
use body::Body;

/// Of ONNX Runtime's own operators.
pub(in crate::tract) const DOMAIN: &str = "com.microsoft";

/// Ours, which makes of a mask of any of its forms what is added to the scores.
pub(super) const MASK: &str = "wisp.AttentionMask";

/// Ours, which makes numbers of weights of a few bits.
pub(super) const UNPACKED: &str = "wisp.Unpacked";

/// Ours, which makes numbers of weights that are codes.
pub(super) const DECODED: &str = "wisp.Decoded";

/// Ours, which gives what the windows of a deformable convolution see.
pub(super) const DEFORMED: &str = "wisp.Deformed";

/// Ours, which make quantised values: of sums of products of whole numbers, of means, and of the sum
/// and the product of two tensors.
pub(super) const SUMS: &str = "wisp.Requantized";
pub(super) const MEANS: &str = "wisp.QuantizedMeans";
pub(super) const SUM: &str = "wisp.QuantizedSum";
pub(super) const PRODUCT: &str = "wisp.QuantizedProduct";

/// The attribute of an LSTM that rounds its states as DynamicQuantizeLSTM does.
pub(super) const ROUNDS_STATES: &str = "wisp.rounds_states";

/// Its operators that tract has and computes as it does, or ours of the same name do.
const KNOWN: [&str; 18] = [
    "BiasGelu",
    "CDist",
    "DequantizeLinear",
    "ExpandDims",
    "FastGelu",
    "GatherBlockQuantized",
    "GatherND",
    "Gelu",
    "Inverse",
    "MurmurHash3",
    "Pad",
    "QuantizeLinear",
    "QuickGelu",
    "Range",
    "RotaryEmbedding",
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
    if proto.graph.as_ref().is_none_or(is_plain) {
        return Ok(Cow::Borrowed(proto));
    }
    let mut values = Values::default();
    if let Some(graph) = &proto.graph {
        values.see_sums(graph);
        values.see(graph);
    }
    let (exact, shifted) = values.taken_apart();
    let mut writer = Writer {
        exact,
        shifted,
        prefix: free_prefix(proto, "part"),
        is_recent: proto.opset_import.iter().any(|it| is_onnx(&it.domain) && it.version >= 13),
        written: 0,
    };
    let mut proto = proto.clone();
    if let Some(graph) = &mut proto.graph {
        let written = writer.write_out(graph);
        written.map_err(|reason| LoadError(format!("cannot be read: {reason}")))?;
    }
    Ok(Cow::Owned(proto))
}

fn is_plain(graph: &GraphProto) -> bool {
    graph.node.iter().all(|node| is_plain_node(node) && graphs_in(node).all(is_plain))
}

fn is_plain_node(node: &NodeProto) -> bool {
    DOMAINS.contains(&node.domain.as_str()) && !is_written(node)
}

fn is_written(node: &NodeProto) -> bool {
    is_onnx(&node.domain) && writer_of_onnx(node).is_some()
}

/// What a file's values are taken for; of all its graphs, so that of two values of one name neither is
/// lost.
#[derive(Default)]
struct Values<'a> {
    /// Sums of products of whole numbers.
    sums: HashSet<&'a str>,
    /// Those that are needed as what they are: not only as floats, by a Cast.
    exact: HashSet<&'a str>,
    /// Nodes that add something to a sum.
    adds: Vec<&'a NodeProto>,
}

/// Over what is added to sums, before all of it stays as it is.
const MOST_PASSES: usize = 8;

fn is_sum(node: &NodeProto) -> bool {
    matches!(&*node.op_type, "ConvInteger" | "MatMulInteger")
}

impl<'a> Values<'a> {
    fn see_sums(&mut self, graph: &'a GraphProto) {
        let sums = graph.node.iter().filter(|node| is_sum(node));
        self.sums.extend(sums.flat_map(|node| &node.output).map(String::as_str));
        bodies(graph).for_each(|body| self.see_sums(body));
    }

    fn see(&mut self, graph: &'a GraphProto) {
        self.exact.extend(graph.output.iter().map(|output| output.name.as_str()));
        for node in &graph.node {
            let to = node.attribute.iter().find(|attribute| attribute.name == "to");
            let is_float = to.is_some_and(|to| to.i == DataType::Float as i64);
            let are_sums = node.input.iter().filter(|name| self.sums.contains(name.as_str()));
            if node.op_type == "Add" && are_sums.count() == 1 {
                self.adds.push(node);
            } else if node.op_type != "Cast" || !is_float {
                self.exact.extend(node.input.iter().map(String::as_str));
            }
        }
        bodies(graph).for_each(|body| self.see(body));
    }

    /// The values that stay as they are, and the sums of those that do not and something else.
    fn taken_apart(mut self) -> (HashSet<String>, HashSet<String>) {
        // What comes of one may go into another: the last ones first, and more than once where they
        // stand in another order.
        for pass in 0..=MOST_PASSES {
            let before = self.exact.len();
            for node in self.adds.iter().rev() {
                let sums = node.input.iter().filter(|name| self.sums.contains(name.as_str()));
                let mut all = sums.chain(&node.output);
                if pass == MOST_PASSES || all.any(|name| self.exact.contains(name.as_str())) {
                    self.exact.extend(node.input.iter().chain(&node.output).map(String::as_str));
                }
            }
            if self.exact.len() == before {
                break;
            }
        }
        let outputs = self.adds.iter().flat_map(|node| &node.output);
        let shifted = outputs.filter(|name| !self.exact.contains(name.as_str()));
        (self.exact.iter().map(|&name| name.to_owned()).collect(), shifted.cloned().collect())
    }
}

struct Writer {
    exact: HashSet<String>,
    /// What comes of an Add to a sum that becomes a float.
    shifted: HashSet<String>,
    /// What no name starts with.
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
            if node.output.iter().any(|name| self.shifted.contains(name)) {
                self.add_floats(&mut node, graph);
            }
            let is_exact =
                is_sum(&node) && node.output.iter().any(|name| self.exact.contains(name));
            if is_plain_node(&node) || is_written(&node) && is_exact {
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

impl Writer {
    /// Makes floats of what is added, as the sum is one.
    fn add_floats(&mut self, node: &mut NodeProto, graph: &mut GraphProto) {
        self.written += 1;
        for (index, name) in node.input.iter_mut().enumerate() {
            let float = format!("{}{}.{index}", self.prefix, self.written);
            let to = AttributeProto {
                name: "to".to_owned(),
                r#type: AttributeType::Int as i32,
                i: DataType::Float as i64,
                ..AttributeProto::default()
            };
            graph.node.push(NodeProto {
                name: float.clone(),
                input: vec![mem::replace(name, float.clone())],
                output: vec![float],
                op_type: "Cast".to_owned(),
                attribute: vec![to],
                ..NodeProto::default()
            });
        }
    }
}

/// Whether it is one of ONNX Runtime's own operators, and is served.
pub(crate) fn is_known(domain: &str, op_type: &str) -> bool {
    domain == DOMAIN && (KNOWN.contains(&op_type) || writer_of(op_type).is_some())
}

/// Writes a node out, and returns whether that was needed.
fn body_of(node: &NodeProto, body: &mut Body<'_>) -> Result<bool, String> {
    if let Some(write) = writer_of_onnx(node).filter(|_| is_onnx(&node.domain)) {
        return write(body).map(|()| true);
    }
    if node.domain != DOMAIN {
        return Err("an operator set that tract lacks".to_owned());
    }
    match writer_of(&node.op_type) {
        Some(write) => write(body).map(|()| true),
        None if KNOWN.contains(&node.op_type.as_str()) => Ok(false),
        None => Err("an operator, or a use of it, that tract lacks".to_owned()),
    }
}

type Write = fn(&mut Body<'_>) -> Result<(), String>;

/// Of ONNX's operators, those that tract lacks, one as it is trained, one as it was once, and those on whole
/// numbers: our kernels compute them as floats, which hold sums of 24 bits, as whatever comes of those does.
fn writer_of_onnx(node: &NodeProto) -> Option<Write> {
    Some(match node.op_type.as_str() {
        "BatchNormalization" if is_training(node) => newer::normalized_batch,
        "ConvInteger" => quantized::convolution_of_integers,
        "DeformConv" => newer::deformed_convolution,
        "MatMulInteger" => quantized::product_of_integers,
        "Pad" if node.input.len() == 1 => newer::padded,
        "QLinearConv" => quantized::convolution,
        "QLinearMatMul" => quantized::quantized_product,
        "SwiGLU" => newer::gated,
        "Swish" => newer::swish,
        _ => return None,
    })
}

fn is_training(node: &NodeProto) -> bool {
    node.attribute.iter().any(|attribute| attribute.name == "training_mode" && attribute.i != 0)
}

/// What writes an operator out, for those that are.
fn writer_of(op_type: &str) -> Option<Write> {
    let write: Write = match op_type {
        "Attention" => attention::attention,
        "DynamicQuantizeLSTM" => quantized::lstm,
        "DynamicQuantizeMatMul" => quantized::dynamic_product,
        "EmbedLayerNormalization" => fused::embedding,
        "FusedConv" => fused::convolution,
        "FusedGemm" => fused::gemm,
        "FusedMatMul" | "TransposeMatMul" => fused::product,
        "MatMulBnb4" => quantized::product_of_codes,
        "MatMulIntegerToFloat" => quantized::product,
        "MatMulNBits" => quantized::product_of_bits,
        "MultiHeadAttention" => attention::of_heads,
        "NhwcMaxPool" => quantized::max_pool,
        "QAttention" => attention::quantized,
        "QGemm" => quantized::gemm,
        "QLinearAdd" => |body: &mut Body<'_>| quantized::of_two(body, SUM),
        "QLinearAveragePool" => quantized::average_pool,
        "QLinearConcat" => quantized::concat,
        "QLinearConv" => quantized::convolution,
        "QLinearGlobalAveragePool" => quantized::global_average_pool,
        "QLinearLeakyRelu" => quantized::leaky_relu,
        "QLinearMul" => |body: &mut Body<'_>| quantized::of_two(body, PRODUCT),
        "QLinearSigmoid" => quantized::sigmoid,
        "QLinearSoftmax" => quantized::softmax,
        "QLinearWhere" => quantized::choice,
        "SkipLayerNormalization" => {
            |body: &mut Body<'_>| fused::skip(body, "LayerNormalization", 4)
        }
        "SkipSimplifiedLayerNormalization" => {
            |body: &mut Body<'_>| fused::skip(body, "SimplifiedLayerNormalization", 3)
        }
        "Unique" => fused::unique,
        _ => return None,
    };
    Some(write)
}
