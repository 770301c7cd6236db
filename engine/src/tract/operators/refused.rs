//! Operators as tract has them, but for inputs that it answers wrongly or does not survive: those are
//! refused.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;
use super::theirs::{self, Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("NonMaxSuppression", non_max_suppression);
    operators.insert("Pow", |context, node| rewired(context, node, Pow));
}

/// Without a number of boxes there are none; tract gives all.
fn non_max_suppression(context: &ParsingContext, node: &NodeProto) -> Built {
    let is_bounded = node.input.get(2).is_some_and(|name| !name.is_empty());
    ensure!(is_bounded, "max_output_boxes_per_class is not given");
    theirs::built(context, node)
}

/// tract reads the first element of a constant exponent, where there is none, too.
#[derive(Debug, Clone)]
struct Pow;

impl Wiring for Pow {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        for &input in inputs {
            let constant = model.outlet_fact(input)?.konst.as_ref();
            ensure!(constant.is_none_or(|constant| constant.len() > 0), "an empty constant");
        }
        inner.wire(prefix, model, inputs)
    }
}
