//! A graph of halves, of FP16 and BF16, as one of FP32. tract multiplies FP16 one by one, hundreds of
//! times as slowly, and adds it up in halves; of BF16 it has no type.
//!
//! At its door the graph takes and gives FP16, and FP32 for BF16, which `values` makes of the one and
//! of the other. ONNX Runtime computes FP16 in FP32, too, and rounds on the way from a cast to it to a
//! cast from it: so does this. For BF16 it has next to no kernels: each cast to it rounds, as ONNX says.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::mem;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use tract_onnx::pb::{attribute_proto::AttributeType, type_proto::Value};

use crate::messages::{bodies, free_prefix, graphs_of};

const FP32: i32 = DataType::Float as i32;

/// Ours, which rounds FP32 to what halves hold, and its attribute that says of which kind: ONNX's number.
pub(super) const ROUNDED: &str = "wisp.Rounded";
pub(super) const KIND: &str = "kind";

/// Attributes that name the datatype of what an operator gives.
const OF_OUTPUTS: [&str; 4] = ["to", "dtype", "output_datatype", "output_dtype"];

/// Attributes that name a datatype to compute in, for which FP32 is no worse.
const WITHIN: [&str; 3] = ["precision", "softmax_precision", "stash_type"];

/// Operators that give the numbers of their first input, elsewhere.
const MOVING: [&str; 9] = [
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// Floats of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Fp16,
    Bf16,
}

impl Half {
    pub(super) const ALL: [Self; 2] = [Self::Fp16, Self::Bf16];

    /// By ONNX's number of a datatype.
    pub(super) fn of(datatype: impl Into<i64>) -> Option<Self> {
        let datatype = datatype.into();
        Self::ALL.into_iter().find(|half| half.datatype() as i64 == datatype)
    }

    pub(super) fn datatype(self) -> DataType {
        match self {
            Self::Fp16 => DataType::Float16,
            Self::Bf16 => DataType::Bfloat16,
        }
    }

    /// Whether a graph takes, gives, holds or makes any.
    pub(super) fn is_in(self, graph: &GraphProto) -> bool {
        let is_of = |tensor: &TensorProto| Self::of(tensor.data_type) == Some(self);
        let makes = |attribute: &AttributeProto| {
            named(attribute) == Some(self)
                || attribute.t.iter().chain(&attribute.tensors).any(is_of)
        };
        let mut values = graph.input.iter().chain(&graph.output);
        values.any(|value| declared(value) == Some(self))
            || graph.initializer.iter().any(is_of)
            || graph.node.iter().flat_map(|node| &node.attribute).any(makes)
            || bodies(graph).any(|body| self.is_in(body))
    }

    fn number(self, bits: u16) -> f32 {
        match self {
            Self::Fp16 => f16::from_bits(bits).into(),
            Self::Bf16 => bf16::from_bits(bits).into(),
        }
    }

    /// Makes of each number the nearest that it holds, of two as near the even one.
    pub(super) fn round(self, numbers: &mut [f32]) {
        match self {
            Self::Fp16 => round_through(&mut [f16::ZERO; 256], numbers),
            Self::Bf16 => round_through(&mut [bf16::ZERO; 256], numbers),
        }
    }
}

fn round_through<H>(halves: &mut [H], numbers: &mut [f32])
where
    [H]: HalfFloatSliceExt,
{
    for numbers in numbers.chunks_mut(halves.len()) {
        let halves = &mut halves[..numbers.len()];
        halves.convert_from_f32_slice(numbers);
        halves.convert_to_f32_slice(numbers);
    }
}

/// The messages in FP32.
pub(super) fn widened(proto: Cow<'_, ModelProto>) -> Cow<'_, ModelProto> {
    let mut proto = proto.into_owned();
    let [rounded, prefix] = ["rounded", "wide"].map(|wanted| free_prefix(&proto, wanted));
    if let Some(graph) = &mut proto.graph {
        round(graph, None, &rounded);
        widen_door(graph, &prefix);
        widen(graph);
    }
    Cow::Owned(proto)
}

/// Whether an operator looks at the bits of what may be halves: then they must stay.
pub(super) fn are_looked_at(proto: &ModelProto) -> bool {
    proto.graph.as_ref().is_some_and(looks_at_bits)
}

fn looks_at_bits(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| node.op_type == "BitCast") || bodies(graph).any(looks_at_bits)
}

/// The kind of halves that an attribute names.
fn named(attribute: &AttributeProto) -> Option<Half> {
    let name = attribute.name.as_str();
    let is_datatype = OF_OUTPUTS.contains(&name) || WITHIN.contains(&name);
    Half::of(attribute.i).filter(|_| is_datatype)
}

/// What is known of a graph's values, and of those around it.
struct Scope<'a> {
    own: HashSet<String>,
    /// Those that the graph says are halves.
    declared: HashMap<String, Half>,
    /// Those that were cast to halves, as they are or moved.
    cast: HashMap<String, Half>,
    around: Option<&'a Scope<'a>>,
}

impl<'a> Scope<'a> {
    fn of(graph: &GraphProto, around: Option<&'a Scope<'a>>) -> Self {
        let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        let values = values.filter_map(|value| Some((value.name.clone(), declared(value)?)));
        let tensors = graph.initializer.iter();
        let tensors = tensors.filter_map(|it| Some((it.name.clone(), Half::of(it.data_type)?)));
        let declared = values.chain(tensors).collect();
        Self { own: own_names(graph), declared, cast: HashMap::new(), around }
    }

    /// The scope of a value of that name.
    fn owner(&self, name: &str) -> &Scope<'a> {
        match self.around {
            Some(around) if !self.own.contains(name) => around.owner(name),
            _ => self,
        }
    }

    fn cast(&self, name: &str) -> Option<Half> {
        self.owner(name).cast.get(name).copied()
    }

    /// What a node makes halves of on purpose.
    fn made(&self, node: &NodeProto) -> Option<Half> {
        let is_output = |it: &&AttributeProto| OF_OUTPUTS.contains(&it.name.as_str());
        match node.op_type.as_str() {
            // Of no elements.
            "SequenceEmpty" => None,
            "CastLike" => {
                let like = node.input.get(1)?;
                let owner = self.owner(like);
                owner.declared.get(like).or_else(|| owner.cast.get(like)).copied()
            }
            _ => node.attribute.iter().filter(is_output).find_map(named),
        }
    }
}

/// Rounds what was cast to halves: to BF16 there and then; to FP16 where it is cast on. What is
/// computed of that is computed of all its digits, as ONNX Runtime leaves out a cast before one of its
/// own: infinities would come of large ones.
fn round(graph: &mut GraphProto, around: Option<&Scope<'_>>, prefix: &str) {
    let mut scope = Scope::of(graph, around);
    for mut node in mem::take(&mut graph.node) {
        for inner in graphs_of(&mut node) {
            round(inner, Some(&scope), prefix);
        }
        let kind = node.op_type.as_str();
        let taken = node.input.first().and_then(|name| scope.cast(name));
        let made = scope.made(&node);
        let is_cast = matches!(kind, "Cast" | "CastLike");
        if let Some(half) = made.or(taken.filter(|_| MOVING.contains(&kind))) {
            let names = node.output.iter().filter(|name| !name.is_empty());
            scope.cast.extend(names.map(|name| (name.clone(), half)));
        }
        if is_cast && taken == Some(Half::Fp16) && made != Some(Half::Fp16) {
            let name =
                format!("{prefix} before {}", node.output.first().map_or("", String::as_str));
            let from = mem::replace(&mut node.input[0], name.clone());
            graph.node.push(rounding(Half::Fp16, from, name));
        }
        let after = match made {
            Some(Half::Bf16) => round_outputs(&mut node, prefix),
            _ => Vec::new(),
        };
        graph.node.push(node);
        graph.node.extend(after);
    }
}

/// Gives a node's outputs other names, and returns what rounds them.
fn round_outputs(node: &mut NodeProto, prefix: &str) -> Vec<NodeProto> {
    let named = node.output.iter_mut().filter(|name| !name.is_empty());
    let rounded = named.map(|name| {
        let from = format!("{prefix} after {name}");
        let to = mem::replace(name, from.clone());
        rounding(Half::Bf16, from, to)
    });
    rounded.collect()
}

fn rounding(half: Half, from: String, to: String) -> NodeProto {
    NodeProto {
        // Another node may have the name of what it gives.
        name: format!("{from}, rounded"),
        input: vec![from],
        output: vec![to],
        op_type: ROUNDED.to_owned(),
        attribute: vec![int(KIND, half.datatype())],
        ..NodeProto::default()
    }
}

/// Makes FP32 of what comes in, and FP16 of what goes out. BF16 does not come in or go out here.
fn widen_door(graph: &mut GraphProto, prefix: &str) {
    let is_fp16 = |value: &&ValueInfoProto| declared(value) == Some(Half::Fp16);
    let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs = graph.input.iter().filter(is_fp16).filter(|input| !is_weight(&input.name));
    let inputs: Vec<String> = inputs.map(|input| input.name.clone()).collect();
    let outputs = graph.output.iter().filter(is_fp16).filter(|it| !inputs.contains(&it.name));
    let mut outputs: Vec<String> = outputs.map(|output| output.name.clone()).collect();
    outputs.sort_unstable();
    outputs.dedup();
    let wide = |name: &str| format!("{prefix}.{name}");
    let renamed = |name: &str| {
        let is_renamed = |names: &[String]| names.iter().any(|other| other == name);
        (is_renamed(&inputs) || is_renamed(&outputs)).then(|| wide(name))
    };
    for tensor in &mut graph.initializer {
        tensor.name = renamed(&tensor.name).unwrap_or_else(|| tensor.name.clone());
    }
    rename(&mut graph.node, &renamed);
    // Another node may have the name of an output.
    let named = |name: &String, cast| NodeProto { name: format!("{prefix} cast {name}"), ..cast };
    let inputs = inputs.iter().map(|name| named(name, cast(name, &wide(name), DataType::Float)));
    let outputs =
        outputs.iter().map(|name| named(name, cast(&wide(name), name, DataType::Float16)));
    let casts: Vec<NodeProto> = inputs.chain(outputs).collect();
    // Those stay as they are.
    widen_nodes(&mut graph.node);
    graph.node.extend(casts);
    let values = graph.input.iter_mut().chain(&mut graph.output);
    values.filter(|value| declared(value) == Some(Half::Bf16)).for_each(widen_value);
}

/// What a graph inside a node has of such a name itself is another.
fn rename(nodes: &mut [NodeProto], renamed: &dyn Fn(&str) -> Option<String>) {
    for node in nodes {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(other) = renamed(name) {
                *name = other;
            }
        }
        for graph in graphs_of(node) {
            let own = own_names(graph);
            let renamed = |name: &str| if own.contains(name) { None } else { renamed(name) };
            rename(&mut graph.node, &renamed);
            for output in &mut graph.output {
                if let Some(other) = renamed(&output.name) {
                    output.name = other;
                }
            }
        }
    }
}

/// What a graph takes, holds and makes, but for what the graphs inside its nodes do.
fn own_names(graph: &GraphProto) -> HashSet<String> {
    let taken = graph.input.iter().map(|value| &value.name);
    let sparse = graph.sparse_initializer.iter().filter_map(|tensor| tensor.values.as_ref());
    let held = graph.initializer.iter().chain(sparse).map(|tensor| &tensor.name);
    let made = graph.node.iter().flat_map(|node| &node.output);
    taken.chain(held).chain(made).cloned().collect()
}

fn cast(from: &str, to: &str, datatype: DataType) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        op_type: "Cast".to_owned(),
        attribute: vec![int("to", datatype)],
        ..NodeProto::default()
    }
}

fn int(name: &str, datatype: DataType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: datatype as i64,
        ..AttributeProto::default()
    }
}

/// The kind of halves that a graph says a value is.
fn declared(value: &ValueInfoProto) -> Option<Half> {
    match value.r#type.as_ref()?.value.as_ref()? {
        Value::TensorType(tensor) => Half::of(tensor.elem_type),
    }
}

/// What a graph holds, but for its nodes.
fn widen(graph: &mut GraphProto) {
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|tensor| tensor.values.as_mut());
    graph.initializer.iter_mut().chain(sparse).for_each(widen_tensor);
}

fn widen_nodes(nodes: &mut [NodeProto]) {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        if named(attribute).is_some() {
            attribute.i = FP32.into();
        }
        attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(widen_tensor);
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            widen(graph);
            widen_nodes(&mut graph.node);
            let values = graph.input.iter_mut().chain(&mut graph.output);
            let values = values.chain(&mut graph.value_info);
            values.filter(|value| declared(value).is_some()).for_each(widen_value);
        }
    }
}

fn widen_value(value: &mut ValueInfoProto) {
    let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    if let Some(Value::TensorType(tensor)) = kind {
        tensor.elem_type = FP32;
    }
}

/// Halves lie in a tensor as bytes, or each in an integer.
fn widen_tensor(tensor: &mut TensorProto) {
    let Some(half) = Half::of(tensor.data_type) else { return };
    tensor.data_type = FP32;
    let (pairs, _) = tensor.raw_data.as_chunks::<2>();
    let bytes = pairs.iter().map(|&pair| u16::from_le_bytes(pair));
    let bits = tensor.int32_data.iter().map(|&bits| bits as u16);
    tensor.float_data = bytes.chain(bits).map(|bits| half.number(bits)).collect();
    tensor.raw_data.clear();
    tensor.int32_data.clear();
}
