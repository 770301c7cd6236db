//! What rten answers wrongly, without a word.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{self, TensorProto, tensor_proto::DataType};

use crate::LoadError;
use crate::messages::{graphs_in, is_onnx};
use crate::sound::needs;
use crate::tract::File;

/// # Errors
/// A node of which rten's answer is known to be wrong.
pub(super) fn check(file: &File<'_>) -> Result<(), LoadError> {
    let Some(graph) = &file.proto.graph else { return Ok(()) };
    let opset = file.proto.opset_import.iter().find(|opset| is_onnx(&opset.domain));
    check_graph(graph, None, file, opset.map_or(0, |opset| opset.version))
}

fn check_graph(
    graph: &pb::GraphProto,
    outer: Option<&Known<'_>>,
    file: &File<'_>,
    opset: i64,
) -> Result<(), LoadError> {
    let known = &Known::of(graph, outer, file);
    let is_large = |name: &str| known.constant(name).is_some_and(|constant| constant.is_large);
    if let Some(output) = graph.output.iter().find(|output| is_large(&output.name)) {
        let name = &output.name;
        return Err(LoadError(format!("rten is not trusted with the output `{name}`: {CUT_OFF}")));
    }
    for node in &graph.node {
        if let Some(why) = flaw(node, known, opset) {
            let (op, name) = (&node.op_type, &node.name);
            return Err(LoadError(format!(
                "rten is not trusted with the {op} node `{name}`: {why}"
            )));
        }
        graphs_in(node).try_for_each(|body| check_graph(body, Some(known), file, opset))?;
    }
    Ok(())
}

/// Numbers of INT64 have 32 bits in it.
const CUT_OFF: &str = "it cuts numbers off to 32 bits";

/// What is wrong with rten's answer to a node.
fn flaw(node: &pb::NodeProto, known: &Known<'_>, opset: i64) -> Option<&'static str> {
    let attribute = |name: &str| node.attribute.iter().find(|it| it.name == name);
    let is_text =
        |name: &str, text: &str| attribute(name).is_some_and(|it| it.s == text.as_bytes());
    let has_input = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    // As a place to slice from or to, a large number means the end, cut off or not.
    let matters = |index: usize| node.op_type != "Slice" || !matches!(index, 1 | 2);
    let is_large = |name: &String| known.constant(name).is_some_and(|constant| constant.is_large);
    let fills_large = || {
        let made = attribute("value").and_then(Constant::in_node);
        node.op_type == "ConstantOfShape" && made.is_some_and(|made| made.is_large)
    };
    let is_padded = || {
        let pads = attribute("pads").is_some_and(|it| it.ints.iter().any(|&pad| pad != 0));
        pads || is_text("auto_pad", "SAME_UPPER") || is_text("auto_pad", "SAME_LOWER")
    };
    if node.input.iter().enumerate().any(|(index, name)| matters(index) && is_large(name))
        || fills_large()
    {
        return Some(CUT_OFF);
    }
    match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" if opset < 13 => {
            let axis = attribute("axis").map_or(1, |it| it.i);
            let is_last = axis == -1 || known.is_last(node.output.first(), axis);
            (!is_last)
                .then_some("it takes the axis alone, and all after it are one before opset 13")
        }
        "ArgMax" | "ArgMin" => Some("of equal elements it gives the last"),
        "Sign" => Some("the sign of zero is 1 or -1 to it"),
        "LSTM" | "GRU" | "RNN" if has_input(4) => Some("it takes all sequences for equally long"),
        "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool"
            if is_text("auto_pad", "SAME_LOWER") =>
        {
            Some("it pads by SAME_LOWER as by SAME_UPPER")
        }
        "ConvInteger" if is_padded() => {
            let groups = attribute("group").map_or(1, |it| it.i);
            let shape = node.input.get(1).and_then(|name| known.shape(name));
            let is_of_channels = shape.is_some_and(|shape| shape.starts_with(&[groups, 1]));
            (!is_of_channels).then_some("it takes in more than zeros where it pads integers")
        }
        "Loop" if !needs(node).any(|name| known.varies(name)) => {
            Some("it runs one of constants as it loads it, which may not end")
        }
        "NonMaxSuppression" => Some("it takes boxes of several classes or images for one's"),
        "Softplus" => Some("of large numbers it gives infinities"),
        "Scatter" | "ScatterElements" => {
            Some("it wants as many indices as elements along the other axes")
        }
        "MatMul" | "MatMulInteger" if known.is_of_many_by_vector(&node.input) => {
            Some("it gives a product with a vector an axis too many")
        }
        // What it does not read as constant itself may become so, as it folds constants.
        "MatMulInteger" if has_input(3) && known.may_be_i8(node.input.get(1)) => {
            let is_zero = |name| known.constant(name).is_some_and(Constant::is_zero);
            (!is_zero(&node.input[3]))
                .then_some("it takes constant weights of INT8 for ones without a zero point")
        }
        "Resize" if is_text("mode", "cubic") => {
            Some("it weighs pixels otherwise for cubic samples")
        }
        "SequenceInsert" if has_input(2) => {
            let place = known.constant(&node.input[2]);
            let is_from_start = place.is_some_and(Constant::is_from_start);
            (!is_from_start).then_some("it counts places from after the end, not from the end")
        }
        _ => None,
    }
}

/// What a graph says of its values, and those around it.
struct Known<'a> {
    constants: HashMap<&'a str, Constant<'a>>,
    /// Of weights and of what is declared; -1 is a size that is not.
    shapes: HashMap<&'a str, Vec<i64>>,
    /// What follows from an input's values.
    varying: HashSet<&'a str>,
    outer: Option<&'a Known<'a>>,
}

/// A value that is in the file.
struct Constant<'a> {
    datatype: DataType,
    rank: usize,
    /// Elements of integers: where a tensor has their bytes, else as numbers.
    raw: &'a [u8],
    narrow: &'a [i32],
    wide: &'a [i64],
    /// Whether some are of more than 32 bits.
    is_large: bool,
}

impl<'a> Known<'a> {
    fn of(graph: &'a pb::GraphProto, outer: Option<&'a Known<'a>>, file: &'a File<'_>) -> Self {
        let weights = graph.initializer.iter().filter_map(|tensor| {
            let constant = match file.large(tensor) {
                Some((datatype, shape, raw)) => {
                    Some(Constant::new(datatype, shape.len(), raw, &[], &[]))
                }
                None => Constant::of(tensor),
            };
            Some((tensor.name.as_str(), constant?))
        });
        let made = graph.node.iter().filter(|node| node.op_type == "Constant").filter_map(|node| {
            let constant = node.attribute.iter().find_map(Constant::in_node);
            Some((node.output.first()?.as_str(), constant?))
        });
        let declared = graph.input.iter().chain(&graph.value_info).chain(&graph.output);
        let shapes = declared.filter_map(|value| Some((value.name.as_str(), shape_of(value)?)));
        let given = graph.initializer.iter().map(|tensor| {
            let shape = match file.large(tensor) {
                Some((_, shape, _)) => shape.iter().map(|&size| size as i64).collect(),
                None => tensor.dims.clone(),
            };
            (tensor.name.as_str(), shape)
        });
        let shapes = shapes.chain(given).collect();
        let (constants, varying) = (weights.chain(made).collect(), HashSet::new());
        let mut known = Self { constants, shapes, varying, outer };
        let weights: HashSet<&String> = graph.initializer.iter().map(|it| &it.name).collect();
        let inputs = graph.input.iter().map(|input| &input.name);
        let inputs = inputs.filter(|name| !weights.contains(name));
        known.varying.extend(inputs.map(String::as_str));
        for node in &graph.node {
            // Of sizes that are declared it makes constants.
            let is_of_sizes = matches!(&*node.op_type, "Shape" | "Size");
            if !is_of_sizes && needs(node).any(|name| known.varies(name)) {
                known.varying.extend(node.output.iter().map(String::as_str));
            }
        }
        known
    }

    /// Nodes that are not in order may be taken for constants.
    fn varies(&self, name: &str) -> bool {
        self.varying.contains(name) || self.outer.is_some_and(|outer| outer.varies(name))
    }

    fn constant(&self, name: &str) -> Option<&Constant<'a>> {
        let around = || self.outer.and_then(|outer| outer.constant(name));
        self.constants.get(name).or_else(around)
    }

    fn shape(&self, name: &str) -> Option<&Vec<i64>> {
        self.shapes.get(name).or_else(|| self.outer.and_then(|outer| outer.shape(name)))
    }

    fn rank(&self, name: &str) -> Option<usize> {
        let constant = self.constant(name).map(|constant| constant.rank);
        constant.or_else(|| self.shape(name).map(Vec::len))
    }

    /// Whether all sizes after the axis are known to be one.
    fn is_last(&self, name: Option<&String>, axis: i64) -> bool {
        let shape = name.and_then(|name| self.shape(name));
        shape.is_some_and(|shape| {
            let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
            let after = usize::try_from(axis + 1).ok().and_then(|after| shape.get(after..));
            after.is_some_and(|after| after.iter().all(|&size| size == 1))
        })
    }

    fn is_of_many_by_vector(&self, inputs: &[String]) -> bool {
        let [many, vector, ..] = inputs else { return false };
        self.rank(vector) == Some(1) && self.rank(many).is_none_or(|rank| rank > 2)
    }

    fn may_be_i8(&self, name: Option<&String>) -> bool {
        let constant = name.and_then(|name| self.constant(name));
        constant.is_none_or(|constant| constant.datatype == DataType::Int8)
    }
}

/// The declared shape of a tensor.
fn shape_of(value: &pb::ValueInfoProto) -> Option<Vec<i64>> {
    use pb::tensor_shape_proto::dimension::Value::DimValue;
    use pb::type_proto::Value::TensorType;
    let TensorType(tensor) = value.r#type.as_ref()?.value.as_ref()?;
    let sizes = tensor.shape.as_ref()?.dim.iter().map(|dim| match dim.value {
        Some(DimValue(size)) => size,
        _ => -1,
    });
    Some(sizes.collect())
}

impl<'a> Constant<'a> {
    fn new(
        datatype: DataType,
        rank: usize,
        raw: &'a [u8],
        narrow: &'a [i32],
        wide: &'a [i64],
    ) -> Self {
        let mut constant = Self { datatype, rank, raw, narrow, wide, is_large: false };
        constant.is_large = datatype == DataType::Int64
            && constant.integers().any(|number| i32::try_from(number).is_err());
        constant
    }

    fn of(tensor: &'a TensorProto) -> Option<Self> {
        let datatype = DataType::try_from(tensor.data_type).ok()?;
        let (raw, narrow, wide) = (&tensor.raw_data, &tensor.int32_data, &tensor.int64_data);
        Some(Self::new(datatype, tensor.dims.len(), raw, narrow, wide))
    }

    /// The value of a Constant node.
    fn in_node(attribute: &'a pb::AttributeProto) -> Option<Self> {
        let (datatype, rank, wide) = match attribute.name.as_str() {
            "value" => return Self::of(attribute.t.as_ref()?),
            "value_int" => (DataType::Int64, 0, std::slice::from_ref(&attribute.i)),
            "value_ints" => (DataType::Int64, 1, &*attribute.ints),
            "value_floats" => (DataType::Float, 1, &[][..]),
            _ => return None,
        };
        Some(Self::new(datatype, rank, &[], &[], wide))
    }

    /// Of INT64.
    fn integers(&self) -> impl Iterator<Item = i64> {
        let raw = self.raw.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
        raw.chain(self.wide.iter().copied())
    }

    /// Whether it is known to be no place that counts from the end.
    fn is_from_start(&self) -> bool {
        self.datatype == DataType::Int64 && self.integers().all(|place| place >= 0)
    }

    fn is_zero(&self) -> bool {
        self.raw.iter().all(|&byte| byte == 0) && self.narrow.iter().all(|&number| number == 0)
    }
}
