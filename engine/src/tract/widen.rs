//! A graph of narrow numbers as one of wider ones: FP32 for floats of 16 bits and fewer, INT8 for whole
//! numbers of two bits and four. tract multiplies FP16 one by one, hundreds of times as slowly, and adds it
//! up in halves; of the others it has no type.
//!
//! At its door the graph takes and gives FP16, and FP32 for BF16, which `values` makes of the one and
//! of the other; the protocol has no others. ONNX Runtime computes FP16 in FP32, too, and rounds on the way
//! from a cast to it to a cast from it: so does this. For the others it has next to no kernels: each cast to
//! one rounds, as ONNX says.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::mem;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};
use tract_onnx::pb::{attribute_proto::AttributeType, type_proto::Value};

use crate::messages::{bodies, free_prefix, graphs_of};
use crate::narrow::Narrow;

/// Ours, which rounds to what narrow numbers hold, and its attribute that says which: ONNX's number of the
/// datatype. A QuantizeLinear to narrow numbers has the attribute, too.
pub(super) const ROUNDED: &str = "wisp.Rounded";
pub(super) const KIND: &str = "kind";

/// Attributes of a cast that say how it rounds.
const OF_ROUNDING: [&str; 2] = ["saturate", "round_mode"];

/// Attributes that name the datatype of what an operator gives.
const OF_OUTPUTS: [&str; 4] = ["to", "dtype", "output_datatype", "output_dtype"];

/// Attributes that name a datatype to compute in, for which FP32 is no worse.
const WITHIN: [&str; 3] = ["precision", "softmax_precision", "stash_type"];

/// Operators that give the numbers of their first input, elsewhere.
const MOVING: [&str; 11] = [
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// Operators that give something else than what they take.
const OF_OTHER_TYPES: [&str; 19] = [
    "ArgMax",
    "ArgMin",
    "Cast",
    "CastLike",
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "MatMulInteger",
    "NonZero",
    "QuantizeLinear",
    "Shape",
    "Size",
];

/// A wanted datatype of those that a graph takes, gives, holds or makes.
pub(super) fn find(graph: &GraphProto, is_wanted: &dyn Fn(Narrow) -> bool) -> Option<Narrow> {
    let values = graph.input.iter().chain(&graph.output).filter_map(declared);
    let attributes = graph.node.iter().flat_map(|node| &node.attribute);
    let tensors = attributes.clone().flat_map(|it| it.t.iter().chain(&it.tensors));
    let held = graph.initializer.iter().chain(tensors);
    let held = held.filter_map(|tensor| Narrow::of(tensor.data_type));
    let mut found = values.chain(held).chain(attributes.filter_map(named));
    let within = || bodies(graph).find_map(|body| find(body, is_wanted));
    found.find(|&narrow| is_wanted(narrow)).or_else(within)
}

/// The messages in wider numbers.
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

/// Whether an operator looks at the bits of what may be narrow: then they must stay.
pub(super) fn are_looked_at(proto: &ModelProto) -> bool {
    proto.graph.as_ref().is_some_and(looks_at_bits)
}

fn looks_at_bits(graph: &GraphProto) -> bool {
    graph.node.iter().any(|node| node.op_type == "BitCast") || bodies(graph).any(looks_at_bits)
}

/// The narrow datatype that an attribute names.
fn named(attribute: &AttributeProto) -> Option<Narrow> {
    let name = attribute.name.as_str();
    let is_datatype = OF_OUTPUTS.contains(&name) || WITHIN.contains(&name);
    Narrow::of(attribute.i).filter(|_| is_datatype)
}

/// What is known of a graph's values, and of those around it.
struct Scope<'a> {
    own: HashSet<String>,
    /// Those that the graph says are narrow.
    declared: HashMap<String, Narrow>,
    /// Those that were made narrow on purpose, as they are or moved.
    cast: HashMap<String, Narrow>,
    /// Those that are computed of narrow ones.
    computed: HashMap<String, Narrow>,
    around: Option<&'a Scope<'a>>,
}

impl<'a> Scope<'a> {
    fn of(graph: &GraphProto, around: Option<&'a Scope<'a>>) -> Self {
        let values = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        let values = values.filter_map(|value| Some((value.name.clone(), declared(value)?)));
        let tensors = graph.initializer.iter();
        let tensors = tensors.filter_map(|it| Some((it.name.clone(), Narrow::of(it.data_type)?)));
        let constants = graph.node.iter().filter_map(constant);
        let declared = values.chain(tensors).chain(constants).collect();
        let (cast, computed) = (HashMap::new(), HashMap::new());
        Self { own: own_names(graph), declared, cast, computed, around }
    }

    /// The scope of a value of that name.
    fn owner(&self, name: &str) -> &Scope<'a> {
        match self.around {
            Some(around) if !self.own.contains(name) => around.owner(name),
            _ => self,
        }
    }

    fn cast(&self, name: &str) -> Option<Narrow> {
        self.owner(name).cast.get(name).copied()
    }

    /// What is known of an input of a node.
    fn kind(&self, node: &NodeProto, index: usize) -> Option<Narrow> {
        let name = node.input.get(index)?;
        let owner = self.owner(name);
        let known = owner.declared.get(name).or_else(|| owner.cast.get(name));
        known.or_else(|| owner.computed.get(name)).copied()
    }

    /// What a node makes narrow on purpose.
    fn made(&self, node: &NodeProto) -> Option<Narrow> {
        let is_output = |it: &&AttributeProto| OF_OUTPUTS.contains(&it.name.as_str());
        let named = || node.attribute.iter().filter(is_output).find_map(named);
        match node.op_type.as_str() {
            // Of no elements.
            "SequenceEmpty" => None,
            "CastLike" => self.kind(node, 1),
            "QuantizeLinear" => self.kind(node, 2).or_else(named).filter(|it| !it.is_half()),
            _ => named(),
        }
    }
}

/// What a node gives that is in the file, and its datatype.
fn constant(node: &NodeProto) -> Option<(String, Narrow)> {
    let is_constant = matches!(node.op_type.as_str(), "Constant" | "ConstantOfShape");
    let value = node.attribute.iter().find_map(|it| it.t.as_ref()).filter(|_| is_constant)?;
    Some((node.output.first()?.clone(), Narrow::of(value.data_type)?))
}

/// Rounds what was made narrow on purpose: there and then, but to FP16 where it is cast on. What is
/// computed of that is computed of all its digits, as ONNX Runtime leaves out a cast before one of its
/// own: infinities would come of large ones.
fn round(graph: &mut GraphProto, around: Option<&Scope<'_>>, prefix: &str) {
    let mut scope = Scope::of(graph, around);
    for mut node in mem::take(&mut graph.node) {
        for inner in graphs_of(&mut node) {
            round(inner, Some(&scope), prefix);
        }
        let kind = node.op_type.as_str();
        // Of what is put together it is enough that one was.
        let looked_at = if kind == "Concat" { node.input.len() } else { 1 };
        let taken = node.input.iter().take(looked_at).find_map(|name| scope.cast(name));
        let made = scope.made(&node);
        if made.is_none() && !OF_OTHER_TYPES.contains(&kind) {
            let mut kinds = (0..node.input.len()).filter_map(|index| scope.kind(&node, index));
            if let Some(narrow) = kinds.next() {
                scope.computed.extend(node.output.iter().map(|name| (name.clone(), narrow)));
            }
        }
        let is_cast = matches!(kind, "Cast" | "CastLike");
        if let Some(narrow) = made.or(taken.filter(|_| MOVING.contains(&kind))) {
            let names = node.output.iter().filter(|name| !name.is_empty());
            scope.cast.extend(names.map(|name| (name.clone(), narrow)));
        }
        if is_cast && taken == Some(Narrow::Fp16) && made != Some(Narrow::Fp16) {
            let name =
                format!("{prefix} before {}", node.output.first().map_or("", String::as_str));
            let from = mem::replace(&mut node.input[0], name.clone());
            graph.node.push(rounding(Narrow::Fp16, &name, from, name.clone()));
        }
        let after = match made {
            Some(narrow) if narrow != Narrow::Fp16 => round_outputs(&mut node, narrow, prefix),
            _ => Vec::new(),
        };
        graph.node.push(node);
        graph.node.extend(after);
    }
}

/// Has a node's outputs rounded: by itself, where it can, else by those that are returned.
fn round_outputs(node: &mut NodeProto, to: Narrow, prefix: &str) -> Vec<NodeProto> {
    match node.op_type.as_str() {
        "QuantizeLinear" => {
            node.attribute.push(int(KIND, to.number()));
            return Vec::new();
        }
        // Of all digits of what it takes: INT8 would have them cut off or saturated.
        "Cast" | "CastLike" if to.is_whole() => {
            node.op_type = ROUNDED.to_owned();
            node.input.truncate(1);
            node.attribute = vec![int(KIND, to.number())];
            return Vec::new();
        }
        _ if to.is_whole() => return Vec::new(),
        _ => {}
    }
    let is_of_rounding = |it: &&AttributeProto| OF_ROUNDING.contains(&it.name.as_str());
    let how: Vec<_> = node.attribute.iter().filter(is_of_rounding).cloned().collect();
    let named = node.output.iter_mut().filter(|name| !name.is_empty());
    let rounded = named.map(|name| {
        let from = format!("{prefix} after {name}");
        let given = mem::replace(name, from.clone());
        let mut node = rounding(to, &from.clone(), from, given);
        node.attribute.extend_from_slice(&how);
        node
    });
    rounded.collect()
}

/// `own`: a name that only this one has. Another node may have that of what it gives.
fn rounding(narrow: Narrow, own: &str, from: String, to: String) -> NodeProto {
    NodeProto {
        name: format!("{own}, rounded"),
        input: vec![from],
        output: vec![to],
        op_type: ROUNDED.to_owned(),
        attribute: vec![int(KIND, narrow.number())],
        ..NodeProto::default()
    }
}

/// Makes FP32 of what comes in, and FP16 of what goes out. Others do not come in or go out here.
fn widen_door(graph: &mut GraphProto, prefix: &str) {
    let is_fp16 = |value: &&ValueInfoProto| declared(value) == Some(Narrow::Fp16);
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
    values.filter(|value| !is_fp16(&&**value)).for_each(widen_value);
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
        attribute: vec![int("to", datatype as i32)],
        ..NodeProto::default()
    }
}

fn int(name: &str, datatype: i32) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: datatype.into(),
        ..AttributeProto::default()
    }
}

/// The narrow datatype that a graph says a value is of.
fn declared(value: &ValueInfoProto) -> Option<Narrow> {
    match value.r#type.as_ref()?.value.as_ref()? {
        Value::TensorType(tensor) => Narrow::of(tensor.elem_type),
    }
}

/// What a graph holds, but for its nodes.
fn widen(graph: &mut GraphProto) {
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|tensor| tensor.values.as_mut());
    graph.initializer.iter_mut().chain(sparse).for_each(widen_tensor);
}

fn widen_nodes(nodes: &mut [NodeProto]) {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        if let Some(narrow) = named(attribute) {
            attribute.i = narrow.wide() as i64;
        }
        attribute.t.iter_mut().chain(&mut attribute.tensors).for_each(widen_tensor);
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            widen(graph);
            widen_nodes(&mut graph.node);
            let values = graph.input.iter_mut().chain(&mut graph.output);
            values.chain(&mut graph.value_info).for_each(widen_value);
        }
    }
}

fn widen_value(value: &mut ValueInfoProto) {
    let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    if let Some(Value::TensorType(tensor)) = kind
        && let Some(narrow) = Narrow::of(tensor.elem_type)
    {
        tensor.elem_type = narrow.wide() as i32;
    }
}

fn widen_tensor(tensor: &mut TensorProto) {
    let Some(narrow) = Narrow::of(tensor.data_type) else { return };
    if narrow.is_whole() {
        tensor.raw_data = narrow.read_tensor(tensor, |number| (number as i8).cast_unsigned());
    } else {
        tensor.float_data = narrow.read_tensor(tensor, |number| number);
        tensor.raw_data.clear();
    }
    tensor.int32_data.clear();
    tensor.data_type = narrow.wide() as i32;
}
