//! What several operators' attributes have in common: class labels, and numbers that stand
//! either as single or as double precision.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

/// Numbers, and whether the file has them as doubles.
#[derive(Debug, Clone, Default)]
pub(super) struct Numbers {
    pub(super) values: Vec<f64>,
    pub(super) are_doubles: bool,
}

/// The floats `name`, else the doubles `name_as_tensor`; none where the node has neither.
///
/// # Errors
/// Attributes of another type.
pub(super) fn numbers(
    context: &ParsingContext,
    node: &NodeProto,
    name: &str,
) -> TractResult<Numbers> {
    if let Some(floats) = node.get_attr_opt_slice::<f32>(name)? {
        let values = floats.iter().copied().map(f64::from).collect();
        return Ok(Numbers { values, are_doubles: false });
    }
    tensor_numbers(context, node, &format!("{name}_as_tensor"))
}

/// The tensor attribute `name` of any numeric type; none where the node lacks it.
///
/// # Errors
/// Not a tensor of numbers.
pub(super) fn tensor_numbers(
    context: &ParsingContext,
    node: &NodeProto,
    name: &str,
) -> TractResult<Numbers> {
    let Some(tensor) = node.get_attr_opt::<&TensorProto>(name)? else {
        return Ok(Numbers::default());
    };
    let tensor = context.load_tensor(tensor)?;
    ensure!(tensor.datum_type().is_number(), "attribute `{name}` holds no numbers");
    let are_doubles = tensor.datum_type() == DatumType::F64;
    let tensor = tensor.cast_to::<f64>()?;
    let values = tensor.try_as_plain_ram()?.as_slice::<f64>()?.to_vec();
    Ok(Numbers { values, are_doubles })
}

/// The floats `name`; none where the node lacks them.
///
/// # Errors
/// An attribute of another type.
pub(super) fn floats<'a>(node: &'a NodeProto, name: &str) -> TractResult<&'a [f32]> {
    Ok(node.get_attr_opt_slice::<f32>(name)?.unwrap_or_default())
}

/// The integers `name`; none where the node lacks them.
///
/// # Errors
/// An attribute of another type.
pub(super) fn integers<'a>(node: &'a NodeProto, name: &str) -> TractResult<&'a [i64]> {
    Ok(node.get_attr_opt_slice::<i64>(name)?.unwrap_or_default())
}

/// The strings `name`; none where the node lacks them.
///
/// # Errors
/// An attribute of another type, or not UTF-8.
pub(super) fn strings(node: &NodeProto, name: &str) -> TractResult<Vec<String>> {
    Ok(node.get_attr_opt_vec::<String>(name)?.unwrap_or_default())
}

/// A classifier's classes, in the order of its scores.
#[derive(Debug, Clone)]
pub(super) enum Labels {
    Integers(Vec<i64>),
    Strings(Vec<String>),
}

impl Labels {
    /// Strings where there are any, as ONNX Runtime chooses.
    ///
    /// # Errors
    /// Neither attribute, or neither holds anything.
    pub(super) fn read(node: &NodeProto, integer_name: &str) -> TractResult<Self> {
        let strings = strings(node, "classlabels_strings")?;
        if !strings.is_empty() {
            return Ok(Self::Strings(strings));
        }
        let integers = integers(node, integer_name)?;
        ensure!(!integers.is_empty(), "neither {integer_name} nor classlabels_strings");
        Ok(Self::Integers(integers.to_vec()))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Integers(labels) => labels.len(),
            Self::Strings(labels) => labels.len(),
        }
    }

    pub(super) fn datum(&self) -> DatumType {
        match self {
            Self::Integers(_) => DatumType::I64,
            Self::Strings(_) => DatumType::String,
        }
    }

    /// The labels of these classes. A classifier that knows fewer than two labels decides
    /// between 0 and 1: so does ONNX Runtime.
    pub(super) fn of(&self, classes: &[usize]) -> Tensor {
        match self {
            Self::Integers(labels) => {
                let label = |&class: &usize| match labels.len() {
                    0 | 1 => class as i64,
                    _ => labels.get(class).copied().unwrap_or_default(),
                };
                tensor1(&classes.iter().map(label).collect::<Vec<i64>>())
            }
            Self::Strings(labels) => {
                let label = |&class: &usize| match labels.len() {
                    0 | 1 => class.to_string(),
                    _ => labels.get(class).cloned().unwrap_or_default(),
                };
                tensor1(&classes.iter().map(label).collect::<Vec<String>>())
            }
        }
    }
}
