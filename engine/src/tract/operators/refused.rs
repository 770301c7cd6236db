//! Operators as tract has them, but for inputs that it answers wrongly or does not survive: those are
//! refused.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::MultiBroadcastTo;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, only};
use super::theirs::{self, Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("Dropout", dropout);
    operators.insert("NonMaxSuppression", non_max_suppression);
    operators.insert("Pow", |context, node| rewired(context, node, Pow));
}

/// Without a number of boxes there are none; tract gives all.
fn non_max_suppression(context: &ParsingContext, node: &NodeProto) -> Built {
    let is_bounded = node.input.get(2).is_some_and(|name| !name.is_empty());
    ensure!(is_bounded, "max_output_boxes_per_class is not given");
    theirs::built(context, node)
}

fn dropout(_context: &ParsingContext, node: &NodeProto) -> Built {
    let is_given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    let ratio = is_given(1).then_some(1);
    let mode = is_given(2).then_some(if is_given(1) { 2 } else { 1 });
    let has_mask = node.output.get(1).is_some_and(|name| !name.is_empty());
    Ok((expand(Dropout { has_mask, ratio, mode }), Vec::new()))
}

/// Passes on what comes, with a mask of all. tract's reads a mode where there is none, too, and looks
/// at it in each run.
#[derive(Debug, Clone)]
struct Dropout {
    has_mask: bool,
    /// Which of the inputs they are.
    ratio: Option<usize>,
    mode: Option<usize>,
}

impl Expansion for Dropout {
    fn name(&self) -> StaticName {
        "Dropout".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(1 + usize::from(self.has_mask))
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1 + [self.ratio, self.mode].iter().flatten().count())?;
        check_output_arity(outputs, 1 + usize::from(self.has_mask))?;
        solver.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        solver.equals(&outputs[0].shape, &inputs[0].shape)?;
        if self.has_mask {
            solver.equals(&outputs[1].datum_type, DatumType::Bool)?;
            solver.equals(&outputs[1].shape, &inputs[0].shape)?;
        }
        Ok(())
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let known = |index: usize, name: &str| {
            let value = model.outlet_fact(inputs[index])?.konst.clone();
            value.with_context(|| format!("{name} is not known"))
        };
        let mode = self.mode.map(|index| only::<bool>(&*known(index, "training_mode")?));
        if mode.transpose()?.unwrap_or(false) {
            let ratio = self.ratio.map(|index| only::<f32>(&*known(index, "ratio")?));
            ensure!(ratio.transpose()? == Some(0.0), "training_mode is not served");
        }
        let mut outputs = tvec![inputs[0]];
        if self.has_mask {
            let shape = model.outlet_fact(inputs[0])?.shape.clone();
            let kept = model.add_const(format!("{prefix}.kept"), tensor0(true))?;
            let mask = MultiBroadcastTo::new(shape);
            outputs.push(model.wire_node(format!("{prefix}.mask"), mask, &[kept])?[0]);
        }
        Ok(outputs)
    }
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
