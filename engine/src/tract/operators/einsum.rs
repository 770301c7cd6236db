//! Einsum to a scalar, as `i,i->`, which tract takes for one without a sum.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;
use super::theirs;

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Einsum", einsum);
}

fn einsum(context: &ParsingContext, node: &NodeProto) -> Built {
    let equation = node.get_attr::<&str>("equation")?.trim_end();
    if !equation.ends_with("->") {
        return theirs::built(context, node);
    }
    ensure!(!equation.contains('.'), "a sum over an ellipsis is not served");
    // One of scalars has nothing to sum.
    let Some(kept_axis) = equation.chars().find(char::is_ascii_alphabetic) else {
        return theirs::built(context, node);
    };
    let equation = format!("{equation}{kept_axis}");
    let mut kept = node.clone();
    let attribute = kept.attribute.iter_mut().find(|attribute| attribute.name == "equation");
    attribute.context("no equation")?.s = equation.into_bytes();
    let inner = theirs::expansion(context, &kept)?;
    Ok((expand(Summed { inner }), Vec::new()))
}

/// The sum of tract's operator's one axis.
#[derive(Debug, Clone)]
struct Summed {
    inner: Box<dyn Expansion>,
}

impl Expansion for Summed {
    fn name(&self) -> StaticName {
        "Einsum".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, 1)?;
        for input in inputs {
            solver.equals(&input.datum_type, &outputs[0].datum_type)?;
        }
        solver.equals(&outputs[0].rank, 0)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let kept = self.inner.as_ref().wire(&format!("{prefix}.kept"), model, inputs)?;
        let sum = Reduce { axes: tvec![0], reducer: Reducer::Sum };
        let sum = model.wire_node(format!("{prefix}.sum"), sum, &kept)?;
        model.wire_node(prefix, AxisOp::Rm(0), &sum)
    }
}
