//! ONNX Runtime's own operators, which its quantisation and its optimiser write: each is written with
//! ONNX's, and some of ONNX's with others. What tract has of them is left to it.

mod attention;
mod body;
mod fused;
mod newer;
mod quantized;
mod sums;

use std::borrow::Cow;
use std::collections::HashSet;
use std::mem;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

use crate::graph::LoadError;
use crate::messages::{free_prefix, graphs_in, graphs_of, is_onnx};
use crate::sound::MAX_NODES;
use crate::tract::File;
use body::Body;
use sums::Scope;

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
pub(super) fn written_out<'a>(file: &'a File<'_>) -> Result<Cow<'a, ModelProto>, LoadError> {
    let read = &file.proto;
    let Some(graph) = read.graph.as_ref().filter(|graph| !is_plain(graph)) else {
        return Ok(Cow::Borrowed(read));
    };
    let mut writer = Writer {
        exact: sums::exact_values(graph),
        prefix: free_prefix(read, "part"),
        is_recent: read.opset_import.iter().any(|it| is_onnx(&it.domain) && it.version >= 13),
        written: 0,
    };
    let mut proto = read.clone();
    if let Some(to_write) = &mut proto.graph {
        let written = writer.write_out(to_write, &Scope::of(file, graph));
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

fn is_sum(node: &NodeProto) -> bool {
    matches!(&*node.op_type, "ConvInteger" | "MatMulInteger")
}

struct Writer<'a> {
    /// Values that are needed as what they are.
    exact: HashSet<&'a str>,
    /// What no name starts with.
    prefix: String,
    is_recent: bool,
    written: usize,
}

impl Writer<'_> {
    /// Writes out the nodes of a graph, which the scope has as they were read.
    fn write_out(&mut self, graph: &mut GraphProto, scope: &Scope<'_>) -> Result<(), String> {
        for (mut node, read) in mem::take(&mut graph.node).into_iter().zip(scope.nodes()) {
            for (inner, read) in graphs_of(&mut node).zip(graphs_in(read)) {
                self.write_out(inner, &scope.inner(read))?;
            }
            let is_exact =
                is_sum(&node) && node.output.iter().any(|name| self.exact.contains(name.as_str()));
            if is_plain_node(&node) || is_written(&node) && is_exact && !scope.fits_floats(&node) {
                graph.node.push(node);
                continue;
            }
            let cast = is_exact.then(|| self.cast_back(&mut node));
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
            graph.node.extend(cast);
        }
        match graph.node.len() > MAX_NODES {
            true => Err(format!("a graph of more than {MAX_NODES} nodes is not served")),
            false => Ok(()),
        }
    }

    /// Has a node give another value, and returns what makes of its floats the whole numbers that it
    /// gave.
    fn cast_back(&mut self, node: &mut NodeProto) -> NodeProto {
        self.written += 1;
        let sums = vec![format!("{}{}.sums", self.prefix, self.written)];
        NodeProto {
            input: sums.clone(),
            output: mem::replace(&mut node.output, sums),
            name: format!("{}{}.whole", self.prefix, self.written),
            op_type: "Cast".to_owned(),
            attribute: vec![body::int("to", DataType::Int32 as i64)],
            ..NodeProto::default()
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
