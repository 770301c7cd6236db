//! Sizes that a file asks for against what it brings: weights whose data are not as long as
//! their shape says, and nodes that make terabytes out of a constant. An engine that believes
//! them cannot be given the memory, and one of them ends the process for it.
//!
//! Sizes that are computed are not seen here: those of an examined bundle end the examination.

use std::collections::HashMap;

use tract_onnx::pb::{self, TensorProto, tensor_proto::DataType};

use crate::narrow::Narrow;

/// Elements that one node may make where a constant says how many: 1 GiB of floats.
const MAX_ELEMENTS: f64 = (1u64 << 28) as f64;

/// How often larger a resized image may be.
const MAX_SCALE: f64 = (1u64 << 24) as f64;

/// The small weights and constants of a graph, by name.
pub(crate) type Constants<'a> = HashMap<&'a str, Vec<f64>>;

/// Those of the graph itself, not of graphs inside it.
pub(crate) fn constants(graph: &pb::GraphProto) -> Constants<'_> {
    let weights = graph.initializer.iter().filter_map(|it| Some((it.name.as_str(), numbers(it)?)));
    let made = graph.node.iter().filter(|node| node.op_type == "Constant").filter_map(|node| {
        Some((node.output.first()?.as_str(), node.attribute.iter().find_map(constant)?))
    });
    weights.chain(made).collect()
}

fn constant(attribute: &pb::AttributeProto) -> Option<Vec<f64>> {
    Some(match attribute.name.as_str() {
        "value" => return attribute.t.as_ref().and_then(numbers),
        "value_int" => vec![attribute.i as f64],
        "value_float" => vec![attribute.f.into()],
        "value_ints" => attribute.ints.iter().map(|&value| value as f64).collect(),
        "value_floats" => attribute.floats.iter().map(|&value| value.into()).collect(),
        _ => return None,
    })
}

/// Refuses a value at a graph's door that says it is larger than can be held.
///
/// # Errors
/// A text that names it.
pub(crate) fn check_value(name: &str, sizes: &[i64]) -> Result<(), String> {
    let elements: f64 = sizes.iter().map(|&size| size.max(1) as f64).product();
    match elements <= MAX_ELEMENTS {
        true => Ok(()),
        false => Err(format!("`{name}` asks for too much memory, its shape is {sizes:?}")),
    }
}

/// Refuses a tensor whose data are not those of its shape.
///
/// # Errors
/// A text that says what was expected.
pub(crate) fn check_data(tensor: &TensorProto) -> Result<(), String> {
    let name = &tensor.name;
    let sizes = tensor.dims.iter().map(|&size| usize::try_from(size).ok());
    // Also where one of the others is zero, as engines multiply them.
    let count = sizes.clone().try_fold(1usize, |count, size| count.checked_mul(size?.max(1)));
    let Some(count) = count.filter(|&count| count < 1 << 56) else {
        return Err(format!("the weights of `{name}` cannot have the shape {:?}", tensor.dims));
    };
    let count = if tensor.dims.contains(&0) { 0 } else { count };
    if tensor.data_type == DataType::String as i32 && !tensor.raw_data.is_empty() {
        return Err(format!("the weights of `{name}` are strings, expected them in a list"));
    }
    let Some(bits) = bits_of(tensor.data_type) else { return Ok(()) };
    let bytes = (count * bits).div_ceil(8);
    let (expected, came) = match tensor.raw_data.len() {
        // Those that share a byte share a place in the list, too.
        0 => (count.min(bytes), list_length(tensor)),
        length => (bytes, length),
    };
    match expected == came {
        true => Ok(()),
        false => Err(format!(
            "the weights of `{name}`: expected {expected} elements or bytes, got {came}"
        )),
    }
}

/// Bits of an element; `None` for those that are pairs or are not known.
fn bits_of(data_type: i32) -> Option<usize> {
    if let Some(narrow) = Narrow::of(data_type) {
        return Some(narrow.bits());
    }
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Bool | DataType::Uint8 | DataType::Int8 => 8,
        DataType::Uint16 | DataType::Int16 => 16,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 32,
        DataType::Double | DataType::Int64 | DataType::Uint64 => 64,
        // Only in a list.
        DataType::String => 8,
        _ => return None,
    })
}

/// Which list it is differs from type to type, and the others are empty.
fn list_length(tensor: &TensorProto) -> usize {
    let lengths = [
        tensor.float_data.len(),
        tensor.int32_data.len(),
        tensor.int64_data.len(),
        tensor.double_data.len(),
        tensor.uint64_data.len(),
        tensor.string_data.len(),
    ];
    lengths.into_iter().max().unwrap_or_default()
}

/// Refuses a node that makes more than can be held, where constants say so.
///
/// # Errors
/// A text that names the node.
pub(crate) fn check_node<'a>(
    node: &pb::NodeProto,
    constant: impl Fn(&str) -> Option<&'a Vec<f64>>,
) -> Result<(), String> {
    let input = |index: usize| {
        let name = node.input.get(index).filter(|name| !name.is_empty())?;
        constant(name).cloned()
    };
    let is_sound = match node.op_type.as_str() {
        "ConstantOfShape" => at_most(input(0), MAX_ELEMENTS),
        "Expand" | "Tile" => at_most(input(1), MAX_ELEMENTS),
        "OneHot" => at_most(input(1), MAX_ELEMENTS),
        "Pad" => at_most(input(1).map(padded), MAX_ELEMENTS),
        "Upsample" => at_most(input(1), MAX_SCALE),
        // Until opset 10 the scales were the second input.
        "Resize" => {
            let (second, third) = if node.input.len() < 3 { (1, 1) } else { (2, 3) };
            at_most(input(second), MAX_SCALE) && at_most(input(third), MAX_ELEMENTS)
        }
        "Range" => match (input(0), input(1), input(2)) {
            (Some(from), Some(end), Some(by)) => match (&from[..], &end[..], &by[..]) {
                (&[from], &[end], &[by]) => (end - from) / by <= MAX_ELEMENTS,
                _ => true,
            },
            _ => true,
        },
        _ => true,
    };
    match is_sound {
        true => Ok(()),
        false => Err(format!("the {} node `{}` asks for too much memory", node.op_type, node.name)),
    }
}

/// The product of what is known; a negative size or scale has a meaning to some operators.
fn at_most(sizes: Option<Vec<f64>>, most: f64) -> bool {
    sizes.is_none_or(|sizes| sizes.iter().map(|size| size.abs().max(1.0)).product::<f64>() <= most)
}

/// What pads make of one element, by axis: those before all axes stand first, then those after.
fn padded(pads: Vec<f64>) -> Vec<f64> {
    let (before, after) = pads.split_at(pads.len() / 2);
    before.iter().zip(after).map(|(before, after)| before.abs() + after.abs() + 1.0).collect()
}

/// Few numbers, as sizes and scales are.
fn numbers(tensor: &TensorProto) -> Option<Vec<f64>> {
    fn read<const N: usize>(raw: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.as_chunks::<N>().0.iter().map(|bytes| value(*bytes)).collect()
    }
    let raw = &tensor.raw_data;
    if raw.len() > 1024 {
        return None;
    }
    if let Some(narrow) = Narrow::of(tensor.data_type) {
        return Some(narrow.read_tensor(tensor, f64::from));
    }
    Some(match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 if raw.is_empty() => tensor.int64_data.iter().map(|&v| v as f64).collect(),
        DataType::Int64 => read(raw, |bytes| i64::from_le_bytes(bytes) as f64),
        DataType::Int32 if raw.is_empty() => tensor.int32_data.iter().map(|&v| v.into()).collect(),
        DataType::Int32 => read(raw, |bytes| i32::from_le_bytes(bytes).into()),
        DataType::Float if raw.is_empty() => tensor.float_data.iter().map(|&v| v.into()).collect(),
        DataType::Float => read(raw, |bytes| f32::from_le_bytes(bytes).into()),
        DataType::Double if raw.is_empty() => tensor.double_data.clone(),
        DataType::Double => read(raw, f64::from_le_bytes),
        _ => return None,
    })
}
