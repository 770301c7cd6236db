//! Operators as tract has them, but for what it is known to answer wrongly: that is refused.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;
use super::theirs::{self, Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("NonMaxSuppression", non_max_suppression);
    operators.insert("Pow", |context, node| rewired(context, node, Pow));
    operators.insert("Resize", resize);
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

/// By scales that give no whole sizes. tract cuts those off before it computes places, in modes that
/// go by the size.
#[derive(Debug, Clone)]
struct Resize {
    /// Which of the inputs has the scales.
    scales: usize,
}

fn resize(context: &ParsingContext, node: &NodeProto) -> Built {
    let mode = node.get_attr_opt::<&str>("coordinate_transformation_mode")?;
    let goes_by_size =
        matches!(mode, Some("align_corners" | "tf_crop_and_resize" | "half_pixel_symmetric"));
    let is_old = context.onnx_operator_set_version < 11;
    let scales = if is_old { 1 } else { 2 };
    let is_given = |index: usize| node.input.get(index).is_some_and(|name| !name.is_empty());
    if !(goes_by_size || is_old) || !is_given(scales) {
        return theirs::built(context, node);
    }
    let scales = (0..scales).filter(|&index| is_given(index)).count();
    rewired(context, node, Resize { scales })
}

impl Wiring for Resize {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let shape = &model.outlet_fact(inputs[0])?.shape;
        let scales =
            inputs.get(self.scales).map(|&scales| model.outlet_fact(scales)).transpose()?;
        let scales = scales.and_then(|scales| scales.konst.as_ref());
        let scales = scales.context("the scales are not known")?.cast_to::<f32>()?;
        for (size, scale) in shape.iter().zip(scales.try_as_plain_ram()?.as_slice::<f32>()?) {
            let is_whole = match size.to_i64() {
                Ok(size) => (size as f32 * scale).fract() == 0.0,
                Err(_) => scale.fract() == 0.0,
            };
            ensure!(is_whole, "{size} resized by {scale} is not whole");
        }
        inner.wire(prefix, model, inputs)
    }
}
