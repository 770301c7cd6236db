//! ConvTranspose to an output of a given size. tract makes it larger than what the kernels reach, by
//! its bias, but never smaller, and has none with automatic padding.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::Slice;
use tract_onnx::tract_hir::internal::*;

use super::kernel::Built;
use super::theirs::{self, Wiring, rewired};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("ConvTranspose", conv_transpose);
}

fn conv_transpose(context: &ParsingContext, node: &NodeProto) -> Built {
    let Some(sizes) = node.get_attr_opt_tvec::<usize>("output_shape")? else {
        return theirs::built(context, node);
    };
    let is_upper = matches!(node.get_attr_opt::<&str>("auto_pad")?, Some("SAME_UPPER"));
    // The given size says what is padded, whatever they say.
    let mut unpadded = node.clone();
    unpadded.attribute.retain(|it| !matches!(&*it.name, "auto_pad" | "pads"));
    let mut whole = unpadded.clone();
    whole.attribute.retain(|it| it.name != "output_shape");
    let whole = theirs::expansion(context, &whole)?;
    rewired(context, &unpadded, ToSize { sizes, whole, is_upper })
}

#[derive(Debug, Clone)]
struct ToSize {
    /// Of the axes after batch and channel.
    sizes: TVec<usize>,
    /// Gives all that the kernels reach.
    whole: Box<dyn Expansion>,
    /// An odd number of places is cut so that one more goes at the end, else at the start.
    is_upper: bool,
}

impl Wiring for ToSize {
    fn wire(
        &self,
        inner: &dyn Expansion,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut wire = self.whole.wire(&format!("{prefix}.whole"), model, inputs)?;
        let reached = model.outlet_fact(wire[0])?.shape.clone();
        let reached = reached.iter().skip(2).map(|size| size.to_usize().ok());
        let reached: Option<TVec<usize>> = reached.collect();
        let reached = reached.context("output_shape asks for an input of known sizes")?;
        ensure!(reached.len() == self.sizes.len(), "output_shape is not of as many axes");
        let pairs = || reached.iter().zip(&self.sizes);
        if pairs().all(|(reached, size)| reached <= size) {
            return inner.wire(prefix, model, inputs);
        }
        ensure!(
            pairs().all(|(reached, size)| reached >= size),
            "output_shape {:?} is larger than what the kernels reach, {reached:?}, and smaller",
            self.sizes
        );
        for (index, (&reached, &size)) in pairs().enumerate() {
            let cut = reached - size;
            let start = if self.is_upper { cut / 2 } else { cut.div_ceil(2) };
            let name = format!("{prefix}.cut_{index}");
            wire = model.wire_node(name, Slice::new(index + 2, start, start + size), &wire)?;
        }
        Ok(wire)
    }
}
